"""The figure of a run of everything: each pair beside its limit, in groups; and the step's time over its size."""

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.ratios import Ratio, two_digits
from plots import PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACHED, MISSED, OVER_WIDTH, OVER_BATCH = PALETTE[:4]
LEAST = 1 / 8  # of its limit: what is less still stands at the panel's edge, as an arrow
TITLES = {
    'step': 'A NumPy training step', 'run': 'A whole run, default flags', 'trainer': "The PyTorch trainers' loop",
    'normalisation': 'Normalisation by hand', 'load': 'Reading CIFAR-10', 'augmentation': 'Augmentation',
    'convnet': 'Training the ConvNet', 'evaluation': 'Evaluation', 'grid': 'The search',
}  # fmt: skip


def plot(ratios: list[Ratio], path: Path) -> None:
    """Draws the pairs that have a limit, and the step's time over its size."""
    figure, (pairs, sizes) = new_figure('Time measured side by side, over the time allowed', size=(13, 9))
    plot_pairs(pairs, [ratio for ratio in ratios if ratio.at_most is not None])
    plot_sizes(sizes, [ratio for ratio in ratios if ratio.benchmark == 'scale'])
    save_figure(figure, path)


def plot_pairs(axes: 'Axes', ratios: list[Ratio]) -> None:
    """A line for each pair, in groups: a point for each case, as a multiple of its limit, and the worst one's ratio."""
    groups: dict[str, dict[str, list[Ratio]]] = defaultdict(lambda: defaultdict(list))
    for ratio in ratios:
        kept = ', bytes kept' if 'bytes' in ratio.case else ''
        groups[ratio.benchmark][f'{ratio.ours} / {ratio.theirs}{kept}'].append(ratio)
    labels: list[tuple[float, str]] = []
    y = 0.0
    for name, lines in groups.items():
        axes.text(0.02, y, TITLES.get(name, name), transform=axes.get_yaxis_transform(), weight='bold', va='center')
        for label, cases in lines.items():
            y += 1
            labels.append((y, label))
            for ratio in cases:
                colour = REACHED if ratio.ratio <= ratio.at_most else MISSED
                share = ratio.ratio / ratio.at_most
                marker = 'o' if share >= LEAST else '<'
                axes.plot(max(share, LEAST), y, marker, color=colour, markersize=6, alpha=0.7)
            worst = max(cases, key=lambda ratio: ratio.ratio / ratio.at_most)
            beside = f'{two_digits(worst.ratio)} of {worst.at_most:.3g}'
            axes.text(1.01, y, beside, transform=axes.get_yaxis_transform(), va='center', fontsize=9)
        y += 1.5
    axes.axvline(1, color='black', linewidth=1)
    axes.set_xscale('log', base=2)
    largest = max(ratio.ratio / ratio.at_most for ratio in ratios)
    ticks = [2.0**k for k in range(math.floor(math.log2(LEAST)), math.ceil(math.log2(max(largest, 1))) + 1)]
    axes.set_xticks(ticks, [f'{tick:g}' if tick >= 1 else f'1/{1 / tick:g}' for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels])
    axes.set_ylim(y - 0.5, -1)
    axes.set(xlabel='ratio over its limit: left of the black line it is kept, vermilion is a miss\n'
                    'beside the panel: the worst ratio of the line, and its limit')  # fmt: skip


def plot_sizes(axes: 'Axes', ratios: list[Ratio]) -> None:
    """The seconds of a step and of its products over the width and over the batch."""
    for colour, kind, fixed in ((OVER_WIDTH, 'width', 'batch 256'), (OVER_BATCH, 'batch', 'width 512')):
        points = sorted((int(words[words.index(kind) + 1]), ratio) for ratio in ratios
                        if kind in (words := ratio.case.split()) and fixed in ratio.case)  # fmt: skip
        values, measured = [value for value, _ in points], [ratio for _, ratio in points]
        axes.plot(values, [r.measured for r in measured], color=colour, marker='.', label=f'step over {kind}, {fixed}')
        axes.plot(values, [r.measured / r.ratio for r in measured], color=colour, linestyle='--', label='its products')
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set(xlabel='width or batch size', ylabel='seconds', title='A NumPy step over its size')
    axes.legend(fontsize=9)
