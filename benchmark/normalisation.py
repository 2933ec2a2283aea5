"""Batch and layer normalisation, ours against PyTorch's own: time, and what is kept for the backward pass.

Everything in float32, forward and backward, with gradients for the input and both parameters.
"""

import numpy as np
import torch
from torch import nn

from benchmark.ratios import Action, Ratio, compare, take_turns
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule
from custom_layernorm import CustomLayerNormAutograd, CustomLayerNormManualModule
from modules import BatchNormModule, LayerNormModule, Module

SHAPES = ((200, 100), (4096, 1024), (32 * 1024, 64))
KINDS = {
    'batch': (CustomBatchNormManualModule, CustomBatchNormAutograd, nn.BatchNorm1d, BatchNormModule),
    'layer': (CustomLayerNormManualModule, CustomLayerNormAutograd, nn.LayerNorm, LayerNormModule),
}


def normalisation(data_dir: str, repeats: int) -> list[Ratio]:
    """Normalisation by hand, in PyTorch and in NumPy, against PyTorch's own: time, and bytes that are kept."""
    ratios = []
    for kind, (manual, autograd, native, in_numpy) in KINDS.items():
        for shape in SHAPES:
            x, dout = torch.randn(shape), torch.randn(shape)
            modules = {'manual': manual(shape[1]), 'autograd': autograd(shape[1]), 'native': native(shape[1])}
            actions = {name: forward_and_backward(module, x, dout) for name, module in modules.items()}
            actions['numpy'] = forward_and_backward_numpy(in_numpy(shape[1], dtype=np.float32), x.numpy(), dout.numpy())
            seconds = take_turns(actions, repeats)
            case = f'{kind} {shape}'
            at_most = 2.0 if shape == SHAPES[0] else 1.5
            ratios += compare('normalisation', case, seconds, 'manual', {'autograd': None, 'native': at_most})
            ratios += compare('normalisation', case, seconds, 'numpy', {'native': 1.5})
            leaf = x.clone().requires_grad_()
            saved = {name: np.array([saved_bytes(module, leaf)], float) for name, module in modules.items()}
            targets = {'autograd': None, 'native': 1.1}
            ratios += compare('normalisation', f'{case} bytes kept', saved, 'manual', targets)
    return ratios


def forward_and_backward(module: nn.Module, x: torch.Tensor, dout: torch.Tensor) -> Action:
    """One pass each way of a PyTorch module in training mode."""
    x = x.clone().requires_grad_()

    def both() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(dout)

    return both


def forward_and_backward_numpy(module: Module, x: np.ndarray, dout: np.ndarray) -> Action:
    """The same of a NumPy module."""

    def both() -> None:
        module.forward(x)
        module.backward(dout)

    return both


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """The bytes that the module's forward pass keeps for its backward pass, each storage counted once."""
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(saved.values())
