"""The look of all figures, and the figures of a run's curves and of a confusion matrix.

Matplotlib is imported only to draw.
"""

import contextlib
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart: blue, vermilion, green, purple, orange, sky.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
COLOURS = dict(zip(('train', 'test', 'val', 'test_views', 'val_views'), PALETTE, strict=False))
LABELS = {'train': 'training (mini-batch)', 'test': 'test', 'val': 'validation', 'test_views': 'test, by views',
          'val_views': 'validation, by views'}  # fmt: skip


def new_figure(
    title: str, n_panels: int = 2, n_rows: int = 1, size: tuple[float, float] = (10, 4)
) -> tuple['Figure', list['Axes']]:
    """An empty figure in the look that all figures have, of `size` inches, and its panels, row after row."""
    # Without pyplot, which would look for a display and takes longer to import. A backend that the environment names is
    # of no use here, and may be one that this machine has not; and no style of the user's changes the look, which is
    # theirs again once the figure is saved.
    with environment(MPLBACKEND='agg'):
        import matplotlib
        from matplotlib.figure import Figure
    look = contextlib.ExitStack()
    look.enter_context(matplotlib.rc_context())
    matplotlib.rcdefaults()

    figure = Figure(figsize=size, layout='constrained')
    figure.look = look
    figure.suptitle('\n'.join(textwrap.wrap(title, width=int(10 * size[0]))), parse_math=False)
    panels = list(figure.subplots(n_rows, n_panels // n_rows, squeeze=False).flat)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Inside, these environment variables have these values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def save_figure(figure: 'Figure', path: Path) -> None:
    """Writes a figure of `new_figure` into the PNG file `path`."""
    with figure.look, atomic_file(path) as file:
        figure.savefig(file, format='png', dpi=120)


def plot_curves(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Draws accuracy and loss over the steps, a line per data set, side by side, into the PNG file `path`."""
    figure, panels = new_figure(title)
    steps = [row['step'] for row in rows]
    for panel, key, label in zip(panels, ('acc', 'loss'), ('accuracy', 'loss'), strict=True):
        for part, colour in COLOURS.items():
            if f'{part}_{key}' in rows[0]:
                panel.plot(steps, [row[f'{part}_{key}'] for row in rows], color=colour, label=LABELS[part], marker='.')
        shown = [row[f'{part}_{key}'] for row in rows for part in COLOURS if f'{part}_{key}' in row]
        shown = [value for value in shown if math.isfinite(value) and value > 0]
        if key == 'loss' and shown and max(shown) > 10 * min(shown):
            panel.set_yscale('log')  # or the first steps would flatten all that follows
        panel.set(xlabel='step', ylabel=label)
        panel.legend()
    save_figure(figure, path)


def plot_confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Draws a confusion matrix into the PNG file `path`: in each cell the count, and its share of its row.

    Args:
        matrix: (n_classes, n_classes), a row for each true class.
        classes: their names.
        title: of the figure.
        path: the file.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2 + 0.62 * len(classes)
    figure, (panel,) = new_figure(title, 1, size=(side, side))
    panel.grid(False)
    darkness = np.sqrt(shares)  # which shows the small shares of mistakes, too
    panel.imshow(darkness, cmap='Blues', vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        panel.text(j, i, f'{matrix[i, j]}\n{share:.1%}', ha='center', va='center', fontsize=9,
                   color='white' if darkness[i, j] > 0.6 else 'black')  # fmt: skip
    panel.set_xticks(range(len(classes)), classes, rotation=45, ha='right', rotation_mode='anchor')
    panel.set_yticks(range(len(classes)), classes)
    panel.set(xlabel='predicted class', ylabel='true class')
    save_figure(figure, path)
