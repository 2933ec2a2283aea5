"""CIFAR-10 read, split, shuffled and batched; damaged and hostile files; the download; the stand-in."""

import contextlib
import os
import pickle
import socket
import sys
import tempfile
import time
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

import cifar10_utils
from cifar10_utils import BATCHES_FOLDER, TEST_FILES, TRAIN_FILES, DataError, DataSet, DownloadError, get_cifar10
from tests.helpers import NO_NETWORK, files_under, run_script, temporary_directory


def write_batch_file(path: Path, contents: object) -> None:
    with open(path, 'wb') as file:
        pickle.dump(contents, file, protocol=4)


def batch_contents(seed: int) -> dict:
    rng = np.random.RandomState(seed)
    return {
        'data': rng.randint(0, 256, size=(10_000, 3072), dtype=np.uint8),
        'labels': rng.randint(10, size=10_000).tolist(),
    }


class DataSetTest(unittest.TestCase):
    def make(self, n: int = 10, **kwargs: object) -> DataSet:
        pixels = np.arange(n, dtype=np.uint8)[:, None].repeat(3072, axis=1)
        return DataSet('synthetic', pixels, np.arange(n, dtype=np.uint8) % 10, np.ones(3072, np.float32), **kwargs)

    def test_order_shuffle_and_dropped_tail(self) -> None:
        data = self.make(rng=np.random.RandomState(3))
        rng, order = np.random.RandomState(3), np.arange(10)
        for epoch in range(4):
            self.assertEqual([data.next_indices(4).tolist() for _ in range(2)], [list(order[:4]), list(order[4:8])])
            self.assertEqual(data.epochs_completed, epoch)
            permutation = np.arange(10)
            rng.shuffle(permutation)
            order = order[permutation]

    def test_a_batch_that_ends_with_the_epoch_is_kept(self) -> None:
        data = self.make(rng=np.random.RandomState(3))
        self.assertEqual(data.next_indices(5).tolist() + data.next_indices(5).tolist(), list(range(10)))
        self.assertEqual(data.epochs_completed, 0)
        data.next_indices(5)
        self.assertEqual(data.epochs_completed, 1)

    def test_batches_are_centred_and_labelled(self) -> None:
        for dtype in (np.float32, np.float64):
            data = self.make(dtype=dtype)
            images, labels = data.next_batch(3)
            self.assertEqual((images.shape, images.dtype, labels.dtype), ((3, 3, 32, 32), dtype, dtype))
            np.testing.assert_array_equal(images[:, 0, 0, 0], [-1, 0, 1])
            np.testing.assert_array_equal(labels, np.eye(10)[:3])
        self.assertEqual((data.images.shape, data.images.dtype), ((10, 3, 32, 32), np.float32))
        self.assertEqual((data.num_examples, data.labels.shape), (10, (10, 10)))
        self.assertEqual(self.make(one_hot=False).labels.tolist(), list(range(10)))

    def test_evaluation_batches_hold_every_example_once(self) -> None:
        images = np.concatenate([images for images, _ in self.make().batches(4)])
        np.testing.assert_array_equal(images, self.make().images)

    def test_impossible_batch_sizes(self) -> None:
        for batch_size in (0, 11):
            with self.assertRaisesRegex(ValueError, f'between 1 and 10 .* got {batch_size}'):
                self.make().next_batch(batch_size)


