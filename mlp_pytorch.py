"""The multi-layer perceptron of `mlp_numpy` in PyTorch, with a normalisation where it is wanted."""

from collections.abc import Sequence

import torch
from torch import nn

from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule
from custom_layernorm import CustomLayerNormAutograd, CustomLayerNormManualModule

NORMS = {
    'none': None,
    'batch_autograd': CustomBatchNormAutograd,
    'batch_manual': CustomBatchNormManualModule,
    'batch_torch': nn.BatchNorm1d,
    'layer_autograd': CustomLayerNormAutograd,
    'layer_manual': CustomLayerNormManualModule,
    'layer_torch': nn.LayerNorm,
}


class MLP(nn.Module):
    """Class logits from images, flat or not.

    Args:
        n_inputs: the number of values of an image, such as 3072.
        n_hidden: the widths of the hidden layers; with none, the network is multinomial logistic regression.
        n_classes: the number of classes.
        neg_slope: the rectifiers' slope below zero; 0 is the plain ReLU.
        norm: a key of NORMS; it stands between each hidden linear layer and its rectifier.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: Sequence[int],
        n_classes: int,
        neg_slope: float = 0.0,
        norm: str = 'none',
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = n_inputs
        for n_units in n_hidden:
            layers.append(nn.Linear(width, n_units))
            if NORMS[norm]:
                layers.append(NORMS[norm](n_units))
            layers.append(nn.LeakyReLU(neg_slope) if neg_slope else nn.ReLU())
            width = n_units
        layers.append(nn.Linear(width, n_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits (n_batch, n_classes) for x (n_batch, n_inputs) or images (n_batch, 3, 32, 32)."""
        return self.layers(x.flatten(1))
