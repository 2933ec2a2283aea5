"""Searches the hyper-parameters of the PyTorch MLP: all combinations of the values given, resumable and in parallel.

    python grid_search_mlp_pytorch.py --grid full                                   # 486 settings
    python grid_search_mlp_pytorch.py --grid additional                             # three deeper networks
    python grid_search_mlp_pytorch.py --learning_rate 1e-3 2e-3 --optimizer Adam    # a grid of your own
    torchrun --nnodes=2 --nproc_per_node=8 ... grid_search_mlp_pytorch.py           # on several machines

A run of 1500 steps is the first half of the same run of 3000, to the bit; so each is trained once, at the largest
number of steps, and gives the rows of all settings that differ in `max_steps` alone.

Every process trains one run after the other on one core, which at these sizes is faster than each run on all cores, and
takes the next run when it is free, the longest first. A finished run is handed to the first process, which writes the
whole CSV anew, atomically, before the next run begins. So a search that is killed loses only the runs under way.
"""

import argparse
import csv
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import multiprocessing
from tqdm import tqdm

import train_mlp_pytorch
from cifar10_utils import N_CLASSES, N_PIXELS
from experiment import check_output_dir, output_paths, record_name, score
from files import write_csv, write_json
from flags import (
    FlagError,
    OneLineParser,
    add_seed_flag,
    check_same_flags,
    defaults,
    hidden_units,
    is_main_process,
    one_line_errors,
    positive_float,
    positive_int,
)
from grid_search_figures import show
from machine import machine, versions
from script import load_data
from training_pytorch import OPTIMIZERS, launched, pick_device

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
}
FREE = {'data_dir', 'output_dir', 'grid', 'processes', 'plot', 'dry_run', 'device', 'compile'}
BASE_NAME = 'grid_search_mlp_pytorch'
STORE_TIMEOUT = timedelta(days=365)  # a rank may wait for another as long as a run takes

Rows = list[dict[str, object]]


class SearchError(RuntimeError):
    """The search cannot go on; the message is one line that says what to do."""


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


def optimizer_name(text: str) -> str:
    """The type of `--optimizer`, in upper or lower case."""
    if text.lower() not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(f'must be one of {", ".join(OPTIMIZERS)}, got {text!r}')
    return text.lower()


def hidden_layers(text: str) -> str:
    """The type of `--dnn_hidden_units`, as it stands in the CSV."""
    return ','.join(map(str, hidden_units(text)))


def build_parser() -> OneLineParser:
    """The flags of `train_mlp_pytorch.py`, five of them with lists of values, and those of the search."""
    parser = OneLineParser(description='Searches the hyper-parameters of the PyTorch multi-layer perceptron.')
    train_mlp_pytorch.add_flags(parser)
    train_mlp_pytorch.add_batch_norm_flag(parser)
    add_seed_flag(parser)
    add = parser.add_argument
    checks = {'learning_rate': positive_float, 'max_steps': positive_int, 'batch_size': positive_int,
              'dnn_hidden_units': hidden_layers, 'optimizer': optimizer_name}  # fmt: skip
    for flag, check in checks.items():
        add(f'--{flag}', type=check, nargs='+', help='the values to try')
    add('--grid', choices=list(GRIDS), help='the values of the report')
    add(
        '--processes',
        type=positive_int,
        help='runs at a time, on one core each; as many as there are cores if not given',
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--plot', action='store_true',
        help='train nothing: draw the figures and print the summary of what is on disk')  # fmt: skip
    instead.add_argument('--dry_run', action='store_true',
        help='train nothing: print the runs, how many are done and how long the rest may take')  # fmt: skip
    return parser


def searched_values(flags: argparse.Namespace) -> dict[str, list]:
    """The values to try of each field of a setting: the grid's, or the command line's with the trainer's defaults.

    Raises:
        FlagError: neither is given, or both.
    """
    given = {flag: getattr(flags, flag) for flag in Setting._fields if getattr(flags, flag) is not None}
    if bool(given) == bool(flags.grid):
        raise FlagError('name either --grid full or additional, or lists of values such as --learning_rate 1e-3 2e-3')
    if flags.grid:
        return GRIDS[flags.grid]
    of_trainer = defaults(train_mlp_pytorch.build_parser())
    of_trainer['dnn_hidden_units'] = ','.join(map(str, of_trainer['dnn_hidden_units']))
    return {flag: given.get(flag, [of_trainer[flag]]) for flag in Setting._fields}


