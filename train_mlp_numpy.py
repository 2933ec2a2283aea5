"""Trains the NumPy multi-layer perceptron on CIFAR-10; at the default flags it gives Table 1 of the report.

    python train_mlp_numpy.py --dnn_hidden_units 100 --learning_rate 2e-3 --max_steps 1500

At these, everything random comes from one generator, in this order: the weights, layer by layer, then a shuffle at each
epoch's end. Pixels keep their scale of 0 to 255 and have the training set's mean image subtracted.
"""

import argparse
import sys
from collections.abc import Iterator
from types import EllipsisType

import numpy as np

from augmentation import NUMPY_KINDS, VIEWS, Augmentation, add_augment_flag, views
from checkpoints import EVALUATION_BATCH, KeptNetwork
from cifar10_utils import N_CLASSES, N_PIXELS, DataSet
from experiment import RunRecord
from flags import (
    add_data_flags,
    add_later_names,
    add_mlp_flags,
    add_norm_flag,
    add_optimizer_flags,
    add_run_flags,
    add_seed_flags,
    add_views_flag,
    check_mlp,
    check_norm,
    defaults,
)
from metrics import accuracy, confusion_matrix, confusion_matrix_to_metrics
from mlp_numpy import ACTIVATIONS, MLP, NORMS
from modules import INITS, CrossEntropyModule
from parsing import OneLineParser, check_not_launched
from schedules import SHAPES, Schedule, check_share
from script import load_data, main, run_length

# What other files take from here, some of it made in `metrics.py`.
__all__ = [
    'SCRIPT', 'SGD', 'accuracy', 'build_parser', 'confusion_matrix', 'confusion_matrix_to_metrics',
    'evaluate', 'train', 'training_step',
]  # fmt: skip

SCRIPT = 'mlp_numpy'
BLOCK = 2**16  # values of a parameter that are updated at once


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Trains a NumPy multi-layer perceptron on CIFAR-10.')
    add_run_flags(parser, learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100)
    add_seed_flags(parser)
    add_data_flags(parser)
    add_mlp_flags(parser, ACTIVATIONS, INITS, init='report')
    add_norm_flag(parser, NORMS)
    add_optimizer_flags(parser, SHAPES)
    add_augment_flag(parser, NUMPY_KINDS)
    add_views_flag(parser, VIEWS)
    add_later_names(parser, batch_norm='batch')
    parser.add_argument(
        '--dtype', choices=['float32', 'float64'], default='float64', help='precision of all arithmetic'
    )
    return parser


