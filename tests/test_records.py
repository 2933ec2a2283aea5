"""What a run leaves: its record, its files under their names, its network, several seeds; and however it ends."""

import contextlib
import io
import json
import math
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

import checkpoints
import experiment
import files
import flags
import parsing
import plots
import script
import stopping
import train_mlp_numpy
from checkpoints import NetworkError, load_network
from cifar10_utils import get_cifar10
from parsing import FlagError
from tests.helpers import ROOT, files_under, only, read_rows, refused, run_script, start_script, temporary_directory

SHORT = ('--dataset', 'synthetic', '--max_steps', '4', '--eval_freq', '2', '--dnn_hidden_units', '5')


class RecordTest(unittest.TestCase):
    def record(self, max_steps: int = 5, eval_freq: int = 2, **kwargs: object) -> experiment.RunRecord:
        run_flags = {'max_steps': max_steps, 'eval_freq': eval_freq}
        return experiment.RunRecord('mlp', 'MLP', 'cifar10', run_flags, quiet=True, **kwargs)

    def follow(self, losses: list[float], **kwargs: object) -> experiment.RunRecord:
        record = self.record(len(losses), **kwargs)
        with record.running() as steps:
            for step in steps:
                if record.evaluation_due(step, losses[step]):
                    record.add(step, (0.5, losses[step]), (0.1 * (step % 3), 1.0))
        return record

    def test_evaluations(self) -> None:
        record = self.follow([1.0] * 5)
        self.assertEqual([row['step'] for row in record.rows], [1, 3, 5])
        self.assertEqual(record.best()['step'], 3)
        self.assertEqual((record.status, record.exit_status), ('finished', 0))
        self.assertEqual([row['step'] for row in self.follow([1.0] * 4).rows], [1, 3, 4])
        self.assertEqual([row['step'] for row in self.follow([1.0] * 6, evaluate_after=[2]).rows], [1, 2, 3, 5, 6])

    def test_divergence_ends_the_run(self) -> None:
        record = self.follow([1.0, math.nan, 1.0, 1.0, 1.0])
        self.assertEqual([row['step'] for row in record.rows], [1, 2])
        self.assertEqual((record.status, record.exit_status), ('diverged', 3))
        self.assertEqual([row['step'] for row in self.follow([1.0, math.inf, 1.0]).rows], [1, 2])
        with temporary_directory() as directory:
            record.write(directory)
            self.assertIsNone(json.loads((directory / 'results/mlp.json').read_text())['last']['train_loss'])

    def test_what_is_not_finite_is_never_the_best(self) -> None:
        def row(step: int, accuracy: float, loss: float) -> dict:
            return {'step': step, 'test_acc': accuracy, 'test_loss': loss, 'train_loss': 1.0}

        good, nan, infinite = row(1, 0.09, 2.0), row(2, 0.1, math.nan), row(3, 0.1, math.inf)
        self.assertIs(experiment.best_row([nan, good, infinite]), good)
        self.assertIs(experiment.best_row([nan, infinite]), infinite)

    def test_best_is_picked_by_validation_accuracy_where_there_is_one(self) -> None:
        record = self.record()
        with record.running():
            record.add(0, (0.5, 1.0), (0.9, 1.0), (0.2, 1.0))
            record.add(2, (0.5, 1.0), (0.1, 1.0), (0.3, 0.25))
        self.assertEqual((record.best()['step'], record.best()['val_loss']), (3, 0.25))
        self.assertIn('validation', record.table())

    def test_the_network_that_is_kept(self) -> None:
        """That of the best validation accuracy, or the last; never one that is not finite."""
        for accuracies, expected in (((0.2, 0.3, 0.1), 2), ((0.3, 0.3, 0.1), 1), (None, 3)):
            network = mock.Mock(suffix='.npz')
            record = self.record(network=network)
            with record.running():
                for step in range(3):
                    validation = accuracies and (accuracies[step], 1.0)
                    record.add(step, (0.5, 1.0), (0.4 - 0.1 * step, 1.0), validation)
                record.add(3, (0.5, 1.0), (0.9, math.nan), accuracies and (0.9, 1.0))
            self.assertEqual(record.kept_row['step'], expected)
            self.assertEqual(network.keep.call_count, 3 if accuracies is None else expected)

    def test_what_is_written_says_what_it_is_of(self) -> None:
        network = mock.Mock(suffix='.npz')
        with mock.patch('time.perf_counter', side_effect=[10.0, 12.5]):
            record = self.record(network=network)
            with record.running():
                record.add(0, (0.6, 2.0), (0.1, 3.0), (0.1, 4.0))
                record.add(2, (0.5, 2.0), (0.1, 3.0), (0.3, 4.0))
                record.add(4, (0.4, 2.0), (0.1, 3.0), (0.2, 4.0))
        with temporary_directory() as directory:
            record.write(directory)
            summary = json.loads((directory / 'results/mlp.json').read_text())
        self.assertEqual(summary['seconds'], 2.5)
        self.assertEqual((summary['best'], summary['last']), (record.rows[1], record.rows[2]))
        row = {'step': 5, 'train_acc': 0.4, 'train_loss': 2.0, 'test_acc': 0.1, 'test_loss': 3.0, 'val_acc': 0.2}
        self.assertEqual(summary['last'], row | {'val_loss': 4.0})
        self.assertEqual(network.save.call_args.args[1]['row'], record.rows[1])

    def test_a_run_goes_on_from_its_state(self) -> None:
        first, second = self.record(), self.record()
        with mock.patch('time.perf_counter', side_effect=[10.0, 12.0, 13.0]), first.running():
            first.add(0, (0.5, 1.0), (0.1, 1.0))
            state = first.state()
        second.restore(state)
        self.assertEqual((second.rows, second.kept_row), (first.rows, first.rows[0]))
        with mock.patch('time.perf_counter', side_effect=[100.0, 107.0]), second.running(2) as steps:
            self.assertEqual(list(steps), [2, 3, 4])
        self.assertEqual((first.seconds, second.seconds), (3.0, 2.0 + 7.0))
        state['status'] = 'diverged'
        second.restore(state)
        self.assertEqual(second.status, 'diverged')

    def test_a_run_that_ends_before_any_evaluation_leaves_nothing(self) -> None:
        with temporary_directory() as directory:
            record = self.record(output_dir=str(directory))
            with record.running():
                raise stopping.Stopped(signal.SIGTERM)
            self.assertEqual((files_under(directory), record.exit_status), ([], 143))

    def test_one_file_that_cannot_be_written_does_not_cost_the_others(self) -> None:
        record = self.follow([1.0] * 3)
        with temporary_directory() as directory, contextlib.redirect_stderr(io.StringIO()) as stderr:
            (directory / 'results/mlp.csv').mkdir(parents=True)
            with mock.patch.object(experiment, 'plot_curves', side_effect=ValueError('no font')):
                written = record.write(directory)
        self.assertEqual([path.name for path in written], ['mlp.json'])
        self.assertEqual(record.exit_status, 1)
        self.assertRegex(
            stderr.getvalue(), r'cannot write .*mlp.csv: .*is a directory\ncannot write .*mlp.png: no font\n'
        )

    def test_a_signal_finds_the_row_and_the_network_of_one_step(self) -> None:
        kept = []

        def keep() -> None:
            signal.raise_signal(signal.SIGTERM)
            kept.append(record.rows[-1])

        record = self.record(network=mock.Mock(suffix='.npz', keep=keep))
        with stopping.stopping_signals(), record.running():
            record.add(0, (0.5, 1.0), (0.1, 1.0))
        self.assertEqual((kept, record.kept_row, record.status), (record.rows, record.rows[0], 'interrupted'))

    def test_a_signal_as_a_run_ends_costs_no_file(self) -> None:
        with temporary_directory() as directory:
            record = self.record(output_dir=str(directory))
            with (
                self.assertRaises(stopping.Stopped),
                stopping.stopping_signals(),
                mock.patch('tqdm.tqdm.close', side_effect=lambda: signal.raise_signal(signal.SIGTERM)),
                record.running(),
            ):
                record.add(0, (0.5, 1.0), (0.1, 1.0))
            for name in ('figures/mlp.png', 'results/mlp.csv', 'results/mlp.json'):
                self.assertIn(name, files_under(directory))

    def test_the_evaluations_of_a_process_that_is_killed_are_there(self) -> None:
        with temporary_directory() as directory:
            running, csv = directory / 'results/mlp.csv.running', directory / 'results/mlp.csv'
            for fails in (True, False):
                record = self.record(output_dir=str(directory))
                with (
                    contextlib.redirect_stderr(io.StringIO()),
                    mock.patch.object(record, 'attempt', return_value=False) if fails else contextlib.nullcontext(),
                    record.running() as steps,
                ):
                    for step in steps:
                        record.add(step, (0.5, 1.0), (0.1, 1.0))
                        self.assertEqual(
                            [row['step'] for row in read_rows(running)], [f'{i + 1}' for i in range(step + 1)]
                        )
                        self.assertFalse(csv.exists())
                self.assertEqual((running.exists(), csv.exists()), (fails, not fails))
            with mock.patch.object(experiment, 'write_csv', side_effect=OSError('full')):
                record.add(5, (0.5, 1.0), (0.1, 1.0))
            self.assertEqual((len(record.rows), record.exit_status), (6, 0))

    def test_nothing_takes_the_place_of_a_finished_run(self) -> None:
        with temporary_directory() as directory:
            self.follow([1.0] * 3).write(directory)
            before = (directory / 'results/mlp.csv').read_text()
            self.follow([math.nan]).write(directory)
            self.assertEqual((directory / 'results/mlp.csv').read_text(), before)
            self.assertTrue((directory / 'results/mlp_diverged.csv').exists())
            self.follow([1.0] * 4).write(directory)
            self.assertNotEqual((directory / 'results/mlp.csv').read_text(), before)

    def test_a_name_that_ends_like_that_of_an_unfinished_run(self) -> None:
        with temporary_directory() as directory:
            for name in ('mlp', 'mlp_diverged', 'mlp_running'):
                run_flags = {'max_steps': 1, 'eval_freq': 2, 'name': name}
                record = experiment.RunRecord('mlp', 'MLP', 'cifar10', run_flags, output_dir=str(directory), quiet=True)
                with record.running():
                    record.add(0, (0.5, 1.0), (0.1, 1.0))
            before = {path: path.read_bytes() for path in (directory / 'results').iterdir()}
            self.follow([math.nan], output_dir=str(directory))
            after = {path: path.read_bytes() for path in (directory / 'results').iterdir()}
        self.assertEqual(after, after | before)
        self.assertEqual({path.name for path in after.keys() - before.keys()},
                         {'mlp_diverged_diverged.csv', 'mlp_diverged_diverged.json'})  # fmt: skip

    def test_a_name_that_another_run_takes_meanwhile(self) -> None:
        with temporary_directory() as directory:
            first, second = self.record(1, output_dir=str(directory)), self.record(2, output_dir=str(directory))
            for record in (first, second):
                with record.running():
                    record.add(0, (0.5, 1.0), (0.1, 1.0))
            names = {path.name for path in (directory / 'results').iterdir()}
            self.assertEqual(names, {f'mlp{more}.{kind}' for more in ('', f'_process={os.getpid()}')
                                     for kind in ('csv', 'json')})  # fmt: skip
            self.assertEqual(json.loads((directory / 'results/mlp.json').read_text())['flags']['max_steps'], 1)

    def test_what_the_terminal_cannot_show_becomes_a_question_mark(self) -> None:
        for encoding, shown in (('ascii', '0.5 ? 0.1\n'), ('utf-8', '0.5 ± 0.1\n')):
            buffer = io.BytesIO()
            with contextlib.redirect_stdout(io.TextIOWrapper(buffer, encoding=encoding)):
                experiment.say('0.5 ± 0.1')
                self.assertEqual(buffer.getvalue().decode(), shown)

    def test_an_unfinished_run_has_the_name_while_no_finished_one_has(self) -> None:
        with temporary_directory() as directory:
            self.follow([math.nan]).write(directory)
            self.follow([1.0, math.nan]).write(directory)
            self.assertEqual(json.loads((directory / 'results/mlp.json').read_text())['status'], 'diverged')
            self.assertEqual(len(read_rows(directory / 'results/mlp.csv')), 2)
            self.follow([1.0]).write(directory)
            self.assertEqual(json.loads((directory / 'results/mlp.json').read_text())['status'], 'finished')

    def test_an_error_ends_the_run_after_its_files_are_written(self) -> None:
        with temporary_directory() as directory:
            record = self.record(output_dir=str(directory))
            with self.assertRaises(MemoryError), record.running() as steps:
                for step in steps:
                    record.add(step, (0.5, 1.0), (0.1, 1.0))
                    if step == 2:
                        raise MemoryError
            self.assertEqual(len(read_rows(directory / 'results/mlp.csv')), 3)
            self.assertEqual(json.loads((directory / 'results/mlp.json').read_text())['status'], 'failed')

    def test_json_has_no_nan_at_any_depth(self) -> None:
        with temporary_directory() as directory:
            files.write_json(directory / 'x.json', {'a': [1.0, math.nan, {'b': (math.inf,)}]})
            text = (directory / 'x.json').read_text()
        self.assertEqual(json.loads(text), {'a': [1.0, None, {'b': [None]}]})


