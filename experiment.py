"""What a run leaves: its record, under a name that says what it is, and the files that the record writes.

    record = RunRecord('mlp_numpy', 'MLP in NumPy', 'cifar10', flags, output_dir='.')
    with record.running() as steps:
        for step in steps:
            ...
            if record.evaluation_due(step, loss):
                record.add(step, train=(accuracy, loss), test=(accuracy, loss))

However the block ends, what was evaluated is then on disk: results/NAME.csv and .json, figures/NAME.png, and the
network in networks/. Until then, and where the process is killed, its evaluations are in results/NAME.csv.running. This
module never imports PyTorch, and Matplotlib only to draw.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from cifar10_files import one_line
from files import check_can_write, write_csv, write_json
from flags import LENGTH_FLAGS, MAX_NAME, PLACE_FLAGS, by_present_names, check_same_flags
from machine import machine, versions
from parsing import FlagError
from plots import plot_curves
from stopping import exit_status, undisturbed

DATASET_TITLES = {'cifar10': 'CIFAR-10', 'synthetic': 'the synthetic stand-in (not CIFAR-10)'}
# Finished and interrupted runs end with 0 and, as shells have it, 128 and the signal's number.
EXIT_STATUS = {'finished': 0, 'failed': 1, 'diverged': 3}
OVER_SEEDS = ('seeds', 'mean', 'std')  # what the JSON of a run's name says of several seeds
Row = dict[str, float]


# Rows and names


def is_finite(row: Row) -> bool:
    """Whether a row is one of a network that still works; one that does not may guess a class right by chance."""
    return all(math.isfinite(value) for key, value in row.items() if key.endswith(('_acc', '_loss')))


def score(row: Row) -> float:
    """What a row is picked by: its validation accuracy where there is one, else, as the report does, the test's."""
    return row.get('val_acc', row['test_acc'])


def best_row(rows: list[Row]) -> Row:
    """The row of the highest `score`, the first of several; a row that is not finite is none where another is."""
    return max(filter(is_finite, rows), key=score, default=rows[-1])


def record_name(name: str, dataset: str) -> str:
    """The name of a record's files: what is not CIFAR-10's says so."""
    return name if dataset == 'cifar10' else f'{name}_{dataset}'


def shaping(flags: dict[str, object]) -> dict[str, object]:
    """The flags that shape a result."""
    return {flag: value for flag, value in flags.items() if flag not in PLACE_FLAGS}


def identity(record: dict[str, object]) -> dict[str, object]:
    """What tells the run of a record, or those of a summary, from others: all that shapes their results."""
    flags = shaping(by_present_names(record.get('flags', {})))
    of_run = {'script': record.get('script'), 'dataset': record.get('dataset'), 'processes': record.get('processes', 1)}
    return flags | of_run


def same_but_for_the_seed(
    record: dict[str, object], other: dict[str, object], defaults: dict[str, object] | None = None
) -> bool:
    """Whether the runs of two records differ in nothing that shapes their results, or in their seeds alone.

    A flag that one of them lacks counts as its default, as in `check_same_flags`.
    """
    one, another = ({**shaping(defaults or {}), **identity(of), 'seed': None} for of in (record, other))
    return one == another


def told_flags(flags: dict[str, object], defaults: dict[str, object]) -> dict[str, str]:
    """The flags that shape a run's result and are not at their defaults, in the order of `defaults`, as text.

    A number of steps that follows from a number of epochs is not told.
    """
    return {
        flag: ','.join(map(str, flags[flag])) if isinstance(flags[flag], list) else str(flags[flag])
        for flag, default in shaping(defaults).items()
        if flag in flags and flags[flag] != default and not (flag == 'max_steps' and flags.get('epochs'))
    }


