"""CIFAR-10 served in batches, read from its files or replaced by a synthetic stand-in.

    data = get_cifar10('cifar10', validation_size=5000)
    images, labels = data['train'].next_batch(200)  # (200, 3, 32, 32) and (200, 10)

The pixels stay in memory as the bytes that they are on disk (176 MiB instead of 703 MiB of float32). The
training order is an index array, and only the rows of one batch are ever converted to floating point.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar10_download import DownloadError, check_network, find_batches, obtain
from cifar10_files import (
    BATCHES_FOLDER,
    CLASSES,
    EXAMPLES_PER_FILE,
    IMAGE_SHAPE,
    N_CLASSES,
    N_PIXELS,
    TEST_FILES,
    TRAIN_FILES,
    DataError,
    read_batch_files,
)

# What other files take from here, some of it made in the files that this one is built on.
__all__ = [
    'BATCHES_FOLDER', 'CLASSES', 'DEFAULT_DATA_DIR', 'IMAGE_SHAPE', 'N_CLASSES', 'N_PIXELS', 'TEST_FILES',
    'TRAIN_FILES', 'DataError', 'DataSet', 'DownloadError', 'RawData', 'check_network', 'find_batches',
    'generator_state', 'get_cifar10', 'load', 'read_part', 'restore_generator', 'synthetic',
]  # fmt: skip

DEFAULT_DATA_DIR = './cifar10'  # spelled just so: a directory that somebody names, `flags.py` spells without the ./


class RawData(NamedTuple):
    """All examples as bytes: pixels (N, 3072), channels first, and classes (N,), both uint8; read-only from `load`."""

    name: str  # 'cifar10' or 'synthetic'
    train_pixels: np.ndarray
    train_classes: np.ndarray
    test_pixels: np.ndarray
    test_classes: np.ndarray

    def parts(self, validation_size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Pixels and classes of `train`, `validation`, the first training examples, and `test`.

        Raises:
            DataError: validation_size is not between 0 and the number of training examples.
        """
        n_train = len(self.train_pixels)
        if not 0 <= validation_size <= n_train:
            raise DataError(
                f'validation_size must be between 0 and {n_train} (all training examples), got {validation_size}'
            )
        return {
            'train': (self.train_pixels[validation_size:], self.train_classes[validation_size:]),
            'validation': (self.train_pixels[:validation_size], self.train_classes[:validation_size]),
            'test': (self.test_pixels, self.test_classes),
        }


