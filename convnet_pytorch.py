"""The assignment's small VGG: 3×3 convolutions with batch normalisation, in five stages that each halve the image."""

import torch
from torch import nn

POOL = 0
SMALLEST_IMAGE = 17  # pixels: the five pools leave one place of an image from 17 to 32 pixels
WIDTHS = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class ConvNet(nn.Module):
    """Class logits from images of 32×32, or of any size from 17×17 to that.

    Args:
        n_channels: the number of channels of an image, such as 3.
        n_classes: the number of classes.
    """

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = n_channels
        for width in WIDTHS:
            if width == POOL:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
            else:
                layers.append(nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1))
                layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits (n_batch, n_classes) for x (n_batch, n_channels, size, size), size from 17 to 32."""
        return self.classifier(self.features(x).flatten(1))
