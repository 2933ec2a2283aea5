"""What the figure of a run shows."""

import math
import os
import unittest
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import matplotlib
import numpy as np

import plots
from tests.helpers import temporary_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows(*losses: float, validation: bool = False) -> list[dict[str, float]]:
    parts = ('train', 'test', 'val') if validation else ('train', 'test')
    return [
        {'step': 10 * i + 1} | {f'{part}_acc': 0.1 * i + 0.01 * j for j, part in enumerate(parts)}
        | {f'{part}_loss': loss + j for j, part in enumerate(parts)}
        for i, loss in enumerate(losses)
    ]  # fmt: skip


class CurvesTest(unittest.TestCase):
    def panels(self, of: list[dict[str, float]]) -> tuple['Axes', 'Axes']:
        with mock.patch.object(plots, 'save_figure') as save_figure:
            plots.plot_curves(of, 'title', Path('x.png'))
        return tuple(save_figure.call_args.args[0].axes)

    def test_a_line_for_each_part(self) -> None:
        for validation in (False, True):
            shown = rows(2.0, 1.0, 0.5, validation=validation)
            accuracy, loss = self.panels(shown)
            self.assertEqual((accuracy.get_ylabel(), loss.get_ylabel()), ('accuracy', 'loss'))
            for panel, key in ((accuracy, 'acc'), (loss, 'loss')):
                lines = {line.get_label(): line for line in panel.get_lines()}
                parts = {'train': 'training (mini-batch)', 'test': 'test'}
                parts |= {'val': 'validation'} if validation else {}
                self.assertEqual(list(lines), list(parts.values()))
                for part, label in parts.items():
                    self.assertEqual(list(lines[label].get_xdata()), [1, 11, 21])
                    self.assertEqual(list(lines[label].get_ydata()), [row[f'{part}_{key}'] for row in shown])

    def test_losses_far_apart_are_drawn_on_a_logarithmic_scale(self) -> None:
        for losses, scale in (((2.0, 1.0), 'linear'), ((500.0, 1.0), 'log'), ((2.0, math.inf), 'linear')):
            accuracy, loss = self.panels(rows(*losses))
            self.assertEqual((accuracy.get_yscale(), loss.get_yscale()), ('linear', scale), losses)

    def test_it_is_a_png(self) -> None:
        with temporary_directory() as directory:
            plots.plot_curves(rows(2.0, 1.0), 'title', directory / 'x.png')
            self.assertEqual((directory / 'x.png').read_bytes()[:8], b'\x89PNG\r\n\x1a\n')

    def test_a_title_is_taken_as_it_is(self) -> None:
        with temporary_directory() as directory:
            plots.plot_curves(rows(2.0, 1.0), 'a$^$b', directory / 'x.png')
        self.assertFalse(plots.new_figure('$x$')[0].texts[0].get_parse_math())

    def test_no_setting_of_the_user_s_changes_the_look(self) -> None:
        with matplotlib.rc_context({'figure.facecolor': 'red'}):
            figure, _ = plots.new_figure('title')
        self.assertEqual(figure.get_facecolor(), (1, 1, 1, 1))

    def test_the_user_s_settings_are_theirs_again(self) -> None:
        with matplotlib.rc_context({'font.size': 31}), temporary_directory() as directory:
            plots.plot_curves(rows(2.0, 1.0), 'title', directory / 'x.png')
            self.assertEqual(matplotlib.rcParams['font.size'], 31)

    def test_the_environment_is_left_as_it_was(self) -> None:
        self.enterContext(mock.patch.dict(os.environ, MPLBACKEND='svg'))
        before = dict(os.environ)
        with plots.environment(MPLBACKEND='agg', NOT_THERE_BEFORE='1'):
            self.assertEqual((os.environ['MPLBACKEND'], os.environ['NOT_THERE_BEFORE']), ('agg', '1'))
        self.assertEqual(dict(os.environ), before)


class ConfusionMatrixTest(unittest.TestCase):
    def test_counts_and_shares_in_their_cells(self) -> None:
        matrix = np.array([[9, 1, 0], [2, 2, 4], [0, 0, 0]])
        with mock.patch.object(plots, 'save_figure') as save_figure:
            plots.plot_confusion_matrix(matrix, ('cat', 'dog', 'emu'), 'title', Path('x.png'))
        (panel,) = save_figure.call_args.args[0].axes
        cells = {text.get_position(): text.get_text() for text in panel.texts}
        self.assertEqual(len(cells), 9)
        self.assertEqual((cells[0, 0], cells[1, 0], cells[2, 1]), ('9\n90.0%', '1\n10.0%', '4\n50.0%'))
        self.assertEqual(cells[2, 2], '0\n0.0%')
        for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
            self.assertEqual([label.get_text() for label in labels], ['cat', 'dog', 'emu'])
        self.assertEqual((panel.get_xlabel(), panel.get_ylabel()), ('predicted class', 'true class'))
        dark = {text.get_position() for text in panel.texts if text.get_color() == 'white'}
        self.assertEqual(dark, {(0, 0), (2, 1)})