def evaluate(mlp: MLP, data: DataSet, n_views: int = 1) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data`, in evaluation mode and back.

    The probabilities are averaged over `n_views` views of each image; see `augmentation.views`.
    """
    training = mlp.training
    mlp.eval()
    totals = np.zeros(2)
    for pixels, labels in data.batches(EVALUATION_BATCH):
        probabilities = sum(
            weight * mlp.forward(data.centre(view).reshape(len(view), -1)) for view, weight in views(pixels, n_views)
        )
        loss = CrossEntropyModule().forward(probabilities, labels)
        totals += len(pixels) * np.array([accuracy(probabilities, labels), loss])
    mlp.train(training)
    return tuple(map(float, totals / data.num_examples))


class SGD:
    """Stochastic gradient descent, for every parameter p of a network, as PyTorch's.

    With momentum each step has a part of the one before: v ← momentum · v + gradient, and p ← p − learning_rate · v.
    Weight decay adds weight_decay · p to the gradient, where p is a matrix.

    Args:
        mlp: gives its parameters, and their gradients, by `params_and_grads`.
        learning_rate: the step size, which may be changed from step to step.
        momentum: from 0 to below 1.
        weight_decay: 0 or more.
    """

    def __init__(self, mlp: MLP, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.mlp = mlp
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.velocities: dict[int, np.ndarray] = {}  # by the parameter's place

    def step(self) -> None:
        """One update of the parameters, in their own arrays, by the gradients of the last backward pass."""
        for place, (param, grad) in enumerate(self.mlp.params_and_grads()):
            decay = self.weight_decay if np.ndim(param) > 1 else 0.0
            if self.momentum and place not in self.velocities:
                self.velocities[place] = np.zeros_like(param)
            for rows in row_blocks(param):
                change = grad[rows]
                if decay:
                    change = change + decay * param[rows]
                if self.momentum:
                    velocity = self.velocities[place][rows]
                    velocity *= self.momentum
                    velocity += change
                    change = velocity
                # An error, not silence, where a layer's parameter is no array and so cannot be changed in place.
                param[rows] -= self.learning_rate * change


def row_blocks(array: np.ndarray) -> Iterator[slice | EllipsisType]:
    """Indices of some rows at a time, or of all: what is computed of a block is still in the cache when it is used."""
    if np.size(array) <= BLOCK:
        yield ...
        return
    n_rows = max(1, BLOCK * len(array) // array.size)
    for start in range(0, len(array), n_rows):
        yield slice(start, start + n_rows)


def training_step(
    mlp: MLP, optimizer: SGD, images: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> tuple[np.ndarray, float]:
    """One update of the parameters; returns the probabilities (n_batch, n_classes) and the loss, both before it.

    The loss that is minimised has `label_smoothing` of each one-hot label spread over all classes; the other has not.
    """
    loss_module = CrossEntropyModule()
    probabilities = mlp.forward(images.reshape(len(images), -1))
    loss = loss_module.forward(probabilities, labels)
    if label_smoothing:
        labels = (1 - label_smoothing) * labels + labels.dtype.type(label_smoothing / labels.shape[1])
    mlp.backward(loss_module.backward(probabilities, labels))
    optimizer.step()
    return probabilities, loss


def train(flags: argparse.Namespace, output_dir: str | None = None, quiet: bool = False) -> RunRecord:
    """Trains one network and returns the record of the run.

    Args:
        flags: the script's.
        output_dir: where the run's files go; None: nowhere.
        quiet: without a line and a progress bar.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot be followed.
    """
    check_not_launched()
    check_mlp(flags.dnn_hidden_units, flags.activation, flags.neg_slope, flags.dropout)
    check_norm(flags.norm, flags.dnn_hidden_units, flags.batch_size)
    rng = np.random.RandomState(flags.seed)
    data = load_data(
        flags.data_dir, flags.dataset, flags.validation_size, flags.batch_size,
        standardise=flags.standardise, rng=rng, dtype=np.dtype(flags.dtype).type,
    )  # fmt: skip
    parts = [part for part in ('test', 'validation') if data[part].num_examples]
    max_steps, epoch_ends = run_length(
        flags.max_steps, flags.epochs, flags.batch_size, data['train'].num_examples
    )  # fmt: skip
    arguments = {
        'n_inputs': N_PIXELS, 'n_hidden': flags.dnn_hidden_units, 'n_classes': N_CLASSES,
        'neg_slope': flags.neg_slope, 'dtype': flags.dtype, 'norm': flags.norm, 'activation': flags.activation,
        'dropout': flags.dropout,
    }  # fmt: skip
    mlp = MLP(**arguments, init=flags.init, rng=rng)
    optimizer = SGD(mlp, flags.learning_rate, flags.momentum, flags.weight_decay)
    check_share(f'--warmup {flags.warmup:g}', flags.warmup, max_steps)
    schedule = Schedule(flags.schedule, flags.warmup, max_steps)
    augmentation = Augmentation(flags.augment, data['train'].num_examples, flags.seed)
    augmentation.check_batch(flags.batch_size)
    record = RunRecord(
        SCRIPT, 'MLP in NumPy', data['train'].name, {**vars(flags), 'max_steps': max_steps},
        defaults(build_parser()), output_dir, quiet, epoch_ends,
        KeptNetwork(SCRIPT, mlp, arguments, data['train'].mean_image, data['train'].std_image),
    )  # fmt: skip
    if record.already_done():
        return record
    # A run that diverges overflows first; its record says so, and NumPy's warnings would only repeat it.
    with record.running() as steps, np.errstate(all='ignore'):
        for step in steps:
            indices = data['train'].next_indices(flags.batch_size)
            images, labels = augmented(data['train'], indices, augmentation)
            optimizer.learning_rate = flags.learning_rate * schedule.factor(step)
            probabilities, loss = training_step(mlp, optimizer, images, labels, flags.label_smoothing)
            if record.evaluation_due(step, loss):
                held_out = {part: evaluate(mlp, data[part]) for part in parts}
                by_views = {
                    f'{part}_views': evaluate(mlp, data[part], flags.views) for part in parts if flags.views > 1
                }
                record.add(step, train=(accuracy(probabilities, labels), loss), **held_out, **by_views)
    return record


def augmented(data: DataSet, indices: np.ndarray, augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """The images and the one-hot labels with these indices, changed at random where that is asked for."""
    draws = augmentation.draw(indices, data.epochs_completed)
    images = augmentation.apply(data.pixels[indices], draws, data.mean_image, data.std_image)
    return augmentation.mix(images.astype(data.dtype, copy=False), data.labels_of(indices))


if __name__ == '__main__':
    sys.exit(main(build_parser(), train))
