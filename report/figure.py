"""The figure of what training as one would today is worth: test accuracy over the seconds of computing."""

import itertools
from pathlib import Path

from plots import PALETTE, new_figure, save_figure
from report.records import SCRIPTS, evaluations, recipe_runs, summary


def plot_recipes(root: Path, path: Path) -> None:
    """Draws every network's test accuracy, at the default flags and by its recipe, a line for each run, into a PNG.

    A run records its seconds as a whole; each of its steps counts as much as any other. What it reaches in its first
    step is left out.
    """
    figure, (panel,) = new_figure('Test accuracy on CIFAR-10: default flags and recipes', 1, size=(10, 5))
    for colour, (script, title) in zip(PALETTE, SCRIPTS.items(), strict=False):
        runs = {f'{title}, default flags': ([script], '--')}
        recipes = [recipe for recipe in recipe_runs(root) if recipe['script'] == script]
        styles = itertools.cycle(('-', ':', '-.'))
        runs |= {recipe['title']: (recipe['runs'], style) for recipe, style in zip(recipes, styles, strict=False)}
        for label, (names, style) in runs.items():
            for name in names:
                rows, seconds = evaluations(root, name)[1:], summary(root, name)['seconds']
                at = [seconds * row['step'] / rows[-1]['step'] for row in rows]
                panel.plot(at, [row['test_acc'] for row in rows], style, color=colour, linewidth=1,
                           label=label if name == names[0] else None)  # fmt: skip
    panel.set_xscale('log')
    panel.set(xlabel='seconds', ylabel='test accuracy')
    panel.legend(fontsize=9)
    save_figure(figure, path)