def all_settings(values: dict[str, list]) -> list[Setting]:
    """Every combination of the values, each once."""
    combinations = itertools.product(*(values[flag] for flag in Setting._fields))
    return [Setting(*combination) for combination in dict.fromkeys(combinations)]


def sort_key(row: dict[str, object]) -> tuple:
    """The order of the CSV's rows, whatever order they were trained in."""
    setting = setting_of(row)
    return *setting[:3], len(setting.widths), setting.widths, setting.max_steps, row['step']


def arithmetic(run: Run) -> float:
    """The floating point operations of a run, roughly: forward, backward and update of every parameter."""
    longest = run[-1]
    n_params = sum(a * b for a, b in itertools.pairwise([N_PIXELS, *longest.widths, N_CLASSES]))
    return n_params * longest.max_steps * (6.0 * longest.batch_size + 50)


# What is on disk


class Results:
    """The search's CSV and the summary beside it: which settings are done, and what each run took.

    `times` has two numbers for each run: its own wall-clock and core-seconds. `wall_seconds` is how long the search has
    run until its last result, over all its starts.

    Args:
        output_dir, name: where the files lie.
        fixed: the flags that all runs have in common; results of others are refused.

    Raises:
        FlagError: there are results of other flags.
    """

    def __init__(self, output_dir: str, name: str, fixed: dict[str, object]) -> None:
        self.csv_path, self.json_path, _ = output_paths(output_dir, name)
        self.fixed = fixed
        self.rows: Rows = []
        self.times: dict[str, dict[str, float]] = {}
        self.wall_seconds = 0.0
        if not self.csv_path.exists():
            return
        try:
            summary = json.loads(self.json_path.read_text(encoding='utf-8'))
            saved, self.times, self.wall_seconds = summary['flags'], summary['times'], summary['wall_seconds']
            rows = read_rows(self.csv_path)
            whole = {setting_of(row) for row in rows if row['step'] == row['max_steps'] or is_divergence(row)}
            odd = [
                setting.run
                for setting in whole
                if setting.optimizer not in OPTIMIZERS or 'wall_seconds' not in self.times.get(setting.run, ())
            ]
            if odd:
                raise ValueError(f'{odd[0]} has no times or no such optimizer')
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FlagError(f'{self.csv_path} or the JSON beside it is damaged ({error}): move both away') from error
        what = f'{self.csv_path} (use another --output_dir for this one)'
        check_same_flags(what, saved, fixed, defaults(build_parser()))
        self.rows = [row for row in rows if setting_of(row) in whole]

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

    def write_summary(self) -> None:
        """Writes the JSON; it comes before the rows that it speaks of, so that none is ever without it."""
        write_json(self.json_path, {
            'flags': self.fixed, 'versions': versions(), 'machine': machine(), 'wall_seconds': self.wall_seconds,
            'core_seconds': sum(times['core_seconds'] for times in self.times.values()), 'times': self.times,
        })  # fmt: skip


