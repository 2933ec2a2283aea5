"""What a run is asked: the types of flags, the groups of flags that scripts share, and which of them go together.

parser = OneLineParser(description='Trains a network.')
add_run_flags(parser, learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100)
"""

import argparse
import math
import os
import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from cifar10_utils import DEFAULT_DATA_DIR
from parsing import FlagError, OneLineParser, file_path

MAX_WIDTH = 100_000  # of a hidden layer: 2.5 GB of weights on CIFAR-10
MAX_EPOCHS = 100_000  # the end of each is remembered
LEAKY_SLOPE = 0.01  # PyTorch's
MAX_NAME = 150  # characters of a run's name, so that its files' temporary names are not too long either

# Flags that say where and how a run is done, not what it computes: they are no part of its name, and may differ between
# a checkpoint and the run that goes on from it.
PLACE_FLAGS = frozenset({
    'dataset', 'data_dir', 'output_dir', 'name', 'seeds', 'checkpoint', 'resume', 'device', 'compile',
})  # fmt: skip
LENGTH_FLAGS = {'max_steps', 'epochs', 'eval_freq'}  # a run is the beginning of every longer one


def positive_int(text: str, limit: float = math.inf) -> int:
    """The type of a flag that counts something, `limit` of it at most."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= limit):
        allowed = 'above zero' if limit == math.inf else f'from 1 to {limit}'
        raise argparse.ArgumentTypeError(f'must be a whole number {allowed}, got {text!r}')
    return int(text)


def non_negative_int(text: str) -> int:
    """The type of a flag that counts something that may be absent, or of a seed."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f'must be a whole number from 0 to 2**32 - 1, got {text!r}')
    return int(text)


def positive_float(text: str) -> float:
    """The type of a learning rate."""
    value = _number(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f'must be a finite number above zero, got {text!r}')
    return value


def non_negative_float(text: str) -> float:
    """The type of a slope."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f'must be a finite number, zero or above, got {text!r}')
    return value


def share(text: str) -> float:
    """The type of a part of a whole, such as a probability, that is not all of it."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'must be a number from 0 to below 1, got {text!r}')
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def hidden_units(text: str) -> list[int]:
    """The type of `--dnn_hidden_units`: `100,100` gives [100, 100], and nothing gives [], no hidden layer."""
    try:
        return [positive_int(width.strip(), MAX_WIDTH) for width in text.split(',')] if text.strip() else []
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f'must be widths from 1 to {MAX_WIDTH} between commas, such as 100 or 200,100, got {text!r}'
        ) from error


def distinct_seeds(text: str) -> list[int]:
    """The type of `--seeds`: `1,2,3` gives [1, 2, 3]."""
    seeds = [non_negative_int(seed) for seed in text.split(',')]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f'must not repeat a seed, got {text!r}')
    return seeds


def file_name(text: str) -> str:
    """The type of `--name`, which becomes a part of file names."""
    if not re.fullmatch(r'[^/\\\x00-\x1f.][^/\\\x00-\x1f]*', text) or len(text.encode()) > MAX_NAME:
        raise argparse.ArgumentTypeError(
            f'must be 1 to {MAX_NAME} characters of a file name, without a slash or a leading dot, got {text!r}'
        )
    return text


def add_run_flags(
    parser: OneLineParser, learning_rate: float, max_steps: int, batch_size: int, eval_freq: int, epochs: bool = True
) -> None:
    """Adds what every training has, at these defaults: how far to go, in which steps, and where its files go.

    `epochs` is whether a run's length may be said in epochs, too.
    """
    add = parser.add_argument
    add('--learning_rate', '--lr', type=positive_float, default=learning_rate, metavar='RATE', help='step size')
    add('--max_steps', type=positive_int, default=max_steps, action=_StepsAction, help='number of training steps')
    if epochs:
        add('--epochs', type=partial(positive_int, limit=MAX_EPOCHS),
            help='passes over the training set, instead of steps; evaluated at the end of each, too')  # fmt: skip
    add('--batch_size', type=positive_int, default=batch_size, help='examples in a training step')
    add('--eval_freq', type=positive_int, default=eval_freq, help='steps from one evaluation to the next')
    add('--output_dir', type=file_path, default='.', help='where results/, figures/ and networks/ go')


class _StepsAction(argparse.Action):
    """Takes a number of steps in place of a number of epochs that was given before, such as by a file of flags."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: int, option: str | None = None
    ) -> None:
        namespace.max_steps = value
        if 'epochs' in namespace:
            namespace.epochs = None


def add_optimizer_flags(parser: OneLineParser, schedules: Iterable[str]) -> None:
    """Adds what both libraries' optimisers know, and how the learning rate changes: one of `schedules`."""
    add = parser.add_argument
    add('--momentum', type=share, default=0.0, help='of SGD: how much of the step before is added to each')
    add('--weight_decay', type=non_negative_float, default=0.0,
        help='times the weights is added to their gradients (adamw: to the steps); of matrices, filters')  # fmt: skip
    add('--schedule', choices=list(schedules), default='constant', help='how the learning rate falls after the warm-up')
    add('--warmup', type=share, default=0.0, help='share of the steps in which the learning rate rises')
    add('--label_smoothing', type=share, default=0.0,
        help='share of each label that training spreads over all classes; no reported loss has it')  # fmt: skip


