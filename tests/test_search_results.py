"""The search's settings, rows, clock and lock, and what its figures show, without a search."""

import argparse
import contextlib
import io
import json
import math
import unittest
from unittest import mock

import grid_search_figures
import grid_search_mlp_pytorch as grid_search
import grid_search_results as search_results
import train_mlp_pytorch
from flags import defaults
from grid_search_results import Setting
from parsing import FlagError
from tests.helpers import temporary_directory


def row(setting: Setting, step: int, accuracy: float = 0.2, loss: float = 1.0, **more: object) -> dict[str, object]:
    numbers = {'step': step, 'train_acc': 0.1, 'train_loss': 1.0, 'test_acc': accuracy, 'test_loss': loss}
    return {**setting._asdict(), 'status': 'finished', **numbers, **more}


class SettingsTest(unittest.TestCase):
    def test_the_report_s_grids(self) -> None:
        full, additional = search_results.GRIDS['full'], search_results.GRIDS['additional']
        self.assertEqual((full['learning_rate'], full['max_steps']), ([2e-2, 2e-3, 2e-4], [1500, 3000]))
        self.assertEqual(full['batch_size'], [100, 200, 400])
        self.assertEqual(additional['dnn_hidden_units'], ['400,400,400', '400,400,400,400', '400,400,400,400,400'])
        self.assertEqual([*additional['learning_rate'], *additional['batch_size']], [2e-4, 400])

    def test_a_grid_sets_what_its_runs_share_unless_the_command_line_does(self) -> None:
        rates = search_results.GRIDS['learning_rate']['learning_rate']
        self.assertEqual([f'{rate:g}' for rate in rates], [f'{10.0**power:g}' for power in range(-6, 3)])
        shared = search_results.SHARED_BY_GRID['learning_rate']

        def parse(*args: str) -> dict[str, object]:
            flags = vars(grid_search.build_parser().parse_args(args))
            return {flag: flags[flag] for flag in shared}

        self.assertEqual(parse('--grid', 'learning_rate'), shared)
        for args in (('--grid', 'learning_rate', '--validation_size', '9'),
                     ('--validation_size', '9', '--grid', 'learning_rate')):  # fmt: skip
            self.assertEqual(parse(*args), shared | {'validation_size': 9})
        self.assertEqual(parse('--grid', 'full'), parse())
        self.assertEqual(parse('--grid', 'learning_rate', '--grid', 'full'), parse())
        for args in (('--validation_size', '0', '--init', 'torch'), ('--init', 'torch', '--validation_size', '0')):
            for words in ((*args, '--grid', 'learning_rate'), ('--grid', 'learning_rate', *args)):
                self.assertEqual(parse(*words), shared | {'validation_size': 0, 'init': 'torch'})

    def test_values(self) -> None:
        of_trainer = defaults(train_mlp_pytorch.build_parser())
        values = search_results.searched_values(None, {'batch_size': [50, 50]}, of_trainer)
        self.assertEqual(values, {'optimizer': ['sgd'], 'learning_rate': [2e-3], 'batch_size': [50, 50],
                                  'dnn_hidden_units': ['100'], 'max_steps': [1500]})  # fmt: skip
        self.assertEqual(search_results.all_settings(values), [Setting('sgd', 2e-3, 50, '100', 1500)])

    def test_names(self) -> None:
        base = 'grid_search_mlp_pytorch'
        for args, name in ((('full', 0, 'cifar10'), ''), (('additional', 9, 'cifar10'), '_additional_validation'),
                           ((None, 0, 'synthetic'), '_own_synthetic')):  # fmt: skip
            self.assertEqual(search_results.search_name(*args), base + name)

    def test_arithmetic(self) -> None:
        setting = Setting('sgd', 0.1, 50, '10', 40)
        whole = search_results.arithmetic(setting)
        self.assertEqual(search_results.arithmetic(setting, 10), whole / 4)
        self.assertEqual(search_results.arithmetic(setting._replace(max_steps=80)), 2 * whole)
        self.assertGreater(search_results.arithmetic(setting._replace(batch_size=100)), 1.5 * whole)
        self.assertEqual(whole, (3072 * 10 + 10 * 10) * 40 * 350)

    def test_rows_of_a_setting(self) -> None:
        """Of a run of 40 steps that was evaluated every 15 steps, and after 20 for a setting that ends there."""
        steps = (1, 16, 20, 31, 40)
        rows = [{'step': step, 'test_loss': 1.0} for step in steps]
        short, long = (Setting('sgd', 0.1, 50, '10', n) for n in (20, 40))
        for setting, expected in ((short, [1, 16, 20]), (long, [1, 16, 31, 40])):
            found = search_results.rows_of(setting, rows, 'finished', 15)
            self.assertEqual([row['step'] for row in found], expected)
            self.assertEqual({row['status'] for row in found}, {'finished'})
        for ends, statuses in ((18, ('diverged', 'diverged')), (20, ('diverged', 'diverged')),
                               (33, ('finished', 'diverged'))):  # fmt: skip
            rows = [{'step': step, 'test_loss': 1.0} for step in (*(s for s in steps if s < ends), ends)]
            for setting, status in zip((short, long), statuses, strict=True):
                found = search_results.rows_of(setting, rows, 'diverged', 15)
                self.assertEqual({row['status'] for row in found}, {status}, (ends, setting))
                self.assertEqual(found[-1]['step'], min(ends, setting.max_steps))

    def test_whole(self) -> None:
        setting = Setting('sgd', 0.1, 50, '10', 20)
        ended = {'loss': math.nan, 'status': 'diverged'}
        for steps, more, whole in (
            ((1, 11, 20), {}, True), ((1, 20), {}, False), ((1, 12, 20), {}, False), ((1, 11), {}, False),
            ((1, 11, 15), ended, True), ((1, 15), ended, False), ((1, 11, 21), ended, False),
            ((1, 11, 20), {'status': 'diverged'}, False), ((1, 11, 20), {'loss': math.nan}, False),
        ):  # fmt: skip
            status = {'status': more.get('status', 'finished')}
            rows = [row(setting, step, **status) for step in steps[:-1]]
            self.assertEqual(
                search_results.is_whole([*rows, row(setting, steps[-1], **more)], 10), whole, (steps, more)
            )
        rows = [row(setting, step, loss=loss) for step, loss in ((1, 1.0), (11, math.nan), (20, 1.0))]
        self.assertFalse(search_results.is_whole(rows, 10))


class ClockTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = self.enterContext(temporary_directory())
        self.clock = 0.0
        self.enterContext(mock.patch('time.perf_counter', side_effect=lambda: self.clock))
        self.short, self.long = (Setting('sgd', 0.1, 50, '10', n) for n in (20, 40))

    def results(self, **flags: object) -> search_results.Results:
        return search_results.Results(
            str(self.directory),
            'x',
            {'eval_freq': 20, 'device': 'cpu', 'seed': 42, **flags},
            {'new': 3, 'device': 'cpu'},
        )

    def search(self, setting: Setting, started: float, ended: float, wall: float, core: float) -> None:
        results = self.results()
        self.clock = started
        results.start_clock()
        self.clock = ended
        rows = [row(setting, step) for step in (1, 21)[: setting.max_steps // 20]] + [row(setting, setting.max_steps)]
        results.add(rows, setting.run, {'wall_seconds': wall, 'core_seconds': core})

    def test_seconds_add_up_over_all_starts(self) -> None:
        self.search(self.short, 100.0, 110.0, 6.0, 5.0)
        self.assertEqual(self.results().speed(), search_results.arithmetic(self.short) / 6)
        self.search(self.long, 1000.0, 1020.0, 12.0, 11.0)
        _, times, wall_seconds = search_results.read_summary(self.directory / 'results/x.json')
        self.assertEqual((times, wall_seconds), ({self.long.run: {'wall_seconds': 18.0, 'core_seconds': 16.0}}, 30.0))
        summary = json.loads((self.directory / 'results/x.json').read_text())
        self.assertEqual(summary['core_seconds'], 16.0)
        self.assertEqual(self.results().speed(), search_results.arithmetic(self.long) / 18)
        self.assertEqual(self.results().done(), {self.short, self.long})

    def test_settings_that_are_there_are_not_added_again(self) -> None:
        for _ in range(2):
            self.search(self.short, 0.0, 1.0, 1.0, 1.0)
        self.assertEqual(len((self.directory / 'results/x.csv').read_text().splitlines()), 1 + 2)
        self.search(self.short._replace(optimizer='adam'), 0.0, 1.0, 1.0, 1.0)
        lines = (self.directory / 'results/x.csv').read_text().splitlines()[1:]
        self.assertEqual([line.split(',')[0] for line in lines], ['adam'] * 2 + ['sgd'] * 2)

    def test_the_summary_is_written_before_its_rows(self) -> None:
        written = []
        with (
            mock.patch.object(search_results, 'write_json', lambda path, _: written.append(path.suffix)),
            mock.patch.object(search_results, 'write_csv', lambda path, _: written.append(path.suffix)),
        ):
            self.search(self.short, 0.0, 1.0, 1.0, 1.0)
        self.assertEqual(written, ['.json', '.csv'])

    def test_flags_of_older_results(self) -> None:
        self.search(self.short, 0.0, 1.0, 1.0, 1.0)
        self.assertEqual(len(self.results(new=3).done()), 1)
        self.assertEqual(len(self.results(device='auto').done()), 1)
        with self.assertRaisesRegex(FlagError, 'its new is 3, here it is 4'):
            self.results(new=4)
        with self.assertRaisesRegex(FlagError, 'its seed is 42, here it is 1'):
            self.results(seed=1)

    def test_the_plan_is_for_so_many_processes(self) -> None:
        self.search(self.short, 0.0, 3600.0, 3600.0, 1.0)
        for n_processes, hours in ((1, '2.00'), (2, '1.00')):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                search_results.print_plan([self.short, self.long], [[self.long]], self.results(), n_processes)
            self.assertIn(f'process(es), at the speed of the runs done: {hours} hours', out.getvalue())


class RunTest(unittest.TestCase):
    FLAGS = argparse.Namespace(seed=7, eval_freq=5, processes=3, neg_slope=0.1)

    def test_the_trainer_s_flags(self) -> None:
        run = [Setting('adam', 0.1, 50, '10,20', n) for n in (20, 40)]
        flags = vars(grid_search.trainer_flags(run, self.FLAGS))
        self.assertEqual(flags.keys(), defaults(train_mlp_pytorch.build_parser()).keys())
        expected = {'optimizer': 'adam', 'learning_rate': 0.1, 'batch_size': 50, 'dnn_hidden_units': [10, 20],
                    'max_steps': 40, 'seed': 7, 'eval_freq': 5, 'neg_slope': 0.1}  # fmt: skip
        self.assertEqual({flag: flags[flag] for flag in expected}, expected)

    def train(self, **kwargs: object) -> mock.Mock:
        """Trains with a trainer that only says what it is told."""
        run = [Setting('sgd', 0.1, 50, '10', n) for n in (20, 40)]
        with (
            mock.patch.object(train_mlp_pytorch, 'train', **kwargs) as train,
            mock.patch.object(grid_search.torch, 'set_num_threads') as set_num_threads,
            mock.patch('time.perf_counter', side_effect=[10.0, 17.0]),
            mock.patch('time.process_time', side_effect=[1.0, 3.0]),
        ):
            self.result = grid_search.train_run(run, self.FLAGS)
        set_num_threads.assert_called_once_with(1)
        return train

    def test_a_run(self) -> None:
        record = mock.Mock(rows=[{'step': step, 'test_loss': 1.0} for step in (1, 20, 40)], status='finished')
        train = self.train(return_value=record)
        self.assertEqual(train.call_args.kwargs, {'quiet': True, 'alone': True, 'evaluate_after': [20, 40]})
        rows, times = self.result
        self.assertEqual([(row['max_steps'], row['step']) for row in rows], [(20, 1), (20, 20), (40, 1), (40, 40)])
        self.assertEqual(times, {'wall_seconds': 7.0, 'core_seconds': 2.0})

    def test_what_is_no_result(self) -> None:
        with self.assertRaisesRegex(RuntimeError, 'a signal ended it'):
            self.train(return_value=mock.Mock(rows=[{'step': 1}], status='interrupted'))
        with self.assertRaises(MemoryError):
            self.train(side_effect=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
        with self.assertRaisesRegex(RuntimeError, 'another'):
            self.train(side_effect=RuntimeError('another'))


class LockTest(unittest.TestCase):
    def test_one_writer_at_a_time(self) -> None:
        with temporary_directory() as directory:
            for _ in range(2):  # it is free again afterwards
                with search_results.only_writer(str(directory), 'x'):
                    with (
                        self.assertRaisesRegex(FlagError, 'process .* is writing .*x.csv: wait for it'),
                        search_results.only_writer(str(directory), 'x'),
                    ):
                        pass
                    with search_results.only_writer(str(directory), 'y'):
                        pass
                self.assertFalse((directory / 'results/.x.holder').exists())


class SearchFiguresTest(unittest.TestCase):
    def runs(self, validation: bool = False) -> dict[Setting, list[dict[str, object]]]:
        """Twelve settings, of which the last is the best; one of them diverged."""
        settings = [Setting(optimizer, rate, 50, units, 40) for optimizer in ('adam', 'sgd') for rate in (0.1, 0.01)
                    for units in ('9', '100', '20,20')]  # fmt: skip
        runs = {}
        for i, setting in enumerate(settings):
            more = {'val_acc': 0.5 - 0.01 * i, 'val_loss': 1.0} if validation else {}
            runs[setting] = [row(setting, 1, 0.1, **more), row(setting, 40, 0.3 + 0.01 * i, **more)]
        for one in runs[settings[0]]:
            one['status'] = 'diverged'
        longer = settings[0]._replace(batch_size=20)
        return runs | {longer: [row(longer, 1, 0.1, **({'val_acc': 0.1, 'val_loss': 1.0} if validation else {}))]}

    def show(self, validation: bool = False) -> tuple[str, dict[str, object], mock.Mock]:
        """What is printed, the figures by their names, and the curves that are drawn."""
        figures = {}
        with (
            mock.patch.object(grid_search_figures, 'save_figure', lambda f, path: figures.update({path.name: f})),
            mock.patch.object(grid_search_figures, 'plot_curves') as plot_curves,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            grid_search_figures.show(self.runs(validation), 'x', 'synthetic', '.')
        return out.getvalue(), figures, plot_curves

    def test_the_ten_best_the_best_first(self) -> None:
        lines = self.show()[0].splitlines()
        self.assertRegex(lines[0], r'^test accuracy .*best of 13')
        self.assertEqual([float(line.split()[0]) for line in lines[1:]], [round(0.41 - 0.01 * i, 2) for i in range(10)])
        self.assertIn('SGD, learning rate 0.01, batch 50, hidden units 20,20, 40 steps', lines[1])

    def test_picked_by_validation_accuracy(self) -> None:
        lines = self.show(validation=True)[0].splitlines()
        self.assertRegex(lines[0], '^validation accuracy')
        self.assertRegex(lines[1], '^0.5000 .*Adam, learning rate 0.1, batch 50, hidden units 9, 40 steps')
        self.assertRegex(lines[-1], r'^test accuracy of the first, picked by its validation accuracy: 0\.[13]000$')

    def test_the_curves_are_the_best_setting_s(self) -> None:
        _, figures, plot_curves = self.show()
        rows, title, path = plot_curves.call_args.args
        self.assertEqual((rows[-1]['test_acc'], path.name), (0.41, 'x_best.png'))
        self.assertIn('SGD, learning rate 0.01', title)
        self.assertEqual(sorted(figures), ['x_curves.png', 'x_overview.png'])

    def test_panels(self) -> None:
        figure = self.show()[1]['x_curves.png']
        titles = [panel.get_title() for panel in figure.axes]
        self.assertEqual(titles, [f'{name}, learning rate {rate}' for name in ('SGD', 'Adam') for rate in (0.1, 0.01)])
        lines = [[line.get_label() for line in panel.get_lines()] for panel in figure.axes]
        crosses = [sum(line.get_marker() == 'x' for line in panel.get_lines()) for panel in figure.axes]
        self.assertEqual(lines[0], ['9', '100', '20,20'])
        self.assertEqual(crosses, [0, 0, 1, 0])
        self.assertEqual(list(figure.axes[1].get_lines()[2].get_ydata()), [0.1, 0.41])
        self.assertIn('batch 50', figure.get_suptitle())

    def test_overview(self) -> None:
        _, units, batches, _ = self.show()[1]['x_overview.png'].axes
        self.assertEqual([label.get_text() for label in units.get_xticklabels()], ['9', '100', '20,\n20'])
        self.assertEqual([label.get_text() for label in batches.get_xticklabels()], ['20', '50'])

    def test_a_sweep_of_the_learning_rate(self) -> None:
        settings = [Setting('sgd', rate, 50, '9', 40) for rate in (0.1, 1.0, 0.01)]
        runs = {
            setting: [row(setting, 1, 0.1), row(setting, 40, (0.2, 0.3, 0.4)[i])] for i, setting in enumerate(settings)
        }
        for one in runs[settings[1]]:
            one['status'] = 'diverged'
        with mock.patch.object(self, 'runs', return_value=runs):
            figures = self.show()[1]
        self.assertEqual(list(figures), ['x_rates.png', 'x_losses.png'])
        line, finished, diverged = figures['x_rates.png'].axes[0].get_lines()
        self.assertEqual([*map(list, line.get_data())], [[0.01, 0.1, 1.0], [0.4, 0.2, 0.3]])
        self.assertEqual([*map(list, finished.get_data())], [[0.01, 0.1], [0.4, 0.2]])
        self.assertEqual([*map(list, diverged.get_data())], [[1.0], [0.3]])
        self.assertEqual(figures['x_rates.png'].axes[0].get_xscale(), 'log')
        losses = figures['x_losses.png'].axes[0]
        self.assertEqual([text.get_text() for text in losses.get_legend().get_texts()], ['0.01', '0.1', '1 ×'])
        self.assertEqual([list(line.get_xdata()) for line in losses.get_lines()], [[1, 40], [1, 40], [1, 40], [1]])

    def test_few_settings_have_no_overview(self) -> None:
        runs = dict(list(self.runs().items())[:9])
        with mock.patch.object(self, 'runs', return_value=runs):
            self.assertEqual(list(self.show()[1]), ['x_curves.png'])
