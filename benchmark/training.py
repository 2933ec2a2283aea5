"""The PyTorch trainers' loop, augmentation and evaluation, against the bare step and plain loops over a DataLoader."""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import cifar10_utils
import train_convnet_pytorch
import train_mlp_pytorch
import training_pytorch
from augmentation import Augmentation
from benchmark.loading import batches_root, torchvision_loader
from benchmark.mlp_step import LEARNING_RATE, plain_step
from benchmark.ratios import Action, Ratio, compare, take_turns
from cifar10_utils import N_CLASSES, N_PIXELS
from convnet_pytorch import ConvNet, Convolution3x3
from mlp_pytorch import MLP as TorchMLP
from training_pytorch import DeviceData, make_optimizer


def trainer(data_dir: str, repeats: int) -> list[Ratio]:
    """The trainers' loop, with its batches, draws and losses, against bare steps on a batch that is already there."""
    ratios = []
    data = DeviceData(cifar10_utils.get_cifar10(dataset='synthetic', one_hot=False)['train'], torch.device('cpu'))
    for name, script, model, n_steps, at_most in (
        ('MLP', train_mlp_pytorch, TorchMLP(N_PIXELS, [100], N_CLASSES), 500, 1.15),
        ('ConvNet', train_convnet_pytorch, train_convnet_pytorch.build_model(), 24, 1.03),
    ):
        flags = script_flags(script, n_steps, dataset='synthetic')
        optimizer = make_optimizer(flags.optimizer, model, LEARNING_RATE)
        bare_step = partial(plain_step, model, optimizer, *data.examples(np.arange(flags.batch_size)))
        actions = {'trainer': partial(train_without_evaluation, script, flags),
                   'bare': partial(times, n_steps, bare_step)}  # fmt: skip
        seconds = take_turns(actions, repeats)
        ratios += compare('trainer', f'{name}, {n_steps} steps', seconds, 'trainer', {'bare': at_most})
    return ratios


def script_flags(script: ModuleType, n_steps: int, **others: str) -> argparse.Namespace:
    """The flags of a trainer at their defaults, but for these."""
    words = [f'--{name}={value}' for name, value in {'max_steps': n_steps, **others}.items()]
    return script.build_parser().parse_args(words)


def train_without_evaluation(script: ModuleType, flags: argparse.Namespace) -> None:
    """A run of a trainer that writes nothing, and whose evaluations cost nothing."""
    with mock.patch.object(training_pytorch, 'evaluate', return_value=(0.0, 0.0)):
        script.train(flags, quiet=True)


def times(count: int, action: Action) -> None:
    """An action, `count` times."""
    for _ in range(count):
        action()


def endless(batches: Iterable) -> Iterator:
    """The batches of one epoch after the other."""
    while True:
        yield from batches


def convnet(data_dir: str, repeats: int) -> list[Ratio]:
    """Our ConvNet trainer's loop against a plain one over a DataLoader, both from the images to the update."""
    n_steps, root = 40, batches_root(data_dir)
    parser_flags = partial(script_flags, train_convnet_pytorch, n_steps, data_dir=data_dir, dataset='cifar10')
    torch.manual_seed(0)
    model = with_library_convolutions(ConvNet(3, N_CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = endless(torchvision_loader(root, 32))
    actions = {'float32': partial(train_without_evaluation, train_convnet_pytorch, parser_flags()),
               'plain': lambda: times(n_steps, lambda: plain_step(model, optimizer, *next(batches)))}  # fmt: skip
    at_most = {'float32': {'plain': 0.9}}
    if has_bfloat16():
        flags = parser_flags(precision='bfloat16')
        actions['bfloat16'] = partial(train_without_evaluation, train_convnet_pytorch, flags)
        at_most['bfloat16'] = {'plain': 0.62, 'float32': None}
    else:
        tqdm.write('bfloat16 is left out: this processor has no instructions for it')
    seconds = take_turns(actions, max(3, repeats // 3))
    for name, turns in seconds.items():
        tqdm.write(f'{name}: {32 * n_steps / np.median(turns):.0f} images/s')
    case = f'{n_steps} steps, batch 32'
    return [ratio for name, targets in at_most.items() for ratio in compare('convnet', case, seconds, name, targets)]


def with_library_convolutions(model: ConvNet) -> ConvNet:
    """The network out of PyTorch's own layers alone, as a textbook writes it."""
    for i, layer in enumerate(model.features):
        if isinstance(layer, Convolution3x3):
            model.features[i] = nn.Conv2d(layer.in_channels, layer.out_channels, kernel_size=3, padding=1)
    return model


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 itself."""
    return torch.backends.cpu.get_cpu_capability() != 'AVX2'


def augmentation(data_dir: str, repeats: int) -> list[Ratio]:
    """What augmentation takes of a ConvNet's training step."""
    ratios, batch_size = [], 128
    data = DeviceData(cifar10_utils.get_cifar10(dataset='synthetic', one_hot=False)['train'], torch.device('cpu'))
    model = train_convnet_pytorch.build_model()
    optimizer = make_optimizer('sgd', model, LEARNING_RATE)
    indices = np.arange(batch_size)
    pixels, labels = data.pixels_and_labels(indices)
    for words, at_most in (
        ('flip shift=4 cutout=8', 0.05),
        ('flip shift=4 cutmix=1', 0.05),
        ('flip shift=4 rotate=10 zoom=0.15 jitter=0.2', None),
    ):
        of_run = Augmentation(words.split(), data.data.num_examples, seed=42)
        actions = {
            'augmentation': lambda run=of_run: run.mix(
                run.apply(pixels, run.draw(indices, 0), data.mean_image), labels
            ),
            'step': partial(plain_step, model, optimizer, data.centre(pixels), labels),
        }
        seconds = take_turns(actions, repeats)
        ratios += compare('augmentation', f'{words}, batch {batch_size}', seconds, 'augmentation', {'step': at_most})
    return ratios


def evaluation(data_dir: str, repeats: int) -> list[Ratio]:
    """Accuracy and loss over the test images against a plain loop over a DataLoader."""
    ratios, root = [], batches_root(data_dir)
    data = DeviceData(cifar10_utils.get_cifar10(data_dir, one_hot=False)['test'], torch.device('cpu'))
    batches = torchvision_loader(root, 128, train=False)
    mlp = TorchMLP(N_PIXELS, [100], N_CLASSES)
    plain_convnet = with_library_convolutions(ConvNet(3, N_CLASSES)).to(memory_format=torch.channels_last)
    for name, model, plain in (
        ('MLP', mlp, mlp),
        ('ConvNet', train_convnet_pytorch.build_model(), plain_convnet),
    ):
        actions = {'ours': partial(training_pytorch.evaluate, model, data, 'float32'),
                   'plain': partial(plain_evaluation, plain, batches)}  # fmt: skip
        seconds = take_turns(actions, max(3, repeats // 3))
        ratios += compare('evaluation', f'{name}, 10,000 images', seconds, 'ours', {'plain': 1.0})
    return ratios


def plain_evaluation(model: nn.Module, batches: Iterable) -> tuple[float, float]:
    """Accuracy and mean loss as any tutorial computes them."""
    model.eval()
    correct = loss = count = 0
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            loss += cross_entropy(logits, labels, reduction='sum').item()
            count += len(labels)
    return correct / count, loss / count