def run_name(script: str, dataset: str, flags: dict[str, object], defaults: dict[str, object]) -> str:
    """The name of a run's files: `--name`, or the script, the data set and the flags not at their defaults.

    A run of several seeds has its seed at the end, whatever it is. What is too long or no part of a file name is cut
    out, and a hash of the whole put in its place, so that two different runs never share a name.
    """
    several = bool(flags.get('seeds'))
    told = told_flags(flags, defaults)
    if several:
        told.pop('seed', None)
    whole = '_'.join([record_name(script, dataset), *(f'{flag}={value}' for flag, value in told.items())])
    safe = re.sub(r'[^\w=,.+-]', '', whole)
    if safe != whole or len(safe.encode()) > MAX_NAME:
        safe = f'{safe[: MAX_NAME - 9]}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}'
    name = flags.get('name') or safe
    return f'{name}_seed={flags["seed"]}' if several else name


PARTS = {'train': 'training', 'val': 'validation', 'val_views': 'validation, by views', 'test': 'test',
         'test_views': 'test, by views'}  # fmt: skip


def table_lines(columns: dict[str, dict[str, object]], shown: Callable[[object], str]) -> list[str]:
    """The lines of a table of accuracies and losses, a column for each of these rows, whose values are `shown` so."""
    first = next(iter(columns.values()))
    cells = [[f'{part}_{key}', label if key == 'acc' else '', metric] for part, label in PARTS.items()
             for key, metric in (('acc', 'accuracy'), ('loss', 'loss')) if f'{part}_{key}' in first]  # fmt: skip
    lines = [['dataset', 'metric', *columns]]
    lines += [[label, metric, *(shown(row[key]) for row in columns.values())] for key, label, metric in cells]
    width = max(len(value) for line in lines for value in line[2:])
    return [f'{label:<22}{metric:<10}' + ''.join(f'{value:>{width + 2}}' for value in values)
            for label, metric, *values in lines]  # fmt: skip


# The record


class Network(Protocol):
    """The network of a run, as its record sees it; see `checkpoints.KeptNetwork`."""

    suffix: str

    def keep(self) -> None:
        """Keeps a copy of the network as it is."""

    def save(self, path: Path, description: dict[str, object]) -> None:
        """Writes the copy, and what it is."""


