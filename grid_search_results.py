"""What a search is asked and what it leaves: the values, the settings made of them, and their results on disk.

A setting is one combination of values. A run of 1500 steps is the first half of the same run of 3000, to the bit, where
the learning rate does not depend on the length; then settings that differ in `max_steps` alone are answered by one run,
and `Setting.run` is that run's name.

`Results` is the CSV, with the evaluations of every setting that is done, and the JSON beside it. Both are written whole
and at once, by one search at a time. What is read is held to what a search writes: a setting that lacks a row counts as
not done, and anything else that is wrong is refused. This module never imports PyTorch.
"""

import contextlib
import csv
import itertools
import json
import math
import os
import socket
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from cifar10_utils import N_CLASSES, N_PIXELS
from experiment import is_finite, output_paths, record_name, say
from files import write_csv, write_json
from flags import check_same_flags, hidden_units, positive_float, positive_int
from machine import machine, versions
from parsing import FlagError

WIDTHS = ('100', '200', '400')
GRIDS = {
    'full': {
        'learning_rate': [2e-2, 2e-3, 2e-4],
        'max_steps': [1500, 3000],
        'batch_size': [100, 200, 400],
        'dnn_hidden_units': [','.join([width] * depth) for depth in (1, 2, 3) for width in WIDTHS],
        'optimizer': ['sgd', 'adam', 'adadelta'],
    },
    'additional': {
        'learning_rate': [2e-4],
        'max_steps': [3000],
        'batch_size': [400],
        'dnn_hidden_units': [','.join(['400'] * depth) for depth in (3, 4, 5)],
        'optimizer': ['adam'],
    },
    'learning_rate': {
        'learning_rate': [10.0**power for power in range(-6, 3)],
        'max_steps': [3510],  # ten epochs
        'batch_size': [128],
        'dnn_hidden_units': ['128'],
        'optimizer': ['sgd'],
    },
}
# What a grid sets of the flags that all its runs share, unless the command line does.
SHARED_BY_GRID = {'learning_rate': {'validation_size': 5000, 'standardise': True, 'init': 'kaiming'}}
BASE_NAME = 'grid_search_mlp_pytorch'

Rows = list[dict[str, object]]


# Settings


class Setting(NamedTuple):
    """What names one result of the search, and the CSV's first columns."""

    optimizer: str
    learning_rate: float
    batch_size: int
    dnn_hidden_units: str
    max_steps: int

    @property
    def widths(self) -> list[int]:
        """The widths of the hidden layers."""
        return hidden_units(self.dnn_hidden_units)

    @property
    def run(self) -> str:
        """The name of the run that answers it, which is that of all settings that differ in `max_steps` alone."""
        return ' '.join(map(str, self[:-1]))


Run = list[Setting]  # the settings that one run answers, by rising max_steps


def hidden_layers(text: str) -> str:
    """The type of `--dnn_hidden_units` here: the widths as they stand in the CSV."""
    return ','.join(map(str, hidden_units(text)))


def all_settings(values: dict[str, list]) -> list[Setting]:
    """Every combination of the values, each once."""
    combinations = itertools.product(*(values[flag] for flag in Setting._fields))
    return [Setting(*combination) for combination in dict.fromkeys(combinations)]


def arithmetic(setting: Setting, steps: int | None = None) -> float:
    """The floating point operations of its run, roughly, if it takes `steps` rather than all steps.

    They are those of forward pass, backward pass and update of every parameter.
    """
    n_params = sum(a * b for a, b in itertools.pairwise([N_PIXELS, *setting.widths, N_CLASSES]))
    return n_params * (steps or setting.max_steps) * (6.0 * setting.batch_size + 50)


def searched_values(grid: str | None, given: dict[str, list], defaults: dict[str, object]) -> dict[str, list]:
    """The values to try of each field of a setting: the grid's, or those given, with the trainer's defaults.

    Raises:
        FlagError: there is neither a grid nor a list, or both.
    """
    if bool(given) == bool(grid):
        raise FlagError(
            f'name either --grid {" or ".join(GRIDS)}, or lists of values such as --learning_rate 1e-3 2e-3'
        )
    if grid:
        return GRIDS[grid]
    defaults = defaults | {'dnn_hidden_units': ','.join(map(str, defaults['dnn_hidden_units']))}
    return {flag: given.get(flag, [defaults[flag]]) for flag in Setting._fields}


def search_name(grid: str | None, validation_size: int, dataset: str) -> str:
    """The name of a search's files."""
    name = BASE_NAME if grid == 'full' else f'{BASE_NAME}_{grid or "own"}'
    return record_name(f'{name}_validation' if validation_size else name, dataset)


def left_to_do(settings: list[Setting], done: set[Setting], apart: bool = False) -> list[Run]:
    """The runs that answer the settings that are not done, the longest first.

    `apart` is whether each needs a run of its own, since a shorter run is not the beginning of a longer one.
    """
    runs: dict[object, Run] = {}
    for setting in sorted(set(settings) - done, key=lambda setting: setting.max_steps):
        runs.setdefault(setting if apart else setting.run, []).append(setting)
    return sorted(runs.values(), key=lambda run: (-arithmetic(run[-1]), run))