def add_views_flag(parser: OneLineParser, views: Iterable[int]) -> None:
    """Adds `--views`, one of these, of which 1 is the default."""
    parser.add_argument('--views', type=int, choices=list(views), default=1,
        help='also average over so many views of each image: 2: itself and its mirror image; 6: these two, '
        'and both shifted by a pixel up-left and down-right, those at half the weight')  # fmt: skip


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the seed of a run."""
    parser.add_argument('--seed', type=non_negative_int, default=42,
        help='seed of all that is drawn, such as the initial weights and the order of the batches')  # fmt: skip


def add_seed_flags(parser: OneLineParser) -> None:
    """Adds the seed of a run, or several for a run each, and the name of its files."""
    one_or_more = parser.add_mutually_exclusive_group()
    add_seed_flag(one_or_more)
    one_or_more.add_argument('--seeds', type=distinct_seeds, metavar='N,N,...',
        help='a run for each of these seeds that has none yet, and their mean and standard deviation')  # fmt: skip
    parser.add_argument('--name', type=file_name,
        help='of its files; if not given, the script and the flags that are not at their defaults')  # fmt: skip


def add_data_flags(parser: OneLineParser) -> None:
    """Adds what says which examples are trained and validated on."""
    add = parser.add_argument
    add('--dataset', choices=['auto', 'cifar10', 'synthetic'], default='auto',
        help='cifar10: on disk, else downloaded; auto: also the stand-in, unless --data_dir is set')  # fmt: skip
    add_data_dir_flag(parser)
    add('--standardise', action='store_true',
        help="subtract each channel's mean, not the mean image, and divide by the channel's deviation")  # fmt: skip
    add('--validation_size', type=non_negative_int, default=0,
        help='leading training examples to validate on rather than train on')  # fmt: skip


def add_data_dir_flag(parser: OneLineParser) -> None:
    """Adds `--data_dir`; where neither it nor CIFAR10_DIR in the environment is set, it is DEFAULT_DATA_DIR."""
    default = _named(os.environ['CIFAR10_DIR']) if os.environ.get('CIFAR10_DIR') else DEFAULT_DATA_DIR
    parser.add_argument(
        '--data_dir', action=_DirectoryAction, default=default,
        help='holds cifar-10-batches-py or its archive, or is it; CIFAR10_DIR in the environment sets the default',
    )  # fmt: skip


class _DirectoryAction(argparse.Action):
    """Takes a directory that somebody names; unlike a type, it leaves the default, which nobody named, as it is."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, text: str, option: str | None = None
    ) -> None:
        if not text:
            raise argparse.ArgumentError(self, "must be a directory, got ''")
        setattr(namespace, self.dest, _named(text))


def _named(directory: str) -> str:
    """A directory that somebody names: ~ is their home, and a ./ in front, as the default has one, is left out."""
    return str(Path(os.path.expanduser(directory)))


def add_mlp_flags(parser: OneLineParser, activations: Iterable[str], inits: Iterable[str], init: str) -> None:
    """Adds what describes a multi-layer perceptron: which of the `activations` and of the `inits`, and more."""
    add = parser.add_argument
    add('--dnn_hidden_units', type=hidden_units, default=[100], metavar='N,N,...',
        help='widths of the hidden layers; an empty string for none')  # fmt: skip
    add('--activation', choices=list(activations), default='relu',
        help=f'after each hidden layer; leaky_relu has a --neg_slope of {LEAKY_SLOPE} if none is given')  # fmt: skip
    add('--neg_slope', type=non_negative_float, default=0.0, help='slope of the rectifiers below zero')
    add('--init', choices=list(inits), default=init,
        help="initial weights: the report's tiny ones, Kaiming's, or PyTorch's own")  # fmt: skip
    add('--dropout', type=share, default=0.0, help="share of each hidden layer's outputs that training drops")
    parser.consequences.append(follow_activation)


def follow_activation(flags: argparse.Namespace, given: set[str]) -> None:
    """Gives a leaky activation its slope, where no `--neg_slope` does."""
    if flags.activation == 'leaky_relu' and 'neg_slope' not in given:
        flags.neg_slope = LEAKY_SLOPE


