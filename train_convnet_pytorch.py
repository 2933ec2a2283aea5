"""Trains the small VGG on CIFAR-10; at the default flags it gives what the report's Table 2 and Figure 5 show.

python train_convnet_pytorch.py --precision bfloat16
"""

import argparse
import sys

import torch

from augmentation import VIEWS
from cifar10_utils import IMAGE_SHAPE, N_CLASSES
from convnet_pytorch import SMALLEST_IMAGE, ConvNet
from experiment import RunRecord
from flags import add_checkpoint_flags, add_data_flags, add_run_flags, add_seed_flags, add_views_flag, defaults, share
from parsing import OneLineParser
from script import main
from training_pytorch import add_training_flags, train_model

SCRIPT = 'convnet_pytorch'


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Trains a small VGG on CIFAR-10.')
    add_run_flags(parser, learning_rate=1e-4, max_steps=5000, batch_size=32, eval_freq=500)
    add_seed_flags(parser)
    add_data_flags(parser)
    add_training_flags(parser, optimizer='adam')
    add_checkpoint_flags(parser)
    add_views_flag(parser, VIEWS)
    parser.add_argument(
        '--small_images', type=size_and_share, metavar='SIZE=SHARE',
        help='train on images of SIZE pixels in the first SHARE of the steps, such as 20=0.6; they take less time',
    )  # fmt: skip
    return parser


def size_and_share(text: str) -> list[int | float]:
    """The type of `--small_images`: `20=0.6` gives [20, 0.6]."""
    size, _, part = text.partition('=')
    least, most = SMALLEST_IMAGE, IMAGE_SHAPE[-1] - 1
    if not (size.isascii() and size.isdigit() and least <= int(size) <= most and share(part) > 0):
        raise argparse.ArgumentTypeError(f'must be a size from {least} to {most} and a share, got {text!r}')
    return [int(size), share(part)]


ARGUMENTS = {'n_channels': IMAGE_SHAPE[0], 'n_classes': N_CLASSES}


def build_model() -> ConvNet:
    """The network, laid out channels last, which the convolutions' fastest kernels read and write."""
    return ConvNet(**ARGUMENTS).to(memory_format=torch.channels_last)


def train(flags: argparse.Namespace, output_dir: str | None = None, quiet: bool = False) -> RunRecord:
    """Trains one network and returns the record of the run; for the arguments see `train_model`.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
    """
    torch.manual_seed(flags.seed)
    return train_model(
        SCRIPT,
        'ConvNet in PyTorch',
        build_model(),
        ARGUMENTS,
        flags,
        defaults(build_parser()),
        output_dir,
        quiet,
        small_images=flags.small_images,
    )


if __name__ == '__main__':
    sys.exit(main(build_parser(), train))
