"""Trains the NumPy multi-layer perceptron on CIFAR-10; at the default flags it gives Table 1 of the report.

    python train_mlp_numpy.py --dnn_hidden_units 100 --learning_rate 2e-3 --max_steps 1500

Everything random comes from one generator, in this order: the weights, layer by layer, then a shuffle at each epoch's
end. Pixels keep their scale of 0 to 255 and have the training set's mean image subtracted.
"""

import argparse
import sys

import numpy as np

from checkpoints import EVALUATION_BATCH, KeptNetwork
from cifar10_utils import N_CLASSES, N_PIXELS, DataSet
from experiment import RunRecord
from flags import (
    OneLineParser,
    add_data_flags,
    add_mlp_flags,
    add_norm_flag,
    add_run_flags,
    add_seed_flags,
    check_norm,
    defaults,
)
from metrics import accuracy, confusion_matrix, confusion_matrix_to_metrics
from mlp_numpy import MLP, NORMS
from modules import CrossEntropyModule
from script import load_data, main

# What other files take from here, some of it made in `metrics.py`.
__all__ = [
    'SCRIPT', 'SGD', 'accuracy', 'build_parser', 'confusion_matrix', 'confusion_matrix_to_metrics',
    'evaluate', 'train', 'training_step',
]  # fmt: skip

SCRIPT = 'mlp_numpy'


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Trains a NumPy multi-layer perceptron on CIFAR-10.')
    add_run_flags(parser, learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100)
    add_seed_flags(parser)
    add_data_flags(parser)
    add_mlp_flags(parser)
    add_norm_flag(parser, NORMS)
    parser.add_argument(
        '--dtype', choices=['float32', 'float64'], default='float64', help='precision of all arithmetic'
    )
    return parser


def evaluate(mlp: MLP, data: DataSet) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data`, in evaluation mode and back."""
    training = mlp.training
    mlp.eval()
    totals = np.zeros(2)
    for images, labels in data.batches(EVALUATION_BATCH):
        probabilities = mlp.forward(images.reshape(len(images), -1))
        loss = CrossEntropyModule().forward(probabilities, labels)
        totals += len(images) * np.array([accuracy(probabilities, labels), loss])
    mlp.train(training)
    return tuple(map(float, totals / data.num_examples))


class SGD:
    """Stochastic gradient descent: p ← p − learning_rate · gradient, for every parameter p of a network.

    Args:
        mlp: gives its parameters, and their gradients, by `params_and_grads`.
        learning_rate: the step size.
    """

    def __init__(self, mlp: MLP, learning_rate: float) -> None:
        self.mlp = mlp
        self.learning_rate = learning_rate

    def step(self) -> None:
        """One update of the parameters, in their own arrays, by the gradients of the last backward pass."""
        for param, grad in self.mlp.params_and_grads():
            # An error, not silence, where a layer's parameter is no array and so cannot be changed in place.
            np.subtract(param, self.learning_rate * grad, out=param)


def training_step(mlp: MLP, optimizer: SGD, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """One update of the parameters; returns the probabilities (n_batch, n_classes) and the loss, both before it."""
    loss_module = CrossEntropyModule()
    probabilities = mlp.forward(images.reshape(len(images), -1))
    loss = loss_module.forward(probabilities, labels)
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
    check_norm(flags.norm, flags.dnn_hidden_units, flags.batch_size)
    rng = np.random.RandomState(flags.seed)
    data = load_data(
        flags.data_dir, flags.dataset, flags.validation_size, flags.batch_size,
        rng=rng, dtype=np.dtype(flags.dtype).type,
    )  # fmt: skip
    arguments = {
        'n_inputs': N_PIXELS, 'n_hidden': flags.dnn_hidden_units, 'n_classes': N_CLASSES,
        'neg_slope': flags.neg_slope, 'dtype': flags.dtype, 'norm': flags.norm,
    }  # fmt: skip
    mlp = MLP(**arguments, rng=rng)
    optimizer = SGD(mlp, flags.learning_rate)
    record = RunRecord(
        SCRIPT, 'MLP in NumPy', data['train'].name, vars(flags), defaults(build_parser()), output_dir, quiet,
        network=KeptNetwork(SCRIPT, mlp, arguments, data['train'].mean_image),
    )  # fmt: skip
    if record.already_done():
        return record
    # A run that diverges overflows first; its record says so, and NumPy's warnings would only repeat it.
    with record.running() as steps, np.errstate(all='ignore'):
        for step in steps:
            images, labels = data['train'].next_batch(flags.batch_size)
            probabilities, loss = training_step(mlp, optimizer, images, labels)
            if record.evaluation_due(step, loss):
                record.add(
                    step,
                    train=(accuracy(probabilities, labels), loss),
                    test=evaluate(mlp, data['test']),
                    validation=evaluate(mlp, data['validation']) if flags.validation_size else None,
                )
    return record


if __name__ == '__main__':
    sys.exit(main(build_parser(), train))
