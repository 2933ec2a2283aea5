"""Whether the step grows as its arithmetic does: over the width, over the batch, and over two processes."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import cifar10_utils
from benchmark.mlp_step import numpy_products, numpy_step
from benchmark.processes import places, run_python
from benchmark.ratios import Ratio, compare, take_turns


def scale(data_dir: str, repeats: int) -> list[Ratio]:
    """The NumPy step over width and batch, against its products; an epoch on one process and on two."""
    with tempfile.TemporaryDirectory() as directory:
        where = places(data_dir, directory)
        return over_sizes(max(3, repeats // 2)) + over_processes(where, Path(directory), max(3, repeats // 4))


def over_sizes(repeats: int) -> list[Ratio]:
    """The step of one hidden layer at several widths and batch sizes, against its products."""
    ratios = []
    sizes = [(width, 256) for width in (64, 128, 256, 512, 1024, 2048, 4096)]
    sizes += [(512, batch_size) for batch_size in (32, 64, 128, 512, 1024, 2048, 4096)]
    data = cifar10_utils.get_cifar10(dataset='synthetic')['train']
    for width, batch_size in sizes:
        images, labels = data.next_batch(batch_size)
        actions = {'ours': numpy_step([width], images, labels), 'products': numpy_products([width], images)}
        seconds = take_turns(actions, repeats)
        ratios += compare('scale', f'width {width} batch {batch_size}', seconds, 'ours', {'products': None})
    return ratios


def over_processes(where: list[str], directory: Path, repeats: int) -> list[Ratio]:
    """An epoch of the PyTorch MLP on two processes, against one that has all cores; they write into `directory`."""

    def epoch(n_processes: int) -> float:
        """The seconds of 125 steps and two evaluations, after the first step and after the last; no process's start."""
        args = ['train_mlp_pytorch.py', *where, '--max_steps', '125', '--batch_size', '400', '--eval_freq', '125',
                '--dnn_hidden_units', '400,400,400']  # fmt: skip
        threads = str(torch.get_num_threads() // n_processes)
        run_python('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n_processes}', *args,
                   OMP_NUM_THREADS=threads)  # fmt: skip
        (record,) = directory.glob('results/*.json')
        return json.loads(record.read_text())['seconds']

    turns = np.array([[epoch(2), epoch(1)] for _ in range(repeats)])
    seconds = {'two': turns[:, 0], 'one': turns[:, 1]}
    return compare('scale', 'an epoch and two evaluations', seconds, 'two', {'one': None})