def read_rows(path: Path) -> Rows:
    """The rows of a search's CSV, with its numbers as numbers.

    A last line without its end was cut short and is left out; its setting then lacks its last row.
    """
    kinds = {'optimizer': str, 'dnn_hidden_units': str, 'status': str}
    kinds |= dict.fromkeys(('batch_size', 'max_steps', 'step'), int)
    lines = [line for line in path.read_text(encoding='utf-8').splitlines(keepends=True) if line.endswith('\n')]
    return [{key: kinds.get(key, float)(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def is_divergence(row: dict[str, object]) -> bool:
    """Whether a row is the last one of a run that diverged."""
    return not all(math.isfinite(value) for key, value in row.items() if key.endswith('_loss'))


def setting_of(row: dict[str, object]) -> Setting:
    """The setting that a row belongs to."""
    return Setting(*(row[flag] for flag in Setting._fields))


def by_setting(rows: Rows) -> dict[Setting, Rows]:
    """The rows of each setting, in the order of their steps."""
    return {setting: list(of_setting) for setting, of_setting in itertools.groupby(rows, key=setting_of)}


# Training


def trainer_flags(run: Run, flags: argparse.Namespace) -> argparse.Namespace:
    """The trainer's flags for a run: those of its longest setting, and of the search where they have the same name."""
    longest = run[-1]._asdict() | {'dnn_hidden_units': run[-1].widths}
    of_trainer = defaults(train_mlp_pytorch.build_parser())
    of_search = {flag: value for flag, value in vars(flags).items() if flag in of_trainer}
    return argparse.Namespace(**{**of_trainer, **of_search, **longest})


def train_run(run: Run, flags: argparse.Namespace) -> Rows:
    """Trains a run at its settings' largest number of steps and returns the rows of every one of them."""
    ends = [setting.max_steps for setting in run]
    record = train_mlp_pytorch.train(trainer_flags(run, flags), quiet=True, alone=True, evaluate_after=ends)
    if record.status == 'interrupted':
        raise KeyboardInterrupt
    rows = []
    for setting in run:
        diverged = record.status == 'diverged' and record.rows[-1]['step'] <= setting.max_steps
        status = 'diverged' if diverged else 'finished'
        for row in record.rows:
            regular = (row['step'] - 1) % flags.eval_freq == 0 or row is record.rows[-1]
            if row['step'] == setting.max_steps or (regular and row['step'] < setting.max_steps):
                rows.append({**setting._asdict(), 'status': status, **row})
    return rows


def work(flags: argparse.Namespace, runs: list[Run], store: dist.Store) -> None:
    """Trains one run after the other, as long as there are some that nobody has taken."""
    torch.set_num_threads(1)
    while (i := store.add('taken', 1) - 1) < len(runs):
        wall, core = time.perf_counter(), time.process_time()
        rows = train_run(runs[i], flags)
        times = {'wall_seconds': time.perf_counter() - wall, 'core_seconds': time.process_time() - core}
        number = store.add('finished', 1) - 1
        store.set(f'result {number}', json.dumps([rows, runs[i][0].run, times]))
        while not store.check([f'written {number}']):
            time.sleep(0.02)


def write_results(results: Results, runs: list[Run], store: dist.Store, is_alive: Callable[[], object]) -> None:
    """Writes what the workers finish, and shows how far the search is; `is_alive` raises where they died."""
    results.start_clock()
    results.write_summary()
    costs = {run[0].run: arithmetic(run) for run in runs}
    best = max(map(score, results.rows), default=0.0)
    with tqdm(total=round(sum(costs.values()) / 1e9), unit='GFLOP', unit_scale=True, disable=None) as bar:
        for number in range(len(runs)):
            while not store.check([f'result {number}']):
                is_alive()
                time.sleep(0.02)
            rows, run, times = json.loads(store.get(f'result {number}'))
            results.add(rows, run, times)
            store.set(f'written {number}', '1')
            best = max(best, *map(score, rows))
            bar.set_postfix_str(f'{number + 1}/{len(runs)} runs, best accuracy {best:.4f}')
            bar.update(round(costs[run] / 1e9))


def search_here(flags: argparse.Namespace, runs: list[Run], results: Results) -> None:
    """Trains the runs in processes of its own, which this one writes for.

    Raises:
        SearchError: one of them was killed or failed.
    """
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
    n_processes = min(flags.processes or os.cpu_count(), len(runs))
    # As daemons they end with this process, however it ends.
    workers = multiprocessing.spawn(
        work_for_parent, (flags, runs, store.port), nprocs=n_processes, join=False, daemon=True
    )
    try:
        write_results(results, runs, store, is_alive=lambda: workers.join(timeout=0))
        while not workers.join():
            pass
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
        raise SearchError(
            f'a worker ended early ({str(error).strip().splitlines()[-1]}): every finished run is on disk, '
            'and the same command goes on; fewer --processes need less memory'
        ) from error


def work_for_parent(_: int, flags: argparse.Namespace, runs: list[Run], port: int) -> None:
    """What a process that `search_here` started does."""
    # The parent's end is told by SIGINT, which a shell's background jobs ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work(flags, runs, dist.TCPStore('127.0.0.1', port, is_master=False, timeout=STORE_TIMEOUT))
    except KeyboardInterrupt:
        sys.exit(130)  # the parent was interrupted too, and says so


def torchrun_store() -> dist.Store:
    """The store of the processes that torchrun started; a new one at each of its restarts."""
    store, *_ = next(dist.rendezvous('env://', timeout=STORE_TIMEOUT))
    return dist.PrefixStore(f'search {os.environ["TORCHELASTIC_RESTART_COUNT"]}', store)


def lead(flags: argparse.Namespace, runs: list[Run], results: Results) -> None:
    """What rank 0 does under torchrun: says what there is to do, writes for all, in a thread, and works."""
    store = torchrun_store()
    store.set('search', json.dumps([results.fixed, runs]))

    def write() -> None:
        try:
            write_results(results, runs, store, is_alive=lambda: None)
        except Exception as error:
            print(f'cannot write {results.csv_path}: {error}', file=sys.stderr)
            os._exit(1)  # torchrun ends the other ranks

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    work(flags, runs, store)
    writer.join()


def follow(flags: argparse.Namespace) -> None:
    """What the other ranks do: they work at what rank 0 says, which the results on its disk decide.

    Raises:
        DataError, FlagError: this rank would train something else.
    """
    store = torchrun_store()
    store.wait(['search'])
    fixed, runs = json.loads(store.get('search'))
    flags.dataset = fixed['dataset'] if flags.dataset == 'auto' else flags.dataset
    check_same_flags('the search of rank 0', fixed, fixed_flags(flags))
    work(flags, [[Setting(*setting) for setting in run] for run in runs], store)


# The search


def fixed_flags(flags: argparse.Namespace) -> dict[str, object]:
    """The flags that all runs have in common, and that all results in one file must have."""
    return {flag: value for flag, value in vars(flags).items() if flag not in {*Setting._fields, *FREE}}


def left_to_do(settings: list[Setting], results: Results) -> list[Run]:
    """The runs that answer the settings that are not on disk yet, the longest first."""
    done = results.done()
    runs: dict[str, Run] = {}
    for setting in sorted(settings, key=lambda setting: setting.max_steps):
        if setting not in done:
            runs.setdefault(setting.run, []).append(setting)
    return sorted(runs.values(), key=arithmetic, reverse=True)


def search(flags: argparse.Namespace) -> None:
    """Trains what of the grid is not on disk yet, and draws the figures; or only one of both, as the flags say.

    Raises:
        DataError, FlagError: the data or the flags cannot be followed.
        SearchError: a worker was killed or failed.
        OSError: the results cannot be written.
    """
    flags = argparse.Namespace(**vars(flags))
    values = searched_values(flags)
    trains = not (flags.plot or flags.dry_run)
    if not is_main_process():
        if trains:
            follow(flags)
        return
    if trains:
        pick_device(flags.device)
        data = load_data(flags.data_dir, flags.dataset, flags.validation_size, max(values['batch_size']))
        flags.dataset = data['train'].name
    elif flags.dataset == 'auto':
        flags.dataset = 'cifar10'
    if launched() and flags.processes is not None:
        raise FlagError("--processes is of no use here: torchrun's --nproc_per_node says how many there are")

    name = {'full': BASE_NAME}.get(flags.grid, f'{BASE_NAME}_{flags.grid or "own"}')
    name = record_name(name + ('_validation' if flags.validation_size else ''), flags.dataset)
    if not flags.dry_run:
        check_output_dir(flags.output_dir, name)
    results = Results(flags.output_dir, name, fixed_flags(flags))
    settings = all_settings(values)
    runs = left_to_do(settings, results)
    for run in runs:
        train_mlp_pytorch.check_batch_norm(flags.batch_norm, run[-1].widths, run[-1].batch_size, alone=True)
    if flags.dry_run:
        print_plan(flags, settings, runs, results)
        return
    if trains and launched():
        lead(flags, runs, results)
    elif trains and runs:
        search_here(flags, runs, results)
    if not results.rows:
        raise FlagError(f'no results in {results.csv_path} to plot: run the search first')
    show(by_setting(results.rows), name, flags.dataset, flags.output_dir)


def print_plan(flags: argparse.Namespace, settings: list[Setting], runs: list[Run], results: Results) -> None:
    """What is left to do, and how long it may take."""
    for run in runs:
        optimizer, learning_rate, batch_size, units, _ = run[0]
        steps = ','.join(str(setting.max_steps) for setting in run)
        print(f'{optimizer:<9} lr {learning_rate:<8g} batch {batch_size:<5} units {units:<20} steps {steps}')
    n_left = sum(map(len, runs))
    print(f'{len(settings) - n_left} of {len(settings)} settings are done; {len(runs)} runs answer the other {n_left}')
    longest = {setting.run: setting for setting in sorted(results.done(), key=lambda setting: setting.max_steps)}
    if longest and runs:
        speed = sum(arithmetic([setting]) for setting in longest.values()) / sum(
            results.times[run]['wall_seconds'] for run in longest
        )
        n_processes = flags.processes or os.cpu_count()
        hours = sum(map(arithmetic, runs)) / speed / n_processes / 3600
        print(f'time left on {n_processes} process(es), at the speed of the runs done: {hours:.2f} hours')


def main() -> int:
    """Runs the search; returns the exit status."""
    parser = build_parser()
    flags = parser.parse_args()
    try:
        with one_line_errors(parser):
            search(flags)
    except SearchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted: every finished run is on disk, and the same command goes on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
