"""The tests: `python unittests.py` runs them all, `python unittests.py LinearModuleTest` runs some.

Gradients derived by hand are held against central differences and against PyTorch's autograd, in float64. The scripts
are run as a user runs them, on the synthetic stand-in. What needs the real CIFAR-10 is skipped where it is not at hand.
"""

import contextlib
import csv
import io
import json
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import cifar10_utils
import compare_batch_norm
import experiment
import grid_search_mlp_pytorch as grid_search
import train_mlp_numpy
import train_mlp_pytorch
import training_pytorch
from cifar10_utils import BATCHES_FOLDER, TEST_FILES, TRAIN_FILES, DataError, DataSet, DownloadError, get_cifar10
from convnet_pytorch import ConvNet
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualFunction, CustomBatchNormManualModule
from mlp_numpy import MLP
from mlp_pytorch import MLP as TorchMLP
from modules import CrossEntropyModule, LeakyReLUModule, LinearModule, ReLUModule, SoftMaxModule

HERE = Path(__file__).resolve().parent
DATA_DIRS = (os.environ.get('CIFAR10_DIR', 'cifar10'), HERE / 'cifar10', HERE.parent / 'shared')
REAL_DATA = next((Path(path) for path in DATA_DIRS if cifar10_utils.find_batches(Path(path))), None)
needs_real_data = unittest.skipUnless(REAL_DATA, 'no CIFAR-10 at hand: set CIFAR10_DIR to where it is')

# A proxy at a port that nothing listens on: to a script run with this environment the network is dead.
NO_NETWORK = {**os.environ, 'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}


# Helpers


def numerical_gradient(
    function: Callable[[], np.ndarray | float], x: np.ndarray, dout: np.ndarray | float
) -> np.ndarray:
    """Central differences of Σ dout · function() with respect to x, which `function` reads, perturbed in place."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        value, h = x[index], 1e-5
        x[index] = value + h
        above = np.sum(dout * function())
        x[index] = value - h
        below = np.sum(dout * function())
        x[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def autograd(function: Callable, dout: np.ndarray, *inputs: np.ndarray) -> list[np.ndarray]:
    """PyTorch's gradients of Σ dout · function(*inputs) with respect to each input."""
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    (torch.as_tensor(dout) * function(*tensors)).sum().backward()
    return [tensor.grad.numpy() for tensor in tensors]


def random_shapes(rng: np.random.RandomState) -> list[tuple[int, int, int]]:
    """Shapes (n_batch, n_in, n_out), the smallest ones among them."""
    return [(1, 1, 1), (1, 4, 3), (5, 1, 2), (6, 4, 1), *map(tuple, rng.randint(1, 9, size=(4, 3)).tolist())]


def one_hot(rng: np.random.RandomState, n: int, n_classes: int) -> np.ndarray:
    return np.eye(n_classes)[rng.randint(n_classes, size=n)]


def torch_mlp(mlp: MLP) -> tuple[Callable, list[torch.Tensor]]:
    """The same network in PyTorch, out of a copy of its parameters: its forward function and the parameters."""
    params = [torch.tensor(module.params[name], requires_grad=True)
              for module in mlp.linear_modules for name in ('weight', 'bias')]  # fmt: skip
    slope = getattr(mlp.modules[1], 'neg_slope', 0.0) if len(mlp.modules) > 2 else 0.0

    def forward(x: torch.Tensor) -> torch.Tensor:
        for i in range(0, len(params), 2):
            x = torch.nn.functional.linear(x, params[i], params[i + 1])
            if i < len(params) - 2:
                x = torch.nn.functional.leaky_relu(x, slope)
        return x.softmax(dim=1)

    return forward, params


def torch_loss(probabilities: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    return -(torch.as_tensor(labels) * torch.log(probabilities + 1e-10)).sum() / len(labels)


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def files_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob('*'))


def run_script(script: str, *args: str, **kwargs: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, HERE / script, *args], capture_output=True, text=True, timeout=60, **kwargs
    )  # fmt: skip


