"""What every training script shares: its flags, the record of its run (CSV and JSON) and the accuracy/loss figure.

    record = RunRecord('mlp_numpy', 'MLP in NumPy', vars(flags), 'cifar10')
    with record.running() as steps:  # progress bar, Ctrl-C, the clock
        for step in steps:
            ...
            if record.evaluation_due(step, loss):
                record.add(step, train=(accuracy, loss), test=(accuracy, loss))
    record.write('.')  # results/mlp_numpy.csv and .json, figures/mlp_numpy.png

This module never imports PyTorch, and Matplotlib only to draw.
"""

import argparse
import contextlib
import csv
import errno
import gc
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from tqdm import tqdm

from cifar10_utils import DataError, DataSet, get_cifar10

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASET_TITLES = {'cifar10': 'CIFAR-10', 'synthetic': 'the synthetic stand-in (not CIFAR-10)'}


# Flags

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


def make_parser(
    description: str, learning_rate: float, max_steps: int, batch_size: int, eval_freq: int
) -> OneLineParser:
    """A parser with the flags that all trainers have, at these defaults."""
    parser = OneLineParser(description=description)
    add = parser.add_argument
    add('--learning_rate', type=positive_float, default=learning_rate, help='step size')
    add('--max_steps', type=positive_int, default=max_steps, help='number of training steps')
    add('--batch_size', type=positive_int, default=batch_size, help='examples in a training step')
    add('--eval_freq', type=positive_int, default=eval_freq, help='steps from one evaluation to the next')
    add('--seed', type=non_negative_int, default=42, help='seed of the initial weights')
    add('--dataset', choices=['auto', 'cifar10', 'synthetic'], default='auto',
        help='cifar10: on disk, else downloaded; auto: the same, or the stand-in where neither works')  # fmt: skip
    add('--data_dir', default=os.environ.get('CIFAR10_DIR', './cifar10'),
        help='holds cifar-10-batches-py, or is it; CIFAR10_DIR in the environment sets the default')  # fmt: skip
    add('--validation_size', type=non_negative_int, default=0,
        help='leading training examples to validate on rather than train on')  # fmt: skip
    add('--output_dir', default='.', help='where results/ and figures/ go')
    return parser


def add_mlp_flags(parser: OneLineParser) -> None:
    """Adds the flags that describe a multi-layer perceptron."""
    parser.add_argument(
        '--dnn_hidden_units', type=hidden_units, default=[100], metavar='N,N,...',
        help='widths of the hidden layers; an empty string for none',
    )  # fmt: skip
    parser.add_argument('--neg_slope', type=non_negative_float, default=0.0, help='slope of the rectifiers below zero')


# The record


def record_name(name: str, dataset: str) -> str:
    """The name of a record's files: what is not CIFAR-10's says so."""
    return name if dataset == 'cifar10' else f'{name}_{dataset}'


def score(row: dict[str, float]) -> float:
    """What an evaluation is picked by: its validation accuracy or, without a validation set, its test accuracy."""
    return row.get('val_acc', row['test_acc'])


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """The row of the highest score."""
    return max(rows, key=score)


