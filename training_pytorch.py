"""What the PyTorch trainers share: the device, the data on it, evaluation, checkpoints and the one training loop.

Under `torchrun` every process runs this same code on its share of each batch: the data-parallel model averages the
gradients, sums over the ranks give the loss and the accuracies, and rank 0 alone prints and writes.
"""

import argparse
import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from cifar10_utils import IMAGE_SHAPE, DataSet
from experiment import FlagError, OneLineParser, RunRecord, atomic_file, check_can_write, check_same_flags, load_data

OPTIMIZERS = {'sgd': torch.optim.SGD, 'adam': torch.optim.Adam, 'adadelta': torch.optim.Adadelta}
EVALUATION_BATCH = 200  # examples at a time: faster on a CPU than more, and little memory
ORDER_SEED = 42  # of the shuffles, whatever --seed says of the weights

# Flags that may differ between a checkpoint and the run that resumes it: where it runs, not what it trains.
FREE_FLAGS = {'data_dir', 'dataset', 'output_dir', 'checkpoint', 'resume', 'device', 'compile'}


def add_pytorch_flags(parser: OneLineParser, optimizer: str) -> None:
    """Adds the flags that only the PyTorch trainers have."""
    add = parser.add_argument
    add('--optimizer', type=str.lower, choices=list(OPTIMIZERS), default=optimizer, help='in upper or lower case')
    add('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto', help='auto: a GPU where there is one')
    add('--precision', choices=['float32', 'bfloat16'], default='float32',
        help='bfloat16: by autocast, parameters stay float32')  # fmt: skip
    add('--compile', action='store_true', help='torch.compile the network')
    add('--checkpoint', metavar='FILE', help='save at every evaluation all that a run needs to go on')
    add('--resume', metavar='FILE', help='go on from this checkpoint')


# The device and the ranks


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; 'auto' is CUDA or MPS where there is one, else the CPU.

    Raises:
        FlagError: PyTorch finds no such device.
    """
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise FlagError(f'--device {name}: PyTorch finds no such device here; use --device auto or cpu')
    if name != 'cuda' or not launched():
        return torch.device(name)
    local_rank, n_gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
    if local_rank >= n_gpus:
        raise FlagError(f'--nproc_per_node must be at most the number of GPUs, {n_gpus}; or use --device cpu')
    return torch.device(name, local_rank)


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def process_group(device: torch.device, alone: bool) -> Iterator[tuple[int, int]]:
    """Joins the ranks that torchrun started, and gives this one's number and how many they are: 0 and 1 without it."""
    if alone or not launched():
        yield 0, 1
        return
    on_gpu = {'device_id': device} if device.type == 'cuda' else {}
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', **on_gpu)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's values, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


# The data and evaluation


def load_on_all_ranks(flags: argparse.Namespace, rank: int, n_ranks: int) -> dict[str, DataSet]:
    """The data sets of `load_data`: rank 0 finds, downloads or replaces them, and says to the others which they are."""

    def load(dataset: str) -> dict[str, DataSet]:
        one_run = argparse.Namespace(**{**vars(flags), 'dataset': dataset})
        return load_data(one_run, one_hot=False, rng=np.random.RandomState(ORDER_SEED))

    sets = load(flags.dataset) if rank == 0 else None
    if n_ranks > 1:
        name = [sets['train'].name if sets else None]
        dist.broadcast_object_list(name, 0)
        sets = sets or load(name[0])
    return sets


