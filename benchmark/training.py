"""What our PyTorch trainers add to the bare step, and how many images they train on in a second."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import cifar10_utils
import train_convnet_pytorch
from benchmark.loading import batches_root, torchvision_loader
from benchmark.mlp_step import LEARNING_RATE, plain_step
from benchmark.ratios import Action, Ratio, compare, take_turns
from cifar10_utils import N_CLASSES, N_PIXELS
from convnet_pytorch import ConvNet
from mlp_pytorch import MLP as TorchMLP
from training_pytorch import DeviceData, make_optimizer, training_step


def trainer(data_dir: str, repeats: int) -> list[Ratio]:
    """The trainers' step, with its batch and its loss, against the bare step on a batch that is already there."""
    ratios = []
    data = DeviceData(cifar10_utils.get_cifar10(dataset='synthetic', one_hot=False)['train'], torch.device('cpu'))
    for name, build, optimizer, batch_size, target in (
        ('MLP', lambda: TorchMLP(N_PIXELS, [100], N_CLASSES), 'sgd', 200, 1.15),
        ('ConvNet', train_convnet_pytorch.build_model, 'adam', 32, 1.03),
    ):
        model = build()
        bare_optimizer = make_optimizer(optimizer, model, LEARNING_RATE)
        images, labels = data.examples(np.arange(batch_size))
        actions = {
            'trainer': trainer_step(build(), optimizer, data, batch_size, 'float32'),
            'bare': lambda model=model, batch=(bare_optimizer, images, labels): plain_step(model, *batch),
        }
        seconds = take_turns(actions, repeats, at_least=0.2)
        ratios += compare('trainer', f'{name}, batch {batch_size}', seconds, 'trainer', {'bare': target})
    return ratios


def trainer_step(model: nn.Module, optimizer: str, data: DeviceData, batch_size: int, precision: str) -> Action:
    """What `train_model` does in a step between two evaluations."""
    stepper = make_optimizer(optimizer, model, LEARNING_RATE)
    scale = torch.tensor(1 / batch_size)

    def one_step() -> None:
        images, labels = data.examples(data.data.next_indices(batch_size))
        _, loss_sum = training_step(model, stepper, images, labels, precision, scale)
        loss_sum.item()

    return one_step


def endless(batches: Iterable) -> Iterator:
    """The batches of one epoch after the other."""
    while True:
        yield from batches


def convnet(data_dir: str, repeats: int) -> list[Ratio]:
    """Our trainer's step, batch gathering included, against a plain loop over a DataLoader."""
    root, batch_size = batches_root(data_dir), 32
    data = DeviceData(cifar10_utils.get_cifar10(data_dir, one_hot=False)['train'], torch.device('cpu'))

    def ours(precision: str) -> Action:
        torch.manual_seed(0)
        return trainer_step(train_convnet_pytorch.build_model(), 'adam', data, batch_size, precision)

    torch.manual_seed(0)
    model = ConvNet(3, N_CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = endless(torchvision_loader(root, batch_size))
    actions = {'float32': ours('float32'), 'bfloat16': ours('bfloat16'),
               'plain': lambda: plain_step(model, optimizer, *next(batches))}  # fmt: skip
    seconds = take_turns(actions, repeats, at_least=1.0)
    for name, turns in seconds.items():
        tqdm.write(f'{name}: {batch_size / np.median(turns):.0f} images/s')
    case = 'training step, batch 32'
    return [
        *compare('convnet', case, seconds, 'float32', {'plain': 1 / 1.05}),
        *compare('convnet', case, seconds, 'bfloat16', {'plain': 1 / 1.6, 'float32': None}),
    ]
