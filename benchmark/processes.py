"""Whole processes: scripts at their default flags, and a search against a process for each of its settings."""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmark.loading import batches_root
from benchmark.ratios import Ratio, compare, take_turns
from grid_search_results import Setting, all_settings
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
    return ['--data_dir', str(batches_root(data_dir)), '--output_dir', output_dir]


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
        *compare('run', case, seconds, 'numpy', {'student': 0.5, 'pytorch': None}),
        *compare('run', case, seconds, 'numpy_float32', {'student': 0.3, 'pytorch': None}),
        *compare('run', case, seconds, 'pytorch', {'student': 0.6}),
    ]


def grid(data_dir: str, repeats: int) -> list[Ratio]:
    """A search of 36 settings against a process for each of them, in turn on all cores and side by side; once each."""
    values = {'dnn_hidden_units': ['100', '200,200', '400,400,400'], 'max_steps': ['1500', '3000'],
              'learning_rate': ['2e-3'], 'batch_size': ['200', '400'],
              'optimizer': ['sgd', 'adam', 'adadelta']}  # fmt: skip
    n_cores = torch.get_num_threads()
    settings = all_settings(values)
    with tempfile.TemporaryDirectory() as directory:
        where = places(data_dir, directory)
        search = [word for flag, options in values.items() for word in (f'--{flag}', *options)]
        ways = {
            'search': lambda: run_python('grid_search_mlp_pytorch.py', *where, *search),
            'in turn': lambda: train_each(settings, where, at_a_time=1, threads=n_cores),
            'side by side': lambda: train_each(settings, where, at_a_time=n_cores, threads=1),
        }
        seconds = {}
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = np.array([time.perf_counter() - start])
    case = f'{len(settings)} settings, one to three hidden layers'
    return compare('grid', case, seconds, 'search', {'in turn': 0.4, 'side by side': None})


def train_each(settings: list[Setting], where: list[str], at_a_time: int, threads: int) -> None:
    """A process for each setting, `at_a_time` of them at once, each on `threads`; `where` is what `places` gives."""

    def train_alone(setting: Setting) -> None:
        flags = (f'--{flag}={value}' for flag, value in setting._asdict().items())
        run_python('train_mlp_pytorch.py', *where, *flags, OMP_NUM_THREADS=str(threads))

    with ThreadPoolExecutor(at_a_time) as pool:
        list(tqdm(pool.map(train_alone, settings), total=len(settings), desc=f'{at_a_time} at a time', disable=None))
