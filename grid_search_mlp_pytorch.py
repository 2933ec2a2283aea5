"""Searches the hyper-parameters of the PyTorch MLP: all combinations of the values given, resumable and in parallel.

    python grid_search_mlp_pytorch.py --grid full                                   # 486 settings
    python grid_search_mlp_pytorch.py --grid additional                             # three deeper networks
    python grid_search_mlp_pytorch.py --grid learning_rate                          # nine learning rates
    python grid_search_mlp_pytorch.py --learning_rate 1e-3 2e-3 --optimizer Adam    # a grid of your own
    python grid_search_mlp_pytorch.py --grid full --scheduler tcp://HOST:8786       # on a Dask cluster

A run is a function of its settings that returns rows. The search submits what is not on disk yet to an executor, the
longest first, and writes each result as it completes, so that a search that is killed loses only the runs under way.
The executor is all that differs between a laptop, where it is processes that train one run after the other on one core
each (at these sizes faster than each run on all cores), and a cluster, where it is Dask's.

The settings and their results on disk are `grid_search_results.py`'s; the figures are `grid_search_figures.py`'s.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch
from tqdm import tqdm

import train_mlp_pytorch
from experiment import best_row, check_output_dir, say, score
from flags import add_seed_flag, defaults, positive_float, positive_int
from grid_search_figures import FIGURES, show
from grid_search_results import (
    GRIDS,
    SHARED_BY_GRID,
    Results,
    Rows,
    Run,
    Setting,
    all_settings,
    arithmetic,
    by_setting,
    hidden_layers,
    left_to_do,
    only_writer,
    print_plan,
    rows_of,
    search_name,
    searched_values,
    what_is_left,
)
from machine import usable_cores
from parsing import FlagError, OneLineParser, launched
from ranks import pick_device
from schedules import Schedule, check_share
from script import load_data, run_script
from stopping import exit_status
from training_pytorch import OPTIMIZERS

FREE = {'data_dir', 'output_dir', 'grid', 'processes', 'scheduler', 'plot', 'dry_run'}  # results may differ in these
NO_MEMORY = ("can't allocate memory", 'not enough memory', 'out of memory', 'cannot allocate memory')
GOES_ON = 'every finished run is on disk, and the same command goes on'
DIED = 'its process died each time; if that was for want of memory, fewer --processes need less'
ONE_AT_A_TIME = threading.Lock()  # in a process: they share PyTorch's random numbers


class SearchError(RuntimeError):
    """The search is not complete; the message has a line for each reason."""


# Values


def build_parser() -> OneLineParser:
    """The flags of `train_mlp_pytorch.py`, five of them with lists of values, and those of the search."""
    parser = OneLineParser(description='Searches the hyper-parameters of the PyTorch multi-layer perceptron.')
    train_mlp_pytorch.add_flags(parser)
    train_mlp_pytorch.add_norm_flags(parser)
    add_seed_flag(parser)
    checks = {'learning_rate': positive_float, 'max_steps': positive_int, 'batch_size': positive_int,
              'dnn_hidden_units': hidden_layers, 'optimizer': str.lower}  # fmt: skip
    for flag, check in checks.items():
        choices = list(OPTIMIZERS) if flag == 'optimizer' else None
        short = ['--lr'] if flag == 'learning_rate' else []
        parser.add_argument(f'--{flag}', *short, type=check, choices=choices, nargs='+', help='the values to try')
    parser.add_argument('--grid', choices=list(GRIDS), help='the values of REPORT.md')
    parser.consequences.append(follow_grid)
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--processes', type=positive_int,
        help='runs at a time, on one core or GPU each; as many as this process may use if not given')  # fmt: skip
    where.add_argument('--scheduler', metavar='tcp://HOST:PORT',
        help="train on this Dask cluster's workers; --device auto is what this machine has")  # fmt: skip
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--plot', action='store_true',
        help='train nothing: draw the figures and print the summary of what is on disk')  # fmt: skip
    instead.add_argument('--dry_run', action='store_true',
        help='train nothing: print the runs, how many are done and how long the rest may take')  # fmt: skip
    return parser


def follow_grid(flags: argparse.Namespace, given: set[str]) -> None:
    """Sets what the runs of a grid share, where no flag does."""
    for flag, shared in SHARED_BY_GRID.get(flags.grid, {}).items():
        if flag not in given:
            setattr(flags, flag, shared)


# A run


def train_run(run: Run, flags: argparse.Namespace) -> tuple[Rows, dict[str, float]]:
    """Trains a run, by the trainer's flags for it, on one core; returns its settings' rows and what it took.

    Raises:
        DataError, FlagError: the data or the device are not to be had here.
        MemoryError: the run does not fit.
        RuntimeError: a signal ended it.
    """
    with ONE_AT_A_TIME:
        torch.set_num_threads(1)
        wall, core = time.perf_counter(), time.process_time()
        try:
            ends = [setting.max_steps for setting in run]
            record = train_mlp_pytorch.train(flags, quiet=True, alone=True, evaluate_after=ends)
        except (RuntimeError, OSError) as error:
            if any(words in str(error).lower() for words in NO_MEMORY):
                raise MemoryError(str(error)) from None
            raise
        times = {'wall_seconds': time.perf_counter() - wall, 'core_seconds': time.process_time() - core}
    if record.status == 'interrupted':
        raise RuntimeError('a signal ended it')
    return [row for setting in run for row in rows_of(setting, record.rows, record.status, flags.eval_freq)], times


def trainer_flags(run: Run, flags: argparse.Namespace) -> argparse.Namespace:
    """The trainer's flags for a run: those of its longest setting, and of the search where they have the same name."""
    longest = run[-1]._asdict() | {'dnn_hidden_units': run[-1].widths}
    of_trainer = defaults(train_mlp_pytorch.build_parser())
    of_search = {flag: vars(flags).get(flag, value) for flag, value in of_trainer.items()}
    return argparse.Namespace(**of_search | longest)