def torchrun(*args: object) -> subprocess.CompletedProcess:
    """A script in two processes."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *args]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def refused(test: unittest.TestCase, name: str, script: types.ModuleType, *args: str) -> str:
    """The one line with which a script, run in this process, refuses these arguments; it must write nothing."""
    with temporary_directory() as directory, contextlib.redirect_stderr(io.StringIO()) as stderr:
        argv = [f'{script.__name__}.py', '--dataset', 'synthetic', '--output_dir', str(directory), *args]
        with mock.patch.object(sys, 'argv', argv), test.assertRaises(SystemExit) as caught:
            experiment.main(name, script.build_parser(), script.train)
        test.assertEqual(caught.exception.code, 2)
        test.assertEqual(files_under(directory), [])
    test.assertEqual(stderr.getvalue().count('\n'), 1, stderr.getvalue())
    return stderr.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def write_batch_file(path: Path, contents: object) -> None:
    with open(path, 'wb') as file:
        pickle.dump(contents, file, protocol=4)


def batch_contents(seed: int) -> dict:
    rng = np.random.RandomState(seed)
    return {
        'data': rng.randint(0, 256, size=(10_000, 3072), dtype=np.uint8),
        'labels': rng.randint(10, size=10_000).tolist(),
    }


class ModuleTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.rng = np.random.RandomState(0)

    def assert_close(self, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
        self.assertEqual(actual.shape, expected.shape)
        error = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
        self.assertLess(error.max(), tolerance)

    def check_activation(self, module: object, reference: Callable, avoid_zero: bool = False) -> None:
        for n, width, _ in random_shapes(self.rng):
            x, dout = self.rng.randn(n, width), self.rng.randn(n, width)
            if avoid_zero:
                x += np.sign(x) * 1e-3
            expected = reference(torch.as_tensor(x)).numpy()
            self.assert_close(module.forward(x), expected, 1e-12)
            dx = module.backward(dout)
            self.assert_close(dx, numerical_gradient(lambda x=x: module.forward(x), x, dout), 1e-7)
            self.assert_close(dx, autograd(reference, dout, x)[0], 1e-12)

    def check_refused_shapes(self, module: object, x: np.ndarray) -> None:
        module.forward(x)
        with self.assertRaisesRegex(ValueError, r'dout must have shape \(2, 3\), got \(3, 2\)'):
            module.backward(np.ones((3, 2)))


# The NumPy modules


class LinearModuleTest(ModuleTestCase):
    def test_gradients(self) -> None:
        for n, n_in, n_out in random_shapes(self.rng):
            module = LinearModule(n_in, n_out, self.rng)
            weight, bias = module.params['weight'], module.params['bias']
            weight[:], bias[:] = self.rng.randn(n_out, n_in), self.rng.randn(n_out)
            x, dout = self.rng.randn(n, n_in), self.rng.randn(n, n_out)
            module.forward(x)
            actual = {'x': module.backward(dout), **{name: grad.copy() for name, grad in module.grads.items()}}
            by_torch = autograd(torch.nn.functional.linear, dout, x, weight, bias)
            for name, array, expected in zip(('x', 'weight', 'bias'), (x, weight, bias), by_torch, strict=True):
                self.assert_close(actual[name], expected, 1e-12)
                differences = numerical_gradient(lambda x=x, module=module: module.forward(x), array, dout)
                self.assert_close(actual[name], differences, 1e-7)

    def test_gradients_go_into_the_arrays_that_grads_holds(self) -> None:
        module = LinearModule(3, 2, self.rng)
        before = dict(module.grads)
        for _ in range(2):
            module.forward(self.rng.randn(4, 3))
            module.backward(self.rng.randn(4, 2))
        self.assertIs(module.grads['weight'], before['weight'])
        self.assertIs(module.grads['bias'], before['bias'])

    def test_outputs_and_gradients_are_not_overwritten_by_later_calls(self) -> None:
        module = LinearModule(3, 2, self.rng)
        x, dout = self.rng.randn(4, 3), self.rng.randn(4, 2)
        out, dx = module.forward(x), module.backward(dout)
        kept = out.copy(), dx.copy()
        x += 1
        module.forward(x)
        module.backward(2 * dout)
        np.testing.assert_array_equal(out, kept[0])
        np.testing.assert_array_equal(dx, kept[1])

    def test_initial_parameters(self) -> None:
        for dtype in (np.float32, np.float64):
            module = LinearModule(30, 20, np.random.RandomState(7), dtype)
            expected = np.random.RandomState(7).normal(0, 1e-4, (20, 30)).astype(dtype)
            np.testing.assert_array_equal(module.params['weight'], expected)
            np.testing.assert_array_equal(module.params['bias'], np.zeros(20))
            for array in (*module.params.values(), *module.grads.values()):
                self.assertEqual(array.dtype, dtype)
        np.random.seed(7)
        np.testing.assert_array_equal(LinearModule(30, 20).params['weight'], expected)

    def test_wrong_shapes(self) -> None:
        module = LinearModule(4, 3)
        with self.assertRaisesRegex(ValueError, r'x must have shape \(n_batch, 4\), got \(2, 5\)'):
            module.forward(np.ones((2, 5)))
        with self.assertRaisesRegex(ValueError, r'got \(4,\)'):
            module.forward(np.ones(4))
        self.check_refused_shapes(module, np.ones((2, 4)))


class ActivationTest(ModuleTestCase):
    def test_relu(self) -> None:
        self.check_activation(ReLUModule(), torch.relu, avoid_zero=True)
        self.check_refused_shapes(ReLUModule(), np.ones((2, 3)))

    def test_relu_gradient_is_zero_at_zero(self) -> None:
        module = ReLUModule()
        module.forward(np.array([[-1.0, 0.0, 2.0]]))
        np.testing.assert_array_equal(module.backward(np.full((1, 3), 5.0)), [[0, 0, 5]])

    def test_leaky_relu(self) -> None:
        for slope in (0.0, 0.02, 1.5):
            reference = lambda x, slope=slope: torch.nn.functional.leaky_relu(x, slope)  # noqa: E731
            self.check_activation(LeakyReLUModule(slope), reference, avoid_zero=True)
        self.check_refused_shapes(LeakyReLUModule(0.1), np.ones((2, 3)))

    def test_softmax(self) -> None:
        self.check_activation(SoftMaxModule(), lambda x: x.softmax(dim=1))
        self.check_refused_shapes(SoftMaxModule(), np.ones((2, 3)))

    def test_softmax_of_large_inputs(self) -> None:
        out = SoftMaxModule().forward(np.array([[1000.0, 1000.0, -1000.0]]))
        np.testing.assert_array_equal(out, [[0.5, 0.5, 0]])

    def test_dtype_is_kept(self) -> None:
        x = self.rng.randn(3, 4).astype(np.float32)
        for module in (LinearModule(4, 4, self.rng, np.float32), ReLUModule(), LeakyReLUModule(0.1), SoftMaxModule()):
            self.assertEqual(module.forward(x).dtype, np.float32)
            self.assertEqual(module.backward(x).dtype, np.float32)

    def test_inputs_are_left_alone(self) -> None:
        x, dout = self.rng.randn(3, 4), self.rng.randn(3, 4)
        before = x.copy(), dout.copy()
        for module in (LinearModule(4, 4), ReLUModule(), LeakyReLUModule(0.1), SoftMaxModule()):
            module.forward(x)
            module.backward(dout)
            np.testing.assert_array_equal(x, before[0])
            np.testing.assert_array_equal(dout, before[1])


class CrossEntropyModuleTest(ModuleTestCase):
    def test_gradients(self) -> None:
        for n, n_classes, _ in random_shapes(self.rng):
            x, y = self.rng.uniform(0.1, 1, size=(n, n_classes)), one_hot(self.rng, n, n_classes)
            module = CrossEntropyModule()
            dx = CrossEntropyModule().backward(x, y)  # of a module whose forward was never called
            self.assertAlmostEqual(module.forward(x, y), torch_loss(torch.tensor(x), y).item(), delta=1e-12)
            self.assert_close(dx, autograd(lambda x, y=y: torch_loss(x, y), np.array(1.0), x)[0], 1e-12)
            differences = numerical_gradient(lambda x=x, y=y, module=module: module.forward(x, y), x, 1.0)
            self.assert_close(dx, differences, 1e-7)

    def test_a_probability_of_zero_has_a_finite_loss(self) -> None:
        x, y = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
        self.assertAlmostEqual(CrossEntropyModule().forward(x, y), -math.log(1e-10), delta=1e-12)
        np.testing.assert_allclose(CrossEntropyModule().backward(x, y), [[-1e10, 0]])

    def test_wrong_shapes(self) -> None:
        for call in (CrossEntropyModule().forward, CrossEntropyModule().backward):
            with self.assertRaisesRegex(ValueError, r'y must have shape \(2, 3\), got \(2,\)'):
                call(np.ones((2, 3)), np.ones(2))


class MLPTest(ModuleTestCase):
    WIDTHS = ([], [7], [7, 5], [6, 1, 4], [5, 4, 3, 2])

    def make(self, n_hidden: list[int], neg_slope: float = 0.0, scale: float = 5e3) -> MLP:
        mlp = MLP(6, n_hidden, 4, neg_slope, self.rng)
        for module in mlp.linear_modules:
            module.params['weight'] *= scale  # the reference's initial weights leave nearly no signal
        return mlp

    def test_layers(self) -> None:
        kinds = [type(module) for module in MLP(6, [5, 4], 3).modules]
        self.assertEqual(kinds, [LinearModule, ReLUModule, LinearModule, ReLUModule, LinearModule, SoftMaxModule])
        kinds = [type(module) for module in MLP(6, [5], 3, neg_slope=0.1).modules]
        self.assertEqual(kinds, [LinearModule, LeakyReLUModule, LinearModule, SoftMaxModule])
        self.assertEqual([type(module) for module in MLP(6, [], 3).modules], [LinearModule, SoftMaxModule])

    def test_gradients(self) -> None:
        for n_hidden in self.WIDTHS:
            for neg_slope in (0.0, 0.1):
                mlp = self.make(n_hidden, neg_slope)
                x, y = self.rng.randn(8, 6), one_hot(self.rng, 8, 4)
                probabilities = mlp.forward(x)
                mlp.backward(CrossEntropyModule().backward(probabilities, y))
                forward, params = torch_mlp(mlp)
                torch_loss(forward(torch.tensor(x)), y).backward()
                grads = [module.grads[name] for module in mlp.linear_modules for name in ('weight', 'bias')]
                for grad, param in zip(grads, params, strict=True):
                    self.assert_close(grad, param.grad.numpy(), 1e-12)
                self.assertGreater(max(np.abs(grad).max() for grad in grads), 1e-3)

    def test_fifty_steps_equal_those_of_pytorch(self) -> None:
        for n_hidden in self.WIDTHS[:4]:
            mlp = self.make(n_hidden)
            forward, params = torch_mlp(mlp)
            optimizer = torch.optim.SGD(params, lr=0.1)
            for _ in range(50):
                x, y = self.rng.randn(20, 6), one_hot(self.rng, 20, 4)
                probabilities = mlp.forward(x)
                loss = CrossEntropyModule().forward(probabilities, y)
                mlp.backward(CrossEntropyModule().backward(probabilities, y))
                train_mlp_numpy.sgd_step(mlp, 0.1)
                by_torch = torch_loss(forward(torch.tensor(x)), y)
                optimizer.zero_grad()
                by_torch.backward()
                optimizer.step()
                self.assertAlmostEqual(loss, by_torch.item(), delta=1e-9)

    def test_weights_are_drawn_layer_by_layer(self) -> None:
        mlp = MLP(6, [5], 3, rng=np.random.RandomState(1))
        rng = np.random.RandomState(1)
        for module, shape in zip(mlp.linear_modules, ((5, 6), (3, 5)), strict=True):
            np.testing.assert_array_equal(module.params['weight'], rng.normal(0, 1e-4, shape))


# The data


class DataSetTest(unittest.TestCase):
    def make(self, n: int = 10, **kwargs: object) -> DataSet:
        pixels = np.arange(n, dtype=np.uint8)[:, None].repeat(3072, axis=1)
        return DataSet('synthetic', pixels, np.arange(n, dtype=np.uint8) % 10, np.ones(3072, np.float32), **kwargs)

    def test_order_shuffle_and_dropped_tail(self) -> None:
        data = self.make(rng=np.random.RandomState(3))
        rng, order = np.random.RandomState(3), np.arange(10)
        for epoch in range(4):
            self.assertEqual([data.next_indices(4).tolist() for _ in range(2)], [list(order[:4]), list(order[4:8])])
            self.assertEqual(data.epochs_completed, epoch)
            permutation = np.arange(10)
            rng.shuffle(permutation)
            order = order[permutation]

    def test_a_batch_that_ends_with_the_epoch_is_kept(self) -> None:
        data = self.make(rng=np.random.RandomState(3))
        self.assertEqual(data.next_indices(5).tolist() + data.next_indices(5).tolist(), list(range(10)))
        self.assertEqual(data.epochs_completed, 0)
        data.next_indices(5)
        self.assertEqual(data.epochs_completed, 1)

    def test_batches_are_centred_and_labelled(self) -> None:
        for dtype in (np.float32, np.float64):
            data = self.make(dtype=dtype)
            images, labels = data.next_batch(3)
            self.assertEqual((images.shape, images.dtype, labels.dtype), ((3, 3, 32, 32), dtype, dtype))
            np.testing.assert_array_equal(images[:, 0, 0, 0], [-1, 0, 1])
            np.testing.assert_array_equal(labels, np.eye(10)[:3])
        self.assertEqual((data.images.shape, data.images.dtype), ((10, 3, 32, 32), np.float32))
        self.assertEqual((data.num_examples, data.labels.shape), (10, (10, 10)))
        self.assertEqual(self.make(one_hot=False).labels.tolist(), list(range(10)))

    def test_evaluation_batches_hold_every_example_once(self) -> None:
        images = np.concatenate([images for images, _ in self.make().batches(4)])
        np.testing.assert_array_equal(images, self.make().images)

    def test_impossible_batch_sizes(self) -> None:
        for batch_size in (0, 11):
            with self.assertRaisesRegex(ValueError, f'between 1 and 10 .* got {batch_size}'):
                self.make().next_batch(batch_size)


class BatchFilesTest(unittest.TestCase):
    """Reading a whole, and a damaged, copy of CIFAR-10's files, with random contents."""

    @classmethod
    def setUpClass(cls) -> None:
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.data_dir = Path(directory.name)
        cls.folder = cls.data_dir / BATCHES_FOLDER
        cls.folder.mkdir()
        cls.contents = [batch_contents(seed) for seed in range(6)]
        for file, contents in zip(TRAIN_FILES + TEST_FILES, cls.contents, strict=True):
            write_batch_file(cls.folder / file, contents)

    @contextlib.contextmanager
    def replaced(self, contents: bytes | object | None) -> Iterator[Path]:
        """A copy of the data in which data_batch_3 holds other contents, or is missing."""
        with temporary_directory() as copy:
            for file in TRAIN_FILES + TEST_FILES:
                (copy / file).symlink_to(self.folder / file)
            damaged = copy / 'data_batch_3'
            damaged.unlink()
            if isinstance(contents, bytes):
                damaged.write_bytes(contents)
            elif contents is not None:
                write_batch_file(damaged, contents)
            yield copy

    def assert_refused(self, contents: bytes | object | None, reason: str) -> None:
        with self.replaced(contents) as data_dir, self.assertRaisesRegex(DataError, reason) as caught:
            get_cifar10(data_dir)
        self.assertIn(str(data_dir / 'data_batch_3'), str(caught.exception))
        self.assertNotIn('\n', str(caught.exception))

    def test_both_directories_serve(self) -> None:
        pixels = np.concatenate([contents['data'] for contents in self.contents[:5]])
        mean_image = pixels.mean(axis=0, dtype=np.float64)
        for directory in (self.data_dir, self.folder):
            data = get_cifar10(directory)
            self.assertEqual([data[part].num_examples for part in ('train', 'validation', 'test')], [50_000, 0, 10_000])
            np.testing.assert_array_equal(data['train'].pixels, pixels)
            labels = np.concatenate([contents['labels'] for contents in self.contents[:5]])
            np.testing.assert_array_equal(data['train'].classes, labels)
            np.testing.assert_array_equal(data['test'].pixels, self.contents[5]['data'])
            np.testing.assert_allclose(data['test'].mean_image, mean_image, rtol=1e-7)
            self.assertEqual(data['test'].name, 'cifar10')

    def test_mean_image_is_the_one_accumulated_in_float32(self) -> None:
        pixels = np.concatenate([contents['data'] for contents in self.contents[:5]])
        accumulated = np.zeros(3072, np.float32)
        for image in pixels:
            accumulated += image
        np.testing.assert_array_equal(get_cifar10(self.data_dir)['train'].mean_image, accumulated / np.float32(50_000))

    def test_validation_split(self) -> None:
        data = get_cifar10(self.data_dir, one_hot=False, validation_size=12_000)
        whole = get_cifar10(self.data_dir)['train'].pixels
        np.testing.assert_array_equal(data['validation'].pixels, whole[:12_000])
        np.testing.assert_array_equal(data['train'].pixels, whole[12_000:])
        mean_image = whole[12_000:].mean(axis=0, dtype=np.float64)
        for part in data.values():
            np.testing.assert_allclose(part.mean_image, mean_image, rtol=1e-7)
        self.assertEqual(get_cifar10(self.data_dir, validation_size=50_000)['train'].num_examples, 0)
        for validation_size in (-1, 50_001):
            with self.assertRaisesRegex(DataError, f'between 0 and 50000 .* got {validation_size}'):
                get_cifar10(self.data_dir, validation_size=validation_size)

    def test_damaged_files(self) -> None:
        whole = (self.folder / 'data_batch_3').read_bytes()
        contents = self.contents[2]
        self.assert_refused(None, 'No such file')
        self.assert_refused(whole[: len(whole) // 2], 'truncated')
        self.assert_refused(b'', 'Ran out of input')
        self.assert_refused(b'<html>404</html>', 'is no CIFAR-10 file')
        self.assert_refused(['no', 'dictionary'], 'is no CIFAR-10 file')
        self.assert_refused({'labels': contents['labels']}, 'an array under data')
        self.assert_refused({'data': contents['data']}, 'a list under labels')
        self.assert_refused(contents | {'data': contents['data'][:, 1:].copy()}, r'got u1 of \(10000, 3071\)')
        self.assert_refused(contents | {'data': contents['data'][:-1].copy()}, r'got u1 of \(9999, 3072\)')
        self.assert_refused(contents | {'data': contents['data'].astype(np.int8)}, 'got i1 of')
        self.assert_refused(contents | {'data': np.asfortranarray(contents['data'])}, 'in rows')
        self.assert_refused(contents | {'labels': contents['labels'][1:]}, 'must have 10000 labels')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], 10]}, 'labels must be 0 to 9, got 0 to 10')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], -1]}, 'labels must be 0 to 9, got -1 to 9')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], 0.5]}, 'whole numbers')

    def test_hostile_pickles(self) -> None:
        with temporary_directory() as directory:
            trace = directory / 'run'

            class Hostile:
                def __reduce__(self) -> tuple:
                    return os.mkdir, (str(trace),)

            self.assert_refused(
                {'data': Hostile(), 'labels': []}, f'{os.mkdir.__module__}.mkdir, which no CIFAR-10 file'
            )
            self.assert_refused(b"cbuiltins\neval\n(S'1'\ntR.", 'builtins.eval, which no CIFAR-10 file needs')
            self.assert_refused(b"cnumpy\nload\n(S'x'\ntR.", 'numpy.load, which no CIFAR-10 file needs')
            self.assertFalse(trace.exists())
            pickle.loads(pickle.dumps(Hostile()))  # such a pickle does run code, where the reader lets it
            self.assertTrue(trace.exists())

    def test_a_damaged_file_stops_a_script(self) -> None:
        with self.replaced(b'nothing') as data_dir, temporary_directory() as output_dir:
            done = run_script('train_mlp_numpy.py', '--data_dir', data_dir, '--output_dir', output_dir)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count('\n')), (2, '', 1))
            self.assertIn('data_batch_3', done.stderr)
            self.assertEqual(files_under(output_dir), [])


