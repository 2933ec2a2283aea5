"""The layers as a course's own tests use them: with nothing but `modules`, by position, in float64."""

import unittest

import numpy as np

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

SHAPES = [(1, 1), (1, 5), (7, 1), (4, 6)]


class CourseTest(unittest.TestCase):
    def setUp(self) -> None:
        np.random.seed(42)

    def assert_gradient(
        self, module: Module, dout: np.ndarray, array: np.ndarray, x: np.ndarray, actual: object
    ) -> None:
        """Holds a gradient to differences: `array`, x or a parameter, is perturbed in place between two calls."""
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            before, out = array[index], []
            for change in (1e-6, -1e-6):
                array[index] = before + change
                out.append(module.forward(x))
            array[index] = before
            expected[index] = (dout * (out[0] - out[1])).sum() / 2e-6
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

    def check(self, module: Module, x: np.ndarray) -> None:
        """The gradients with respect to the input and to each parameter."""
        dout = np.random.randn(*module.forward(x).shape)
        dx = module.backward(dout)
        grads = {name: grad.copy() for name, grad in module.grads.items()}
        self.assertEqual(dx.shape, x.shape)
        self.assert_gradient(module, dout, x, x, dx)
        for name, param in module.params.items():
            self.assertEqual(param.shape, grads[name].shape)
            self.assert_gradient(module, dout, param, x, grads[name])
        module.clear_cache()

    def test_layers(self) -> None:
        for n, width in SHAPES:
            x = np.random.uniform(0.1, 1, (n, width)) * np.random.choice([-1, 1], (n, width))
            for module in (
                LinearModule(width, 3), LinearModule(width, 3, False), LinearModule(width, 3, True),
                LinearModule(width, 3, input_layer=True), ReLUModule(), LeakyReLUModule(0.1), ELUModule(),
                ELUModule(0.5), ELUModule(alpha=2.0), SoftMaxModule(), LayerNormModule(width),
                LayerNormModule(width, 0.1), BatchNormModule(width).eval(), DropoutModule(0.5, np.random).eval(),
            ):  # fmt: skip
                with self.subTest(type(module).__name__, shape=x.shape):
                    self.check(module, x)
            if n > 1:
                self.check(BatchNormModule(width), x)

    def test_loss_whose_forward_was_never_called(self) -> None:
        for n, n_classes in SHAPES:
            x = np.random.uniform(0.1, 1, (n, n_classes))
            classes = np.random.randint(n_classes, size=n)
            one_hot = np.eye(n_classes)[classes]
            for y in (one_hot, *(classes.astype(f'{kind}{size}') for kind in 'iu' for size in (1, 2, 4, 8))):
                dx = CrossEntropyModule().backward(x, y)
                expected = np.zeros_like(x)
                for index in np.ndindex(x.shape):
                    before, losses = x[index], []
                    for change in (1e-6, -1e-6):
                        x[index] = before + change
                        losses.append(CrossEntropyModule().forward(x, y))
                    x[index] = before
                    expected[index] = (losses[0] - losses[1]) / 2e-6
                np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


if __name__ == '__main__':
    unittest.main()
