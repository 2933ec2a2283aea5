"""The device of a PyTorch run, and the processes that share it out: one, or those that torchrun started.

Under torchrun every process runs the same code on its share of each batch, and is called by its rank. What all of them
have to do together, they wait for each other to do.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from cifar10_files import one_line
from cifar10_utils import DataError
from parsing import FlagError, launched


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