# Rows


def _accuracy(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f'{text!r} is no accuracy')
    return value


def _status(text: str) -> str:
    if text not in ('finished', 'diverged'):
        raise ValueError(f'{text!r} is no status')
    return text


COLUMNS = {
    'optimizer': str, 'learning_rate': positive_float, 'batch_size': positive_int, 'dnn_hidden_units': hidden_layers,
    'max_steps': positive_int, 'status': _status, 'step': positive_int, 'train_acc': _accuracy, 'train_loss': float,
    'test_acc': _accuracy, 'test_loss': float,
}  # fmt: skip
VALIDATION_COLUMNS = {'val_acc': _accuracy, 'val_loss': float}


def read_rows(path: Path) -> Rows:
    """The rows of a search's CSV, each once and in the order that a search writes, whatever theirs is.

    A last line without its end was cut short and is left out.

    Raises:
        OSError, ValueError: the file cannot be read, lacks a column, or has a line that no search writes.
    """
    reader = csv.DictReader(
        [line for line in path.read_text(encoding='utf-8').splitlines(keepends=True) if line.endswith('\n')]
    )
    found = reader.fieldnames or []
    columns = COLUMNS | (VALIDATION_COLUMNS if 'val_acc' in found else {})
    if sorted(found) != sorted(columns):
        raise ValueError(f'its columns are not {",".join(columns)}')
    rows: dict[tuple[Setting, int], dict[str, object]] = {}
    try:
        for line in reader:
            if len(line) != len(columns) or None in line.values():
                raise ValueError('it has too many or too few values')
            row = {column: kind(line[column]) for column, kind in columns.items()}
            # By their texts, since NaN equals nothing.
            if str(rows.setdefault((setting_of(row), row['step']), row)) != str(row):
                raise ValueError('it is another result of a step that stands before')
    except (ArgumentTypeError, ValueError, csv.Error) as error:
        raise ValueError(f'line {reader.line_num}: {error}') from error
    return sorted(rows.values(), key=sort_key)


def sort_key(row: dict[str, object]) -> tuple:
    """The order of the CSV's rows, whatever order they were trained in."""
    setting = setting_of(row)
    return *setting[:3], len(setting.widths), setting.widths, setting.max_steps, row['step']


def setting_of(row: dict[str, object]) -> Setting:
    """The setting that a row belongs to."""
    return Setting(*(row[flag] for flag in Setting._fields))


def by_setting(rows: Rows) -> dict[Setting, Rows]:
    """The rows of each setting, in their order."""
    settings: dict[Setting, Rows] = {}
    for row in rows:
        settings.setdefault(setting_of(row), []).append(row)
    return settings


def is_whole(rows: Rows, eval_freq: int) -> bool:
    """Whether the rows of a setting, in the order of their steps, are all that its run gives."""
    *before, last = rows
    diverged = not is_finite(last)
    return (
        [row['step'] for row in before] == [1 + i * eval_freq for i in range(len(before))]
        and last['step'] <= 1 + len(before) * eval_freq
        and (last['step'] == last['max_steps'] or (diverged and last['step'] < last['max_steps']))
        and all(map(is_finite, before))
        and all((row['status'] == 'diverged') == diverged for row in rows)
    )


def rows_of(setting: Setting, rows: Rows, status: str, eval_freq: int) -> Rows:
    """What of a run's rows training the setting on its own gives."""
    last = rows[-1]
    diverged = status == 'diverged' and last['step'] <= setting.max_steps
    return [
        {**setting._asdict(), 'status': 'diverged' if diverged else 'finished', **row}
        for row in rows
        if row['step'] == setting.max_steps
        or (row['step'] < setting.max_steps and ((row['step'] - 1) % eval_freq == 0 or row is last))
    ]


# Files


