"""A user's own picture, of any size and kind, as the networks see it: 32 × 32 pixels of three bytes.

    pixels = read_picture('cat.jpg')  # (3, 32, 32) uint8

It is turned upright, cropped to the square in its middle, resized with every pixel of it weighing in, and laid on white
where it is transparent. Pillow, which Matplotlib needs, too, reads it, and is imported only then.
"""

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifar10_files import one_line
from cifar10_utils import IMAGE_SHAPE
from files import regular_path

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 120_000_000  # of a picture, which then take 2 GB at most: more than cameras give


class PictureError(ValueError):
    """A file cannot be used as a picture; the message is one line."""


def read_picture(path: str | Path) -> np.ndarray:
    """The picture in a file, an animation's first frame, (3, 32, 32) uint8.

    Raises:
        PictureError: the file cannot be read, is no picture, or is one that would take too much memory.
    """
    from PIL import Image

    Image.init()
    formats = [name for name in Image.OPEN if name != 'EPS']  # which is a program, and run by another one
    try:
        with (
            warnings.catch_warnings(action='ignore'),  # Pillow comments on what is odd and on what is large
            open(regular_path(path), 'rb') as file,
            Image.open(file, formats=formats) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(
                    f'{path} is too large: {image.width} × {image.height} pixels, at most {MAX_PIXELS:,}'
                )
            return _as_seen(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:  # beyond a limit of Pillow's own, which is higher
        raise PictureError(f'{path} is too large: more than {MAX_PIXELS:,} pixels') from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f'{path} is no picture of a kind that Pillow reads') from error
    except Exception as error:  # of any kind: it is the file that is at fault
        if isinstance(error, OSError) and error.strerror:
            raise PictureError(f'cannot read {path}: {error.strerror}') from error
        raise PictureError(f'{path} cannot be read as a picture: {one_line(error)}') from error


def _as_seen(image: 'Image') -> np.ndarray:
    from PIL import Image, ImageOps

    image.load()
    with contextlib.suppress(Exception):  # a camera's notes may be damaged where its picture is not
        image = ImageOps.exif_transpose(image)
    image = _shades_of_a_byte(image).convert('RGBA')
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    image = image.resize(IMAGE_SHAPE[1:], Image.Resampling.LANCZOS, box=square)
    white = Image.new('RGBA', image.size, 'white')
    return np.asarray(Image.alpha_composite(white, image).convert('RGB')).transpose(2, 0, 1)


def _shades_of_a_byte(image: 'Image') -> 'Image':
    """The image or, where its shades have more than 8 bits, at which Pillow would cut them off, one of 0 to 255."""
    from PIL import Image

    if image.mode not in ('I', 'F') and not image.mode.startswith('I;16'):
        return image
    shades = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
    whites = (1, 255, 65535) if image.mode == 'F' else (65535,)  # of which a file with floats does not tell its own
    white = next((white for white in whites if shades.max() <= white), shades.max())
    return Image.fromarray((shades * (255 / white)).round().astype(np.uint8))
