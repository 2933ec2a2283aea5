"""Times this project against what a user would otherwise pick, side by side, and prints the ratios.

    python benchmark.py --data_dir cifar10                    # everything: results/benchmark.json and its figure
    python benchmark.py step batchnorm --repeats 5            # some of it: printed only

The two sides of a pair do the same work on the same data, in the same data type, on the same number of threads. They
take turns, A B A B …, after one turn that does not count; a ratio is the median over the turns of A's time divided by
B's, given with the 10th and the 90th percentile. Where these lie on both sides of 1, the difference drowns in noise.
Run it on a machine that does nothing else. A run of everything that was stopped goes on when it is started again.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import cifar10_utils
import grid_search_results as grid_search
import train_convnet_pytorch
import train_mlp_numpy
from cifar10_utils import N_CLASSES, N_PIXELS
from convnet_pytorch import ConvNet
from custom_batchnorm import CustomBatchNormAutograd, CustomBatchNormManualModule
from experiment import (
    PALETTE,
    check_output_dir,
    machine,
    new_figure,
    output_paths,
    save_figure,
    versions,
    write_json,
)
from flags import FlagError, OneLineParser, check_same_flags, one_line_errors, positive_int
from mlp_numpy import MLP
from mlp_pytorch import MLP as TorchMLP
from training_pytorch import DeviceData, make_optimizer, training_step

ROOT = Path(__file__).resolve().parent
Action = Callable[[], object]


class Ratio(NamedTuple):
    """A measured pair: the time (or the memory) of `ours` divided by that of `theirs`."""

    benchmark: str
    case: str
    ours: str
    theirs: str
    ratio: float  # the median over the turns
    low: float  # 10th percentile
    high: float  # 90th percentile
    measured: float  # of ours, the median: seconds, or bytes
    at_most: float | None  # what is to be reached

    @property
    def verdict(self) -> str:
        """Whether the ratio is what was to be reached, and whether it can be told from 1."""
        words = [] if self.at_most is None else ['reached' if self.ratio <= self.at_most else 'MISSED']
        return ', '.join(words + ['drowns in the noise'] * (self.low < 1 < self.high))

    def __str__(self) -> str:
        target = '' if self.at_most is None else f'(to reach: {self.at_most:.3g})'
        spread = f'{self.low:.2f} to {self.high:.2f}'
        pair = f'{self.case:<34}{self.ours:<16}/ {self.theirs:<22}'
        return f'{pair}{self.ratio:6.2f}  {spread:<15}{target:<18}{self.verdict}'


# Timing

# The threads of NumPy's matrix library wait for more work at full speed for a tenth of a second after a product, and so
# take PyTorch's cores from it. Before a short action all threads get the time to fall asleep; then it is done once
# untimed.
SETTLE = 0.15  # seconds


def take_turns(actions: dict[str, Action], repeats: int, at_least: float = 0.05) -> dict[str, np.ndarray]:
    """The seconds of each action, once for each of `repeats` turns.

    An action shorter than `at_least` seconds is done several times in a turn, always as often.
    """

    def seconds_of(action: Action, count: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(count):
            action()
        return (time.perf_counter() - start) / count

    is_short = {name: seconds_of(action) < 1 for name, action in actions.items()}

    def prepare(name: str) -> None:
        if is_short[name]:
            time.sleep(SETTLE)
            actions[name]()

    counts = {}
    for name, action in actions.items():
        prepare(name)
        counts[name] = max(1, round(at_least / seconds_of(action)))
    seconds = {name: np.empty(repeats) for name in actions}
    for turn in range(repeats):
        for name, action in actions.items():
            prepare(name)
            seconds[name][turn] = seconds_of(action, counts[name])
    return seconds


def compare(
    benchmark: str, case: str, seconds: dict[str, np.ndarray], ours: str, at_most: dict[str, float | None]
) -> list[Ratio]:
    """The ratios of `ours` to the others that `at_most` names, with what is to be reached; prints them."""
    ratios = []
    for theirs, target in at_most.items():
        turns = seconds[ours] / seconds[theirs]
        low, high = np.percentile(turns, (10, 90))
        ratios.append(Ratio(benchmark, case, ours, theirs, float(np.median(turns)), float(low), float(high),
                            float(np.median(seconds[ours])), target))  # fmt: skip
        tqdm.write(str(ratios[-1]))
    return ratios


def optional(name: str, what_for: str) -> ModuleType | None:
    """A library that only a benchmark needs; without it that pair is left out, with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f'{what_for} is left out: pip install scikit-learn to have it', file=sys.stderr)
        return None


