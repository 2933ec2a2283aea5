"""Damages a batch file of CIFAR-10 in thousands of ways, and counts what the reader says of each; run by hand:

    python -m tests.mutate_batch_files --data_dir cifar10 --n 10000

Each mutation flips a bit, sets a byte, cuts the file short, cuts a piece out, or inserts one; one in four of them
anywhere, the others where something else than a pixel stands. None may be read as if it were right, raise anything but
a DataError of one line, do anything but open the file, or need memory. 10,000 of them take ten minutes.
"""

import argparse
import collections
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cifar10_utils
from cifar10_files import MD5_SUMS, PIXELS_FOLLOW, DataError, read_batch_files

KINDS = ('bit', 'byte', 'cut short', 'cut out', 'inserted')
N_PIXEL_BYTES = 30_720_000
LIMIT = 300  # MiB


def mutation(whole: bytes, kind: str, rng: np.random.RandomState) -> tuple[int, bytes | memoryview]:
    """Where a file is to be damaged, and what is to stand there instead: of one byte, or of all that follows."""
    start = whole.index(PIXELS_FOLLOW) + len(PIXELS_FOLLOW)
    if rng.randint(4) == 0:
        at = rng.randint(len(whole))
    else:
        at = rng.randint(len(whole) - N_PIXEL_BYTES)
        at += N_PIXEL_BYTES * (at >= start)
    piece = 1 + rng.randint(rng.choice([8, 100_000]))
    match kind:
        case 'bit':
            return at, bytes([whole[at] ^ 1 << rng.randint(8)])
        case 'byte':
            return at, bytes([whole[at] ^ rng.randint(1, 256)])
        case 'cut short':
            return at, b''
        case 'cut out':
            return at, memoryview(whole)[at + piece :]
        case 'inserted':
            return at, rng.bytes(piece) + whole[at:]


@contextlib.contextmanager
def damaged(path: Path, whole: bytes, kind: str, rng: np.random.RandomState) -> Iterator[None]:
    """Damages the file at `path`, of the contents `whole`, while the block runs."""
    at, instead = mutation(whole, kind, rng)
    with open(path, 'r+b') as file:
        file.seek(at)
        file.write(instead)
        if kind not in ('bit', 'byte'):
            file.truncate()
    yield
    with open(path, 'r+b') as file:
        file.seek(at)
        file.write(memoryview(whole)[at:] if kind not in ('bit', 'byte') else whole[at : at + 1])
        file.truncate(len(whole))


class Deeds:
    """What happens in this process while it is `watching`, but for opening a file to read; see `sys.audit`."""

    def __init__(self) -> None:
        self.watching = False
        self.counts = collections.Counter()
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple) -> None:
        if self.watching and not event.startswith(('_thread.', 'object.')) and (event != 'open' or args[1] != 'r'):
            self.counts[event] += 1


def outcome(path: Path, deeds: Deeds) -> str:
    """What the reader makes of a file."""
    deeds.watching = True
    try:
        read_batch_files([path])
    except DataError as error:
        if '\n' in str(error):
            return 'WRONG: more than a line'
        return 'its sum alone told' if 'MD5' in str(error) else 'its form told'
    except Exception as error:
        return f'WRONG: {type(error).__name__}'
    finally:
        deeds.watching = False
    return 'WRONG: read'


def peak_of_all(directory: str) -> int:
    """The most memory, in MiB, that a process has while it reads all six files, of which one is damaged."""
    program = (
        'import resource, sys, cifar10_utils\n'
        'try: cifar10_utils.load("cifar10", sys.argv[1])\n'
        'except cifar10_utils.DataError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)'
    )
    return int(subprocess.run([sys.executable, '-c', program, directory], stdout=subprocess.PIPE, check=True).stdout)


def main() -> int:
    """Prints the counts; returns 1 where there is a wrong one."""
    parser = argparse.ArgumentParser(description='Counts what the reader says of damaged batch files.')
    parser.add_argument('--data_dir', default='cifar10', help='holds cifar-10-batches-py, or is it')
    parser.add_argument('--n', type=int, default=10_000, help='number of mutations')
    parser.add_argument('--seed', type=int, default=1)
    flags = parser.parse_args()

    folder = cifar10_utils.find_batches(Path(flags.data_dir))
    rng, deeds, counts, peaks = np.random.RandomState(flags.seed), Deeds(), collections.Counter(), []
    with tempfile.TemporaryDirectory() as directory:
        for file in MD5_SUMS:
            shutil.copy(folder / file, directory)
        path = Path(directory) / 'test_batch'
        whole = path.read_bytes()
        read_batch_files([path])  # as it is
        for i in tqdm(range(flags.n), disable=None):
            kind = KINDS[i % len(KINDS)]
            with damaged(path, whole, kind, rng):
                counts[kind, outcome(path, deeds)] += 1
                if i % (flags.n // 20 or 1) == 0:
                    peaks.append(peak_of_all(directory))
        read_batch_files([path])  # as it was
    for (kind, result), count in sorted(counts.items()):
        print(f'{kind:<12}{result:<24}{count:>6}')
    print('done besides:', dict(deeds.counts) or 'nothing')
    print(f'peak memory of a process that reads all six files, the last damaged: {max(peaks)} MiB')
    wrong = any('WRONG' in result for _, result in counts) or deeds.counts or max(peaks) >= LIMIT
    print('WRONG' if wrong else 'as it should be')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