class RunRecord:
    """The record of one training run, and the run's clock and voice while it lasts.

    Args:
        script: the name of the script, such as 'mlp_numpy', with which the names of its files begin.
        title: of its figure, such as 'MLP in NumPy'.
        dataset: 'cifar10' or 'synthetic'.
        flags: every flag of the run, by name; `max_steps` and `eval_freq` are followed here.
        defaults: the same flags at their defaults, without which the names of its files say nothing of its flags.
        output_dir: where its files go; None: nowhere.
        quiet: no progress bar and no lines.
        evaluate_after: numbers of steps after which to evaluate as well, counted from 1.
        network: is kept at the row of the best validation accuracy or, without a validation set, at the last.
        processes: how many share each batch, and so the statistics of a batch normalisation.

    `rows` has a dictionary per evaluation: step (counted from 1), train_acc, train_loss, test_acc, test_loss and, with
    a validation set, val_acc and val_loss; with several views of each image test_views_acc and so on, too. `status` is
    'finished', 'diverged', 'interrupted' or 'failed'.

    Raises:
        FlagError: one of its files cannot be written, or belongs to another run that was finished.
    """

    def __init__(
        self,
        script: str,
        title: str,
        dataset: str,
        flags: dict[str, object],
        defaults: dict[str, object] | None = None,
        output_dir: str | None = None,
        quiet: bool = False,
        evaluate_after: Collection[int] = (),
        network: Network | None = None,
        processes: int = 1,
    ) -> None:
        self.script = script
        self.name = run_name(script, dataset, flags, defaults or {})
        words = [f'{flag.removeprefix("dnn_").replace("_", " ")} {value}'
                 for flag, value in told_flags(flags, defaults or {}).items()]  # fmt: skip
        self.title = f'{title} on {DATASET_TITLES[dataset]}' + ''.join(f', {word}' for word in words)
        self.dataset = dataset
        self.flags = flags
        self.defaults = defaults or {}
        self.output_dir = output_dir
        self.quiet = quiet
        self.evaluate_after = {flags['max_steps'], *evaluate_after}
        self.network = network
        self.processes = processes
        self.machine = machine()
        self.rows: list[Row] = []
        self.kept_row: Row | None = None
        self.status = 'finished'
        self.exit_status = 0
        self.seconds = 0.0
        if output_dir is not None:
            for path in output_paths(output_dir, self.name, network.suffix if network else ''):
                check_output(path, output_dir)
        self._check_name()

    # While the run lasts

    @contextlib.contextmanager
    def running(self, start: int = 0) -> Iterator[Iterator[int]]:
        """Gives the steps from `start` to max_steps - 1, ending early at divergence; then writes what there is.

        Ctrl-C, and the signals of `stopping_signals`, end the block quietly; an error ends it after the files are
        written.
        """
        self.started = time.perf_counter() - self.seconds
        self.bar = tqdm(total=self.flags['max_steps'], initial=start, unit='step', disable=True if self.quiet else None)
        try:
            yield self._steps(start)
        except KeyboardInterrupt as stop:
            self.status = 'interrupted'
            self.exit_status = exit_status(stop)
            self.say(f'interrupted: {"what was evaluated so far is kept" if self.rows else "before any evaluation"}')
        except BaseException:
            self.status = 'failed'
            raise
        finally:
            with undisturbed():
                self.bar.close()
                self.seconds = self.elapsed()
                self.exit_status = EXIT_STATUS.get(self.status) or self.exit_status
                if self.output_dir is not None and self.rows:
                    self.write(self.output_dir)

    def _steps(self, start: int) -> Iterator[int]:
        for step in range(start, self.flags['max_steps']):
            if self.status == 'diverged':
                return
            yield step
            self.bar.update()

    def elapsed(self) -> float:
        """The seconds that the run has taken, those before it was resumed included."""
        return time.perf_counter() - self.started

    def evaluation_due(self, step: int, loss: float) -> bool:
        """Whether to evaluate after step `step`: every eval_freq steps, at the last, and when the loss diverged."""
        return step % self.flags['eval_freq'] == 0 or step + 1 in self.evaluate_after or not math.isfinite(loss)

    def add(
        self,
        step: int,
        train: tuple[float, float],
        test: tuple[float, float],
        validation: tuple[float, float] | None = None,
        test_views: tuple[float, float] | None = None,
        validation_views: tuple[float, float] | None = None,
    ) -> None:
        """Records an evaluation after step `step` (counted from 0): an accuracy and a loss on each data set.

        Those that are averaged over views of each image stand beside the plain ones, and pick nothing.
        """
        parts = {
            'train': train,
            'test': test,
            'val': validation,
            'test_views': test_views,
            'val_views': validation_views,
        }
        row = {'step': step + 1}
        for part, figures in parts.items():
            row |= {} if figures is None else {f'{part}_acc': figures[0], f'{part}_loss': figures[1]}
        self.rows.append(row)
        if is_finite(row) and (validation is None or best_row(self.rows) is row):
            with undisturbed():  # the row says what the network is
                self.kept_row = row
                if self.network:
                    self.network.keep()
        self.bar.set_postfix(train_loss=f'{train[1]:.3f}', test_loss=f'{test[1]:.3f}')
        shown = '  '.join(f'{key} {value:.3f}' for key, value in row.items() if key != 'step')
        self.say(f'step {step + 1:>5}  {shown}')
        if not is_finite(row):
            self.status = 'diverged'
            self.say(f'diverged at step {step + 1}')
        if self.output_dir is not None:
            with contextlib.suppress(OSError):  # what keeps it from being written will keep the others from it, too
                write_csv(running_path(self.output_dir, self.name), self.rows)

    def say(self, line: str) -> None:
        """Says a line, unless the run is quiet."""
        if not self.quiet:
            say(line)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps of the record; see `restore`."""
        return {'rows': self.rows, 'kept_row': self.kept_row, 'status': self.status, 'seconds': self.elapsed()}

    def restore(self, state: dict[str, object]) -> None:
        """Goes on from a `state`."""
        self.rows, self.status, self.seconds = state['rows'], state['status'], state['seconds']
        self.kept_row = state.get('kept_row')

    # What it comes to

    def best(self) -> Row:
        """The best of the rows; see `best_row`."""
        return best_row(self.rows)

    def table(self) -> str:
        """The best and the last evaluation, laid out as in the report's tables."""
        best, last = self.best(), self.rows[-1]
        lines = [f'{self.title}: best step {best["step"]}, last step {last["step"]}']
        return '\n'.join([*lines, *table_lines({'best': best, 'last': last}, '{:.3f}'.format)])

    def write(self, output_dir: str | Path) -> list[Path]:
        """Says the table, writes the run's files under `output_dir`, and returns the paths of those written.

        Each file is written on its own, so that one that cannot be does not cost the others; it is told on stderr and
        makes the exit status 1. A run that is not finished leaves the files of a finished one of its name alone.
        """
        self.say(self.table())
        name = self.free_name(self.name)
        while self.status != 'finished' and read_json(output_paths(output_dir, name)[1]).get('status') == 'finished':
            name = f'{name}_{self.status}'
        csv_path, json_path, png_path, *network_path = output_paths(
            output_dir, name, self.network.suffix if self.network and self.kept_row else ''
        )
        description = {
            'name': name,
            'status': self.status,
            'seconds': round(self.seconds, 3),
            'best': self.best(),
            'last': self.rows[-1],
            **self.description(),
            'versions': versions(),
            'machine': self.machine,
        }
        outputs: dict[Path, Callable[[Path], None]] = {
            csv_path: lambda path: write_csv(path, self.rows),
            png_path: lambda path: plot_curves(self.rows, self.title, path),
        }
        for path in network_path:
            outputs[path] = lambda path: self.network.save(path, {**description, 'row': self.kept_row})
        written = [path for path, write in outputs.items() if self.attempt(path, write)]
        # Last: a run counts as done when its record says so, and then nothing that it learnt is missing.
        lost = {} if set(network_path) <= set(written) else {'lost': network_path[0].name}
        if self.attempt(json_path, lambda path: write_json(path, description | lost | summary_of_seeds(path))):
            written.append(json_path)
        if csv_path in written:
            running_path(output_dir, self.name).unlink(missing_ok=True)
        self.say('wrote ' + ', '.join(map(str, written)))
        return written

    def attempt(self, path: str | Path, write: Callable[[str | Path], None]) -> bool:
        """Writes a file, and returns whether that went well; if not, says so, and makes the exit status 1."""
        try:
            with undisturbed():  # PyTorch makes of an interrupt in the middle of a file an error of its own
                write(path)
        # Matplotlib raises what it likes, and nothing that goes wrong with one file may cost another.
        except Exception as error:
            self.exit_status = self.exit_status or 1
            with contextlib.suppress(OSError, ValueError):
                print(f'cannot write {path}: {one_line(error)}', file=sys.stderr)
            return False
        return True

    # What is on disk already

    def description(self) -> dict[str, object]:
        """What the run is, as its JSON says it; see `identity`."""
        several = {'processes': self.processes} if self.processes > 1 else {}
        return {'script': self.script, 'dataset': self.dataset, **several, 'flags': self.flags}

    def free_name(self, name: str) -> str:
        """`name` or, where another run has taken it since this one began, the same with this process's number."""
        try:
            self._check_name()
        except FlagError:
            return f'{name}_process={os.getpid()}'
        return name

    def _check_name(self) -> None:
        """Raises a FlagError if the run would take the place of another that was finished, or of other results."""
        names = [self.name] if self.output_dir is not None else []
        if names and self.flags.get('seeds'):
            names.append(self.name.removesuffix(f'_seed={self.flags["seed"]}'))
        for name in names:
            path = output_paths(self.output_dir, name)[1]
            there = read_record(path, self.script)
            if {'status', 'mean'}.isdisjoint(there) and there.keys() != {'script'}:
                raise FlagError(f'{path} holds what is no run (give this one another --name)')
            if there.get('status') != 'finished' and 'mean' not in there:
                continue
            may_differ = LENGTH_FLAGS if self._lengthens(there) else set()
            if not self.flags.get('seeds'):  # a run is done anew on as many processes as one likes
                may_differ = {*may_differ, 'processes'}
            if name != self.name or 'seed' not in there.get('flags', {}):
                may_differ = {*may_differ, 'seed'}
            what = f'{path} (give this one another --name)'
            check_same_flags(what, identity(there), identity(self.description()), self.defaults, may_differ)

    def _lengthens(self, there: dict[str, object]) -> bool:
        """Whether this run may be that of a record, going on from a checkpoint: alone, and no shorter."""
        goes_on = self.flags.get('resume') or os.path.exists(self.flags.get('checkpoint') or '')
        several = self.flags.get('seeds') or 'mean' in there
        return bool(goes_on) and not several and self.flags['max_steps'] >= there.get('flags', {}).get('max_steps', 0)

    def already_done(self) -> bool:
        """Whether this is one of several seeds' runs that is on disk already; then it takes its rows from there.

        One whose network could not be written is not.

        Raises:
            FlagError: its CSV is damaged.
        """
        if self.output_dir is None or not self.flags.get('seeds'):
            return False
        csv_path, json_path, *_ = output_paths(self.output_dir, self.name)
        there = read_json(json_path)
        if there.get('status') != 'finished' or 'lost' in there or not csv_path.exists():
            return False
        try:
            self.rows = read_rows(csv_path)
        except (ValueError, TypeError) as error:
            raise FlagError(f'{csv_path} is damaged: delete it, and the run is done again') from error
        if not self.rows:
            return False
        self.seconds = there['seconds']
        self.say(f'{self.name} is done already')
        return True


