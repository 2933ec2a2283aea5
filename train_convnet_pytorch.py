"""Trains the small VGG on CIFAR-10; at the default flags it gives what the report's Table 2 and Figure 5 show.

python train_convnet_pytorch.py --precision bfloat16
"""

import argparse
import sys

import torch

from cifar10_utils import IMAGE_SHAPE, N_CLASSES
from convnet_pytorch import ConvNet
from experiment import RunRecord, main
from flags import (
    OneLineParser,
    add_checkpoint_flags,
    add_data_flags,
    add_pytorch_flags,
    add_run_flags,
    add_seed_flag,
    defaults,
)
from training_pytorch import OPTIMIZERS, train_model

NAME = 'convnet_pytorch'


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Trains a small VGG on CIFAR-10.')
    add_run_flags(parser, learning_rate=1e-4, max_steps=5000, batch_size=32, eval_freq=500)
    add_seed_flag(parser)
    add_data_flags(parser)
    add_pytorch_flags(parser, OPTIMIZERS, optimizer='adam')
    add_checkpoint_flags(parser)
    return parser


def build_model() -> ConvNet:
    """The network, laid out channels last, which the convolutions' fastest kernels read and write."""
    return ConvNet(IMAGE_SHAPE[0], N_CLASSES).to(memory_format=torch.channels_last)


def train(flags: argparse.Namespace, quiet: bool = False) -> RunRecord:
    """Trains one network and returns the record of the run.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
    """
    torch.manual_seed(flags.seed)
    return train_model(NAME, 'ConvNet in PyTorch', build_model(), flags, defaults(build_parser()), quiet)


if __name__ == '__main__':
    sys.exit(main(NAME, build_parser(), train))
