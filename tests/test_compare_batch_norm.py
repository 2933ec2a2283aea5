"""The comparison without, with batch and with layer normalisation: which runs it makes, and what it says of them."""

import contextlib
import io
import json
import math
import sys
import unittest
import warnings
from pathlib import Path
from unittest import mock

import numpy as np

import compare_batch_norm
import experiment
import script
import train_mlp_pytorch
from compare_batch_norm import Setting
from tests.helpers import files_under, only, read_rows, small_stand_in, temporary_directory

NAME = 'normalisation_mlp_pytorch_synthetic'
RUNS = 'results/normalisation_mlp_pytorch_runs/results'
FIELDS = Setting._fields
OTHER_RATES = ('--learning_rates', '0.002', '0.1', '0.2')


def made_up() -> list[compare_batch_norm.Cell]:
    """The cells of two rates and two sizes, of two seeds each; without normalisation one or both of them diverge."""
    accuracies = {'none': (0.3, 0.1), 'batch_manual': (0.4, 0.5), 'layer_manual': (0.5, 0.7)}
    rows = []
    for setting in compare_batch_norm.all_settings([0.002, 0.1], [4, 200], 0.002, 200):
        for seed, accuracy in enumerate(accuracies[setting.norm], 1):
            n_lost = 0 if setting.norm != 'none' or setting.batch_size == 4 else 1 if setting.learning_rate < 0.1 else 2
            lost = seed > 2 - n_lost
            status, accuracy = ('diverged', 0.9) if lost else ('finished', accuracy)
            rows.append({**setting._asdict(), 'seed': seed, 'status': status, 'test_acc': accuracy})
    return compare_batch_norm.summarise(rows)


