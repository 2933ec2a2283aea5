"""What the PyTorch trainers share: the device, the data on it, evaluation and the one training loop, `train_model`.

Under `torchrun` every process runs this same code on its share of each batch: the data-parallel model averages the
gradients, sums over the ranks give the loss and the accuracies, and rank 0 alone prints and writes.
"""

import argparse
import contextlib
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from checkpoints import RunState
from cifar10_utils import IMAGE_SHAPE, DataSet
from experiment import RunRecord, check_can_write, load_data
from flags import FlagError

OPTIMIZERS = {'sgd': torch.optim.SGD, 'adam': torch.optim.Adam, 'adadelta': torch.optim.Adadelta}
EVALUATION_BATCH = 200  # examples at a time: faster on a CPU than more, and little memory
ORDER_SEED = 42  # of the shuffles, whatever --seed says of the weights


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


class Ranks(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    n_ranks: int = 1

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This rank's part of a batch's indices; the first ranks have one more where they cannot have the same."""
        return indices[self.rank :: self.n_ranks]


ALONE = Ranks()


@contextlib.contextmanager
def process_group(device: torch.device, alone: bool) -> Iterator[Ranks]:
    """Joins the ranks that torchrun started, if any, and says which of them this one is."""
    if alone or not launched():
        yield ALONE
        return
    on_gpu = {'device_id': device} if device.type == 'cuda' else {}
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', **on_gpu)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's values, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


# The data and evaluation


def load_on_all_ranks(
    data_dir: str, dataset: str, validation_size: int, batch_size: int, ranks: Ranks
) -> dict[str, DataSet]:
    """The data sets of `load_data`: rank 0 finds, downloads or replaces them, and says to the others which they are."""

    def load(dataset: str) -> dict[str, DataSet]:
        rng = np.random.RandomState(ORDER_SEED)
        return load_data(data_dir, dataset, validation_size, batch_size, one_hot=False, rng=rng)

    sets = load(dataset) if ranks.rank == 0 else None
    if ranks.n_ranks > 1:
        name = [sets['train'].name if sets else None]
        dist.broadcast_object_list(name, 0)
        sets = sets or load(name[0])
    return sets


class DeviceData:
    """A data set on the device, as bytes; batches are gathered and centred there."""

    def __init__(self, data: DataSet, device: torch.device) -> None:
        self.data = data
        self.device = device
        with warnings.catch_warnings():  # PyTorch warns of arrays that are read-only; nothing here writes to these
            warnings.filterwarnings('ignore', 'The given NumPy array is not writable')
            self.pixels = torch.from_numpy(data.pixels).to(device)
        self.labels = torch.from_numpy(data.classes.astype(np.int64)).to(device)
        self.mean_image = torch.from_numpy(data.mean_image).to(device)

    def examples(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The images (n, 3, 32, 32) float32, centred, and the labels (n,) int64 with these indices."""
        on_device = torch.from_numpy(indices).to(self.device)
        images = self.pixels.index_select(0, on_device).to(torch.float32).sub_(self.mean_image)
        return images.view(-1, *IMAGE_SHAPE), self.labels.index_select(0, on_device)


def evaluate(model: nn.Module, data: DeviceData, precision: str, ranks: Ranks = ALONE) -> tuple[float, float]:
    """The accuracy and the mean cross-entropy over every example of `data` exactly once, shared out over the ranks."""
    if ranks.n_ranks > 1:  # a training step leaves each rank with running statistics of its own
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    model.eval()
    share = np.array_split(np.arange(data.data.num_examples), ranks.n_ranks)[ranks.rank]
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
    name: str,
    title: str,
    model: nn.Module,
    flags: argparse.Namespace,
    defaults: dict[str, object],
    quiet: bool = False,
    alone: bool = False,
    evaluate_after: Collection[int] = (),
) -> RunRecord:
    """Trains `model` in place as the flags say and returns the record of the run.

    Args:
        name: of the record's files.
        title: of its figure.
        model: maps images (n, 3, 32, 32) to logits (n, n_classes).
        flags: those of every group in `flags.py` but the MLP's, and any others, which are recorded.
        defaults: the script's flags at their defaults.
        quiet: no progress bar and no lines.
        alone: train in this process alone, even if torchrun started others.
        evaluate_after: numbers of steps after which to evaluate as well.

    Raises:
        DataError, FlagError: the data, the device or the checkpoint cannot be had.
    """
    device = pick_device(flags.device)
    with process_group(device, alone) as ranks:
        sets = load_on_all_ranks(flags.data_dir, flags.dataset, flags.validation_size, flags.batch_size, ranks)
        data = {part: DeviceData(data_set, device) for part, data_set in sets.items() if data_set.num_examples}
        model.to(device)
        optimizer = make_optimizer(flags.optimizer, model, flags.learning_rate)
        all_flags = {**vars(flags), 'device': str(device)}
        record = RunRecord(name, title, sets['train'].name, flags.max_steps, flags.eval_freq, all_flags,
                           quiet or ranks.rank > 0, evaluate_after)  # fmt: skip
        state = RunState(all_flags, defaults, model, optimizer, sets['train'], record)
        start = 0 if flags.resume is None else state.load(flags.resume)
        check_setup(flags.batch_size, flags.checkpoint, ranks)
        announce(record, device, flags.precision, ranks)
        if flags.compile:
            model.compile()
        parallel = DistributedDataParallel(model) if ranks.n_ranks > 1 else model
        # Of the sum over this rank's share, which may be an example more than another's, to the mean over the batch;
        # the ranks' gradients are averaged, not summed.
        scale = torch.tensor(ranks.n_ranks / flags.batch_size, device=device)

        model.train()
        with record.running(start) as steps:
            for step in steps:
                indices = sets['train'].next_indices(flags.batch_size)
                images, labels = data['train'].examples(ranks.share(indices))
                logits, loss_sum = training_step(parallel, optimizer, images, labels, flags.precision, scale)
                loss = sum_over_ranks(loss_sum).item() / flags.batch_size
                if record.evaluation_due(step, loss):
                    correct = sum_over_ranks((logits.argmax(dim=1) == labels).sum()).item()
                    held_out = {part: evaluate(model, data[part], flags.precision, ranks)
                                for part in ('test', 'validation') if part in data}  # fmt: skip
                    record.add(step, train=(correct / flags.batch_size, loss), **held_out)
                    if flags.checkpoint is not None and ranks.rank == 0:
                        state.save(flags.checkpoint, step + 1)
    return record


def check_setup(batch_size: int, checkpoint: str | None, ranks: Ranks) -> None:
    """Raises a FlagError if a rank would have nothing to do, or the checkpoint could not be written."""
    if batch_size < ranks.n_ranks:
        raise FlagError(f'--batch_size {batch_size} leaves some of {ranks.n_ranks} processes without an example')
    if checkpoint is not None:
        try:
            check_can_write(Path(checkpoint))
        except OSError as error:
            raise FlagError(f'cannot write --checkpoint {checkpoint}: {error.strerror}') from error


def announce(record: RunRecord, device: torch.device, precision: str, ranks: Ranks) -> None:
    """Says what the training runs on, and where that is a bad choice."""
    record.say(f'device: {device.type}' + (f', {ranks.n_ranks} process(es)' if ranks.n_ranks > 1 else ''))
    if precision == 'bfloat16' and device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        record.say('this processor has no bfloat16 instructions: --precision float32 will be many times as fast')