class RunRecord:
    """The record of one training run, and the run's clock and voice while it lasts.

    Args:
        name: of its files; a run on the stand-in has `_synthetic` added.
        title: of its figure, such as 'MLP in NumPy'.
        flags: every flag of the run, by name.
        dataset: 'cifar10' or 'synthetic'.
        quiet: no progress bar and no lines.

    `rows` has a dictionary per evaluation: step (counted from 1), train_acc, train_loss, test_acc, test_loss and, with
    a validation set, val_acc and val_loss. `status` is 'finished', 'diverged' or 'interrupted'.
    """

    def __init__(self, name: str, title: str, flags: dict, dataset: str, quiet: bool = False) -> None:
        self.name = record_name(name, dataset)
        self.title = f'{title} on {DATASET_TITLES[dataset]}'
        self.flags = flags
        self.dataset = dataset
        self.quiet = quiet
        self.rows: list[dict[str, float]] = []
        self.status = 'finished'
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self, start: int = 0) -> Iterator[Iterator[int]]:
        """Gives the steps from `start` to max_steps - 1, ending early at divergence; Ctrl-C ends the block quietly."""
        self.started = time.perf_counter() - self.seconds
        self.bar = tqdm(total=self.flags['max_steps'], initial=start, unit='step', disable=True if self.quiet else None)
        try:
            yield self._steps(start)
        except KeyboardInterrupt:
            self.status = 'interrupted'
            self.say('interrupted: what was recorded so far is kept')
        finally:
            self.bar.close()
            self.seconds = self.elapsed()

    def _steps(self, start: int) -> Iterator[int]:
        for step in range(start, self.flags['max_steps']):
            if self.status == 'diverged':
                return
            yield step
            self.bar.update()

    def elapsed(self) -> float:
        """The seconds that the run has taken, those before it was resumed included."""
        return time.perf_counter() - self.started

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps of the record; see `restore`."""
        return {'rows': self.rows, 'status': self.status, 'seconds': self.seconds}

    def restore(self, state: dict[str, object]) -> None:
        """Goes on from a `state`."""
        self.rows, self.status, self.seconds = state['rows'], state['status'], state['seconds']

    def evaluation_due(self, step: int, loss: float) -> bool:
        """Whether this step is to be evaluated: every eval_freq steps, at the last step, and when the loss diverged.

        A caller that wants evaluations after further steps lists them in flags['also_evaluate'], counted from 1.
        """
        last = step + 1 in (self.flags['max_steps'], *self.flags.get('also_evaluate', ()))
        return step % self.flags['eval_freq'] == 0 or last or not math.isfinite(loss)

    def add(
        self,
        step: int,
        train: tuple[float, float],
        test: tuple[float, float],
        validation: tuple[float, float] | None = None,
    ) -> None:
        """Records an evaluation after step `step` (counted from 0): an accuracy and a loss on each data set."""
        row = {
            'step': step + 1,
            'train_acc': train[0],
            'train_loss': train[1],
            'test_acc': test[0],
            'test_loss': test[1],
        }
        if validation is not None:
            row |= {'val_acc': validation[0], 'val_loss': validation[1]}
        self.rows.append(row)
        self.bar.set_postfix(train_loss=f'{train[1]:.3f}', test_loss=f'{test[1]:.3f}')
        shown = '  '.join(f'{key} {value:.3f}' for key, value in row.items() if key != 'step')
        self.say(f'step {step + 1:>5}  {shown}')
        if not all(math.isfinite(value) for value in row.values()):
            self.status = 'diverged'
            self.say(f'diverged at step {step + 1}')

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar and at once, unless the run is quiet."""
        if not self.quiet:
            with contextlib.suppress(BrokenPipeError):  # nobody reads on; the records are still to be written
                tqdm.write(line)
                sys.stdout.flush()

    def best(self) -> dict[str, float]:
        """The best of the rows; see `best_row`."""
        return best_row(self.rows)

    def table(self) -> str:
        """The best and the last evaluation, laid out as in the report's tables."""
        best, last = self.best(), self.rows[-1]
        lines = [f'{self.title}: best step {best["step"]}, last step {last["step"]}']
        lines.append(f'{"dataset":<12}{"metric":<10}{"best":>8}{"last":>8}')
        for part, label in (('train', 'training'), ('val', 'validation'), ('test', 'test')):
            for key, metric in (('acc', 'accuracy'), ('loss', 'loss')):
                if f'{part}_{key}' in best:
                    values = f'{best[f"{part}_{key}"]:>8.3f}{last[f"{part}_{key}"]:>8.3f}'
                    lines.append(f'{label if key == "acc" else "":<12}{metric:<10}{values}')
        return '\n'.join(lines)

    def write(self, output_dir: str | Path) -> list[Path]:
        """Writes results/NAME.csv and .json and figures/NAME.png under `output_dir`, and returns their paths.

        Raises:
            OSError: a file cannot be written; what was there before is left as it was.
        """
        csv_path, json_path, png_path = paths = output_paths(output_dir, self.name)
        write_csv(csv_path, self.rows)
        summary = {
            'name': self.name,
            'dataset': self.dataset,
            'status': self.status,
            'seconds': round(self.seconds, 3),
            'best': self.best(),
            'last': self.rows[-1],
            'flags': self.flags,
            'versions': versions(),
            'machine': machine(),
        }
        write_json(json_path, summary)
        plot_curves(self.rows, self.title, png_path)
        return paths


def versions() -> dict[str, str]:
    """The versions of Python, NumPy and Matplotlib, and of PyTorch where this process has imported it."""
    used = ['numpy', 'matplotlib', *(['torch'] if 'torch' in sys.modules else [])]
    return {'python': platform.python_version()} | {name: version(name) for name in used}


def machine() -> str:
    """The processor that this process runs on and the number of its cores, such as 'AMD EPYC 7763, 2 cores'."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone has the file, and alone says too little above
        models = [line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                  if line.startswith('model name')]  # fmt: skip
        name = models[0] if models else name
    return f'{name}, {os.cpu_count()} cores'


# Files


def output_paths(output_dir: str | Path, name: str) -> list[Path]:
    """The paths of the CSV, the JSON and the figure of the run `name`."""
    results, figures = Path(output_dir) / 'results', Path(output_dir) / 'figures'
    return [results / f'{name}.csv', results / f'{name}.json', figures / f'{name}.png']


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its place at `path` when the block ends, whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp', delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows of the same keys, in full precision, under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def write_json(path: Path, summary: dict[str, object]) -> None:
    """Writes a summary; numbers that are not finite become null."""
    with atomic_file(path) as file:
        file.write((json.dumps(_finite(summary), indent=2) + '\n').encode())


def _finite(value: object) -> object:
    """`value` as JSON can say it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output_dir(output_dir: str, name: str) -> None:
    """Raises a FlagError unless the files of the run `name` can be written under `output_dir`."""
    try:
        for path in output_paths(output_dir, name):
            check_can_write(path)
    except OSError as error:
        raise FlagError(f'cannot write to --output_dir {output_dir}: {error.strerror}') from error


