"""Kills searches at random moments, starts them again, and holds the CSV to that of a search never killed.

    python -m tests.kill_searches --kills 300

Each kill hits a worker, the search itself, or both. In the end the CSV must be the same to the byte, no process of a
search may be left, and no temporary file. A kill takes about ten seconds; the script needs /proc, and is not one of the
tests.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import files_under, temporary_directory
from tests.test_grid_search import CSV, NAME, SCRIPT, children, is_alive, until, workers

GRID = (
    '--dataset', 'synthetic', '--max_steps', '30', '60', '--eval_freq', '10', '--dnn_hidden_units', '10', '20',
    '--batch_size', '50', '--learning_rate', *(f'{n}e-4' for n in range(1, 13)), '--processes', '2',
)  # fmt: skip


def start(directory: Path) -> subprocess.Popen:
    """The search, which need not draw its figures."""
    command = [sys.executable, SCRIPT, *GRID, '--output_dir', directory]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(search: subprocess.Popen, kind: str) -> None:
    """Kills one of the search's workers, the search, or both."""
    victims = [*(random.choices(workers(search.pid)) if kind != 'parent' and workers(search.pid) else [])]
    victims += [search.pid] if kind != 'worker' else []
    for pid in victims:
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    """Runs it; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()
    random.seed(flags.seed)
    counts: collections.Counter[str] = collections.Counter()
    with temporary_directory() as directory:
        assert start(directory / 'whole').wait() == 0
        expected = (directory / 'whole' / CSV).read_bytes()
        number = 0
        while counts['kills'] < flags.kills:
            place = directory / str(number)
            number += 1
            search = start(place)
            while True:
                time.sleep(random.uniform(0, 15))
                if search.poll() is not None:
                    if search.returncode == 0 or counts['kills'] >= flags.kills:
                        break
                    counts['ended with a run that was killed twice'] += search.returncode == 1
                elif counts['kills'] < flags.kills:
                    kind = random.choice(['worker', 'parent', 'both'])
                    processes = children(search.pid)
                    kill(search, kind)
                    counts[kind] += 1
                    counts['kills'] += 1
                    print(dict(counts), flush=True)
                    if kind == 'worker':
                        continue
                    search.wait()
                    until(lambda: not any(map(is_alive, processes)), 30)  # noqa: B023
                if search.poll() is not None:
                    search = start(place)
            while search.returncode != 0:
                search = start(place)
                search.wait()
            counts['searches'] += 1
            counts['CSV differs'] += (place / CSV).read_bytes() != expected
            left = [path for path in files_under(place) if '/.' in path and path != f'results/.{NAME}.lock']
            counts['files left'] += len(left)
            print(dict(counts), flush=True)
    return 1 if counts['CSV differs'] or counts['files left'] else 0


if __name__ == '__main__':
    sys.exit(main())
