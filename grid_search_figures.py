"""What a search found, as a person looks at it: the best settings, printed, and some figures.

`show` makes all of it out of results that are there already. `runs` has the evaluations of each setting, in the order
of their steps. A setting is known here by its fields alone: optimizer, learning_rate, batch_size, dnn_hidden_units,
max_steps and, out of dnn_hidden_units, the list `widths`.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiment import DATASET_TITLES, best_row, output_paths, say, score
from flags import hidden_units
from plots import PALETTE, new_figure, plot_curves, save_figure

OPTIMIZER_TITLES = {'sgd': 'SGD', 'adam': 'Adam', 'adadelta': 'Adadelta'}
STYLES = ('-', '--', ':', '-.')
FIGURES = ('best', 'curves', 'overview', 'rates', 'losses')  # how the names of their files end

Runs = dict[NamedTuple, list[dict[str, object]]]


def show(runs: Runs, name: str, dataset: str, output_dir: str) -> None:
    """Prints the ten best settings and draws the figures of the search `name`; nothing is trained.

    Raises:
        OSError: a figure cannot be written.
    """
    best = {setting: best_row(rows) for setting, rows in runs.items()}
    best = dict(sorted(best.items(), key=lambda item: -score(item[1])))
    first = next(iter(best))
    picked_by = 'validation accuracy' if 'val_acc' in best[first] else 'test accuracy'
    print_ranking(best, picked_by)

    *_, png_path = output_paths(output_dir, name)
    on = f'MLP in PyTorch on {DATASET_TITLES[dataset]}'
    plot_curves(runs[first], f'{on}: {describe(first)}', png_path.with_stem(f'{name}_best'))
    if len(runs) > 2 and len({setting._replace(learning_rate=0.0) for setting in runs}) == 1:
        title = f'{on}: {describe_but_for_the_rate(first)}'
        plot_rates(best, title, f'best {picked_by}', png_path.with_stem(f'{name}_rates'))
        plot_losses(runs, title, png_path.with_stem(f'{name}_losses'))
        return
    plot_panel(runs, f'{on}: {picked_by}', picked_by, png_path.with_stem(f'{name}_curves'))
    if len(runs) > 9:
        scores = {setting: score(best[setting]) for setting in runs}
        title = f'{on}: best {picked_by} of {len(runs)} settings'
        plot_overview(scores, title, f'best {picked_by}', png_path.with_stem(f'{name}_overview'))


def print_ranking(best: dict[NamedTuple, dict[str, object]], picked_by: str) -> None:
    """Prints the ten best settings, given the best evaluation of each, the best setting first."""
    say(f'{picked_by:<22}{"at step":<10}setting (best of {len(best)})')
    for setting, row in itertools.islice(best.items(), 10):
        say(f'{score(row):<22.4f}{row["step"]:<10}{describe(setting)}')
    if picked_by == 'validation accuracy':
        row = next(iter(best.values()))
        say(f'test accuracy of the first, picked by its validation accuracy: {row["test_acc"]:.4f}')


def describe(setting: NamedTuple) -> str:
    """A setting in words."""
    optimizer, others = describe_but_for_the_rate(setting).split(', ', 1)
    return f'{optimizer}, learning rate {setting.learning_rate:g}, {others}'


def describe_but_for_the_rate(setting: NamedTuple) -> str:
    """A setting in words, without its learning rate."""
    units = f'hidden units {setting.dnn_hidden_units}' if setting.dnn_hidden_units else 'no hidden layer'
    return f'{optimizer_title(setting.optimizer)}, batch {setting.batch_size}, {units}, {setting.max_steps} steps'


def optimizer_title(name: str) -> str:
    """An optimiser's name as people write it."""
    return OPTIMIZER_TITLES.get(name, name)


def optimizers_of(settings: Iterable[NamedTuple]) -> list[str]:
    """The optimisers that the settings have, always in the same order."""
    places = {name: place for place, name in enumerate(OPTIMIZER_TITLES)}
    return sorted({setting.optimizer for setting in settings}, key=lambda name: (places.get(name, len(places)), name))


def plot_panel(runs: Runs, title: str, label: str, path: Path) -> None:
    """Draws the longest runs at their largest batch size: a panel for optimiser × learning rate, a line per network.

    The colour tells the width and the line's style the depth; where there is one width, the colour tells the depth too.
    """
    max_steps, batch_size = max((setting.max_steps, setting.batch_size) for setting in runs)
    longest = [setting for setting in runs if (setting.max_steps, setting.batch_size) == (max_steps, batch_size)]
    shown = {(setting.optimizer, setting.learning_rate, setting.dnn_hidden_units): runs[setting] for setting in longest}
    optimizers = optimizers_of(longest)
    rates = sorted({setting.learning_rate for setting in longest}, reverse=True)
    networks = {setting.dnn_hidden_units: setting.widths for setting in longest}
    networks = dict(sorted(networks.items(), key=lambda item: (len(item[1]), item[1])))
    depths = sorted({len(widths) for widths in networks.values()})
    first_widths = sorted({widths[0] if widths else 0 for widths in networks.values()})

    n_panels = len(optimizers) * len(rates)
    size = (10, 4.5) if n_panels == 1 else (12, 3 * len(optimizers) + 1)
    figure, panels = new_figure(f'{title}, batch {batch_size}', n_panels, len(optimizers), size)
    for panel, (optimizer, rate) in zip(panels, itertools.product(optimizers, rates), strict=True):
        for units, widths in networks.items():
            rows = shown.get((optimizer, rate, units), [])
            depth = depths.index(len(widths))
            index = first_widths.index(widths[0] if widths else 0) if len(first_widths) > 1 else depth
            colour, style = PALETTE[index % len(PALETTE)], STYLES[depth % len(STYLES)]
            steps, scores = [row['step'] for row in rows], [score(row) for row in rows]
            panel.plot(steps, scores, label=units or 'none', color=colour, linestyle=style)
            if rows and rows[-1]['status'] == 'diverged':
                panel.plot(steps[-1], scores[-1], 'x', color=colour)
        panel.set_title(f'{optimizer_title(optimizer)}, learning rate {rate:g}', fontsize=10)
        panel.set(xlabel='step', ylabel=label)
        panel.label_outer()
        panel.sharey(panels[0])
        panel.set_xlim(-0.03 * max_steps, 1.03 * max_steps)
    any_diverged = any(rows[-1]['status'] == 'diverged' for rows in shown.values())
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=min(len(networks), 9),
                  title='hidden units (a cross: diverged)' if any_diverged else 'hidden units', fontsize=9)  # fmt: skip
    save_figure(figure, path)


