"""CIFAR-10 read, split, shuffled and batched; damaged and hostile files; what is cached; the stand-in."""

import contextlib
import copy
import functools
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

import cifar10_files
import cifar10_utils
from cifar10_utils import BATCHES_FOLDER, TEST_FILES, TRAIN_FILES, DataError, DataSet, get_cifar10
from tests.batch_files import array, contents, pickled
from tests.helpers import REAL_DATA, ROOT, files_under, needs_real_data, run_script, temporary_directory


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
        numbers = self.make(one_hot=False)
        self.assertEqual((numbers.labels.tolist(), numbers.labels.dtype), (list(range(10)), np.int64))

    def test_evaluation_batches_hold_every_example_once(self) -> None:
        data, in_file_order = self.make(), self.make().images
        for _ in range(2):
            images = np.concatenate([data.centre(pixels) for pixels, _ in data.batches(4)])
            np.testing.assert_array_equal(images, in_file_order)
            np.testing.assert_array_equal(data.images, in_file_order)
            for _ in range(3):  # into an epoch of another order
                data.next_batch(4)

    def test_impossible_batch_sizes(self) -> None:
        for batch_size in (0, 11):
            with self.assertRaisesRegex(ValueError, f'between 1 and 10 .* got {batch_size}'):
                self.make().next_batch(batch_size)

    def test_pickled_and_copied_it_goes_on_with_the_same_batches(self) -> None:
        for kwargs in ({}, {'rng': np.random.RandomState(3)}):
            with self.subTest(**kwargs):
                np.random.seed(5)
                data = self.make(**kwargs)
                data.next_indices(7)
                np.random.randn(1)  # a second normal number lies ready in the generator
                copies = [pickle.loads(pickle.dumps(data)), copy.deepcopy(data)]
                expected = [data.next_batch(4) for _ in range(9)]
                for again in copies:
                    for images, labels in expected:
                        batch = again.next_batch(4)
                        np.testing.assert_array_equal(batch[0], images)
                        np.testing.assert_array_equal(batch[1], labels)

    def test_the_default_generator_is_numpys_global_one(self) -> None:
        data = self.make()
        np.random.seed(11)
        data.next_indices(10), data.next_indices(10)
        rng = np.random.RandomState(11)
        rng.permutation(10)
        self.assertEqual(np.random.randint(1000), rng.randint(1000))

    def test_data_sets_pickled_together_still_share_a_generator(self) -> None:
        np.random.seed(7)
        pair = [self.make(), self.make()]
        again = pickle.loads(pickle.dumps(pair))
        self.assertEqual([[data.next_indices(10).tolist() for data in pair] for _ in range(3)],
                         [[data.next_indices(10).tolist() for data in again] for _ in range(3)])  # fmt: skip


