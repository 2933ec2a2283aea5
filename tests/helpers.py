"""What the tests share: the real data where it is at hand, temporary directories, and scripts run as a user does."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import cifar10_utils
import script
import stopping

ROOT = Path(__file__).resolve().parent.parent
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # the tests are of runs on a CPU, wherever they run

DATA_DIRS = (os.path.expanduser(os.environ.get('CIFAR10_DIR') or 'cifar10'), ROOT / 'cifar10', ROOT.parent / 'shared')
REAL_DATA = next((Path(path).resolve() for path in DATA_DIRS if cifar10_utils.find_batches(Path(path))), None)
needs_real_data = unittest.skipUnless(REAL_DATA, 'no CIFAR-10 at hand: set CIFAR10_DIR to where it is')

PATIENCE = 300  # seconds with a script that hangs: on a machine that has much else to do, one may take a minute

# A proxy at a port that nothing listens on: to a script run with this environment the network is dead.
NO_NETWORK = {**os.environ, 'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def small_stand_in(n_train: int = 1000, n_test: int = 200) -> contextlib.AbstractContextManager:
    """Inside, the stand-in is smaller, so that a run on it takes a moment."""
    return mock.patch.object(
        cifar10_utils, 'load', return_value=cifar10_utils.synthetic(n_train=n_train, n_test=n_test)
    )  # fmt: skip


def files_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob('*'))


def run_script(name: str, *args: str, **kwargs: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / name, *args], capture_output=True, text=True, timeout=PATIENCE, **kwargs
    )  # fmt: skip


def heed_signals() -> None:
    """Has this process heed the signals that ask it to end, some of which nohup or a background job may ignore."""
    for number in stopping.STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def start_script(name: str, *args: object) -> Iterator[subprocess.Popen]:
    """A script that runs while the block does, and is killed at its end if it still does.

    Where the tests were started to ignore signals, the script does not.
    """
    with subprocess.Popen(
        [sys.executable, '-u', ROOT / name, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_signals,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def torchrun(*args: object, n_processes: int = 2) -> subprocess.CompletedProcess:
    """A script in several processes."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    with temporary_directory() as logs:  # else torchrun leaves a directory of its own behind
        launcher = ['torch.distributed.run', '--standalone', f'--nproc_per_node={n_processes}', f'--log_dir={logs}']
        command = [sys.executable, '-m', *launcher, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)


def refused(test: unittest.TestCase, trainer: types.ModuleType, *args: str) -> str:
    """The one line with which a script, run in this process, refuses these arguments; it must write nothing."""
    with temporary_directory() as directory, contextlib.redirect_stderr(io.StringIO()) as stderr:
        argv = [f'{trainer.__name__}.py', '--dataset', 'synthetic', '--output_dir', str(directory), *args]
        with mock.patch.object(sys, 'argv', argv), test.assertRaises(SystemExit) as caught:
            script.main(trainer.build_parser(), trainer.train)
        test.assertEqual(caught.exception.code, 2)
        test.assertEqual(files_under(directory), [])
    test.assertEqual(stderr.getvalue().count('\n'), 1, stderr.getvalue())
    return stderr.getvalue()


def only(directory: Path, suffix: str) -> Path:
    """The one file of this kind under a directory."""
    (path,) = directory.rglob(f'*{suffix}')
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))
