"""Trains the PyTorch multi-layer perceptron on CIFAR-10.

    python train_mlp_pytorch.py --dnn_hidden_units 400,400,400 --optimizer adam --learning_rate 2e-4

The first epoch's batches come in file order, as in the NumPy reference, and the later ones by shuffles from a generator
of their own, the same for every network. `--seed` chooses these and the initial weights, which are
PyTorch's own unless `--init` says otherwise.
"""

import argparse
import os
import sys
from collections.abc import Collection

import torch

from augmentation import VIEWS
from cifar10_utils import N_CLASSES, N_PIXELS
from experiment import RunRecord
from flags import (
    BATCH_NORM,
    add_checkpoint_flags,
    add_data_flags,
    add_later_names,
    add_mlp_flags,
    add_norm_flag,
    add_run_flags,
    add_seed_flags,
    add_views_flag,
    check_mlp,
    check_norm,
    defaults,
)
from metrics import confusion_matrix, confusion_matrix_to_metrics
from mlp_pytorch import ACTIVATIONS, MLP, NORMS
from modules import INITS
from parsing import OneLineParser, launched
from script import main
from training_pytorch import add_training_flags, check_float32, check_optimizer, train_model

# What other files take from here, some of it made in `metrics.py`.
__all__ = [
    'SCRIPT', 'add_flags', 'add_norm_flags', 'build_parser', 'check_flags', 'confusion_matrix',
    'confusion_matrix_to_metrics', 'train',
]  # fmt: skip

SCRIPT = 'mlp_pytorch'


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Trains a PyTorch multi-layer perceptron on CIFAR-10.')
    add_flags(parser, epochs=True)
    add_seed_flags(parser)
    add_norm_flags(parser)
    add_later_names(parser, batch_norm='batch_torch')
    add_checkpoint_flags(parser)
    add_views_flag(parser, VIEWS)
    return parser


def add_flags(parser: OneLineParser, epochs: bool = False) -> None:
    """Adds what the scripts that train many of these networks have, too; `epochs` is `add_run_flags`'."""
    add_run_flags(parser, learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100, epochs=epochs)
    add_data_flags(parser)
    add_mlp_flags(parser, ACTIVATIONS, INITS, init='torch')
    add_training_flags(parser, optimizer='sgd')


def add_norm_flags(parser: OneLineParser) -> None:
    """Adds `--norm`, and `--batch_norm`, which sets it, too."""
    add_norm_flag(parser, NORMS)
    parser.add_argument(
        '--batch_norm', action=_BatchNormAction, choices=list(BATCH_NORM), default=argparse.SUPPRESS,
        help='older name: manual is --norm batch_manual, and so on',
    )  # fmt: skip


class _BatchNormAction(argparse.Action):
    """Sets `norm` to what the older flag means."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: str, option: str | None = None
    ) -> None:
        namespace.norm = BATCH_NORM[value]


def check_flags(flags: argparse.Namespace, alone: bool = False) -> None:
    """Raises a FlagError if the flags of a run cannot work together; for `alone` see `train_model`."""
    check_mlp(flags.dnn_hidden_units, flags.activation, flags.neg_slope, flags.dropout)
    check_float32('neg_slope', flags.neg_slope)
    n_ranks = 1 if alone or not launched() else int(os.environ['WORLD_SIZE'])
    check_norm(flags.norm, flags.dnn_hidden_units, flags.batch_size, n_ranks)
    check_optimizer(flags.optimizer, flags.learning_rate, flags.momentum, flags.nesterov, flags.weight_decay)


def train(
    flags: argparse.Namespace,
    output_dir: str | None = None,
    quiet: bool = False,
    alone: bool = False,
    evaluate_after: Collection[int] = (),
) -> RunRecord:
    """Trains one network and returns the record of the run; for the arguments see `train_model`.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
    """
    check_flags(flags, alone)
    torch.manual_seed(flags.seed)
    arguments = {
        'n_inputs': N_PIXELS, 'n_hidden': flags.dnn_hidden_units, 'n_classes': N_CLASSES,
        'neg_slope': flags.neg_slope, 'norm': flags.norm, 'activation': flags.activation, 'dropout': flags.dropout,
    }  # fmt: skip
    return train_model(
        SCRIPT, 'MLP in PyTorch', MLP(**arguments, init=flags.init), arguments, flags, defaults(build_parser()),
        output_dir, quiet, alone, evaluate_after,
    )  # fmt: skip


if __name__ == '__main__':
    sys.exit(main(build_parser(), train))
