"""What `evaluate.py` draws of a network, beside its confusion matrix: weights, mistakes, calibration, pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plots import PALETTE, new_figure, save_figure

MAX_FILTERS = 144
CELL = 32  # pixels that a unit's weights take, at least


def plot_weights(weights: np.ndarray, title: str, path: Path) -> None:
    """Draws the first layer's weights, a picture for each unit, into the PNG file `path`.

    Grey is a weight of zero, and a unit's largest weight is as bright or dark as can be. Of many units those with the
    largest weights are shown.

    Args:
        weights: (n_units, 3, height, width).
        title: of the figure.
        path: the file.
    """
    norms = np.sqrt((weights.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    strongest = np.argsort(-norms, kind='stable')[:MAX_FILTERS]
    figure, (panel,) = new_figure(title, 1, size=(8, 8.4))
    panel.imshow(mosaic(weights[np.sort(strongest)]), interpolation='nearest')
    panel.axis('off')
    few = len(weights) > MAX_FILTERS
    which = f'the {MAX_FILTERS} of {len(weights)} units with the largest weights' if few else f'{len(weights)} units'
    panel.set_title(f'{which}; each by its own scale, grey is zero', fontsize=10)
    save_figure(figure, path)


def mosaic(weights: np.ndarray) -> np.ndarray:
    """Pictures of weights (n, 3, height, width), row after row, as one of colours from 0 to 1, (rows, columns, 3)."""
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    colours = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)
    enlarge = max(1, CELL // weights.shape[2])
    colours = colours.repeat(enlarge, axis=2).repeat(enlarge, axis=3)
    colours = np.pad(colours, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=1)
    n_columns = math.ceil(math.sqrt(len(colours)))
    n_rows = math.ceil(len(colours) / n_columns)
    cells = np.ones((n_rows * n_columns, *colours.shape[1:]))
    cells[: len(colours)] = colours
    _, n_channels, height, width = cells.shape
    grid = cells.reshape(n_rows, n_columns, n_channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(n_rows * height, n_columns * width, n_channels)


def plot_images(images: np.ndarray, captions: Sequence[str], title: str, path: Path, n_columns: int = 6) -> None:
    """Draws images (n, 3, 32, 32) uint8, each under its caption, into the PNG file `path`."""
    n_columns = min(n_columns, max(len(images), 2))
    n_rows = max(math.ceil(len(images) / n_columns), 1)
    lines = max((caption.count('\n') + 1 for caption in captions), default=1)
    size = (1.8 * n_columns + 0.4, (1.55 + 0.19 * lines) * n_rows + 0.8)
    figure, panels = new_figure(title, n_rows * n_columns, n_rows, size)
    for panel in panels:
        panel.axis('off')
    for panel, image, caption in zip(panels, images, captions, strict=False):
        panel.imshow(image.transpose(1, 2, 0), interpolation='nearest')
        panel.set_title(caption, fontsize=9, parse_math=False)
    if not len(images):
        panels[0].text(0, 0.5, 'none', fontsize=12)
    save_figure(figure, path)


def plot_calibration(calibration: dict[str, float | np.ndarray], title: str, path: Path) -> None:
    """Draws what `metrics.calibration` found into the PNG file `path`: accuracy and examples over confidence."""
    examples, confidence, accuracy = (calibration[key] for key in ('examples', 'confidence', 'accuracy'))
    n_bins, there = len(examples), examples > 0
    left = np.arange(n_bins) / n_bins
    figure, (panel, counts) = new_figure(f'{title} (error {calibration["expected_calibration_error"]:.4f})')
    panel.bar(left[there], accuracy[there], width=1 / n_bins, align='edge', color=PALETTE[5], edgecolor='white',
              label='accuracy')  # fmt: skip
    panel.plot(confidence[there], confidence[there], 'o', color=PALETTE[1], label='confidence')
    panel.plot([0, 1], [0, 1], '--', color='black', linewidth=1, label='as sure as right')
    panel.set(xlabel='confidence', ylabel='accuracy', xlim=(0, 1), ylim=(0, 1))
    panel.legend(loc='upper left')
    counts.bar(left, examples / max(examples.sum(), 1), width=1 / n_bins, align='edge', color=PALETTE[5],
               edgecolor='white')  # fmt: skip
    counts.axvline(examples @ confidence / max(examples.sum(), 1), color=PALETTE[1], label='mean confidence')
    counts.axvline(examples @ accuracy / max(examples.sum(), 1), color='black', linestyle='--', label='accuracy')
    counts.set(xlabel='confidence', ylabel='share of the images', xlim=(0, 1))
    counts.legend()
    save_figure(figure, path)