# Executors


class ProcessExecutor(ThreadPoolExecutor):
    """Calls functions in processes that last, one call at a time in each, and makes a call that fails once again.

    A `ProcessPoolExecutor` breaks as a whole when a process dies; so each process is a pool of its own here, made anew
    when it breaks, and a thread waits for it. The processes end with this one, however it ends: each waits for the end
    of a pipe that this one alone holds open.

    On the device 'cuda' each of the `n_processes` has a GPU of its own, as far as there are some.
    """

    def __init__(self, n_processes: int, device: str) -> None:
        super().__init__(n_processes)
        self.lifeline, self.held_open = multiprocessing.Pipe(duplex=False)
        new_pool = partial(ProcessPoolExecutor, 1, multiprocessing.get_context('spawn'), start_worker)
        self.free: SimpleQueue[tuple[Callable, ProcessPoolExecutor]] = SimpleQueue()
        for number in range(n_processes):
            new = partial(new_pool, (self.lifeline, device, number))
            self.free.put((new, new()))

    def submit(self, function: Callable, /, *args: object) -> Future:
        """As every executor's; the calls begin in the order in which they are submitted."""
        return super().submit(self.call, function, *args)

    def call(self, function: Callable, *args: object) -> object:
        """What a process answers, at the first or the second attempt; what memory does not hold has but one."""
        new_pool, pool = self.free.get()
        try:
            for is_last in (False, True):
                try:
                    return pool.submit(function, *args).result()
                except Exception as error:
                    if isinstance(error, BrokenProcessPool):
                        pool.shutdown()
                        pool = new_pool()
                    if is_last or isinstance(error, MemoryError) or self.held_open.closed:
                        raise
        finally:
            self.free.put((new_pool, pool))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes at once, and with them the calls that are under way."""
        super().shutdown(wait=False, cancel_futures=True)
        self.held_open.close()
        super().shutdown()
        while not self.free.empty():
            self.free.get()[1].shutdown()


def start_worker(lifeline: Connection, device: str, number: int) -> None:
    """What a process of a `ProcessExecutor` does before its first call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a process that is killed leaves
    threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
    if device == 'cuda':
        torch.cuda.set_device(number % torch.cuda.device_count())


def end_with_parent(lifeline: Connection) -> None:
    """Ends this process when nobody holds the other end of the pipe any more."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def usable(device: str) -> int:
    """How many runs this process may train at a time: one on each GPU, or on each core that it is allowed to use."""
    if device == 'cuda':
        return torch.cuda.device_count()
    if device == 'mps':
        return 1
    return usable_cores()


@contextlib.contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The executor of the Dask cluster whose scheduler has this address.

    A run whose worker dies is trained on another; one that raises an error is tried once more. The scheduler and the
    workers, those that come later too, are to be started in a directory that holds this project.

    Raises:
        FlagError: Dask is not installed, or no scheduler answers at this address.
    """
    if not re.fullmatch(r'(tcp|tls)://.+:\d+', address):
        raise FlagError(f'--scheduler must be an address such as tcp://HOST:8786, got {address}')
    try:
        from distributed import Client

        logging.disable(logging.CRITICAL)  # what matters of Dask's messages is said in a line of our own
        client = Client(address, timeout=10, set_as_default=False)
    except ImportError as error:
        raise FlagError('--scheduler needs Dask: pip install distributed') from error
    except (OSError, ValueError) as error:
        raise FlagError(f'no Dask scheduler answers at --scheduler {address} ({error})') from error

    def find_project() -> None:  # a function in a function travels as its code
        sys.path.insert(0, os.getcwd())

    with client:
        client.run_on_scheduler(find_project)
        client.register_worker_callbacks(find_project)
        say(f'the cluster at work: {client.dashboard_link}')
        yield client.get_executor(pure=False, retries=1)


# The search