class BatchFilesTest(unittest.TestCase):
    """Reading a whole, and a damaged, copy of CIFAR-10's files, with random contents."""

    @classmethod
    def setUpClass(cls) -> None:
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.data_dir = Path(directory.name)
        cls.folder = cls.data_dir / BATCHES_FOLDER
        cls.folder.mkdir()
        cls.contents = [batch_contents(seed) for seed in range(6)]
        for file, contents in zip(TRAIN_FILES + TEST_FILES, cls.contents, strict=True):
            write_batch_file(cls.folder / file, contents)

    @contextlib.contextmanager
    def replaced(self, contents: bytes | object | None) -> Iterator[Path]:
        """A copy of the data in which data_batch_3 holds other contents, or is missing."""
        with temporary_directory() as copy:
            for file in TRAIN_FILES + TEST_FILES:
                (copy / file).symlink_to(self.folder / file)
            damaged = copy / 'data_batch_3'
            damaged.unlink()
            if isinstance(contents, bytes):
                damaged.write_bytes(contents)
            elif contents is not None:
                write_batch_file(damaged, contents)
            yield copy

    def assert_refused(self, contents: bytes | object | None, reason: str) -> None:
        with self.replaced(contents) as data_dir, self.assertRaisesRegex(DataError, reason) as caught:
            get_cifar10(data_dir)
        self.assertIn(str(data_dir / 'data_batch_3'), str(caught.exception))
        self.assertNotIn('\n', str(caught.exception))

    def test_both_directories_serve(self) -> None:
        pixels = np.concatenate([contents['data'] for contents in self.contents[:5]])
        mean_image = pixels.mean(axis=0, dtype=np.float64)
        for directory in (self.data_dir, self.folder):
            data = get_cifar10(directory)
            self.assertEqual([data[part].num_examples for part in ('train', 'validation', 'test')], [50_000, 0, 10_000])
            np.testing.assert_array_equal(data['train'].pixels, pixels)
            labels = np.concatenate([contents['labels'] for contents in self.contents[:5]])
            np.testing.assert_array_equal(data['train'].classes, labels)
            np.testing.assert_array_equal(data['test'].pixels, self.contents[5]['data'])
            np.testing.assert_allclose(data['test'].mean_image, mean_image, rtol=1e-7)
            self.assertEqual(data['test'].name, 'cifar10')

    def test_mean_image_is_the_one_accumulated_in_float32(self) -> None:
        pixels = np.concatenate([contents['data'] for contents in self.contents[:5]])
        accumulated = np.zeros(3072, np.float32)
        for image in pixels:
            accumulated += image
        np.testing.assert_array_equal(get_cifar10(self.data_dir)['train'].mean_image, accumulated / np.float32(50_000))

    def test_validation_split(self) -> None:
        data = get_cifar10(self.data_dir, one_hot=False, validation_size=12_000)
        whole = get_cifar10(self.data_dir)['train'].pixels
        np.testing.assert_array_equal(data['validation'].pixels, whole[:12_000])
        np.testing.assert_array_equal(data['train'].pixels, whole[12_000:])
        mean_image = whole[12_000:].mean(axis=0, dtype=np.float64)
        for part in data.values():
            np.testing.assert_allclose(part.mean_image, mean_image, rtol=1e-7)
        self.assertEqual(get_cifar10(self.data_dir, validation_size=50_000)['train'].num_examples, 0)
        for validation_size in (-1, 50_001):
            with self.assertRaisesRegex(DataError, f'between 0 and 50000 .* got {validation_size}'):
                get_cifar10(self.data_dir, validation_size=validation_size)

    def test_damaged_files(self) -> None:
        whole = (self.folder / 'data_batch_3').read_bytes()
        contents = self.contents[2]
        self.assert_refused(None, 'No such file')
        self.assert_refused(whole[: len(whole) // 2], 'truncated')
        self.assert_refused(b'', 'Ran out of input')
        self.assert_refused(b'<html>404</html>', 'is no CIFAR-10 file')
        self.assert_refused(['no', 'dictionary'], 'is no CIFAR-10 file')
        self.assert_refused({'labels': contents['labels']}, 'an array under data')
        self.assert_refused({'data': contents['data']}, 'a list under labels')
        self.assert_refused(contents | {'data': contents['data'][:, 1:].copy()}, r'got u1 of \(10000, 3071\)')
        self.assert_refused(contents | {'data': contents['data'][:-1].copy()}, r'got u1 of \(9999, 3072\)')
        self.assert_refused(contents | {'data': contents['data'].astype(np.int8)}, 'got i1 of')
        self.assert_refused(contents | {'data': np.asfortranarray(contents['data'])}, 'in rows')
        self.assert_refused(contents | {'labels': contents['labels'][1:]}, 'must have 10000 labels')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], 10]}, 'labels must be 0 to 9, got 0 to 10')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], -1]}, 'labels must be 0 to 9, got -1 to 9')
        self.assert_refused(contents | {'labels': [*contents['labels'][1:], 0.5]}, 'whole numbers')

    def test_hostile_pickles(self) -> None:
        with temporary_directory() as directory:
            trace = directory / 'run'

            class Hostile:
                def __reduce__(self) -> tuple:
                    return os.mkdir, (str(trace),)

            self.assert_refused(
                {'data': Hostile(), 'labels': []}, f'{os.mkdir.__module__}.mkdir, which no CIFAR-10 file'
            )
            self.assert_refused(b"cbuiltins\neval\n(S'1'\ntR.", 'builtins.eval, which no CIFAR-10 file needs')
            self.assert_refused(b"cnumpy\nload\n(S'x'\ntR.", 'numpy.load, which no CIFAR-10 file needs')
            self.assertFalse(trace.exists())
            pickle.loads(pickle.dumps(Hostile()))  # such a pickle does run code, where the reader lets it
            self.assertTrue(trace.exists())

    def test_a_damaged_file_stops_a_script(self) -> None:
        with self.replaced(b'nothing') as data_dir, temporary_directory() as output_dir:
            done = run_script('train_mlp_numpy.py', '--data_dir', data_dir, '--output_dir', output_dir)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count('\n')), (2, '', 1))
            self.assertIn('data_batch_3', done.stderr)
            self.assertEqual(files_under(output_dir), [])


