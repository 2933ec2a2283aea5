"""CIFAR-10: found or downloaded, checked, read, and served in batches; and a synthetic stand-in for it.

    data = get_cifar10('cifar10', validation_size=5000)
    images, labels = data['train'].next_batch(200)  # (200, 3, 32, 32) and (200, 10)

The pixels stay in memory as the bytes that they are on disk (176 MiB instead of 703 MiB of float32). The
training order is an index array, and only the rows of one batch are ever converted to floating point.
"""

import contextlib
import functools
import os
import pickle
import queue
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
N_CLASSES = len(CLASSES)
IMAGE_SHAPE = (3, 32, 32)
N_PIXELS = 3 * 32 * 32

BATCHES_FOLDER = 'cifar-10-batches-py'
TRAIN_FILES = tuple(f'data_batch_{i}' for i in range(1, 6))
TEST_FILES = ('test_batch',)
EXAMPLES_PER_FILE = 10_000

DOWNLOAD_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
NETWORK_TIMEOUT = 10.0  # seconds


class DataError(ValueError):
    """The data cannot be had or cannot be right; the message is one line that says what to do."""


class DownloadError(DataError):
    """CIFAR-10 could not be downloaded."""


class RawData(NamedTuple):
    """All examples as bytes: pixels (N, 3072), channels first, and classes (N,), both uint8."""

    name: str  # 'cifar10' or 'synthetic'
    train_pixels: np.ndarray
    train_classes: np.ndarray
    test_pixels: np.ndarray
    test_classes: np.ndarray


