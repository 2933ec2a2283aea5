"""Batch files in the form of CIFAR-10's, which Python 2 wrote, with contents of one's own, right or wrong."""

import numpy as np


class Instructions(bytes):
    """What goes into a pickle as it is."""


def pickled(value: object) -> bytes:
    """A pickle with the instructions that CIFAR-10's have."""
    return b'\x80\x02' + _encoded(value) + b'.'


def array(pixels: np.ndarray, is_fortran: bool = False) -> Instructions:
    """What a pickle has where it stands for an array."""
    code = pixels.dtype.str[1:].encode()
    dtype = Instructions(
        b'cnumpy\ndtype\n' + _encoded((code, 0, 1)) + b'R' + _encoded((3, b'|', None, None, None, -1, -1, 0)) + b'b'
    )
    empty = (
        b'cnumpy.core.multiarray\n_reconstruct\n' + _encoded((Instructions(b'cnumpy\nndarray\n'), (0,), b'b')) + b'R'
    )
    return Instructions(empty + _encoded((1, pixels.shape, dtype, is_fortran, pixels.tobytes())) + b'b')


def contents(seed: int) -> dict[bytes, object]:
    """Random contents of a whole batch file."""
    rng = np.random.RandomState(seed)
    return {
        b'batch_label': b'training batch',
        b'labels': rng.randint(10, size=10_000).tolist(),
        b'data': rng.randint(0, 256, size=(10_000, 3072), dtype=np.uint8),
        b'filenames': [b'a.png', b'b.png'],
    }


def _encoded(value: object) -> bytes:
    match value:
        case Instructions():
            return value
        case None | False:
            return b'N' if value is None else b'\x89'
        case int():
            if 0 <= value < 256:
                return b'K' + value.to_bytes(1, 'little')
            if 0 <= value < 65536:
                return b'M' + value.to_bytes(2, 'little')
            return b'J' + value.to_bytes(4, 'little', signed=True)
        case bytes():
            if len(value) < 256:
                return b'U' + len(value).to_bytes(1, 'little') + value + b'q\x01'
            return b'T' + len(value).to_bytes(4, 'little') + value + b'r\x01\x00\x00\x00'
        case list():
            return b'](' + b''.join(map(_encoded, value)) + b'e'
        case tuple():
            return b'(' + b''.join(map(_encoded, value)) + b't'
        case dict():
            return b'}(' + b''.join(_encoded(key) + _encoded(item) for key, item in value.items()) + b'u'
        case np.ndarray():
            return array(value)
    raise TypeError(type(value))
