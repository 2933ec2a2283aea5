"""The views of images that an evaluation may average over."""

from collections.abc import Iterator

import numpy as np

from cifar10_utils import IMAGE_SHAPE, N_PIXELS

VIEWS = (1, 2, 6)


def views(pixels: np.ndarray, n_views: int) -> Iterator[tuple[np.ndarray, float]]:
    """Views of images, and weights that add up to 1, by which an evaluation averages what a network says of them.

    2: each image and its mirror image. 6: also both of them moved by a pixel up and to the left, and by one down and
    to the right, at half the weight.

    Args:
        pixels: (n, 3072).
        n_views: one of VIEWS.

    Raises:
        ValueError: it is none of them.
    """
    if n_views not in VIEWS:
        raise ValueError(f'n_views must be one of {VIEWS}, got {n_views}')
    padded = np.pad(pixels.reshape(-1, *IMAGE_SHAPE), ((0, 0), (0, 0), (1, 1), (1, 1)), mode='edge')
    for step in (0, -1, 1) if n_views == 6 else (0,):
        for mirrored in (False, True)[:n_views]:
            # Mirrored first, and then moved, as all images are that are changed at random.
            images = padded[..., ::-1] if mirrored else padded
            view = images[:, :, 1 - step : 33 - step, 1 - step : 33 - step]
            yield view.reshape(-1, N_PIXELS), (0.5 if step else 1) / min(n_views, 4)
