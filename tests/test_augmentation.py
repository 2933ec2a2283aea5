"""Augmentation on pictures whose result is known; its draws, its flag and its figure; the views of an evaluation."""

import argparse
import contextlib
import copy
import io
import subprocess
import sys
import unittest
from unittest import mock

import numpy as np
import torch

import augmentation
import script
import train_mlp_numpy
import train_mlp_pytorch
from augmentation import Augmentation, Draws, add_augment_flag, strengths, views
from cifar10_utils import N_PIXELS
from parsing import FlagError, OneLineParser
from tests.helpers import ROOT, files_under, refused, small_stand_in, temporary_directory

ALL = ['flip', 'shift=4', 'rotate=10', 'zoom=0.15', 'jitter=0.2', 'cutout=8']
NO_MEAN = np.zeros(N_PIXELS, np.float32)


def random_pixels(n: int) -> np.ndarray:
    return np.random.RandomState(1).randint(256, size=(n, N_PIXELS)).astype(np.uint8)


def both(words: list[str], pixels: np.ndarray, draws: Draws, mean_image: np.ndarray = NO_MEAN) -> list[np.ndarray]:
    """What is made of the pixels in NumPy and in PyTorch, neither of which may change them."""
    augment = Augmentation(words, n_examples=10, seed=0)
    before = pixels.copy()
    array = augment.apply(pixels, draws, mean_image)
    tensor = augment.apply(torch.from_numpy(pixels), draws, torch.from_numpy(mean_image))
    assert isinstance(array, np.ndarray), type(array)
    assert isinstance(tensor, torch.Tensor), type(tensor)
    np.testing.assert_array_equal(pixels, before)
    return [array, tensor.numpy()]


