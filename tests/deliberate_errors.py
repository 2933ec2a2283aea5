"""Whether the tests notice wrong code: puts one deliberate error at a time into a copy, and runs the tests on it.

    python tests/deliberate_errors.py                        # all of them, which takes some half an hour
    python tests/deliberate_errors.py checkpoints momentum   # those whose file or text has one of these words
    python tests/deliberate_errors.py --list

The errors stand in `deliberate_errors.txt`, in this form; the text before must stand in the file exactly once:

    == modules.py                           the file that the errors below are put into
    @ unittests.LinearModuleTest            the tests that should notice those below, between spaces
    - np.maximum(floating(x), 0)            the text before; several such lines are several lines of the file
    + np.maximum(floating(x), 1)            the text after; without such a line it is taken out
    ? Nobody can tell the difference.       why no test notices it, for an error that is known to remain

Without an error the tests must pass, or theirs are not tried; with one, a run that does not end in time has noticed it,
too. Each is a process forked from this one, which has imported the large libraries once: not for Windows. Exit status:
0 where every error is noticed or has its reason, 1 where one is not, was not tried, or no longer applies.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix('.txt')
SAID = 'said.tmp'  # in a copy, what its tests have said


class DeliberateError(NamedTuple):
    """An error, the tests that should notice it and, where none does, the reason."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        text = f'{self.file}: {" / ".join(map(str.strip, self.before.splitlines()))}'
        return f'{text} → {" / ".join(map(str.strip, self.after.splitlines())) or "nothing"}'


def read_errors(text: str) -> list[DeliberateError]:
    """The errors of a list in the form above."""
    errors: list[DeliberateError] = []
    file, tests = '', ()
    lines: dict[str, list[str]] = {'-': [], '+': [], '?': []}

    def finish() -> None:
        if lines['-']:
            before, after, reason = (
                separator.join(lines[mark]) for mark, separator in zip('-+?', '\n\n ', strict=True)
            )
            errors.append(DeliberateError(file, before, after, tests, reason))
        for of_mark in lines.values():
            of_mark.clear()

    for line in text.splitlines():
        mark, _, rest = line.partition(' ')
        if (mark == '-' and not lines['+'] + lines['?']) or mark in ('+', '?'):
            lines[mark].append(rest)
            continue
        finish()
        if mark == '-':
            lines[mark].append(rest)
        elif mark == '==':
            file = rest
        elif mark == '@':
            tests = tuple(rest.split())
        elif mark not in ('', '#'):
            raise SystemExit(f'{LIST.name}: what is {line!r}?')
    finish()
    return errors


def outdated(errors: list[DeliberateError]) -> list[str]:
    """A line for each error whose text does not stand in its file exactly once."""
    return [f'{error}: stands in the file {count} times, must once' for error in errors
            if (count := (ROOT / error.file).read_text().count(error.before)) != 1]  # fmt: skip


def copy_project(to: Path) -> Path:
    """A copy of what git knows of or would take up."""
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout  # fmt: skip
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


class Trial:
    """A run of tests in a copy, with an error or without one, in a process of its own.

    Args:
        project: the copy.
        tests: their names.
        error: is put into the copy until the trial's end.
        seconds: that it may take.
    """

    def __init__(
        self, project: Path, tests: tuple[str, ...], error: DeliberateError | None = None, seconds: float = 600
    ) -> None:
        self.project, self.tests, self.error = project, tests, error
        if error:
            path = project / error.file
            self.right = path.read_text()
            path.write_text(self.right.replace(error.before, error.after))
        self.started = time.monotonic()
        self.ends_by = self.started + seconds
        self.process = multiprocessing.get_context('fork').Process(target=run_tests, args=(project, tests))
        self.process.start()

    def end(self) -> bool:
        """Takes the error out again and ends what still runs; returns whether the tests passed."""
        self.seconds = time.monotonic() - self.started
        passed = self.process.exitcode == 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.error:
            (self.project / self.error.file).write_text(self.right)
        return passed


def run_tests(project: Path, tests: tuple[str, ...]) -> None:
    """Runs the tests of a copy, in a process of its own."""
    os.setsid()
    os.chdir(project)
    sys.path[0] = str(project)
    sys.argv = ['unittest']
    sys.modules['__main__'] = types.ModuleType('__main__')  # which the processes that a test spawns would run anew
    with open(project / SAID, 'w') as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    unittest.main(module=None, argv=['unittest', '-f', *tests])


def in_turn(copies: list[Path], work: Iterable[tuple]) -> Iterator[tuple[Trial, bool]]:
    """Makes a trial of each item, which has a Trial's other arguments, one in each copy at a time.

    Yields:
        Each trial that has ended, and whether its tests passed.
    """
    free, running, work = list(copies), [], iter(work)
    try:
        while True:
            while free and (item := next(work, None)):
                running.append(Trial(free.pop(), *item))
            if not running:
                return
            patience = max(0, min(trial.ends_by for trial in running) - time.monotonic())
            wait([trial.process.sentinel for trial in running], patience)
            for trial in list(running):
                if trial.process.exitcode is not None or time.monotonic() > trial.ends_by:
                    running.remove(trial)
                    passed = trial.end()
                    yield trial, passed
                    free.append(trial.project)
    finally:
        for trial in running:
            trial.end()


def main() -> int:
    """Puts in the errors that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('words', nargs='*', metavar='WORD', help='only errors whose file or text has one of these')
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='errors at a time (default: 2)')
    parser.add_argument('--list', action='store_true', help='print the errors, and run nothing')
    flags = parser.parse_args()
    errors = [error for error in read_errors(LIST.read_text(encoding='utf-8'))
              if not flags.words or any(word in str(error) for word in flags.words)]  # fmt: skip
    if old := outdated(errors):
        print(*old, sep='\n')
        return 1
    if flags.list:
        print(*errors, f'{len(errors)} errors', sep='\n')
        return 0

    os.environ |= {'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'}
    sys.dont_write_bytecode = True
    for library in ('numpy', 'torch', 'torch.distributed', 'matplotlib.figure', 'matplotlib.backends.backend_agg'):
        importlib.import_module(library)
    test_sets = list(dict.fromkeys(error.tests for error in errors))
    limits, unnoticed = {}, []
    with (
        tempfile.TemporaryDirectory() as directory,
        tqdm(total=len(test_sets) + len(errors), disable=None) as bar,
    ):
        copies = [copy_project(Path(directory) / str(i)) for i in range(flags.jobs)]
        for trial, passed in in_turn(copies, ((tests,) for tests in test_sets)):
            bar.update()
            if passed:
                limits[trial.tests] = 30 + 5 * trial.seconds
            else:
                tqdm.write(
                    f'{(trial.project / SAID).read_text()[-2000:]}\nfails without an error: {" ".join(trial.tests)}'
                )
        tried = [error for error in errors if error.tests in limits]
        for trial, passed in in_turn(copies, ((error.tests, error, limits[error.tests]) for error in tried)):
            if passed:
                unnoticed.append(trial.error)
                tqdm.write(f'unnoticed: {trial.error}')
            bar.update()

    of_file, left = Counter(error.file for error in tried), Counter(error.file for error in unnoticed)
    for file, count in of_file.items():
        print(f'{file:<28}{count - left[file]:>4} of {count}')
    print(f'{len(tried) - len(unnoticed)} of {len(tried)} errors were noticed')
    for error in tried:
        if error in unnoticed:
            print(f'unnoticed: {error}' + (f'\n    {error.reason}' if error.reason else ''))
        elif error.reason:
            print(f'noticed, though it has a reason not to be: {error}')
    return 0 if tried == errors and all(error.reason for error in unnoticed) else 1


if __name__ == '__main__':
    sys.exit(main())