# step: the training step of the MLP on a batch that is already assembled


def step(flags: argparse.Namespace) -> list[Ratio]:
    """The NumPy MLP's step against the bare products, PyTorch and scikit-learn."""
    ratios = []
    sklearn = optional('sklearn.neural_network', "scikit-learn's MLPClassifier")
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
            seconds = take_turns(actions, flags.repeats)
            ratios += compare('step', case, seconds, 'ours', targets)
            ratios += compare('step', case, seconds, 'products', {'torch_products': None})
    return ratios


LEARNING_RATE = 1e-6  # so small that what is timed stays the same from step to step


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


# run: whole processes at the default flags


def run(flags: argparse.Namespace) -> list[Ratio]:
    """Both MLP scripts against each other and against a script that a good student would write."""
    with tempfile.TemporaryDirectory() as directory:
        places = ['--data_dir', flags.data_dir, '--output_dir', directory]
        student = f'import benchmark; benchmark.student_mlp({flags.data_dir!r}, {directory!r})'
        commands = {
            'numpy': ['train_mlp_numpy.py', *places],
            'numpy_float32': ['train_mlp_numpy.py', *places, '--dtype', 'float32'],
            'pytorch': ['train_mlp_pytorch.py', *places],
            'student': ['-c', student],
        }
        actions = {name: lambda command=command: run_python(*command) for name, command in commands.items()}
        seconds = take_turns(actions, max(3, flags.repeats // 4))
    case = 'whole process, default flags'
    return [
        *compare('run', case, seconds, 'numpy', {'student': 1.0, 'pytorch': None}),
        *compare('run', case, seconds, 'numpy_float32', {'student': 1.0, 'pytorch': None}),
        *compare('run', case, seconds, 'pytorch', {'student': 0.6}),
    ]


def run_python(*args: str, **environment: str) -> None:
    """A Python process in the project's directory.

    Raises:
        FlagError: it fails; with the last line of what it said.
    """
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment})  # fmt: skip
    if done.returncode:
        raise FlagError(f'{" ".join(args[:2])} failed: {(done.stderr.strip() or "no word").splitlines()[-1]}')


