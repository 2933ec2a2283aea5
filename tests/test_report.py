"""What the committed results say, and what REPORT.md and README.md say of them."""

import json
import re
import unittest
from unittest import mock

import grid_search_mlp_pytorch as grid_search
import report
from tests.helpers import ROOT


class ReportTest(unittest.TestCase):
    def test_tables_say_what_the_results_say(self) -> None:
        for document in report.DOCUMENTS:
            self.assertEqual(report.outdated((ROOT / document).read_text()), [])

    def test_a_wrong_number_is_found_and_mended(self) -> None:
        text = (ROOT / 'REPORT.md').read_text()
        wrong = text.replace('| training | accuracy | 0.525 |', '| training | accuracy | 0.999 |')
        self.assertNotEqual(wrong, text)
        self.assertEqual(report.outdated(wrong), ['numpy_mlp'])
        self.assertEqual(report.fill(wrong), text)
        with self.assertRaisesRegex(report.ReportError, "no table 'nonsense'"):
            report.fill('<!-- table: nonsense -->\n<!-- /table -->')
        with mock.patch.object(report, 'ROOT', ROOT / 'nowhere'), self.assertRaisesRegex(report.ReportError, 'convnet'):
            report.fill('<!-- table: convnet -->\n<!-- /table -->')

    def test_every_equation_has_its_test(self) -> None:
        numbers = re.findall(r'\\tag\{(\d+)\}', (ROOT / 'REPORT.md').read_text())
        self.assertEqual(numbers, [str(i) for i in range(1, len(numbers) + 1)])
        tests = re.findall(r'def test_equation_(\d+)_', (ROOT / 'unittests.py').read_text())
        self.assertEqual(tests, numbers)
        code = ''.join(path.read_text() for path in (ROOT / 'modules.py', ROOT / 'custom_batchnorm.py'))
        named = set(re.findall(r'Eq\. (\d+)', code))
        self.assertGreaterEqual(named, {'12', '13', '15', '16', '17', '18', '19', '20', '25'})
        self.assertLessEqual(named, set(numbers))

    def test_every_check_that_the_errata_name_is_there(self) -> None:
        text = (ROOT / 'REPORT.md').read_text()
        checks = set(re.findall(r'`(test_errat\w+)`', text))
        self.assertGreater(len(checks), 5)
        code = (ROOT / 'unittests.py').read_text() + (ROOT / 'tests/test_report.py').read_text()
        for check in checks:
            self.assertIn(f'def {check}', code)

    def test_every_figure_and_link_is_there(self) -> None:
        for document in report.DOCUMENTS:
            for target in re.findall(r'\]\(([^)#]+)', (ROOT / document).read_text()):
                self.assertTrue((ROOT / target).exists(), f'{document}: {target}')


class CommittedResultsTest(unittest.TestCase):
    def test_table_1(self) -> None:
        """The committed NumPy run has every printed digit of Table 1 of the report."""
        summary = json.loads((ROOT / 'results/mlp_numpy.json').read_text())
        self.assertEqual(summary['dataset'], 'cifar10')
        for which, expected in report.STUDENT_TABLES['mlp_numpy'].items():
            self.assertEqual({key: round(summary[which][key], 3) for key in expected}, expected)

    def test_the_grids_are_whole(self) -> None:
        for name, grid, n_runs in (('', 'full', 243), ('_additional', 'additional', 3)):
            settings = grid_search.all_settings(grid_search.GRIDS[grid])
            self.assertEqual(set(report.searched(name)), set(settings))
            self.assertEqual(len(report.summary(f'grid_search_mlp_pytorch{name}')['times']), n_runs)

    def test_erratum_2_the_setting_in_both_searches_gives_the_same_in_both(self) -> None:
        setting = grid_search.Setting('adam', 2e-4, 400, '400,400,400', 3000)
        self.assertEqual(report.searched('')[setting], report.searched('_additional')[setting])

    def test_erratum_table_2_training_figures_are_of_single_batches(self) -> None:
        best, last = (report.STUDENT_TABLES['convnet_pytorch'][which] for which in ('best', 'last'))
        self.assertEqual((best['train_acc'], last['train_acc']), (round(27 / 32, 3), round(24 / 32, 3)))
        self.assertEqual((best['test_acc'], best['test_loss']), (last['test_acc'], last['test_loss']))
        self.assertNotEqual(best['train_acc'], last['train_acc'])
