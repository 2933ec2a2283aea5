"""What a run is asked: the types of flags, the groups of flags that scripts share, and errors of one line.

    parser = OneLineParser(description='Trains a network.')
    add_run_flags(parser, learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100)
    with one_line_errors(parser):
        train(parser.parse_args())

What a user can mend is raised as a FlagError or a DataError, and said in one line, with exit status 2.
"""

import argparse
import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from cifar10_utils import DEFAULT_DATA_DIR, DataError

MAX_WIDTH = 100_000  # of a hidden layer: 2.5 GB of weights on CIFAR-10


class FlagError(ValueError):
    """A flag that cannot be followed; the message is one line that says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line rather than with its whole usage."""

    def __init__(self, **kwargs: object) -> None:
        # A script built on another's flags may define one of them anew.
        kwargs = {'allow_abbrev': False, 'conflict_handler': 'resolve'} | kwargs
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Ends the process with this line on stderr and exit status 2; under torchrun rank 0 alone says it."""
        line = f'{self.prog}: error: {" ".join(message.split())} (--help lists the flags)\n'
        self.exit(2, line if is_main_process() else None)


def positive_int(text: str) -> int:
    """The type of a flag that counts something."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f'must be a whole number above zero, got {text!r}')
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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def hidden_units(text: str) -> list[int]:
    """The type of `--dnn_hidden_units`: `100,100` gives [100, 100], and nothing gives [], no hidden layer."""
    try:
        widths = [positive_int(width.strip()) for width in text.split(',')] if text.strip() else []
    except argparse.ArgumentTypeError:
        widths = [0]
    if any(not 0 < width <= MAX_WIDTH for width in widths):
        raise argparse.ArgumentTypeError(
            f'must be widths from 1 to {MAX_WIDTH} between commas, such as 100 or 200,100, got {text!r}'
        )
    return widths


def distinct_seeds(text: str) -> list[int]:
    """The type of `--seeds`: `1,2,3` gives [1, 2, 3]."""
    seeds = [non_negative_int(seed) for seed in text.split(',')]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f'must not repeat a seed, got {text!r}')
    return seeds


def add_run_flags(parser: OneLineParser, learning_rate: float, max_steps: int, batch_size: int, eval_freq: int) -> None:
    """Adds what every training has, at these defaults: how far to go, in which steps, and where its files go."""
    add = parser.add_argument
    add('--learning_rate', type=positive_float, default=learning_rate, help='step size')
    add('--max_steps', type=positive_int, default=max_steps, help='number of training steps')
    add('--batch_size', type=positive_int, default=batch_size, help='examples in a training step')
    add('--eval_freq', type=positive_int, default=eval_freq, help='steps from one evaluation to the next')
    add('--output_dir', default='.', help='where results/ and figures/ go')


def add_seed_flag(parser: OneLineParser) -> None:
    """Adds `--seed`."""
    parser.add_argument('--seed', type=non_negative_int, default=42, help='seed of the initial weights')


def add_data_flags(parser: OneLineParser) -> None:
    """Adds what says which examples are trained and validated on."""
    add = parser.add_argument
    add('--dataset', choices=['auto', 'cifar10', 'synthetic'], default='auto',
        help='cifar10: on disk, else downloaded; auto: also the stand-in, unless --data_dir is set')  # fmt: skip
    add_data_dir_flag(parser)
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


def add_mlp_flags(parser: OneLineParser) -> None:
    """Adds what describes a multi-layer perceptron."""
    parser.add_argument(
        '--dnn_hidden_units', type=hidden_units, default=[100], metavar='N,N,...',
        help='widths of the hidden layers; an empty string for none',
    )  # fmt: skip
    parser.add_argument('--neg_slope', type=non_negative_float, default=0.0, help='slope of the rectifiers below zero')


def add_pytorch_flags(parser: OneLineParser, optimizers: Iterable[str], optimizer: str) -> None:
    """Adds what only the PyTorch trainers have: which of `optimizers`, on what device and how."""
    add = parser.add_argument
    add('--optimizer', type=str.lower, choices=list(optimizers), default=optimizer, help='in upper or lower case')
    add('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto', help='auto: a GPU where there is one')
    add('--precision', choices=['float32', 'bfloat16'], default='float32',
        help='bfloat16: by autocast, parameters stay float32')  # fmt: skip
    add('--compile', action='store_true', help='torch.compile the network')


def add_checkpoint_flags(parser: OneLineParser) -> None:
    """Adds what lets a run go on after it was stopped."""
    parser.add_argument('--checkpoint', metavar='FILE', help='save at every evaluation all that a run needs to go on')
    parser.add_argument('--resume', metavar='FILE', help='go on from this checkpoint')


def defaults(parser: OneLineParser) -> dict[str, object]:
    """Every flag of a parser at its default, by name."""
    return vars(parser.parse_args([]))


def check_same_flags(what: str, saved: dict[str, object], here: dict[str, object], defaults: dict[str, object]) -> None:
    """Refuses `what`, a file of another run, where its flags are not those of this run.

    A flag that one of them lacks counts as its default there: it is younger than the file, or means nothing to it.

    Raises:
        FlagError: a flag differs; the message names the first that does.
    """
    for flag in sorted({*saved, *here}):
        before, now = (flags.get(flag, defaults.get(flag)) for flags in (saved, here))
        if before != now:
            raise FlagError(f'{what} belongs to another run: its {flag} is {before}, here it is {now}')


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: under torchrun rank 0, else any."""
    return 'TORCHELASTIC_RUN_ID' not in os.environ or os.environ['RANK'] == '0'


@contextlib.contextmanager
def one_line_errors(parser: OneLineParser) -> Iterator[None]:
    """Answers what a user can mend, where the block raises it, with one line on stderr and exit status 2."""
    try:
        yield
    except (DataError, FlagError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f'cannot write: {error}')
