"""Trains the PyTorch multi-layer perceptron on CIFAR-10.

    python train_mlp_pytorch.py --dnn_hidden_units 400,400,400 --optimizer adam --learning_rate 2e-4

The first epoch's batches come in file order, as in the NumPy reference, and the later ones by shuffles from a generator
seeded with 42, whatever the network. `--seed` chooses the initial weights, which are PyTorch's own.
"""

import argparse
import os
import sys

import torch

from cifar10_utils import N_CLASSES, N_PIXELS
from experiment import FlagError, OneLineParser, RunRecord, add_mlp_flags, main, make_parser
from mlp_pytorch import BATCH_NORMS, MLP
from training_pytorch import add_pytorch_flags, launched, train_model


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = make_parser(
        'Trains a PyTorch multi-layer perceptron on CIFAR-10.',
        learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100,
    )  # fmt: skip
    add_mlp_flags(parser)
    add_pytorch_flags(parser, optimizer='sgd')
    parser.add_argument('--batch_norm', choices=list(BATCH_NORMS), default='none', help='before each rectifier')
    return parser


def check_batch_norm(flags: argparse.Namespace, alone: bool = False) -> None:
    """Raises a FlagError if these flags leave batch normalisation nothing to do, or too little to do it with."""
    if flags.batch_norm == 'none':
        return
    if not flags.dnn_hidden_units:
        raise FlagError(f'--batch_norm {flags.batch_norm} needs a hidden layer to stand in: see --dnn_hidden_units')
    n_ranks = 1 if alone or not launched() else int(os.environ['WORLD_SIZE'])
    if flags.batch_size < 2 * n_ranks:
        raise FlagError(
            f'--batch_norm {flags.batch_norm} needs at least 2 examples in each of {n_ranks} process(es), '
            f'got a --batch_size of {flags.batch_size}'
        )


def train(flags: argparse.Namespace, quiet: bool = False, alone: bool = False) -> RunRecord:
    """Trains one network and returns the record of the run; for `quiet` and `alone` see `train_model`.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
    """
    check_batch_norm(flags, alone)
    torch.manual_seed(flags.seed)
    model = MLP(N_PIXELS, flags.dnn_hidden_units, N_CLASSES, flags.neg_slope, flags.batch_norm)
    return train_model('mlp_pytorch', 'MLP in PyTorch', model, flags, quiet, alone)


if __name__ == '__main__':
    sys.exit(main('mlp_pytorch', build_parser(), train))
