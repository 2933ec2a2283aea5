"""Whole processes: scripts at their default flags, and a search against a process for each of its settings."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import grid_search_results as grid_search
from benchmark.loading import batches_root
from benchmark.ratios import Ratio, compare, take_turns
from machine import machine
from parsing import FlagError

ROOT = Path(__file__).resolve().parent.parent


def run_python(*args: str, **environment: str) -> None:
    """A Python process in the project's root, with these arguments and additions to the environment.

    Raises:
        FlagError: it fails; with the last line of what it said.
    """
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment})  # fmt: skip
    if done.returncode:
        script = next((arg for arg in args if arg.endswith('.py')), args[0])
        raise FlagError(f'{script} failed: {(done.stderr.strip() or "no word").splitlines()[-1]}')


def places(data_dir: str, output_dir: str) -> list[str]:
    """The flags that say where a script finds CIFAR-10 and where it writes.

    Raises:
        DataError: there is no CIFAR-10, so that scripts would train on the stand-in.
    """
    batches_root(data_dir)
    return ['--data_dir', str(Path(data_dir).absolute()), '--output_dir', output_dir]


def run(data_dir: str, repeats: int) -> list[Ratio]:
    """Both MLP scripts against each other and against a script that a good student would write."""
    with tempfile.TemporaryDirectory() as directory:
        where = places(data_dir, directory)
        commands = {
            'numpy': ['train_mlp_numpy.py', *where],
            'numpy_float32': ['train_mlp_numpy.py', *where, '--dtype', 'float32'],
            'pytorch': ['train_mlp_pytorch.py', *where],
            'student': ['benchmark/student_mlp.py', *where],
        }
        actions = {name: lambda command=command: run_python(*command) for name, command in commands.items()}
        seconds = take_turns(actions, max(3, repeats // 4))
    case = 'whole process, default flags'
    return [
        *compare('run', case, seconds, 'numpy', {'student': 1.0, 'pytorch': None}),
        *compare('run', case, seconds, 'numpy_float32', {'student': 1.0, 'pytorch': None}),
        *compare('run', case, seconds, 'pytorch', {'student': 0.6}),
    ]


def grid(data_dir: str, repeats: int) -> list[Ratio]:
    """A search of 54 settings against as many processes, one after the other, each on all cores; once each."""
    values = {'dnn_hidden_units': ['100'], 'max_steps': ['1500', '3000'], 'learning_rate': ['2e-2', '2e-3', '2e-4'],
              'batch_size': ['100', '200', '400'], 'optimizer': ['sgd', 'adam', 'adadelta']}  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        where = places(data_dir, directory)
        start = time.perf_counter()
        run_python('grid_search_mlp_pytorch.py', *where, *(word for flag, options in values.items()
                                                           for word in (f'--{flag}', *options)))  # fmt: skip
        together = time.perf_counter() - start
        settings = grid_search.all_settings(values)
        start = time.perf_counter()
        for setting in tqdm(settings, desc='separate processes', disable=None):
            train_alone(setting, where)
        one_by_one = time.perf_counter() - start
    seconds = {'search': np.array([together]), 'separate': np.array([one_by_one])}
    return compare('grid', '54 settings, one hidden layer', seconds, 'search', {'separate': 1 / 2.5})


def train_alone(setting: grid_search.Setting, where: list[str]) -> None:
    """A process that trains one setting; `where` is what `places` gives."""
    run_python('train_mlp_pytorch.py', *where, *(f'--{flag}={value}' for flag, value in setting._asdict().items()))


def committed_search() -> dict[str, object]:
    """The summary of the full search in results/.

    Raises:
        FlagError: it cannot be read, or ran on another machine, so that nothing timed here compares with it.
    """
    path = ROOT / f'results/{grid_search.BASE_NAME}.json'
    try:
        search = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlagError(f'cannot read the search in {path} ({error}): search here first') from error
    if search['machine'] != machine():
        raise FlagError(f'the search in results/ ran on {search["machine"]}, this is {machine()}: search here first')
    return search


def full_grid(data_dir: str, repeats: int) -> list[Ratio]:
    """The committed search of 486 settings against as many processes in a row, estimated from some of them."""
    search = committed_search()
    settings = sorted(grid_search.all_settings(grid_search.GRIDS['full']), key=grid_search.arithmetic)
    # What a setting takes of the search's time tells what it takes alone, but for the start and the number of cores.
    shares = np.array([search['times'][s.run]['core_seconds'] * s.max_steps / 3000 for s in settings])
    sample = np.linspace(0, len(settings) - 1, 14).astype(int)
    measured = []
    with tempfile.TemporaryDirectory() as directory:
        where = places(data_dir, directory)
        for i in tqdm(sample, desc='separate processes', disable=None):
            start = time.perf_counter()
            train_alone(settings[i], where)
            measured.append(time.perf_counter() - start)
    slope, start_up = np.polyfit(shares[sample], measured, 1)
    separate = start_up * len(settings) + slope * shares.sum()
    tqdm.write(f'search: {search["wall_seconds"]:.0f} s, {search["core_seconds"]:.0f} core-seconds')
    tqdm.write(f'separate processes: {start_up:.1f} s each and {slope:.2f} s for each of its core-seconds, '
               f'in all {separate:.0f} s')  # fmt: skip
    seconds = {'search': np.array([search['wall_seconds']]), 'separate': np.array([separate])}
    return compare('full_grid', '486 settings, estimated', seconds, 'search', {'separate': 1 / 2.5})
