"""What section 2 of the student's report says of its searches, held to the results of the same searches here."""

from typing import NamedTuple

import numpy as np

from grid_search_figures import describe, optimizer_title
from grid_search_results import GRIDS, Rows, Setting, all_settings

# The setting that the report names as the best of its 486.
NAMED_BEST = Setting('adam', 2e-4, 400, '400,400,400', 3000)


class Finding(NamedTuple):
    """A claim of that report, the numbers here that it is held to, and whether they bear it out."""

    claim: str
    numbers: str
    holds: bool


def findings(runs: dict[Setting, Rows]) -> list[Finding]:
    """What that report says of the search that `runs` are the rows of, by test accuracy; nothing of another grid."""
    best = {setting: max(row['test_acc'] for row in rows) for setting, rows in runs.items()}
    if best.keys() >= set(all_settings(GRIDS['full'])):
        return findings_on_optimizers(best) + findings_on_size(best)
    if best.keys() == set(all_settings(GRIDS['additional'])):
        return findings_on_depth(runs)
    return []


def findings_on_optimizers(best: dict[Setting, float]) -> list[Finding]:
    """What that report says of optimisers and learning rates."""

    def mean(optimizer: str, rate: float, depths: tuple[int, ...] = (1, 2, 3)) -> float:
        return float(np.mean([accuracy for setting, accuracy in best.items() if len(setting.widths) in depths
                              and (setting.optimizer, setting.learning_rate) == (optimizer, rate)]))  # fmt: skip

    def at(rate: float) -> str:
        return f'at {rate:g} ' + ', '.join(
            f'{optimizer_title(name)} {mean(name, rate):.3f}' for name in GRIDS['full']['optimizer']
        )

    poor = 0.25  # test accuracy; chance is 0.1, and the median of the grid far above
    adam_shallow, adam_deep = mean('adam', 2e-2, (1,)), mean('adam', 2e-2, (2, 3))
    top = {name: max((s for s in best if s.optimizer == name), key=best.get) for name in ('sgd', 'adam')}
    winner = max(best, key=best.get)
    return [
        Finding('at learning rate 0.02 SGD and Adam (but with one hidden layer) do very poorly, Adadelta does not',
                f'mean best accuracy {at(2e-2)}; Adam with one layer {adam_shallow:.3f}, with more {adam_deep:.3f}, '
                f'SGD with one layer {mean("sgd", 2e-2, (1,)):.3f}',
                max(mean('sgd', 2e-2), adam_deep) < poor < min(mean('adadelta', 2e-2), adam_shallow)),
        Finding('at learning rate 0.0002 Adadelta does worse than SGD and Adam', at(2e-4),
                mean('adadelta', 2e-4) < min(mean('sgd', 2e-4), mean('adam', 2e-4))),
        Finding('SGD and Adam do better at 0.002 and at 0.0002 than at 0.02, Adadelta does not', at(2e-3),
                all(mean(name, rate) > mean(name, 2e-2) for name in ('sgd', 'adam') for rate in (2e-3, 2e-4))
                and mean('adadelta', 2e-2) > max(mean('adadelta', 2e-3), mean('adadelta', 2e-4))),
        Finding('SGD and Adam reach their highest accuracy at the smallest learning rate',
                ', '.join(f'{optimizer_title(name)} {best[s]:.4f} at {s.learning_rate:g}' for name, s in top.items()),
                all(setting.learning_rate == 2e-4 for setting in top.values())),
        Finding('the best of all is Adam with learning rate 0.0002, batch 400, 400,400,400 and 3000 steps',
                f'{describe(winner)} with {best[winner]:.4f}',
                winner == NAMED_BEST),
    ]  # fmt: skip


def findings_on_size(best: dict[Setting, float]) -> list[Finding]:
    """What that report says of width and depth."""
    found = []
    for what, larger in (('wider', wider), ('deeper', deeper)):
        pairs = [(accuracy, best[larger(setting)]) for setting, accuracy in best.items() if larger(setting) in best]
        share = float(np.mean([after > before for before, after in pairs]))
        learning = float(np.mean([after > before for before, after in pairs if max(before, after) > 0.4]))
        found.append(Finding(
            f'{what} networks consistently do better',
            f'in {share:.0%} of {len(pairs)} pairs alike in all else, and in {learning:.0%} of those with an accuracy '
            'above 0.4', share > 0.95,
        ))  # fmt: skip
    return found


def findings_on_depth(runs: dict[Setting, Rows]) -> list[Finding]:
    """What that report says of its additional search; its "deepest" has four layers in one place, five in another."""
    accuracies = {len(setting.widths): [row['test_acc'] for row in rows] for setting, rows in runs.items()}
    last, top = {n: values[-1] for n, values in accuracies.items()}, {n: max(v) for n, v in accuracies.items()}
    winner = next(rows for setting, rows in runs.items() if len(setting.widths) == max(top, key=top.get))
    lowest = min(winner, key=lambda row: row['test_loss'])

    def layers(values: dict[int, float]) -> str:
        return ', '.join(f'{n} layers {accuracy:.4f}' for n, accuracy in sorted(values.items()))

    return [
        Finding('the deepest network, of five layers, ends highest', layers(last), max(last, key=last.get) == 5),
        Finding('three layers reach the highest accuracy', layers(top), max(top, key=top.get) == 3),
        Finding('the best overfits: its training accuracy nears 100%, and its test loss rises for most of the training',
                f'training accuracy ends at {winner[-1]["train_acc"]:.3f}, training loss at '
                f'{winner[-1]["train_loss"]:.3f}; test loss is lowest at step '
                f'{lowest["step"]}, {lowest["test_loss"]:.3f}, and ends at {winner[-1]["test_loss"]:.3f}',
                winner[-1]['train_acc'] > 0.9 and lowest['step'] < winner[-1]['step'] / 2),
    ]  # fmt: skip


def wider(setting: Setting) -> Setting:
    """The setting with twice the width."""
    return setting._replace(dnn_hidden_units=','.join(str(2 * width) for width in setting.widths))


def deeper(setting: Setting) -> Setting:
    """The setting with one hidden layer more, as wide as its last."""
    return setting._replace(dnn_hidden_units=','.join(map(str, setting.widths + setting.widths[-1:])))
