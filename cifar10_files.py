"""The batch files of CIFAR-10: their names, their published MD5 sums, and a reader that can do nothing but read them.

    pixels, classes = read_batch_files([Path('cifar10/cifar-10-batches-py/test_batch')])  # (10000, 3072) and (10000,)

The files are pickles, and a pickle is a program: it may name any function, and Python's own reader calls it, and sets
memory aside for whatever length is stated. Those of CIFAR-10 use two dozen instructions out of seventy, and one long
string, the pixels, of one length. The reader here knows these alone, and calls nothing.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
N_CLASSES = len(CLASSES)
IMAGE_SHAPE = (3, 32, 32)
N_PIXELS = 3 * 32 * 32

BATCHES_FOLDER = 'cifar-10-batches-py'
EXAMPLES_PER_FILE = 10_000
MD5_SUMS = {
    'data_batch_1': 'c99cafc152244af753f735de768cd75f',
    'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
    'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
    'data_batch_4': '634d18415352ddfa80567beed471001a',
    'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
    'test_batch': '40351d587109b95175f43aff81a1287e',
}
*TRAIN_FILES, _TEST_FILE = MD5_SUMS
TRAIN_FILES, TEST_FILES = tuple(TRAIN_FILES), (_TEST_FILE,)

# The instruction after which the pixels follow, T, with their number; what stands before and after them; and how many
# instructions there are. They have at most 20,218 bytes before and 295,781 after, and 30,123 instructions.
PIXELS_FOLLOW = b'T' + (EXAMPLES_PER_FILE * N_PIXELS).to_bytes(4, 'little')
MAX_BEFORE, MAX_AFTER = 25_000, 350_000
MAX_INSTRUCTIONS = 31_000


class DataError(ValueError):
    """The data cannot be had or cannot be right; the message is one line that says what to do."""


def read_batch_files(paths: Sequence[Path], checksums: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (N, 3072) and the classes (N,) in files of the official distribution, one after the other, both uint8.

    With `checksums` the MD5 sum of each must be the one published for its name; without, its form alone is looked at.

    Raises:
        DataError: one cannot be read, or is not that file.
    """
    pixels = np.empty((len(paths), EXAMPLES_PER_FILE * N_PIXELS), np.uint8)
    classes = np.empty((len(paths), EXAMPLES_PER_FILE), np.uint8)
    # The sums take longer than the reading: they are computed beside it, on the core that it leaves free.
    with ThreadPoolExecutor(2) as threads:
        sums = []
        for i, path in enumerate(paths):
            try:
                before, after = _read(path, pixels[i])
                classes[i] = _classes(before + after)
            except OSError as error:
                raise DataError(f'cannot read {path}: {error.strerror}; get CIFAR-10 anew') from error
            # Whatever a damaged pickle makes the reader or the checks raise: it is the file that is at fault.
            except Exception as error:
                raise DataError(f'{path} is no CIFAR-10 file: {one_line(error)}; get CIFAR-10 anew') from error
            if checksums:
                sums.append(threads.submit(_md5, before, pixels[i], after))
        for path, md5 in zip(paths, sums, strict=False):
            if md5.result() != MD5_SUMS[path.name]:
                raise DataError(
                    f'{path} is not the published file: its MD5 sum is {md5.result()} instead of '
                    f'{MD5_SUMS[path.name]}; get CIFAR-10 anew'
                )
    return pixels.reshape(-1, N_PIXELS), classes.reshape(-1)


def _md5(*parts: bytes | np.ndarray) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    for part in parts:
        md5.update(part)
    return md5.hexdigest()


def _read(path: Path, pixels: np.ndarray) -> tuple[bytes, bytes]:
    """Reads a batch file's pixels into `pixels` (30720000,), and returns what stands before and after them."""
    with open(path, 'rb') as file:
        before = file.read(MAX_BEFORE)
        start = before.find(PIXELS_FOLLOW) + len(PIXELS_FOLLOW)
        if start < len(PIXELS_FOLLOW):
            raise DataError(f'it does not state a string of {len(pixels)} bytes, its pixels')
        file.seek(start)
        if file.readinto(pixels) < len(pixels):
            raise DataError('it is cut short within its pixels')
        after = file.read(MAX_AFTER + 1)
    if len(after) > MAX_AFTER:
        raise DataError(f'it has more than {MAX_AFTER} bytes after its pixels')
    return before[:start], after


def one_line(error: BaseException) -> str:
    """What an error says, on one line and its beginning if that is long, or else its name."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


class _Rebuilt:
    """What a pickle wants rebuilt by a function: the function's name, its arguments, and the state to be set."""

    def __init__(self, function: str, args: tuple) -> None:
        self.function = function
        self.args = args
        self.state: tuple = ()