class DeviceData:
    """A data set on the device, as bytes; batches are gathered and centred there."""

    def __init__(self, data: DataSet, device: torch.device) -> None:
        self.data = data
        self.device = device
        self.pixels = torch.from_numpy(data.pixels).to(device)
        self.labels = torch.from_numpy(data.classes.astype(np.int64)).to(device)
        self.mean_image = torch.from_numpy(data.mean_image).to(device)

    def examples(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The images (n, 3, 32, 32) float32, centred, and the labels (n,) int64 with these indices."""
        on_device = torch.from_numpy(indices).to(self.device)
        images = self.pixels.index_select(0, on_device).to(torch.float32).sub_(self.mean_image)
        return images.view(-1, *IMAGE_SHAPE), self.labels.index_select(0, on_device)


def evaluate(
    model: nn.Module, data: DeviceData, precision: str, rank: int = 0, n_ranks: int = 1
) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data` exactly once, shared out over the ranks."""
    if n_ranks > 1:  # a training step leaves each rank with running statistics of its own
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    model.eval()
    share = np.array_split(np.arange(data.data.num_examples), n_ranks)[rank]
    totals = torch.zeros(2, device=data.device, dtype=torch.float32 if data.device.type == 'mps' else torch.float64)
    with torch.inference_mode():
        for start in range(0, len(share), EVALUATION_BATCH):
            images, labels = data.examples(share[start : start + EVALUATION_BATCH])
            with autocast(data.device, precision):
                logits = model(images)
            correct = (logits.argmax(dim=1) == labels).sum()
            totals += torch.stack([correct, cross_entropy(logits.float(), labels, reduction='sum')])
    model.train()
    return tuple((sum_over_ranks(totals) / data.data.num_examples).tolist())


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which the forward pass runs: none in float32, since even a disabled autocast takes time."""
    return torch.autocast(device.type, torch.bfloat16) if precision == 'bfloat16' else contextlib.nullcontext()


# Checkpoints


def fixed_flags(flags: argparse.Namespace, name: str, dataset: str) -> dict[str, object]:
    """All that a checkpoint must have in common with the run that resumes it."""
    shared = {flag: value for flag, value in vars(flags).items() if flag not in FREE_FLAGS}
    return {'script': name, 'dataset': dataset, **shared}


def save_checkpoint(
    path: str,
    fixed: dict,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DataSet,
    record: RunRecord,
) -> None:
    """Writes all that the run needs to go on after `step` steps, whole or not at all."""
    record.seconds = record.elapsed()
    state = {
        'flags': fixed,
        'step': step,
        'model': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'order': {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                  for key, value in data.state().items()},
        'torch_rng': torch.get_rng_state(),
        'record': record.state(),
    }  # fmt: skip
    with atomic_file(Path(path)) as file:
        torch.save(state, file)


def load_checkpoint(
    path: str, fixed: dict, model: nn.Module, optimizer: torch.optim.Optimizer, data: DataSet, record: RunRecord
) -> int:
    """Puts everything back as it was and returns the number of steps already done.

    Raises:
        FlagError: the file cannot be read, is damaged, or belongs to a run with other flags.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch does not look at the checksums
            if archive.testzip():
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action='ignore'):  # PyTorch comments on damaged files before it refuses them
            state = torch.load(path, map_location='cpu', weights_only=True)
        check_same_flags(f'--resume {path}', state['flags'], fixed)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        data.restore({key: value.numpy() if isinstance(value, torch.Tensor) else value
                      for key, value in state['order'].items()})  # fmt: skip
        torch.set_rng_state(state['torch_rng'])
        record.restore(state['record'])
        return state['step']
    except FlagError:
        raise
    except OSError as error:
        raise FlagError(f'cannot read --resume {path}: {error.strerror or error}') from error
    except (
        zipfile.BadZipFile,
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise FlagError(
            f'--resume {path} is damaged or no checkpoint of these scripts; start anew without it'
        ) from error


# Training


def make_optimizer(name: str, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """PyTorch's own, with its fused kernels, which update all parameters in one pass, where it has them."""
    on_mps = next(model.parameters()).device.type == 'mps'
    fused = {'fused': True} if name != 'adadelta' and not on_mps else {}
    return OPTIMIZERS[name](model.parameters(), lr=learning_rate, **fused)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: str,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update of the parameters.

    Args:
        images, labels: (n, 3, 32, 32) and (n,).
        precision: 'float32' or 'bfloat16'.
        scale: what makes of the sum of the losses the loss that is minimised, such as 1 / n.

    Returns:
        The logits (n, n_classes) before the update, and the sum of their losses.
    """
    with autocast(images.device, precision):
        logits = model(images)
    loss_sum = cross_entropy(logits.float(), labels, reduction='sum')
    optimizer.zero_grad()
    loss_sum.backward(scale)
    optimizer.step()
    return logits.detach(), loss_sum.detach()


def train_model(
    name: str, title: str, model: nn.Module, flags: argparse.Namespace, quiet: bool = False, alone: bool = False
) -> RunRecord:
    """Trains `model` in place as the flags say and returns the record of the run.

    Args:
        name: of the record's files.
        title: of its figure.
        model: maps images (n, 3, 32, 32) to logits (n, n_classes).
        flags: see `experiment.make_parser` and `add_pytorch_flags`.
        quiet: no progress bar and no lines.
        alone: train in this process alone, even if torchrun started others.

    Raises:
        DataError, FlagError: the data, the device or the checkpoint cannot be had.
    """
    device = pick_device(flags.device)
    with process_group(device, alone) as (rank, n_ranks):
        quiet = quiet or rank > 0
        if flags.batch_size < n_ranks:
            raise FlagError(f'--batch_size {flags.batch_size} leaves some of {n_ranks} processes without an example')
        sets = load_on_all_ranks(flags, rank, n_ranks)
        data = {part: DeviceData(data_set, device) for part, data_set in sets.items()}
        model.to(device)
        optimizer = make_optimizer(flags.optimizer, model, flags.learning_rate)

        record = RunRecord(name, title, {**vars(flags), 'device': str(device)}, sets['train'].name, quiet)
        fixed = fixed_flags(flags, name, record.dataset)
        start = 0
        if flags.resume is not None:
            start = load_checkpoint(flags.resume, fixed, model, optimizer, sets['train'], record)
        if flags.checkpoint is not None:
            try:
                check_can_write(Path(flags.checkpoint))
            except OSError as error:
                raise FlagError(f'cannot write --checkpoint {flags.checkpoint}: {error.strerror}') from error
        if flags.compile:
            model.compile()
        parallel = DistributedDataParallel(model) if n_ranks > 1 else model

        # Of the sum over this rank's share, which may be an example more than another's, to the mean over the batch;
        # the ranks' gradients are averaged, not summed.
        scale = torch.tensor(n_ranks / flags.batch_size, device=device)
        record.say(f'device: {device.type}, {n_ranks} process(es)' if n_ranks > 1 else f'device: {device.type}')
        if flags.precision == 'bfloat16' and device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX2':
            record.say('this processor has no bfloat16 instructions: --precision float32 will be many times as fast')
        model.train()
        with record.running(start) as steps:
            for step in steps:
                indices = sets['train'].next_indices(flags.batch_size)
                images, labels = data['train'].examples(indices[rank::n_ranks])
                logits, loss_sum = training_step(parallel, optimizer, images, labels, flags.precision, scale)
                loss = sum_over_ranks(loss_sum).item() / flags.batch_size
                if record.evaluation_due(step, loss):
                    correct = sum_over_ranks((logits.argmax(dim=1) == labels).sum()).item()
                    on_validation = None
                    if flags.validation_size:
                        on_validation = evaluate(model, data['validation'], flags.precision, rank, n_ranks)
                    record.add(
                        step,
                        train=(correct / flags.batch_size, loss),
                        test=evaluate(model, data['test'], flags.precision, rank, n_ranks),
                        validation=on_validation,
                    )
                    if flags.checkpoint is not None and rank == 0:
                        save_checkpoint(flags.checkpoint, fixed, step + 1, model, optimizer, sets['train'], record)
    return record
