"""From CIFAR-10's files to the first batch: our reader against torchvision's data set in PyTorch's DataLoader."""

import contextlib
from functools import partial
from pathlib import Path
from unittest import mock

import torch

import cifar10_utils
from benchmark.ratios import Ratio, compare, take_turns
from cifar10_utils import BATCHES_FOLDER, DataError, DownloadError


def load(data_dir: str, repeats: int) -> list[Ratio]:
    """Our reader against torchvision's data set and PyTorch's DataLoader, with the files' checksums and without."""
    from torchvision.datasets import CIFAR10

    root = batches_root(data_dir)

    def ours(checksums: bool) -> None:
        cifar10_utils.load.cache_clear()
        cifar10_utils.get_cifar10(data_dir, checksums=checksums)['train'].next_batch(200)

    def theirs(checksums: bool) -> None:
        unchecked = mock.patch.object(CIFAR10, '_check_integrity', return_value=True)
        with contextlib.nullcontext() if checksums else unchecked:
            loader = torchvision_loader(root, 200)
            torchvision_loader(root, 200, train=False)
        next(iter(loader))

    ratios = []
    for case, checksums in (('with checksums', True), ('without checksums', False)):
        actions = {'ours': partial(ours, checksums), 'torchvision': partial(theirs, checksums)}
        ratios += compare('load', f'first batch, {case}', take_turns(actions, repeats), 'ours', {'torchvision': 0.5})
    return ratios


def batches_root(data_dir: str) -> Path:
    """The directory that holds CIFAR-10's, which is what torchvision asks for; downloads it where there is none.

    Raises:
        DataError: it cannot be had.
    """
    try:
        cifar10_utils.load('cifar10', data_dir)
    except DownloadError as error:  # whose own words offer the stand-in, which is of no use here
        raise DataError(
            f'no CIFAR-10 in {data_dir}, and the download failed ({error.__cause__}): '
            f'name a directory that holds {BATCHES_FOLDER} with --data_dir'
        ) from error
    return cifar10_utils.find_batches(Path(data_dir).absolute()).parent


def torchvision_loader(root: Path, batch_size: int, train: bool = True) -> torch.utils.data.DataLoader:
    """CIFAR-10 as PyTorch's own examples read it; for training in a new order each epoch, in whole batches alone.

    Raises:
        DataError: torchvision finds none, or one that is not the published one.
    """
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    steps = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]
    try:
        data = CIFAR10(root, train=train, transform=transforms.Compose(steps))
    except RuntimeError as error:
        raise DataError(
            f'torchvision finds no intact CIFAR-10 at {root / BATCHES_FOLDER}: put it there, or name another --data_dir'
        ) from error
    return torch.utils.data.DataLoader(data, batch_size, shuffle=train, drop_last=train)
