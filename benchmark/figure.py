"""The figure of a run of everything: each ratio with its spread and its target, and the step's time over its size."""

from pathlib import Path

from benchmark.ratios import Ratio
from plots import PALETTE, new_figure, save_figure


def plot(ratios: list[Ratio], path: Path) -> None:
    """Draws every ratio with its spread and what was to be reached, and the step's time over its size."""
    figure, (dots, curves) = new_figure('Measured side by side', size=(12, 9))
    shown = [ratio for ratio in ratios if not ratio.case.startswith('width')][::-1]
    for y, ratio in enumerate(shown):
        colour = PALETTE[0] if ratio.at_most is None or ratio.ratio <= ratio.at_most else PALETTE[1]
        dots.plot([ratio.low, ratio.high], [y, y], color=colour, linewidth=2)
        dots.plot(ratio.ratio, y, 'o', color=colour, markersize=5)
        if ratio.at_most is not None:
            dots.plot(ratio.at_most, y, '|', color='black', markersize=12)
    dots.axvline(1, color='black', linewidth=0.8)
    dots.set_xscale('log')
    dots.set_yticks(range(len(shown)), [f'{r.case}: {r.ours} / {r.theirs}' for r in shown], fontsize=7)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    dots.set_xticks(ticks, map(str, ticks))
    dots.minorticks_off()
    dots.set(xlabel="the first's time or bytes divided by the second's\n(bar: to be at most; vermilion: missed)")
    for colour, (kind, fixed) in zip(PALETTE, (('width', 'batch 256'), ('batch', 'width 512')), strict=False):
        points = sorted((int(words[words.index(kind) + 1]), ratio) for ratio in ratios if ratio.benchmark == 'scale'
                        and kind in (words := ratio.case.split()) and fixed in ratio.case)  # fmt: skip
        sizes, measured = [size for size, _ in points], [ratio for _, ratio in points]
        curves.plot(sizes, [r.measured for r in measured], color=colour, marker='.', label=f'step over {kind}, {fixed}')
        curves.plot(sizes, [r.measured / r.ratio for r in measured], color=colour, linestyle='--', label='its products')
    curves.set_xscale('log', base=2)
    curves.set_yscale('log')
    curves.set(xlabel='width or batch size', ylabel='seconds')
    curves.legend(fontsize=8)
    save_figure(figure, path)