class DownloadTest(unittest.TestCase):
    def test_a_dead_network(self) -> None:
        with temporary_directory() as directory:
            args = ('--max_steps', '1', '--output_dir', directory / 'out', '--data_dir', directory / 'data')
            done = run_script('train_mlp_numpy.py', '--dataset', 'cifar10', *args, env=NO_NETWORK)
            self.assertEqual((done.returncode, done.stderr.count('\n')), (2, 1))
            self.assertRegex(
                done.stderr, f'no CIFAR-10 in {directory}/data, and the download failed .*refused.*--data_dir'
            )
            self.assertEqual(files_under(directory), [])

            done = run_script('train_mlp_numpy.py', *args, env=NO_NETWORK)
            self.assertEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count('SYNTHETIC STAND-IN'), 1)
            self.assertFalse((directory / 'data').exists())
            self.assertTrue((directory / 'out/results/mlp_numpy_synthetic.csv').exists())

    def test_a_network_that_does_not_answer(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as server:
            url = f'http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz'
            start = time.perf_counter()
            with mock.patch.dict(os.environ, {'no_proxy': '127.0.0.1'}), self.assertRaises(OSError):
                cifar10_utils.check_network(url, timeout=0.5)
            self.assertLess(time.perf_counter() - start, 5)
        self.assertLess(cifar10_utils.NETWORK_TIMEOUT, 15)

    def fake_download(self, directory: Path, download: Callable[[Path], None]) -> Path:
        """Downloads with a torchvision whose CIFAR10 is `download`."""
        fake = types.ModuleType('torchvision.datasets')
        fake.CIFAR10 = lambda root, download: fetch(Path(root))
        fetch = download
        modules = {'torchvision': types.ModuleType('torchvision'), 'torchvision.datasets': fake}
        with mock.patch.dict(sys.modules, modules), mock.patch.object(cifar10_utils, 'check_network'):
            return cifar10_utils.download(directory / 'cifar10')

    def test_a_download_appears_whole(self) -> None:
        def fetch(root: Path) -> None:
            (root / 'cifar-10-python.tar.gz').touch()
            (root / BATCHES_FOLDER).mkdir()
            (root / BATCHES_FOLDER / 'test_batch').touch()

        with temporary_directory() as directory:
            folder = self.fake_download(directory, fetch)
            self.assertEqual(files_under(folder.parent), [BATCHES_FOLDER, f'{BATCHES_FOLDER}/test_batch'])

    def test_a_download_that_breaks_off_leaves_nothing(self) -> None:
        def fetch(root: Path) -> None:
            (root / BATCHES_FOLDER).mkdir()
            raise RuntimeError('File not found or corrupted.')

        with temporary_directory() as directory:
            with self.assertRaisesRegex(DownloadError, 'corrupted'):
                self.fake_download(directory, fetch)
            self.assertEqual(files_under(directory / 'cifar10'), [])


class SyntheticTest(unittest.TestCase):
    def test_form_and_determinism(self) -> None:
        start = time.process_time()
        raw = cifar10_utils.synthetic()
        self.assertLess(time.process_time() - start, 5)
        self.assertEqual((raw.train_pixels.shape, raw.train_pixels.dtype), ((10_000, 3072), np.uint8))
        self.assertEqual((raw.test_pixels.shape, raw.test_classes.shape), ((2_000, 3072), (2_000,)))
        self.assertEqual(set(raw.train_classes), set(range(10)))
        for array, again in zip(raw[1:], cifar10_utils.synthetic()[1:], strict=True):
            np.testing.assert_array_equal(array, again)
