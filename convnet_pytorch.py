"""The assignment's small VGG: 3×3 convolutions with batch normalisation, in five stages that each halve the image."""

import torch
from torch import nn
from torch.nn import functional

POOL = 0
# On maps of up to so many pixels each way the convolution is faster as one matrix product. In float32 the product is
# that of another library, which is slower on some processors.
LARGEST_PRODUCT, LARGEST_BFLOAT16_PRODUCT = 2, 4
SMALLEST_IMAGE = 17  # pixels: the five pools leave one place of an image from 17 to 32 pixels
WIDTHS = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class Convolution3x3(nn.Conv2d):
    """A 3×3 convolution with a border of zeros: parameters, results and gradients are those of `nn.Conv2d`.

    Each output is a weighted sum of the 3×3 places around it. Copied side by side, the places around every output make
    a matrix (n_batch · height · width, 9 · in_channels), and the convolution is its product with the filters. The copy
    is nine times the input, which costs more than it saves on large maps. On small ones on a CPU the product is faster
    than the library's kernels, which are made for long rows and multiply much of the border.

    Args:
        in_channels: the number of channels that it reads.
        out_channels: the number of filters.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The maps (n_batch, out_channels, height, width) for x (n_batch, in_channels, height, width)."""
        height, width = x.shape[2:]
        largest = LARGEST_BFLOAT16_PRODUCT if x.dtype == torch.bfloat16 else LARGEST_PRODUCT
        if max(height, width) > largest or x.device.type != 'cpu':
            return super().forward(x)
        bordered = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        shifted = [bordered[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        filters = self.weight.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(torch.cat(shifted, dim=-1), filters, self.bias).permute(0, 3, 1, 2)


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
                layers.append(Convolution3x3(channels, width))
                layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits (n_batch, n_classes) for x (n_batch, n_channels, size, size), size from 17 to 32."""
        return self.classifier(self.features(x).flatten(1))