def search(flags: argparse.Namespace) -> None:
    """Trains what of the grid is not on disk yet, and draws the figures; or only one of both, as the flags say.

    Raises:
        DataError, FlagError: the data or the flags cannot be followed.
        SearchError: some settings could not be trained; all others are.
        OSError: the results cannot be written.
    """
    if launched():
        raise FlagError('not under torchrun: use python, which takes all cores or GPUs, and --scheduler for a cluster')
    flags = argparse.Namespace(**vars(flags))
    given = {flag: getattr(flags, flag) for flag in Setting._fields if getattr(flags, flag) is not None}
    values = searched_values(flags.grid, given, defaults(train_mlp_pytorch.build_parser()))
    settings = all_settings(values)
    for setting in settings:
        of_run = {**vars(flags), **setting._asdict(), 'dnn_hidden_units': setting.widths}
        train_mlp_pytorch.check_flags(argparse.Namespace(**of_run), alone=True)
        check_share(f'--warmup {flags.warmup:g}', flags.warmup, setting.max_steps)
    trains = not (flags.plot or flags.dry_run)
    if (trains and not flags.scheduler) or (flags.device == 'auto' and not flags.plot):
        flags.device = pick_device(flags.device).type
    if trains:
        data = load_data(flags.data_dir, flags.dataset, flags.validation_size, max(values['batch_size']))
        flags.dataset = data['train'].name
    elif flags.dataset == 'auto':
        flags.dataset = 'cifar10'

    name = search_name(flags.grid, flags.validation_size, flags.dataset)
    if not flags.dry_run:
        for of_files in (name, *(f'{name}_{figure}' for figure in FIGURES)):
            check_output_dir(flags.output_dir, of_files)
    fixed = {flag: value for flag, value in vars(flags).items() if flag not in {*Setting._fields, *FREE}}
    counts_as = defaults(build_parser()) | {'device': 'cpu'}  # results that name no device are of a CPU
    with only_writer(flags.output_dir, name) if trains else contextlib.nullcontext():
        results = Results(flags.output_dir, name, fixed, counts_as)
        schedule = Schedule(flags.schedule, flags.warmup, max(values['max_steps']))
        runs = left_to_do(settings, results.done(), apart=schedule.depends_on_length)
        if flags.dry_run:
            print_plan(settings, runs, results, flags.processes or usable(flags.device))
            return
        if trains and results.rows:
            say(what_is_left(settings, runs))
        failures = train_all(runs, flags, results) if trains and runs else []
        if results.rows:
            show(by_setting(results.rows), name, flags.dataset, flags.output_dir)
    if failures:
        raise SearchError('\n'.join(failures))
    if not results.rows:
        raise FlagError(f'no results in {results.csv_path} to plot: run the search first')


def train_all(runs: list[Run], flags: argparse.Namespace, results: Results) -> list[str]:
    """Trains the runs and writes what each gives as it completes; returns a line for each reason why some are not.

    Raises:
        SearchError: the cluster is gone.
    """
    n_processes = min(flags.processes or usable(flags.device), len(runs))
    executor = dask_executor(flags.scheduler) if flags.scheduler else ProcessExecutor(n_processes, flags.device)
    failures: dict[str, list[str]] = {}
    shown = {'desc': f'0/{len(runs)} runs', 'bar_format': '{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}'}
    work = sum(arithmetic(run[-1]) for run in runs)
    with executor as pool, tqdm(total=work, smoothing=0, disable=None, **shown) as bar:
        results.start_clock()
        results.write_summary()
        futures = {pool.submit(train_run, run, trainer_flags(run, flags)): run for run in runs}
        for n_done, future in enumerate(as_completed(futures), 1):
            run = futures[future]
            try:
                rows, times = future.result()
            except CancelledError as error:
                raise SearchError(f'{flags.scheduler} is gone: {GOES_ON}') from error
            except Exception as error:
                why = DIED if isinstance(error, BrokenProcessPool) else f'{type(error).__name__}: {error}'
                failures.setdefault(' '.join(why.split()), []).append(f'{run[-1].run} {run[-1].max_steps}')
            else:
                results.add(rows, run[0].run, times)
            best = f', best accuracy {score(best_row(results.rows)):.4f}' if results.rows else ''
            bar.set_description_str(f'{n_done}/{len(runs)} runs{best}', refresh=False)
            bar.update(arithmetic(run[-1]))
    return [f'not trained: {"; ".join(names)} ({why})' for why, names in failures.items()]


def work(flags: argparse.Namespace) -> int:
    """Runs the search; returns the exit status."""
    try:
        search(flags)
    except SearchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f'interrupted: {GOES_ON}', file=sys.stderr)
        return exit_status(stop)
    return 0


def main() -> int:
    """Runs the search that the command line asks for; returns the exit status."""
    return run_script(build_parser(), work)


if __name__ == '__main__':
    # By its name: a cluster's workers look up there what they are to call.
    from grid_search_mlp_pytorch import main

    sys.exit(main())