class CompareBatchNormTest(unittest.TestCase):
    ARGS = ('--dataset', 'synthetic', '--max_steps', '6', '--eval_freq', '3', '--batch_size', '20',
            '--dnn_hidden_units', '8', '--learning_rates', '0.1', '0.002', '--batch_sizes', '20', '8')  # fmt: skip

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))
        self.enterContext(small_stand_in())
        self.enterContext(mock.patch.object(experiment, 'plot_curves'))  # of a run, which takes longer than the run

    def main(self, *args: str) -> tuple[int, str, str]:
        """The script in this process: its exit status, and what it says on stdout and stderr."""
        argv = ['compare_batch_norm.py', *self.ARGS, '--output_dir', str(self.directory), *args]
        with (
            mock.patch.object(sys, 'argv', argv),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = script.run_script(compare_batch_norm.build_parser(), compare_batch_norm.compare)
            except SystemExit as stop:
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def summary(self) -> dict[str, object]:
        return json.loads((self.directory / f'results/{NAME}.json').read_text())

    def test_the_values_that_the_report_shows(self) -> None:
        flags = compare_batch_norm.build_parser().parse_args([])
        self.assertEqual(flags.seeds, [42, 43, 44, 45, 46])
        settings = compare_batch_norm.all_settings(
            flags.learning_rates, flags.batch_sizes, flags.learning_rate, flags.batch_size
        )
        points = [(0.002, 200), (0.02, 200), (0.1, 200), (0.002, 4), (0.002, 16), (0.002, 64)]
        kinds = ('none', 'batch_manual', 'layer_manual')
        self.assertEqual(settings, [(norm, *point) for point in points for norm in kinds])

    def test_every_run_sees_as_many_examples_and_as_many_evaluations(self) -> None:
        flags = compare_batch_norm.build_parser().parse_args(['--output_dir', 'x', '--neg_slope', '0.1'])
        for size, max_steps, eval_freq in ((200, 1000, 100), (4, 50_000, 5000), (64, 3125, 313)):
            setting = Setting('layer_manual', 0.002, size)
            of_run = compare_batch_norm.trainer_flags(setting, flags)
            self.assertEqual((of_run.max_steps, of_run.eval_freq), (max_steps, eval_freq))
            self.assertEqual((of_run.norm, of_run.learning_rate, of_run.batch_size), setting)
            self.assertEqual(of_run.neg_slope, 0.1)
        of_trainer = vars(train_mlp_pytorch.build_parser().parse_args([]))
        self.assertEqual(vars(of_run).keys(), of_trainer.keys())  # or a longer list of rates would make it another run

    def test_bad_flags(self) -> None:
        for args, words in (
            (('--seed', '1'), '--seed'),
            (('--norm', 'none'), '--norm'),
            (('--checkpoint', 'run.pt'), '--checkpoint'),
            (('--seeds', '1,1'), '--seeds'),
            (('--batch_sizes', '4', '0'), '--batch_sizes'),
            (('--learning_rates', 'nan'), '--learning_rates'),
            (('--learning_rates', '0.002', '1e39'), 'learning_rate must be at most'),
            (('--batch_sizes', '4', '1'), 'at least 2 examples'),
            (('--batch_sizes', '4', '1000', '--warmup', '0.4'), '--warmup 0.4 does nothing in 1 step'),
            (('--batch_sizes', '4', '1001'), 'at most 1000'),
            (('--dnn_hidden_units', ''), 'hidden layer'),
        ):
            with mock.patch.object(train_mlp_pytorch, 'train', side_effect=AssertionError):
                status, out, err = self.main(*args)
            self.assertEqual((status, out, err.count('\n')), (2, '', 1), args)
            self.assertIn(words, err)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_end_to_end_on_the_stand_in(self) -> None:
        status, out, _ = self.main('--seeds', '1,2')
        rows = read_rows(self.directory / f'results/{NAME}.csv')
        summary = self.summary()
        self.assertEqual((status, len(rows), len(summary['cells'])), (0, 18, 9))
        self.assertEqual(summary['seconds'], round(sum(float(row['seconds']) for row in rows), 3))
        self.assertEqual((summary['seeds'], summary['dataset']), ([1, 2], 'synthetic'))
        cell = summary['cells'][1]
        self.assertEqual([cell[field] for field in FIELDS], ['batch_manual', 0.002, 20])
        last = []
        for seed in (1, 2):
            (path,) = self.directory.glob(
                f'{RUNS}/*synthetic_max_steps=6_batch_size=20_*norm=batch_manual_seed={seed}.csv'
            )
            last.append(float(read_rows(path)[-1]['test_acc']))
        self.assertEqual([float(row['test_acc']) for row in rows[2:4]], last)
        self.assertEqual([row['step'] for row in rows[2:4]], ['6', '6'])
        self.assertAlmostEqual(cell['mean'], np.mean(last))
        self.assertAlmostEqual(cell['std'], np.std(last, ddof=1))
        self.assertEqual((cell['min'], cell['max'], cell['n_runs']), (min(last), max(last), 2))
        self.assertIn(f'{np.mean(last):.3f} ± {np.std(last, ddof=1):.3f}', out)
        self.assertIn(f'batch normalisation, learning rate 0.002, batch size 20, seed 1: test accuracy {last[0]}', out)
        self.assertEqual({row['step'] for row in rows if row['batch_size'] == '8'}, {'15'})

    def test_one_folder_has_the_records_of_the_runs(self) -> None:
        self.main('--seeds', '1')
        beside = [path for path in files_under(self.directory) if '_runs/' not in path]
        ours = ['results/normalisation_mlp_pytorch_runs', f'results/{NAME}.csv', f'results/{NAME}.json']
        self.assertEqual(beside, ['figures', f'figures/{NAME}.png', 'results', *ours])
        self.assertEqual(len(list(self.directory.glob(f'{RUNS}/mlp_pytorch_synthetic_*_seed=1.csv'))), 9)

    def test_what_cannot_be_written_is_found_before_the_training(self) -> None:
        path = self.directory / f'results/{NAME}.csv'
        path.mkdir(parents=True)
        with mock.patch.object(train_mlp_pytorch, 'train', side_effect=AssertionError):
            status, _, err = self.main('--seeds', '1')
        self.assertEqual((status, 'is a directory' in err), (2, True))
        path.rename(path.with_name('normalisation_mlp_pytorch.csv'))  # where only CIFAR-10's would go
        self.assertEqual(self.main('--seeds', '1')[0], 0)

    def test_what_is_done_is_kept_and_not_done_again(self) -> None:
        train = train_mlp_pytorch.train

        def interrupted(flags: object, *args: object, **kwargs: object) -> experiment.RunRecord:
            if (flags.norm, flags.learning_rate, flags.seed) == ('layer_manual', 0.1, 2):
                with mock.patch.object(experiment.RunRecord, 'evaluation_due', side_effect=KeyboardInterrupt):
                    return train(flags, *args, **kwargs)
            return train(flags, *args, **kwargs)

        with mock.patch.object(train_mlp_pytorch, 'train', interrupted):
            status, out, _ = self.main('--seeds', '1,2')
        self.assertEqual((status, 'the same command goes on' in out), (130, True))
        self.assertEqual(len(list(self.directory.glob(f'{RUNS}/*.csv'))), 11)
        self.assertFalse((self.directory / f'results/{NAME}.json').exists())
        running = mock.patch.object(experiment.RunRecord, 'running', autospec=True,
                                    side_effect=experiment.RunRecord.running)  # fmt: skip
        with running as calls:
            self.assertEqual(self.main('--seeds', '1,2')[0], 0)
        self.assertEqual(calls.call_count, 18 - 11)
        rows = (self.directory / f'results/{NAME}.csv').read_text()
        with running as calls:
            self.assertEqual(self.main('--seeds', '1,2', *OTHER_RATES, '--name', 'other')[0], 0)
        self.assertEqual(calls.call_count, 6)
        with running as calls:
            self.assertEqual(self.main('--seeds', '1,2')[0], 0)
        self.assertEqual(calls.call_count, 0)
        self.assertEqual((self.directory / f'results/{NAME}.csv').read_text(), rows)

    def test_a_comparison_takes_the_place_of_one_that_it_holds_and_of_no_other(self) -> None:
        self.assertEqual(self.main('--seeds', '1')[0], 0)
        rows = (self.directory / f'results/{NAME}.csv').read_text()
        for flags, flag in (
            (('--seeds', '2'), 'seeds'), (('--seeds', '1', '--max_steps', '9'), 'max_steps'),
            (('--seeds', '1', '--init', 'kaiming'), 'init'),
            (('--seeds', '1', '--learning_rates', '0.002'), 'learning_rates'),
        ):  # fmt: skip
            with (
                self.subTest(flag=flag),
                mock.patch.object(train_mlp_pytorch, 'train', side_effect=AssertionError('it trained')),
            ):
                status, _, err = self.main(*flags)
                self.assertEqual((status, len(err.splitlines())), (2, 1))
                self.assertIn(f'give this one another --name) belongs to another run: its {flag} is', err)
        self.assertEqual((self.directory / f'results/{NAME}.csv').read_text(), rows)
        (self.directory / 'results/run.json').write_text('{"status": "finished"}')
        status, _, err = self.main('--seeds', '2', '--name', 'run')
        self.assertEqual((status, len(err.splitlines())), (2, 1))
        self.assertIn('run.json holds what is no comparison', err)
        self.assertEqual(self.main('--seeds', '2', '--name', 'other')[0], 0)
        self.assertTrue((self.directory / 'figures/other.png').exists())
        self.assertEqual(self.main('--seeds', '2,1')[0], 0)
        self.assertEqual(self.summary()['seeds'], [2, 1])

    def test_stopped_between_two_runs_it_leaves_the_rows_of_those_that_are_finished(self) -> None:
        train, path = train_mlp_pytorch.train, self.directory / f'results/{NAME}.csv'

        def stopped(flags: object, *args: object, **kwargs: object) -> experiment.RunRecord:
            if (flags.norm, flags.learning_rate, flags.seed) == ('layer_manual', 0.1, 2):
                raise KeyboardInterrupt
            return train(flags, *args, **kwargs)

        with mock.patch.object(train_mlp_pytorch, 'train', stopped):
            self.assertEqual(self.main('--seeds', '1,2')[0], 130)
            part = read_rows(path)
            self.assertGreater(len(part), 0)
            path.with_suffix('.json').write_text('{}')  # of a whole comparison
            path.write_text('rows of it')
            self.assertEqual(self.main('--seeds', '1,2')[0], 130)
        self.assertEqual(path.read_text(), 'rows of it')
        self.assertEqual(self.main('--seeds', '1,2')[0], 0)
        self.assertEqual(read_rows(path)[: len(part)], part)

    def test_a_run_that_diverges_is_told_and_counts_as_chance(self) -> None:
        for _ in range(2):  # the second time beside its record
            status, out, _ = self.main('--seeds', '1', '--learning_rates', '0.002', '1e30')
            self.assertIn('without, learning rate 1e+30, batch size 20, seed 1: diverged', out)
            cell = self.summary()['cells'][3]
            self.assertEqual((status, cell['n_diverged'], cell['mean']), (0, 1, 0.1))
            self.assertEqual(read_rows(self.directory / f'results/{NAME}.csv')[3]['status'], 'diverged')

    def test_a_record_that_cannot_be_written_shows_in_the_exit_status(self) -> None:
        with mock.patch.object(experiment, 'plot_curves', side_effect=[OSError('full')] + [None] * 8):
            self.assertEqual(self.main('--seeds', '1')[0], 1)

    def test_one_seed_has_no_deviation(self) -> None:
        with warnings.catch_warnings(action='error'):
            status, out, _ = self.main('--seeds', '1')
        self.assertEqual((status, '±' in out.split('wrote')[0].split('\n', 10)[-1]), (0, False))
        self.assertIsNone(self.summary()['cells'][0]['std'])

    def test_what_is_summarised(self) -> None:
        cells = {tuple(cell[field] for field in FIELDS): cell for cell in made_up()}
        cell = cells['none', 0.002, 200]
        self.assertAlmostEqual(cell['mean'], 0.2)
        self.assertAlmostEqual(cell['std'], math.sqrt(0.02))
        self.assertEqual([cell[key] for key in ('min', 'max', 'n_runs', 'n_diverged')], [0.1, 0.3, 2, 1])
        self.assertEqual(cells['none', 0.1, 200]['n_diverged'], 2)
        self.assertAlmostEqual(cells['layer_manual', 0.002, 4]['mean'], 0.6)
        header, rows = compare_batch_norm.table(made_up())
        self.assertEqual(header[2:], ['without', 'batch normalisation', 'layer normalisation'])
        batch, layer = '0.450 ± 0.071', '0.600 ± 0.141'
        self.assertEqual(rows, [
            ['0.002', '200', '0.200 ± 0.141 (1 of 2 diverged)', batch, layer],
            ['0.1', '200', 'all 2 diverged', batch, layer],
            ['0.002', '4', '0.200 ± 0.141', batch, layer],
        ])  # fmt: skip

    def test_the_figure(self) -> None:
        with mock.patch.object(compare_batch_norm, 'save_figure') as save_figure:
            compare_batch_norm.plot(made_up(), 'synthetic', 0.002, 200, 1200, self.directory / 'x.png')
        figure = save_figure.call_args.args[0]
        self.assertIn('1,200 examples', figure.get_suptitle())
        for panel, x, without, lost in zip(
            figure.axes, ([0.002, 0.1], [4, 200]), ([0.2, 0.1], [0.2, 0.2]), (['1 of 2', '2 of 2'], ['1 of 2']),
            strict=True,
        ):  # fmt: skip
            self.assertEqual((panel.get_xscale(), list(panel.get_xticks())), ('log', x))
            lines = {line.get_label(): line for line in panel.get_lines()}
            expected = {'without': without, 'batch normalisation': [0.45] * 2, 'layer normalisation': [0.6] * 2}
            for title, mean in expected.items():
                np.testing.assert_allclose(lines[title].get_xdata(), x, rtol=0.06)
                np.testing.assert_allclose(lines[title].get_ydata(), mean)
            self.assertEqual(list(lines['chance'].get_ydata()), [0.1, 0.1])
            self.assertEqual([text.get_text() for text in panel.texts], lost)
            ranges = [segment[:, 1].tolist() for segment in panel.collections[0].get_segments()]
            self.assertIn([0.1, 0.3], ranges)
            crosses = [line for line in panel.get_lines() if line.get_marker() == 'x' and len(line.get_xdata())]
            self.assertEqual([line.get_ydata()[0] for line in crosses], [0.1] * len(lost))
            bottom, top = panel.get_ylim()
            self.assertTrue(bottom == 0 and top > 0.7)
        (legend,) = figure.legends
        self.assertIn('how many runs diverged; they count as chance', [text.get_text() for text in legend.texts])

    def test_a_figure_of_one_value_each(self) -> None:
        cells = [cell for cell in made_up() if (cell['learning_rate'], cell['batch_size']) == (0.002, 4)]
        with warnings.catch_warnings(action='error'):
            compare_batch_norm.plot(cells, 'cifar10', 0.002, 4, 1200, self.directory / 'x.png')
        self.assertTrue(only(self.directory, '.png').stat().st_size > 0)
