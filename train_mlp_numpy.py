"""Trains the NumPy multi-layer perceptron on CIFAR-10; at the default flags it gives Table 1 of the report.

    python train_mlp_numpy.py --dnn_hidden_units 100 --learning_rate 2e-3 --max_steps 1500

Everything random comes from one generator, in this order: the weights, layer by layer, then a shuffle at each epoch's
end. Pixels keep their scale of 0 to 255 and have the training set's mean image subtracted.
"""

import argparse
import sys

import numpy as np

from cifar10_utils import N_CLASSES, N_PIXELS, DataSet
from experiment import OneLineParser, RunRecord, add_mlp_flags, load_data, main, make_parser
from mlp_numpy import MLP
from modules import CrossEntropyModule

EVALUATION_BATCH = 200  # examples at a time: more would fall out of the processor's cache


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = make_parser(
        'Trains a NumPy multi-layer perceptron on CIFAR-10.',
        learning_rate=2e-3, max_steps=1500, batch_size=200, eval_freq=100,
    )  # fmt: skip
    add_mlp_flags(parser)
    parser.add_argument(
        '--dtype', choices=['float32', 'float64'], default='float64', help='precision of all arithmetic'
    )
    return parser


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose most probable class is the labelled one; both arrays are (n_batch, n_classes)."""
    return float(np.mean(probabilities.argmax(axis=1) == labels.argmax(axis=1)))


def evaluate(mlp: MLP, data: DataSet) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data`."""
    totals = np.zeros(2)
    for images, labels in data.batches(EVALUATION_BATCH):
        probabilities = mlp.forward(images.reshape(len(images), -1))
        loss = CrossEntropyModule().forward(probabilities, labels)
        totals += len(images) * np.array([accuracy(probabilities, labels), loss])
    return tuple(map(float, totals / data.num_examples))


def sgd_step(mlp: MLP, learning_rate: float) -> None:
    """Plain stochastic gradient descent: p ← p − learning_rate · gradient, for every parameter.

    The sum is written into the gradients' arrays, which then trade places with the parameters'. Written into the
    parameters' own, which the forward product has left in every core's cache, it took twice as long or more.
    """
    for module in mlp.linear_modules:
        for name, grad in module.grads.items():
            grad *= -learning_rate
            grad += module.params[name]
        module.params, module.grads = module.grads, module.params


def training_step(mlp: MLP, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> tuple[np.ndarray, float]:
    """One update of the parameters; returns the probabilities (n_batch, n_classes) and the loss, both before it."""
    loss_module = CrossEntropyModule()
    probabilities = mlp.forward(images.reshape(len(images), -1))
    loss = loss_module.forward(probabilities, labels)
    mlp.backward(loss_module.backward(probabilities, labels))
    sgd_step(mlp, learning_rate)
    return probabilities, loss


def train(flags: argparse.Namespace) -> RunRecord:
    """Trains one network and returns the record of the run.

    Raises:
        DataError: the data cannot be had.
    """
    rng = np.random.RandomState(flags.seed)
    data = load_data(flags, rng=rng, dtype=np.dtype(flags.dtype).type)
    mlp = MLP(N_PIXELS, flags.dnn_hidden_units, N_CLASSES, flags.neg_slope, rng, data['train'].dtype)
    record = RunRecord('mlp_numpy', 'MLP in NumPy', vars(flags), data['train'].name)
    # A run that diverges overflows first; its record says so, and NumPy's warnings would only repeat it.
    with record.running() as steps, np.errstate(all='ignore'):
        for step in steps:
            images, labels = data['train'].next_batch(flags.batch_size)
            probabilities, loss = training_step(mlp, images, labels, flags.learning_rate)
            if record.evaluation_due(step, loss):
                record.add(
                    step,
                    train=(accuracy(probabilities, labels), loss),
                    test=evaluate(mlp, data['test']),
                    validation=evaluate(mlp, data['validation']) if flags.validation_size else None,
                )
    return record


if __name__ == '__main__':
    sys.exit(main('mlp_numpy', build_parser(), train))
