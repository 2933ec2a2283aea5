"""The tests: `python unittests.py` runs them all, `python unittests.py -k softmax` those with this in their names.

Here are the gradient checks: what is derived by hand against central differences and PyTorch's autograd, in float64.
They need nothing but NumPy, PyTorch and the files that they check; where one of those is missing, its tests are
skipped. The other tests lie in `tests/`, by subject. They run the scripts as a user does, on the synthetic stand-in;
what needs the real CIFAR-10 is skipped where it is not at hand.
"""

import importlib.util
import math
import os
import re
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import leaky_relu

from modules import (
    BatchNormModule,
    CrossEntropyModule,
    DropoutModule,
    ELUModule,
    LayerNormModule,
    LeakyReLUModule,
    LinearModule,
    Module,
    ReLUModule,
    SoftMaxModule,
)


def import_if_there(name: str) -> ModuleType | None:
    """The file `name`.py as a module, or None where it was not handed out."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


mlp_numpy = import_if_there('mlp_numpy')
custom_batchnorm = import_if_there('custom_batchnorm')
needs_mlp = unittest.skipUnless(mlp_numpy, 'needs mlp_numpy.py')
custom_layernorm = import_if_there('custom_layernorm')
needs_batch_norm = unittest.skipUnless(custom_batchnorm, 'needs custom_batchnorm.py')
needs_layer_norm = unittest.skipUnless(custom_layernorm, 'needs custom_layernorm.py')
if TYPE_CHECKING:
    from mlp_numpy import MLP

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


def torch_mlp(mlp: 'MLP') -> tuple[Callable, list[torch.Tensor]]:
    """The same network in PyTorch, out of a copy of its parameters: its forward function and the parameters."""
    params = [torch.tensor(param, requires_grad=True) for param, _ in mlp.params_and_grads()]
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
        module.clear_cache()
        with self.assertRaises((AttributeError, TypeError)):
            module.backward(np.ones((2, 3)))


# The NumPy modules


class LinearModuleTest(ModuleTestCase):
    def test_gradients(self) -> None:
        for n, n_in, n_out in random_shapes(self.rng):
            module = LinearModule(n_in, n_out, rng=self.rng)
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
        module = LinearModule(3, 2, rng=self.rng)
        before = dict(module.grads)
        for _ in range(2):
            module.forward(self.rng.randn(4, 3))
            module.backward(self.rng.randn(4, 2))
        self.assertIs(module.grads['weight'], before['weight'])
        self.assertIs(module.grads['bias'], before['bias'])

    def test_gradients_do_not_add_up(self) -> None:
        module = LinearModule(3, 2, rng=self.rng)
        x, dout = self.rng.randn(4, 3), self.rng.randn(4, 2)
        for _ in range(2):
            module.forward(x)
            module.backward(dout)
        self.assert_close(module.grads['weight'], dout.T @ x, 1e-12)
        self.assert_close(module.grads['bias'], dout.sum(axis=0), 1e-12)

    def test_outputs_and_gradients_are_not_overwritten_by_later_calls(self) -> None:
        module = LinearModule(3, 2, rng=self.rng)
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
            module = LinearModule(30, 20, rng=np.random.RandomState(7), dtype=dtype)
            expected = np.random.RandomState(7).normal(0, 1e-4, (20, 30)).astype(dtype)
            np.testing.assert_array_equal(module.params['weight'], expected)
            np.testing.assert_array_equal(module.params['bias'], np.zeros(20))
            for array in (*module.params.values(), *module.grads.values()):
                self.assertEqual(array.dtype, dtype)
        np.random.seed(7)
        np.testing.assert_array_equal(LinearModule(30, 20).params['weight'], expected)

    def test_other_initial_parameters(self) -> None:
        def draw(*args: object) -> dict[str, np.ndarray]:
            return LinearModule(300, 200, *args, rng=np.random.RandomState(7)).params

        np.testing.assert_array_equal(draw(None, 'report')['weight'], draw()['weight'])
        for args, std in (((False,), (2 / 300) ** 0.5), ((True,), (1 / 300) ** 0.5)):
            params = draw(*args)
            self.assertAlmostEqual(params['weight'].std() / std, 1, delta=0.02)
            self.assertGreater(np.abs(params['weight']).max(), 3 * std)  # normal, not uniform
            np.testing.assert_array_equal(params['bias'], np.zeros(200))
            np.testing.assert_array_equal(draw(*args, 'kaiming')['weight'], params['weight'])
        np.testing.assert_array_equal(draw(None, 'kaiming')['weight'], draw(False)['weight'])
        bound = 300**-0.5
        for array in draw(False, 'torch').values():
            self.assertLessEqual(np.abs(array).max(), bound)
            self.assertAlmostEqual(np.abs(array).mean() / bound, 0.5, delta=0.05)
        with self.assertRaisesRegex(ValueError, "init must be one of report, kaiming, torch, got 'xavier'"):
            draw(None, 'xavier')

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

    def test_elu(self) -> None:
        for alpha in (0.0, 0.5, 1.0, 2.0):
            reference = lambda x, alpha=alpha: torch.nn.functional.elu(x, alpha)  # noqa: E731
            self.check_activation(ELUModule(alpha), reference, avoid_zero=True)
        self.check_activation(ELUModule(), torch.nn.functional.elu)
        self.check_refused_shapes(ELUModule(), np.ones((2, 3)))
        self.assertEqual(ELUModule().forward(np.array([[-1e4, 1e4]])).tolist(), [[-1, 1e4]])  # nothing overflows

    def test_softmax(self) -> None:
        self.check_activation(SoftMaxModule(), lambda x: x.softmax(dim=1))
        self.check_refused_shapes(SoftMaxModule(), np.ones((2, 3)))

    def test_what_is_done_to_an_output_changes_no_gradient(self) -> None:
        x, dout = self.rng.randn(4, 3), self.rng.randn(4, 3)
        for module in (LinearModule(3, 3, rng=self.rng), ReLUModule(), LeakyReLUModule(0.1), ELUModule(),
                       SoftMaxModule(), BatchNormModule(3), LayerNormModule(3)):  # fmt: skip
            module.forward(x)
            expected = module.backward(dout)
            module.forward(x)[...] = -1
            np.testing.assert_array_equal(module.backward(dout), expected)

    def test_softmax_of_large_inputs(self) -> None:
        out = SoftMaxModule().forward(np.array([[1000.0, 1000.0, -1000.0]]))
        np.testing.assert_array_equal(out, [[0.5, 0.5, 0]])

    def test_dtype_is_kept(self) -> None:
        x = self.rng.randn(3, 4).astype(np.float32)
        for module in (
            LinearModule(4, 4, rng=self.rng, dtype=np.float32),
            ReLUModule(),
            LeakyReLUModule(0.1),
            ELUModule(0.1),
            DropoutModule(0.3, self.rng),
            SoftMaxModule(),
        ):
            self.assertEqual(module.forward(x).dtype, np.float32)
            self.assertEqual(module.backward(x).dtype, np.float32)

    def test_inputs_are_left_alone(self) -> None:
        x, dout = self.rng.randn(3, 4), self.rng.randn(3, 4)
        before = x.copy(), dout.copy()
        layers = (
            LinearModule(4, 4),
            ReLUModule(),
            LeakyReLUModule(0.1),
            ELUModule(),
            DropoutModule(0.3),
            SoftMaxModule(),
        )
        for module in layers:
            module.forward(x)
            module.backward(dout)
            np.testing.assert_array_equal(x, before[0])
            np.testing.assert_array_equal(dout, before[1])


class DropoutModuleTest(ModuleTestCase):
    def test_gradients_of_one_mask(self) -> None:
        for n, width, _ in random_shapes(self.rng):
            x, dout, module = self.rng.randn(n, width), self.rng.randn(n, width), DropoutModule(0.4)

            def forward(x: np.ndarray = x, module: Module = module) -> np.ndarray:
                module.rng = np.random.RandomState(1)
                return module.forward(x)

            mask = forward(np.ones((n, width)))
            self.assertTrue(np.isin(mask, (0, 1 / 0.6)).all())
            np.testing.assert_array_equal(forward(), mask * x)
            self.assert_close(module.backward(dout), numerical_gradient(forward, x, dout), 1e-7)

    def test_masks(self) -> None:
        module, ones = DropoutModule(0.3, self.rng), np.ones((100, 500))
        masks = [module.forward(ones) for _ in range(2)]
        self.assertAlmostEqual((masks[0] == 0).mean(), 0.3, delta=0.01)
        self.assertAlmostEqual(masks[0].mean(), 1, delta=0.02)  # the expectation is kept
        self.assertTrue((masks[0] != masks[1]).any())
        module.rng = np.random.RandomState(3)
        expected = (np.random.RandomState(3).random_sample(ones.shape) >= 0.3) / 0.7
        np.testing.assert_allclose(module.forward(ones), expected)
        np.testing.assert_array_equal(DropoutModule(0).forward(ones), ones)

    def test_evaluation_mode_does_nothing_and_draws_nothing(self) -> None:
        module, x = DropoutModule(0.5, self.rng), self.rng.randn(4, 3)
        module.forward(x)
        state = str(self.rng.get_state())
        np.testing.assert_array_equal(module.eval().forward(x), x)
        np.testing.assert_array_equal(module.backward(x), x)
        self.assertEqual(str(self.rng.get_state()), state)

    def test_wrong_arguments(self) -> None:
        for p in (-0.1, 1, 1.5, math.nan):
            with self.assertRaisesRegex(ValueError, 'p must be from 0 to below 1'):
                DropoutModule(p)
        for module in (DropoutModule(0.5), DropoutModule(0.5).eval()):
            self.check_refused_shapes(module, np.ones((2, 3)))


class WholeNumbersTest(ModuleTestCase):
    """Whole numbers and booleans, as inputs and as labels, give what the same numbers in floating point give."""

    DTYPES = (np.int8, np.uint8, np.int32, np.uint64, np.int64, bool)

    def test_inputs(self) -> None:
        modules = [LinearModule(4, 4, rng=self.rng), ReLUModule(), LeakyReLUModule(0.1), ELUModule(), SoftMaxModule()]
        for dtype in self.DTYPES:
            x, dout = self.rng.randint(-3 if np.issubdtype(dtype, np.signedinteger) else 0, 4, (5, 4)), np.ones((5, 4))
            x = x.astype(dtype)
            for module in modules:
                results = []
                for numbers in (x, x.astype(np.float64)):
                    out, dx = module.forward(numbers), module.backward(dout)
                    results.append([out, dx, *(grad.copy() for grad in module.grads.values())])
                for actual, expected in zip(*results, strict=True):
                    self.assertEqual(actual.dtype, np.float64)
                    np.testing.assert_array_equal(actual, expected)

    def test_labels(self) -> None:
        x, y = self.rng.uniform(0.1, 1, size=(6, 3)), one_hot(self.rng, 6, 3)
        expected = CrossEntropyModule().forward(x, y), CrossEntropyModule().backward(x, y)
        for dtype in self.DTYPES:
            labels = y.astype(dtype)
            self.assertEqual(CrossEntropyModule().forward(x, labels), expected[0])
            np.testing.assert_array_equal(CrossEntropyModule().backward(x, labels), expected[1])

    def test_probabilities(self) -> None:
        for y in (np.array([0, 1, 1]), np.eye(3)):
            whole, module = np.eye(3, dtype=int), CrossEntropyModule()
            np.testing.assert_array_equal(module.backward(whole, y), module.backward(whole.astype(float), y))
            self.assertEqual(module.forward(whole, y), module.forward(whole.astype(float), y))


class HalfPrecisionTest(ModuleTestCase):
    """What sums or takes logarithms does so in float32 at least: float16 ends at 65,504, and has no 1e-10."""

    def test_normalisations(self) -> None:
        x, dout = (self.rng.randn(2, 4096, 8) * 20).astype(np.float16)
        x[:, :4] *= 10
        for ours in (BatchNormModule, LayerNormModule):
            results = []
            for dtype in (np.float16, np.float64):
                module = ours(8)
                out, dx = module.forward(x.astype(dtype)), module.backward(dout.astype(dtype))
                results.append([out, dx, *module.grads.values(), *module.buffers.values()])
            for actual, expected in zip(*results, strict=True):
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

    def test_cross_entropy(self) -> None:
        x, module = np.array([[0, 1], [0.25, 0.75]]), CrossEntropyModule()
        for y in (np.array([0, 1]), np.eye(2)):
            self.assertAlmostEqual(module.forward(x.astype(np.float16), y), module.forward(x, y), places=5)
            np.testing.assert_allclose(module.backward(x.astype(np.float16), y), module.backward(x, y), rtol=1e-5)


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

    def test_class_numbers_of_any_type(self) -> None:
        module = CrossEntropyModule()
        for n, n_classes, _ in random_shapes(self.rng):
            x, classes = self.rng.uniform(0.1, 1, size=(n, n_classes)), self.rng.randint(n_classes, size=n)
            y = np.eye(n_classes)[classes]
            for dtype in (np.int8, np.uint8, np.int32, np.uint64, np.int64):
                self.assertAlmostEqual(module.forward(x, classes.astype(dtype)), module.forward(x, y), delta=1e-12)
                self.assert_close(module.backward(x, classes.astype(dtype)), module.backward(x, y), 1e-12)
        self.assertEqual(module.backward(x.astype(np.float32), classes).dtype, np.float32)

    def test_labels_that_are_none(self) -> None:
        for call in (CrossEntropyModule().forward, CrossEntropyModule().backward):
            with self.assertRaisesRegex(ValueError, r'y must have shape \(2, 3\), got \(2, 1\)'):
                call(np.ones((2, 3)), np.ones((2, 1)))
            with self.assertRaisesRegex(ValueError, r'y must have shape \(2\), got \(3,\)'):
                call(np.ones((2, 3)), np.array([0, 1, 2]))
            for classes in ([0, 3], [-1, 0], [0.0, 1.0], [False, True]):
                with self.assertRaisesRegex(ValueError, 'class numbers must be whole numbers from 0 to 2, got'):
                    call(np.ones((2, 3)), np.array(classes))


class ScaleModule(Module):
    """A layer of one's own, with one parameter: out = scale · x."""

    def __init__(self) -> None:
        self.params, self.grads = {'scale': np.ones(1)}, {'scale': np.zeros(1)}

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.cache = x
        return self.params['scale'] * x

    def backward(self, dout: np.ndarray) -> np.ndarray:
        self.grads['scale'][:] = np.sum(dout * self.cache)
        return self.params['scale'] * dout