def plot_rates(best: dict[NamedTuple, dict[str, object]], title: str, label: str, path: Path) -> None:
    """Draws the best score of settings that differ in their learning rates alone over these rates."""
    figure, (panel,) = new_figure(title, 1, size=(8, 4))
    points = sorted((setting.learning_rate, score(row), row['status']) for setting, row in best.items())
    rates, scores, _ = zip(*points, strict=True)
    panel.plot(rates, scores, color=PALETTE[0])
    for status, marker, colour in (('finished', 'o', PALETTE[0]), ('diverged', 'X', PALETTE[1])):
        of_status = [point[:2] for point in points if point[2] == status]
        if of_status:
            panel.plot(*zip(*of_status, strict=True), marker, color=colour, label=status, markersize=8)
    for rate, accuracy, _ in points:
        panel.annotate(f'{accuracy:.3f}', (rate, accuracy), (0, 9), textcoords='offset points', ha='center', fontsize=9)
    panel.set_xscale('log')
    panel.margins(y=0.15)
    panel.set(xlabel='learning rate', ylabel=label)
    panel.legend()
    save_figure(figure, path)


def plot_losses(runs: Runs, title: str, path: Path) -> None:
    """Draws the training losses of settings that differ in their learning rates alone; a cross where one diverged."""
    from matplotlib import colormaps

    figure, (panel,) = new_figure(title, 1, size=(8, 4.5))
    settings = sorted(runs, key=lambda setting: setting.learning_rate)
    for i, setting in enumerate(settings):
        rows = runs[setting]
        colour = colormaps['viridis'](0.95 * i / (len(settings) - 1))
        steps, losses = [row['step'] for row in rows], [row['train_loss'] for row in rows]
        diverged = rows[-1]['status'] == 'diverged'
        panel.plot(steps, losses, color=colour, label=f'{setting.learning_rate:g}' + (' ×' if diverged else ''))
        if diverged:
            panel.plot(steps[0], losses[0], 'x', color=colour)
    panel.set(xlabel='step', ylabel='training loss')
    panel.legend(title='learning rate\n(×: diverged)', loc='center left', bbox_to_anchor=(1, 0.5), fontsize=9)
    save_figure(figure, path)


def plot_overview(scores: dict[NamedTuple, float], title: str, label: str, path: Path) -> None:
    """Draws every setting as a dot over each hyper-parameter's values, by optimiser, with the medians."""
    figure, panels = new_figure(title, 4, 2, (12, 8))
    optimizers = optimizers_of(scores)
    offsets = {name: (i - (len(optimizers) - 1) / 2) * 0.25 for i, name in enumerate(optimizers)}
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(optimizers)}
    columns = {'learning_rate': 'learning rate', 'dnn_hidden_units': 'hidden units', 'batch_size': 'batch size',
               'max_steps': 'steps'}  # fmt: skip
    spread = np.random.RandomState(0)
    for panel, (column, x_label) in zip(panels, columns.items(), strict=True):
        values = sorted({getattr(setting, column) for setting in scores}, key=value_order)
        for optimizer, x in itertools.product(optimizers, range(len(values))):
            dots = [accuracy for setting, accuracy in scores.items()
                    if (setting.optimizer, getattr(setting, column)) == (optimizer, values[x])]  # fmt: skip
            at = x + offsets[optimizer]
            panel.scatter(at + spread.uniform(-0.07, 0.07, len(dots)), dots, s=8, alpha=0.5, color=colours[optimizer],
                          linewidths=0, label=optimizer_title(optimizer) if x == 0 else None)  # fmt: skip
            if dots:
                panel.hlines(np.median(dots), at - 0.11, at + 0.11, color=colours[optimizer], linewidth=2)
        names = [f'{value:g}' if isinstance(value, float) else str(value).replace(',', ',\n') for value in values]
        panel.set_xticks(range(len(values)), names)
        panel.set(xlabel=x_label, ylabel=label)
    legend = panels[0].legend(markerscale=3, title='bar: median')
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    save_figure(figure, path)


def value_order(value: float | str) -> tuple | float:
    """The order of a hyper-parameter's values: numbers by size, networks by depth and then width."""
    return (len(hidden_units(value)), hidden_units(value)) if isinstance(value, str) else value
