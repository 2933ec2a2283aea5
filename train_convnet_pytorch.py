"""Trains the small VGG on CIFAR-10; at the default flags it gives what the report's Table 2 and Figure 5 show.

python train_convnet_pytorch.py --precision bfloat16
"""

import argparse
import sys

import torch

from cifar10_utils import IMAGE_SHAPE, N_CLASSES
from convnet_pytorch import ConvNet
from experiment import OneLineParser, RunRecord, main, make_parser
from training_pytorch import add_pytorch_flags, train_model


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = make_parser(
        'Trains a small VGG on CIFAR-10.', learning_rate=1e-4, max_steps=5000, batch_size=32, eval_freq=500
    )
    add_pytorch_flags(parser, optimizer='adam')
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
    return train_model('convnet_pytorch', 'ConvNet in PyTorch', build_model(), flags, quiet)


if __name__ == '__main__':
    sys.exit(main('convnet_pytorch', build_parser(), train))
