"""The multi-layer perceptron of `mlp_numpy` in PyTorch, with a normalisation where it is wanted."""

from collections.abc import Sequence

import torch
from torch import nn

from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule
from custom_layernorm import CustomLayerNormAutograd, CustomLayerNormManualModule
from modules import INITS

NORMS = {
    'none': None,
    'batch_autograd': CustomBatchNormAutograd,
    'batch_manual': CustomBatchNormManualModule,
    'batch_torch': nn.BatchNorm1d,
    'layer_autograd': CustomLayerNormAutograd,
    'layer_manual': CustomLayerNormManualModule,
    'layer_torch': nn.LayerNorm,
}


def rectifier(neg_slope: float) -> nn.Module:
    """A ReLU, or a leaky one where it has a slope below zero."""
    return nn.LeakyReLU(neg_slope) if neg_slope else nn.ReLU()


ACTIVATIONS = {'relu': rectifier, 'leaky_relu': rectifier, 'elu': lambda neg_slope: nn.ELU()}


def linear(in_features: int, out_features: int, input_layer: bool, init: str) -> nn.Linear:
    """A linear layer with the initial parameters of `modules.initial_params`, which are PyTorch's own for 'torch'."""
    if init not in INITS:
        raise ValueError(f'init must be one of {", ".join(INITS)}, got {init!r}')
    layer = nn.Linear(in_features, out_features)
    if init == 'report':
        nn.init.normal_(layer.weight, std=1e-4)
    elif init == 'kaiming':
        nn.init.kaiming_normal_(layer.weight, nonlinearity='linear' if input_layer else 'relu')
    if init != 'torch':
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Class logits from images, flat or not.

    Args:
        n_inputs: the number of values of an image, such as 3072.
        n_hidden: the widths of the hidden layers; with none, the network is multinomial logistic regression.
        n_classes: the number of classes.
        neg_slope: the rectifiers' slope below zero; 0 is the plain ReLU.
        norm: a key of NORMS; it stands between each hidden linear layer and its activation.
        activation: a key of ACTIVATIONS.
        init: of the linear layers, one of `modules.INITS`.
        dropout: the probability with which an activation's output is dropped in training.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: Sequence[int],
        n_classes: int,
        neg_slope: float = 0.0,
        norm: str = 'none',
        activation: str = 'relu',
        init: str = 'torch',
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = n_inputs
        for n_units in n_hidden:
            layers.append(linear(width, n_units, not layers, init))
            if NORMS[norm]:
                layers.append(NORMS[norm](n_units))
            layers.append(ACTIVATIONS[activation](neg_slope))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = n_units
        layers.append(linear(width, n_classes, not layers, init))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits (n_batch, n_classes) for x (n_batch, n_inputs) or images (n_batch, 3, 32, 32)."""
        return self.layers(x.flatten(1))
