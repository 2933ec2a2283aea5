"""The record of a run, and `train_mlp_numpy.py` from its flags to its files."""

import contextlib
import io
import json
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import train_mlp_numpy
from cifar10_utils import get_cifar10
from mlp_numpy import MLP
from mlp_pytorch import MLP as TorchMLP
from tests.helpers import (
    REAL_DATA,
    ROOT,
    files_under,
    needs_real_data,
    read_rows,
    refused,
    run_script,
    small_stand_in,
    temporary_directory,
)
from unittests import ScaleModule


class TrainMLPNumpyTest(unittest.TestCase):
    def refused(self, *args: str) -> str:
        return refused(self, train_mlp_numpy, *args)

    def test_bad_flags(self) -> None:
        self.assertIn('--no_such_flag', self.refused('--no_such_flag', '1'))
        self.assertIn('--max_step', self.refused('--max_step', '1'))  # no abbreviations
        for units in ('100,,50', '-3', 'abc', '0', '1e2', ',', '9' * 30):
            self.assertIn(repr(units), self.refused(f'--dnn_hidden_units={units}'))
        for flag in ('learning_rate', 'max_steps', 'batch_size', 'eval_freq'):
            for value in ('0', '-1', 'nan', 'inf', 'abc', ''):
                self.assertRegex(self.refused(f'--{flag}={value}'), f"--{flag}.*got '{value}'")
        self.assertIn('10000', self.refused('--batch_size', '10001'))
        self.assertIn('got 10001', self.refused('--validation_size', '10001'))
        self.assertIn("got '-1'", self.refused('--validation_size=-1'))
        self.assertIn('at most 0', self.refused('--validation_size', '10000'))
        self.assertIn("got '-0.1'", self.refused('--neg_slope=-0.1'))
        self.assertIn('float16', self.refused('--dtype', 'float16'))

    def test_an_output_directory_that_cannot_be_written(self) -> None:
        with temporary_directory() as directory:
            (directory / 'file').touch()
            self.assertIn('Not a directory', self.refused('--output_dir', str(directory / 'file/below')))
            (directory / 'results/mlp_numpy_synthetic.csv').mkdir(parents=True)
            self.assertIn('is a directory', self.refused('--output_dir', str(directory)))
            self.assertEqual(files_under(directory), ['file', 'results', 'results/mlp_numpy_synthetic.csv'])
        if Path('/proc/self').exists():
            self.assertIn('cannot write', self.refused('--output_dir', '/proc/self'))

    def test_end_to_end_on_the_stand_in(self) -> None:
        name = (
            'mlp_numpy_synthetic_learning_rate=0.005_max_steps=250_validation_size=1000'
            '_dnn_hidden_units=50,20_neg_slope=0.1_dtype=float32'
        )
        with temporary_directory() as directory:
            done = run_script(
                'train_mlp_numpy.py', '--dataset', 'synthetic', '--output_dir', directory, '--max_steps', '250',
                '--eval_freq', '100', '--dnn_hidden_units', '50,20', '--neg_slope', '0.1', '--validation_size', '1000',
                '--dtype', 'float32', '--learning_rate', '5e-3',
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stderr), (0, ''))
            self.assertRegex(done.stdout, r'training +accuracy +0\.\d{3} +0\.\d{3}')
            self.assertEqual(
                files_under(directory),
                ['figures', f'figures/{name}.png', 'networks', f'networks/{name}.npz', 'results']
                + [f'results/{name}.{suffix}' for suffix in ('csv', 'json')],
            )
            path = directory / f'results/{name}.csv'
            header, rows = path.read_text().split('\n')[0], read_rows(path)
            self.assertEqual(header, 'step,train_acc,train_loss,test_acc,test_loss,val_acc,val_loss')
            self.assertEqual([row['step'] for row in rows], ['1', '101', '201', '250'])
            summary = json.loads((directory / f'results/{name}.json').read_text())
            self.assertEqual(summary['last'], {key: json.loads(value) for key, value in rows[-1].items()})
            self.assertEqual((summary['dataset'], summary['status']), ('synthetic', 'finished'))
            self.assertEqual(summary['flags']['dnn_hidden_units'], [50, 20])
            self.assertEqual(summary['versions']['numpy'], np.__version__)
            png = (directory / f'figures/{name}.png').read_bytes()
            self.assertEqual(png[:8], b'\x89PNG\r\n\x1a\n')

    def test_the_stand_in_is_learnt_but_not_exhausted(self) -> None:
        args = ['--dataset', 'synthetic', '--dtype', 'float32', '--max_steps', '800', '--eval_freq', '400']
        with contextlib.redirect_stdout(io.StringIO()):
            best = train_mlp_numpy.train(train_mlp_numpy.build_parser().parse_args(args)).best()
        self.assertGreater(best['test_acc'], 0.3)
        self.assertLess(best['test_acc'], 0.7)

    def test_help_imports_nothing_heavy(self) -> None:
        done = subprocess.run(
            [sys.executable, '-X', 'importtime', ROOT / 'train_mlp_numpy.py', '--help'], capture_output=True, text=True
        )
        self.assertIn('--dnn_hidden_units', done.stdout)
        imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
        self.assertIn('numpy', imported)
        self.assertFalse(imported & {'torch', 'torchvision', 'matplotlib'})

    @needs_real_data
    def test_reference_protocol(self) -> None:
        """The first 201 steps give the reference curve, whose last rows are Table 1 of the report."""
        expected = read_rows(ROOT / 'tests/reference_mlp_numpy.csv')
        flags = train_mlp_numpy.build_parser().parse_args(['--data_dir', str(REAL_DATA), '--max_steps', '201'])
        record = train_mlp_numpy.train(flags, quiet=True)
        self.assertEqual(len(record.rows), 3)
        for row, expected_row in zip(record.rows, expected[:3], strict=True):
            for key, value in row.items():
                self.assertAlmostEqual(value, float(expected_row[key]), delta=1e-7)


class EvaluationTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(small_stand_in())

    def test_the_mean_over_every_example_once(self) -> None:
        """Also where the last batch is smaller."""
        data, mlp = get_cifar10(dataset='synthetic')['test'], MLP(3072, [], 10, rng=np.random.RandomState(0))
        probabilities = mlp.forward(data.images.reshape(200, 3072))
        hits = (probabilities.argmax(axis=1) == data.classes).mean()
        loss = -np.log(probabilities[np.arange(200), data.classes] + 1e-10).mean()
        for batch_size in (30, 190, 200, 300):
            with mock.patch.object(train_mlp_numpy, 'EVALUATION_BATCH', batch_size):
                np.testing.assert_allclose(train_mlp_numpy.evaluate(mlp, data), (hits, loss), rtol=1e-5)

    def test_a_run_is_the_loop_written_out(self) -> None:
        """Its seed, the order of its draws, its slope, what each figure of a row is of, and when it is taken."""
        for dtype in ('float64', 'float32'):
            args = ['--dataset', 'synthetic', '--validation_size', '400', '--batch_size', '400', '--max_steps', '4']
            args += ['--eval_freq', '3', '--dnn_hidden_units', '6', '--neg_slope', '0.3', '--dtype', dtype]
            args += ['--seed', '7', '--learning_rate', '0.1']
            record = train_mlp_numpy.train(train_mlp_numpy.build_parser().parse_args(args), quiet=True)
            rng = np.random.RandomState(7)
            data = get_cifar10(dataset='synthetic', validation_size=400, rng=rng, dtype=np.dtype(dtype).type)
            mlp = MLP(3072, [6], 10, 0.3, rng, dtype)
            optimizer = train_mlp_numpy.SGD(mlp, 0.1)
            expected = []
            for step in range(4):
                images, labels = data['train'].next_batch(400)
                probabilities, loss = train_mlp_numpy.training_step(mlp, optimizer, images, labels)
                if step in (0, 3):
                    test, validation = (train_mlp_numpy.evaluate(mlp, data[part]) for part in ('test', 'validation'))
                    accuracy = (probabilities.argmax(axis=1) == labels.argmax(axis=1)).mean()
                    expected.append([step + 1, accuracy, loss, *test, *validation])
            self.assertEqual([list(row.values()) for row in record.rows], expected)
            self.assertEqual(len({*expected[0]}), len(expected[0]))  # no figure can stand for another
            self.assertEqual(record.network.model.modules[0].params['weight'].dtype, dtype)

    def test_defaults_are_those_of_the_reference(self) -> None:
        flags = train_mlp_numpy.build_parser().parse_args([])
        numbers = flags.learning_rate, flags.max_steps, flags.batch_size, flags.eval_freq, flags.seed
        self.assertEqual(numbers, (2e-3, 1500, 200, 100, 42))
        self.assertEqual((flags.dnn_hidden_units, flags.neg_slope, flags.dtype), ([100], 0.0, 'float64'))