PIXELS = object()  # stands for the pixels, which are read apart
ARRAY, DTYPE = 'numpy.core.multiarray._reconstruct', 'numpy.dtype'


def _unpickle(pickled: bytes) -> object:
    """The object that a pickle, its pixels left out, describes; a `_Rebuilt` stands for what only a call could make.

    A stack machine: an instruction is one byte and its operands, and nearly all of them push something, or put what
    lies on the stack above a mark into a list, a dictionary or a tuple.

    Raises:
        DataError: an instruction, a function or a length that no CIFAR-10 file has.
        Exception: of almost any kind, where the instructions make no sense.
    """
    stack: list = []
    marks: list[int] = []
    at = 0  # where the next instruction is; those of which a file has thousands come first

    def above_mark() -> list:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    for _ in range(MAX_INSTRUCTIONS):
        instruction = pickled[at : at + 1]
        at += 1
        match instruction:
            case b'r':  # remember the top of the stack under this number: no CIFAR-10 file ever asks for it back
                at += 4
            case b'U':  # a string, after its length in one byte
                stack.append(pickled[at + 1 : at + 1 + pickled[at]])
                at += 1 + pickled[at]
            case b'K':  # a number of one byte, of two, of four with a sign
                stack.append(pickled[at])
                at += 1
            case b'M':
                stack.append(int.from_bytes(pickled[at : at + 2], 'little'))
                at += 2
            case b'J':
                stack.append(int.from_bytes(pickled[at : at + 4], 'little', signed=True))
                at += 4
            case b'T':  # a string, after its length in four bytes: the pixels, which are left out here
                if pickled[at - 1 : at + 4] != PIXELS_FOLLOW:
                    raise DataError(f'at byte {at - 1} it states a length that is not that of its pixels')
                stack.append(PIXELS)
                at += 4
            case b'q':  # as r
                at += 1
            case b'N':
                stack.append(None)
            case b'\x89':
                stack.append(False)
            case b']':
                stack.append([])
            case b'}':
                stack.append({})
            case b'(':
                marks.append(len(stack))
            case b'e':
                items = above_mark()
                stack[-1].extend(items)
            case b'u':
                items = above_mark()
                if not all(isinstance(key, bytes) for key in items[::2]):
                    raise DataError('it has a key that is no string')
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case b't':
                stack.append(tuple(above_mark()))
            case b'\x85' | b'\x86' | b'\x87':  # a tuple of one, of two, of three
                length = instruction[0] - 0x84
                stack[-length:] = [tuple(stack[-length:])]
            case b'c':  # a function, by its module and its name, a line each
                module, name, _ = pickled[at : at + 100].split(b'\n', maxsplit=2)
                at += len(module) + len(name) + 2
                stack.append(f'{module.decode()}.{name.decode()}')
                if stack[-1] not in (ARRAY, DTYPE, 'numpy.ndarray'):
                    raise DataError(f'it asks for {stack[-1]!r}, which no CIFAR-10 file needs and which may be hostile')
            case b'R':  # call a function
                args = stack.pop()
                stack.append(_Rebuilt(stack.pop(), args))
            case b'b':  # set the state of an object
                state = stack.pop()
                stack[-1].state = state
            case b'\x80':
                if pickled[at] != 2:
                    raise DataError('it is a pickle of another protocol than 2')
                at += 1
            case b'.':
                return stack.pop()
            case b'':
                raise DataError('it is cut short')
            case _:
                raise DataError(f'no CIFAR-10 file has the instruction {instruction!r}, as it does at byte {at - 1}')
    raise DataError(f'it has more than {MAX_INSTRUCTIONS} instructions')


def _classes(pickled: bytes) -> np.ndarray:
    """The classes (10000,) in a batch file's pickle, its pixels left out, once all that it states has been checked."""
    contents = dict(_unpickle(pickled))
    data, labels = contents.get(b'data'), contents.get(b'labels')
    if not isinstance(data, _Rebuilt) or data.function != ARRAY or not isinstance(labels, list):
        raise DataError('it must hold an array under data and a list under labels')
    if len(labels) != EXAMPLES_PER_FILE or not all(type(label) is int for label in labels):
        raise DataError(f'it must have {EXAMPLES_PER_FILE} labels, all of them whole numbers')
    if min(labels) < 0 or max(labels) >= N_CLASSES:
        raise DataError(f'its labels must be 0 to {N_CLASSES - 1}, got {min(labels)} to {max(labels)}')
    _, shape, dtype, is_fortran, raw = data.state
    code, expected = dtype.args[0].decode(), (EXAMPLES_PER_FILE, N_PIXELS)
    if dtype.function != DTYPE or code != 'u1' or shape != expected or is_fortran or raw is not PIXELS:
        raise DataError(f'its data must be u1 of {expected} in rows, got {code:.9} of {shape!s:.99}')
    return np.array(labels, np.uint8)