@needs_mlp
class MLPTest(ModuleTestCase):
    WIDTHS = ([], [7], [7, 5], [6, 1, 4], [5, 4, 3, 2])

    def make(self, n_hidden: list[int], neg_slope: float = 0.0, scale: float = 5e3) -> 'MLP':
        mlp = mlp_numpy.MLP(6, n_hidden, 4, neg_slope, self.rng)
        for param, _ in mlp.params_and_grads():
            param *= scale  # the reference's initial weights leave nearly no signal
        return mlp

    def loss(self, mlp: 'MLP', x: np.ndarray, y: np.ndarray) -> float:
        return CrossEntropyModule().forward(mlp.forward(x), y)

    def backward(self, mlp: 'MLP', x: np.ndarray, y: np.ndarray) -> None:
        mlp.backward(CrossEntropyModule().backward(mlp.forward(x), y))

    def test_layers(self) -> None:
        def kinds(*args: object, **kwargs: object) -> list[type]:
            return [type(module) for module in mlp_numpy.MLP(*args, **kwargs).modules]

        expected = [LinearModule, ReLUModule, LinearModule, ReLUModule, LinearModule, SoftMaxModule]
        self.assertEqual(kinds(6, [5, 4], 3), expected)
        self.assertEqual(kinds(6, [5], 3, neg_slope=0.1), [LinearModule, LeakyReLUModule, LinearModule, SoftMaxModule])
        self.assertEqual(kinds(6, [], 3), [LinearModule, SoftMaxModule])
        self.assertEqual(mlp_numpy.MLP(6, [5], 3, neg_slope=0.1).modules[1].neg_slope, 0.1)
        expected = [LinearModule, BatchNormModule, ELUModule, DropoutModule, LinearModule, SoftMaxModule]
        self.assertEqual(kinds(6, [5], 3, norm='batch', activation='elu', dropout=0.2), expected)

    def test_the_first_layer_is_told_from_the_others(self) -> None:
        mlp = mlp_numpy.MLP(300, [200, 200], 10, rng=self.rng, init='kaiming')
        stds = [module.params['weight'].std() for module in mlp.modules if module.params]
        np.testing.assert_allclose(stds, [300**-0.5, 0.1, 0.1], rtol=0.05)

    def test_dropout_is_the_networks_and_of_training_alone(self) -> None:
        x = self.rng.randn(8, 6)
        mlps = [mlp_numpy.MLP(6, [50], 4, rng=np.random.RandomState(1), init='torch', dropout=p) for p in (0.0, 0.5)]
        trained, dropped = (mlp.forward(x) for mlp in mlps)
        self.assertTrue((trained != dropped).all())
        self.assertTrue((mlps[1].forward(x) != dropped).any())
        np.testing.assert_array_equal(mlps[0].eval().forward(x), mlps[1].eval().forward(x))
        again = mlp_numpy.MLP(6, [50], 4, rng=np.random.RandomState(1), init='torch', dropout=0.5)
        np.testing.assert_array_equal(again.forward(x), dropped)

    def test_gradients(self) -> None:
        for n_hidden in self.WIDTHS:
            for neg_slope in (0.0, 0.1):
                mlp = self.make(n_hidden, neg_slope)
                x, y = self.rng.randn(8, 6), one_hot(self.rng, 8, 4)
                self.backward(mlp, x, y)
                forward, params = torch_mlp(mlp)
                torch_loss(forward(torch.tensor(x)), y).backward()
                grads = [grad for _, grad in mlp.params_and_grads()]
                for grad, param in zip(grads, params, strict=True):
                    self.assert_close(grad, param.grad.numpy(), 1e-12)
                self.assertGreater(max(np.abs(grad).max() for grad in grads), 1e-3)

    def test_a_layer_of_ones_own_gets_its_gradient_wherever_it_stands(self) -> None:
        for place in range(5):
            mlp = self.make([7])
            scale = ScaleModule()
            mlp.modules.insert(place, scale)
            x, y = self.rng.randn(8, 6), one_hot(self.rng, 8, 4)
            self.backward(mlp, x, y)
            pairs = list(mlp.params_and_grads())
            self.assertEqual(len(pairs), 5)
            self.assertTrue(any(grad is scale.grads['scale'] for _, grad in pairs))
            for param, grad in pairs:
                kept = grad.copy()
                differences = numerical_gradient(lambda mlp=mlp, x=x, y=y: self.loss(mlp, x, y), param, 1.0)
                self.assert_close(kept, differences, 1e-6)

    def test_only_the_first_layer_is_spared_the_gradient_of_its_input(self) -> None:
        mlp = self.make([7])
        returned = []
        for module in mlp.modules:
            module.backward = lambda dout, backward=module.backward: returned.append(backward(dout)) or returned[-1]
        self.backward(mlp, self.rng.randn(8, 6), one_hot(self.rng, 8, 4))
        self.assertEqual([dx is None for dx in returned], [False, False, False, True])
        self.assertEqual(mlp.modules[0].backward(np.ones((8, 7))).shape, (8, 6))  # asked on its own, it answers

    def test_a_layer_that_fails_leaves_the_first_one_as_it_was(self) -> None:
        mlp = self.make([])
        mlp.forward(np.ones((2, 6)))
        mlp.modules[-1].backward = lambda dout: np.ones((3, 4))
        with self.assertRaisesRegex(ValueError, 'dout must have shape'):
            mlp.backward(np.ones((2, 4)))
        self.assertTrue(mlp.modules[0].needs_dx)

    def test_weights_are_drawn_layer_by_layer(self) -> None:
        mlp = mlp_numpy.MLP(6, [5], 3, rng=np.random.RandomState(1))
        rng = np.random.RandomState(1)
        for module, shape in zip(mlp.modules[::2], ((5, 6), (3, 5)), strict=True):
            np.testing.assert_array_equal(module.params['weight'], rng.normal(0, 1e-4, shape))

    def test_state(self) -> None:
        mlp, other = self.make([5]), self.make([5])
        other.load_state_dict(mlp.state_dict())
        for (param, _), (copied, _) in zip(mlp.params_and_grads(), other.params_and_grads(), strict=True):
            np.testing.assert_array_equal(param, copied)
            self.assertIsNot(param, copied)
        for name, wrong in (('0.bias', np.ones(1)), ('0.bias', None), ('1.bias', np.ones(5))):  # NumPy would fit the 1
            state = {name: array for name, array in {**mlp.state_dict(), name: wrong}.items() if array is not None}
            with self.assertRaisesRegex(ValueError, 'in the shapes of this network'):
                other.load_state_dict(state)

    def test_clear_cache(self) -> None:
        mlp = self.make([5])
        mlp.forward(np.ones((2, 6)))
        self.assertTrue(all(module.cache is not None for module in mlp.modules))
        mlp.clear_cache()
        self.assertTrue(all(module.cache is None for module in mlp.modules))

    def test_float32_stays_float32(self) -> None:
        mlp = mlp_numpy.MLP(6, [5], 4, rng=self.rng, dtype=np.float32)
        x, y = self.rng.randn(8, 6).astype(np.float32), one_hot(self.rng, 8, 4).astype(np.float32)
        self.backward(mlp, x, y)
        for arrays in mlp.params_and_grads():
            self.assertEqual([array.dtype for array in arrays], [np.float32, np.float32])
        self.assertEqual(mlp.forward(x).dtype, np.float32)