class SGDTest(unittest.TestCase):
    def setUp(self) -> None:
        self.rng = np.random.RandomState(0)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.randn(20, 6), np.eye(4)[self.rng.randint(4, size=20)]

    def mlp(self, n_hidden: list[int]) -> MLP:
        """A network whose initial weights leave a signal."""
        mlp = MLP(6, n_hidden, 4, rng=self.rng)
        for param, _ in mlp.params_and_grads():
            param *= 5e3
        return mlp

    def test_a_step_gives_the_figures_before_it(self) -> None:
        mlp, (x, y) = self.mlp([7]), self.batch()
        before = mlp.forward(x)
        probabilities, loss = train_mlp_numpy.training_step(mlp, train_mlp_numpy.SGD(mlp, 0.1), x, y)
        np.testing.assert_array_equal(probabilities, before)
        self.assertAlmostEqual(loss, -(y * np.log(before + 1e-10)).sum(axis=1).mean(), delta=1e-12)

    def test_fifty_steps_equal_those_of_pytorch(self) -> None:
        for n_hidden in ([], [7], [7, 5], [6, 1, 4]):
            mlp = self.mlp(n_hidden)
            theirs = torch_copy(mlp, n_hidden)
            ours, by_torch = train_mlp_numpy.SGD(mlp, 0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
            for _ in range(50):
                x, y = self.batch()
                _, loss = train_mlp_numpy.training_step(mlp, ours, x, y)
                self.assertAlmostEqual(loss, torch_step(theirs, by_torch, x, y), delta=1e-9)

    @needs_real_data
    def test_the_default_network_follows_pytorch_s(self) -> None:
        rng = np.random.RandomState(42)
        data = get_cifar10(REAL_DATA, rng=rng, dtype=np.float64)['train']
        mlp = MLP(3072, [100], 10, rng=rng)
        theirs = torch_copy(mlp, [100])
        ours, by_torch = train_mlp_numpy.SGD(mlp, 2e-3), torch.optim.SGD(theirs.parameters(), lr=2e-3)
        for _ in range(201):
            images, labels = data.next_batch(200)
            _, loss = train_mlp_numpy.training_step(mlp, ours, images, labels)
            self.assertAlmostEqual(loss, torch_step(theirs, by_torch, images, labels), delta=1e-9)

    def test_parameters_keep_their_arrays_and_gradients_stay(self) -> None:
        mlp = self.mlp([7])
        params, grads = zip(*mlp.params_and_grads(), strict=True)
        before = [param.copy() for param in params]
        optimizer = train_mlp_numpy.SGD(mlp, 0.5)
        train_mlp_numpy.training_step(mlp, optimizer, *self.batch())
        after, grads_after = zip(*mlp.params_and_grads(), strict=True)
        for old, param, held, grad, held_grad in zip(before, after, params, grads_after, grads, strict=True):
            self.assertIs(param, held)
            self.assertIs(grad, held_grad)
            self.assertGreater(np.abs(grad).max(), 0)
            np.testing.assert_array_equal(param, old - 0.5 * grad)

    def test_a_layer_of_ones_own_is_trained_wherever_it_stands(self) -> None:
        x, y = self.batch()
        for place in range(5):
            mlp, scale = self.mlp([7]), ScaleModule()
            mlp.modules.insert(place, scale)
            optimizer = train_mlp_numpy.SGD(mlp, 0.1)
            losses = [train_mlp_numpy.training_step(mlp, optimizer, x, y)[1] for _ in range(30)]
            self.assertNotEqual(scale.params['scale'], 1)
            self.assertLess(losses[-1], losses[0])

    def test_a_parameter_that_is_no_array_is_refused(self) -> None:
        mlp, scale = self.mlp([7]), ScaleModule()
        scale.params['scale'] = 1.0
        mlp.modules.insert(1, scale)
        with self.assertRaises(TypeError):
            train_mlp_numpy.training_step(mlp, train_mlp_numpy.SGD(mlp, 0.1), *self.batch())


def torch_copy(mlp: MLP, n_hidden: list[int]) -> TorchMLP:
    """The network in PyTorch, in float64, with a copy of its parameters."""
    pairs = list(mlp.params_and_grads())
    theirs = TorchMLP(pairs[0][0].shape[1], n_hidden, len(pairs[-1][0])).double()
    with torch.no_grad():
        for (param, _), copy in zip(pairs, theirs.parameters(), strict=True):
            copy.copy_(torch.from_numpy(param))
    return theirs


def torch_step(model: TorchMLP, optimizer: torch.optim.Optimizer, images: np.ndarray, labels: np.ndarray) -> float:
    """A step on the loss of the reference protocol, with its 1e-10; returns the loss before it."""
    probabilities = model(torch.from_numpy(images)).softmax(dim=1)
    loss = -(torch.from_numpy(labels) * torch.log(probabilities + 1e-10)).sum() / len(labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