class NameTest(unittest.TestCase):
    DEFAULTS = vars(train_mlp_numpy.build_parser().parse_args([]))

    def name(self, *args: str, dataset: str = 'cifar10') -> str:
        run_flags = vars(train_mlp_numpy.build_parser().parse_args(args))
        return experiment.run_name('mlp_numpy', dataset, run_flags, self.DEFAULTS)

    def test_names_say_what_differs_from_the_defaults(self) -> None:
        self.assertEqual(self.name(), 'mlp_numpy')
        self.assertEqual(self.name('--learning_rate', '0.01'), 'mlp_numpy_learning_rate=0.01')
        self.assertEqual(self.name('--learning_rate', '2e-3', '--data_dir', 'x', '--output_dir', 'y'), 'mlp_numpy')
        self.assertEqual(
            self.name('--dnn_hidden_units', '200,100', '--seed', '1', dataset='synthetic'),
            'mlp_numpy_synthetic_seed=1_dnn_hidden_units=200,100',
        )
        self.assertEqual(self.name('--name', 'mine', '--seed', '3'), 'mine')

    def test_long_names_are_cut_and_stay_different(self) -> None:
        units = ','.join(['100'] * 60)
        names = [self.name('--dnn_hidden_units', f'{units},{last}') for last in (1, 2)]
        self.assertNotEqual(*names)
        self.assertLessEqual(max(map(len, names)), flags.MAX_NAME)
        self.assertEqual(names[0], self.name('--dnn_hidden_units', f'{units},1'))

    def test_what_no_file_name_may_have_is_cut_out_and_stays_different(self) -> None:
        names = [experiment.run_name('s', 'cifar10', {'x': x}, {'x': ''}) for x in ('a/b', 'ab', 'a b', '../ab')]
        self.assertEqual(names[1], 's_x=ab')
        self.assertEqual(len(set(names)), 4)
        for name in names:
            self.assertRegex(name, r'^[\w=.]+$')

    def test_several_seeds_have_theirs_at_the_end(self) -> None:
        run_flags = vars(train_mlp_numpy.build_parser().parse_args(['--seeds', '42,7']))
        for seed in (42, 7):
            name = experiment.run_name('mlp_numpy', 'cifar10', {**run_flags, 'seed': seed}, self.DEFAULTS)
            self.assertEqual(name, f'mlp_numpy_seed={seed}')

    def test_bad_names(self) -> None:
        for name in ('', 'a/b', '.hidden', 'a\nb', 'x' * 151, '..', 'a\\b'):
            self.assertIn('--name', refused(self, train_mlp_numpy, f'--name={name}'))

    def test_the_title_says_the_same_in_words(self) -> None:
        run_flags = {**self.DEFAULTS, 'dnn_hidden_units': [20, 10], 'learning_rate': 0.1}
        record = experiment.RunRecord('mlp_numpy', 'MLP in NumPy', 'cifar10', run_flags, self.DEFAULTS)
        self.assertEqual(record.title, 'MLP in NumPy on CIFAR-10, learning rate 0.1, hidden units 20,10')


class FilesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))
        self.path = self.directory / 'file'

    def write(self, path: Path, text: bytes = b'new') -> None:
        with files.atomic_file(path) as file:
            file.write(text)

    def test_a_file_that_cannot_be_finished_leaves_the_old_one(self) -> None:
        self.path.write_text('old')
        with self.assertRaises(RuntimeError), files.atomic_file(self.path) as file:
            file.write(b'half of the n')
            raise RuntimeError
        self.assertEqual((self.path.read_text(), files_under(self.directory)), ('old', ['file']))

    def test_the_file_is_closed_before_it_takes_its_place(self) -> None:
        """Windows refuses to replace a file by one that is still open."""
        opened = []
        replace = os.replace

        def watched(source: str, target: str) -> None:
            self.assertTrue(opened[0].closed)
            fsync.assert_called_once()  # or a machine that loses its power may have a file without its contents
            replace(source, target)

        with (
            mock.patch('os.replace', watched),
            mock.patch('os.fsync') as fsync,
            files.atomic_file(self.path) as file,
        ):
            opened.append(file)
            file.write(b'new')
        self.assertEqual(self.path.read_bytes(), b'new')

    def test_leftovers_of_killed_processes_are_cleared_away(self) -> None:
        with subprocess.Popen([sys.executable, '-c', '']) as process:
            process.wait()
        dead = self.path.with_name(files.temporary_path(self.path).name.replace(str(os.getpid()), str(process.pid)))
        alive = self.path.with_name(dead.name.replace(str(process.pid), '1'))
        others = self.path.with_name('.file.elsewhere.123.tmp')
        for leftover in (dead, alive, others):
            leftover.touch()
        self.write(self.path)
        self.assertEqual(set(self.directory.iterdir()), {self.path, alive, others})
        hour_ago = time.time() - 3600
        os.utime(others, (hour_ago, hour_ago))
        self.write(self.path)
        self.assertTrue(others.exists())
        os.utime(others, (0, 0))
        files.check_can_write(self.path)
        self.assertEqual(set(self.directory.iterdir()), {self.path, alive})

    def test_links_stay_links(self) -> None:
        target = self.directory / 'target'
        target.write_text('old')
        self.path.symlink_to(target)
        self.write(self.path)
        self.assertTrue(self.path.is_symlink())
        self.assertEqual(target.read_bytes(), b'new')
        target.unlink()
        files.check_can_write(self.path)  # a link to a file that is yet to be written
        self.write(self.path)
        self.assertEqual(target.read_bytes(), b'new')

    def test_folders_that_are_missing_are_made_by_the_writing_alone(self) -> None:
        below = self.directory / 'a/b/file'
        files.check_can_write(below)
        self.assertEqual(files_under(self.directory), [])
        self.write(below)
        self.assertEqual(below.read_bytes(), b'new')

    def test_links_to_nowhere_and_what_is_no_file_are_refused(self) -> None:
        (self.directory / 'lost').symlink_to('/nonexistent/disk')
        os.mkfifo(self.directory / 'pipe')
        for path in ('lost', 'lost/below/file', 'pipe', '.'):
            for attempt in (files.check_can_write, self.write):
                with self.assertRaises(OSError, msg=f'{path} {attempt}'):
                    attempt(self.directory / path)
        with self.assertRaisesRegex(OSError, 'is no regular file'):
            files.check_can_write('/dev/null')
        with self.assertRaisesRegex(IsADirectoryError, 'is a directory'):
            files.check_can_write(self.directory)

    def test_the_check_finds_what_the_writing_would(self) -> None:
        with self.assertRaises(OSError):
            files.check_can_write(self.directory / ('x' * 250))  # fits, but its temporary name does not
        with mock.patch('builtins.open', side_effect=PermissionError), self.assertRaises(PermissionError):
            files.check_can_write(self.path)
        self.assertEqual(files_under(self.directory), [])


