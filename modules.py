"""The layers and the loss of a multi-layer perceptron, with backward passes derived by hand.

Each module states its forward formula and its backward rule, keeps in `forward` exactly what its `backward` needs, and
`backward(dout)` turns the loss's gradient with respect to the module's output into the one with respect to its input.
Every array has one row per example: x is (n_batch, n_in), dout is (n_batch, n_out). REPORT.md derives the equations.

A layer of your own is a class with these two methods. If it has parameters, it keeps them in `params` and writes their
gradients into `grads`, under the same names; the network and the optimiser ask for nothing else:

    class ScaleModule(Module):  # out = scale · x
        def __init__(self):
            self.params, self.grads = {'scale': np.ones(1)}, {'scale': np.zeros(1)}

        def forward(self, x):
            self.cache = x
            return self.params['scale'] * x

        def backward(self, dout):
            self.grads['scale'][:] = np.sum(dout * self.cache)
            return self.params['scale'] * dout
"""

import numpy as np


class Module:
    """What all layers have.

    `params` and `grads` hold arrays by name, and are empty until a layer gives itself some; so does `buffers`, those
    that are kept with a network but learnt by no gradient, such as running statistics. `cache` is what `forward` keeps
    for `backward`; `training` is false in evaluation mode, which is no other mode to most layers; where `needs_dx` is
    false, nobody asks for the gradient that `backward` returns, and a layer may save itself the work.
    """

    cache: object = None
    needs_dx = True
    training = True

    def __new__(cls, *args: object, **kwargs: object) -> 'Module':
        """A module whose class need not remember to call `super().__init__()`."""
        module = super().__new__(cls)
        module.params, module.grads, module.buffers = {}, {}, {}
        return module

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output for a batch x."""
        raise NotImplementedError

    def backward(self, dout: np.ndarray) -> np.ndarray | None:
        """Fills `grads`, and returns the gradient with respect to the x of the last `forward`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'Module':
        """Goes into training mode, or with False into evaluation mode; returns the module."""
        self.training = mode
        return self

    def eval(self) -> 'Module':
        """Goes into evaluation mode; returns the module."""
        return self.train(False)

    def clear_cache(self) -> None:
        """Lets go of what the last `forward` has kept."""
        self.cache = None


