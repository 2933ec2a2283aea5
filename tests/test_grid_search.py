"""The search: each run once, whole and resumable, the same on one process, on several and on a Dask cluster."""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import files
import grid_search_figures
import grid_search_mlp_pytorch as grid_search
import grid_search_results as search_results
import train_mlp_pytorch
from experiment import best_row, score
from grid_search_results import Setting
from tests.helpers import ROOT, files_under, temporary_directory, torchrun

SCRIPT = ROOT / 'grid_search_mlp_pytorch.py'
GRID = (
    '--dataset', 'synthetic', '--max_steps', '20', '40', '--eval_freq', '10', '--batch_size', '50',
    '--dnn_hidden_units', '10', '20,20', '--optimizer', 'SGD', 'Adam', '--learning_rate', '1e-3', '1e30',
)  # fmt: skip
SLOWER = (
    '--dataset', 'synthetic', '--max_steps', '120', '--eval_freq', '100', '--batch_size', '50',
    '--dnn_hidden_units', '50', '--learning_rate', *(f'{n}e-4' for n in range(1, 9)),
)  # fmt: skip
ENDLESS = ('--dataset', 'synthetic', '--max_steps', '1000000', '--optimizer', 'sgd', 'adam')
NAME = 'grid_search_mlp_pytorch_own_synthetic'
CSV = f'results/{NAME}.csv'
needs_proc = unittest.skipUnless(Path('/proc/self/stat').exists(), 'needs /proc to find processes')
needs_dask = unittest.skipUnless(importlib.util.find_spec('distributed'), 'needs Dask: pip install distributed')


def until(condition: Callable[[], object], seconds: float = 60) -> object:
    """What `condition` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError('it does not come true')
        time.sleep(0.02)
    return value


def children(pid: int) -> list[int]:
    """The processes that a process has started, but for those that have ended."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(')')[2].split()[:2]
            found += [int(path.parent.name)] if int(parent) == pid and state not in 'ZX' else []
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    return False


def workers(pid: int) -> list[int]:
    """The processes in which a search trains."""
    return [child for child in children(pid) if b'spawn_main' in command_line(child)]