class KnownPictureTest(unittest.TestCase):
    def check(self, words: list[str], draws: Draws, expected: np.ndarray, pixels: np.ndarray, **kwargs: float) -> None:
        for images in both(words, pixels, draws):
            self.assertEqual((images.shape, images.dtype), ((len(pixels), 3, 32, 32), np.float32))
            np.testing.assert_allclose(images, expected, **{'rtol': 0, 'atol': 0, **kwargs})

    def test_mirrored(self) -> None:
        pixels = random_pixels(3)
        expected = pixels.reshape(3, 3, 32, 32).copy()
        expected[1] = expected[1, :, :, ::-1]
        self.check(['flip'], Draws(mirrored=np.array([False, True, False])), expected, pixels)

    def test_moved_down_and_to_the_right_with_its_reflection_behind(self) -> None:
        pixels = random_pixels(3)
        images = pixels.reshape(3, 3, 32, 32)
        expected = images.copy()
        expected[0, :, 2:, 3:] = images[0, :, :-2, :-3]
        expected[0, :, 2:, :3] = images[0, :, :-2, 2::-1]  # the edge itself stands next to the edge
        expected[0, :, :2] = expected[0, :, 3:1:-1]
        expected[1, :, :-4, :-1] = images[1, :, 4:, 1:]
        expected[1, :, :-4, -1] = images[1, :, 4:, -1]
        expected[1, :, -4:] = expected[1, :, -5:-9:-1]
        self.check(['shift=4'], Draws(moved=np.array([[2, 3], [-4, -1], [0, 0]])), expected, pixels)

    def test_as_far_as_the_flag_goes(self) -> None:
        pixels = random_pixels(1)
        image = pixels.reshape(3, 32, 32)
        expected = np.concatenate([image[:, 15::-1], image[:, :16]], axis=1)[None]
        self.check(['shift=16'], Draws(moved=np.array([[16, 0]])), expected, pixels)

    def test_mirrored_first_and_then_moved(self) -> None:
        pixels = random_pixels(1)
        image = pixels.reshape(3, 32, 32)[:, :, ::-1]
        expected = np.concatenate([image[:, :, 1::-1], image[:, :, :-2]], axis=2)[None]
        draws = Draws(mirrored=np.array([True]), moved=np.array([[0, 2]]))
        self.check(['flip', 'shift=2'], draws, expected, pixels)

    def test_cut_out_is_the_mean_image(self) -> None:
        pixels, mean_image = random_pixels(2), np.linspace(0, 255, N_PIXELS, dtype=np.float32)
        expected = (pixels - mean_image).reshape(2, 3, 32, 32)
        expected[0, :, 0:8, 24:32] = 0
        expected[1, :, 5:13, 2:10] = 0
        for images in both(['cutout=8'], pixels, Draws(cut=np.array([[0, 24], [5, 2]])), mean_image):
            np.testing.assert_array_equal(images, expected)

    def test_turned_by_nothing_and_zoomed_by_nothing_it_stays_as_it_is(self) -> None:
        pixels, zeros = random_pixels(5), np.zeros(5, np.float32)
        for draws in (Draws(turned=zeros), Draws(zoomed=1 + zeros), Draws(turned=zeros, zoomed=1 + zeros)):
            self.check(['rotate=10', 'zoom=0.1'], draws, pixels.reshape(5, 3, 32, 32), pixels)

    def test_turned_counter_clockwise_by_a_right_angle(self) -> None:
        pixels = random_pixels(3)
        images = pixels.reshape(3, 3, 32, 32)
        expected = np.stack([np.rot90(image, k, (1, 2)) for image, k in zip(images, (1, 2, -1), strict=True)])
        self.check(['rotate=180'], Draws(turned=np.float32([90, 180, -90])), expected, pixels, atol=0.01)

    def test_zoomed_to_twice_its_size(self) -> None:
        row, column = np.mgrid[:32, :32]
        pixels = np.stack([4 * row, 4 * column, 8 + 0 * row]).reshape(1, N_PIXELS).astype(np.uint8)
        # About the centre, 15.5, everything is twice as far.
        expected = np.stack([4 * (15.5 + (row - 15.5) / 2), 4 * (15.5 + (column - 15.5) / 2), 8 + 0 * row])[None]
        self.check(['zoom=0.9'], Draws(zoomed=np.float32([2])), expected, pixels, atol=1e-3)

    def test_zoomed_to_half_its_size_its_reflection_is_around_it(self) -> None:
        row, _ = np.mgrid[:32, :32]
        pixels = np.stack([4 * row] * 3).reshape(1, N_PIXELS).astype(np.uint8)
        (image,), _ = both(['zoom=0.9'], pixels, Draws(zoomed=np.float32([0.5])))
        np.testing.assert_allclose(image[:, 8:24], 4 * (15.5 + 2 * (row[8:24] - 15.5))[None].repeat(3, 0), atol=1e-3)
        np.testing.assert_allclose(image[:, :8], image[:, 15:7:-1], atol=1e-3)
        np.testing.assert_allclose(image[:, 24:], image[:, 23:15:-1], atol=1e-3)

    def test_recoloured(self) -> None:
        red, green, blue = pixel = np.array([60, 100, 140])
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        pixels = pixel.astype(np.uint8).repeat(1024)[None].repeat(5, axis=0)
        pixels[3:].reshape(2, 3, 1024)[:, :, ::2] += 20  # so that the mean grey is 10 above the grey of the other half
        factors = np.float32([[0.5, 1, 1], [1, 1, 0], [1, 1, 1.5], [1, 0, 1], [1.1, 0.8, 0.5]])
        expected = np.empty((5, 3, 1024))
        expected[0] = 0.5 * pixel[:, None]
        expected[1] = grey
        expected[2] = (grey + 1.5 * (pixel - grey))[:, None]
        expected[3] = grey + 10
        contrasted = 1.1 * (grey + 10 + 0.8 * (pixels[4].reshape(3, 1024) - (grey + 10)))
        own = np.array([0.299, 0.587, 0.114]) @ contrasted
        expected[4] = own + 0.5 * (contrasted - own)
        self.check(['jitter=0.5'], Draws(recoloured=factors), expected.reshape(5, 3, 32, 32), pixels, atol=1e-3)

    def test_colours_stay_within_what_a_byte_holds(self) -> None:
        factors = np.float32([[2, 1, 1], [1, 2, 1], [1, 1, 2], [2, 2, 2]])
        for images in both(['jitter=1'], random_pixels(4), Draws(recoloured=factors)):
            self.assertEqual((images.min(), images.max()), (0, 255))

    def test_nothing_asked_nothing_done_but_centred(self) -> None:
        pixels, mean_image = random_pixels(4), np.linspace(0, 255, N_PIXELS, dtype=np.float32)
        draws = Augmentation([], 10, seed=0).draw(np.arange(4), epoch=0)
        self.assertEqual(draws, Draws())
        for images in both([], pixels, draws, mean_image):
            np.testing.assert_array_equal(images, (pixels - mean_image).reshape(4, 3, 32, 32))


