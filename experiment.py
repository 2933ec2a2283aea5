"""What a run leaves: its record (CSV and JSON) and the figure of its curves; and what a script does around a training.

    record = RunRecord('mlp_numpy', 'MLP in NumPy', 'cifar10', max_steps=1500, eval_freq=100)
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
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from cifar10_utils import DataSet, get_cifar10
from flags import FlagError, OneLineParser, is_main_process, one_line_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASET_TITLES = {'cifar10': 'CIFAR-10', 'synthetic': 'the synthetic stand-in (not CIFAR-10)'}


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
        dataset: 'cifar10' or 'synthetic'.
        max_steps, eval_freq: how many steps it has, and how many lie between two evaluations.
        flags: every flag of the run, by name, for the record.
        quiet: no progress bar and no lines.
        evaluate_after: numbers of steps after which to evaluate as well, counted from 1.

    `rows` has a dictionary per evaluation: step (counted from 1), train_acc, train_loss, test_acc, test_loss and, with
    a validation set, val_acc and val_loss. `status` is 'finished', 'diverged' or 'interrupted'.
    """

    def __init__(
        self,
        name: str,
        title: str,
        dataset: str,
        max_steps: int,
        eval_freq: int,
        flags: dict[str, object] | None = None,
        quiet: bool = False,
        evaluate_after: Collection[int] = (),
    ) -> None:
        self.script = name
        self.name = record_name(name, dataset)
        self.title = f'{title} on {DATASET_TITLES[dataset]}'
        self.dataset = dataset
        self.max_steps = max_steps
        self.eval_freq = eval_freq
        self.flags = flags or {}
        self.quiet = quiet
        self.evaluate_after = {max_steps, *evaluate_after}
        self.rows: list[dict[str, float]] = []
        self.status = 'finished'
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self, start: int = 0) -> Iterator[Iterator[int]]:
        """Gives the steps from `start` to max_steps - 1, ending early at divergence; Ctrl-C ends the block quietly."""
        self.started = time.perf_counter() - self.seconds
        self.bar = tqdm(total=self.max_steps, initial=start, unit='step', disable=True if self.quiet else None)
        try:
            yield self._steps(start)
        except KeyboardInterrupt:
            self.status = 'interrupted'
            self.say('interrupted: what was recorded so far is kept')
        finally:
            self.bar.close()
            self.seconds = self.elapsed()

    def _steps(self, start: int) -> Iterator[int]:
        for step in range(start, self.max_steps):
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
        """Whether to evaluate after step `step`: every eval_freq steps, at the last, and when the loss diverged."""
        return step % self.eval_freq == 0 or step + 1 in self.evaluate_after or not math.isfinite(loss)

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
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
        models = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
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


def load_data(
    data_dir: str, dataset: str, validation_size: int, batch_size: int, **kwargs: object
) -> dict[str, DataSet]:
    """The data sets that the flags of these names ask for; see `get_cifar10`, which takes the other arguments.

    Raises:
        DataError: the data cannot be had, or are too few for the validation set.
        FlagError: the data are too few for a single batch.
    """
    data = get_cifar10(data_dir, validation_size=validation_size, dataset=dataset, **kwargs)
    n_train = data['train'].num_examples
    if batch_size > n_train:
        raise FlagError(
            f'--batch_size must be at most {n_train} (the training examples that --validation_size leaves), '
            f'got {batch_size}'
        )
    return data


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
