"""Batch normalisation by hand, by autograd and PyTorch's own: its time, and what it keeps for the backward pass."""

import numpy as np
import torch
from torch import nn

from benchmark.ratios import Action, Ratio, compare, take_turns
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule


def batchnorm(data_dir: str, repeats: int) -> list[Ratio]:
    """Batch normalisation forward and backward, in time and in bytes kept for the backward pass."""
    ratios = []
    for shape in ((200, 100), (4096, 1024), (32 * 1024, 64)):
        x, dout = torch.randn(shape), torch.randn(shape)
        modules = {
            'manual': CustomBatchNormManualModule(shape[1]),
            'autograd': CustomBatchNormAutograd(shape[1]),
            'native': nn.BatchNorm1d(shape[1]),
        }
        seconds = take_turns({name: forward_and_backward(module, x, dout) for name, module in modules.items()},
                             repeats)  # fmt: skip
        targets = {'autograd': 0.6, 'native': 2.5} if shape[0] > 200 else {'autograd': None, 'native': None}
        case = str(shape)
        ratios += compare('batchnorm', case, seconds, 'manual', targets)
        leaf = x.clone().requires_grad_()
        saved = {name: np.array([saved_bytes(module, leaf)], float) for name, module in modules.items()}
        ratios += compare('batchnorm', f'{case} bytes saved', saved, 'manual', {'autograd': None, 'native': 1.1})
    return ratios


def forward_and_backward(module: nn.Module, x: torch.Tensor, dout: torch.Tensor) -> Action:
    """One pass each way in training mode, with gradients for the input and both parameters."""
    x = x.clone().requires_grad_()

    def both() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(dout)

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
