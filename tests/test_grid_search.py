"""The grid search: each run once, whole, resumable, the same on one process and on two."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import grid_search_mlp_pytorch as grid_search
import train_mlp_pytorch
from flags import FlagError
from tests.helpers import ROOT, files_under, temporary_directory, torchrun


class GridSearchTest(unittest.TestCase):
    GRID = (
        '--dataset', 'synthetic', '--max_steps', '20', '40', '--eval_freq', '10', '--batch_size', '50',
        '--dnn_hidden_units', '10', '20,20', '--optimizer', 'SGD', 'Adam', '--learning_rate', '1e-3', '1e30',
    )  # fmt: skip
    CSV = 'results/grid_search_mlp_pytorch_own_synthetic.csv'

    def setUp(self) -> None:
        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        self.directory = Path(self.enterContext(temporary_directory()))

    def search_here(self, directory: Path, *args: str) -> str:
        """The search in this process; returns what it prints."""
        flags = grid_search.build_parser().parse_args([*self.GRID, '--output_dir', str(directory), *args])

        def one_worker(flags: object, runs: list, results: grid_search.Results) -> None:
            store = torch.distributed.HashStore()
            worker = threading.Thread(target=grid_search.work, args=(flags, runs, store))
            worker.start()
            grid_search.write_results(results, runs, store, is_alive=lambda: None)
            worker.join()

        with (
            mock.patch.object(grid_search, 'search_here', one_worker),
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            grid_search.search(flags)
        return out.getvalue()

    def test_the_report_s_grids(self) -> None:
        full, additional = (grid_search.all_settings(grid_search.GRIDS[grid]) for grid in ('full', 'additional'))
        self.assertEqual((len(set(full)), len({setting.run for setting in full}), len(additional)), (486, 243, 3))

    def test_a_short_run_is_the_beginning_of_a_long_one(self) -> None:
        """Every setting has just the rows that training it on its own gives."""
        self.search_here(self.directory)
        rows = grid_search.read_rows(self.directory / self.CSV)
        settings = list(dict.fromkeys(map(grid_search.setting_of, rows)))
        self.assertEqual(len(settings), 16)
        torch.set_num_threads(1)
        for setting in settings:
            args = [f'--{flag}={value}' for flag, value in setting._asdict().items()]
            flags = ['--dataset', 'synthetic', '--eval_freq', '10', *args]
            record = train_mlp_pytorch.train(train_mlp_pytorch.build_parser().parse_args(flags), quiet=True)
            of_setting = [row for row in rows if grid_search.setting_of(row) == setting]
            self.assertEqual({row['status'] for row in of_setting}, {record.status})
            self.assertEqual(record.status, 'diverged' if setting.learning_rate == 1e30 else 'finished')
            for row, expected in zip(of_setting, record.rows, strict=True):
                for key, value in expected.items():
                    np.testing.assert_equal(row[key], value)

    def test_killed_and_started_again(self) -> None:
        command = [
            sys.executable,
            ROOT / 'grid_search_mlp_pytorch.py',
            *self.GRID,
            '--output_dir',
            self.directory / 'a',
        ]
        path = self.directory / 'a' / self.CSV
        with subprocess.Popen(command, start_new_session=True) as process:
            while not path.exists():
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        done_before = set(map(grid_search.setting_of, grid_search.read_rows(path)))
        self.assertTrue(0 < len(done_before) < 16)
        text = path.read_text()
        path.write_text(text[: len(text) - 30])  # and the file was cut short, besides
        self.assertIn('settings are done', self.search_here(self.directory / 'a', '--dry_run'))
        self.search_here(self.directory / 'a')
        self.search_here(self.directory / 'b')
        self.assertEqual(path.read_text(), (self.directory / 'b' / self.CSV).read_text())
        self.assertEqual(len(set(map(grid_search.setting_of, grid_search.read_rows(path)))), 16)
        with self.assertRaisesRegex(FlagError, 'its seed is 42, here it is 1'):
            self.search_here(self.directory / 'a', '--seed', '1')

    def test_two_ranks(self) -> None:
        done = torchrun(ROOT / 'grid_search_mlp_pytorch.py', *self.GRID, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.search_here(self.directory / 'one')
        one, two = ((self.directory / name / self.CSV).read_text() for name in ('one', 'two'))
        self.assertEqual(one, two)
        self.assertEqual(len(files_under(self.directory / 'two/figures')), 3)
        self.assertEqual(done.stdout.count('best of 16'), 1)

    def main(self, *args: str) -> tuple[int, str]:
        """The script in this process: its exit status and what it says on stderr."""
        with (
            mock.patch.object(sys, 'argv', ['grid_search_mlp_pytorch.py', '--output_dir', str(self.directory), *args]),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            try:
                return grid_search.main(), stderr.getvalue()
            except SystemExit as stop:
                return stop.code, stderr.getvalue()

    def test_bad_flags(self) -> None:
        here = ('--dataset', 'synthetic')
        refused = [
            ((), 'name either --grid'),
            (('--grid', 'full', '--optimizer', 'adam'), 'name either --grid'),
            (('--grid', 'half'), 'half'),
            (('--learning_rate', '1e-3', 'abc'), "got 'abc'"),
            (('--batch_size', '20000'), '--batch_size must be at most 10000'),
            (('--batch_size', '20', '--validation_size', '20000'), 'validation_size must be between 0 and 10000'),
            (('--batch_size', '1', '--batch_norm', 'manual'), 'at least 2 examples'),
            (('--batch_size', '20', '--checkpoint', 'run.pt'), 'unrecognized arguments: --checkpoint run.pt'),
            (('--batch_size', '20', '--plot'), 'no results in'),
            (('--batch_size', '20', '--plot', '--dry_run'), 'not allowed with'),
        ]
        if not torch.cuda.is_available():
            refused.append((('--batch_size', '20', '--device', 'cuda'), 'no such device'))
        for args, word in refused:
            status, stderr = self.main(*here, *args)
            self.assertEqual((status, stderr.count('\n')), (2, 1), stderr)
            self.assertIn(word, stderr)
        self.assertEqual(files_under(self.directory), [])

    def test_picked_by_validation_accuracy(self) -> None:
        out = self.search_here(self.directory, '--validation_size', '1000')
        rows = grid_search.read_rows(self.directory / self.CSV.replace('_own', '_own_validation'))
        best = max((row for row in rows), key=lambda row: row['val_acc'])
        self.assertIn(f'{best["val_acc"]:.4f}', out.splitlines()[1])
        self.assertEqual(re.findall(r'test accuracy.*: (0\.\d+)', out), [f'{best["test_acc"]:.4f}'])

    def test_figures_from_what_is_on_disk(self) -> None:
        """Nothing is trained or read but the results, and grids that do not fit together are drawn as well."""
        args = ('--dataset', 'synthetic', '--dnn_hidden_units', '5', '--eval_freq', '5')
        for grid in (('--batch_size', '100', '--max_steps', '5'), ('--batch_size', '50', '--max_steps', '10')):
            self.assertEqual(self.main(*args, *grid, '--processes', '1'), (0, ''))
        before = (self.directory / self.CSV).read_text()
        for path in (self.directory / 'figures').iterdir():
            path.unlink()
        with mock.patch('cifar10_utils.load', side_effect=AssertionError):
            self.assertEqual(self.main(*args, '--batch_size', '50', '--plot'), (0, ''))
        self.assertEqual(len(files_under(self.directory / 'figures')), 2)
        self.assertEqual((self.directory / self.CSV).read_text(), before)

        path = self.directory / self.CSV.replace('.csv', '.json')
        for damage in ('{}', '{"times": {}', path.read_text().replace('wall_seconds', 'seconds')):
            path.write_text(damage)
            status, stderr = self.main(*args, '--batch_size', '50', '--plot')
            self.assertEqual((status, stderr.count('\n')), (2, 1))
            self.assertIn('is damaged', stderr)

    @unittest.skipUnless(Path('/proc/self/task').exists(), 'needs /proc to find the workers')
    def test_a_killed_worker_ends_the_search(self) -> None:
        command = [sys.executable, ROOT / 'grid_search_mlp_pytorch.py', '--output_dir', self.directory]
        command += ['--dataset', 'synthetic', '--max_steps', '1000000', '--optimizer', 'sgd', 'adam']
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
            workers: list[int] = []
            while not workers and process.poll() is None:
                time.sleep(0.05)
                workers = [int(pid) for pid in children.read_text().split()
                           if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()]  # fmt: skip
            os.kill(workers[0], signal.SIGKILL)
            _, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn('SIGKILL): every finished run is on disk', stderr.splitlines()[-1])
        self.assertNotIn('Traceback', stderr)
        for pid in workers:
            self.assertFalse(Path(f'/proc/{pid}').exists())

    def test_ranks_must_agree(self) -> None:
        store = torch.distributed.HashStore()
        store.set('search', json.dumps([{'seed': 42}, []]))
        flags = grid_search.build_parser().parse_args(['--dataset', 'synthetic', '--seed', '1'])
        with (
            mock.patch.object(grid_search, 'torchrun_store', return_value=store),
            self.assertRaisesRegex(FlagError, 'the search of rank 0 belongs to another run'),
        ):
            grid_search.follow(flags)
