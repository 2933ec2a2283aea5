"""What the PyTorch trainers share: the device, the data on it, evaluation and the one training loop, `train_model`.

Under `torchrun` every process runs this same code on its share of each batch: the data-parallel model averages the
gradients, sums over the ranks give the loss and the accuracies, and rank 0 alone prints and writes.
"""

import argparse
import atexit
import contextlib
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from checkpoints import EVALUATION_BATCH, KeptNetwork, RunState
from cifar10_utils import IMAGE_SHAPE, DataError, DataSet
from experiment import RunRecord
from files import check_can_write
from flags import FlagError, check_same_flags, one_line
from script import load_data

OPTIMIZERS = {'sgd': torch.optim.SGD, 'adam': torch.optim.Adam, 'adadelta': torch.optim.Adadelta}
FLOAT32_MAX = 3.4e38


# The device and the ranks


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; 'auto' is CUDA or MPS where there is one, else the CPU.

    Under torchrun each process takes the GPU of its local rank, and 'auto' is never MPS, which gloo does not know.

    Raises:
        FlagError: PyTorch finds no such device.
    """
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if launched() and name == 'mps':
        raise FlagError('--device mps: processes cannot share it; use --device cpu, or no torchrun')
    if name == 'auto':
        name = next(device for device, is_there in there.items() if is_there and not (launched() and device == 'mps'))
    if not there[name]:
        raise FlagError(f'--device {name}: PyTorch finds no such device here; use --device auto or cpu')
    if name != 'cuda' or not launched():
        return torch.device(name)
    local_rank, n_gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
    if local_rank >= n_gpus:
        raise FlagError(f'--nproc_per_node must be at most the number of GPUs, {n_gpus}; or use --device cpu')
    torch.cuda.set_device(local_rank)  # collectives of Python objects use the current one
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
PATIENCE = timedelta(
    minutes=30
)  # with rank 0, which may have to download the data; a rank that dies is noticed at once


def join_ranks(device: torch.device) -> Ranks:
    """Joins the processes that torchrun started, once for all runs of this process, and says which this one is."""
    if not launched():
        return ALONE
    if not dist.is_initialized():
        on_gpu = {'device_id': device} if device.type == 'cuda' else {}
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=PATIENCE, **on_gpu)
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """What all ranks have to get through before any goes on: where one cannot, all end, and rank 0 says why.

    Raises:
        FlagError: on rank 0, where any rank raised a FlagError, a DataError or an OSError; the others end in silence.
    """
    reason = None
    try:
        yield
    except (FlagError, DataError, OSError) as error:
        if ranks.n_ranks == 1:
            raise
        reason = one_line(error)
    if ranks.n_ranks > 1:
        reasons: list[str | None] = [None] * ranks.n_ranks
        dist.all_gather_object(reasons, reason)
        if any(reasons) and ranks.rank == 0:
            of_all = len(set(reasons)) == 1
            told = [reason if of_all else f'rank {rank}: {reason}' for rank, reason in enumerate(reasons) if reason]
            raise FlagError(told[0] if of_all else '; '.join(told))
        if any(reasons):
            sys.exit(2)


def from_rank_0(value: Any, ranks: Ranks) -> Any:
    """What rank 0 has, on every rank."""
    values = [value]
    if ranks.n_ranks > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def sum_over_ranks(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The sum of every rank's values, on every rank."""
    if ranks.n_ranks > 1:
        dist.all_reduce(values)
    return values


# The data and evaluation