class BatchFilesTest(unittest.TestCase):
    """Reading a whole, and a damaged, copy of CIFAR-10's files, with random contents."""

    @classmethod
    def setUpClass(cls) -> None:
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.addClassCleanup(cifar10_utils.load.cache_clear)
        cls.data_dir = Path(directory.name)
        cls.folder = cls.data_dir / BATCHES_FOLDER
        cls.folder.mkdir()
        cls.contents = [contents(seed) for seed in range(6)]
        for file, one in zip(TRAIN_FILES + TEST_FILES, cls.contents, strict=True):
            (cls.folder / file).write_bytes(pickled(one))

    @contextlib.contextmanager
    def replaced(self, damaged: bytes | None) -> Iterator[Path]:
        """A copy of the data in which data_batch_3 holds other bytes, or is missing."""
        with temporary_directory() as data_dir:
            for file in TRAIN_FILES + TEST_FILES:
                (data_dir / file).symlink_to(self.folder / file)
            (data_dir / 'data_batch_3').unlink()
            if damaged is not None:
                (data_dir / 'data_batch_3').write_bytes(damaged)
            yield data_dir

    def assert_refused(self, damaged: bytes | object, reason: str, checksums: bool = False) -> None:
        with temporary_directory() as directory:
            path = directory / 'data_batch_3'
            path.write_bytes(damaged if isinstance(damaged, bytes) else pickled(damaged))
            with self.assertRaisesRegex(DataError, reason) as caught:
                cifar10_files.read_batch_files([path], checksums)
        self.assertIn(str(path), str(caught.exception))
        self.assertNotIn('\n', str(caught.exception))
        self.assertLess(len(str(caught.exception)), 500)

    def test_what_the_files_hold(self) -> None:
        pixels = np.concatenate([contents[b'data'] for contents in self.contents[:5]])
        labels = np.concatenate([contents[b'labels'] for contents in self.contents[:5]])
        data = get_cifar10(self.data_dir, checksums=False)
        self.assertEqual([data[part].num_examples for part in ('train', 'validation', 'test')], [50_000, 0, 10_000])
        np.testing.assert_array_equal(data['train'].pixels, pixels)
        np.testing.assert_array_equal(data['train'].classes, labels)
        np.testing.assert_array_equal(data['test'].pixels, self.contents[5][b'data'])
        self.assertEqual(data['test'].name, 'cifar10')
        with temporary_directory() as above:
            (above / 'deeper').symlink_to(self.data_dir)
            for directory in (str(self.data_dir), self.folder, above):
                same = get_cifar10(directory, checksums=False)['train'].pixels
                self.assertTrue(np.shares_memory(same, data['train'].pixels))

    def test_mean_image_is_the_one_accumulated_in_float32(self) -> None:
        data = get_cifar10(self.data_dir, checksums=False)['train']
        accumulated = np.zeros(3072, np.float32)
        for image in data.pixels:
            accumulated += image
        np.testing.assert_array_equal(data.mean_image, accumulated / np.float32(50_000))

    def test_validation_split(self) -> None:
        load = functools.partial(get_cifar10, self.data_dir, checksums=False)
        data = load(one_hot=False, validation_size=12_000)
        whole = load()['train'].pixels
        np.testing.assert_array_equal(data['validation'].pixels, whole[:12_000])
        np.testing.assert_array_equal(data['train'].pixels, whole[12_000:])
        classes = load()['train'].classes
        np.testing.assert_array_equal(data['validation'].classes, classes[:12_000])
        np.testing.assert_array_equal(data['train'].classes, classes[12_000:])
        mean_image = whole[12_000:].mean(axis=0, dtype=np.float64)
        for part in data.values():
            np.testing.assert_allclose(part.mean_image, mean_image, rtol=1e-7)
        self.assertEqual(load(validation_size=50_000)['train'].num_examples, 0)
        for validation_size in (-1, 50_001):
            with self.assertRaisesRegex(DataError, f'between 0 and 50000 .* got {validation_size}'):
                load(validation_size=validation_size)

    def test_one_part_alone(self) -> None:
        """The test set where nothing else is there."""
        for dataset, size in (('cifar10', 12_000), ('synthetic', 3000)):
            data = get_cifar10(self.data_dir, validation_size=size, dataset=dataset, checksums=False)
            for part, expected in data.items():
                pixels, classes = cifar10_utils.read_part(part, dataset, self.data_dir, size, checksums=False)
                np.testing.assert_array_equal(pixels, expected.pixels)
                np.testing.assert_array_equal(classes, expected.classes)
        with temporary_directory() as directory:
            shutil.copy(self.folder / 'test_batch', directory)
            pixels, classes = cifar10_utils.read_part('test', 'cifar10', directory, size, checksums=False)
            np.testing.assert_array_equal(pixels, self.contents[5][b'data'])
            np.testing.assert_array_equal(classes, self.contents[5][b'labels'])
            self.assertFalse(pixels.flags.writeable)
            with self.assertRaisesRegex(DataError, 'cannot read .*data_batch_1'):
                cifar10_utils.read_part('train', 'cifar10', directory, checksums=False)
            with self.assertRaisesRegex(DataError, 'test_batch is not the published file'):
                cifar10_utils.read_part('test', 'cifar10', directory)

    def test_damaged_files(self) -> None:
        whole = (self.folder / 'data_batch_3').read_bytes()
        contents = self.contents[2]
        data, labels = contents[b'data'], contents[b'labels']
        for damaged, reason in ((None, 'No such file'), (whole[:-1], 'cut short')):
            with self.replaced(damaged) as data_dir, self.assertRaisesRegex(DataError, f'data_batch_3.* {reason}'):
                get_cifar10(data_dir, checksums=False)
        self.assert_refused(whole[: len(whole) // 2], 'cut short')
        self.assert_refused(whole[:-1], 'cut short')
        self.assert_refused(b'', 'no CIFAR-10 file: it does not state a string')
        self.assert_refused(b'<html>404</html>', 'no CIFAR-10 file')
        self.assert_refused(pickle.dumps({'data': data, 'labels': labels}, protocol=4), 'no CIFAR-10 file')
        self.assert_refused(contents | {b'data': contents[b'data'][:, 1:].copy()}, 'no CIFAR-10 file')
        self.assert_refused(whole + bytes(400_000), 'more than 350000 bytes after its pixels')
        self.assert_refused(whole[:-1] + b'N' * 40_000, 'more than 31000 instructions')
        self.assert_refused(whole.replace(b'q\x01', b'q\x01\x80\x04', 1), 'another protocol')
        self.assert_refused(['no', 'dictionary', data][2:], 'no CIFAR-10 file')
        self.assert_refused({b'labels': labels, b'else': data}, 'an array under data')
        self.assert_refused({b'labels': labels, b'data': data.tobytes()}, 'an array under data')
        self.assert_refused({b'data': data}, 'a list under labels')
        self.assert_refused(contents | {(): 1}, 'a key that is no string')
        wrong = array(data.reshape(3072, 10_000))
        self.assert_refused(contents | {b'data': wrong}, r'in rows, got u1 of \(3072, 10000\)')
        self.assert_refused(contents | {b'data': array(data.reshape(-1))}, r'got u1 of \(30720000,\)')
        self.assert_refused(contents | {b'data': array(data.astype(np.int8))}, 'got i1 of')
        self.assert_refused(contents | {b'data': array(data, is_fortran=True)}, 'in rows')
        self.assert_refused(contents | {b'labels': labels[1:]}, 'must have 10000 labels')
        self.assert_refused(contents | {b'labels': [*labels[1:], 10]}, 'labels must be 0 to 9, got 0 to 10')
        self.assert_refused(contents | {b'labels': [*labels[1:], -1]}, 'labels must be 0 to 9, got -1 to 9')
        self.assert_refused(contents | {b'labels': [*labels[1:], b'5']}, 'whole numbers')
        self.assert_refused(contents | {b'labels': [*labels[1:], False]}, 'whole numbers')

    def test_damage_that_keeps_the_form(self) -> None:
        """The form is right, and so without the sums the file is read; the sums alone tell that it is another."""
        sums = {file: hashlib.md5((self.folder / file).read_bytes()).hexdigest() for file in TRAIN_FILES + TEST_FILES}
        with mock.patch.object(cifar10_files, 'MD5_SUMS', sums):
            get_cifar10(self.data_dir)
            zeroed = self.contents[2] | {b'data': self.contents[2][b'data'].copy()}
            zeroed[b'data'][5000:] = 0
            self.assert_refused(zeroed, 'MD5 sum is .* instead of', checksums=True)
            self.assert_refused(self.contents[5], 'MD5 sum is .* instead of', checksums=True)
            first_other = [*self.contents[2][b'labels']]
            first_other[0] = (first_other[0] + 1) % 10
            self.assert_refused(self.contents[2] | {b'labels': first_other}, 'MD5', checksums=True)
            self.assert_refused(self.contents[2] | {b'filenames': []}, 'MD5', checksums=True)
        with self.replaced(pickled(zeroed)) as data_dir:
            self.assertEqual(get_cifar10(data_dir, checksums=False)['train'].pixels[29_999].max(), 0)

    def test_the_published_sums_are_asked_for_unless_told_otherwise(self) -> None:
        with self.assertRaisesRegex(DataError, 'data_batch_1 is not the published file'):
            get_cifar10(self.data_dir)
        with self.assertRaisesRegex(DataError, 'not the published file'):
            cifar10_utils.load('cifar10', self.data_dir)

    @needs_real_data
    def test_the_published_files_say_what_pythons_own_reader_finds_in_them(self) -> None:
        folder = cifar10_utils.find_batches(REAL_DATA)
        for file in ('data_batch_2', 'test_batch'):
            pixels, classes = cifar10_files.read_batch_files([folder / file])
            with open(folder / file, 'rb') as stream:
                expected = pickle.load(stream, encoding='bytes')
            np.testing.assert_array_equal(pixels, expected[b'data'])
            np.testing.assert_array_equal(classes, expected[b'labels'])

    def test_hostile_pickles(self) -> None:
        with temporary_directory() as directory:
            trace = directory / 'run'

            class Hostile:
                def __reduce__(self) -> tuple:
                    return os.mkdir, (str(trace),)

            follow = cifar10_files.PIXELS_FOLLOW + bytes(30_720_000)
            hostile = pickle.dumps(Hostile(), protocol=2)
            self.assert_refused(
                hostile[:-1] + follow + b'.', f'asks for .{os.mkdir.__module__}.mkdir.*, which no CIFAR'
            )
            self.assert_refused(
                b"cbuiltins\neval\n(S'1'\ntR." + follow, 'builtins.eval.*, which no CIFAR-10 file needs'
            )
            self.assert_refused(b"cnumpy\nload\n(S'x'\ntR." + follow, 'numpy.load.*, which no CIFAR-10 file needs')
            for forbidden in (b'P1\n', b'Q', b'\x81', b'i', b'o', b'\x82\x01', b'\x93'):
                self.assert_refused(forbidden + follow, 'no CIFAR-10 file has the instruction')
            self.assertFalse(trace.exists())
            pickle.loads(hostile)  # such a pickle does run code, where the reader lets it
            self.assertTrue(trace.exists())

    def test_no_length_makes_the_reader_set_memory_aside(self) -> None:
        """A flipped bit in a length, a file of gigabytes: refused within a limit that either would break."""
        whole = (self.folder / 'data_batch_3').read_bytes()
        start = whole.index(cifar10_files.PIXELS_FOLLOW)
        long = whole[:start] + b'T' + struct.pack('<I', 2**31 - 1) + whole[start + 5 :]
        mark = whole.index(b'r\x01\x00\x00\x00', start)
        memo = whole[:mark] + b'r\xff\xff\xff\x7f' + whole[mark + 5 :]
        reader = (
            'import sys; from pathlib import Path; import cifar10_files\n'
            'import numpy as np\n'
            'def peak():\n'  # in KiB; that of getrusage would begin at the peak of the process that starts this one
            '    status = Path("/proc/self/status")\n'
            '    lines = status.read_text().splitlines() if status.exists() else ["VmHWM: 0"]\n'
            '    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))\n'
            'before = peak()\n'
            'try: cifar10_files.read_batch_files([Path(sys.argv[1])], checksums=False)\n'
            'except cifar10_files.DataError as error: print(error)\n'
            'else: print("read")\n'
            'print((peak() - before) // 1024)'
        )
        for damaged, said in ((long, 'no CIFAR-10 file'), (memo, 'read'), (None, 'no CIFAR-10 file')):
            with self.replaced(damaged) as data_dir:
                if damaged is None:  # 4 GiB, none of them on the disk
                    with open(data_dir / 'data_batch_3', 'wb') as file:
                        file.write(whole)
                        file.truncate(2**32)
                done = subprocess.run([sys.executable, '-c', reader, data_dir / 'data_batch_3'], cwd=ROOT,
                                      capture_output=True, text=True, timeout=60)  # fmt: skip
                self.assertEqual(done.stderr, '')
                message, mebibytes = done.stdout.splitlines()
                self.assertIn(said, message)
                self.assertLess(int(mebibytes), 60)

    def test_a_damaged_file_stops_a_script(self) -> None:
        with self.replaced(b'nothing') as data_dir, temporary_directory() as output_dir:
            done = run_script('train_mlp_numpy.py', '--data_dir', data_dir, '--output_dir', output_dir)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count('\n')), (2, '', 1))
            self.assertIn('data_batch_', done.stderr)
            self.assertEqual(files_under(output_dir), [])

    def test_nobody_can_write_to_what_others_are_given(self) -> None:
        for data in (get_cifar10(self.data_dir, checksums=False, validation_size=10), get_cifar10(dataset='synthetic')):
            for part in data.values():
                for shared in (part.pixels, part.classes):
                    with self.assertRaisesRegex(ValueError, 'read-only'):
                        shared[:0] = 0
                    with self.assertRaisesRegex(ValueError, 'WRITEABLE'):
                        shared.flags.writeable = True
            with self.assertRaisesRegex(ValueError, 'read-only'):
                np.random.shuffle(data['train'].classes)
            before = data['test'].classes.copy()
            data['test'].images[:], data['test'].labels[:] = 0, 0
            data['test'].mean_image[:] = 0
            np.testing.assert_array_equal(data['test'].classes, before)
            self.assertGreater(data['train'].mean_image.min(), 0)
            order = data['train'].order.copy()
            data['train'].next_indices(3)[:] = 0
            np.testing.assert_array_equal(data['train'].order, order)
        self.assertGreater(get_cifar10(dataset='synthetic')['train'].mean_image.min(), 0)

    def test_another_data_set_is_not_taken_for_this_one(self) -> None:
        with self.assertRaisesRegex(ValueError, "must be 'auto', 'cifar10' or 'synthetic', got 'cifar100'"):
            get_cifar10(dataset='cifar100')

    def test_the_same_files_are_read_once_and_others_anew(self) -> None:
        load = functools.partial(get_cifar10, checksums=False)
        with temporary_directory() as directory, contextlib.chdir(directory):
            for name in ('one', 'two'):
                shutil.copytree(self.data_dir, directory / name / 'cifar10')
            with open(directory / 'two/cifar10' / BATCHES_FOLDER / 'test_batch', 'r+b') as file:
                file.seek(1_000_000)
                file.write(bytes(100_000))
            os.chdir('one')
            first = load()['test'].pixels
            self.assertTrue(np.shares_memory(load()['test'].pixels, first))
            self.assertTrue(np.shares_memory(load(directory / 'one/cifar10')['test'].pixels, first))
            os.chdir('../two')  # the same path, in another working directory
            self.assertGreater((load()['test'].pixels != first).sum(), 90_000)

            whole = (self.folder / 'test_batch').read_bytes()  # and the file replaced by another of its length
            (directory / 'two/cifar10' / BATCHES_FOLDER / 'test_batch').write_bytes(whole)
            np.testing.assert_array_equal(load()['test'].pixels, first)
            with self.assertRaises(DataError):  # what was read unchecked does not count as checked
                get_cifar10()


class SyntheticTest(unittest.TestCase):
    def test_form_and_determinism(self) -> None:
        start = time.process_time()
        raw = cifar10_utils.synthetic()
        self.assertLess(time.process_time() - start, 5)
        self.assertEqual((raw.train_pixels.shape, raw.train_pixels.dtype), ((10_000, 3072), np.uint8))
        self.assertEqual((raw.test_pixels.shape, raw.test_classes.shape), ((2_000, 3072), (2_000,)))
        self.assertEqual(set(raw.train_classes), set(range(10)))
        for values, again in zip(raw[1:], cifar10_utils.synthetic()[1:], strict=True):
            np.testing.assert_array_equal(values, again)