class DownloadTest(unittest.TestCase):
    def test_a_dead_network(self) -> None:
        with temporary_directory() as directory:
            args = ('--max_steps', '1', '--output_dir', directory / 'out', '--data_dir', directory / 'data')
            done = run_script('train_mlp_numpy.py', '--dataset', 'cifar10', *args, env=NO_NETWORK)
            self.assertEqual((done.returncode, done.stderr.count('\n')), (2, 1))
            self.assertRegex(
                done.stderr, f'no CIFAR-10 in {directory}/data, and the download failed .*refused.*--data_dir'
            )
            self.assertEqual(files_under(directory), [])

            done = run_script('train_mlp_numpy.py', *args, env=NO_NETWORK)
            self.assertEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count('SYNTHETIC STAND-IN'), 1)
            self.assertFalse((directory / 'data').exists())
            self.assertTrue((directory / 'out/results/mlp_numpy_synthetic.csv').exists())

    def test_a_network_that_does_not_answer(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as server:
            url = f'http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz'
            start = time.perf_counter()
            with mock.patch.dict(os.environ, {'no_proxy': '127.0.0.1'}), self.assertRaises(OSError):
                cifar10_utils.check_network(url, timeout=0.5)
            self.assertLess(time.perf_counter() - start, 5)
        self.assertLess(cifar10_utils.NETWORK_TIMEOUT, 15)

    def fake_download(self, directory: Path, download: Callable[[Path], None]) -> Path:
        """Downloads with a torchvision whose CIFAR10 is `download`."""
        fake = types.ModuleType('torchvision.datasets')
        fake.CIFAR10 = lambda root, download: fetch(Path(root))
        fetch = download
        modules = {'torchvision': types.ModuleType('torchvision'), 'torchvision.datasets': fake}
        with mock.patch.dict(sys.modules, modules), mock.patch.object(cifar10_utils, 'check_network'):
            return cifar10_utils.download(directory / 'cifar10')

    def test_a_download_appears_whole(self) -> None:
        def fetch(root: Path) -> None:
            (root / 'cifar-10-python.tar.gz').touch()
            (root / BATCHES_FOLDER).mkdir()
            (root / BATCHES_FOLDER / 'test_batch').touch()

        with temporary_directory() as directory:
            folder = self.fake_download(directory, fetch)
            self.assertEqual(files_under(folder.parent), [BATCHES_FOLDER, f'{BATCHES_FOLDER}/test_batch'])

    def test_a_download_that_breaks_off_leaves_nothing(self) -> None:
        def fetch(root: Path) -> None:
            (root / BATCHES_FOLDER).mkdir()
            raise RuntimeError('File not found or corrupted.')

        with temporary_directory() as directory:
            with self.assertRaisesRegex(DownloadError, 'corrupted'):
                self.fake_download(directory, fetch)
            self.assertEqual(files_under(directory / 'cifar10'), [])


class SyntheticTest(unittest.TestCase):
    def test_form_and_determinism(self) -> None:
        start = time.process_time()
        raw = cifar10_utils.synthetic()
        self.assertLess(time.process_time() - start, 5)
        self.assertEqual((raw.train_pixels.shape, raw.train_pixels.dtype), ((10_000, 3072), np.uint8))
        self.assertEqual((raw.test_pixels.shape, raw.test_classes.shape), ((2_000, 3072), (2_000,)))
        self.assertEqual(set(raw.train_classes), set(range(10)))
        for array, again in zip(raw[1:], cifar10_utils.synthetic()[1:], strict=True):
            np.testing.assert_array_equal(array, again)


# The scripts


class RecordTest(unittest.TestCase):
    def follow(self, losses: list[float]) -> experiment.RunRecord:
        flags = {'max_steps': len(losses), 'eval_freq': 2}
        record = experiment.RunRecord('mlp', 'MLP', flags, 'cifar10', quiet=True)
        with record.running() as steps:
            for step in steps:
                if record.evaluation_due(step, losses[step]):
                    record.add(step, (0.5, losses[step]), (0.1 * (step % 3), 1.0))
        return record

    def test_evaluations(self) -> None:
        record = self.follow([1.0] * 5)
        self.assertEqual([row['step'] for row in record.rows], [1, 3, 5])
        self.assertEqual(record.best()['step'], 3)
        self.assertEqual(record.status, 'finished')
        self.assertEqual([row['step'] for row in self.follow([1.0] * 4).rows], [1, 3, 4])

    def test_divergence_ends_the_run(self) -> None:
        record = self.follow([1.0, math.nan, 1.0, 1.0, 1.0])
        self.assertEqual([row['step'] for row in record.rows], [1, 2])
        self.assertEqual(record.status, 'diverged')
        with temporary_directory() as directory:
            record.write(directory)
            self.assertIsNone(json.loads((directory / 'results/mlp.json').read_text())['last']['train_loss'])

    def test_best_is_picked_by_validation_accuracy_where_there_is_one(self) -> None:
        record = experiment.RunRecord('mlp', 'MLP', {'max_steps': 3}, 'cifar10', quiet=True)
        with record.running():
            record.add(0, (0.5, 1.0), (0.9, 1.0), (0.2, 1.0))
            record.add(2, (0.5, 1.0), (0.1, 1.0), (0.3, 1.0))
        self.assertEqual(record.best()['step'], 3)
        self.assertIn('validation', record.table())

    def test_a_file_that_cannot_be_finished_leaves_the_old_one(self) -> None:
        with temporary_directory() as directory:
            path = directory / 'file'
            path.write_text('old')
            with self.assertRaises(RuntimeError), experiment.atomic_file(path) as file:
                file.write(b'half of the n')
                raise RuntimeError
            self.assertEqual((path.read_text(), files_under(directory)), ('old', ['file']))


class TrainMLPNumpyTest(unittest.TestCase):
    def refused(self, *args: str) -> str:
        return refused(self, 'mlp_numpy', train_mlp_numpy, *args)

    def test_bad_flags(self) -> None:
        self.assertIn('--no_such_flag', self.refused('--no_such_flag', '1'))
        self.assertIn('--max_step', self.refused('--max_step', '1'))  # no abbreviations
        for units in ('100,,50', '-3', 'abc', '0', '1e2', ','):
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
            (directory / 'results/mlp_numpy.csv').mkdir(parents=True)
            self.assertIn('is a directory', self.refused('--output_dir', str(directory)))
            self.assertEqual(files_under(directory), ['file', 'results', 'results/mlp_numpy.csv'])
        if Path('/proc/self').exists():
            self.assertIn('cannot write', self.refused('--output_dir', '/proc/self'))

    def test_end_to_end_on_the_stand_in(self) -> None:
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
                ['figures', 'figures/mlp_numpy_synthetic.png', 'results']
                + [f'results/mlp_numpy_synthetic.{suffix}' for suffix in ('csv', 'json')],
            )
            path = directory / 'results/mlp_numpy_synthetic.csv'
            header, rows = path.read_text().split('\n')[0], read_rows(path)
            self.assertEqual(header, 'step,train_acc,train_loss,test_acc,test_loss,val_acc,val_loss')
            self.assertEqual([row['step'] for row in rows], ['1', '101', '201', '250'])
            summary = json.loads((directory / 'results/mlp_numpy_synthetic.json').read_text())
            self.assertEqual(summary['last'], {key: json.loads(value) for key, value in rows[-1].items()})
            self.assertEqual((summary['dataset'], summary['status']), ('synthetic', 'finished'))
            self.assertEqual(summary['flags']['dnn_hidden_units'], [50, 20])
            self.assertEqual(summary['versions']['numpy'], np.__version__)
            png = (directory / 'figures/mlp_numpy_synthetic.png').read_bytes()
            self.assertEqual(png[:8], b'\x89PNG\r\n\x1a\n')

    def test_the_stand_in_is_learnt_but_not_exhausted(self) -> None:
        args = ['--dataset', 'synthetic', '--dtype', 'float32', '--max_steps', '800']
        with contextlib.redirect_stdout(io.StringIO()):
            best = train_mlp_numpy.train(train_mlp_numpy.build_parser().parse_args(args)).best()
        self.assertGreater(best['test_acc'], 0.3)
        self.assertLess(best['test_acc'], 0.7)

    def test_divergence_is_a_result(self) -> None:
        with temporary_directory() as directory:
            args = ('--dataset', 'synthetic', '--output_dir', directory, '--learning_rate', '1e300')
            done = run_script('train_mlp_numpy.py', *args)
            self.assertEqual((done.returncode, done.stderr), (0, ''))
            summary = json.loads((directory / 'results/mlp_numpy_synthetic.json').read_text())
        self.assertEqual(summary['status'], 'diverged')
        self.assertLess(summary['last']['step'], 1500)
        self.assertIn(f'diverged at step {summary["last"]["step"]}', done.stdout)

    def test_ctrl_c_keeps_what_was_recorded(self) -> None:
        with temporary_directory() as directory:
            args = ('--dataset', 'synthetic', '--output_dir', directory, '--max_steps', '1000000', '--eval_freq', '10')
            process = subprocess.Popen(
                [sys.executable, '-u', HERE / 'train_mlp_numpy.py', *args],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
            self.assertEqual((process.returncode, stderr), (130, ''))
            summary = json.loads((directory / 'results/mlp_numpy_synthetic.json').read_text())
            self.assertEqual(summary['status'], 'interrupted')
            self.assertTrue((directory / 'figures/mlp_numpy_synthetic.png').exists())

    def test_help_imports_nothing_heavy(self) -> None:
        done = subprocess.run(
            [sys.executable, '-X', 'importtime', HERE / 'train_mlp_numpy.py', '--help'], capture_output=True, text=True
        )
        self.assertIn('--dnn_hidden_units', done.stdout)
        imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
        self.assertIn('numpy', imported)
        self.assertFalse(imported & {'torch', 'torchvision', 'matplotlib'})

    @needs_real_data
    def test_reference_protocol(self) -> None:
        """The first 201 steps give the committed curve, whose last rows are Table 1 of the report."""
        expected = read_rows(HERE / 'results/mlp_numpy.csv')
        flags = train_mlp_numpy.build_parser().parse_args(['--data_dir', str(REAL_DATA), '--max_steps', '201'])
        with contextlib.redirect_stdout(io.StringIO()):
            record = train_mlp_numpy.train(flags)
        self.assertEqual(len(record.rows), 3)
        for row, expected_row in zip(record.rows, expected[:3], strict=True):
            for key, value in row.items():
                self.assertAlmostEqual(value, float(expected_row[key]), delta=1e-7)


# Batch normalisation


class CustomBatchNormTest(unittest.TestCase):
    MODULES = (CustomBatchNormAutograd, CustomBatchNormManualModule)

    def setUp(self) -> None:
        torch.manual_seed(0)

    def test_gradcheck_of_every_subset_of_inputs(self) -> None:
        for n_batch, n_neurons in ((2, 1), (3, 4), (8, 5)):
            for subset in range(1, 8):
                x, gamma, beta = (
                    torch.randn(shape, dtype=torch.float64, requires_grad=bool(subset >> i & 1))
                    for i, shape in enumerate(((n_batch, n_neurons), (n_neurons,), (n_neurons,)))
                )
                for eps in ((), (0.1,)):
                    self.assertTrue(
                        torch.autograd.gradcheck(CustomBatchNormManualFunction.apply, (x, gamma, beta, *eps))
                    )

    def test_only_the_gradients_asked_for_are_computed(self) -> None:
        returned = []

        class Spy(CustomBatchNormManualFunction):
            @staticmethod
            def backward(ctx: object, dout: torch.Tensor) -> tuple:
                returned.append(CustomBatchNormManualFunction.backward(ctx, dout))
                return returned[-1]

        for subset in range(1, 8):
            asked = [bool(subset >> i & 1) for i in range(3)]
            inputs = [torch.randn(shape, requires_grad=a) for shape, a in zip(((4, 3), (3,), (3,)), asked, strict=True)]
            Spy.apply(*inputs, 1e-5).sum().backward()
            self.assertEqual([gradient is not None for gradient in returned[-1]], [*asked, *[False] * 4])

    def test_it_is_once_differentiable(self) -> None:
        x = torch.randn(4, 3, requires_grad=True)
        out = CustomBatchNormManualFunction.apply(x, torch.ones(3), torch.zeros(3))
        (dx,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, 'once_differentiable'):
            dx.sum().backward()

    def test_modules_do_as_pytorchs_does(self) -> None:
        for module_class in self.MODULES:
            for eps in (1e-5, 0.1):
                custom, native = module_class(6, eps=eps).double(), torch.nn.BatchNorm1d(6, eps=eps).double()
                with torch.no_grad():
                    for ours, theirs in ((custom.gamma, native.weight), (custom.beta, native.bias)):
                        theirs.copy_(ours.copy_(torch.randn(6)))
                for training in (True, True, False, True):
                    custom.train(training)
                    native.train(training)
                    x = torch.randn(7, 6, dtype=torch.float64) * 3 + 5
                    dout = torch.randn(7, 6, dtype=torch.float64)
                    gradients = []
                    for module in (custom, native):
                        module.zero_grad()
                        leaf = x.clone().requires_grad_()
                        out = module(leaf)
                        out.backward(dout)
                        gradients.append([out.detach(), leaf.grad, *(param.grad for param in module.parameters())])
                    for ours, theirs in zip(*gradients, strict=True):
                        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
                    torch.testing.assert_close(custom.running_mean, native.running_mean, rtol=1e-12, atol=1e-12)
                    torch.testing.assert_close(custom.running_var, native.running_var, rtol=1e-12, atol=1e-12)

    def test_what_is_saved_for_the_backward_pass(self) -> None:
        def saved_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
            saved = {}

            def pack(tensor: torch.Tensor) -> torch.Tensor:
                saved[tensor.data_ptr()] = tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                module(x)
            return sum(saved.values())

        x = torch.randn(50, 8, requires_grad=True)
        manual, autograd, native = CustomBatchNormManualModule(8), CustomBatchNormAutograd(8), torch.nn.BatchNorm1d(8)
        self.assertEqual(saved_bytes(manual, x), x.nbytes + 3 * 8 * 4)  # and mean, 1 / √(var + eps), gamma
        self.assertLess(saved_bytes(manual, x), saved_bytes(autograd, x) / 2)
        self.assertLessEqual(saved_bytes(manual, x), saved_bytes(native, x))
        for param in manual.parameters():
            param.requires_grad_(False)
        self.assertEqual(saved_bytes(manual, x.detach()), 0)
        manual.beta.requires_grad_()
        self.assertEqual(saved_bytes(manual, x.detach()), 0)
        manual.gamma.requires_grad_()
        self.assertEqual(saved_bytes(manual, x.detach()), x.nbytes + 2 * 8 * 4)

    def test_wrong_inputs(self) -> None:
        for module_class in self.MODULES:
            for shape in ((3, 5), (4,), (2, 4, 1)):
                expected = rf'\(n_batch, 4\), got {re.escape(str(shape))}'
                with self.assertRaisesRegex(ValueError, expected):
                    module_class(4)(torch.ones(shape))
            with self.assertRaisesRegex(ValueError, 'at least two rows'):
                module_class(4)(torch.ones(1, 4))
            self.assertEqual(module_class(4).eval()(torch.ones(1, 4)).shape, (1, 4))

    def test_under_autocast(self) -> None:
        x = torch.randn(64, 32)
        for module_class in self.MODULES:
            net = torch.nn.Sequential(torch.nn.Linear(32, 8), module_class(8))
            with torch.autocast('cpu', torch.bfloat16):
                narrow = net(x)
            self.assertEqual(narrow.dtype, torch.float32)
            torch.testing.assert_close(narrow, net(x), rtol=0.05, atol=0.05)


# The PyTorch networks and their training


class TorchNetworksTest(unittest.TestCase):
    def test_mlp_layers(self) -> None:
        def kinds(*args: object) -> list[str]:
            return [type(layer).__name__ for layer in TorchMLP(6, *args).layers]

        self.assertEqual(kinds([], 3), ['Linear'])
        self.assertEqual(kinds([5, 4], 3), ['Linear', 'ReLU', 'Linear', 'ReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.1, 'torch'), ['Linear', 'BatchNorm1d', 'LeakyReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.0, 'manual')[1], 'CustomBatchNormManualModule')
        self.assertEqual(kinds([5], 3, 0.0, 'autograd')[1], 'CustomBatchNormAutograd')
        self.assertEqual(TorchMLP(3072, [5], 3)(torch.ones(2, 3, 32, 32)).shape, (2, 3))

    def test_batch_norms_train_alike(self) -> None:
        losses = []
        for batch_norm in ('autograd', 'manual', 'torch'):
            torch.manual_seed(0)
            mlp = TorchMLP(20, [16, 12], 4, batch_norm=batch_norm).double()
            optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
            losses.append([])
            for _ in range(20):
                x, y = torch.randn(30, 20, dtype=torch.float64), torch.randint(4, (30,))
                loss = torch.nn.functional.cross_entropy(mlp(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
        np.testing.assert_allclose(losses[0], losses[2], rtol=1e-9)
        np.testing.assert_allclose(losses[1], losses[2], rtol=1e-9)

    def test_convnet_layers_and_shapes(self) -> None:
        model, x = ConvNet(3, 10).eval(), torch.randn(2, 3, 32, 32)
        shapes = []
        for layer in model.features:
            x = layer(x)
            if isinstance(layer, torch.nn.Conv2d):
                self.assertEqual((layer.kernel_size, layer.stride, layer.padding), ((3, 3), (1, 1), (1, 1)))
                shapes.append(('conv', layer.in_channels, *x.shape[1:3]))
            elif isinstance(layer, torch.nn.MaxPool2d):
                self.assertEqual((layer.kernel_size, layer.stride, layer.padding), (3, 2, 1))
                shapes.append(('pool', *x.shape[1:3]))
        expected = [
            ('conv', 3, 64, 32), ('pool', 64, 16), ('conv', 64, 128, 16), ('pool', 128, 8),
            ('conv', 128, 256, 8), ('conv', 256, 256, 8), ('pool', 256, 4),
            ('conv', 256, 512, 4), ('conv', 512, 512, 4), ('pool', 512, 2),
            ('conv', 512, 512, 2), ('conv', 512, 512, 2), ('pool', 512, 1),
        ]  # fmt: skip
        self.assertEqual(shapes, expected)
        kinds = [type(layer).__name__ for layer in model.features]
        block, pool = ['Conv2d', 'BatchNorm2d', 'ReLU'], ['MaxPool2d']
        stages = (1, 1, 2, 2, 2)
        self.assertEqual(kinds, [kind for n_blocks in stages for kind in block * n_blocks + pool])
        self.assertEqual(model(torch.randn(1, 3, 32, 32)).shape, (1, 10))

    def test_convnet_parameter_count(self) -> None:
        # A convolution a→b has 9ab weights and b biases, its normalisation 2b parameters.
        pairs = ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
        by_hand = sum(9 * a * b + 3 * b for a, b in pairs) + 512 * 10 + 10
        self.assertEqual(by_hand, 9_231_114)
        self.assertEqual(sum(param.numel() for param in ConvNet(3, 10).parameters()), by_hand)

    @needs_real_data
    def test_the_mlp_follows_the_numpy_one(self) -> None:
        rng = np.random.RandomState(42)
        data = get_cifar10(REAL_DATA, rng=rng, dtype=np.float64)['train']
        ours = MLP(3072, [100], 10, rng=rng)
        theirs = TorchMLP(3072, [100], 10).double()
        with torch.no_grad():
            linear_layers = [layer for layer in theirs.layers if isinstance(layer, torch.nn.Linear)]
            for module, layer in zip(ours.linear_modules, linear_layers, strict=True):
                layer.weight.copy_(torch.from_numpy(module.params['weight']))
                layer.bias.copy_(torch.from_numpy(module.params['bias']))
        optimizer = torch.optim.SGD(theirs.parameters(), lr=2e-3)
        for _ in range(201):
            images, labels = data.next_batch(200)
            probabilities = ours.forward(images.reshape(200, -1))
            loss = CrossEntropyModule().forward(probabilities, labels)
            ours.backward(CrossEntropyModule().backward(probabilities, labels))
            train_mlp_numpy.sgd_step(ours, 2e-3)
            by_torch = torch_loss(theirs(torch.from_numpy(images)).softmax(dim=1), labels)
            optimizer.zero_grad()
            by_torch.backward()
            optimizer.step()
            self.assertAlmostEqual(loss, by_torch.item(), delta=1e-9)


class TorchTrainingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def train(self, *args: str) -> experiment.RunRecord:
        """A short run of the MLP on the stand-in, in this process."""
        flags = ['--dataset', 'synthetic', '--max_steps', '9', '--eval_freq', '3', '--dnn_hidden_units', '20', *args]
        return train_mlp_pytorch.train(train_mlp_pytorch.build_parser().parse_args(flags), quiet=True)

    def test_batches_equal_those_of_the_numpy_path(self) -> None:
        data = get_cifar10(dataset='synthetic', one_hot=False)['train']
        indices = np.array([5, 3, 9_999])
        images, labels = training_pytorch.DeviceData(data, torch.device('cpu')).examples(indices)
        np.testing.assert_array_equal(images.numpy(), data.examples(indices)[0])
        np.testing.assert_array_equal(labels.numpy(), data.examples(indices)[1])

    def test_evaluation(self) -> None:
        """In evaluation mode, without gradients, over every example once, and back in training mode afterwards."""
        data = training_pytorch.DeviceData(get_cifar10(dataset='synthetic')['test'], torch.device('cpu'))
        seen = []

        class Watched(TorchMLP):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append((self.training, torch.is_grad_enabled(), x))
                return super().forward(x)

        model = Watched(3072, [10], 10, batch_norm='manual').train()
        before = model.layers[1].running_mean.clone()
        accuracy, loss = training_pytorch.evaluate(model, data, 'float32')
        self.assertTrue(model.training)
        self.assertEqual({(training, grad) for training, grad, _ in seen}, {(False, False)})
        images = torch.cat([x for _, _, x in seen])
        torch.testing.assert_close(images, data.examples(np.arange(2000))[0])
        torch.testing.assert_close(model.layers[1].running_mean, before)
        logits = model.eval()(images)
        self.assertAlmostEqual(accuracy, (logits.argmax(dim=1) == data.labels).double().mean().item(), delta=1e-6)
        self.assertAlmostEqual(loss, torch.nn.functional.cross_entropy(logits, data.labels).item(), delta=1e-5)

    def test_seed_optimizers_precision_and_divergence(self) -> None:
        rows = self.train().rows
        self.assertEqual(rows, self.train().rows)
        self.assertNotEqual(rows, self.train('--seed', '1').rows)
        for optimizer in ('SGD', 'Adam', 'Adadelta', 'adam'):
            record = self.train('--optimizer', optimizer, '--learning_rate', '1e-3')
            self.assertLess(record.rows[-1]['train_loss'], 20)
            self.assertEqual(record.flags['optimizer'], optimizer.lower())
        narrow = self.train('--precision', 'bfloat16').rows
        self.assertNotEqual(narrow, rows)
        self.assertAlmostEqual(narrow[0]['train_loss'], rows[0]['train_loss'], delta=0.05 * rows[0]['train_loss'])
        record = self.train('--learning_rate', '1e30')
        self.assertEqual((record.status, record.rows[-1]['step']), ('diverged', 1))

    def test_resumed_equals_uninterrupted(self) -> None:
        args = ('--optimizer', 'adam', '--batch_norm', 'manual', '--validation_size', '9800', '--batch_size', '60')
        whole = self.train(*args)  # with 200 training examples, every fourth batch begins an epoch
        checkpoint = str(self.directory / 'run.pt')
        add = experiment.RunRecord.add

        def killed_in_the_third_evaluation(record: experiment.RunRecord, *args: object, **kwargs: object) -> None:
            add(record, *args, **kwargs)
            if len(record.rows) == 3:
                raise InterruptedError

        with (
            mock.patch.object(experiment.RunRecord, 'add', killed_in_the_third_evaluation),
            self.assertRaises(InterruptedError),
        ):
            self.train(*args, '--checkpoint', checkpoint)
        torch.manual_seed(99)
        resumed = self.train(*args, '--resume', checkpoint)
        self.assertEqual(len(resumed.rows), 4)
        self.assertEqual(resumed.rows, whole.rows)

    def test_a_killed_script_goes_on(self) -> None:
        args = ('--dataset', 'synthetic', '--max_steps', '900', '--eval_freq', '180', '--dnn_hidden_units', '10')
        checkpoint = self.directory / 'run.pt'
        command = [sys.executable, '-u', HERE / 'train_mlp_pytorch.py', *args]
        with subprocess.Popen(
            [*command, '--checkpoint', checkpoint, '--output_dir', self.directory / 'killed'],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            for _ in range(3):  # the device and two evaluations
                process.stdout.readline()
            process.kill()
        self.assertEqual(files_under(self.directory), ['run.pt'])
        self.train(*args, '--resume', str(checkpoint)).write(self.directory / 'on')
        self.train(*args).write(self.directory / 'whole')
        resumed, whole = (
            read_rows(self.directory / name / 'results/mlp_pytorch_synthetic.csv') for name in ('on', 'whole')
        )
        self.assertEqual(len(whole), 6)
        self.assertEqual(resumed, whole)

    def test_checkpoints_that_do_not_fit(self) -> None:
        checkpoint = self.directory / 'run.pt'
        args = ('--max_steps', '2', '--eval_freq', '1', '--dnn_hidden_units', '20')

        def refused_resume(*more: str) -> str:
            return refused(self, 'mlp_pytorch', train_mlp_pytorch, *args, '--resume', str(checkpoint), *more)

        self.assertIn('No such file', refused_resume())
        self.train(*args, '--checkpoint', str(checkpoint))
        self.assertRegex(refused_resume('--learning_rate', '1'), 'its learning_rate is 0.002, here it is 1.0')
        self.assertRegex(
            refused_resume('--dnn_hidden_units', '30'), r'its dnn_hidden_units is \[20\], here it is \[30\]'
        )
        self.assertRegex(refused_resume('--optimizer', 'adam'), 'its optimizer is sgd, here it is adam')
        whole = checkpoint.read_bytes()
        for damaged in (b'', b'nonsense', whole[: len(whole) // 2], pickle.dumps({'step': 3})):
            checkpoint.write_bytes(damaged)
            self.assertIn('damaged', refused_resume())
        checkpoint.write_bytes(pickle.dumps(os.system))
        self.assertIn('damaged', refused_resume())
        torch.save({'state': 1}, checkpoint)
        self.assertIn('damaged', refused_resume())

    def test_bad_flags(self) -> None:
        def refuse(*args: str) -> str:
            return refused(self, 'mlp_pytorch', train_mlp_pytorch, *args)

        self.assertIn('rmsprop', refuse('--optimizer', 'RMSprop'))
        self.assertIn('at least 2 examples', refuse('--batch_norm', 'manual', '--batch_size', '1'))
        self.assertIn('is a directory', refuse('--checkpoint', str(self.directory)))
        if not torch.cuda.is_available():
            self.assertIn('no such device', refuse('--device', 'cuda'))

    def test_convnet_script_end_to_end(self) -> None:
        done = run_script(
            'train_convnet_pytorch.py', '--dataset', 'synthetic', '--max_steps', '1', '--batch_size', '8',
            '--precision', 'bfloat16', '--output_dir', self.directory,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        rows = read_rows(self.directory / 'results/convnet_pytorch_synthetic.csv')
        self.assertEqual([row['step'] for row in rows], ['1'])
        summary = json.loads((self.directory / 'results/convnet_pytorch_synthetic.json').read_text())
        self.assertEqual(summary['versions']['torch'], torch.__version__.split('+')[0])
        self.assertEqual(summary['flags']['optimizer'], 'adam')
        self.assertTrue((self.directory / 'figures/convnet_pytorch_synthetic.png').exists())

    def test_two_ranks_give_what_one_process_does(self) -> None:
        args = ('--dataset', 'synthetic', '--max_steps', '30', '--eval_freq', '10', '--batch_size', '63')
        args += ('--validation_size', '101', '--learning_rate', '1e-4')
        done = torchrun(HERE / 'train_mlp_pytorch.py', *args, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count('best step'), 1)
        self.train('--dnn_hidden_units', '100', *args).write(self.directory / 'one')
        one, two = (read_rows(self.directory / name / 'results/mlp_pytorch_synthetic.csv') for name in ('one', 'two'))
        self.assertEqual(len(one), 4)
        for row, row_of_two in zip(one, two, strict=True):
            for key, value in row.items():
                self.assertAlmostEqual(float(value), float(row_of_two[key]), delta=1e-6 * max(1, float(value)))

    def test_a_rank_that_dies_ends_the_run(self) -> None:
        script = self.directory / 'dying.py'
        script.write_text(
            'import os, sys, experiment, train_mlp_pytorch as script\n'
            'due = experiment.RunRecord.evaluation_due\n'
            'def dying(record, step, loss):\n'
            '    if step == 5 and os.environ["RANK"] == "1":\n'
            '        os.kill(os.getpid(), 9)\n'
            '    return due(record, step, loss)\n'
            'experiment.RunRecord.evaluation_due = dying\n'
            'sys.exit(experiment.main("mlp_pytorch", script.build_parser(), script.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '100000', '--output_dir', self.directory / 'out')
        done = torchrun(script, *args)
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse((self.directory / 'out').exists())


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
        rows = grid_search_rows(self.directory / self.CSV)
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
            HERE / 'grid_search_mlp_pytorch.py',
            *self.GRID,
            '--output_dir',
            self.directory / 'a',
        ]
        path = self.directory / 'a' / self.CSV
        with subprocess.Popen(command, start_new_session=True) as process:
            while not path.exists():
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        done_before = set(map(grid_search.setting_of, grid_search_rows(path)))
        self.assertTrue(0 < len(done_before) < 16)
        text = path.read_text()
        path.write_text(text[: len(text) - 30])  # and the file was cut short, besides
        self.assertIn('settings are done', self.search_here(self.directory / 'a', '--dry_run'))
        self.search_here(self.directory / 'a')
        self.search_here(self.directory / 'b')
        self.assertEqual(path.read_text(), (self.directory / 'b' / self.CSV).read_text())
        self.assertEqual(len(set(map(grid_search.setting_of, grid_search_rows(path)))), 16)
        with self.assertRaisesRegex(experiment.FlagError, 'its seed is 42, here it is 1'):
            self.search_here(self.directory / 'a', '--seed', '1')

    def test_two_ranks(self) -> None:
        done = torchrun(HERE / 'grid_search_mlp_pytorch.py', *self.GRID, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.search_here(self.directory / 'one')
        one, two = ((self.directory / name / self.CSV).read_text() for name in ('one', 'two'))
        self.assertEqual(one, two)
        self.assertEqual(len(files_under(self.directory / 'two/figures')), 3)
        self.assertEqual(done.stdout.count('best of 16'), 1)


def grid_search_rows(path: Path) -> list[dict[str, object]]:
    return [grid_search.read_row(row) for row in read_rows(path)]


class CompareBatchNormTest(unittest.TestCase):
    def test_end_to_end_on_the_stand_in(self) -> None:
        args = ['--dataset', 'synthetic', '--max_steps', '6', '--eval_freq', '3', '--seeds', '1,2']
        with temporary_directory() as directory, contextlib.redirect_stdout(io.StringIO()) as stdout:
            argv = ['compare_batch_norm.py', *args, '--output_dir', str(directory)]
            with mock.patch.object(sys, 'argv', argv):
                status = experiment.main(
                    'batch_norm_mlp_pytorch', compare_batch_norm.build_parser(), compare_batch_norm.train
                )
            rows = read_rows(directory / 'results/batch_norm_mlp_pytorch_synthetic.csv')
            summary = json.loads((directory / 'results/batch_norm_mlp_pytorch_synthetic.json').read_text())
            self.assertTrue((directory / 'figures/batch_norm_mlp_pytorch_synthetic.png').exists())
        self.assertEqual((status, len(rows)), (0, 12))
        best = [
            max(float(row['test_acc']) for row in rows if (row['batch_norm'], row['seed']) == ('manual', seed))
            for seed in ('1', '2')
        ]
        self.assertAlmostEqual(summary['test_acc']['manual']['best_mean'], sum(best) / 2)
        self.assertIn(f'{sum(best) / 2:.3f} ±', stdout.getvalue())


class CommittedResultsTest(unittest.TestCase):
    def test_table_1(self) -> None:
        """The committed NumPy run has every printed digit of Table 1 of the report."""
        summary = json.loads((HERE / 'results/mlp_numpy.json').read_text())
        self.assertEqual(summary['dataset'], 'cifar10')
        columns = ('train_acc', 'train_loss', 'test_acc', 'test_loss')
        self.assertEqual([round(summary['best'][key], 3) for key in columns], [0.525, 1.367, 0.469, 1.515])
        self.assertEqual([round(summary['last'][key], 3) for key in columns], [0.39, 1.616, 0.437, 1.602])


if __name__ == '__main__':
    result = unittest.main(verbosity=2, exit=False).result
    n_failed, n_skipped = len(result.failures) + len(result.errors), len(result.skipped)
    print(f'{result.testsRun - n_failed - n_skipped} passed, {n_failed} failed, {n_skipped} skipped')
    sys.exit(not result.wasSuccessful())
