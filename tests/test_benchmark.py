"""How `python -m benchmark` takes turns, judges, draws and refuses; what it measures is not a test's business."""

import contextlib
import io
import json
import subprocess
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import cifar10_utils
from benchmark import __main__ as command
from benchmark import loading, processes, student_mlp, training
from benchmark.ratios import Ratio, compare, optional, read_ratios, take_turns, write_ratios
from mlp_pytorch import MLP
from parsing import FlagError
from tests.helpers import NO_NETWORK, ROOT, files_under, run_script, temporary_directory
from training_pytorch import DeviceData, evaluate

RATIO = Ratio('scale', 'width 64 batch 256', 'ours', 'theirs', 0.5, 0.4, 0.6, 1.0, 0.9)


def run_main(*args: str) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of the command in this process."""
    with (
        mock.patch.object(sys, 'argv', ['benchmark', *args]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = command.main()
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def no_network() -> contextlib.AbstractContextManager:
    return mock.patch('cifar10_utils.check_network', side_effect=OSError('no network'))


class RatioTest(unittest.TestCase):
    def test_actions_take_turns(self) -> None:
        calls = []
        actions = {name: lambda name=name: calls.append(name) for name in 'AB'}
        seconds = take_turns(actions, repeats=3, at_least=0)
        self.assertEqual(''.join(calls), 'AB' + 'AABB' + 3 * 'AABB')  # short: each timed one after one untimed
        calls.clear()
        take_turns({'A': lambda: calls.append('A')}, repeats=1, at_least=0.05)
        self.assertGreater(len(calls), 1 + 2 + 2)  # very short: many in a turn
        self.assertEqual([turns.shape for turns in seconds.values()], [(3,), (3,)])
        self.assertGreater(min(turns.min() for turns in seconds.values()), 0)

    def test_ratios_and_verdicts(self) -> None:
        seconds = {'ours': np.array([1.0, 2.0, 3.0]), 'slow': np.array([2.0, 4.0, 6.0]), 'like': np.array([2.0, 2, 2])}
        with contextlib.redirect_stdout(io.StringIO()):
            slow, like, free = compare('b', 'case', seconds, 'ours', {'slow': 0.4, 'like': 1.0, 'ours': None})
        self.assertEqual((slow.ratio, slow.low, slow.high, slow.measured), (0.5, 0.5, 0.5, 2.0))
        self.assertEqual((like.ratio, like.low, like.high), (1.0, 0.6, 1.4))
        self.assertEqual((slow.verdict, like.verdict, free.verdict), ('MISSED', 'reached, drowns in the noise', ''))

    def test_a_turn_that_was_disturbed_does_not_count(self) -> None:
        seconds = {'ours': np.array([1.0, 2.0, 300.0]), 'theirs': np.array([1.0, 1.0, 1.0])}
        with contextlib.redirect_stdout(io.StringIO()):
            (ratio,) = compare('b', 'case', seconds, 'ours', {'theirs': None})
        self.assertEqual((ratio.ratio, ratio.measured), (2.0, 2.0))

    def test_what_is_written_is_read(self) -> None:
        environment, ratios = {'machine': 'a machine', 'repeats': 3}, {'scale': [RATIO], 'load': []}
        with temporary_directory() as directory:
            path = directory / 'benchmark.json'
            write_ratios(path, environment, ratios)
            self.assertEqual(json.loads(path.read_text())['ratios']['scale'], [RATIO._asdict()])
            self.assertEqual(read_ratios(path), (environment, ratios))
            for damaged in (path.read_text()[:-9], '{}', '[]', '{"ratios": []}', '{"ratios": {"step": [{"kase": 1}]}}'):
                path.write_text(damaged)
                with self.assertRaises(ValueError, msg=damaged):
                    read_ratios(path)

    def test_a_library_that_is_not_there_is_named(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertIsNone(optional('no_such_module.at_all', 'no-such-package', 'The pair'))
        self.assertEqual(err.getvalue(), 'The pair is left out: pip install no-such-package to have it\n')
        self.assertIs(optional('json', 'json', 'Nothing'), json)


class CommandTest(unittest.TestCase):
    def full_run(self, directory: Path, fakes: dict[str, mock.Mock]) -> tuple[int, str, str]:
        with (
            mock.patch.object(command, 'BENCHMARKS', fakes),
            mock.patch.object(command, 'batches_root'),
        ):
            return run_main('--output_dir', str(directory), '--data_dir', 'there', '--repeats', '2')

    def test_some_benchmarks_are_printed_and_not_written(self) -> None:
        with temporary_directory() as directory:
            status, out, _ = run_main('normalisation', '--repeats', '1', '--output_dir', str(directory))
            self.assertEqual((status, files_under(directory)), (0, []))
        for kind in ('batch', 'layer'):
            for ours in ('manual', 'numpy'):
                self.assertRegex(out, rf'{kind} \(4096, 1024\) +{ours} +/ native +\d+\.\d\d')
            self.assertRegex(out, rf'{kind} \(4096, 1024\) bytes kept +manual +/ native +1\.00 .*reached')

    def test_a_full_run_is_written_and_drawn_at_its_end(self) -> None:
        fakes = {name: mock.Mock(return_value=[RATIO._replace(benchmark=name)], __doc__='Of its kind.')
                 for name in command.BENCHMARKS}  # fmt: skip
        with temporary_directory() as directory:
            fakes['scale'].side_effect = KeyboardInterrupt
            self.assertEqual(self.full_run(directory, fakes)[0], 130)
            self.assertEqual(files_under(directory), [])

            fakes['scale'].side_effect = None
            status, out, _ = self.full_run(directory, fakes)
            self.assertEqual((status, out.count('Of its kind.')), (0, len(fakes)))
            self.assertEqual(
                files_under(directory), ['figures', 'figures/benchmark.png', 'results', 'results/benchmark.json']
            )
            environment, ratios = read_ratios(directory / 'results/benchmark.json')
        self.assertEqual(list(ratios.items()), [(name, fake.return_value) for name, fake in fakes.items()])
        self.assertEqual((environment['versions']['numpy'], environment['repeats']), (np.__version__, 2))
        for fake in fakes.values():
            self.assertEqual(fake.call_args_list, 2 * [mock.call('there', 2)])

    def test_a_part_measured_anew_takes_the_place_of_the_former(self) -> None:
        fakes = {name: mock.Mock(return_value=[RATIO._replace(benchmark=name)], __doc__='Of its kind.')
                 for name in command.BENCHMARKS}  # fmt: skip
        with temporary_directory() as directory:
            self.full_run(directory, fakes)
            path = directory / 'results/benchmark.json'
            fakes['load'].return_value = [RATIO._replace(benchmark='load', ratio=0.25)]
            part = ('load', '--output_dir', str(directory), '--repeats', '2')
            with mock.patch.object(command, 'BENCHMARKS', fakes):
                self.assertEqual(run_main(*part)[0], 0)
                merged = path.read_bytes()
                self.assertEqual(run_main(*part[:-1], '3')[0], 0)
                with mock.patch('benchmark.ratios.machine', return_value='another'):
                    self.assertEqual(run_main(*part)[0], 0)
            self.assertEqual(path.read_bytes(), merged)  # nothing is mixed with what was measured otherwise
            ratios = read_ratios(path)[1]
        self.assertEqual(list(ratios.items()), [(name, fake.return_value) for name, fake in fakes.items()])

    def test_a_full_run_that_cannot_end_does_not_begin(self) -> None:
        fake = mock.Mock(__doc__='Of its kind.')
        with (
            temporary_directory() as directory,
            mock.patch.object(command, 'BENCHMARKS', {'step': fake}),
            no_network(),
        ):
            status, _, err = run_main('--data_dir', str(directory), '--output_dir', str(directory / 'out'))
        self.assertEqual((status, 'no CIFAR-10 in' in err), (2, True))
        fake.assert_not_called()

    def test_bad_flags(self) -> None:
        for args, word in ((['fast'], "no benchmark 'fast'"), (['step', '--repeats', '0'], "got '0'")):
            status, out, err = run_main(*args)
            self.assertEqual((status, out, err.count('\n')), (2, '', 1))
            self.assertIn(word, err)

    def test_without_data_it_says_what_helps(self) -> None:
        for name in ('load', 'convnet', 'evaluation', 'run', 'grid', 'scale'):
            with temporary_directory() as directory, no_network():
                status, _, err = run_main(name, '--data_dir', str(directory), '--output_dir', str(directory))
                self.assertEqual((status, files_under(directory)), (2, []))
            line = err.splitlines()[-1]
            self.assertRegex(line, r'^python -m benchmark: error: no CIFAR-10 in .*no network.*--data_dir')
            self.assertNotIn('--dataset', line)

    def test_as_a_module(self) -> None:
        done = subprocess.run([sys.executable, '-m', 'benchmark', '--help'], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertIn('usage: python -m benchmark', done.stdout)
        self.assertIn(', '.join(command.BENCHMARKS), ' '.join(done.stdout.split()))


class LoadingTest(unittest.TestCase):
    def test_torchvision_is_given_the_directory_above(self) -> None:
        with temporary_directory() as directory, mock.patch('cifar10_utils.load'):
            folder = directory / cifar10_utils.BATCHES_FOLDER
            folder.mkdir()
            (folder / 'test_batch').touch()
            for data_dir in (directory, folder):
                self.assertEqual(loading.batches_root(str(data_dir)), directory)
            with self.assertRaisesRegex(cifar10_utils.DataError, 'no intact CIFAR-10 at'):
                loading.torchvision_loader(directory, 32)

    def test_the_plain_loop_goes_on_after_an_epoch(self) -> None:
        drawn = []
        epoch = [(torch.full((2, 3, 32, 32), float(i)), torch.zeros(2, dtype=torch.int64)) for i in range(2)]

        def note(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
            drawn.append(x.mean().item())

        def plain_alone(actions: dict, *_: object, **__: object) -> dict[str, np.ndarray]:
            actions['plain']()
            return {name: np.ones(1) for name in actions}

        with (
            mock.patch.object(training, 'batches_root'),
            mock.patch.object(training, 'torchvision_loader', return_value=epoch),
            mock.patch.object(training, 'take_turns', plain_alone),
            mock.patch.object(training, 'plain_step', note),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            training.convnet('there', 1)
        self.assertEqual(drawn, 20 * [0, 1])


class TrainingTest(unittest.TestCase):
    """Both sides of a pair do the same work."""

    def test_as_many_steps_on_both_sides(self) -> None:
        steps = dict.fromkeys(('trainer', 'bare'), 0)

        def ours(model: object, optimizer: object, images: object, labels: torch.Tensor, *_: object) -> tuple:
            steps['trainer'] += 1
            return torch.zeros(len(labels), 10), torch.zeros(())

        def theirs(*_: object) -> None:
            steps['bare'] += 1

        def one_turn(actions: dict, *_: object) -> dict[str, np.ndarray]:
            for action in actions.values():
                action()
            return {name: np.ones(1) for name in actions}

        with (
            mock.patch('training_pytorch.training_step', ours),
            mock.patch('training_pytorch.evaluate', side_effect=AssertionError('an evaluation')),
            mock.patch.object(training, 'plain_step', theirs),
            mock.patch.object(training, 'take_turns', one_turn),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            training.trainer('', 1)
        self.assertEqual(steps, {'trainer': 524, 'bare': 524})

    def test_evaluations_of_the_same_images(self) -> None:
        torch.manual_seed(0)
        data = DeviceData(cifar10_utils.get_cifar10(dataset='synthetic', one_hot=False)['test'], torch.device('cpu'))
        batches = [data.examples(part) for part in np.array_split(np.arange(data.data.num_examples), 7)]
        model = MLP(3072, [8], 10)
        np.testing.assert_allclose(
            training.plain_evaluation(model, batches), evaluate(model, data, 'float32'), rtol=1e-5
        )

    def test_each_setting_is_trained_on_every_side_of_the_search(self) -> None:
        calls = []
        with (
            mock.patch.object(processes, 'batches_root'),
            mock.patch.object(processes, 'run_python', lambda *args, **environment: calls.append((args, environment))),
            mock.patch.object(torch, 'get_num_threads', return_value=3),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            ratios = processes.grid('there', 1)
        self.assertEqual([ratio.theirs for ratio in ratios], ['in turn', 'side by side'])
        (search, _), *alone = calls
        values = processes.all_settings({
            name: search[search.index(f'--{name}') + 1 :][: len(words)] for name, words in {
                'dnn_hidden_units': '123', 'max_steps': '12', 'learning_rate': '1', 'batch_size': '12',
                'optimizer': '123'}.items()})  # fmt: skip
        expected = {tuple(f'--{name}={value}' for name, value in setting._asdict().items()) for setting in values}
        for n, (part, each) in enumerate(((alone[:36], 3), (alone[36:], 1))):
            self.assertEqual({args[-5:] for args, _ in part}, expected, n)
            self.assertEqual([environment for _, environment in part], 36 * [{'OMP_NUM_THREADS': str(each)}])


class StudentTest(unittest.TestCase):
    def commands(self, data_dir: Path) -> dict[str, tuple[str, ...]]:
        """The arguments of the processes that `run` would start."""
        started = {}

        def start_each(actions: dict, *_: object) -> dict[str, np.ndarray]:
            for name, action in actions.items():
                with mock.patch.object(processes, 'run_python', lambda *args, name=name: started.update({name: args})):
                    action()
            return {name: np.ones(3) for name in actions}

        with (
            mock.patch.object(processes, 'batches_root', return_value=data_dir),
            mock.patch.object(processes, 'take_turns', start_each),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            processes.run(str(data_dir), 3)
        return started

    def test_its_command_line_is_what_run_calls(self) -> None:
        with temporary_directory() as directory:
            started = self.commands(directory)
            self.assertEqual(set(started), {'numpy', 'numpy_float32', 'pytorch', 'student'})
            script, *args = started['student']
            self.assertEqual(ROOT / script, Path(student_mlp.__file__))
            self.assertEqual(args, list(started['numpy'][1:]))
            flags = student_mlp.build_parser().parse_args(args)
            self.assertEqual(flags.data_dir, directory)
            with self.assertRaisesRegex(FlagError, rf'^{script} failed: student_mlp.py: error: no CIFAR-10 in '):
                processes.run_python(*started['student'])

    def test_help(self) -> None:
        with temporary_directory() as directory:  # from anywhere, without the project
            done = run_script('benchmark/student_mlp.py', '--help', cwd=directory, env=NO_NETWORK)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        for flag in ('--data_dir', '--output_dir'):
            self.assertIn(flag, done.stdout)

    def test_it_trains_and_draws(self) -> None:
        rng = np.random.RandomState(0)
        roots, prototypes = [], rng.randint(100, 156, size=(10, 32, 32, 3), dtype=np.uint8)

        def fake_cifar10(root: Path, train: bool) -> types.SimpleNamespace:
            roots.append(root)
            classes = rng.randint(10, size=300)
            return types.SimpleNamespace(data=prototypes[classes], targets=classes.tolist())

        with temporary_directory() as directory:
            folder, output = directory / student_mlp.BATCHES_FOLDER, directory / 'a/b'
            argv = ['student_mlp.py', '--data_dir', str(folder), '--output_dir', str(output)]
            with (
                mock.patch.object(sys, 'argv', argv),
                mock.patch.object(student_mlp, 'CIFAR10', fake_cifar10),
                contextlib.redirect_stdout(io.StringIO()) as out,
            ):
                student_mlp.main()
            self.assertEqual((roots, files_under(output)), ([directory, directory], ['student.png']))
        lines = out.getvalue().splitlines()
        self.assertEqual([line.split(':')[0] for line in lines], [f'step {n}' for n in (*range(0, 1500, 100), 1499)])
        self.assertGreater(float(lines[-1].split()[-2]), 0.9)  # each class is one image, over and over
