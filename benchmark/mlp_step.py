"""One training step of the MLP on a batch that is already assembled: ours in NumPy, and what else does the same.

The bare matrix products, which no implementation can do without, are the step's lower bound.
"""

import itertools
from types import ModuleType

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import cifar10_utils
import train_mlp_numpy
from benchmark.ratios import Action, Ratio, compare, optional, take_turns
from cifar10_utils import N_CLASSES, N_PIXELS
from mlp_numpy import MLP
from mlp_pytorch import MLP as TorchMLP

LEARNING_RATE = 1e-6  # so small that what is timed stays the same from step to step


def step(data_dir: str, repeats: int) -> list[Ratio]:
    """The NumPy MLP's step against the bare products, PyTorch and scikit-learn."""
    ratios = []
    sklearn = optional('sklearn.neural_network', 'scikit-learn', "scikit-learn's MLPClassifier")
    for n_hidden, batch_size in (([100], 200), ([512, 256], 128), ([1024, 1024], 128)):
        for dtype in (np.float32, np.float64):
            data = cifar10_utils.get_cifar10(dataset='synthetic', dtype=dtype)['train']
            images, labels = data.next_batch(batch_size)
            actions = {
                'ours': numpy_step(n_hidden, images, labels),
                'products': numpy_products(n_hidden, images),
                'pytorch': torch_step(n_hidden, torch.from_numpy(images), torch.from_numpy(labels).argmax(dim=1)),
                'torch_products': torch_products(n_hidden, torch.from_numpy(images)),
            }
            targets = {'products': 1.25, 'pytorch': 1.0 if dtype == np.float32 else None}
            if sklearn:
                actions['sklearn'] = sklearn_step(sklearn, n_hidden, images, labels)
                targets['sklearn'] = 0.5
            case = f'{",".join(map(str, n_hidden))} batch {batch_size} {np.dtype(dtype).name}'
            seconds = take_turns(actions, repeats)
            ratios += compare('step', case, seconds, 'ours', targets)
            ratios += compare('step', case, seconds, 'products', {'torch_products': None})
    return ratios


def numpy_step(n_hidden: list[int], images: np.ndarray, labels: np.ndarray) -> Action:
    """A step of our NumPy MLP."""
    mlp = MLP(N_PIXELS, n_hidden, N_CLASSES, rng=np.random.RandomState(0), dtype=images.dtype.type)
    optimizer = train_mlp_numpy.SGD(mlp, LEARNING_RATE)
    return lambda: train_mlp_numpy.training_step(mlp, optimizer, images, labels)


def torch_step(n_hidden: list[int], images: torch.Tensor, labels: torch.Tensor) -> Action:
    """A step of the same network in PyTorch, as its tutorials write it."""
    model = TorchMLP(N_PIXELS, n_hidden, N_CLASSES).to(images.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return lambda: plain_step(model, optimizer, images, labels)


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The loop body of any tutorial."""
    optimizer.zero_grad()
    loss = cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss


def sklearn_step(sklearn: ModuleType, n_hidden: list[int], images: np.ndarray, labels: np.ndarray) -> Action:
    """A step of the same network in scikit-learn: a `partial_fit` on one batch."""
    flat, classes = images.reshape(len(images), -1), labels.argmax(axis=1)
    model = sklearn.MLPClassifier(n_hidden, solver='sgd', alpha=0, momentum=0, batch_size=len(flat),
                                  learning_rate_init=LEARNING_RATE)  # fmt: skip
    return lambda: model.partial_fit(flat, classes, classes=np.arange(N_CLASSES))


def layer_shapes(n_hidden: list[int]) -> list[tuple[int, int]]:
    """The shapes (n_in, n_out) of a network's linear layers."""
    return list(itertools.pairwise([N_PIXELS, *n_hidden, N_CLASSES]))


def numpy_products(n_hidden: list[int], images: np.ndarray) -> Action:
    """The matrix products that a step cannot avoid, alone: x Wᵀ, doutᵀ x and, but for the first layer, dout W."""
    n_batch, dtype, rng = len(images), images.dtype, np.random.RandomState(0)
    layers = []
    for i, (n_in, n_out) in enumerate(layer_shapes(n_hidden)):
        x = images.reshape(n_batch, -1) if i == 0 else rng.randn(n_batch, n_in).astype(dtype)
        weight, dout = rng.randn(n_out, n_in).astype(dtype), rng.randn(n_batch, n_out).astype(dtype)
        layers.append((x, weight, dout, np.empty_like(dout), np.empty_like(weight), np.empty_like(x) if i else None))

    def products() -> None:
        for x, weight, dout, out, dweight, dx in layers:
            np.matmul(x, weight.T, out=out)
            np.matmul(dout.T, x, out=dweight)
            if dx is not None:
                np.matmul(dout, weight, out=dx)

    return products


def torch_products(n_hidden: list[int], images: torch.Tensor) -> Action:
    """The same products by PyTorch's matrix library."""
    n_batch, dtype = len(images), images.dtype
    layers = []
    for i, (n_in, n_out) in enumerate(layer_shapes(n_hidden)):
        x = images.flatten(1) if i == 0 else torch.randn(n_batch, n_in, dtype=dtype)
        weight, dout = torch.randn(n_out, n_in, dtype=dtype), torch.randn(n_batch, n_out, dtype=dtype)
        buffers = torch.empty_like(dout), torch.empty_like(weight), torch.empty_like(x) if i else None
        layers.append((x, weight, dout, *buffers))

    def products() -> None:
        for x, weight, dout, out, dweight, dx in layers:
            torch.mm(x, weight.T, out=out)
            torch.mm(dout.T, x, out=dweight)
            if dx is not None:
                torch.mm(dout, weight, out=dx)

    return products