def load_on_all_ranks(
    data_dir: str, dataset: str, validation_size: int, batch_size: int, seed: int, ranks: Ranks
) -> dict[str, DataSet]:
    """The data sets of `load_data`: rank 0 finds, downloads or replaces them, and says to the others which they are."""

    def load(dataset: str) -> dict[str, DataSet]:
        rng = np.random.RandomState(seed)
        return load_data(data_dir, dataset, validation_size, batch_size, one_hot=False, rng=rng)

    sets = None
    with together(ranks):
        sets = load(dataset) if ranks.rank == 0 else None
    dataset = from_rank_0(sets['train'].name if sets else None, ranks)
    with together(ranks):
        sets = sets or load(dataset)
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
    return tuple((sum_over_ranks(totals, ranks) / data.data.num_examples).tolist())


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which the forward pass runs: none in float32, since even a disabled autocast takes time."""
    return torch.autocast(device.type, torch.bfloat16) if precision == 'bfloat16' else contextlib.nullcontext()


# Training


def check_learning_rate(learning_rate: float) -> None:
    """Raises a FlagError if the learning rate is none in float32."""
    if learning_rate > FLOAT32_MAX:
        raise FlagError(f'--learning_rate must be at most {FLOAT32_MAX:g} in float32, got {learning_rate:g}')


def make_optimizer(name: str, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """PyTorch's own, with its fused kernels, which update all parameters in one pass, where it has them.

    Raises:
        FlagError: the learning rate is none in float32.
    """
    check_learning_rate(learning_rate)
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
    script: str,
    title: str,
    model: nn.Module,
    arguments: dict[str, object],
    flags: argparse.Namespace,
    defaults: dict[str, object],
    output_dir: str | None = None,
    quiet: bool = False,
    alone: bool = False,
    evaluate_after: Collection[int] = (),
) -> RunRecord:
    """Trains `model` in place as the flags say and returns the record of the run.

    Args:
        script, title: what the run's files and its figure are named after.
        model: maps images (n, 3, 32, 32) to logits (n, n_classes).
        arguments: those that the model's class was made with, by name.
        flags: those of every group in `flags.py` but the MLP's, and any others, which are recorded.
        defaults: the script's flags at their defaults.
        output_dir: where the run's files go; None: nowhere.
        quiet: no progress bar and no lines.
        alone: train in this process alone, even if torchrun started others.
        evaluate_after: numbers of steps after which to evaluate as well.

    Raises:
        DataError, FlagError: the data, the device or the checkpoint cannot be had.
    """
    device = pick_device(flags.device)
    ranks = ALONE if alone else join_ranks(device)
    sets = load_on_all_ranks(
        flags.data_dir, flags.dataset, flags.validation_size, flags.batch_size, flags.seed, ranks
    )  # fmt: skip
    data = {part: DeviceData(data_set, device) for part, data_set in sets.items() if data_set.num_examples}
    model.to(device)
    optimizer = make_optimizer(flags.optimizer, model, flags.learning_rate)
    all_flags = {**vars(flags), 'device': str(device)}
    checkpoint = checkpoint_path(flags.checkpoint, flags.seed if flags.seeds else None)
    with together(ranks):
        record = RunRecord(
            script, title, sets['train'].name, all_flags, defaults, output_dir if ranks.rank == 0 else None,
            quiet or ranks.rank > 0, evaluate_after, KeptNetwork(script, model, arguments, sets['train'].mean_image),
        )  # fmt: skip
        state = RunState(all_flags, defaults, ranks.n_ranks, model, optimizer, sets['train'], record)
        is_done = record.already_done()
        start = 0 if is_done else find_start(state, flags.resume, checkpoint, ranks)
    if from_rank_0(is_done, ranks):
        return record
    check_agreement(state.flags, start, ranks)
    announce(record, device, flags.precision, ranks)
    if flags.compile:
        model.compile()
    parallel = data_parallel(model, data['train'].examples(np.arange(1))[0], ranks)
    # Of the sum over this rank's share, which may be an example more than another's, to the mean over the batch;
    # the ranks' gradients are averaged, not summed.
    scale = torch.tensor(ranks.n_ranks / flags.batch_size, device=device)

    model.train()
    with record.running(start) as steps:
        for step in steps:
            indices = sets['train'].next_indices(flags.batch_size)
            images, labels = data['train'].examples(ranks.share(indices))
            logits, loss_sum = training_step(parallel, optimizer, images, labels, flags.precision, scale)
            loss = sum_over_ranks(loss_sum, ranks).item() / flags.batch_size
            if record.evaluation_due(step, loss):
                correct = sum_over_ranks((logits.argmax(dim=1) == labels).sum(), ranks).item()
                held_out = {part: evaluate(model, data[part], flags.precision, ranks)
                            for part in ('test', 'validation') if part in data}  # fmt: skip
                record.add(step, train=(correct / flags.batch_size, loss), **held_out)
                if checkpoint is not None and ranks.rank == 0:
                    record.attempt(checkpoint, lambda path, n_done=step + 1: state.save(path, n_done))
    return record


def data_parallel(model: nn.Module, image: torch.Tensor, ranks: Ranks) -> nn.Module:
    """The model, averaging its gradients over the ranks.

    PyTorch arranges the gradients anew after the first backward pass, so that three or more ranks then sum them in
    another order. A pass that changes nothing, on any `image` (1, 3, 32, 32), has that done before the first step: of a
    run that is resumed, too, whose steps must not be rounded otherwise.
    """
    if ranks.n_ranks == 1:
        return model
    parallel = DistributedDataParallel(model)
    model.eval()
    parallel(image).sum().backward()
    model.zero_grad()
    return parallel


def checkpoint_path(checkpoint: str | None, seed: int | None) -> str | None:
    """The file of `--checkpoint`, with the seed in its name where there are several."""
    if checkpoint is None or seed is None:
        return checkpoint
    path = Path(checkpoint)
    return str(path.with_name(f'{path.stem}_seed={seed}{path.suffix}'))


def find_start(state: RunState, resume: str | None, checkpoint: str | None, ranks: Ranks) -> int:
    """The step to go on from, after the files that the flags name are seen to be right and the checkpoint is read.

    Raises:
        FlagError: a rank would have no examples, a file cannot be read, or could not be written.
    """
    batch_size = state.flags['batch_size']
    if batch_size < ranks.n_ranks:
        raise FlagError(f'--batch_size {batch_size} leaves some of {ranks.n_ranks} processes without an example')
    if checkpoint is not None and ranks.rank == 0:
        try:
            check_can_write(checkpoint)
        except OSError as error:
            raise FlagError(f'cannot write --checkpoint {checkpoint}: {error.strerror or error}') from error
    if resume is not None:
        return state.load(resume)
    if checkpoint is not None and os.path.lexists(checkpoint):
        return state.load(checkpoint, flag='checkpoint')
    return 0


def check_agreement(flags: dict[str, object], start: int, ranks: Ranks) -> None:
    """Raises a FlagError, on rank 0, where the ranks would not train the same from the same step on."""
    flags_of_0, start_of_0 = from_rank_0((flags, start), ranks)
    with together(ranks):
        check_same_flags('the run of rank 0', flags_of_0, flags, {})
        if start != start_of_0:
            raise FlagError(f'it would go on from step {start}, rank 0 from step {start_of_0}')


def announce(record: RunRecord, device: torch.device, precision: str, ranks: Ranks) -> None:
    """Says what the training runs on, and where that is a bad choice."""
    if device.type == 'cuda':
        record.machine += f', {torch.cuda.get_device_name(device)}'
    record.say(f'device: {device.type}' + (f', {ranks.n_ranks} process(es)' if ranks.n_ranks > 1 else ''))
    if precision == 'bfloat16' and device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX2':
        record.say('this processor has no bfloat16 instructions: --precision float32 will be many times as fast')
