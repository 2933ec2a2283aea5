"""The grid search: each run once, whole, resumable, the same on one process and on two."""

import contextlib
import io
import os
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

import experiment
import grid_search_mlp_pytorch as grid_search
import train_mlp_pytorch
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
        with self.assertRaisesRegex(experiment.FlagError, 'its seed is 42, here it is 1'):
            self.search_here(self.directory / 'a', '--seed', '1')

    def test_two_ranks(self) -> None:
        done = torchrun(ROOT / 'grid_search_mlp_pytorch.py', *self.GRID, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.search_here(self.directory / 'one')
        one, two = ((self.directory / name / self.CSV).read_text() for name in ('one', 'two'))
        self.assertEqual(one, two)
        self.assertEqual(len(files_under(self.directory / 'two/figures')), 3)
        self.assertEqual(done.stdout.count('best of 16'), 1)