def say(line: str) -> None:
    """Prints a line, above the progress bar and at once; without a word where nobody reads or the disk is full.

    A character that the terminal has not becomes a question mark.
    """
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
        tqdm.write(line.encode(encoding, 'replace').decode(encoding))
        sys.stdout.flush()


# Files


def output_paths(output_dir: str | Path, name: str, network_suffix: str = '') -> list[Path]:
    """The paths of the CSV, the JSON and the figure of the run `name`, and of its network if it has a suffix."""
    results, figures, networks = (Path(output_dir) / folder for folder in ('results', 'figures', 'networks'))
    paths = [results / f'{name}.csv', results / f'{name}.json', figures / f'{name}.png']
    return paths + ([networks / f'{name}{network_suffix}'] if network_suffix else [])


def running_path(output_dir: str | Path, name: str) -> Path:
    """The path of the evaluations of the run `name` while it lasts, which none of its other files can have."""
    csv_path = output_paths(output_dir, name)[0]
    return csv_path.with_name(f'{csv_path.name}.running')


def check_output(path: Path, output_dir: str) -> None:
    """Raises a FlagError unless the file `path` under `output_dir` can be written."""
    try:
        check_can_write(path)
    except OSError as error:
        raise FlagError(f'cannot write to --output_dir {output_dir}: {error.strerror or error}') from error


def check_output_dir(output_dir: str, name: str) -> None:
    """Raises a FlagError unless the files of the run `name` can be written under `output_dir`."""
    for path in output_paths(output_dir, name):
        check_output(path, output_dir)


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file; an empty one where there is no such file, or it holds something else."""
    with contextlib.suppress(OSError, ValueError):
        contents = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(contents, dict):
            return contents
    return {}


def read_record(path: Path, script: str) -> dict[str, object]:
    """The JSON of a run of this script, or of several seeds' runs; older ones do not name their script."""
    return {'script': script, **read_json(path)}


def summary_of_seeds(path: Path) -> dict[str, object]:
    """What `script.write_seeds` has put into the JSON of a run's name, which the run's own record leaves there."""
    return {key: value for key, value in read_json(path).items() if key in OVER_SEEDS}


def read_rows(path: Path) -> list[Row]:
    """The rows of a run's CSV, as numbers."""
    with open(path, encoding='utf-8', newline='') as file:
        return [{key: int(value) if key == 'step' else float(value) for key, value in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip
