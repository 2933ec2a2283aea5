"""Files that are whole or not there: whatever ends the process, a file has its old contents or all of its new ones.

    with atomic_file('results/run.csv') as file:
        file.write(b'...')

The new contents are written beside the file, into a temporary file named after it and this process, which takes the
file's place at the end. What a killed process has left behind is cleared away by the next one that writes there.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

DAY = 24 * 60 * 60  # seconds, after which the temporary file of another machine counts as left behind


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes its place at `path` when the block ends, or not at all; a link at `path` stays one.

    Raises:
        OSError: the file cannot be written, or something that is no file is there.
    """
    path = regular_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # not before it is closed, which Windows asks for
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to be the file `path`."""
    return path.with_name(f'.{path.name}.{_host()}.{os.getpid()}.tmp')


def _host() -> str:
    return platform.node().split('.')[0][:40]


def clear_leftovers(path: Path) -> None:
    """Removes the temporary files of `path` whose processes are gone."""
    prefix, suffix = f'.{path.name}.', '.tmp'
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(prefix) and name.endswith(suffix):
                host, _, process = name[len(prefix) : -len(suffix)].rpartition('.')
                left = path.with_name(name)
                here = host == _host() and process.isdigit() and os.name == 'posix'
                if _is_gone(int(process)) if here else _age(left) > DAY:
                    left.unlink(missing_ok=True)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return process == os.getpid()  # its number was that of a process before this one


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def regular_path(path: str | Path) -> Path:
    """The path of a file that may be written, links followed.

    Raises:
        OSError: something that is no regular file is there, or a link on the way leads nowhere.
    """
    path = Path(path)
    for part in (*reversed(path.absolute().parents), path.absolute()):
        target = os.path.realpath(part)
        # A link to a file that is yet to be written is fine; one to a folder leads to a disk that is not there.
        yet_to_be_written = part == path.absolute() and os.path.isdir(os.path.dirname(target))
        if part.is_symlink() and not os.path.lexists(target) and not yet_to_be_written:
            raise FileNotFoundError(errno.ENOENT, f'the link {part} leads to {target}, which is not there')
    path = Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, f'{path} is a directory')
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, f'{path} is no regular file')
    return path


def check_can_write(path: str | Path) -> None:
    """Raises an OSError unless a file can be written at `path`, by the very steps of `atomic_file`; leaves nothing."""
    path = regular_path(path)
    folder = path.parent
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    if missing:
        tempfile.TemporaryFile(dir=folder).close()
        return
    clear_leftovers(path)
    temporary = temporary_path(path)
    with open(temporary, 'wb'):
        pass
    os.unlink(temporary)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows of the same keys, in full precision, under a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def write_json(path: Path, summary: dict[str, object]) -> None:
    """Writes a summary; numbers that are not finite become null."""
    with atomic_file(path) as file:
        file.write((json.dumps(_finite(summary), indent=2) + '\n').encode())


def _finite(value: object) -> object:
    """`value` as JSON can say it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