# Batch normalisation


@needs_batch_norm
class CustomBatchNormTest(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.function = custom_batchnorm.CustomBatchNormManualFunction
        self.module_classes = custom_batchnorm.CustomBatchNormAutograd, custom_batchnorm.CustomBatchNormManualModule

    def test_gradcheck_of_every_subset_of_inputs(self) -> None:
        for n_batch, n_neurons in ((2, 1), (3, 4), (8, 5)):
            for subset in range(1, 8):
                x, gamma, beta = (
                    torch.randn(shape, dtype=torch.float64, requires_grad=bool(subset >> i & 1))
                    for i, shape in enumerate(((n_batch, n_neurons), (n_neurons,), (n_neurons,)))
                )
                for eps in ((), (0.1,)):
                    self.assertTrue(torch.autograd.gradcheck(self.function.apply, (x, gamma, beta, *eps)))

    def test_only_the_gradients_asked_for_are_computed(self) -> None:
        returned = []

        class Spy(self.function):
            @staticmethod
            def backward(ctx: object, dout: torch.Tensor) -> tuple:
                returned.append(self.function.backward(ctx, dout))
                return returned[-1]

        for subset in range(1, 8):
            asked = [bool(subset >> i & 1) for i in range(3)]
            inputs = [torch.randn(shape, requires_grad=a) for shape, a in zip(((4, 3), (3,), (3,)), asked, strict=True)]
            Spy.apply(*inputs, 1e-5).sum().backward()
            self.assertEqual([gradient is not None for gradient in returned[-1]], [*asked, *[False] * 3])

    def test_second_derivatives_of_every_subset_of_inputs(self) -> None:
        for n_batch, n_neurons in ((2, 1), (3, 4)):
            for subset in range(1, 8):
                x, gamma, beta = (
                    torch.randn(shape, dtype=torch.float64, requires_grad=bool(subset >> i & 1))
                    for i, shape in enumerate(((n_batch, n_neurons), (n_neurons,), (n_neurons,)))
                )
                inputs = (x, gamma, beta, 0.1)
                self.assertTrue(torch.autograd.gradcheck(self.function.apply, inputs, check_batched_grad=True))
                self.assertTrue(torch.autograd.gradgradcheck(self.function.apply, inputs, check_batched_grad=True))

    def test_modules_do_as_pytorchs_does(self) -> None:
        for module_class in self.module_classes:
            for eps, momentum in ((1e-5, 0.1), (0.1, 0.1), (1e-5, 0.0), (1e-5, 1.0), (1e-5, 0.3)):
                custom = module_class(6, eps=eps, momentum=momentum).double()
                native = torch.nn.BatchNorm1d(6, eps=eps, momentum=momentum).double()
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

    def test_defaults_and_the_state_at_the_start_are_pytorchs(self) -> None:
        for module_class in self.module_classes:
            custom, native = module_class(3), torch.nn.BatchNorm1d(3)
            self.assertEqual((custom.eps, custom.momentum), (native.eps, native.momentum))
            for ours, theirs in (
                (custom.gamma, native.weight),
                (custom.beta, native.bias),
                (custom.running_mean, native.running_mean),
                (custom.running_var, native.running_var),
            ):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        x = torch.randn(4, 3)
        by_default = self.function.apply(x, torch.ones(3), torch.zeros(3))
        torch.testing.assert_close(by_default, torch.nn.BatchNorm1d(3)(x).detach())

    def test_wrong_inputs(self) -> None:
        for module_class in self.module_classes:
            for shape in ((3, 5), (4,), (2, 4, 1)):
                expected = rf'\(n_batch, 4\), got {re.escape(str(shape))}'
                with self.assertRaisesRegex(ValueError, expected):
                    module_class(4)(torch.ones(shape))
            with self.assertRaisesRegex(ValueError, 'at least two rows'):
                module_class(4)(torch.ones(1, 4))
            self.assertEqual(module_class(4).eval()(torch.ones(1, 4)).shape, (1, 4))

    def test_under_autocast(self) -> None:
        x = torch.randn(64, 32)
        for module_class in self.module_classes:
            net = torch.nn.Sequential(torch.nn.Linear(32, 8), module_class(8))
            with torch.autocast('cpu', torch.bfloat16):
                narrow = net(x)
            self.assertEqual(narrow.dtype, torch.bfloat16)
            torch.testing.assert_close(narrow.float(), net(x), rtol=0.05, atol=0.05)


@needs_layer_norm
class CustomLayerNormTest(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.function = custom_layernorm.CustomLayerNormManualFunction
        self.module_classes = custom_layernorm.CustomLayerNormAutograd, custom_layernorm.CustomLayerNormManualModule

    def test_first_and_second_derivatives_of_every_subset_of_inputs(self) -> None:
        for n_batch, n_neurons in ((1, 2), (3, 4)):
            for subset in range(1, 8):
                x, gamma, beta = (
                    torch.randn(shape, dtype=torch.float64, requires_grad=bool(subset >> i & 1))
                    for i, shape in enumerate(((n_batch, n_neurons), (n_neurons,), (n_neurons,)))
                )
                inputs = (x, gamma, beta, 0.1)
                self.assertTrue(torch.autograd.gradcheck(self.function.apply, (x, gamma, beta)))
                self.assertTrue(torch.autograd.gradcheck(self.function.apply, inputs, check_batched_grad=True))
                self.assertTrue(torch.autograd.gradgradcheck(self.function.apply, inputs, check_batched_grad=True))

    def test_only_the_gradients_asked_for_are_computed(self) -> None:
        dout, x, gamma = torch.randn(4, 3), torch.randn(4, 3), torch.randn(3)
        for subset in range(1, 8):
            asked = tuple(bool(subset >> i & 1) for i in range(3))
            returned = custom_layernorm.CustomLayerNormManualBackward.apply(dout, x, gamma, 1e-5, asked)
            self.assertEqual(tuple(gradient is not None for gradient in returned), asked)

    def test_modules_do_as_pytorchs_does(self) -> None:
        for module_class in self.module_classes:
            for eps in (1e-5, 0.1):
                custom, native = module_class(6, eps=eps).double(), torch.nn.LayerNorm(6, eps=eps).double()
                with torch.no_grad():
                    for ours, theirs in ((custom.gamma, native.weight), (custom.beta, native.bias)):
                        theirs.copy_(ours.copy_(torch.randn(6)))
                x, dout = torch.randn(2, 7, 6, dtype=torch.float64)
                results = []
                for module in (custom, native):
                    leaf = x.clone().requires_grad_()
                    out = module(leaf)
                    out.backward(dout)
                    results.append([out.detach(), leaf.grad, *(param.grad for param in module.parameters())])
                for ours, theirs in zip(*results, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    def test_wrong_inputs(self) -> None:
        for module_class in self.module_classes:
            for shape in ((3, 5), (4,), (2, 4, 1)):
                expected = rf'\(n_batch, 4\), got {re.escape(str(shape))}'
                with self.assertRaisesRegex(ValueError, expected):
                    module_class(4)(torch.ones(shape))
            self.assertEqual(module_class(4)(torch.ones(1, 4)).shape, (1, 4))


class NormModuleTest(ModuleTestCase):
    """The normalisations in NumPy: beside central differences and PyTorch."""

    def pairs(self, width: int) -> list[tuple[Module, torch.nn.Module]]:
        """A module of each kind, and PyTorch's own, with the same gamma, beta and running statistics."""
        pairs = [
            (BatchNormModule(width, eps=0.1), torch.nn.BatchNorm1d(width, eps=0.1)),
            (LayerNormModule(width, eps=0.1), torch.nn.LayerNorm(width, eps=0.1)),
        ]
        for module, native in pairs:
            native.double()
            for name, array in {**module.params, **module.buffers}.items():
                array[:] = self.rng.rand(width) + 0.5
                named = {'gamma': 'weight', 'beta': 'bias'}.get(name, name)
                native.state_dict()[named].copy_(torch.as_tensor(array))
        return pairs

    def test_gradients(self) -> None:
        for n, width, training in ((2, 1, True), (6, 4, True), (1, 3, False), (5, 4, False)):
            for module, native in self.pairs(width):
                x, dout = self.rng.randn(n, width) * 2 + 3, self.rng.randn(n, width)
                self.assertIs(module.train(training), module)
                native.train(training)
                leaf = torch.tensor(x, requires_grad=True)
                expected = native(leaf)
                expected.backward(torch.as_tensor(dout))
                self.assert_close(module.forward(x), expected.detach().numpy(), 1e-12)
                for name, buffer in module.buffers.items():
                    self.assert_close(buffer, getattr(native, name).numpy(), 1e-12)
                actual = {'x': module.backward(dout), **module.grads}
                by_torch = (leaf.grad, native.weight.grad, native.bias.grad)
                for name, array, by in zip(('x', 'gamma', 'beta'), (x, *module.params.values()), by_torch, strict=True):
                    self.assert_close(actual[name], by.numpy(), 1e-12)
                    differences = numerical_gradient(lambda x=x, module=module: module.forward(x), array, dout)
                    self.assert_close(actual[name], differences, 1e-7)

    def test_what_is_kept_survives_changes_of_the_input_and_of_the_output(self) -> None:
        for module, _ in self.pairs(4):
            x, dout = self.rng.randn(6, 4), self.rng.randn(6, 4)
            module.forward(x)
            expected = module.backward(dout)
            out = module.forward(x)
            x += 1
            out *= 2
            np.testing.assert_array_equal(module.backward(dout), expected)

    def test_evaluation_mode_leaves_the_running_statistics_alone(self) -> None:
        module = BatchNormModule(4).eval()
        module.forward(self.rng.randn(6, 4))
        np.testing.assert_array_equal(module.buffers['running_mean'], 0)
        np.testing.assert_array_equal(module.buffers['running_var'], 1)

    def test_wrong_inputs_and_no_dx(self) -> None:
        for module in (BatchNormModule(3), LayerNormModule(3)):
            self.check_refused_shapes(module, np.arange(6.0).reshape(2, 3))
            with self.assertRaisesRegex(ValueError, r'x must have shape \(n_batch, 3\), got \(2, 4\)'):
                module.forward(np.ones((2, 4)))
            module.forward(np.array([[1, 2, 4], [3, 5, 7]]))  # whole numbers do not wrap
            module.needs_dx = False
            self.assertIsNone(module.backward(np.ones((2, 3))))
        with self.assertRaisesRegex(ValueError, 'at least two rows'):
            BatchNormModule(3).forward(np.ones((1, 3)))
        self.assertEqual(BatchNormModule(3).eval().forward(np.ones((1, 3))).shape, (1, 3))

    def test_float32_stays_float32(self) -> None:
        for module in (BatchNormModule(3, dtype=np.float32), LayerNormModule(3, dtype=np.float32)):
            x = self.rng.randn(4, 3).astype(np.float32)
            self.assertEqual((module.forward(x).dtype, module.backward(x).dtype), (np.float32, np.float32))
            self.assertEqual({array.dtype for array in (*module.grads.values(), *module.buffers.values())},
                             {np.dtype(np.float32)})  # fmt: skip

    @needs_mlp
    def test_in_a_network(self) -> None:
        for norm, kind in (('batch', BatchNormModule), ('layer', LayerNormModule)):
            mlp = mlp_numpy.MLP(6, [5, 4], 3, rng=self.rng, norm=norm)
            self.assertEqual([type(module) for module in mlp.modules[:3]], [LinearModule, kind, ReLUModule])
            for param, _ in mlp.params_and_grads():
                param += self.rng.randn(*param.shape) * 0.5
            x, y = self.rng.randn(7, 6), one_hot(self.rng, 7, 3)
            mlp.backward(CrossEntropyModule().backward(mlp.forward(x), y))
            for param, grad in mlp.params_and_grads():
                loss = lambda: CrossEntropyModule().forward(mlp.forward(x), y)  # noqa: B023, E731
                self.assert_close(grad.copy(), numerical_gradient(loss, param, 1.0), 1e-6)
            other = mlp_numpy.MLP(6, [5, 4], 3, norm=norm)
            other.load_state_dict(mlp.state_dict())
            np.testing.assert_array_equal(other.eval().forward(x), mlp.eval().forward(x))
            self.assertEqual({module.training for module in mlp.modules}, {False})
            self.assertEqual({module.training for module in mlp.train().modules}, {True})


# The equations of REPORT.md


class EquationTestCase(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        self.addCleanup(torch.set_default_dtype, torch.float32)
        # One example: a layer's input x (5,), its W and b, its output x_tilde (4,), and a loss beyond it.
        self.x, self.W, self.b, self.dout = torch.randn(5), torch.randn(4, 5), torch.randn(4), torch.randn(4)
        self.x_tilde = self.W @ self.x + self.b
        self.t = one_hot_rows(1, 4)[0]
        # A batch: the same with a row per example; the loss beyond is Σ dY · layer(X).
        self.X, self.X_tilde, self.dY, self.T = (
            torch.randn(6, 5),
            torch.randn(6, 4),
            torch.randn(6, 4),
            one_hot_rows(6, 4),
        )
        # Batch normalisation of X_tilde, each neuron a column.
        self.gamma, self.beta, self.eps = torch.randn(4), torch.randn(4), 0.1
        self.mean, self.var = self.X_tilde.mean(dim=0), self.X_tilde.var(dim=0, correction=0)
        self.x_hat = (self.X_tilde - self.mean) / (self.var + self.eps).sqrt()

    def assert_jacobian(self, function: Callable, at: torch.Tensor, expected: torch.Tensor) -> None:
        """Holds `expected` to autograd's derivative of `function` at `at`: indices of the output, then of the input."""
        actual = torch.autograd.functional.jacobian(function, at)
        self.assertEqual(actual.shape, expected.shape)
        torch.testing.assert_close(expected, actual, rtol=1e-10, atol=1e-12)

    def assert_module(self, actual: np.ndarray, expected: torch.Tensor) -> None:
        """Holds what the code computes to the equation."""
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-10, atol=1e-12)

    def normalise(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return (x - mean) / (var + self.eps).sqrt()

    def normalise_batch(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalise(x, x.mean(dim=0), x.var(dim=0, correction=0))


class EquationTest(EquationTestCase):
    """Each equation of REPORT.md at random points: `test_equation_7_…` holds its right-hand side to autograd's left."""

    # 1.1 a: the modules, for one example

    def test_equation_1_cross_entropy(self) -> None:
        x = self.x_tilde.softmax(dim=0)
        self.assert_jacobian(lambda x: -(self.t * x.log()).sum(), x, -self.t / x)

    def test_equation_2_softmax(self) -> None:
        x = self.x_tilde.softmax(dim=0)
        self.assert_jacobian(lambda x: x.softmax(dim=0), self.x_tilde, x.diag() - torch.outer(x, x))

    def test_equation_3_rectifiers(self) -> None:
        for slope in (0.0, 0.2):
            derivative = torch.where(self.x_tilde > 0, 1.0, slope)
            self.assertEqual(len(derivative.unique()), 2)  # both sides of zero are there
            self.assert_jacobian(lambda x, a=slope: leaky_relu(x, a), self.x_tilde, derivative.diag())

    def test_equation_4_linear_in_x(self) -> None:
        self.assert_jacobian(lambda x: self.W @ x + self.b, self.x, self.W)

    def test_equation_5_linear_in_weight(self) -> None:
        expected = torch.zeros(4, 4, 5)
        for i, j, k in np.ndindex(4, 4, 5):
            expected[i, j, k] = (i == j) * self.x[k]
        self.assert_jacobian(lambda W: W @ self.x + self.b, self.W, expected)

    def test_equation_6_linear_in_bias(self) -> None:
        self.assert_jacobian(lambda b: self.W @ self.x + b, self.b, torch.eye(4))

    # 1.1 b: propagated

    def test_equation_7_loss_in_the_logits(self) -> None:
        loss = lambda x: -(self.t * x.softmax(dim=0).log()).sum()  # noqa: E731
        self.assert_jacobian(loss, self.x_tilde, self.x_tilde.softmax(dim=0) - self.t)

    def test_equation_8_through_a_rectifier(self) -> None:
        for slope in (0.0, 0.2):
            expected = self.dout * torch.where(self.x_tilde > 0, 1.0, slope)
            self.assert_jacobian(lambda x, a=slope: self.dout @ leaky_relu(x, a), self.x_tilde, expected)

    def test_equation_9_through_a_linear_layer(self) -> None:
        self.assert_jacobian(lambda x: self.dout @ (self.W @ x + self.b), self.x, self.dout @ self.W)

    def test_equation_10_loss_in_a_weight(self) -> None:
        expected = torch.outer(self.dout, self.x)
        self.assert_jacobian(lambda W: self.dout @ (W @ self.x + self.b), self.W, expected)

    def test_equation_11_loss_in_a_bias(self) -> None:
        self.assert_jacobian(lambda b: self.dout @ (self.W @ self.x + b), self.b, self.dout)

    # 1.1 c: with a batch, as the modules compute it

    def test_equation_12_mean_cross_entropy(self) -> None:
        X, eps = self.X_tilde.softmax(dim=1), CrossEntropyModule.EPS
        expected = -self.T / (X + eps) / 6
        self.assert_jacobian(lambda X: -(self.T * (X + eps).log()).sum() / 6, X, expected)
        self.assert_module(CrossEntropyModule().backward(X.numpy(), self.T.numpy()), expected)

    def test_equation_13_softmax_of_a_batch(self) -> None:
        X = self.X_tilde.softmax(dim=1)
        expected = X * (self.dY - (self.dY * X).sum(dim=1, keepdim=True))
        self.assert_jacobian(lambda x: (self.dY * x.softmax(dim=1)).sum(), self.X_tilde, expected)
        module = SoftMaxModule()
        module.forward(self.X_tilde.numpy())
        self.assert_module(module.backward(self.dY.numpy()), expected)

    def test_equation_14_mean_loss_in_the_logits(self) -> None:
        X = self.X_tilde.softmax(dim=1)
        expected = (X - self.T) / 6
        self.assert_jacobian(lambda x: -(self.T * x.log_softmax(dim=1)).sum() / 6, self.X_tilde, expected)

    def test_equation_15_rectifiers_of_a_batch(self) -> None:
        for slope, module in ((0.0, ReLUModule()), (0.2, LeakyReLUModule(0.2))):
            expected = self.dY * torch.where(self.X_tilde > 0, 1.0, slope)
            self.assert_jacobian(lambda x, a=slope: (self.dY * leaky_relu(x, a)).sum(), self.X_tilde, expected)
            module.forward(self.X_tilde.numpy())
            self.assert_module(module.backward(self.dY.numpy()), expected)

    def test_equation_34_elu(self) -> None:
        for alpha in (0.5, 1.0):
            elu = lambda x, alpha=alpha: torch.where(x > 0, x, alpha * (x.exp() - 1))  # noqa: E731
            expected = torch.diag((self.x_tilde > 0) + alpha * self.x_tilde.exp() * (self.x_tilde <= 0))
            self.assert_jacobian(elu, self.x_tilde, expected)

    def test_equation_35_elu_of_a_batch(self) -> None:
        for alpha in (0.5, 1.0):
            elu = lambda x, alpha=alpha: torch.nn.functional.elu(x, alpha)  # noqa: E731
            expected = self.dY * ((self.X_tilde > 0) + alpha * self.X_tilde.exp() * (self.X_tilde <= 0))
            self.assert_jacobian(lambda x, elu=elu: (self.dY * elu(x)).sum(), self.X_tilde, expected)
            module = ELUModule(alpha)
            module.forward(self.X_tilde.numpy())
            self.assert_module(module.backward(self.dY.numpy()), expected)

    def test_equation_36_dropout(self) -> None:
        module = DropoutModule(0.5, np.random.RandomState(0))
        module.forward(self.X_tilde.numpy())
        mask = torch.from_numpy(module.cache)
        self.assertEqual(set(mask.unique().tolist()), {0, 2})
        self.assert_jacobian(lambda x: (self.dY * mask * x).sum(), self.X_tilde, mask * self.dY)
        self.assert_module(module.backward(self.dY.numpy()), mask * self.dY)

    def test_equation_37_variance_of_a_linear_layer(self) -> None:
        rng = np.random.RandomState(0)
        for x in (rng.randn(400, 300), np.maximum(rng.randn(400, 300), 0), rng.uniform(1, 2, (400, 300))):
            out = x @ rng.normal(0, 0.3, (300, 500))
            self.assertAlmostEqual(out.var() / (300 * 0.3**2 * (x**2).mean()), 1, delta=0.03)

    @needs_mlp
    def test_equation_38_variances_stay_with_kaimings_weights_alone(self) -> None:
        def variances(init: str) -> list[float]:
            rng = np.random.RandomState(0)
            modules = mlp_numpy.MLP(500, [500] * 8, 500, rng=rng, init=init).modules[:-1]
            x, found = rng.randn(500, 500), []
            for module in modules:
                x = module.forward(x)
                found += [x.var()] if module.params else []
            return found

        np.testing.assert_allclose(variances('kaiming'), 1, rtol=0.25)
        expected = [1 / 3 + 1 / 1500]  # PyTorch's biases have a variance, too, of 1 / (3 d)
        for _ in range(8):
            expected.append(expected[-1] / 6 + 1 / 1500)
        np.testing.assert_allclose(variances('torch'), expected, rtol=0.25)
        np.testing.assert_allclose(variances('report')[:2], [500 * 1e-8, (500 * 1e-8) ** 2 / 2], rtol=0.1)

    def linear_module(self) -> LinearModule:
        """A module with W and b that has seen X, and what its backward returns for dY."""
        module = LinearModule(5, 4)
        module.params = {'weight': self.W.numpy(), 'bias': self.b.numpy()}
        module.forward(self.X.numpy())
        return module

    def test_equation_16_linear_in_a_batch(self) -> None:
        expected = self.dY @ self.W
        self.assert_jacobian(lambda X: (self.dY * (X @ self.W.T + self.b)).sum(), self.X, expected)
        self.assert_module(self.linear_module().backward(self.dY.numpy()), expected)

    def test_equation_17_weight_over_a_batch(self) -> None:
        expected = self.dY.T @ self.X
        self.assert_jacobian(lambda W: (self.dY * (self.X @ W.T + self.b)).sum(), self.W, expected)
        torch.testing.assert_close(expected, sum(torch.outer(d, x) for d, x in zip(self.dY, self.X, strict=True)))
        module = self.linear_module()
        module.backward(self.dY.numpy())
        self.assert_module(module.grads['weight'], expected)

    def test_equation_18_bias_over_a_batch(self) -> None:
        expected = self.dY.sum(dim=0)
        self.assert_jacobian(lambda b: (self.dY * (self.X @ self.W.T + b)).sum(), self.b, expected)
        module = self.linear_module()
        module.backward(self.dY.numpy())
        self.assert_module(module.grads['bias'], expected)


@needs_batch_norm
class BatchNormEquationTest(EquationTestCase):
    """The equations of question 3.2 a; with dout = dY, and the batch in X_tilde."""

    def test_equation_19_loss_in_beta(self) -> None:
        expected = self.dY.sum(dim=0)
        self.assert_jacobian(lambda beta: (self.dY * (self.gamma * self.x_hat + beta)).sum(), self.beta, expected)

    def test_equation_20_loss_in_gamma(self) -> None:
        expected = (self.dY * self.x_hat).sum(dim=0)
        self.assert_jacobian(lambda gamma: (self.dY * (gamma * self.x_hat + self.beta)).sum(), self.gamma, expected)

    def test_equation_21_loss_in_x_hat(self) -> None:
        loss = lambda x_hat: (self.dY * (self.gamma * x_hat + self.beta)).sum()  # noqa: E731
        self.assert_jacobian(loss, self.x_hat, self.dY * self.gamma)

    def test_equation_22_loss_in_the_variance(self) -> None:
        dx_hat = self.dY * self.gamma
        expected = -0.5 * (self.var + self.eps) ** -1.5 * (dx_hat * (self.X_tilde - self.mean)).sum(dim=0)
        loss = lambda var: (dx_hat * self.normalise(self.X_tilde, self.mean, var)).sum()  # noqa: E731
        self.assert_jacobian(loss, self.var, expected)

    def test_equation_23_loss_in_the_mean(self) -> None:
        """The variance is that around the mean, so that the mean acts through it too; that part is zero."""
        dx_hat = self.dY * self.gamma
        expected = -dx_hat.sum(dim=0) / (self.var + self.eps).sqrt()

        def loss(mean: torch.Tensor) -> torch.Tensor:
            var = ((self.X_tilde - mean) ** 2).mean(dim=0)
            return (dx_hat * self.normalise(self.X_tilde, mean, var)).sum()

        self.assert_jacobian(loss, self.mean, expected)

    def test_equation_24_the_three_ways_from_x_to_the_loss(self) -> None:
        dx_hat, rstd, centred = self.dY * self.gamma, (self.var + self.eps).rsqrt(), self.X_tilde - self.mean
        dvar = -0.5 * rstd**3 * (dx_hat * centred).sum(dim=0)
        dmean = -rstd * dx_hat.sum(dim=0)
        expected = dx_hat * rstd + dvar * 2 * centred / 6 + dmean / 6
        self.assert_jacobian(lambda x: (dx_hat * self.normalise_batch(x)).sum(), self.X_tilde, expected)

    def test_equation_25_what_the_code_computes(self) -> None:
        dbeta, dgamma = self.dY.sum(dim=0), (self.dY * self.x_hat).sum(dim=0)
        expected = self.gamma / (self.var + self.eps).sqrt() * (self.dY - dbeta / 6 - self.x_hat * dgamma / 6)
        loss = lambda x: (self.dY * (self.gamma * self.normalise_batch(x) + self.beta)).sum()  # noqa: E731
        self.assert_jacobian(loss, self.X_tilde, expected)
        inputs = [tensor.clone().requires_grad_() for tensor in (self.X_tilde, self.gamma, self.beta)]
        custom_batchnorm.CustomBatchNormManualFunction.apply(*inputs, self.eps).backward(self.dY)
        for tensor, gradient in zip(inputs, (expected, dgamma, dbeta), strict=True):
            self.assert_module(tensor.grad.numpy(), gradient)

    def test_equation_26_the_jacobian_of_a_neuron(self) -> None:
        x_hat, rstd = self.x_hat[:, 0], (self.var[0] + self.eps).rsqrt()
        expected = rstd * (torch.eye(6) - 1 / 6 - torch.outer(x_hat, x_hat) / 6)
        self.assert_jacobian(self.normalise_batch, self.X_tilde[:, 0], expected)

    def test_equation_27_evaluation_mode(self) -> None:
        module = custom_batchnorm.CustomBatchNormManualModule(4, self.eps).eval()
        with torch.no_grad():
            for tensor in (module.gamma, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(4) + 0.5)
        expected = self.dY * module.gamma.detach() / (module.running_var + self.eps).sqrt()
        self.assert_jacobian(lambda x: (self.dY * module(x)).sum(), self.X_tilde, expected)


class SecondDerivativeEquationTest(EquationTestCase):
    """The backward pass of the backward pass: gradients of a second loss, Σ U · dx + v · dgamma + w · dbeta."""

    dim = 0  # that is normalised over

    def setUp(self) -> None:
        super().setUp()
        self.U, self.v, self.w = torch.randn(6, 4), torch.randn(4), torch.randn(4)
        centred = self.X_tilde - self.mean_of(self.X_tilde)
        self.rstd = (self.mean_of(centred**2) + self.eps).rsqrt()
        self.x_hat = centred * self.rstd

    def mean_of(self, array: torch.Tensor) -> torch.Tensor:
        return array.mean(dim=self.dim, keepdim=True)

    def project(self, array: torch.Tensor) -> torch.Tensor:
        return array - self.mean_of(array) - self.x_hat * self.mean_of(self.x_hat * array)

    def second_loss(self, dY: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        """By autograd, out of the forward pass alone."""
        inputs = [tensor if tensor.requires_grad else tensor.clone().requires_grad_() for tensor in (x, gamma)]
        centred = inputs[0] - self.mean_of(inputs[0])
        x_hat = centred * (self.mean_of(centred**2) + self.eps).rsqrt()
        beta = self.beta.clone().requires_grad_()
        gradients = torch.autograd.grad((dY * (inputs[1] * x_hat + beta)).sum(), (*inputs, beta), create_graph=True)
        return sum((gradient * by).sum() for gradient, by in zip(gradients, (self.U, self.v, self.w), strict=True))

    def of_x_hat(self) -> torch.Tensor:
        dx_hat = self.gamma * self.dY
        means = self.U * self.mean_of(self.x_hat * dx_hat) + dx_hat * self.mean_of(self.x_hat * self.U)
        return self.v * self.dY - self.rstd * means

    def test_equation_28_second_loss_in_dout(self) -> None:
        expected = self.gamma * self.rstd * self.project(self.U) + self.v * self.x_hat + self.w
        self.assert_jacobian(lambda dY: self.second_loss(dY, self.X_tilde, self.gamma), self.dY, expected)

    def test_equation_29_second_loss_in_gamma(self) -> None:
        expected = (self.dY * self.rstd * self.project(self.U)).sum(dim=0)
        self.assert_jacobian(lambda gamma: self.second_loss(self.dY, self.X_tilde, gamma), self.gamma, expected)

    def test_equation_30_second_loss_in_x_hat(self) -> None:
        """With 1 / √(variance + eps) held fixed."""

        def loss(x_hat: torch.Tensor) -> torch.Tensor:
            dx_hat = self.gamma * self.dY
            dx = self.rstd * (dx_hat - self.mean_of(dx_hat) - x_hat * self.mean_of(x_hat * dx_hat))
            return (self.U * dx).sum() + (self.v * self.dY * x_hat).sum() + (self.w * self.dY).sum()

        self.assert_jacobian(loss, self.x_hat, self.of_x_hat())

    def test_equation_31_rstd_in_x(self) -> None:
        expected = -(self.rstd**2) * self.x_hat / self.X_tilde.shape[self.dim]

        def rstd(x: torch.Tensor) -> torch.Tensor:
            return ((x - self.mean_of(x)).square().mean(dim=self.dim) + self.eps).rsqrt().sum()

        self.assert_jacobian(rstd, self.X_tilde, expected)

    def test_equation_32_second_loss_in_x(self) -> None:
        through_rstd = self.rstd**2 * self.x_hat * self.mean_of(self.U * self.project(self.gamma * self.dY))
        expected = self.rstd * self.project(self.of_x_hat()) - through_rstd
        self.assert_jacobian(lambda x: self.second_loss(self.dY, x, self.gamma), self.X_tilde, expected)


class LayerNormSecondDerivativeEquationTest(SecondDerivativeEquationTest):
    """Equations 28 to 32 of layer normalisation: the mean is over an example's neurons, of gammas of their own."""

    dim = 1


@needs_layer_norm
class LayerNormEquationTest(EquationTestCase):
    """The equation of question 3.3; with dout = dY, and the batch in X_tilde."""

    def test_equation_33_layer_norm_in_x(self) -> None:
        def normalise(x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, correction=0, keepdim=True) + self.eps).sqrt()

        x_hat, dx_hat = normalise(self.X_tilde), self.gamma * self.dY
        rstd = (self.X_tilde.var(dim=1, correction=0, keepdim=True) + self.eps).rsqrt()
        bracket = dx_hat - dx_hat.sum(dim=1, keepdim=True) / 4 - x_hat * (dx_hat * x_hat).sum(dim=1, keepdim=True) / 4
        loss = lambda x: (self.dY * (self.gamma * normalise(x) + self.beta)).sum()  # noqa: E731
        self.assert_jacobian(loss, self.X_tilde, rstd * bracket)
        x = self.X_tilde.clone().requires_grad_()
        custom_layernorm.CustomLayerNormManualFunction.apply(x, self.gamma, self.beta, self.eps).backward(self.dY)
        self.assert_module(x.grad.numpy(), rstd * bracket)


class ErrataTest(EquationTestCase):
    """What REPORT.md lists as wrong in the student's report: `test_erratum_19` is of that report's equation 19."""

    def test_erratum_6_the_sum_depends_on_every_logit(self) -> None:
        self.assert_jacobian(lambda x: x.exp().sum(), self.x_tilde, self.x_tilde.exp())
        self.assertGreater(self.x_tilde.exp().min(), 0)

    def test_erratum_18_is_the_identity(self) -> None:
        jacobian = torch.autograd.functional.jacobian(lambda b: self.W @ self.x + b, self.b)
        self.assertTrue(torch.equal(jacobian, torch.eye(4)))

    def test_erratum_19_is_zero_for_every_softmax_output(self) -> None:
        x = self.x_tilde.softmax(dim=0)
        torch.testing.assert_close(-self.t * (1 - x.sum()), torch.zeros(4), rtol=0, atol=1e-15)
        loss = lambda x: -(self.t * x.softmax(dim=0).log()).sum()  # noqa: E731
        gradient = torch.autograd.functional.jacobian(loss, self.x_tilde)
        torch.testing.assert_close(gradient, x - self.t)
        self.assertGreater(gradient.abs().min(), 1e-6)

    def test_erratum_20_is_a_row(self) -> None:
        """The product that the report writes down, of a row and a square matrix, and it is the gradient."""
        product = self.dout[None] @ torch.diag((self.x_tilde > 0).double())
        self.assertEqual(product.shape, (1, 4))
        self.assert_jacobian(lambda x: self.dout @ x.relu(), self.x_tilde, product[0])

    def test_erratum_22_has_the_weights_shape(self) -> None:
        """In the shape that the report gives the gradient it cannot be taken from the weights; without the 1 it can."""
        in_weight = torch.autograd.functional.jacobian(lambda W: W @ self.x + self.b, self.W)
        as_told = torch.tensordot(self.dout[None], in_weight, dims=1)
        self.assertEqual(as_told.shape, (1, 4, 5))
        weight = self.W.clone()
        with self.assertRaises(RuntimeError):
            weight -= 0.1 * as_told
        weight -= 0.1 * as_told[0]
        self.assertLess(self.dout @ (weight @ self.x), self.dout @ (self.W @ self.x))

    def test_erratum_23_does_not_follow_from_a_matrix_of_ones(self) -> None:
        torch.testing.assert_close(self.dout @ torch.ones(4, 4), self.dout.sum().expand(4))
        self.assertGreater((self.dout @ torch.ones(4, 4) - self.dout).abs().max(), 0.1)

    def test_erratum_batch_shapes(self) -> None:
        """Of 1.1 c: the examples' gradients in the biases, stacked, are none of the loss, a mean; their mean is."""
        stacked, b = self.dY.numpy(), self.b.numpy()
        mean_loss = lambda: float((stacked * (self.X @ self.W.T + self.b).numpy()).sum(axis=1).mean())  # noqa: E731
        gradient = numerical_gradient(mean_loss, b, 1.0)
        self.assertEqual((stacked.shape, gradient.shape), ((6, 4), (4,)))
        with self.assertRaises(ValueError):
            b -= 0.1 * stacked
        np.testing.assert_allclose(gradient, stacked.mean(axis=0), atol=1e-8)
        self.assertGreater(abs(gradient - stacked.sum(axis=0)).max(), 0.1)  # without the 1 / B


def one_hot_rows(n: int, n_classes: int) -> torch.Tensor:
    return torch.eye(n_classes)[torch.randint(n_classes, (n,))]


def load_tests(loader: unittest.TestLoader, here: unittest.TestSuite, _: str | None) -> unittest.TestSuite:
    """The tests of this file and, where they are at hand, those of `tests/`, which need signals that Windows lacks."""
    root = Path(__file__).parent
    if (root / 'tests').is_dir() and os.name != 'nt':
        here.addTests(loader.discover(str(root / 'tests'), top_level_dir=str(root)))
    return here


def main() -> int:
    """Runs the tests that the command line asks for; returns the exit status."""
    result = unittest.main(verbosity=2, exit=False).result
    # A subtest counts as its test; what failed before a class's tests could run is none.
    failed = {getattr(test, 'test_case', test) for test, _ in result.failures + result.errors}
    n_skipped = len(result.skipped)
    n_passed = result.testsRun - n_skipped - sum(isinstance(test, unittest.TestCase) for test in failed)
    print(f'{n_passed} passed, {len(failed)} failed, {n_skipped} skipped')
    if not result.testsRun:
        print('no test has such a name; small and capital letters count', file=sys.stderr)
        return 2
    return 0 if result.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main())
