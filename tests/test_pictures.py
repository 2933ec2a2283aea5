"""Pictures of every kind that a user may have, as the networks see them, and files that are none."""

import io
import struct
import unittest
import warnings
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import pictures
from pictures import PictureError, read_picture
from tests.helpers import temporary_directory

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(height: int, width: int, n_channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(256, size=(height, width, n_channels)).astype(np.uint8)


def halves(upper: tuple[int, ...], lower: tuple[int, ...], mode: str = 'RGB') -> Image.Image:
    """An image of 64 × 64, one colour above another."""
    image = Image.new(mode, (64, 64), upper)
    image.paste(lower, (0, 32, 64, 64))
    return image


class PictureTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(warnings.catch_warnings(action='error'))
        self.directory = Path(self.enterContext(temporary_directory()))

    def seen(self, image: Image.Image, suffix: str = '.png', **kwargs: object) -> np.ndarray:
        path = self.directory / f'picture{suffix}'
        image.save(path, **kwargs)
        return read_picture(path)

    def assert_colours(self, seen: np.ndarray, corners: dict[tuple[int, int], tuple[int, ...]], delta: int = 3) -> None:
        self.assertEqual((seen.shape, seen.dtype), ((3, 32, 32), np.uint8))
        for (row, column), colour in corners.items():
            np.testing.assert_allclose(seen[:, row, column].astype(int), colour, atol=delta)

    def test_an_image_of_32_pixels_is_seen_as_it_is(self) -> None:
        pixels = noise(32, 32)
        np.testing.assert_array_equal(self.seen(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))

    def test_the_middle_is_cropped_to_a_square(self) -> None:
        pixels = noise(32, 32)
        for wide, square in (((32, 45), np.s_[:, 6:38]), ((47, 32), np.s_[7:39, :])):
            image = noise(*wide)
            image[square] = pixels
            np.testing.assert_array_equal(self.seen(Image.fromarray(image)), pixels.transpose(2, 0, 1))

    def test_every_pixel_weighs_in_when_it_is_made_smaller(self) -> None:
        stripes = np.zeros((256, 256), np.uint8)
        stripes[:, ::2] = 255
        self.assert_colours(self.seen(Image.fromarray(stripes)), {(16, 16): (127.5,) * 3, (3, 9): (127.5,) * 3}, 1)

    def test_small_ones_are_made_larger(self) -> None:
        self.assert_colours(self.seen(Image.new('RGB', (1, 1), RED)), {(0, 0): RED, (31, 31): RED})
        self.assert_colours(self.seen(Image.new('RGB', (3000, 1), RED)), {(0, 0): RED, (31, 31): RED})

    def test_modes(self) -> None:
        upper_lower = {(4, 16): RED, (27, 16): BLUE}
        image = halves(RED, BLUE)
        self.assert_colours(self.seen(image.quantize(4)), upper_lower)
        self.assert_colours(self.seen(image.convert('CMYK'), '.tif'), upper_lower)
        self.assert_colours(self.seen(image.convert('RGBA')), upper_lower)
        self.assert_colours(self.seen(image, '.jpg', quality=95), upper_lower)
        grey = {(4, 16): (200,) * 3, (27, 16): (40,) * 3}
        self.assert_colours(self.seen(halves(200, 40, 'L')), grey)
        self.assert_colours(self.seen(halves((200, 255), (40, 255), 'LA')), grey)
        self.assert_colours(self.seen(halves(255, 0, '1')), {(4, 16): WHITE, (27, 16): (0, 0, 0)})

    def test_shades_of_more_than_a_byte(self) -> None:
        grey = {(4, 16): (200,) * 3, (27, 16): (40,) * 3}
        shades = np.asarray(halves(200, 40, 'L')).astype(np.uint16)
        self.assert_colours(self.seen(Image.fromarray(shades * 257)), grey, 1)
        self.assert_colours(self.seen(Image.fromarray(shades * 257), '.tif'), grey, 1)
        self.assert_colours(self.seen(Image.fromarray(shades.astype(np.int32) * 257), '.tif'), grey, 1)
        for white in (1, 255, 65535):
            floats = shades.astype(np.float32) * (white / 255)
            floats[0] = white
            floats[1] = -1
            floats[2] = np.nan
            self.assert_colours(self.seen(Image.fromarray(floats), '.tif'), grey, 1)
        self.assert_colours(self.seen(Image.fromarray(shades * np.float32(0)), '.tif'), {(4, 16): (0, 0, 0)})
        (self.directory / 'rgb.png').write_bytes(png_of_16_bits(np.asarray(halves(RED, BLUE)).astype('>u2') * 257))
        self.assert_colours(read_picture(self.directory / 'rgb.png'), {(4, 16): RED, (27, 16): BLUE}, 1)

    def test_what_is_transparent_lies_on_white(self) -> None:
        clear, half = (0, 0, 0, 0), (0, 0, 255, 128)
        self.assert_colours(self.seen(halves(clear, half, 'RGBA')), {(4, 16): WHITE, (27, 16): (127, 127, 255)})
        self.assert_colours(self.seen(halves((0, 0), (0, 255), 'LA')), {(4, 16): WHITE, (27, 16): (0, 0, 0)})
        palette = halves(RED, BLUE).quantize(2)
        self.assert_colours(
            self.seen(palette, '.gif', transparency=palette.getpixel((0, 0))), {(4, 16): WHITE, (27, 16): BLUE}
        )
        keyed = self.seen(halves(RED, BLUE), transparency=RED)
        self.assert_colours(keyed, {(4, 16): WHITE, (27, 16): BLUE})
        # What colour a clear pixel would have is of no account, at edges either.
        striped = np.zeros((64, 64, 4), np.uint8)
        striped[:, ::2] = (*RED, 255)
        self.assert_colours(self.seen(Image.fromarray(striped)), {(16, 16): (255, 127, 127)})

    def test_the_camera_s_orientation_is_heeded(self) -> None:
        image = Image.new('RGB', (96, 64), GREEN)
        image.paste(RED, (0, 0, 96, 32))
        exif = Image.Exif()
        exif[0x0112] = 6  # the top of the scene is at the right
        self.assert_colours(self.seen(image, '.jpg', exif=exif, quality=95), {(16, 27): RED, (16, 4): GREEN}, 8)
        exif[0x0112] = 3
        self.assert_colours(self.seen(image, exif=exif), {(27, 16): RED, (4, 16): GREEN})
        with mock.patch('PIL.ImageOps.exif_transpose', side_effect=SyntaxError('not a TIFF file')):
            self.assert_colours(self.seen(image), {(4, 16): RED, (27, 16): GREEN})

    def test_the_first_frame_of_an_animation(self) -> None:
        for suffix in ('.gif', '.png', '.webp', '.tif'):
            later = [Image.new('RGB', (40, 40), colour) for colour in (BLUE, GREEN)]
            seen = self.seen(Image.new('RGB', (40, 40), RED), suffix, save_all=True, append_images=later)
            self.assert_colours(seen, {(0, 0): RED, (31, 31): RED}, 8)


class NoPictureTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(warnings.catch_warnings(action='error'))
        self.path = Path(self.enterContext(temporary_directory())) / 'picture.png'

    def refused(self, contents: bytes | None = None) -> str:
        if contents is not None:
            self.path.write_bytes(contents)
        with self.assertRaises(PictureError) as caught:
            read_picture(self.path)
        self.assertIn(str(self.path), str(caught.exception))
        self.assertNotIn('\n', str(caught.exception))
        return str(caught.exception)

    def test_what_is_none(self) -> None:
        self.assertIn('No such file', self.refused())
        program = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
        for contents in (b'', b'nonsense', b'\x89PNG\r\n\x1a\n', program):
            self.assertIn('is no picture', self.refused(contents))
        self.path.unlink()
        self.path.mkdir()
        self.assertIn('is a directory', self.refused())

    def test_damage_anywhere(self) -> None:
        """A picture may survive it; if it does not, one line says so."""
        rng = np.random.RandomState(0)
        for image_format in ('PNG', 'JPEG', 'GIF', 'TIFF'):
            stream = io.BytesIO()
            Image.fromarray(noise(40, 40)).save(stream, image_format)
            whole = stream.getvalue()
            self.refused(whole[:20])
            for _ in range(30):
                damaged = bytearray(whole[: rng.randint(len(whole))] if rng.rand() < 0.3 else whole)
                for _ in range(5):
                    if damaged:
                        damaged[rng.randint(len(damaged))] = rng.randint(256)
                self.path.write_bytes(damaged)
                try:
                    self.assertEqual(read_picture(self.path).shape, (3, 32, 32))
                except PictureError as error:
                    self.assertNotIn('\n', str(error))

    def test_what_is_made_to_exhaust_memory(self) -> None:
        for width, height in ((12_000, 10_001), (20_000, 20_000), (2**31 - 1, 2**31 - 1)):
            self.assertIn('too large', self.refused(png(struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'')))
        with mock.patch.object(pictures, 'MAX_PIXELS', 64 * 64):
            Image.new('L', (64, 64)).save(self.path)
            read_picture(self.path)
            Image.new('L', (64, 65)).save(self.path)
            self.assertIn('64 × 65 pixels, at most 4,096', self.refused())


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG file, whatever its parts say."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG file of colours (height, width, 3) big-endian uint16, which Pillow reads and does not write."""
    height, width, _ = pixels.shape
    return png(
        struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0), b''.join(b'\0' + row.tobytes() for row in pixels)
    )