class DataSet:
    """Some examples of one data set, centred on its mean image, and the order in which they are trained on.

    Args:
        name: which data these are, `'cifar10'` or `'synthetic'`.
        pixels: (N, 3072) uint8, channels first.
        classes: (N,) uint8, 0 to 9.
        mean_image: (3072,) float32, subtracted from every image; pixels keep their scale of 0 to 255.
        one_hot: labels are rows (N, 10) of zeros and a one, rather than class numbers (N,).
        rng: shuffles at each epoch's end; NumPy's global generator if None.
        dtype: the floating point type of batches.
    """

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        classes: np.ndarray,
        mean_image: np.ndarray,
        one_hot: bool = True,
        rng: np.random.RandomState | None = None,
        dtype: type = np.float32,
    ) -> None:
        self.name = name
        self.pixels = pixels
        self.classes = classes
        self.mean_image = mean_image
        self.one_hot = one_hot
        self.rng = np.random if rng is None else rng
        self.dtype = dtype
        self.epochs_completed = 0
        self.order = np.arange(len(pixels))
        self.position = 0

    @property
    def num_examples(self) -> int:
        """The number of examples, N."""
        return len(self.pixels)

    @property
    def images(self) -> np.ndarray:
        """All images, (N, 3, 32, 32) float32, centred. Made at each call: 12 KiB an image."""
        return (self.pixels - self.mean_image).reshape(-1, *IMAGE_SHAPE)

    @property
    def labels(self) -> np.ndarray:
        """All labels: (N, 10) one-hot in the data set's dtype, or (N,) int64."""
        return self._labels(slice(None))

    def examples(self, which: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The images (n, 3, 32, 32) and the labels of the examples that an index array or a slice picks."""
        # The difference is taken in float32, as the reference protocol does, and only then widened.
        images = (self.pixels[which] - self.mean_image).astype(self.dtype, copy=False)
        return images.reshape(-1, *IMAGE_SHAPE), self._labels(which)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every example exactly once, in file order: what an evaluation reads."""
        for start in range(0, self.num_examples, batch_size):
            yield self.examples(slice(start, start + batch_size))

    def next_indices(self, batch_size: int) -> np.ndarray:
        """The indices (batch_size,) of the next training batch.

        The first epoch runs in file order. Where the next batch would run past the end, the tail is dropped,
        the current order is itself re-ordered by a shuffled permutation, and batches start at its head.

        Raises:
            ValueError: batch_size is not between 1 and num_examples.
        """
        if not 1 <= batch_size <= self.num_examples:
            raise ValueError(f'batch_size must be between 1 and {self.num_examples} (all examples), got {batch_size}')
        if self.position + batch_size > self.num_examples:
            permutation = np.arange(self.num_examples)
            self.rng.shuffle(permutation)
            self.order = self.order[permutation]
            self.position = 0
            self.epochs_completed += 1
        indices = self.order[self.position : self.position + batch_size]
        self.position += batch_size
        return indices

    def next_batch(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The next training batch: images (batch_size, 3, 32, 32) and their labels (see `next_indices`)."""
        return self.examples(self.next_indices(batch_size))

    def state(self) -> dict[str, object]:
        """All that the batches to come depend on, as arrays and numbers; see `restore`."""
        _, keys, position, has_gauss, gauss = self.rng.get_state()
        return {
            'order': self.order, 'position': self.position, 'epochs_completed': self.epochs_completed,
            'rng_keys': keys, 'rng_position': position, 'rng_has_gauss': has_gauss, 'rng_gauss': gauss,
        }  # fmt: skip

    def restore(self, state: dict[str, object]) -> None:
        """Goes back to a `state`, so that the same batches follow."""
        self.order, self.position = state['order'], state['position']
        self.epochs_completed = state['epochs_completed']
        self.rng.set_state(('MT19937', *(state[f'rng_{key}'] for key in ('keys', 'position', 'has_gauss', 'gauss'))))

    def _labels(self, which: np.ndarray | slice) -> np.ndarray:
        classes = self.classes[which]
        return np.eye(N_CLASSES, dtype=self.dtype)[classes] if self.one_hot else classes.astype(np.int64)


def get_cifar10(
    data_dir: str | Path = './cifar10',
    one_hot: bool = True,
    validation_size: int = 0,
    dataset: str = 'cifar10',
    rng: np.random.RandomState | None = None,
    dtype: type = np.float32,
) -> dict[str, DataSet]:
    """The data sets `train`, `validation` and `test`, centred on the mean image of the training set.

    The validation set is the first `validation_size` training examples. For `dataset` and `data_dir` see
    `load`; for the other arguments see `DataSet`.

    Raises:
        DataError: the data cannot be had, or validation_size is not between 0 and their number.
    """
    raw = load(dataset, data_dir)
    if not 0 <= validation_size <= len(raw.train_pixels):
        raise DataError(
            f'validation_size must be between 0 and {len(raw.train_pixels)} '
            f'(all training examples), got {validation_size}'
        )
    pixels, classes = raw.train_pixels[validation_size:], raw.train_classes[validation_size:]
    # The reference accumulates float32, which is exact here: 50,000 × 255 is less than 2^24.
    mean_image = pixels.sum(axis=0, dtype=np.float32) / np.float32(max(len(pixels), 1))
    parts = {
        'train': (pixels, classes),
        'validation': (raw.train_pixels[:validation_size], raw.train_classes[:validation_size]),
        'test': (raw.test_pixels, raw.test_classes),
    }
    return {part: DataSet(raw.name, *arrays, mean_image, one_hot, rng, dtype) for part, arrays in parts.items()}


@functools.lru_cache(maxsize=1)  # a search reads the files once for all its runs
def load(dataset: str, data_dir: str | Path) -> RawData:
    """The examples of `dataset`: 'cifar10', 'synthetic', or 'auto'.

    'cifar10' is read from `data_dir` (a directory that holds `cifar-10-batches-py`, or that directory itself) and
    downloaded into it once if it is not there. 'auto' is the same, but where there is neither data nor network
    it says so on stderr and gives the stand-in.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
    """
    if dataset == 'synthetic':
        return synthetic()
    data_dir = Path(data_dir)
    try:
        folder = find_batches(data_dir)
    except OSError as error:
        raise DataError(f'cannot look into --data_dir {data_dir}: {error.strerror}') from error
    if folder is None:
        try:
            folder = download(data_dir)
        except DownloadError as error:
            if dataset != 'auto':
                raise
            print(
                f'WARNING: {error}\nWARNING: training on the SYNTHETIC STAND-IN instead; '
                'its results say nothing about CIFAR-10.',
                file=sys.stderr,
            )
            return synthetic()
    return RawData('cifar10', *_read_files(folder, TRAIN_FILES), *_read_files(folder, TEST_FILES))


def find_batches(data_dir: Path) -> Path | None:
    """The directory with the batch files: inside `data_dir`, or itself; None where there is no batch file."""
    for folder in (data_dir / BATCHES_FOLDER, data_dir):
        if any((folder / file).exists() for file in TRAIN_FILES + TEST_FILES):
            return folder
    return None


# Downloading


def download(data_dir: Path) -> Path:
    """Downloads CIFAR-10 into `data_dir` through torchvision, whole or not at all, and returns its directory.

    Raises:
        DownloadError: with the directory looked in, why the download failed and what to do.
    """
    made_here = not data_dir.exists()
    try:
        # Asked first, since importing torchvision alone can take longer than finding out that the network is dead.
        check_network(DOWNLOAD_URL, NETWORK_TIMEOUT)
        from torchvision.datasets import CIFAR10

        data_dir.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision knows no other way to notice a connection that stalls
        with tempfile.TemporaryDirectory(dir=data_dir, prefix='.download-') as unfinished:
            CIFAR10(unfinished, download=True)
            if find_batches(data_dir) is None:  # else another process was faster
                os.replace(Path(unfinished) / BATCHES_FOLDER, data_dir / BATCHES_FOLDER)
    except (OSError, RuntimeError, ImportError) as error:
        if made_here:
            with contextlib.suppress(OSError):
                data_dir.rmdir()
        raise DownloadError(
            f'no CIFAR-10 in {data_dir}, and the download failed ({_one_line(error)}): name a directory that '
            f'holds {BATCHES_FOLDER} with --data_dir, or use --dataset synthetic'
        ) from error
    finally:
        socket.setdefaulttimeout(None)
    return data_dir / BATCHES_FOLDER


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
        raise OSError(f'{url}: {_one_line(error)}')


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


# Reading


class _BatchUnpickler(pickle.Unpickler):
    """Reads a batch file and nothing else.

    A pickle may name any callable, and reading it calls it. The only ones that a batch file needs are those that
    rebuild a NumPy array; both are replaced by classes here that merely hold what the file says.
    """

    def find_class(self, module: str, name: str) -> type:
        match module.replace('numpy._core', 'numpy.core'), name:
            case 'numpy.core.multiarray', '_reconstruct':
                return _PickledArray
            case 'numpy', 'ndarray':
                return _PickledArray
            case 'numpy', 'dtype':
                return _PickledDtype
        raise DataError(f'it asks for {module}.{name}, which no CIFAR-10 file needs and which may be hostile')

    def persistent_load(self, _: object) -> None:
        raise DataError('it refers to an object outside itself, which no CIFAR-10 file does')


class _PickledDtype:
    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and alignment, which mean nothing to bytes


class _PickledArray:
    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.raw = state

    def pixels(self) -> np.ndarray:
        """The array, (10000, 3072) uint8, over the file's own bytes."""
        expected = (EXAMPLES_PER_FILE, N_PIXELS)
        if self.shape != expected or self.dtype.code != 'u1' or self.is_fortran:
            raise DataError(f'its data must be u1 of {expected} in rows, got {self.dtype.code} of {self.shape}')
        return np.frombuffer(self.raw, np.uint8).reshape(expected)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name  # bytes where Python 2 wrote the pickle


def _read_files(folder: Path, files: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (N, 3072) and classes (N,) of these batch files, one after the other."""
    pixels = np.empty((len(files) * EXAMPLES_PER_FILE, N_PIXELS), np.uint8)
    classes = np.empty(len(pixels), np.uint8)
    for i, file in enumerate(files):
        rows = slice(i * EXAMPLES_PER_FILE, (i + 1) * EXAMPLES_PER_FILE)
        try:
            pixels[rows], classes[rows] = read_batch_file(folder / file)
        except OSError as error:
            raise DataError(f'cannot read {folder / file}: {error.strerror}; get CIFAR-10 anew') from error
        # Whatever a damaged pickle makes the unpickler or the checks raise: it is the file that is at fault.
        except Exception as error:
            raise DataError(f'{folder / file} is no CIFAR-10 file: {_one_line(error)}; get CIFAR-10 anew') from error
    return pixels, classes


def read_batch_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (10000, 3072) and classes (10000,) of one file of the official distribution, both uint8.

    Raises:
        OSError: it cannot be opened.
        Exception: of almost any kind, where it is not such a file.
    """
    with open(path, 'rb') as file:
        contents = _BatchUnpickler(file, encoding='bytes').load()
    contents = {_text(key): value for key, value in dict(contents).items()}
    data, labels = contents.get('data'), contents.get('labels')
    if not isinstance(data, _PickledArray) or not isinstance(labels, list):
        raise DataError('it must hold an array under data and a list under labels')
    if len(labels) != EXAMPLES_PER_FILE or not all(type(label) is int for label in labels):
        raise DataError(f'it must have {EXAMPLES_PER_FILE} labels, all of them whole numbers')
    if min(labels) < 0 or max(labels) >= N_CLASSES:
        raise DataError(f'its labels must be 0 to {N_CLASSES - 1}, got {min(labels)} to {max(labels)}')
    return data.pixels(), np.array(labels, np.uint8)


# The stand-in


def synthetic(n_train: int = 10_000, n_test: int = 2_000) -> RawData:
    """A stand-in in the form of CIFAR-10, the same at every call.

    An image is a window, somewhere, of its class's prototype (a fine random pattern), more or less bright and strong,
    on a coarse random background, with noise on every pixel. That the pattern may stand anywhere is easy to learn for
    a convolutional network and hard for a multi-layer perceptron.
    """
    shift, noise = 24, 40
    rng = np.random.RandomState(0)
    n = n_train + n_test
    prototypes = _smooth_images(rng, N_CLASSES, size=32 + shift, cells=24)
    windows = np.lib.stride_tricks.sliding_window_view(prototypes, (32, 32), axis=(2, 3))
    classes = rng.randint(N_CLASSES, size=n).astype(np.uint8)
    top, left = rng.randint(shift + 1, size=(2, n))
    strength = rng.uniform(14, 42, size=(n, 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(88, 168, size=(n, 3, 1, 1)).astype(np.float32)

    pixels = np.empty((n, N_PIXELS), np.uint8)
    for start in range(0, n, 1000):
        part = slice(start, start + 1000)
        images = strength[part] * windows[classes[part], :, top[part], left[part]] + brightness[part]
        images += 48 * _smooth_images(rng, len(images), size=32, cells=4)
        images += rng.randint(-noise, noise + 1, size=images.shape, dtype=np.int8)
        pixels[part] = np.clip(images, 0, 255).reshape(len(images), N_PIXELS)
    return RawData('synthetic', pixels[:n_train], classes[:n_train], pixels[n_train:], classes[n_train:])


def _smooth_images(rng: np.random.RandomState, n: int, size: int, cells: int) -> np.ndarray:
    """Random images (n, 3, size, size), standard normal at cells × cells points and linear in between."""
    points = np.linspace(0, cells - 1, size)
    hats = np.array([np.interp(points, np.arange(cells), one) for one in np.eye(cells)], np.float32)
    coarse = rng.standard_normal((n, 3, cells, cells)).astype(np.float32)
    return hats.T @ coarse @ hats