def student_mlp(data_dir: str, output_dir: str) -> None:
    """The reference protocol as a good student writes it in PyTorch: all of it in float32 and in memory at once."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from torchvision.datasets import CIFAR10

    torch.manual_seed(42)
    np.random.seed(42)
    root = cifar10_utils.find_batches(Path(data_dir)).parent
    train_set, test_set = CIFAR10(root, train=True), CIFAR10(root, train=False)
    train_images = train_set.data.transpose(0, 3, 1, 2).astype(np.float32)
    test_images = test_set.data.transpose(0, 3, 1, 2).astype(np.float32)
    mean_image = train_images.mean(axis=0)
    train_images, test_images = train_images - mean_image, test_images - mean_image
    train_labels, test_labels = np.array(train_set.targets), np.array(test_set.targets)

    model = nn.Sequential(nn.Linear(N_PIXELS, 100), nn.ReLU(), nn.Linear(100, N_CLASSES))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    history = []
    position, max_steps, batch_size = 0, 1500, 200
    for step in range(max_steps):
        if position + batch_size > len(train_images):
            order = np.random.permutation(len(train_images))
            train_images, train_labels = train_images[order], train_labels[order]
            position = 0
        x = torch.from_numpy(train_images[position : position + batch_size]).reshape(batch_size, -1)
        y = torch.from_numpy(train_labels[position : position + batch_size])
        position += batch_size
        optimizer.zero_grad()
        out = model(x)
        loss = criterion(out, y)
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == max_steps - 1:
            train_accuracy = (out.argmax(dim=1) == y).float().mean().item()
            with torch.no_grad():
                x, y = torch.from_numpy(test_images).reshape(len(test_images), -1), torch.from_numpy(test_labels)
                out = model(x)
                test_loss, test_accuracy = criterion(out, y).item(), (out.argmax(dim=1) == y).float().mean().item()
            history.append((step, train_accuracy, loss.item(), test_accuracy, test_loss))
            print('step {}: train {:.3f} {:.3f}, test {:.3f} {:.3f}'.format(*history[-1]))

    steps, train_accuracy, train_loss, test_accuracy, test_loss = zip(*history, strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(steps, train_accuracy, label='train')
    left.plot(steps, test_accuracy, label='test')
    left.legend()
    right.plot(steps, train_loss, label='train')
    right.plot(steps, test_loss, label='test')
    right.legend()
    figure.savefig(Path(output_dir) / 'student.png')


# batchnorm


def batchnorm(flags: argparse.Namespace) -> list[Ratio]:
    """Batch normalisation forward and backward, in time and in bytes kept for the backward pass."""
    ratios = []
    for shape in ((200, 100), (4096, 1024), (32 * 1024, 64)):
        x, dout = torch.randn(shape), torch.randn(shape)
        modules = {
            'manual': CustomBatchNormManualModule(shape[1]),
            'autograd': CustomBatchNormAutograd(shape[1]),
            'native': nn.BatchNorm1d(shape[1]),
        }
        seconds = take_turns({name: forward_and_backward(module, x, dout) for name, module in modules.items()},
                             flags.repeats)  # fmt: skip
        targets = {'autograd': 0.6, 'native': 2.5} if shape[0] > 200 else {'autograd': None, 'native': None}
        case = str(shape)
        ratios += compare('batchnorm', case, seconds, 'manual', targets)
        leaf = x.clone().requires_grad_()
        saved = {name: np.array([saved_bytes(module, leaf)], float) for name, module in modules.items()}
        ratios += compare('batchnorm', f'{case} bytes saved', saved, 'manual', {'autograd': None, 'native': 1.1})
    return ratios


def forward_and_backward(module: nn.Module, x: torch.Tensor, dout: torch.Tensor) -> Action:
    """One pass each way in training mode, with gradients for the input and both parameters."""
    x = x.clone().requires_grad_()

    def both() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(dout)

    return both


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """The bytes that the module's forward pass keeps for its backward pass, each storage counted once."""
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(saved.values())


# load: from the files to the first batch


def load(flags: argparse.Namespace) -> list[Ratio]:
    """Our reader against torchvision's data set and PyTorch's DataLoader."""
    root = batches_root(flags)

    def ours() -> None:
        cifar10_utils.load.cache_clear()
        cifar10_utils.get_cifar10(root)['train'].next_batch(200)

    def theirs() -> None:
        loader = torchvision_loader(root, 200)
        torchvision_loader(root, 200, train=False)
        next(iter(loader))

    return compare('load', 'files to first batch', take_turns({'ours': ours, 'torchvision': theirs}, flags.repeats),
                   'ours', {'torchvision': 0.5})  # fmt: skip


def batches_root(flags: argparse.Namespace) -> Path:
    """The directory that holds CIFAR-10's.

    Raises:
        DataError: there is none.
    """
    cifar10_utils.load('cifar10', flags.data_dir)
    return cifar10_utils.find_batches(Path(flags.data_dir)).parent