class Results:
    """The search's CSV and the summary beside it: which settings are done, and what each run took.

    `times` has two numbers for each run: its own wall-clock and core-seconds. `wall_seconds` is how long the search has
    run until its last result, over all its starts.

    Args:
        output_dir, name: where the files lie.
        fixed: the flags that all runs have in common; results of others are refused. The device 'auto' stands for
            that of the results.
        defaults: what a flag counts as that the results lack.

    Raises:
        FlagError: there are results of other flags, or damaged ones.
    """

    def __init__(self, output_dir: str, name: str, fixed: dict[str, object], defaults: dict[str, object]) -> None:
        self.csv_path, self.json_path, _ = output_paths(output_dir, name)
        self.fixed = fixed
        self.rows: Rows = []
        self.times: dict[str, dict[str, float]] = {}
        self.wall_seconds = 0.0
        if not self.csv_path.exists():
            return
        try:
            saved, self.times, self.wall_seconds = read_summary(self.json_path)
            settings = by_setting(read_rows(self.csv_path))
            if untimed := [setting.run for setting in settings if setting.run not in self.times]:
                raise ValueError(f'{untimed[0]} has no times')
        except (OSError, ValueError, RecursionError) as error:
            raise FlagError(f'{self.csv_path} or the JSON beside it is damaged ({error}): move both away') from error
        if fixed['device'] == 'auto':
            fixed = {**fixed, 'device': saved.get('device', defaults['device'])}
        check_same_flags(f'{self.csv_path} (use another --output_dir for this one)', saved, fixed, defaults)
        self.rows = [row for rows in settings.values() if is_whole(rows, fixed['eval_freq']) for row in rows]

    def done(self) -> set[Setting]:
        """The settings that are on disk, whole."""
        return {setting_of(row) for row in self.rows}

    def start_clock(self) -> None:
        """Starts, or goes on with, the count of `wall_seconds`."""
        self.started = time.perf_counter() - self.wall_seconds

    def add(self, rows: Rows, run: str, times: dict[str, float]) -> None:
        """Adds a finished run's rows, but for settings that are there already, and writes everything anew."""
        done = self.done()
        self.rows += [row for row in rows if setting_of(row) not in done]
        self.rows.sort(key=sort_key)
        before = self.times.get(run, dict.fromkeys(times, 0.0))  # of the run at fewer steps, or cut short
        self.times[run] = {which: before[which] + seconds for which, seconds in times.items()}
        self.wall_seconds = time.perf_counter() - self.started
        self.write_summary()
        write_csv(self.csv_path, self.rows)

    def speed(self) -> float:
        """The operations in a second of the runs on disk, each as far as it went; zero if there are none."""
        # The last setting of a run in the order of the rows is its longest.
        done = {setting.run: arithmetic(setting, rows[-1]['step']) for setting, rows in by_setting(self.rows).items()}
        seconds = sum(self.times[run]['wall_seconds'] for run in done)
        return sum(done.values()) / seconds if seconds else 0.0

    def write_summary(self) -> None:
        """Writes the JSON; it comes before the rows that it speaks of, so that none is ever without it."""
        write_json(self.json_path, {
            'flags': self.fixed, 'versions': versions(), 'machine': machine(), 'wall_seconds': self.wall_seconds,
            'core_seconds': sum(times['core_seconds'] for times in self.times.values()), 'times': self.times,
        })  # fmt: skip


def read_summary(path: Path) -> tuple[dict[str, object], dict[str, dict[str, float]], float]:
    """The flags, the runs' times and the wall-clock seconds of a search's JSON.

    Raises:
        OSError, ValueError: it cannot be read, or no search writes such a one.
    """
    summary = json.loads(path.read_text(encoding='utf-8'))
    try:
        flags, times, wall_seconds = dict(summary['flags']), summary['times'], summary['wall_seconds']
        seconds = [
            wall_seconds,
            *(of_run[key] for of_run in times.values() for key in ('wall_seconds', 'core_seconds')),
        ]
        sound = all(isinstance(value, int | float) and 0 <= value < math.inf for value in seconds)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path.name} lacks {error}') from error
    if not sound:
        raise ValueError(f'{path.name} has times that are no seconds')
    return flags, times, wall_seconds


@contextlib.contextmanager
def only_writer(output_dir: str, name: str) -> Iterator[None]:
    """Keeps other searches from the files of `name` while the block runs.

    The kernel frees the lock however its holder ends, so that the lock's file may stay.

    Raises:
        FlagError: another search is at work on these files.
    """
    csv_path = output_paths(output_dir, name)[0]
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(csv_path.with_name(f'.{name}.lock'))
    holder = csv_path.with_name(f'.{name}.holder')  # beside the lock, which those who try for it empty
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text() if holder.exists() else 'another process'
        raise FlagError(f'{who} is writing {csv_path}: wait for it, or use another --output_dir') from error
    try:
        holder.write_text(f'process {os.getpid()} on {socket.gethostname()}')
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def what_is_left(settings: list[Setting], runs: list[Run]) -> str:
    """How many settings are done, and how many runs the others need."""
    n_left = sum(map(len, runs))
    left = f'; {len(runs)} runs answer the other {n_left}' if runs else ''
    return f'{len(settings) - n_left} of {len(settings)} settings are done{left}'


def print_plan(settings: list[Setting], runs: list[Run], results: Results, n_processes: int) -> None:
    """Prints what is left to do, and how long it may take."""
    for run in runs:
        optimizer, learning_rate, batch_size, units, _ = run[0]
        steps = ','.join(str(setting.max_steps) for setting in run)
        say(f'{optimizer:<9} lr {learning_rate:<8g} batch {batch_size:<5} units {units:<20} steps {steps}')
    say(what_is_left(settings, runs))
    if runs and (speed := results.speed()):
        hours = sum(arithmetic(run[-1]) for run in runs) / speed / n_processes / 3600
        say(f'time left on {n_processes} process(es), at the speed of the runs done: {hours:.2f} hours')
