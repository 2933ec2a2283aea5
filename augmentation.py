"""Batches of images changed at random, each image in its own way, and the views that an evaluation may average over.

    augmentation = Augmentation(['flip', 'shift=4', 'cutout=8'], n_examples=50_000, seed=42)
    draws = augmentation.draw(indices, epoch)  # what befalls each image of the whole batch
    images = augmentation.apply(pixels, draws, mean_image)  # bytes (n, 3072) to centred images (n, 3, 32, 32)

What happens is drawn in NumPy, for the whole batch, from one generator that a checkpoint can keep: so a run gives the
same images wherever it is resumed, and on however many processes, each of which takes its share of the same draws.
How it happens is index arithmetic and a little algebra, in NumPy for arrays and in PyTorch, on their device, for
tensors. To flip and to shift are one gather of the bytes: a row of the new image is a row of the old one, and a column
a column. What comes in from outside is the image's reflection in its edge, with which sky goes on as sky; to reflect
is to read at another index, where a colour to fill in would need a mask. Only a tensor, and to turn or zoom, need
PyTorch to be imported. Images are mixed with each other, and their labels with them, as drawn once for a whole batch;
of tensors that is left to torchvision, whose draws follow from PyTorch's seed. Each process mixes its own share, and
all do so alike.

    python augmentation.py --augment flip shift=4  # draws a batch, before and after, into figures/augmentation.png
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cifar10_utils import IMAGE_SHAPE, N_CLASSES, N_PIXELS, generator_state, get_cifar10, restore_generator
from flags import add_data_flags, add_seed_flag
from parsing import FlagError, OneLineParser, file_path

if TYPE_CHECKING:
    import torch

Array = TypeVar('Array', np.ndarray, 'torch.Tensor')

N_CHANNELS, SIZE, _ = IMAGE_SHAPE
# Of each kind with a strength, the numbers that it takes, and the greatest of them; at 0 it changes nothing.
STRENGTHS = {'shift': (int, SIZE // 2), 'rotate': (float, 180), 'zoom': (float, 0.9), 'jitter': (float, 1),
             'cutout': (int, SIZE), 'mixup': (float, 1), 'cutmix': (float, 1)}  # fmt: skip
KINDS = ('flip', *STRENGTHS)
NUMPY_KINDS = ('flip', 'shift', 'jitter', 'cutout', 'mixup')  # those that do without PyTorch
VIEWS = (1, 2, 6)
REFLECTED = np.pad(np.arange(SIZE), SIZE, mode='symmetric')  # rows, or columns, from −32 to 63: which one stands there
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # the luminance of red, green and blue, as ITU-R BT.601 weighs them


# The flag


def strengths(words: list[str], kinds: Collection[str] = KINDS) -> dict[str, float]:
    """The strength of each kind that the words ask for, in the order of KINDS; 1 for a flip, and none where it is 0.

    Raises:
        argparse.ArgumentTypeError: a word is none of `kinds`, its number is missing, wrong or out of range, or it is
            there twice.
    """
    found: dict[str, float] = {}
    for word in [] if words == ['none'] else words:
        kind, equals, text = word.partition('=')
        if kind not in kinds or (kind in STRENGTHS) != bool(equals):
            raise argparse.ArgumentTypeError(f'must be some of {_spelling(kinds)}, or none alone, got {word!r}')
        if kind in found:
            raise argparse.ArgumentTypeError(f'must not have {kind} twice, got {" ".join(words)!r}')
        number, most = STRENGTHS.get(kind, (int, 1))
        try:
            found[kind] = number(text) if equals else 1
        except ValueError:
            found[kind] = -1
        if not 0 <= found[kind] <= most:
            what = 'a whole number' if number is int else 'a number'
            raise argparse.ArgumentTypeError(f'{kind} must be {what} from 0 to {most}, got {word!r}')
    if found.get('mixup', 0) + found.get('cutmix', 0) > 1:
        raise argparse.ArgumentTypeError(f'mixup and cutmix must be at most 1 together, got {" ".join(words)!r}')
    return {kind: found[kind] for kind in KINDS if found.get(kind)}


def _spelling(kinds: Collection[str]) -> str:
    return ', '.join(f'{kind}=N' if kind in STRENGTHS else kind for kind in kinds)


def add_augment_flag(parser: OneLineParser, kinds: Collection[str] = KINDS, default: Collection[str] = ()) -> None:
    """Adds `--augment`: words of these kinds, such as ['flip', 'shift=4'], in one order and spelling however given."""
    parser.add_argument(
        '--augment', action=_AugmentAction, kinds=kinds, nargs='+', default=list(default), metavar='KIND[=N]',
        help=f'change the images that are trained on: {_spelling(kinds)}; or none',
    )  # fmt: skip


class _AugmentAction(argparse.Action):
    """Takes all the words together, which a type is given one at a time."""

    def __init__(self, *args: object, kinds: Collection[str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.kinds = kinds

    def __call__(
        self, parser: OneLineParser, namespace: argparse.Namespace, words: list[str], option: str | None = None
    ) -> None:
        try:
            found = strengths(words, self.kinds)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        told = [f'{kind}={strength:.15g}' if kind in STRENGTHS else kind for kind, strength in found.items()]
        setattr(namespace, self.dest, told)


# What happens


@dataclasses.dataclass(frozen=True)
class Draws:
    """What befalls each of n images, in this order; None where nothing of the kind does.

    `draws[which]` has those of the images that a slice or an index array picks: a process takes its share.
    """

    mirrored: np.ndarray | None = None  # (n,) bool, whether left and right change places
    moved: np.ndarray | None = None  # (n, 2) int, pixels down and to the right
    turned: np.ndarray | None = None  # (n,) float32, degrees, counter-clockwise about the centre
    zoomed: np.ndarray | None = None  # (n,) float32, above 1 larger, about the centre
    recoloured: np.ndarray | None = None  # (n, 3) float32, what brightness, contrast and saturation are multiplied by
    cut: np.ndarray | None = None  # (n, 2) int, row and column of the upper left corner of the square that is cut out

    def __getitem__(self, which: slice | np.ndarray) -> 'Draws':
        return Draws(**{name: drawn[which] for name, drawn in vars(self).items() if drawn is not None})


class Augmentation:
    """Draws what befalls the images of a batch, and does it.

    flip mirrors half the examples, drawn once, in the even epochs and the other half in the odd ones, so that two
    epochs show each example both ways. shift=N moves by −N to N pixels down and to the right, each. rotate=N turns by
    up to N degrees either way, and zoom=N enlarges by a factor from 1 − N to 1 + N. jitter=N multiplies brightness,
    contrast and saturation by factors from 1 − N to 1 + N. cutout=N puts the mean image in place of an N × N square,
    which lies anywhere inside, so that it is as large in every image.

    In a share of the batches, each image is mixed with another one of its batch, and its label with the other's:
    mixup=N, all pixels (Zhang et al., 2018); cutmix=N, those of a rectangle (Yun et al., 2019). See `mix`.

    Args:
        words: as the flag gives them.
        n_examples: the number of training examples.
        seed: of the generator, whose numbers are others than those of `RandomState(seed)`.
    """

    def __init__(self, words: list[str], n_examples: int, seed: int) -> None:
        self.strengths = strengths(words)
        self.rng = np.random.RandomState([seed, 0])
        self.mirrored_first = self.rng.permutation(n_examples) < n_examples // 2

    def draw(self, indices: np.ndarray, epoch: int) -> Draws:
        """What befalls the examples `indices` (n,) of a batch in this epoch, counted from 0.

        The draws follow those before. Under several processes each draws for the whole batch, so that all keep step.
        """
        n = len(indices)

        def drawn(kind: str, draw: Callable[[float], np.ndarray]) -> np.ndarray | None:
            return draw(self.strengths[kind]) if kind in self.strengths else None

        def uniform(least: float, most: float, *shape: int) -> np.ndarray:
            return self.rng.uniform(least, most, shape).astype(np.float32)

        return Draws(
            mirrored=drawn('flip', lambda _: self.mirrored_first[indices] ^ (epoch % 2 == 1)),
            moved=drawn('shift', lambda most: self.rng.randint(-most, most + 1, (n, 2))),
            turned=drawn('rotate', lambda most: uniform(-most, most, n)),
            zoomed=drawn('zoom', lambda most: uniform(1 - most, 1 + most, n)),
            recoloured=drawn('jitter', lambda most: uniform(1 - most, 1 + most, n, 3)),
            cut=drawn('cutout', lambda size: self.rng.randint(SIZE - size + 1, size=(n, 2))),
        )

    def apply(self, pixels: Array, draws: Draws, mean_image: Array, std_image: Array | None = None) -> Array:
        """Changes images as drawn, and centres them as `cifar10_utils.centred` does.

        Args:
            pixels: (n, 3072) uint8, an array or a tensor, left as it is.
            draws: of these n images.
            mean_image, std_image: (3072,) float32, of the same library and device.

        Returns:
            The images (n, 3, 32, 32) float32, of the same library and device.
        """
        images = gather(pixels, draws.mirrored, draws.moved)
        images = images.astype(np.float32) if isinstance(images, np.ndarray) else images.float()
        if draws.turned is not None or draws.zoomed is not None:
            images = warp(images, draws.turned, draws.zoomed)
        if draws.recoloured is not None:
            images = recolour(images, draws.recoloured)
        images -= mean_image
        if std_image is not None:
            images /= std_image
        images = images.reshape(len(images), *IMAGE_SHAPE)
        if draws.cut is not None:
            cut_out(images, draws.cut, self.strengths['cutout'])
        return images

    def mix(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Mixes images (n, 3, size, size), each with the one before it in the batch, and their labels.

        Tensors by mixup or cutmix, as drawn from PyTorch's default generator; arrays by mixup, from this one's.

        Args:
            labels: tensors (n,); arrays (n, n_classes), one-hot.

        Returns:
            The images, and the labels; (n, n_classes), the share of each class, where they are mixed.
        """
        if not self.mixes:
            return images, labels
        if not isinstance(images, np.ndarray):
            return self.mixing(images, labels)
        if self.rng.uniform() >= self.strengths['mixup']:
            return images, labels
        own = self.rng.uniform()
        return tuple(own * array + (1 - own) * np.roll(array, 1, axis=0) for array in (images, labels))

    def check_batch(self, batch_size: int, n_ranks: int = 1) -> None:
        """Raises a FlagError if some process's share of a batch is one image, which has none to be mixed with."""
        if self.mixes and batch_size < 2 * n_ranks:
            raise FlagError(
                f'mixup and cutmix need at least 2 images in each of {n_ranks} process(es), '
                f'got a --batch_size of {batch_size}'
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in any of the batches."""
        return not {'mixup', 'cutmix'}.isdisjoint(self.strengths)

    @functools.cached_property
    def mixing(self) -> Callable[..., tuple['torch.Tensor', 'torch.Tensor']]:
        """torchvision's: in each batch one of the two, or none."""
        from torchvision.transforms import v2

        mixup, cutmix = (self.strengths.get(kind, 0) for kind in ('mixup', 'cutmix'))
        either = [v2.MixUp(num_classes=N_CLASSES), v2.CutMix(num_classes=N_CLASSES), v2.Identity()]
        return v2.RandomChoice(either, p=[mixup, cutmix, 1 - (mixup + cutmix)])

    def state(self) -> dict[str, object]:
        """All that the draws to come depend on, as arrays and numbers; see `restore`."""
        return {'mirrored_first': self.mirrored_first, **generator_state(self.rng)}

    def restore(self, state: dict[str, object]) -> None:
        """Goes back to a `state`, so that the same draws follow."""
        self.mirrored_first = state['mirrored_first']
        restore_generator(self.rng, state)


# How it happens: images are (n, 3072), what was drawn for them is NumPy's


def beside(drawn: np.ndarray, images: Array) -> Array:
    """What was drawn, of the library and on the device of the images."""
    if isinstance(images, np.ndarray):
        return drawn
    import torch

    return torch.from_numpy(drawn).to(images.device)


def gather(pixels: Array, mirrored: np.ndarray | None, moved: np.ndarray | None) -> Array:
    """Images mirrored and then moved, as `Draws` says, by up to 32 pixels; of any type, which they keep."""
    if mirrored is None and moved is None:
        return pixels
    n = len(pixels)
    # Of each row and column (n, 32) of the new images, which one of the old images stands there.
    down, right = np.zeros((2, n, 1), int) if moved is None else moved.T[:, :, None]
    rows, columns = (REFLECTED[SIZE + np.arange(SIZE) - by] for by in (down, right))
    if mirrored is not None:
        columns = np.where(mirrored[:, None], SIZE - 1 - columns, columns)
    if not isinstance(pixels, np.ndarray):
        places = SIZE * beside(rows, pixels)[:, :, None] + beside(columns, pixels)[:, None]
        places = places.view(n, 1, SIZE**2).expand(n, N_CHANNELS, SIZE**2)
        return pixels.reshape(places.shape).gather(2, places).view(n, N_PIXELS)
    # Whole rows of all images at once, then the columns of one image after the other: faster than all in one.
    first_rows = SIZE * np.arange(N_CHANNELS * n).reshape(n, N_CHANNELS, 1)
    by_rows = pixels.reshape(-1, SIZE).take(first_rows + rows[:, None], axis=0)
    out = np.empty_like(by_rows)
    for image, picked, into in zip(by_rows, columns, out, strict=True):
        image.take(picked, axis=2, out=into, mode='clip')  # with the default mode, `out` would be written by a copy
    return out.reshape(n, N_PIXELS)


def warp(images: Array, turned: np.ndarray | None, zoomed: np.ndarray | None) -> Array:
    """Images (float32) turned and zoomed about their centres, as `Draws` says, by bilinear interpolation."""
    import torch
    from torch.nn.functional import grid_sample

    n = len(images)
    tensor = torch.as_tensor(images).reshape(n, *IMAGE_SHAPE)
    angle = np.zeros(n, np.float32) if turned is None else np.radians(turned)
    zoomed = np.ones(n, np.float32) if zoomed is None else zoomed
    cos, sin = np.cos(angle) / zoomed, np.sin(angle) / zoomed
    # Where each pixel comes from, x and y from −1 to 1 between the image's edges. These sums are exact where nothing is
    # turned or zoomed, since 32 is a power of two. `affine_grid` gives the same grid, but takes longer than the rest.
    centres = (2 * torch.arange(SIZE, device=tensor.device) + 1) / SIZE - 1
    across = beside(np.stack([cos, sin]), tensor)[:, :, None, None] * centres
    down = beside(np.stack([-sin, cos]), tensor)[:, :, None, None] * centres[:, None]
    grid = (across + down).permute(1, 2, 3, 0)
    warped = grid_sample(tensor, grid, padding_mode='reflection', align_corners=False).reshape(n, N_PIXELS)
    return warped.numpy() if isinstance(images, np.ndarray) else warped


def recolour(images: Array, factors: np.ndarray) -> Array:
    """Images (float32, 0 to 255) in other brightness, contrast and saturation, as `Draws` says.

    Brightness multiplies all; contrast the differences from the image's mean grey; saturation those from the pixel's
    own grey. They commute, so that all three together are one matrix on the colours of a pixel and one constant.
    """
    n = len(images)
    brightness, contrast, saturation = factors.T[:, :, None, None]
    matrices = brightness * contrast * (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * GREY)
    colours = images.reshape(n, N_CHANNELS, SIZE**2)
    mean_grey = (colours.mean(-1) * beside(GREY, images)).sum(-1)[:, None, None]
    out = beside(matrices, images) @ colours
    out += beside(brightness * (1 - contrast), images) * mean_grey
    return out.clip(0, 255).reshape(n, N_PIXELS)


def cut_out(images: Array, corners: np.ndarray, size: int) -> None:
    """Sets a square of centred images (n, 3, 32, 32) to zero in place, as `Draws` says."""
    beyond = np.arange(SIZE) - corners.T[:, :, None]  # rows and columns past the corner: (2, n, 32)
    rows, columns = (beyond >= 0) & (beyond < size)
    kept = ~(rows[:, :, None] & columns[:, None, :])
    images *= beside(kept, images)[:, None]


# At evaluation


def views(pixels: Array, n_views: int) -> Iterator[tuple[Array, float]]:
    """Views of images, and weights that add up to 1, by which an evaluation averages what a network says of them.

    2: each image and its mirror image. 6: also both of them moved by a pixel up and to the left, and by one down and
    to the right, at half the weight.

    Args:
        pixels: (n, 3072), an array or a tensor.
        n_views: one of VIEWS.

    Raises:
        ValueError: it is none of them.
    """
    if n_views not in VIEWS:
        raise ValueError(f'n_views must be one of {VIEWS}, got {n_views}')
    n = len(pixels)
    for step in (0, -1, 1) if n_views == 6 else (0,):
        for mirrored in (False, True)[:n_views]:
            view = gather(pixels, np.full(n, True) if mirrored else None, np.full((n, 2), step) if step else None)
            yield view, (0.5 if step else 1) / min(n_views, 4)  # 1 = 2 · 1/2 = 2 · 1/4 + 4 · 1/8


# The figure


def build_parser() -> OneLineParser:
    """The flags of the command that draws a batch."""
    parser = OneLineParser(description='Draws a batch of images before and after augmentation.')
    add_augment_flag(parser, default=['flip', 'shift=4', 'rotate=10', 'zoom=0.15', 'jitter=0.2', 'cutout=8'])
    add_data_flags(parser)
    add_seed_flag(parser)
    parser.add_argument('--output_dir', type=file_path, default='.', help='where figures/ goes')
    return parser


def draw_figure(flags: argparse.Namespace, n_images: int = 16, n_epochs: int = 5) -> int:
    """Draws the first training images as they are and as some epochs would show them; returns the exit status."""
    # Only this command needs them, which stand above all else in this file.
    from experiment import DATASET_TITLES, check_output, output_paths, record_name, say
    from plots import new_figure, save_figure

    data = get_cifar10(
        flags.data_dir, validation_size=flags.validation_size, dataset=flags.dataset, standardise=flags.standardise
    )['train']
    n_images = min(n_images, data.num_examples)
    *_, path = output_paths(flags.output_dir, record_name('augmentation', data.name))
    check_output(path, flags.output_dir)
    augmentation = Augmentation(flags.augment, data.num_examples, flags.seed)
    indices = data.next_indices(n_images)
    pixels = data.pixels[indices]
    shown = {'before': pixels}
    for epoch in range(n_epochs):
        images = augmentation.apply(pixels, augmentation.draw(indices, epoch), data.mean_image, data.std_image)
        if augmentation.mixes:
            images = mixed(augmentation, images, data.classes[indices], flags.seed + epoch)
        images = images.reshape(pixels.shape) * (1 if data.std_image is None else data.std_image) + data.mean_image
        shown[f'epoch {epoch}'] = images.round().clip(0, 255).astype(np.uint8)

    gap = 4  # white pixels after each image
    tiles = np.full((len(shown), n_images, N_CHANNELS, SIZE + gap, SIZE + gap), 255, np.uint8)
    tiles[..., :SIZE, :SIZE] = np.stack(list(shown.values())).reshape(len(shown), n_images, *IMAGE_SHAPE)
    picture = tiles.transpose(0, 3, 1, 4, 2).reshape(len(shown) * (SIZE + gap), n_images * (SIZE + gap), N_CHANNELS)
    figure, (panel,) = new_figure(
        f'{DATASET_TITLES[data.name]}: --augment {" ".join(flags.augment) or "none"}', n_panels=1, size=(10, 4.2)
    )
    panel.imshow(picture[:-gap, :-gap], interpolation='nearest')
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.set_xticks([])
    panel.set_yticks([SIZE / 2 + (SIZE + gap) * row for row in range(len(shown))], list(shown), fontsize=12)
    panel.tick_params(length=0)
    save_figure(figure, path)
    say(f'wrote {path}')
    return 0


def mixed(augmentation: Augmentation, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The images (n, 3, 32, 32) of `Augmentation.mix`, as arrays, of this seed."""
    import torch

    torch.manual_seed(seed)
    return augmentation.mix(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))[0].numpy()


if __name__ == '__main__':
    from script import run_script

    sys.exit(run_script(build_parser(), draw_figure))