class DataSet:
    """Some examples of one data set, centred on its mean image, and the order in which they are trained on.

    Args:
        name: which data these are, `'cifar10'` or `'synthetic'`.
        pixels: (N, 3072) uint8, channels first.
        classes: (N,) uint8, 0 to 9.
        mean_image: (3072,) float32, subtracted from every image.
        std_image: (3072,) float32, which images are then divided by; with None pixels keep their scale of 0 to 255.
        one_hot: labels are rows (N, 10) of zeros and a one, rather than class numbers (N,).
        rng: shuffles at each epoch's end; NumPy's global generator if None. What is pickled or deep-copied takes a
            copy of it along, so that the same batches follow.
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
        std_image: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.pixels = pixels
        self.classes = classes
        self.mean_image = mean_image.copy()  # its own, so that who changes it does not change the other parts'
        self.std_image = None if std_image is None else std_image.copy()
        self.one_hot = one_hot
        # The generator itself, since the module that offers its functions cannot be pickled.
        self.rng = np.random.shuffle.__self__ if rng is None else rng
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
        return centred(self.pixels, self.mean_image, self.std_image).reshape(-1, *IMAGE_SHAPE)

    @property
    def labels(self) -> np.ndarray:
        """All labels: (N, 10) one-hot in the data set's dtype, or (N,) int64."""
        return self.labels_of(slice(None))

    def examples(self, which: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The images (n, 3, 32, 32) and the labels of the examples that an index array or a slice picks."""
        return self.centre(self.pixels[which]), self.labels_of(which)

    def centre(self, pixels: np.ndarray) -> np.ndarray:
        """Images (n, 3, 32, 32) as a network sees them, in the data set's dtype, out of pixels (n, 3072)."""
        # The difference is taken in float32, as the reference protocol does, and only then widened.
        images = centred(pixels, self.mean_image, self.std_image).astype(self.dtype, copy=False)
        return images.reshape(-1, *IMAGE_SHAPE)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The pixels, as bytes, and the labels of every example exactly once, in file order: for an evaluation."""
        for start in range(0, self.num_examples, batch_size):
            which = slice(start, start + batch_size)
            yield self.pixels[which], self.labels_of(which)

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
        indices = self.order[self.position : self.position + batch_size].copy()
        self.position += batch_size
        return indices

    def next_batch(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The next training batch: images (batch_size, 3, 32, 32) and their labels (see `next_indices`)."""
        return self.examples(self.next_indices(batch_size))

    def state(self) -> dict[str, object]:
        """All that the batches to come depend on, as arrays and numbers; see `restore`."""
        return {
            'order': self.order, 'position': self.position, 'epochs_completed': self.epochs_completed,
            **generator_state(self.rng),
        }  # fmt: skip

    def restore(self, state: dict[str, object]) -> None:
        """Goes back to a `state`, so that the same batches follow."""
        self.order, self.position = state['order'], state['position']
        self.epochs_completed = state['epochs_completed']
        restore_generator(self.rng, state)

    def labels_of(self, which: np.ndarray | slice) -> np.ndarray:
        """The labels, as `labels` has them, of the examples that an index array or a slice picks."""
        classes = self.classes[which]
        return np.eye(N_CLASSES, dtype=self.dtype)[classes] if self.one_hot else classes.astype(np.int64)


def centred(pixels: np.ndarray, mean_image: np.ndarray, std_image: np.ndarray | None = None) -> np.ndarray:
    """Pixels (n, 3072) as a network sees them, float32: minus the mean image, and divided by the deviation, if any."""
    images = pixels - mean_image
    if std_image is not None:
        images /= std_image
    return images


GENERATOR_STATE = ('rng_keys', 'rng_position', 'rng_has_gauss', 'rng_gauss')


def generator_state(rng: np.random.RandomState) -> dict[str, object]:
    """All that the numbers to come depend on, as an array and numbers; see `restore_generator`."""
    return dict(zip(GENERATOR_STATE, rng.get_state()[1:], strict=True))


def restore_generator(rng: np.random.RandomState, state: dict[str, object]) -> None:
    """Puts a generator back to a `generator_state`, which may stand among other things."""
    rng.set_state(('MT19937', *(state[key] for key in GENERATOR_STATE)))


def get_cifar10(
    data_dir: str | Path = DEFAULT_DATA_DIR,
    one_hot: bool = True,
    validation_size: int = 0,
    dataset: str = 'cifar10',
    rng: np.random.RandomState | None = None,
    dtype: type = np.float32,
    checksums: bool = True,
    standardise: bool = False,
) -> dict[str, DataSet]:
    """The data sets `train`, `validation` and `test`, centred on the mean image of the training set.

    With `standardise`, each channel has its mean over the training set subtracted instead, and is divided by its
    standard deviation. The validation set is the first `validation_size` training examples. For `dataset`, `data_dir`
    and `checksums` see `load`; for the other arguments see `DataSet`. Pixels and classes are shared by all that ask for
    the same data, and cannot be written to; `images` and `labels` are made at each call.

    Raises:
        DataError: the data cannot be had, or validation_size is not between 0 and their number.
    """
    raw = load(dataset, data_dir, checksums)
    parts = raw.parts(validation_size)
    pixels, _ = parts['train']
    if standardise:
        mean_image, std_image = channel_statistics(pixels)
    else:
        # The reference accumulates float32, which is exact here: 50,000 × 255 is less than 2^24.
        mean_image, std_image = pixels.sum(axis=0, dtype=np.float32) / np.float32(max(len(pixels), 1)), None
    return {
        part: DataSet(raw.name, *arrays, mean_image, one_hot, rng, dtype, std_image) for part, arrays in parts.items()
    }


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of each channel of pixels (N, 3072), repeated for its pixels: (3072,) each.

    A channel of one colour has the deviation 1, since nothing may be divided by zero.
    """
    counts, values = np.zeros((3, 256)), np.arange(256)
    for start in range(0, len(pixels), 1000):  # bincount makes eight bytes of each
        for channel, count in zip(np.split(pixels[start : start + 1000], 3, axis=1), counts, strict=True):
            count += np.bincount(channel.ravel(), minlength=256)
    total = np.maximum(counts.sum(axis=1), 1)
    mean = counts @ values / total
    std = np.sqrt((counts * (values - mean[:, np.newaxis]) ** 2).sum(axis=1) / total)
    std[std == 0] = 1
    return tuple(np.repeat(of_channel, N_PIXELS // 3).astype(np.float32) for of_channel in (mean, std))


def read_part(
    part: str,
    dataset: str = 'cifar10',
    data_dir: str | Path = DEFAULT_DATA_DIR,
    validation_size: int = 0,
    checksums: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and classes (n,), both uint8, of one part as `get_cifar10` divides them; see `load`.

    For the part `test` the files of the training set need not be there.

    Raises:
        DataError: the data cannot be had, or validation_size is not between 0 and their number.
    """
    if part == 'test':
        return load(dataset, data_dir, checksums, with_train=False).parts(0)[part]
    return load(dataset, data_dir, checksums).parts(validation_size)[part]


def load(
    dataset: str, data_dir: str | Path = DEFAULT_DATA_DIR, checksums: bool = True, with_train: bool = True
) -> RawData:
    """The examples of `dataset`: 'cifar10', 'synthetic', or 'auto'; of the same files again without reading them anew.

    'cifar10' is read from `data_dir`: a directory that holds `cifar-10-batches-py` or the archive, or that directory
    itself, or one that holds such a directory. It is downloaded into `data_dir` if it is not there. 'auto' is the
    same, but where that fails, and `data_dir` is the default, it says so on stderr and gives the stand-in.

    With `checksums` each file's MD5 sum must be the published one. Without `with_train` the training set of 'cifar10'
    is left out, and its files need not be there. `load.cache_clear()` forgets what was read.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
        ValueError: there is no such data set.
    """
    if dataset == 'synthetic':
        return _stand_in()
    if dataset not in ('auto', 'cifar10'):
        raise ValueError(f"dataset must be 'auto', 'cifar10' or 'synthetic', got {dataset!r}")
    try:
        folder = obtain(Path(data_dir), check_network)
    except DownloadError as error:
        if dataset != 'auto' or data_dir != DEFAULT_DATA_DIR:
            raise
        with contextlib.suppress(OSError, ValueError):  # where nobody reads, or the disk is full
            print(
                f'WARNING: {error}\nWARNING: training on the SYNTHETIC STAND-IN instead; '
                'its results say nothing about CIFAR-10.',
                file=sys.stderr,
            )
        return _stand_in()
    paths = [folder.resolve() / file for file in (TRAIN_FILES if with_train else ()) + TEST_FILES]
    return _read(tuple((path, _version(path)) for path in paths), checksums)


def _version(path: Path) -> tuple | None:
    """What of a file changes whenever its contents do, or None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=1)  # a search reads the files once for all its runs
def _read(files: tuple[tuple[Path, object], ...], checksums: bool) -> RawData:
    """The examples in these batch files, each given with its `_version`, the test set's last."""
    pixels, classes = read_batch_files([path for path, _ in files], checksums)
    n_train = len(pixels) - len(TEST_FILES) * EXAMPLES_PER_FILE
    return _read_only(RawData('cifar10', pixels[:n_train], classes[:n_train], pixels[n_train:], classes[n_train:]))


load.cache_clear = _read.cache_clear


@functools.lru_cache(maxsize=1)
def _stand_in() -> RawData:
    return _read_only(synthetic())


def _read_only(raw: RawData) -> RawData:
    """The same arrays, to which nobody who is given them can write, nor to any others that share their memory."""
    for array in raw[1:]:
        while array is not None:
            array.flags.writeable = False
            array = array.base
    return raw


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