def check_mlp(hidden_units: list[int], activation: str, neg_slope: float, dropout: float) -> None:
    """Raises a FlagError if one of these flags has nothing to do."""
    if activation not in ('relu', 'leaky_relu') and neg_slope:
        raise FlagError(
            f'--neg_slope {neg_slope:g} is of the rectifiers, and does nothing with --activation {activation}'
        )
    for flag, is_set in {'activation': activation != 'relu', 'neg_slope': neg_slope, 'dropout': dropout}.items():
        if is_set and not hidden_units:
            raise FlagError(f'--{flag} does nothing without a hidden layer: see --dnn_hidden_units')


def add_pytorch_flags(parser: OneLineParser, optimizers: Iterable[str], optimizer: str) -> None:
    """Adds what only the PyTorch trainers have: which of `optimizers`, on what device and how."""
    add = parser.add_argument
    add('--optimizer', type=str.lower, choices=list(optimizers), default=optimizer, help='in upper or lower case')
    add('--nesterov', action='store_true', help="Nesterov's momentum")
    add('--ema', type=share, default=0.0, metavar='DECAY',
        help='evaluate and keep the moving average of the network over the steps, with this decay')  # fmt: skip
    add('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto', help='auto: a GPU where there is one')
    add('--precision', choices=['float32', 'bfloat16'], default='float32',
        help='bfloat16: by autocast, parameters stay float32')  # fmt: skip
    add('--compile', action='store_true', help='torch.compile the network')


def add_checkpoint_flags(parser: OneLineParser) -> None:
    """Adds what lets a run go on after it was stopped."""
    add = parser.add_argument
    add('--checkpoint', type=file_path, metavar='FILE',
        help='save at every evaluation all that a run needs to go on, and go on from it where it is there')  # fmt: skip
    add('--resume', type=file_path, metavar='FILE',
        help='go on from this checkpoint, which must be there; a --checkpoint that is there comes first')  # fmt: skip


def defaults(parser: OneLineParser) -> dict[str, object]:
    """Every flag of a parser at its default, by name."""
    return vars(parser.parse_args([]))


def add_norm_flag(parser: OneLineParser, norms: Iterable[str]) -> None:
    """Adds `--norm`, one of these, of which 'none' is the default."""
    parser.add_argument('--norm', choices=list(norms), default='none', help='normalisation before each activation')


def add_later_names(parser: OneLineParser, batch_norm: str) -> None:
    """Adds what the course has called some flags since 2021; `--use_batch_norm` is the `--norm` of this name."""
    add = parser.add_argument
    add('--hidden_dims', type=partial(positive_int, limit=MAX_WIDTH), nargs='*', dest='dnn_hidden_units',
        default=argparse.SUPPRESS, metavar='N', help='as --dnn_hidden_units, with spaces in between')  # fmt: skip
    add('--use_batch_norm', action='store_const', const=batch_norm, dest='norm', default=argparse.SUPPRESS,
        help=f'the same as --norm {batch_norm}')  # fmt: skip


def check_norm(norm: str, hidden_units: list[int], batch_size: int, n_ranks: int = 1) -> None:
    """Raises a FlagError if these flags leave a normalisation nothing to do, or too little to do it with."""
    if norm == 'none':
        return
    if not hidden_units:
        raise FlagError(f'--norm {norm} needs a hidden layer to stand in: see --dnn_hidden_units')
    if norm.startswith('batch') and batch_size < 2 * n_ranks:
        raise FlagError(
            f'--norm {norm} needs at least 2 examples in each of {n_ranks} process(es), '
            f'got a --batch_size of {batch_size}'
        )


BATCH_NORM = {'none': 'none', 'autograd': 'batch_autograd', 'manual': 'batch_manual', 'torch': 'batch_torch'}


def by_present_names(flags: dict[str, object]) -> dict[str, object]:
    """Flags, or a network's arguments, out of a file that may be older than `norm`: `batch_norm`, by BATCH_NORM."""
    renamed = {('norm' if flag == 'batch_norm' else flag): value for flag, value in flags.items()}
    if 'batch_norm' in flags:
        renamed['norm'] = BATCH_NORM.get(flags['batch_norm'], flags['batch_norm'])
    return renamed


def check_same_flags(
    what: str,
    saved: dict[str, object],
    here: dict[str, object],
    defaults: dict[str, object],
    may_differ: Collection[str] = (),
) -> None:
    """Refuses `what`, a file of another run, where its flags are not those of this run, but for those that may differ.

    A flag that one of them lacks counts as its default there: it is younger than the file, or means nothing to it.

    Raises:
        FlagError: a flag differs; the message names the first that does.
    """
    saved = by_present_names(saved)
    for flag in sorted({*saved, *here} - {*may_differ}, key=lambda flag: (flag != 'script', flag)):
        before, now = (flags.get(flag, defaults.get(flag)) for flags in (saved, here))
        if before != now:
            raise FlagError(f'{what} belongs to another run: its {flag} is {before}, here it is {now}')