def check_shape(what: str, array: np.ndarray, expected: tuple[int | str, ...]) -> None:
    """Raises a ValueError that names both shapes unless they agree; a string in `expected` stands for any size."""
    fits = len(array.shape) == len(expected) and all(
        isinstance(size, str) or size == actual for size, actual in zip(expected, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f'{what} must have shape ({", ".join(map(str, expected))}), got {array.shape}')


def floating(x: np.ndarray) -> np.ndarray:
    """The same numbers in floating point: whole numbers and booleans, which wrap and truncate, become float64."""
    return x if np.issubdtype(x.dtype, np.inexact) else x.astype(np.float64)


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers in float32 or wider: sums of float16 overflow above 65,504, and 1e-10 is none of its numbers."""
    x = floating(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x


INITS = ('report', 'kaiming', 'torch')


def initial_params(
    init: str, in_features: int, out_features: int, input_layer: bool, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """The initial weight (out_features, in_features) and bias (out_features,) of a linear layer, float64.

    report:  N(0, 0.0001²), as that report has them; the bias is zero
    kaiming: N(0, 2 / in_features), or N(0, 1 / in_features) for the input layer; the bias is zero (Eq. 38)
    torch:   U(−1/√in_features, 1/√in_features), the bias too, as PyTorch's nn.Linear has them

    Raises:
        ValueError: init is none of these.
    """
    shape = (out_features, in_features)
    if init == 'report':
        return rng.normal(0, 1e-4, shape), np.zeros(out_features)
    if init == 'kaiming':
        return rng.normal(0, np.sqrt((1 if input_layer else 2) / in_features), shape), np.zeros(out_features)
    if init == 'torch':
        bound = 1 / np.sqrt(in_features)
        return rng.uniform(-bound, bound, shape), rng.uniform(-bound, bound, out_features)
    raise ValueError(f'init must be one of {", ".join(INITS)}, got {init!r}')


class LinearModule(Module):
    """A linear layer: out = x Wᵀ + b.

    Args:
        in_features, out_features: the widths of its input and its output.
        input_layer: whether its input is data rather than the output of a rectifier; where it is said, the initial
            weights are Kaiming's unless `init` says otherwise.
        init: how the initial parameters are drawn, one of INITS; 'report' if neither is said.
        rng: draws them; NumPy's global generator if None.
        dtype: of parameters and gradients.

    `params` and `grads` hold a `weight` (out_features, in_features) and a `bias` (out_features,) each.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        input_layer: bool | None = None,
        init: str | None = None,
        rng: np.random.RandomState | None = None,
        dtype: type | str = np.float64,
    ) -> None:
        init = init or ('report' if input_layer is None else 'kaiming')
        weight, bias = initial_params(init, in_features, out_features, bool(input_layer), rng or np.random)
        self.params = {'weight': weight.astype(dtype), 'bias': bias.astype(dtype)}
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output (n_batch, out_features) for x (n_batch, in_features).

        Raises:
            ValueError: x has another shape.
        """
        check_shape('x', x, ('n_batch', self.params['weight'].shape[1]))
        self.cache = x = floating(x)
        out = x @ self.params['weight'].T
        out += self.params['bias']
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray | None:
        """Fills `grads` and returns the gradient with respect to x, or None where nobody asks for it.

        dW = doutᵀ x        (Eq. 17)
        db = Σ_batch dout   (Eq. 18)
        dx = dout W         (Eq. 16)

        Raises:
            ValueError: dout (n_batch, out_features) has another shape than the last output.
        """
        x = self.cache
        check_shape('dout', dout, (len(x), len(self.params['bias'])))
        np.matmul(dout.T, x, out=self.grads['weight'])
        np.sum(dout, axis=0, out=self.grads['bias'])
        return dout @ self.params['weight'] if self.needs_dx else None


class ReLUModule(Module):
    """The rectifier: out = max(0, x)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of x's shape."""
        x = floating(x)
        self.cache = x > 0
        return np.maximum(x, 0)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx = dout where x > 0, else 0 (Eq. 15 with a = 0).

        Raises:
            ValueError: dout has another shape than the last output.
        """
        is_positive = self.cache
        check_shape('dout', dout, is_positive.shape)
        return dout * is_positive


class LeakyReLUModule(Module):
    """The leaky rectifier: out = x where x > 0, else neg_slope · x."""

    def __init__(self, neg_slope: float) -> None:
        self.neg_slope = neg_slope

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of x's shape."""
        x = floating(x)
        self.cache = slope = np.where(x > 0, x.dtype.type(1), x.dtype.type(self.neg_slope))
        return slope * x

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx = dout where x > 0, else neg_slope · dout (Eq. 15).

        Raises:
            ValueError: dout has another shape than the last output.
        """
        slope = self.cache
        check_shape('dout', dout, slope.shape)
        return dout * slope


class ELUModule(Module):
    """The exponential linear unit: out = x where x > 0, else alpha · (exp(x) − 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of x's shape."""
        x = floating(x)
        below = self.alpha * np.expm1(np.minimum(x, 0))
        self.cache = np.where(x > 0, x.dtype.type(1), below + x.dtype.type(self.alpha))
        return np.where(x > 0, x, below)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx = dout where x > 0, else alpha · exp(x) · dout (Eq. 35).

        Raises:
            ValueError: dout has another shape than the last output.
        """
        slope = self.cache
        check_shape('dout', dout, slope.shape)
        return dout * slope


class DropoutModule(Module):
    """Dropout: out = mask · x, where mask is 0 with probability p, else 1 / (1 − p); out = x in evaluation mode.

    Args:
        p: the probability of a zero, from 0 to below 1.
        rng: draws the mask, anew at each `forward`; NumPy's global generator if None.
    """

    def __init__(self, p: float, rng: np.random.RandomState | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f'p must be from 0 to below 1, got {p}')
        self.p = p
        self.rng = rng or np.random

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of x's shape."""
        x = floating(x)
        if not self.training:
            self.cache = np.broadcast_to(x.dtype.type(1), x.shape)
            return x.copy()  # as in every layer, the output is no view of the input
        self.cache = mask = (self.rng.random_sample(x.shape) >= self.p) * x.dtype.type(1 / (1 - self.p))
        return mask * x

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx = mask · dout (Eq. 36), or dout in evaluation mode.

        Raises:
            ValueError: dout has another shape than the last output.
        """
        mask = self.cache
        check_shape('dout', dout, mask.shape)
        return mask * dout


class BatchNormModule(Module):
    """Batch normalisation: out = gamma · x_hat + beta with x_hat = (x − mean) / √(var + eps), over the batch.

    In evaluation mode mean and variance are the running ones, which `forward` moves in training mode.

    Args:
        n_features: the width of the input.
        eps: added to the variance.
        momentum: the weight of a new batch in the running statistics, a number from 0 to 1.
        dtype: of parameters, gradients and statistics.

    `params` and `grads` hold `gamma` and `beta`, `buffers` `running_mean` and `running_var`, all (n_features,).
    """

    def __init__(
        self, n_features: int, eps: float = 1e-5, momentum: float = 0.1, dtype: type | str = np.float64
    ) -> None:
        self.eps = eps
        self.momentum = momentum
        self.params = {'gamma': np.ones(n_features, dtype), 'beta': np.zeros(n_features, dtype)}
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.buffers = {'running_mean': np.zeros(n_features, dtype), 'running_var': np.ones(n_features, dtype)}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of the shape (n_batch, n_features) of x.

        Raises:
            ValueError: x has another shape, or is a single row in training mode.
        """
        check_shape('x', x, ('n_batch', len(self.params['gamma'])))
        if self.training and len(x) < 2:
            raise ValueError(f'a training batch must have at least two rows, or there is no variance, got {len(x)}')
        x = wide(x)
        mean = x.mean(axis=0) if self.training else self.buffers['running_mean']
        x_hat = x - mean
        if self.training:
            var = sum_of_products(x_hat, x_hat) / len(x)
            self._move('running_mean', mean)
            self._move('running_var', var * (len(x) / (len(x) - 1)))  # unbiased
        else:
            var = self.buffers['running_var']
        rstd = 1 / np.sqrt(var + self.eps)
        x_hat *= rstd
        self.cache = x_hat, rstd, self.training
        out = x_hat * self.params['gamma']
        out += self.params['beta']
        return out

    def _move(self, name: str, value: np.ndarray) -> None:
        running = self.buffers[name]
        running += self.momentum * (value - running)

    def backward(self, dout: np.ndarray) -> np.ndarray | None:
        """Fills `grads` and returns the gradient with respect to x, or None where nobody asks for it.

        dbeta  = Σ_batch dout                                                                (Eq. 19)
        dgamma = Σ_batch dout · x_hat                                                        (Eq. 20)
        dx     = gamma / √(var + eps) · (dout − dbeta / n_batch − x_hat · dgamma / n_batch)  (Eq. 25)
        dx     = gamma / √(var + eps) · dout, in evaluation mode                             (Eq. 27)

        Raises:
            ValueError: dout has another shape than the last output.
        """
        x_hat, rstd, training = self.cache
        check_shape('dout', dout, x_hat.shape)
        dout = wide(dout)
        dbeta, dgamma = dout.sum(axis=0), sum_of_products(dout, x_hat)
        self.grads['beta'][...], self.grads['gamma'][...] = dbeta, dgamma
        if not self.needs_dx:
            return None
        scale = self.params['gamma'] * rstd
        if not training:
            return scale * dout
        dx = x_hat * (-dgamma / len(dout))
        dx += dout
        dx -= dbeta / len(dout)
        dx *= scale
        return dx


class LayerNormModule(Module):
    """Layer normalisation: out = gamma · x_hat + beta with x_hat = (x − mean) / √(var + eps), over each row.

    Args:
        n_features: the width of the input.
        eps: added to the variance.
        dtype: of parameters and gradients.

    `params` and `grads` hold `gamma` and `beta`, (n_features,) each.
    """

    def __init__(self, n_features: int, eps: float = 1e-5, dtype: type | str = np.float64) -> None:
        self.eps = eps
        self.params = {'gamma': np.ones(n_features, dtype), 'beta': np.zeros(n_features, dtype)}
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output, of the shape (n_batch, n_features) of x.

        Raises:
            ValueError: x has another shape.
        """
        check_shape('x', x, ('n_batch', len(self.params['gamma'])))
        x = wide(x)
        x_hat = x - x.mean(axis=1, keepdims=True)
        rstd = 1 / np.sqrt(np.einsum('ni,ni->n', x_hat, x_hat)[:, np.newaxis] / x.shape[1] + self.eps)
        x_hat *= rstd
        self.cache = x_hat, rstd
        out = x_hat * self.params['gamma']
        out += self.params['beta']
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray | None:
        """Fills `grads` and returns the gradient with respect to x, or None where nobody asks for it.

        dbeta  = Σ_batch dout                                                           (Eq. 19)
        dgamma = Σ_batch dout · x_hat                                                   (Eq. 20)
        dx_hat = gamma · dout                                                           (Eq. 21)
        dx     = (dx_hat − mean(dx_hat) − x_hat · mean(x_hat · dx_hat)) / √(var + eps)  (Eq. 33)

        Raises:
            ValueError: dout has another shape than the last output.
        """
        x_hat, rstd = self.cache
        check_shape('dout', dout, x_hat.shape)
        dout = wide(dout)
        np.sum(dout, axis=0, out=self.grads['beta'])
        self.grads['gamma'][...] = sum_of_products(dout, x_hat)
        if not self.needs_dx:
            return None
        dx = dout * self.params['gamma']
        along = np.einsum('ni,ni->n', dx, x_hat)[:, np.newaxis] / dx.shape[1]
        dx -= dx.mean(axis=1, keepdims=True)
        dx -= x_hat * along
        dx *= rstd
        return dx


def sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ_batch a · b, (n_features,), for a and b (n_batch, n_features), without an array of the products."""
    return np.einsum('ni,ni->i', a, b)


class SoftMaxModule(Module):
    """Softmax over each row: out_i = exp(x_i) / Σ_k exp(x_k)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The probabilities, of x's shape (n_batch, n_classes).

        The row's maximum is subtracted first, which leaves the quotient as it is and keeps exp from overflowing.
        """
        check_shape('x', x, ('n_batch', 'n_classes'))
        x = floating(x)
        out = x - x.max(axis=1, keepdims=True)
        np.exp(out, out=out)
        out /= out.sum(axis=1, keepdims=True)
        self.cache = out.copy()  # the caller may do with the output what it likes
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx_j = out_j (dout_j − Σ_i dout_i out_i) (Eq. 13).

        This is dout times the softmax's Jacobian, without building that matrix.

        Raises:
            ValueError: dout has another shape than the last output.
        """
        out = self.cache
        check_shape('dout', dout, out.shape)
        return out * (dout - (dout * out).sum(axis=1, keepdims=True))


class CrossEntropyModule(Module):
    """The mean cross-entropy of probabilities x and labels y: L = −1/n_batch Σ_n Σ_i y_ni log(x_ni + 1e-10).

    Labels are one-hot, (n_batch, n_classes), or class numbers c, (n_batch,), where y_ni is 1 if i = c_n, else 0.
    """

    EPS = 1e-10  # keeps the logarithm finite where a probability underflows to zero

    def forward(self, x: np.ndarray, y: np.ndarray) -> float:
        """The loss; x is (n_batch, n_classes).

        Raises:
            ValueError: y is none of the labels above.
        """
        x = wide(x)
        if y.ndim == 1:
            return float(-np.log(x[self._labelled(x, y)] + self.EPS).sum() / len(x))
        check_shape('y', y, x.shape)
        return float(-(y * np.log(x + self.EPS)).sum() / len(x))

    def backward(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The gradient with respect to x: dx = −y / (x + 1e-10) / n_batch (Eq. 12).

        Raises:
            ValueError: y is none of the labels above.
        """
        x = wide(x)
        if y.ndim == 1:
            dx, labelled = np.zeros_like(x), self._labelled(x, y)
            dx[labelled] = -1 / ((x[labelled] + self.EPS) * len(x))
            return dx
        check_shape('y', y, x.shape)
        return -(y / ((x + self.EPS) * len(x)))

    def _labelled(self, x: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices of the labelled classes' probabilities in x."""
        check_shape('y', classes, (len(x),))
        n_classes = x.shape[1]
        if not np.issubdtype(classes.dtype, np.integer) or (
            classes.size and not 0 <= classes.min() <= classes.max() < n_classes
        ):
            raise ValueError(f'class numbers must be whole numbers from 0 to {n_classes - 1}, got {classes}')
        return np.arange(len(x)), classes