class EndsTest(unittest.TestCase):
    """How the process ends, and what is then on disk."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))
        for number in stopping.STOP_SIGNALS:  # which nohup, say, has the tests ignore
            self.addCleanup(signal.signal, number, signal.signal(number, signal.default_int_handler))

    def stop(self, signum: int) -> tuple[int, str]:
        args = ('--dataset', 'synthetic', '--output_dir', self.directory, '--max_steps', '1000000', '--eval_freq', '10')
        with start_script('train_mlp_numpy.py', *args) as process:
            process.stdout.readline()
            process.send_signal(signum)
            _, stderr = process.communicate(timeout=30)
        return process.returncode, stderr

    def test_signals(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.assertEqual(self.stop(signum), (128 + signum, ''))
            path = only(self.directory, '.json')
            self.assertEqual(json.loads(path.read_text())['status'], 'interrupted')
            path.unlink()
            only(self.directory, '.png').unlink()
            only(self.directory, '.npz').unlink()

    def test_a_signal_that_comes_again_does_not_cost_the_files(self) -> None:
        with stopping.stopping_signals():
            with self.assertRaises(stopping.Stopped) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), signum)
        self.assertEqual(stopping.exit_status(caught.exception), 143)
        self.assertEqual(stopping.exit_status(KeyboardInterrupt()), 130)

    def test_what_is_being_written_when_a_signal_comes_is_finished(self) -> None:
        done = []
        with stopping.stopping_signals(), self.assertRaises(stopping.Stopped), stopping.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append('written')
        self.assertEqual(done, ['written'])

    def test_a_signal_amid_a_file_ends_the_run_even_where_the_file_fails(self) -> None:
        """PyTorch's writer makes of an interrupt an error of its own."""
        record = experiment.RunRecord('x', 'x', 'synthetic', {'max_steps': 1})

        def write(_: str) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                raise RuntimeError('unexpected position') from None

        with stopping.stopping_signals(), self.assertRaises(stopping.Stopped):
            record.attempt('x', write)

        def fail(_: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError('no space')

        with (
            stopping.stopping_signals(),
            self.assertRaises(stopping.Stopped),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            record.attempt('x', fail)

    def test_a_signal_of_which_an_error_was_made(self) -> None:
        """As Python 3.11 does with what a descriptor of a new class raises."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            with self.assertRaises(stopping.Stopped) as caught, stopping.stopping_signals():
                try:
                    os.kill(os.getpid(), signum)
                except KeyboardInterrupt as stop:
                    raise RuntimeError('Error calling __set_name__') from stop
            self.assertEqual(stopping.exit_status(caught.exception), 128 + signum)
        with self.assertRaisesRegex(RuntimeError, 'of its own'), stopping.stopping_signals():
            raise RuntimeError('of its own')

    def test_a_signal_that_is_ignored_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        with stopping.stopping_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    def test_handlers_are_put_back_and_threads_have_none(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.getsignal(number) for number in numbers]
        with stopping.stopping_signals():
            inside = [signal.getsignal(number) for number in numbers]
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
        self.assertTrue(all(handler not in before for handler in inside))
        entered = []

        def in_a_thread() -> None:
            with stopping.stopping_signals():
                entered.append(True)

        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        self.assertEqual(entered, [True])

    def test_a_signal_outside_of_a_run(self) -> None:
        for stop, status in ((stopping.Stopped(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)):
            work = mock.Mock(side_effect=stop)
            with mock.patch.object(sys, 'argv', ['x']), contextlib.redirect_stderr(io.StringIO()) as stderr:
                self.assertEqual(script.run_script(parsing.OneLineParser(), work), status)
            self.assertEqual(stderr.getvalue(), 'interrupted\n')
            closed = mock.Mock(write=mock.Mock(side_effect=OSError('closed')))
            with mock.patch.object(sys, 'argv', ['x']), contextlib.redirect_stderr(closed):
                self.assertEqual(script.run_script(parsing.OneLineParser(), work), status)
            self.assertTrue(closed.write.called)

    def test_divergence_is_a_result(self) -> None:
        done = run_script('train_mlp_numpy.py', *SHORT, '--output_dir', self.directory, '--learning_rate', '1e300')
        self.assertEqual((done.returncode, done.stderr), (3, ''))
        summary = json.loads(only(self.directory, '.json').read_text())
        self.assertEqual(summary['status'], 'diverged')
        self.assertIn(f'diverged at step {summary["last"]["step"]}', done.stdout)

    @unittest.skipUnless(Path('/dev/full').exists(), 'needs /dev/full')
    def test_output_that_nobody_takes(self) -> None:
        command = f'{sys.executable} {ROOT}/train_mlp_numpy.py {" ".join(SHORT)} --output_dir {self.directory}'
        for i, redirect in enumerate(('>&-', '> /dev/full', '>&- 2>&-', '| head -1', '2> /dev/full')):
            done = subprocess.run(f'{command}/{i} {redirect}', shell=True, text=True, capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, ''), redirect)
            self.assertEqual(len(files_under(self.directory / str(i))), 7, redirect)

    @unittest.skipUnless(Path('/dev/full').exists(), 'needs /dev/full')
    def test_the_last_words_that_nobody_takes(self) -> None:
        """Those that still wait in the buffer when the work is done."""
        program = (
            'import parsing, script; print(script.run_script(parsing.OneLineParser(), lambda _: print("x") or 0), '
        )
        program += 'file=__import__("sys").stderr)'
        with open('/dev/full', 'w') as full:
            buffered = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
            done = subprocess.run(
                [sys.executable, '-c', program], cwd=ROOT, env=buffered, stdout=full, stderr=subprocess.PIPE
            )
        self.assertEqual((done.returncode, done.stderr), (0, b'0\n'))

    def test_what_cannot_be_written_is_found_before_the_training(self) -> None:
        (self.directory / 'out').symlink_to('/nonexistent/disk')
        (self.directory / 'there').mkdir()
        (self.directory / 'there/results').symlink_to('/nonexistent/disk')
        for output_dir in ('out', 'there'):
            self.assertIn(
                '/nonexistent/disk', refused(self, train_mlp_numpy, '--output_dir', str(self.directory / output_dir))
            )
        (self.directory / 'here/networks/mlp_numpy_synthetic.npz').mkdir(parents=True)
        self.assertIn('is a directory', refused(self, train_mlp_numpy, '--output_dir', str(self.directory / 'here')))

    def test_home(self) -> None:
        with mock.patch.dict(os.environ, {'HOME': str(self.directory)}):
            self.assertEqual(parsing.file_path('~/x'), str(self.directory / 'x'))

    def test_figures_whatever_the_environment_says_of_matplotlib(self) -> None:
        (self.directory / 'matplotlibrc').write_text('text.usetex: True\nfigure.facecolor: red\n')
        for i, backend in enumerate(('module://matplotlib_inline.backend_inline', 'Qt4Agg')):
            done = run_script(
                'train_mlp_numpy.py', *SHORT, '--output_dir', f'{self.directory}/{i}',
                cwd=self.directory, env={**os.environ, 'MPLBACKEND': backend},
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stderr), (0, ''))
            self.assertTrue(only(self.directory / str(i), '.png').stat().st_size > 10_000)

    def test_the_environment_is_left_as_it_was(self) -> None:
        with mock.patch.dict(os.environ, {'MPLBACKEND': 'mine'}):
            plots.new_figure('title')
            self.assertEqual(os.environ['MPLBACKEND'], 'mine')

    def test_errors_of_the_machine_are_one_line(self) -> None:
        def end(error: Exception) -> tuple[int, str]:
            parser = parsing.OneLineParser(prog='x')
            with (
                contextlib.redirect_stderr(io.StringIO()) as stderr,
                self.assertRaises(SystemExit) as caught,
                parsing.one_line_errors(parser),
            ):
                raise error
            return caught.exception.code, stderr.getvalue()

        self.assertEqual(end(FlagError('a\nb'))[0], 2)
        for error in (MemoryError('1 TB'), RuntimeError('no\nmemory'), OSError(28, 'No space left', 'file')):
            status, text = end(error)
            self.assertEqual((status, text.count('\n')), (1, 1))
        self.assertEqual(end(RuntimeError())[1], 'x: RuntimeError\n')
        with self.assertRaises(TypeError), parsing.one_line_errors(parsing.OneLineParser()):
            raise TypeError


class KeptNetworkTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def train(self, *args: str) -> experiment.RunRecord:
        parsed = train_mlp_numpy.build_parser().parse_args([*SHORT, *args])
        return train_mlp_numpy.train(parsed, str(self.directory), quiet=True)

    def test_what_is_loaded_gives_the_recorded_figures(self) -> None:
        test = get_cifar10(dataset='synthetic')['test']
        for i, more in enumerate(((), ('--dtype', 'float32', '--validation_size', '3000', '--neg_slope', '0.1'))):
            record = self.train('--max_steps', '40', '--learning_rate', '0.01', '--name', str(i), *more)
            network = load_network(self.directory / f'networks/{i}.npz')
            row = network.description['row']
            self.assertIn(row, record.rows)
            self.assertEqual(row, record.best() if more else record.rows[-1])
            flat = network.probabilities(test.pixels)
            self.assertEqual(flat.dtype, record.flags['dtype'])
            self.assertEqual((flat.argmax(axis=1) == test.classes).mean(), row['test_acc'])
            self.assertAlmostEqual(-np.log(flat[np.arange(len(flat)), test.classes]).mean(), row['test_loss'], places=5)
            np.testing.assert_array_equal(network.probabilities(test.pixels.reshape(-1, 3, 32, 32)), flat)
            centred = test.pixels[:7] - network.mean_image
            np.testing.assert_allclose(network.probabilities(centred), flat[:7], rtol=1e-5)
            self.assertEqual(network.probabilities(test.pixels[:0]).shape, (0, 10))
            self.assertEqual(network.description['classes'][3], 'cat')
            self.assertEqual(network.description['script'], 'mlp_numpy')
            self.assertEqual(network.description['flags']['dnn_hidden_units'], [5])
            for wrong in (test.pixels[:, :5], test.pixels[0], test.pixels.astype(int)):
                with self.assertRaisesRegex(ValueError, 'pixels must '):
                    network.probabilities(wrong)

    def test_damaged_files(self) -> None:
        self.train('--name', 'good')
        path = self.directory / 'networks/good.npz'
        whole = path.read_bytes()
        damaged = [whole[: len(whole) // 2], b'', b'nonsense', whole[:100] + b'x' + whole[101:]]
        for i in range(40):
            at = len(whole) * i // 40
            damaged.append(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        refusals = 0
        for contents in damaged:
            path.write_bytes(contents)
            try:
                load_network(path).probabilities(np.zeros((1, 3072), np.uint8))
            except NetworkError as error:
                refusals += 1
                self.assertNotIn('\n', str(error))
        self.assertGreater(refusals, len(damaged) // 2)  # the others hit bytes that nobody reads
        for name in ('none.npz', 'none.txt'):
            with self.assertRaises(NetworkError):
                load_network(self.directory / name)

    def test_a_network_that_nobody_has_made_known(self) -> None:
        self.train('--name', 'good')
        path = self.directory / 'networks/good.npz'
        for networks, words in (
            ({}, "cannot be built again: NETWORKS in checkpoints.py has no line for 'mlp_numpy'"),
            ({'mlp_numpy': ('mlp_numpy', 'Mlp')}, 'there is no Mlp in mlp_numpy.py'),
            ({'mlp_numpy': ('mlp_nympy', 'MLP')}, 'there is no MLP in mlp_nympy.py'),
        ):
            with (
                mock.patch.dict(checkpoints.NETWORKS, networks, clear=True),
                self.assertRaisesRegex(NetworkError, words),
            ):
                load_network(path)

    def test_arguments_that_no_file_could_hold(self) -> None:
        with self.assertRaisesRegex(TypeError, 'not JSON serializable'):
            checkpoints.KeptNetwork('convnet_pytorch', None, {'block': float}, np.zeros(3072, np.float32))

    def test_no_code_is_run_from_a_file(self) -> None:
        trace = self.directory / 'trace'

        class Hostile:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(trace),)

        np.savez(self.directory / 'x.npz', description=np.array([Hostile()], dtype=object))
        with self.assertRaisesRegex(NetworkError, 'is damaged or no network'):
            load_network(self.directory / 'x.npz')
        self.assertFalse(trace.exists())


class SeedsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def main(self, *args: str) -> tuple[int, str]:
        argv = ['train_mlp_numpy.py', *SHORT, '--output_dir', str(self.directory), *args]
        with mock.patch.object(sys, 'argv', argv), contextlib.redirect_stdout(io.StringIO()) as out:
            return script.main(train_mlp_numpy.build_parser(), train_mlp_numpy.train), out.getvalue()

    def summary(self) -> dict:
        return json.loads((self.directory / 'results/x.json').read_text())

    def assert_refused(self, words: str, *args: str) -> None:
        """The command ends in one line with these words, and leaves all files as they are."""
        before = {path: path.read_bytes() for path in self.directory.rglob('*') if path.is_file()}
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as stop:
            self.main(*args)
        self.assertEqual(stop.exception.code, 2)
        self.assertRegex(stderr.getvalue().splitlines()[-1], words)
        self.assertEqual(before, {path: path.read_bytes() for path in self.directory.rglob('*') if path.is_file()})

    def test_a_record_and_a_network_each_and_one_table(self) -> None:
        status, out = self.main('--seeds', '1,2', '--name', 'x')
        self.assertEqual(status, 0)
        rows = [read_rows(self.directory / f'results/x_seed={seed}.csv')[-1] for seed in (1, 2)]
        accuracies = [float(row['test_acc']) for row in rows]
        self.assertNotEqual(rows[0], rows[1])
        self.assertEqual(self.summary()['seeds'], [1, 2])
        self.assertAlmostEqual(self.summary()['mean']['last']['test_acc'], np.mean(accuracies))
        self.assertAlmostEqual(self.summary()['std']['last']['test_acc'], np.std(accuracies, ddof=1))
        self.assertIn(f'{np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1):.4f}', out)
        self.assertEqual(len(list((self.directory / 'networks').iterdir())), 2)
        self.assertEqual(out.count('mean ± standard deviation over 2 seed(s)'), 1)

    def test_one_seed_has_no_standard_deviation(self) -> None:
        out = self.main('--seeds', '1', '--name', 'x')[1]
        self.assertNotIn('nan', out)
        self.assertIn(f'{self.summary()["mean"]["last"]["test_acc"]:.4f}', out)
        self.assertIsNone(self.summary()['std']['last']['test_acc'])

    def test_mean_and_standard_deviation_of_the_best_and_the_last_row(self) -> None:
        records = []
        for seed, accuracies in ((1, (0.1, 0.5, 0.2)), (2, (0.2, 0.1, 0.1)), (3, (0.1, 0.2, 0.6))):
            run_flags = {'max_steps': 3, 'eval_freq': 1, 'seed': seed, 'seeds': [1, 2, 3]}
            record = experiment.RunRecord('mlp', 'MLP', 'cifar10', run_flags, quiet=True)
            with record.running():
                for step, accuracy in enumerate(accuracies):
                    record.add(step, (0.5, 1.0), (accuracy, 1.0))
            records.append(record)
        with contextlib.redirect_stdout(io.StringIO()):
            script.write_seeds(records, str(self.directory))
        summary = json.loads((self.directory / 'results/mlp.json').read_text())
        for which, values in (('best', (0.5, 0.2, 0.6)), ('last', (0.2, 0.1, 0.6))):
            self.assertAlmostEqual(summary['mean'][which]['test_acc'], np.mean(values))
            self.assertAlmostEqual(summary['std'][which]['test_acc'], np.std(values, ddof=1))
        self.assertAlmostEqual(summary['mean']['best']['step'], (2 + 1 + 3) / 3)

    def test_the_same_command_goes_on(self) -> None:
        self.main('--seeds', '1,2', '--name', 'x')
        before = only(self.directory / 'networks', 'seed=1.npz').stat().st_mtime_ns
        status, out = self.main('--seeds', '1,2,3', '--name', 'x')
        self.assertEqual((status, out.count('is done already')), (0, 2))
        self.assertEqual(only(self.directory / 'networks', 'seed=1.npz').stat().st_mtime_ns, before)
        self.assertEqual(self.summary()['seeds'], [1, 2, 3])
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit):
            self.main('--seeds', '1', '--name', 'x', '--learning_rate', '1')
        self.assertIn('its learning_rate is 0.002, here it is 1.0', stderr.getvalue())

    def test_a_record_without_rows_is_done_again(self) -> None:
        self.main('--seeds', '1', '--name', 'x')
        path = self.directory / 'results/x_seed=1.csv'
        rows = path.read_text()
        for cut in ('', rows.splitlines()[0] + '\n'):
            path.write_text(cut)
            self.main('--seeds', '1', '--name', 'x')
            self.assertEqual(path.read_text(), rows)

    def test_a_run_whose_network_could_not_be_written_is_done_again(self) -> None:
        for args in (['--seeds', '1'], ['--seeds', '1,2']):
            with (
                mock.patch.object(checkpoints.KeptNetwork, 'save', side_effect=OSError('full')),
                contextlib.redirect_stderr(io.StringIO()) as stderr,
            ):
                self.assertEqual(self.main(*args, '--name', 'x')[0], 1)
            self.assertIn(f'x_seed={args[1][-1]}.npz: full', stderr.getvalue())
            self.assertNotIn(f'seed={args[1][-1]} is done', self.main(*args, '--name', 'x')[1])
        self.assertEqual(len(list((self.directory / 'networks').iterdir())), 2)
        self.assertEqual(self.main(*args, '--name', 'x')[1].count('is done already'), 2)

    def test_a_record_that_another_program_has_changed(self) -> None:
        self.main('--seeds', '1', '--name', 'x')
        path = self.directory / 'results/x_seed=1.csv'
        path.write_text(path.read_text().replace(',', ';'))
        self.assert_refused('x_seed=1.csv is damaged: delete it, and', '--seeds', '1,2', '--name', 'x')

    def test_a_name_that_other_results_have(self) -> None:
        (self.directory / 'results').mkdir()
        (self.directory / 'results/x.json').write_text('{"cells": []}')
        for args in ([], ['--seeds', '1']):
            self.assert_refused('x.json holds what is no run', *args, '--name', 'x')

    def test_all_are_of_the_data_set_of_the_first(self) -> None:
        args = [*SHORT, '--output_dir', str(self.directory), '--seeds', '1,2,3', '--dataset', 'auto']
        train = mock.Mock(return_value=mock.Mock(dataset='synthetic', status='finished'))
        script.train_seeds(train_mlp_numpy.build_parser().parse_args(args), train)
        self.assertEqual([call.args[0].dataset for call in train.call_args_list], ['auto', 'synthetic', 'synthetic'])

    def test_a_name_that_another_run_takes_meanwhile(self) -> None:
        args = [*SHORT, '--output_dir', str(self.directory), '--seeds', '1,2', '--name', 'x']
        parsed = train_mlp_numpy.build_parser().parse_args(args)
        with contextlib.redirect_stdout(io.StringIO()):
            records = script.train_seeds(parsed, train_mlp_numpy.train)
            self.main('--name', 'x', '--learning_rate', '1')
            before = self.summary()
            script.write_seeds(records, str(self.directory))
        self.assertEqual(self.summary(), before)
        summary = json.loads((self.directory / f'results/x_process={os.getpid()}.json').read_text())
        self.assertEqual((summary['seeds'], summary['flags']['learning_rate']), ([1, 2], 0.002))

    def test_what_is_done_keeps_its_rows_and_seconds(self) -> None:
        args = [*SHORT, '--output_dir', str(self.directory), '--seeds', '1,2']
        parsed = train_mlp_numpy.build_parser().parse_args(args)
        with contextlib.redirect_stdout(io.StringIO()):
            first, again = (script.train_seeds(parsed, train_mlp_numpy.train) for _ in range(2))
        for done, read in zip(first, again, strict=True):
            self.assertEqual((read.rows, read.seconds), (done.rows, round(done.seconds, 3)))

    def test_one_that_diverges_does_not_end_the_others(self) -> None:
        train = train_mlp_numpy.train

        def second_diverges(run_flags: object, output_dir: str) -> experiment.RunRecord:
            run_flags.learning_rate = 1e300 if run_flags.seed == 2 else run_flags.learning_rate
            return train(run_flags, output_dir, quiet=True)

        with mock.patch.object(train_mlp_numpy, 'train', second_diverges):
            status, _ = self.main('--seeds', '1,2,3', '--name', 'x')
        self.assertEqual((status, self.summary()['seeds']), (3, [1, 3]))
        self.assertEqual(self.main('--seeds', '1,2,3', '--name', 'x')[0], 0)  # what is not finished is not done
        self.assertEqual(self.summary()['seeds'], [1, 2, 3])

    def test_an_interruption_ends_them_and_keeps_what_is_done(self) -> None:
        add = experiment.RunRecord.add

        def interrupted(record: experiment.RunRecord, *args: object, **kwargs: object) -> None:
            add(record, *args, **kwargs)
            if record.flags['seed'] == 2:
                raise stopping.Stopped(signal.SIGTERM)

        with mock.patch.object(experiment.RunRecord, 'add', interrupted):
            status, _ = self.main('--seeds', '1,2,3', '--name', 'x')
        self.assertEqual((status, self.summary()['seeds']), (143, [1]))
        self.assertEqual(self.main('--seeds', '1,2,3', '--name', 'x')[0], 0)
        self.assertEqual(self.summary()['seeds'], [1, 2, 3])

    def test_the_record_of_one_run_and_the_summary_of_several_share_a_file(self) -> None:
        self.main('--name', 'x')
        self.main('--seeds', '1,2', '--name', 'x')
        both = self.summary()
        self.assertEqual((both['flags']['seed'], both['status'], both['seeds']), (42, 'finished', [1, 2]))
        self.main('--name', 'x')
        self.assertEqual(self.summary()['mean'], both['mean'])

    def test_a_name_that_another_run_has(self) -> None:
        self.main('--name', 'x')
        belongs = r'x.json \(give this one another --name\) belongs to another run: its'
        self.assert_refused(f'{belongs} learning_rate is 0.002, here it is 1.0', '--name', 'x', '--learning_rate', '1')
        self.assert_refused(f'{belongs} seed is 42, here it is 3', '--name', 'x', '--seed', '3')
        self.assert_refused(f'{belongs} learning_rate is 0.002, here it is 1.0',
                            '--name', 'x', '--learning_rate', '1', '--seeds', '1,2')  # fmt: skip
        self.assertEqual(self.main('--name', 'x')[0], 0)

    def test_a_record_that_does_not_name_its_script_is_run_again(self) -> None:
        self.main('--name', 'x')
        path = self.directory / 'results/x.json'
        files.write_json(path, {key: value for key, value in self.summary().items() if key != 'script'})
        self.main('--name', 'x', '--seeds', '1')
        self.assertEqual((self.summary()['status'], self.summary()['seeds']), ('finished', [1]))  # both are kept
        older = self.summary()
        del older['flags']['weight_decay'], older['seeds'], older['mean'], older['std']
        files.write_json(path, older)
        self.main('--name', 'x', '--seeds', '1')
        self.assertEqual((self.summary()['status'], self.summary()['seeds']), ('finished', [1]))
        self.assertEqual(self.main('--name', 'x')[0], 0)
        self.assertEqual(self.summary()['script'], 'mlp_numpy')

    def test_a_name_that_the_runs_of_several_seeds_have(self) -> None:
        self.main('--name', 'x', '--seeds', '1,2')
        self.assert_refused(r'x.json \(give .*its learning_rate is 0.002', '--name', 'x', '--learning_rate', '1')
        self.assert_refused(r'x_seed=1.json \(give .*its learning_rate is 0.002',
                            '--name', 'x', '--learning_rate', '1', '--seeds', '1')  # fmt: skip
        self.assertEqual(self.main('--name', 'x', '--seed', '3')[0], 0)  # the record and the summary share the file
        self.assertEqual((self.summary()['flags']['seed'], self.summary()['seeds']), (3, [1, 2]))

    def test_a_name_that_a_run_on_other_data_has(self) -> None:
        for args in (('--name', 'x'), ('--name', 'y', '--seeds', '1')):
            self.main(*args)
            for path in (self.directory / 'results').glob(f'{args[1]}*.json'):
                path.write_text(path.read_text().replace('"dataset": "synthetic"', '"dataset": "cifar10"', 1))
            self.assert_refused('its dataset is cifar10, here it is synthetic', *args)

    def test_a_name_that_a_shorter_run_has(self) -> None:
        self.main('--name', 'x')
        there = self.summary()['flags']
        n_steps = there['max_steps']

        def start(max_steps: int, **run_flags: object) -> None:
            run_flags = {**there, 'max_steps': max_steps, **run_flags}
            experiment.RunRecord('mlp_numpy', 'MLP in NumPy', 'synthetic', run_flags, output_dir=str(self.directory))

        with self.assertRaisesRegex(FlagError, 'its max_steps is '):
            start(n_steps + 1)
        checkpoint = self.directory / 'run.pt'
        with self.assertRaisesRegex(FlagError, 'its max_steps is '):  # a run from the start is no longer one of it
            start(n_steps + 1, checkpoint=str(checkpoint))
        checkpoint.touch()
        for flag in ('checkpoint', 'resume'):
            start(n_steps + 1, **{flag: str(checkpoint)})
            with self.assertRaisesRegex(FlagError, 'its max_steps is '):  # no checkpoint of that run can be so short
                start(n_steps - 1, **{flag: str(checkpoint)})
        self.main('--name', 'x', '--seeds', '1')
        with self.assertRaisesRegex(FlagError, 'its max_steps is '):  # what the seeds came to is not its
            start(n_steps + 1, checkpoint=str(checkpoint))
        (self.directory / 'results/x.json').unlink()
        with self.assertRaisesRegex(FlagError, 'x_seed=1.json .*its max_steps is '):
            start(n_steps + 1, checkpoint=str(checkpoint), seed=1, seeds=[1])

    def test_a_run_on_several_processes_is_no_other_run_s_seed(self) -> None:
        self.main('--name', 'x', '--seeds', '1')

        def start(processes: int, **run_flags: object) -> experiment.RunRecord:
            there = json.loads((self.directory / 'results/x_seed=1.json').read_text())['flags']
            return experiment.RunRecord('mlp_numpy', 'MLP', 'synthetic', {**there, **run_flags},
                                        output_dir=str(self.directory), quiet=True, processes=processes)  # fmt: skip

        self.assertTrue(start(1).already_done())
        with self.assertRaisesRegex(FlagError, 'its processes is 1, here it is 2'):
            start(2)
        alone = start(2, name='x_seed=1', seeds=None)  # which takes its place, if that is what it is told to do
        self.assertEqual(alone.description()['processes'], 2)
        self.assertNotIn('processes', start(1).description())

    def test_a_name_that_a_run_which_was_not_finished_has(self) -> None:
        self.assertEqual(self.main('--name', 'x', '--learning_rate', '1e300')[0], 3)
        self.assertEqual(self.main('--name', 'x', '--seeds', '1')[0], 0)
        self.assertEqual((self.summary()['flags']['learning_rate'], self.summary().get('status')), (0.002, None))
        self.assertEqual(self.main('--name', 'x')[0], 0)
        self.assertEqual(self.summary()['status'], 'finished')

    def test_seed_and_seeds_exclude_each_other(self) -> None:
        self.assertIn('not allowed with', refused(self, train_mlp_numpy, '--seed', '1', '--seeds', '1,2'))