def torchvision_loader(root: Path, batch_size: int, train: bool = True) -> torch.utils.data.DataLoader:
    """CIFAR-10 as PyTorch's own examples read it."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    steps = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    data = CIFAR10(root, train=train, transform=transforms.Compose(steps))
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True)


# trainer: what the training loop adds to the bare step


def trainer(flags: argparse.Namespace) -> list[Ratio]:
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
        seconds = take_turns(actions, flags.repeats, at_least=0.2)
        ratios += compare('trainer', f'{name}, batch {batch_size}', seconds, 'trainer', {'bare': target})
    return ratios


def trainer_step(model: nn.Module, optimizer: str, data: DeviceData, batch_size: int, precision: str) -> Action:
    """What `train_model` does in a step between two evaluations."""
    optimizer = make_optimizer(optimizer, model, LEARNING_RATE)
    scale = torch.tensor(1 / batch_size)

    def one_step() -> None:
        images, labels = data.examples(data.data.next_indices(batch_size))
        _, loss_sum = training_step(model, optimizer, images, labels, precision, scale)
        loss_sum.item()

    return one_step


# convnet: training images per second


def convnet(flags: argparse.Namespace) -> list[Ratio]:
    """Our trainer's step, batch gathering included, against a plain loop over a DataLoader."""
    root, batch_size = batches_root(flags), 32
    data = DeviceData(cifar10_utils.get_cifar10(root, one_hot=False)['train'], torch.device('cpu'))

    def ours(precision: str) -> Action:
        torch.manual_seed(0)
        return trainer_step(train_convnet_pytorch.build_model(), 'adam', data, batch_size, precision)

    torch.manual_seed(0)
    model = ConvNet(3, N_CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = iter(torchvision_loader(root, batch_size))
    actions = {'float32': ours('float32'), 'bfloat16': ours('bfloat16'),
               'plain': lambda: plain_step(model, optimizer, *next(batches))}  # fmt: skip
    seconds = take_turns(actions, flags.repeats, at_least=1.0)
    for name, turns in seconds.items():
        tqdm.write(f'{name}: {batch_size / np.median(turns):.0f} images/s')
    case = 'training step, batch 32'
    return [
        *compare('convnet', case, seconds, 'float32', {'plain': 1 / 1.05}),
        *compare('convnet', case, seconds, 'bfloat16', {'plain': 1 / 1.6, 'float32': None}),
    ]


# grid: 27 runs for 54 settings


def grid(flags: argparse.Namespace) -> list[Ratio]:
    """A search of 54 settings against as many processes, one after the other, each on all cores; once each."""
    values = {'dnn_hidden_units': ['100'], 'max_steps': ['1500', '3000'], 'learning_rate': ['2e-2', '2e-3', '2e-4'],
              'batch_size': ['100', '200', '400'], 'optimizer': ['sgd', 'adam', 'adadelta']}  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        places = ['--data_dir', flags.data_dir, '--output_dir', directory]
        start = time.perf_counter()
        run_python('grid_search_mlp_pytorch.py', *places, *(word for flag, options in values.items()
                                                            for word in (f'--{flag}', *options)))  # fmt: skip
        together = time.perf_counter() - start
        settings = grid_search.all_settings(values)
        start = time.perf_counter()
        for setting in tqdm(settings, desc='separate processes', disable=None):
            train_alone(setting, places)
        one_by_one = time.perf_counter() - start
    seconds = {'search': np.array([together]), 'separate': np.array([one_by_one])}
    return compare('grid', '54 settings, one hidden layer', seconds, 'search', {'separate': 1 / 2.5})


def train_alone(setting: grid_search.Setting, places: list[str]) -> None:
    """A process that trains one setting; `places` are the flags that say where the data and the results are."""
    run_python('train_mlp_pytorch.py', *places, *(f'--{flag}={value}' for flag, value in setting._asdict().items()))


# full_grid: the committed search against separate processes


def full_grid(flags: argparse.Namespace) -> list[Ratio]:
    """The committed search of 486 settings against as many processes in a row, estimated from some of them."""
    search = json.loads((ROOT / f'results/{grid_search.BASE_NAME}.json').read_text())
    if search['machine'] != machine():
        raise FlagError(f'the search in results/ ran on {search["machine"]}, this is {machine()}: search here first')
    settings = sorted(grid_search.all_settings(grid_search.GRIDS['full']), key=lambda s: grid_search.arithmetic(s))
    # What a setting takes of the search's time tells what it takes alone, but for the start and the number of cores.
    shares = np.array([search['times'][s.run]['core_seconds'] * s.max_steps / 3000 for s in settings])
    sample = np.linspace(0, len(settings) - 1, 14).astype(int)
    measured = []
    with tempfile.TemporaryDirectory() as directory:
        for i in tqdm(sample, desc='separate processes', disable=None):
            start = time.perf_counter()
            train_alone(settings[i], ['--data_dir', flags.data_dir, '--output_dir', directory])
            measured.append(time.perf_counter() - start)
    slope, start_up = np.polyfit(shares[sample], measured, 1)
    separate = start_up * len(settings) + slope * shares.sum()
    tqdm.write(f'search: {search["wall_seconds"]:.0f} s, {search["core_seconds"]:.0f} core-seconds')
    tqdm.write(f'separate processes: {start_up:.1f} s each and {slope:.2f} s for each of its core-seconds, '
               f'in all {separate:.0f} s')  # fmt: skip
    seconds = {'search': np.array([search['wall_seconds']]), 'separate': np.array([separate])}
    return compare('full_grid', '486 settings, estimated', seconds, 'search', {'separate': 1 / 2.5})


# scale: does the step grow as its arithmetic does?


def scale(flags: argparse.Namespace) -> list[Ratio]:
    """The NumPy step over width and batch, against its products; an epoch on one process and on two."""
    ratios = []
    sizes = [(width, 256) for width in (64, 128, 256, 512, 1024, 2048, 4096)]
    sizes += [(512, batch_size) for batch_size in (32, 64, 128, 512, 1024, 2048, 4096)]
    data = cifar10_utils.get_cifar10(dataset='synthetic')['train']
    for width, batch_size in sizes:
        images, labels = data.next_batch(batch_size)
        actions = {'ours': numpy_step([width], images, labels), 'products': numpy_products([width], images)}
        seconds = take_turns(actions, max(3, flags.repeats // 2))
        ratios += compare('scale', f'width {width} batch {batch_size}', seconds, 'ours', {'products': None})

    with tempfile.TemporaryDirectory() as directory:

        def epoch(n_processes: int) -> float:
            """The seconds of an epoch, without the processes' start and the last evaluation's share of it."""
            args = ['train_mlp_pytorch.py', '--data_dir', flags.data_dir, '--output_dir', directory,
                    '--max_steps', '125', '--batch_size', '400', '--eval_freq', '125',
                    '--dnn_hidden_units', '400,400,400']  # fmt: skip
            threads = str(torch.get_num_threads() // n_processes)
            run_python('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n_processes}', *args,
                       OMP_NUM_THREADS=threads)  # fmt: skip
            return json.loads((Path(directory) / 'results/mlp_pytorch.json').read_text())['seconds']

        turns = np.array([[epoch(2), epoch(1)] for _ in range(max(3, flags.repeats // 4))])
    seconds = {'two': turns[:, 0], 'one': turns[:, 1]}
    return ratios + compare('scale', 'an epoch on two processes', seconds, 'two', {'one': None})


# What a full run writes


def describe_environment(flags: argparse.Namespace) -> dict[str, object]:
    """All that a ratio depends on besides the code."""
    others = {}
    for name in ('torchvision', 'scikit-learn'):
        with contextlib.suppress(PackageNotFoundError):
            others[name] = version(name)
    return {'machine': machine(), 'threads': torch.get_num_threads(), 'versions': {**versions(), **others},
            'repeats': flags.repeats}  # fmt: skip


def write_ratios(path: Path, environment: dict[str, object], ratios: dict[str, list[Ratio]]) -> None:
    """Writes the ratios of each benchmark, and what they depend on."""
    rows = {name: [ratio._asdict() for ratio in measured] for name, measured in ratios.items()}
    write_json(path, {**environment, 'ratios': rows})


def read_ratios(path: Path) -> tuple[dict[str, object], dict[str, list[Ratio]]]:
    """What `write_ratios` wrote: the environment and the ratios of each benchmark.

    Raises:
        OSError, ValueError: the file cannot be read, or is another.
    """
    environment = json.loads(path.read_text())
    try:
        rows = environment.pop('ratios')
        return environment, {name: [Ratio(**row) for row in measured] for name, measured in rows.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f'no ratios of benchmarks in it: {error}') from error


def go_on_from(path: Path, environment: dict[str, object]) -> dict[str, list[Ratio]]:
    """The ratios of a full run that was stopped, if it ran in this very environment."""
    if not path.exists():
        return {}
    try:
        saved_environment, ratios = read_ratios(path)
    except ValueError as error:
        raise FlagError(f'{path} is damaged: delete it to start anew') from error
    check_same_flags(f'{path} (delete it to start anew)', saved_environment, environment, {})
    return ratios


# All together

BENCHMARKS = {
    function.__name__: function for function in (step, run, trainer, batchnorm, load, convnet, grid, full_grid, scale)
}


def plot(ratios: list[Ratio], path: Path) -> None:
    """Draws every ratio with its spread and what was to be reached, and the step's time over its size."""
    figure, (dots, curves) = new_figure('Measured side by side', size=(12, 9))
    shown = [ratio for ratio in ratios if not ratio.case.startswith('width')][::-1]
    for y, ratio in enumerate(shown):
        colour = PALETTE[0] if ratio.at_most is None or ratio.ratio <= ratio.at_most else PALETTE[1]
        dots.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2)
        dots.plot(ratio.ratio, y, 'o', color=colour, markersize=5)
        if ratio.at_most is not None:
            dots.plot(ratio.at_most, y, '|', color='black', markersize=12)
    dots.axvline(1, color='black', linewidth=0.8)
    dots.set_xscale('log')
    dots.set_yticks(range(len(shown)), [f'{r.case}: {r.ours} / {r.theirs}' for r in shown], fontsize=7)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    dots.set_xticks(ticks, map(str, ticks))
    dots.minorticks_off()
    dots.set(xlabel="the first's time or bytes divided by the second's\n(bar: to be at most; vermilion: missed)")
    for colour, (kind, fixed) in zip(PALETTE, (('width', 'batch 256'), ('batch', 'width 512')), strict=False):
        points = sorted((int(words[words.index(kind) + 1]), ratio) for ratio in ratios if ratio.benchmark == 'scale'
                        and kind in (words := ratio.case.split()) and fixed in ratio.case)  # fmt: skip
        sizes, measured = [size for size, _ in points], [ratio for _, ratio in points]
        curves.plot(sizes, [r.measured for r in measured], color=colour, marker='.', label=f'step over {kind}, {fixed}')
        curves.plot(sizes, [r.measured / r.ratio for r in measured], color=colour, linestyle='--', label='its products')
    curves.set_xscale('log', base=2)
    curves.set_yscale('log')
    curves.set(xlabel='width or batch size', ylabel='seconds')
    curves.legend(fontsize=8)
    save_figure(figure, path)


def build_parser() -> OneLineParser:
    """The script's flags."""
    parser = OneLineParser(description='Times this project against what a user would otherwise pick.')
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}; all without one')
    parser.add_argument('--repeats', type=positive_int, default=15, help='turns of each pair (fewer of long ones)')
    parser.add_argument('--data_dir', default=os.environ.get('CIFAR10_DIR', './cifar10'), help='where CIFAR-10 is')
    parser.add_argument('--output_dir', default='.', help='where results/ and figures/ go, after a run of everything')
    return parser


def main() -> int:
    """Runs the benchmarks that are named; returns the exit status."""
    parser = build_parser()
    flags = parser.parse_args()
    unknown = [name for name in flags.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f'no benchmark {unknown[0]!r}: there are {", ".join(BENCHMARKS)}')
    _, json_path, png_path = output_paths(flags.output_dir, 'benchmark')
    unfinished_path = json_path.with_name('benchmark_unfinished.json')
    environment, ratios = describe_environment(flags), {}
    try:
        with one_line_errors(parser):
            check_output_dir(flags.output_dir, 'benchmark')
            if not flags.names:
                ratios = go_on_from(unfinished_path, environment)
            for name in tqdm(flags.names or list(BENCHMARKS), unit='benchmark', disable=None):
                tqdm.write(f'\n{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}')
                if name in ratios:
                    tqdm.write(f'measured before the last run was stopped (delete {unfinished_path} to start anew)')
                    continue
                ratios[name] = BENCHMARKS[name](flags)
                if not flags.names:
                    write_ratios(unfinished_path, environment, ratios)
            if not flags.names:
                plot(list(itertools.chain(*ratios.values())), png_path)
                os.replace(unfinished_path, json_path)
                print(f'wrote {json_path}, {png_path}')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