class DrawTest(unittest.TestCase):
    def test_a_flip_alternates(self) -> None:
        for n, seed in ((10, 1), (11, 2), (1000, 3)):
            augment, indices = Augmentation(['flip'], n, seed), np.random.RandomState(0).permutation(n)
            epochs = [augment.draw(indices, epoch).mirrored for epoch in range(4)]
            self.assertEqual(epochs[0].sum(), n // 2)
            np.testing.assert_array_equal(epochs[1], ~epochs[0])
            np.testing.assert_array_equal(epochs[2:], epochs[:2])
            np.testing.assert_array_equal(augment.draw(indices[3:7], 0).mirrored, epochs[0][3:7])  # the example's own
        halves = [Augmentation(['flip'], 1000, seed).mirrored_first for seed in (1, 1, 2)]
        np.testing.assert_array_equal(halves[0], halves[1])
        self.assertLess(np.mean(halves[0] == halves[2]), 0.6)
        self.assertLess(abs(np.mean(halves[0][:500]) - 0.5), 0.1)  # not the first half of the file

    def test_each_image_has_its_own_draw_over_the_whole_range(self) -> None:
        n = 2000
        draws = Augmentation(ALL[1:], n, seed=5).draw(np.arange(n), epoch=0)
        self.assertIsNone(draws.mirrored)
        for column in draws.moved.T:
            self.assertEqual(set(column), set(range(-4, 5)))
        for column in draws.cut.T:
            self.assertEqual(set(column), set(range(25)))
        self.assertLess(abs(np.corrcoef(draws.moved.T)[0, 1]), 0.1)
        self.assertLess(abs(np.corrcoef(draws.cut.T)[0, 1]), 0.1)
        for drawn, least, most in ((draws.turned, -10, 10), (draws.zoomed, 0.85, 1.15), (draws.recoloured, 0.8, 1.2)):
            self.assertEqual(drawn.dtype, np.float32)
            self.assertGreater(len(np.unique(drawn)), 0.99 * drawn.size)
            width = most - least
            self.assertTrue(least <= drawn.min() < least + 0.01 * width)
            self.assertTrue(most - 0.01 * width < drawn.max() <= most)
        self.assertEqual((draws.turned.shape, draws.zoomed.shape, draws.recoloured.shape), ((n,), (n,), (n, 3)))

    def test_the_greatest_cutout_leaves_nothing(self) -> None:
        draws = Augmentation(['cutout=32'], 4, seed=0).draw(np.arange(4), epoch=0)
        for images in both(['cutout=32'], random_pixels(4), draws):
            self.assertFalse(images.any())

    def test_a_restored_state_gives_the_same_draws(self) -> None:
        augment, indices = Augmentation(ALL, 100, seed=1), np.arange(20)
        augment.draw(indices, 0)
        state = copy.deepcopy(augment.state())
        self.assertLessEqual({type(value) for value in state.values()}, {np.ndarray, int, float})
        expected = [augment.draw(indices, epoch) for epoch in (1, 2)]
        other = Augmentation(ALL, 100, seed=2)
        other.restore(state)
        for draws, epoch in zip(expected, (1, 2), strict=True):
            for name, drawn in vars(other.draw(indices, epoch)).items():
                np.testing.assert_array_equal(drawn, getattr(draws, name), err_msg=name)
        self.assertFalse(np.array_equal(expected[0].moved, expected[1].moved))

    def test_shares_of_the_draws_are_the_whole(self) -> None:
        pixels, mean_image = random_pixels(33), np.full(N_PIXELS, 120, np.float32)
        augment = Augmentation(ALL, 100, seed=1)
        draws = augment.draw(np.arange(33), epoch=0)
        tensors = [torch.from_numpy(pixels), torch.from_numpy(mean_image)]
        for pixels_of, mean_of in ((pixels, mean_image), tensors):
            whole = augment.apply(pixels_of, draws, mean_of)
            for n_ranks in (2, 3, 33):
                for rank in (0, n_ranks - 1):
                    share = augment.apply(pixels_of[rank::n_ranks], draws[rank::n_ranks], mean_of)
                    np.testing.assert_array_equal(share, whole[rank::n_ranks])
        np.testing.assert_array_equal(draws[np.array([4, 7])].cut, draws.cut[[4, 7]])
        self.assertEqual(Draws(turned=np.zeros(3))[1:].zoomed, None)


class MixTest(unittest.TestCase):
    n = 50
    images = torch.arange(3.0 * n).view(n, 3, 1, 1).expand(n, 3, 20, 20)  # each of its own colour
    labels = torch.arange(n) % 10

    def mix(self, *words: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        return Augmentation(list(words), self.n, seed=0).mix(self.images, self.labels)

    def of_the_other(self, images: torch.Tensor) -> torch.Tensor:
        """How much of each pixel (n, 20, 20) is of the other image, the one before it in the batch."""
        own, other = self.images[:, 0], self.images.roll(1, 0)[:, 0]
        return (images[:, 0] - own) / (other - own)

    def test_an_image_alone_is_refused(self) -> None:
        Augmentation(['mixup=1'], self.n, seed=0).check_batch(4, n_ranks=2)
        Augmentation(['flip'], self.n, seed=0).check_batch(1)
        for trainer in (train_mlp_numpy, train_mlp_pytorch):
            said = refused(self, trainer, '--augment', 'mixup=1', '--batch_size', '1')
            self.assertIn('at least 2 images in each of 1 process(es), got a --batch_size of 1', said)
        with self.assertRaisesRegex(FlagError, 'in each of 2 process'):
            Augmentation(['cutmix=1'], self.n, seed=0).check_batch(3, n_ranks=2)

    def test_labels_are_mixed_as_the_images_are(self) -> None:
        for kind in ('mixup', 'cutmix'):
            shares = set()
            for seed in range(5):
                images, labels = self.mix(f'{kind}=1', seed=seed)
                share = self.of_the_other(images).mean((1, 2))
                expected = torch.zeros(self.n, 10)
                expected[torch.arange(self.n), self.labels] = 1 - share
                expected[torch.arange(self.n), self.labels.roll(1)] += share
                torch.testing.assert_close(labels, expected, rtol=0, atol=1e-4)
                shares.add(round(share[0].item(), 3))
            self.assertGreater(len(shares), 3)

    def test_arrays_as_tensors(self) -> None:
        """By mixup, each with the image before it; a half of the batches stays as it was."""
        augment, labels = Augmentation(['mixup=0.5'], self.n, seed=0), np.eye(10, dtype=np.float32)[self.labels]
        kept, shares = self.images.numpy().copy(), []
        for _ in range(100):
            mixed, shared = augment.mix(self.images.numpy(), labels)
            self.assertEqual((mixed.dtype, shared.dtype), (np.float32, np.float32))
            share = self.of_the_other(torch.from_numpy(mixed))
            torch.testing.assert_close(share, share[:1, :1, :1].expand_as(share), rtol=0, atol=1e-4)
            shares.append(share[0, 0, 0].item())
            np.testing.assert_allclose(shared, labels + shares[-1] * (np.roll(labels, 1, axis=0) - labels), atol=1e-4)
        np.testing.assert_array_equal(self.images.numpy(), kept)
        self.assertTrue(35 < np.count_nonzero(shares) < 65)
        self.assertTrue(min(filter(None, shares)) < 0.1 and max(shares) > 0.9)

    def test_of_every_pixel_or_of_a_rectangle(self) -> None:
        share = self.of_the_other(self.mix('mixup=1')[0])
        torch.testing.assert_close(share, share[:1, :1, :1].expand_as(share), rtol=0, atol=1e-4)
        share = self.of_the_other(self.mix('cutmix=1', seed=1)[0])
        rows, columns = share[0].any(1), share[0].any(0)
        torch.testing.assert_close(share, (rows[:, None] & columns).float().expand_as(share))
        for side in (rows, columns):
            self.assertLessEqual(side.int().diff().abs().sum(), 2)
            self.assertTrue(0 < side.sum() < 20)

    def test_in_a_share_of_the_batches(self) -> None:
        n_mixed = n_rectangles = 0
        for seed in range(200):
            images, labels = self.mix('mixup=0.2', 'cutmix=0.3', seed=seed)
            self.assertEqual(labels.ndim == 2, images is not self.images)
            n_mixed += labels.ndim == 2
            n_rectangles += labels.ndim == 2 and len(images[1, 0].unique()) == 2
        self.assertTrue(80 < n_mixed < 120, n_mixed)
        self.assertTrue(40 < n_rectangles < 75, n_rectangles)
        for words in ([], ['flip', 'cutout=8'], ['mixup=0']):
            self.assertIs(self.mix(*words)[0], self.images)

    def test_one_of_the_two_in_every_batch(self) -> None:
        for share in ('0.1', '0.7', '0.9'):
            words = [f'mixup={share}', f'cutmix={1 - float(share):g}']
            self.assertEqual({self.mix(*words, seed=seed)[1].ndim for seed in range(20)}, {2})


class LibrariesTest(unittest.TestCase):
    def test_numpy_and_pytorch_make_the_same_bytes(self) -> None:
        n = 200
        pixels, mean_image = random_pixels(n), np.linspace(0, 255, N_PIXELS, dtype=np.float32)
        words = ['flip', 'shift=16', 'cutout=8']
        array, tensor = both(words, pixels, Augmentation(words, n, 3).draw(np.arange(n), 0), mean_image)
        np.testing.assert_array_equal(array, tensor)

    def test_numpy_and_pytorch_agree_on_all_else(self) -> None:
        n = 50
        pixels, mean_image = random_pixels(n), np.linspace(0, 255, N_PIXELS, dtype=np.float32)
        array, tensor = both(ALL, pixels, Augmentation(ALL, n, 3).draw(np.arange(n), 0), mean_image)
        np.testing.assert_allclose(array, tensor, atol=1e-3)

    def test_the_arithmetic_of_arrays_never_imports_pytorch(self) -> None:
        program = (
            'import sys, numpy as np, augmentation as a\n'
            'words = ["flip", "shift=4", "jitter=0.2", "cutout=8", "mixup=1"]\n'
            'assert {word.split("=")[0] for word in words} == {*a.NUMPY_KINDS}\n'
            'pixels, augment = np.zeros((5, 3072), np.uint8), a.Augmentation(words, 5, 0)\n'
            'images = augment.apply(pixels, augment.draw(np.arange(5), 0), np.zeros(3072, np.float32))\n'
            'augment.mix(images, np.eye(10)[:5])\n'
            'list(a.views(pixels, 6))\n'
            'print({"torch", "matplotlib"} & {*sys.modules})'
        )
        result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual((result.stdout, result.stderr), ('set()\n', ''))


class EveryKindTest(unittest.TestCase):
    def test_does_something(self) -> None:
        """At its greatest strength, to tensors and, where it is one of NumPy's, to arrays."""
        pixels = random_pixels(6)
        for kind in augmentation.KINDS:
            word = f'{kind}={augmentation.STRENGTHS[kind][1]}' if kind in augmentation.STRENGTHS else kind
            for array in (False, True)[: 1 + (kind in augmentation.NUMPY_KINDS)]:
                augment = Augmentation([word], n_examples=6, seed=0)
                inputs = (pixels, NO_MEAN, np.eye(10, dtype=np.float32)[:6])
                if not array:
                    inputs = (*map(torch.from_numpy, inputs[:2]), torch.arange(6))
                images = augment.apply(inputs[0], augment.draw(np.arange(6), 0), inputs[1])
                images, _ = augment.mix(images, inputs[2])
                self.assertEqual(isinstance(images, np.ndarray), array)
                self.assertFalse(np.array_equal(np.asarray(images).reshape(pixels.shape), pixels), word)


class FlagTest(unittest.TestCase):
    def parse(self, *words: str, kinds: tuple[str, ...] = augmentation.KINDS) -> list[str]:
        parser = OneLineParser(prog='x')
        add_augment_flag(parser, kinds)
        return parser.parse_args(words).augment

    def test_one_list_however_it_is_written(self) -> None:
        self.assertEqual(self.parse(), [])
        for words in (
            ALL,
            ALL[::-1],
            ['cutout=08', 'zoom=.15', 'rotate=10.0', 'flip', 'shift=4', 'jitter=2e-1'],
            [*ALL, '--augment', *ALL],
        ):
            self.assertEqual(self.parse('--augment', *words), ALL)
        self.assertEqual(self.parse('--augment', 'rotate=0.1234567'), ['rotate=0.1234567'])
        numbers = {'flip': 1, 'shift': 4, 'rotate': 10, 'zoom': 0.15, 'jitter': 0.2, 'cutout': 8}
        self.assertEqual(strengths(ALL), numbers)

    def test_nothing_is_the_same_as_no_flag(self) -> None:
        for words in (['none'], ['shift=0', 'zoom=0.0'], ['rotate=-0'], ['flip', '--augment', 'none']):
            self.assertEqual(self.parse('--augment', *words), [])

    def test_one_line_for_what_cannot_be(self) -> None:
        for words, told in (
            (['spin'], "flip, shift=N, rotate=N, zoom=N, jitter=N, cutout=N, mixup=N, cutmix=N, or none alone, got 's"),
            (['flip', 'none'], "got 'none'"), (['flip=1'], "got 'flip=1'"), (['shift'], "got 'shift'"),
            (['=4'], "got '=4'"), (['flip,shift=4'], "got 'flip,shift=4'"),
            (['shift='], "shift must be a whole number from 0 to 16, got 'shift='"), (['shift=17'], "got 'shift=17'"),
            (['shift=1.5'], "got 'shift=1.5'"), (['shift=-1'], "got 'shift=-1'"), (['cutout=33'], 'from 0 to 32'),
            (['rotate=181'], 'from 0 to 180'), (['zoom=1'], 'a number from 0 to 0.9'),
            (['jitter=1.01'], 'a number from 0 to 1'), (['jitter=nan'], "'jitter=nan'"),
            (['rotate=inf'], "'rotate=inf'"), (['zoom=x'], "'zoom=x'"), (['zoom=0.1=2'], "'zoom=0.1=2'"),
            (['flip', 'shift=1', 'flip'], "must not have flip twice, got 'flip shift=1 flip'"),
            (['mixup=0.6', 'cutmix=0.5'], "must be at most 1 together, got 'mixup=0.6 cutmix=0.5'"),
            (['shift=0', 'shift=2'], 'must not have shift twice'), ([], 'expected at least one argument'),
        ):  # fmt: skip
            with self.subTest(words=words), contextlib.redirect_stderr(io.StringIO()) as stderr:
                with self.assertRaises(SystemExit) as caught:
                    self.parse('--augment', *words)
                self.assertEqual((caught.exception.code, stderr.getvalue().count('\n')), (2, 1))
                self.assertIn(told, stderr.getvalue())
                self.assertIn('argument --augment:', stderr.getvalue())

    def test_only_the_kinds_that_a_script_has(self) -> None:
        kinds = augmentation.NUMPY_KINDS
        self.assertEqual(self.parse('--augment', 'shift=2', 'flip', kinds=kinds), ['flip', 'shift=2'])
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit):
            self.parse('--augment', 'rotate=2', kinds=kinds)
        self.assertIn('some of flip, shift=N, jitter=N, cutout=N, mixup=N, or none', stderr.getvalue())

    def test_words_that_are_given_in_code_are_checked_too(self) -> None:
        for words in (['spin'], ['shift=99']):
            with self.assertRaises(argparse.ArgumentTypeError):
                Augmentation(words, 10, seed=0)


class ViewsTest(unittest.TestCase):
    def test_which_views_at_which_weight(self) -> None:
        pixels = random_pixels(4)
        images = pixels.reshape(4, 3, 32, 32)
        mirrored = images[..., ::-1]
        edges = [(0, 0), (0, 0), (1, 1), (1, 1)]
        wide = [
            np.pad(each, edges, mode='edge') for each in (images, mirrored)
        ]  # by a pixel, an edge is its reflection
        up_left = [each[:, :, 2:, 2:] for each in wide]
        down_right = [each[:, :, :-2, :-2] for each in wide]
        for n_views, expected in (
            (1, [(images, 1)]),
            (2, [(images, 1 / 2), (mirrored, 1 / 2)]),
            (6, [(images, 1 / 4), (mirrored, 1 / 4), *((view, 1 / 8) for view in up_left + down_right)]),
        ):
            for of, library in ((pixels, np.ndarray), (torch.from_numpy(pixels), torch.Tensor)):
                found = list(views(of, n_views))
                self.assertEqual([weight for _, weight in found], [weight for _, weight in expected])
                for (view, _), (image, _) in zip(found, expected, strict=True):
                    self.assertIsInstance(view, library)
                    np.testing.assert_array_equal(view, image.reshape(4, N_PIXELS))

    def test_other_numbers_of_views(self) -> None:
        for n_views in (0, 3, 4):
            with self.assertRaisesRegex(ValueError, f'got {n_views}'):
                list(views(random_pixels(1), n_views))


class FigureTest(unittest.TestCase):
    def draw(self, *args: str) -> np.ndarray:
        """The picture in the figure of the stand-in."""
        with temporary_directory() as directory, small_stand_in(), mock.patch('plots.save_figure') as save_figure:
            argv = ['augmentation.py', '--dataset', 'synthetic', '--output_dir', str(directory), *args]
            with mock.patch.object(sys, 'argv', argv), contextlib.redirect_stdout(io.StringIO()) as stdout:
                self.assertEqual(script.run_script(augmentation.build_parser(), augmentation.draw_figure), 0)
            figure, path = save_figure.call_args.args
            self.assertEqual(path, directory / 'figures' / 'augmentation_synthetic.png')
            self.assertEqual(stdout.getvalue(), f'wrote {path}\n')
        (panel,) = figure.axes
        self.assertEqual([label.get_text() for label in panel.get_yticklabels()],
                         ['before', *(f'epoch {epoch}' for epoch in range(5))])  # fmt: skip
        return np.asarray(panel.images[0].get_array())

    def test_a_row_before_and_a_row_for_each_epoch(self) -> None:
        picture = self.draw('--augment', 'flip')
        self.assertEqual(picture.shape, (6 * 36 - 4, 16 * 36 - 4, 3))
        with small_stand_in():
            pixels = script.load_data('', 'synthetic', 0, 16)['train'].pixels[:16].reshape(16, 3, 32, 32)
        mirrored = np.zeros((6, 16), bool)
        for row in range(6):
            for column in range(16):
                shown = picture[36 * row :, 36 * column :][:32, :32].transpose(2, 0, 1)
                mirrored[row, column] = not np.array_equal(shown, pixels[column])
                expected = pixels[column][:, :, ::-1] if mirrored[row, column] else pixels[column]
                np.testing.assert_array_equal(shown, expected)
        self.assertFalse(mirrored[0].any())
        self.assertTrue(0 < mirrored[1].sum() < 16)
        np.testing.assert_array_equal(mirrored[2], ~mirrored[1])

    def test_a_batch_of_fewer_where_there_are_no_more(self) -> None:
        self.assertEqual(self.draw('--validation_size', '995').shape[1], 5 * 36 - 4)

    def test_every_kind_by_default(self) -> None:
        self.assertEqual(augmentation.build_parser().parse_args([]).augment, ALL)
        picture = self.draw()
        self.assertFalse(np.array_equal(picture[36:68], picture[72:104]))

    def test_mixed_images(self) -> None:
        plain, mixed = self.draw('--augment', 'none'), self.draw('--augment', 'mixup=1')
        np.testing.assert_array_equal(plain[:32], mixed[:32])
        self.assertFalse(np.array_equal(plain[36:68], mixed[36:68]))
        self.assertFalse(np.array_equal(mixed[36:68], mixed[72:104]))

    def test_standardised_images(self) -> None:
        """Whose cut-out squares have one colour, where those of centred images show the mean image."""
        centred, standardised = (self.draw('--augment', 'cutout=32', *more)[36:68, :32]
                                 for more in ((), ('--standardise',)))  # fmt: skip
        np.testing.assert_array_equal(standardised, np.broadcast_to(standardised[0, 0], (32, 32, 3)))
        self.assertGreater(len(np.unique(centred)), 3)
        centred, standardised = (self.draw('--augment', 'flip', *more) for more in ((), ('--standardise',)))
        np.testing.assert_array_equal(standardised, centred)

    def test_no_place_to_write_to_is_told_in_one_line(self) -> None:
        with temporary_directory() as directory, contextlib.redirect_stderr(io.StringIO()) as stderr:
            (directory / 'figures').write_text('')
            argv = ['augmentation.py', '--dataset', 'synthetic', '--output_dir', str(directory)]
            with mock.patch.object(sys, 'argv', argv), self.assertRaises(SystemExit) as caught:
                script.run_script(augmentation.build_parser(), augmentation.draw_figure)
            self.assertEqual((caught.exception.code, files_under(directory)), (2, ['figures']))
        self.assertEqual(stderr.getvalue().count('\n'), 1)