def check_can_write(path: Path) -> None:
    """Raises an OSError unless a file can be written at `path`; leaves nothing there."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f'{path} is a directory')
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    tempfile.TemporaryFile(dir=folder).close()


# The figure


# Okabe and Ito's colours, which colour-blind readers can tell apart: blue, vermilion, green, purple, orange, sky.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
COLOURS = dict(zip(('train', 'test', 'val'), PALETTE, strict=False))
LABELS = {'train': 'training (mini-batch)', 'test': 'test', 'val': 'validation'}


def new_figure(
    title: str, n_panels: int = 2, n_rows: int = 1, size: tuple[float, float] = (10, 4)
) -> tuple['Figure', list['Axes']]:
    """An empty figure in the look that all figures have, of `size` inches, and its panels, row after row."""
    # Without pyplot, which would look for a display and takes longer to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title)
    panels = list(figure.subplots(n_rows, n_panels // n_rows, squeeze=False).flat)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def save_figure(figure: 'Figure', path: Path) -> None:
    """Writes a figure into the PNG file `path`."""
    with atomic_file(path) as file:
        figure.savefig(file, format='png', dpi=120)


def plot_curves(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Draws accuracy and loss over the steps, a line per data set, side by side, into the PNG file `path`."""
    figure, panels = new_figure(title)
    steps = [row['step'] for row in rows]
    for panel, key, label in zip(panels, ('acc', 'loss'), ('accuracy', 'loss'), strict=True):
        for part, colour in COLOURS.items():
            if f'{part}_{key}' in rows[0]:
                panel.plot(steps, [row[f'{part}_{key}'] for row in rows], color=colour, label=LABELS[part], marker='.')
        shown = [row[f'{part}_{key}'] for row in rows for part in COLOURS if f'{part}_{key}' in row]
        shown = [value for value in shown if math.isfinite(value) and value > 0]
        if key == 'loss' and shown and max(shown) > 10 * min(shown):
            panel.set_yscale('log')  # or the first steps would flatten all that follows
        panel.set(xlabel='step', ylabel=label)
        panel.legend()
    save_figure(figure, path)


# What every script does around its training


def refuse_flags(flags: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    """Raises a FlagError if one of these flags, whose default is None, is given: rather than ignore it."""
    for name in names:
        if getattr(flags, name) is not None:
            raise FlagError(f'--{name} is of no use here: {why}')


def check_same_flags(what: str, saved: dict[str, object], here: dict[str, object]) -> None:
    """Raises a FlagError that names the first difference unless `what` was made with the flags of this run."""
    for flag in sorted({*saved, *here}):
        if saved.get(flag) != here.get(flag):
            raise FlagError(
                f'{what} belongs to another run: its {flag} is {saved.get(flag)}, here it is {here.get(flag)}'
            )


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: under torchrun rank 0, else any."""
    return 'TORCHELASTIC_RUN_ID' not in os.environ or os.environ['RANK'] == '0'


def load_data(flags: argparse.Namespace, **kwargs: object) -> dict[str, DataSet]:
    """The data sets that the flags ask for; see `get_cifar10`, which takes the other arguments.

    Raises:
        DataError: the data cannot be had, or are too few for the validation set.
        FlagError: the data are too few for a single batch.
    """
    data = get_cifar10(flags.data_dir, validation_size=flags.validation_size, dataset=flags.dataset, **kwargs)
    n_train = data['train'].num_examples
    if flags.batch_size > n_train:
        raise FlagError(
            f'--batch_size must be at most {n_train} (the training examples that --validation_size leaves), '
            f'got {flags.batch_size}'
        )
    return data


@contextlib.contextmanager
def one_line_errors(parser: OneLineParser) -> Iterator[None]:
    """Answers what a user can mend, where the block raises it, with one line on stderr and exit status 2."""
    try:
        yield
    except (DataError, FlagError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f'cannot write: {error}')


def main(name: str, parser: OneLineParser, train: Callable[[argparse.Namespace], RunRecord]) -> int:
    """Reads the flags, trains, shows and writes the record; returns the exit status.

    A user's mistake is one line on stderr and exits with 2. Ctrl-C keeps what was recorded and returns 130.
    """
    flags = parser.parse_args()
    # The hundreds of thousands of objects that imports leave live to the end. Frozen, they are not walked through by
    # every collection of garbage, nor, with what PyTorch's optimizers import later, by those at exit: with PyTorch this
    # saves most of a second.
    gc.freeze()
    try:
        with one_line_errors(parser):
            check_output_dir(flags.output_dir, name)
            record = train(flags)
            if record.rows and is_main_process():
                paths = record.write(flags.output_dir)
                print(record.table())
                print('wrote', ', '.join(map(str, paths)))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    gc.collect()  # first, or a process group that is garbage would never be closed, and end the process with SIGABRT
    gc.freeze()
    return 130 if record.status == 'interrupted' else 0