def command_line(pid: int) -> bytes:
    """What a process was started with; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/cmdline').read_bytes()
    return b''


class SearchTest(unittest.TestCase):
    """Searches in this process, in a directory of their own, and without figures, which take longer than the rest."""

    show = staticmethod(lambda *_: None)

    def setUp(self) -> None:
        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        self.addCleanup(logging.disable, logging.NOTSET)
        self.directory = Path(self.enterContext(temporary_directory()))

    def main(self, *args: str) -> tuple[int, str, str]:
        """The script in this process: its exit status, and what it says on stdout and on stderr."""
        argv = [SCRIPT.name, '--output_dir', str(self.directory), *args]
        with (
            mock.patch.object(sys, 'argv', argv),
            mock.patch.object(grid_search, 'show', self.show),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = grid_search.main()
            except SystemExit as stop:
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def main_in_threads(self, *args: str) -> tuple[int, str, str]:
        """The same, with an executor of threads."""
        with mock.patch.object(grid_search, 'ProcessExecutor', return_value=ThreadPoolExecutor(3)):
            return self.main(*args)

    def assert_searches(self, *args: str) -> str:
        """The search, in threads, succeeds; returns what it prints."""
        status, out, err = self.main_in_threads(*args)
        self.assertEqual((status, err), (0, ''))
        return out

    def assert_refused(self, words: str, *args: str, status: int = 2) -> None:
        """The search is refused, in one line that has these words."""
        refused, _, err = self.main_in_threads(*args)
        self.assertEqual((refused, err.count('\n')), (status, 1), err)
        self.assertIn(words, err)

    def expected(self, *args: str) -> bytes:
        """The CSV of this search, never killed, somewhere else."""
        with temporary_directory() as directory:
            self.assert_searches(*args, '--output_dir', str(directory))
            return (directory / CSV).read_bytes()

    def settings(self) -> list[Setting]:
        return list(search_results.by_setting(search_results.read_rows(self.directory / CSV)))

    @contextlib.contextmanager
    def script(self, *args: str, **kwargs: object) -> Iterator[subprocess.Popen]:
        """The script in a process of its own, which is killed at the end if it still runs."""
        command = [sys.executable, SCRIPT, '--output_dir', self.directory, *args]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **kwargs) as process:
            try:
                yield process
            finally:
                process.kill()


class GridSearchTest(SearchTest):
    def test_the_report_s_grids(self) -> None:
        full, additional = (search_results.all_settings(search_results.GRIDS[grid]) for grid in ('full', 'additional'))
        self.assertEqual((len(set(full)), len({setting.run for setting in full}), len(additional)), (486, 243, 3))

    def test_a_short_run_is_the_beginning_of_a_long_one(self) -> None:
        """Every setting has just the rows that training it on its own gives, whatever is trained beside it."""
        self.assert_searches(*GRID)
        runs = search_results.by_setting(search_results.read_rows(self.directory / CSV))
        self.assertEqual(len(runs), 16)
        torch.set_num_threads(1)
        for setting, rows in runs.items():
            args = [f'--{flag}={value}' for flag, value in setting._asdict().items()]
            flags = ['--dataset', 'synthetic', '--eval_freq', '10', *args]
            record = train_mlp_pytorch.train(train_mlp_pytorch.build_parser().parse_args(flags), quiet=True)
            self.assertEqual({row['status'] for row in rows}, {record.status})
            self.assertEqual(record.status, 'diverged' if setting.learning_rate == 1e30 else 'finished')
            for row, expected in zip(rows, record.rows, strict=True):
                for key, value in expected.items():
                    np.testing.assert_equal(row[key], value)

    def test_the_longest_first(self) -> None:
        values = {'optimizer': ['sgd'], 'learning_rate': [0.1], 'batch_size': [10, 20], 'dnn_hidden_units': ['5', '9'],
                  'max_steps': [3, 8]}  # fmt: skip
        settings = search_results.all_settings(values)
        runs = search_results.left_to_do(settings[::-1], {settings[1]})
        self.assertEqual([(run[0].batch_size, run[0].dnn_hidden_units) for run in runs],
                         [(20, '9'), (10, '9'), (20, '5'), (10, '5')])  # fmt: skip
        self.assertEqual([[setting.max_steps for setting in run] for run in runs], [[3, 8]] * 3 + [[3]])
        runs = search_results.left_to_do(settings, set(), apart=True)
        self.assertEqual(sorted(runs), sorted([setting] for setting in settings))

    def test_a_schedule_of_one_length_is_not_the_beginning_of_a_longer_one(self) -> None:
        here = ('--dataset', 'synthetic', '--max_steps', '5', '10', '--dnn_hidden_units', '5', '--dry_run')
        for args, n_runs in (((), 1), (('--schedule', 'cosine'), 2), (('--warmup', '0.5'), 2)):
            self.assertIn(f'{n_runs} runs answer the other 2', self.main(*here, *args)[1])

    def test_bad_flags(self) -> None:
        here = ('--dataset', 'synthetic')
        refused = [
            ((), 'name either --grid'),
            (('--grid', 'full', '--optimizer', 'adam'), 'name either --grid'),
            (('--grid', 'half'), 'half'),
            (('--learning_rate', '1e-3', 'abc'), "got 'abc'"),
            (('--optimizer', 'adam', 'lbfgs'), "'lbfgs'"),
            (('--batch_size', '20000'), '--batch_size must be at most 10000'),
            (('--batch_size', '20', '20000'), '--batch_size must be at most 10000'),
            (('--batch_size', '20', '--validation_size', '20000'), 'validation_size must be between 0 and 10000'),
            (('--batch_size', '1', '--batch_norm', 'manual'), 'at least 2 examples'),
            (('--batch_size', '20', '--activation', 'elu', '--neg_slope', '0.1'), 'does nothing with --activation elu'),
            (('--optimizer', 'sgd', 'adam', '--momentum', '0.9'), 'does nothing with --optimizer adam'),
            (('--learning_rate', '1e-3', '1e39'), '--learning_rate must be at most'),
            (('--dnn_hidden_units', '9', '', '--dropout', '0.1'), '--dropout does nothing without a hidden layer'),
            (('--max_steps', '100', '4', '--warmup', '0.1'), '--warmup 0.1 does nothing in 4 step'),
            (('--batch_size', '20', '--checkpoint', 'run.pt'), 'unrecognized arguments: --checkpoint run.pt'),
            (('--batch_size', '20', '--plot'), 'no results in'),
            (('--batch_size', '20', '--plot', '--dry_run'), 'not allowed with'),
            (('--batch_size', '20', '--scheduler', 'tcp://a:1', '--processes', '2'), 'not allowed with'),
        ]
        if not torch.cuda.is_available():
            refused.append((('--batch_size', '20', '--device', 'cuda'), 'no such device'))
        for args, words in refused:
            self.assert_refused(words, *here, *args)
        self.assert_refused('grid_search_mlp_pytorch_own.csv to plot', '--batch_size', '20', '--plot')  # of CIFAR-10
        self.assertEqual(files_under(self.directory), [])

    def test_not_under_torchrun(self) -> None:
        done = torchrun(SCRIPT, *GRID, '--output_dir', self.directory)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count('grid_search_mlp_pytorch.py: error: not under torchrun: use python'), 1)
        self.assertEqual(files_under(self.directory), [])

    def test_picked_by_validation_accuracy(self) -> None:
        self.show = grid_search_figures.show
        out = self.assert_searches(*GRID, '--validation_size', '1000')
        rows = search_results.read_rows(self.directory / CSV.replace('_own', '_own_validation'))
        best = max((row for row in rows), key=lambda row: row['val_acc'])
        self.assertIn(f'{best["val_acc"]:.4f}', out.splitlines()[1])
        self.assertEqual(re.findall(r'test accuracy.*: (0\.\d+)', out), [f'{best["test_acc"]:.4f}'])

    def test_figures_from_what_is_on_disk(self) -> None:
        """Nothing is trained or read but the results, and grids that do not fit together are drawn as well."""
        self.show = grid_search_figures.show
        args = ('--dataset', 'synthetic', '--dnn_hidden_units', '5', '--eval_freq', '5')
        for grid in (('--batch_size', '100', '--max_steps', '5'), ('--batch_size', '50', '--max_steps', '10')):
            self.assert_searches(*args, *grid)
        before = (self.directory / CSV).read_text()
        for path in (self.directory / 'figures').iterdir():
            path.unlink()
        with mock.patch('cifar10_utils.load', side_effect=AssertionError):
            self.assert_searches(*args, '--batch_size', '50', '--plot')
        self.assertEqual(len(files_under(self.directory / 'figures')), 2)
        self.assertEqual((self.directory / CSV).read_text(), before)

    def test_the_bar(self) -> None:
        shown = io.StringIO()

        def visible(**kwargs: object) -> tqdm:
            return tqdm(**kwargs | {'disable': False, 'file': shown, 'mininterval': 0, 'miniters': 0})

        with mock.patch.object(grid_search, 'tqdm', visible):
            self.main_in_threads(*GRID)
        best = score(best_row(search_results.read_rows(self.directory / CSV)))
        self.assertRegex(shown.getvalue(), r'0/8 runs +0%')
        self.assertRegex(shown.getvalue(), r'3/8 runs, best accuracy 0\.\d{4} .*\d\d:\d\d<\d\d:\d\d')
        self.assertRegex(shown.getvalue(), rf'8/8 runs, best accuracy {best:.4f} 100%')


class ResultsTest(SearchTest):
    @classmethod
    def setUpClass(cls) -> None:
        with (
            temporary_directory() as directory,
            mock.patch.object(grid_search, 'show'),
            mock.patch.object(grid_search, 'ProcessExecutor', return_value=ThreadPoolExecutor(1)),
        ):
            words = [*GRID, '--output_dir', str(directory)]
            grid_search.search(grid_search.build_parser().parse_args(words))
            cls.files = {name: (directory / name).read_text() for name in (CSV, CSV.replace('.csv', '.json'))}

    def setUp(self) -> None:
        super().setUp()
        (self.directory / 'results').mkdir()
        for name, text in self.files.items():
            (self.directory / name).write_text(text)
        self.whole = (self.directory / CSV).read_text()
        self.header, *self.lines = self.whole.splitlines(keepends=True)
        self.json = self.directory / CSV.replace('.csv', '.json')

    def n_done(self) -> int:
        status, out, err = self.main(*GRID, '--dry_run')
        self.assertEqual((status, err), (0, ''))
        return int(re.search(r'(\d+) of 16 settings are done', out)[1])

    def assert_goes_on(self, text: str, n_done: int) -> None:
        """Of the CSV `text` so many settings count as done, and the search makes it whole again."""
        (self.directory / CSV).write_text(text)
        self.assertEqual(self.n_done(), n_done)
        said = self.assert_searches(*GRID)
        if n_done:
            self.assertIn(f'{n_done} of 16 settings are done', said)
        self.assertEqual((self.directory / CSV).read_text(), self.whole)

    def test_any_order_of_rows_and_of_columns(self) -> None:
        shuffled = random.Random(0).sample(self.lines, len(self.lines))
        (self.directory / CSV).write_text(self.header + ''.join(shuffled + shuffled[:9]))
        self.assertEqual(self.n_done(), 16)
        rows = search_results.read_rows(self.directory / CSV)
        self.assertEqual(rows, sorted(rows, key=search_results.sort_key))
        self.assertEqual(len(rows), len(self.lines))
        names = self.header.strip().split(',')
        order = sorted(names)
        table = [order, *([str(row[name]) for name in order] for row in rows)]
        quoted = [','.join(f'"{value}"' for value in values) for values in table]
        (self.directory / CSV).write_text('\n'.join(quoted) + '\n')
        self.assertEqual(str(search_results.read_rows(self.directory / CSV)), str(rows))
        self.assertEqual(self.n_done(), 16)

    def test_rows_that_lack(self) -> None:
        """The setting that they are of is trained again, and only that one."""
        finished = next(i for i, line in enumerate(self.lines) if ',40,finished,21,' in line)
        diverged = next(i for i, line in enumerate(self.lines) if ',diverged,' in line and 'nan' in line)
        for i in (finished, diverged, len(self.lines) - 1):
            lines = self.lines[:i] + self.lines[i + 1 :]
            self.assert_goes_on(self.header + ''.join(lines), 15)
        self.assert_goes_on(self.whole[:-30], 15)
        status_of_another = self.lines[finished].replace('finished', 'diverged')
        self.assert_goes_on(self.whole.replace(self.lines[finished], status_of_another), 15)
        self.assert_goes_on(self.header, 0)

    def test_a_damaged_csv(self) -> None:
        first = self.lines[0]
        for text in (
            '',
            self.whole.replace('learning_rate', 'rate', 1),
            self.whole.replace(',test_loss', '', 1),
            self.whole.replace('test_acc,', 'test_acc,test_acc,', 1),
            self.whole.replace(first, first[:30] + '\n', 1),
            self.whole.replace(first, first.strip() + ',1\n', 1),
            self.whole.replace(first, first.replace('0.001', 'nan'), 1),
            self.whole.replace(first, first.replace(',50,', ',50.5,'), 1),
            self.whole.replace(first, first.replace('finished', 'done'), 1),
            self.whole.replace(first, first.replace(',1,0.', ',1,7.'), 1),
            self.whole + first.replace(',1,0.', ',1,0.0'),
            self.whole + first.replace('adam', 'lion'),
            self.whole + first.replace(',10,', ',"10,",'),
            self.whole + first.replace(',10,', ',10' + '0' * 200_000 + ','),
        ):
            self.assertNotEqual(text, self.whole)
            (self.directory / CSV).write_text(text)
            self.assert_refused('is damaged', *GRID, '--plot')
        (self.directory / CSV).write_bytes(b'\xff' + self.whole.encode())
        self.assert_refused('is damaged', *GRID)

    def test_a_damaged_json(self) -> None:
        whole = json.loads(self.json.read_text())
        run = next(iter(whole['times']))
        for key, value in (
            ('flags', 3), ('flags', None), ('times', []), ('times', {}), ('times', {run: 3}), ('wall_seconds', None),
            ('times', whole['times'] | {run: {'wall_seconds': 'long', 'core_seconds': 1}}), ('wall_seconds', '5'),
            ('times', whole['times'] | {run: {'wall_seconds': -1, 'core_seconds': 1}}), ('wall_seconds', [1]),
            ('times', whole['times'] | {run: {'wall_seconds': None, 'core_seconds': 1}}),
            ('times', whole['times'] | {run: {'wall_seconds': 1}}),
        ):  # fmt: skip
            self.json.write_text(json.dumps(whole | {key: value}))
            self.assert_refused('is damaged', *GRID, '--plot')
        for text in ('{}', '[]', '3', 'null', '{"times": {}', '[' * 100_000):
            self.json.write_text(text)
            self.assert_refused('is damaged', *GRID, '--plot')
        self.json.unlink()
        self.assert_refused('is damaged', *GRID, '--plot')

    def test_other_flags_do_not_mix(self) -> None:
        for args, words in (
            (('--seed', '1'), 'its seed is 42, here it is 1'),
            (('--compile',), 'its compile is False, here it is True'),
            (('--eval_freq', '7'), 'its eval_freq is 10, here it is 7'),
        ):
            self.assert_refused(words, *GRID, *args)
        with mock.patch.object(grid_search, 'pick_device', torch.device):
            self.assert_refused('its device is cpu, here it is cuda', *GRID, '--device', 'cuda')
        self.assertIn('16 of 16 settings', self.main(*GRID, '--data_dir', 'elsewhere', '--dry_run')[1])
        saved = json.loads(self.json.read_text())
        self.assertEqual(saved['flags']['device'], grid_search.pick_device('auto').type)

    def test_results_that_name_no_device_are_of_a_cpu(self) -> None:
        saved = json.loads(self.json.read_text())
        del saved['flags']['device'], saved['flags']['compile']
        self.json.write_text(json.dumps(saved))
        self.assertIn('16 of 16 settings', self.main(*GRID, '--device', 'cpu', '--dry_run')[1])
        with mock.patch.object(grid_search, 'pick_device', return_value=torch.device('cuda')):
            self.assert_searches(*GRID, '--plot')
            self.assert_refused('its device is cpu, here it is cuda', *GRID, '--dry_run')

    def test_the_plan_counts_the_steps_that_were_taken(self) -> None:
        """Of two runs alike, each of 100 s, one diverged after a tenth of its steps; a third takes 200 s / 1.1."""
        run = self.directory / 'b'
        flags = argparse.Namespace(**{'eval_freq': 10, 'device': 'cpu'})
        settings = [Setting('sgd', rate, 50, '10', 41) for rate in (0.1, 0.2, 0.3)]
        results = search_results.Results(str(run), NAME, vars(flags), {})
        losses = {'train_acc': 0.1, 'train_loss': 1.0, 'test_acc': 0.1}
        results.start_clock()
        for setting, steps in zip(settings, ([1, 11, 21, 31, 41], [1, 4.1]), strict=False):
            row = {**setting._asdict(), 'status': 'finished', **losses, 'test_loss': 1.0}
            rows = [row | {'step': step} for step in steps]
            results.add(rows, setting.run, {'wall_seconds': 100.0, 'core_seconds': 100.0})
        with contextlib.redirect_stdout(io.StringIO()) as out:
            search_results.print_plan(settings, [[settings[2]]], results, 1)
        self.assertIn(f'{200 / 1.1 / 3600:.2f} hours', out.getvalue())

    def test_what_killed_searches_leave_is_cleared_away(self) -> None:
        results, figures = self.directory / 'results', self.directory / 'figures'
        with subprocess.Popen([sys.executable, '-c', '']) as process:
            process.wait()

        def leftover(path: Path) -> Path:
            """The temporary file of a process that is gone."""
            temporary = files.temporary_path(path)
            return temporary.with_name(temporary.name.replace(str(os.getpid()), str(process.pid)))

        left = [
            leftover(results / f'{NAME}.csv'),
            leftover(results / f'{NAME}.json'),
            leftover(figures / f'{NAME}_best.png'),
        ]
        of_others = [leftover(results / 'mlp_numpy.csv'), leftover(figures / 'other_best.png')]
        figures.mkdir()
        for path in left + of_others:
            path.touch()
        self.assert_searches(*GRID)
        self.assertEqual([path.exists() for path in left + of_others], [False] * 3 + [True] * 2)
        for path in of_others:
            path.unlink()
        names = {Path(path).name for path in files_under(self.directory) if '/.' in path}
        self.assertEqual(names, {f'.{NAME}.lock'})


def die(marker: str | None = None) -> str:
    """Kills the process that it is called in, but not once `marker` exists."""
    if marker is None or not Path(marker).exists():
        Path(marker or os.devnull).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 'alive'


def fail(log: str, error: Exception, times: int) -> int:
    """Raises `error` the first `times` times; returns how often it has been called."""
    with open(log, 'a') as file:
        file.write('.')
    if len(Path(log).read_text()) <= times:
        raise error
    return len(Path(log).read_text())


class ProcessExecutorTest(SearchTest):
    def test_deaths_and_errors(self) -> None:
        log = self.directory / 'log'
        with grid_search.ProcessExecutor(2, 'cpu') as executor:
            once, always = executor.submit(die, str(self.directory / 'died')), executor.submit(die)
            twice = executor.submit(fail, str(log), OSError('no'), 2)
            large = executor.submit(fail, str(self.directory / 'large'), MemoryError('large'), 1)
            others = [executor.submit(abs, -n) for n in range(20)]
            threads = executor.submit(threading.current_thread)
            self.assertEqual(once.result(), 'alive')
            self.assertEqual([other.result() for other in others], list(range(20)))
            self.assertIsInstance(always.exception(), BrokenProcessPool)
            self.assertEqual(str(twice.exception()), 'no')
            self.assertEqual(log.read_text(), '..')
            self.assertIsInstance(large.exception(), MemoryError)
            self.assertEqual((self.directory / 'large').read_text(), '.')
            self.assertEqual(executor.submit(fail, str(log), OSError('no'), 3).result(), 4)
            self.assertIsNotNone(threads.exception())  # cannot be sent back
        self.assertRaises(RuntimeError, executor.submit, abs, 1)

    def test_gpus(self) -> None:
        bound = []
        with (
            mock.patch.object(torch.cuda, 'device_count', return_value=2),
            mock.patch.object(torch.cuda, 'set_device', bound.append),
            mock.patch.object(threading.Thread, 'start'),
            mock.patch.object(signal, 'signal'),
        ):
            self.assertEqual((grid_search.usable('cuda'), grid_search.usable('mps')), (2, 1))
            for number in range(3):
                grid_search.start_worker(None, 'cuda', number)
            grid_search.start_worker(None, 'cpu', 1)
        self.assertEqual(bound, [0, 1, 0])

    @unittest.skipUnless(hasattr(os, 'sched_setaffinity'), 'needs a system that binds processes to cores')
    def test_cores_that_may_be_used(self) -> None:
        cores = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, cores)
        self.assertEqual(grid_search.usable('cpu'), len(cores))
        os.sched_setaffinity(0, {min(cores)})
        self.assertEqual(grid_search.usable('cpu'), 1)


class ScriptTest(SearchTest):
    @unittest.skipUnless(Path('/dev/full').exists(), 'needs /dev/full')
    def test_output_that_nobody_takes(self) -> None:
        args = ' '.join([*GRID, '--processes', '1', '--output_dir', str(self.directory)])
        for redirect, rates in (('> /dev/full', '1e-3'), ('> /dev/full', '1e-3 2e-3'), ('| head -0', '1e-3 3e-3')):
            command = f'{sys.executable} -u {SCRIPT} {args} --learning_rate {rates} {redirect}'
            done = subprocess.run(['bash', '-c', f'set -o pipefail; {command}'], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ''), redirect)
            self.assertTrue({float(rate) for rate in rates.split()} <= {s.learning_rate for s in self.settings()})
            self.assertGreaterEqual(len(files_under(self.directory / 'figures')), 2)

    def test_two_processes(self) -> None:
        """One run does not fit into memory, and all others are trained; the CSV is that of any other executor."""
        limit = 30 * 10**9
        grid = [*GRID, '--dnn_hidden_units', '10', '20,20', '100000,100000', '--optimizer', 'SGD']

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        with self.script(*grid, '--processes', '2', preexec_fn=limited) as process:
            out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        failed = ' '.join(sorted(re.findall(r'sgd \S+ 50 100000,100000 40', err)))
        self.assertEqual(failed, 'sgd 0.001 50 100000,100000 40 sgd 1e+30 50 100000,100000 40')
        self.assertRegex(err, r"\Anot trained: [^\n]* \(MemoryError: [^\n]*can't allocate[^\n]*\)\n\Z")
        self.assertEqual(out.count('best of 8'), 1)
        self.assertEqual((self.directory / CSV).read_bytes(), self.expected(*GRID, '--optimizer', 'SGD'))
        self.assertEqual(len(files_under(self.directory / 'figures')), 2)

    @needs_proc
    def test_killed_workers_and_a_killed_search(self) -> None:
        expected = self.expected(*SLOWER)
        with self.script(*SLOWER, '--processes', '2') as process:
            first = until(lambda: workers(process.pid))
            os.kill(first[0], signal.SIGKILL)
            until((self.directory / CSV).exists)
            self.assertNotIn(first[0], workers(process.pid))
            processes = children(process.pid)
            process.kill()
            process.communicate()
        until(lambda: not any(map(is_alive, processes)), 20)
        done = len(self.settings())
        self.assertTrue(0 < done < 8, done)
        self.assert_searches(*SLOWER)
        self.assertEqual((self.directory / CSV).read_bytes(), expected)

    @needs_proc
    def test_a_run_that_kills_its_worker_twice(self) -> None:
        with self.script(*ENDLESS, '--processes', '1') as process:
            for _ in range(4):
                worker = until(lambda: workers(process.pid))[0]
                os.kill(worker, signal.SIGKILL)
                until(lambda: worker not in workers(process.pid))  # noqa: B023
            _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(err, 'not trained: adam 0.002 200 100 1000000; sgd 0.002 200 100 1000000 '
                              f'({grid_search.DIED})\n')  # fmt: skip

    @needs_proc
    def test_one_search_at_a_time_without_a_port_and_ended_by_ctrl_c(self) -> None:

        def heed() -> None:  # also where a shell's background job would ignore it
            signal.signal(signal.SIGINT, signal.default_int_handler)

        with self.script(*ENDLESS, preexec_fn=heed) as process:
            until(lambda: workers(process.pid))
            until((self.directory / CSV.replace('.csv', '.json')).exists)
            self.assert_refused(f'process {process.pid} on {socket.gethostname()} is writing', *GRID)
            self.assertEqual(self.main(*ENDLESS, '--dry_run')[0], 0)
            processes = [process.pid, *children(process.pid)]
            sockets = {os.readlink(path) for pid in processes for path in Path(f'/proc/{pid}/fd').iterdir()
                       if path.is_symlink()}  # fmt: skip
            tables = [line.split() for name in ('tcp', 'tcp6', 'udp', 'udp6')
                      for line in Path(f'/proc/net/{name}').read_text().splitlines()[1:]]  # fmt: skip
            self.assertEqual([line for line in tables if f'socket:[{line[9]}]' in sockets], [])
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        self.assertEqual((process.returncode, err), (130, f'interrupted: {grid_search.GOES_ON}\n'))
        until(lambda: not any(map(is_alive, processes)), 20)
        self.assertNotIn(f'results/.{NAME}.holder', files_under(self.directory))

    def test_a_lock_of_a_killed_search(self) -> None:
        (self.directory / 'results').mkdir()
        (self.directory / f'results/.{NAME}.holder').write_text('process 1 on nowhere')
        (self.directory / f'results/.{NAME}.lock').touch()
        self.assert_searches(*GRID)


class DaskTest(SearchTest):
    def start(self, kind: str, *args: str) -> subprocess.Popen:
        """A Dask scheduler or worker that does not find the project by itself."""
        command = [sys.executable, '-P', '-m', f'distributed.cli.dask_{kind}', *args, '--no-dashboard']
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process: subprocess.Popen) -> None:
        """Kills a process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start_scheduler(self) -> subprocess.Popen:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.address = f'tcp://127.0.0.1:{port}'
        return self.start('scheduler', '--host', '127.0.0.1', '--port', str(port))

    def start_worker(self) -> subprocess.Popen:
        there = str(self.directory / 'dask')
        return self.start('worker', self.address, '--nthreads', '1', '--no-nanny', '--local-directory', there)

    def once_a_run_is_done(self, action: Callable[[], None]) -> None:
        """Does something, in a thread, when the first result is on disk."""
        thread = threading.Thread(target=lambda: (until((self.directory / CSV).exists), action()))
        thread.start()
        self.addCleanup(thread.join)

    @needs_dask
    def test_workers_killed_and_added(self) -> None:
        """The two workers are killed in the middle, and one that comes then goes on: the CSV is the local one's."""
        self.start_scheduler()
        killed = [self.start_worker(), self.start_worker()]

        def replace() -> None:
            self.stop(killed[0])
            self.start_worker()
            self.stop(killed[1])

        self.once_a_run_is_done(replace)
        status, out, err = self.main(*SLOWER, '--scheduler', self.address)
        self.assertEqual((status, err), (0, ''))
        self.assertIn('the cluster at work: http://127.0.0.1', out)
        self.assertEqual((self.directory / CSV).read_bytes(), self.expected(*SLOWER))

    @needs_dask
    def test_the_scheduler_killed(self) -> None:
        scheduler = self.start_scheduler()
        self.start_worker()
        self.once_a_run_is_done(lambda: self.stop(scheduler))
        gone = f'{self.address} is gone: {grid_search.GOES_ON}'
        self.assert_refused(gone, *SLOWER, '--scheduler', self.address, status=1)
        self.assertTrue(0 < len(self.settings()) < 8)
        self.start_scheduler()
        self.start_worker()
        self.assert_searches(*SLOWER, '--scheduler', self.address)
        self.assertEqual((self.directory / CSV).read_bytes(), self.expected(*SLOWER))

    def test_no_dask(self) -> None:
        with mock.patch.dict(sys.modules, {'distributed': None}):
            self.assert_refused('pip install distributed', *GRID, '--scheduler', 'tcp://127.0.0.1:1')
        self.assert_refused('must be an address such as tcp://HOST:8786, got 8786', *GRID, '--scheduler', '8786')

    @needs_dask
    def test_no_scheduler(self) -> None:
        with mock.patch('distributed.Client', side_effect=OSError('timed out')):
            self.assert_refused('answers at --scheduler tcp://127.0.0.1:1', *GRID, '--scheduler', 'tcp://127.0.0.1:1')
        self.assertNotIn(CSV.replace('.csv', '.json'), files_under(self.directory))
