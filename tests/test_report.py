"""What fills REPORT.md and README.md and checks them, on a made-up project in a temporary directory."""

import contextlib
import importlib
import io
import json
import shutil
import unittest
from pathlib import Path
from unittest import mock

from compare_batch_norm import all_settings as all_settings_compared
from compare_batch_norm import build_parser, summarise
from files import write_csv, write_json
from flags import defaults
from grid_search_results import GRIDS, Setting, all_settings
from report import checks, equations
from report.__main__ import main
from report.claims import NAMED_BEST, findings
from report.records import STUDENT_TABLES, student_convnet, student_searches
from report.tables import TABLES, commands, over_seeds
from tests.helpers import temporary_directory

REPORT = r"""
$$ y = 2 x \tag{1} $$
$$ z = 3 y \tag{2} $$

![A figure](figures/a.png), [the code](modules.py), [a section](#errata), [another place](https://example.org)

- wrong in one place. Check: `test_erratum_2`.
- and in another. Check: `erratum_table_2`.

"""
CODE = '''"""Doubles and triples; (Eq. 2) follows from Eq. 1."""

class Triple:
    """Three times."""

    def forward(self, y):
        """z = 3 y    (Eq. 2)"""

        def inner(x):
            return 2 * x  # (Eq. 1 at once)

        return 3 * y
'''
TESTS = """
# What a test says of an equation, such as (Eq. 99), is no citation.

class EquationTest:
    def test_equation_1_double(self): ...
    def test_equation_2_triple(self): ...
    def test_erratum_2(self): ...
    def test_erratum_23_is_another(self): ...
"""


def run_summary(name: str) -> dict[str, object]:
    """The JSON of a run on which the student's report agrees, where it has numbers."""
    table = STUDENT_TABLES.get(name, STUDENT_TABLES['mlp_numpy'])
    rows = {which: {'step': step, **table[which]} for which, step in (('best', 1001), ('last', 1500))}
    return {'dataset': 'cifar10', 'status': 'finished', **rows, 'seconds': 9.5, 'machine': 'a machine'}


def write_search(root: Path, name: str, grid: str, validation: bool = False) -> None:
    """The CSV and the JSON of a search of which every setting has its first and its last row."""
    settings = all_settings(GRIDS[grid])
    rows = []
    for setting in settings:
        for step in (1, setting.max_steps):
            accuracy = round(0.1 + step * sum(setting.widths) * 1e-7, 6)
            row = {'train_acc': accuracy, 'train_loss': 2.0, 'test_acc': accuracy, 'test_loss': 2.0}
            row |= {'test_acc': accuracy - 0.01, 'val_acc': accuracy, 'val_loss': 2.0} if validation else {}
            rows.append({**setting._asdict(), 'status': 'finished', 'step': step, **row})
    path = root / f'results/grid_search_mlp_pytorch{name}'
    write_csv(path.with_suffix('.csv'), rows)
    times = {setting.run: {'wall_seconds': 1.0} for setting in settings}
    write_json(path.with_suffix('.json'), {'times': times, 'wall_seconds': 7200.0, 'machine': 'a machine'})


def write_comparison(root: Path) -> None:
    """The CSV and the JSON of the comparison of the normalisations, of which one run diverged."""
    rows = [{**setting._asdict(), 'seed': seed, 'status': 'finished', 'test_acc': 0.4 + 0.01 * (seed - 44)}
            for setting in all_settings_compared([2e-3, 2e-2, 0.1], [4, 16, 64, 200], 2e-3, 200)
            for seed in (42, 43, 44, 45, 46)]  # fmt: skip
    rows[0] |= {'status': 'diverged', 'test_acc': 0.1}
    path = root / 'results/normalisation_mlp_pytorch'
    write_csv(path.with_suffix('.csv'), rows)
    write_json(path.with_suffix('.json'), {
        'dataset': 'cifar10', 'cells': summarise(rows), 'seconds': 900.0, 'machine': 'a machine',
        'flags': defaults(build_parser()),
    })  # fmt: skip


def write_project(root: Path) -> None:
    """Documents with a place for every table, and all that they rest on."""
    places = {name: f'<!-- table: {name} -->\n<!-- /table -->\n' for name in TABLES}
    (root / 'README.md').write_text(places.pop('glance'))
    (root / 'REPORT.md').write_text(REPORT + ''.join(places.values()))
    (root / 'modules.py').write_text(CODE)
    (root / 'unittests.py').write_text(TESTS)
    (root / 'figures').mkdir()
    (root / 'figures/a.png').touch()
    for command, name in commands().values():
        script, *words = command.split()
        if script.startswith('train_'):
            summary = run_summary(name)
            flags = importlib.import_module(script.removesuffix('.py')).build_parser().parse_args(words)
            write_csv(root / f'results/{name}.csv', [summary['best'], summary['last']])
            summary['best']['val_acc'] = 0.5
            write_json(root / f'results/{name}.json', summary | {'flags': vars(flags)})
    matrix = [[9 if i == j else 1 for j in range(10)] for i in range(10)]
    write_json(root / 'results/evaluate_mlp_numpy_later.json', {'confusion_matrix': matrix, 'accuracy': 0.5})
    for name in ('mlp_numpy', 'mlp_pytorch_best', 'convnet_pytorch'):
        write_json(root / f'results/evaluate_{name}.json', {
            'confusion_matrix': matrix, 'accuracy': 0.5, 'first_layer_std': 0.25,
            'calibration': {'expected_calibration_error': 0.125},
        })  # fmt: skip
    flags = {'learning_rate': 0.1, 'augment': ['flip', 'shift=4'], 'epochs': None, 'max_steps': 250, 'batch_size': 400,
             'validation_size': 0, 'name': 'a name'}  # fmt: skip
    for name, value, accuracy in (('base', 0.1, 0.5), ('half', 0.05, 0.25)):
        write_json(root / f'recipes/trials/results/mlp_numpy_{name}.json', {
            'name': f'mlp_numpy_{name}', 'script': 'mlp_numpy', 'flags': flags | {'learning_rate': value, 'name': name},
            'last': {'val_acc': accuracy, 'train_acc': 0.625}, 'seconds': 30.0,
        })  # fmt: skip
    (root / 'recipes/mlp_numpy.txt').write_text('--momentum 0.9  # and no more\n')
    last = {'test_acc': 0.675, 'test_views_acc': 0.7}
    write_json(root / 'results/mlp_numpy_recipe.json', {
        'name': 'mlp_numpy_recipe', 'script': 'mlp_numpy', 'machine': 'a machine', 'seeds': [1, 2, 3],
        'mean': {'last': last}, 'std': {'last': {'test_acc': 0.0025, 'test_views_acc': 0.005}},
    })  # fmt: skip
    for seed, seconds in ((1, 600.0), (2, 660.0), (3, 720.0)):
        write_json(root / f'results/mlp_numpy_recipe_seed={seed}.json', {
            'name': f'seed {seed}', 'status': 'finished', 'dataset': 'cifar10', 'seconds': seconds,
            'flags': {'momentum': 0.9, 'seed': seed}, 'machine': 'one' if seed < 3 else 'two',
        })  # fmt: skip
        rows = [{'step': 1, 'test_acc': 0.1, 'test_views_acc': 0.1}, {'step': 10, **last}]
        write_csv(root / f'results/mlp_numpy_recipe_seed={seed}.csv', rows)
    write_comparison(root)
    ratio = {'benchmark': 'step', 'case': '100', 'ours': 'ours', 'theirs': 'pytorch', 'ratio': 0.7, 'low': 0.6,
             'high': 0.8, 'measured': 0.01, 'at_most': 1.0}  # fmt: skip
    (root / 'results/benchmark.json').write_text(
        json.dumps({'machine': 'a machine', 'threads': 2, 'versions': {'numpy': '2'}, 'ratios': {'step': [ratio]}})
    )
    on_xeon = {'machine': 'a Xeon', 'ratios': {'step': [ratio | {'ratio': 1.25}]}}
    write_json(root / 'results/benchmark_xeon.json', on_xeon)
    emulated = ratio | {'theirs': 'plain', 'ratio': 9.0}
    write_json(
        root / 'results/benchmark_without_bfloat16.json', {'machine': 'another', 'ratios': {'convnet': [emulated]}}
    )
    write_search(root, '', 'full')
    write_search(root, '_additional', 'additional')
    write_search(root, '_additional_validation', 'additional', validation=True)
    write_search(root, '_learning_rate_validation', 'learning_rate', validation=True)


class ReportTest(unittest.TestCase):
    def setUp(self) -> None:
        self.root = Path(self.enterContext(temporary_directory()))
        self.enterContext(mock.patch.object(checks, 'COMPUTED', {1, 2}))
        write_project(self.root)
        self.assertEqual(self.main()[::2], (0, ''))

    def main(self, *args: str) -> tuple[int, str, str]:
        """The script's exit status, stdout and stderr."""
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = main(self.root, list(args))
            except SystemExit as stop:
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def replace(self, path: str, old: str, new: str) -> None:
        """Writes `new` for the first `old` in a file."""
        text = (self.root / path).read_text()
        self.assertIn(old, text)
        (self.root / path).write_text(text.replace(old, new, 1))

    def assert_fails(self, **expected: str) -> None:
        """Just these checks fail, each with a line that has its words."""
        status, out, _ = self.main('--check')
        self.assertEqual(status, 1)
        lines = dict(line.split(': ', 1) for line in out.splitlines())
        self.assertEqual(lines.keys(), expected.keys(), out)
        for name, words in expected.items():
            self.assertIn(words, lines[name])

    def test_a_filled_project_passes(self) -> None:
        before = (self.root / 'REPORT.md').read_text()
        self.assertEqual(self.main('--check')[0], 0)
        self.assertEqual(self.main(), (0, '', ''))
        self.assertEqual((self.root / 'REPORT.md').read_text(), before)
        self.assertIn('| training | accuracy | 0.525 (step 1001) | 0.525 | 0.390 | 0.390 | 0.525 |', before)
        self.assertIn('| 0.4600 | 3000 | Adadelta | 0.0002 | 100 | 400,400,400 | 3000 |', before)
        self.assertIn('| 0.7000 | 3000 | **0.6900** |', before)  # of the one that is picked by validation alone
        self.assertEqual(before.count('**0.'), 2)
        self.assertIn('| `python grid_search_mlp_pytorch.py --grid full` | 2.0 h | a machine |', before)
        self.assertIn('| ConvNet, default flags | 0.5000 | 0.125 | truck as ship 1, truck as horse 1, ', before)
        self.assertIn(' | 0.1111 | 0.2500 |', before)
        base = 'the base: learning_rate 0.1, batch_size 400, augment flip,shift=4'
        self.assertIn(f'| NumPy MLP | {base} | 0.5000 | 0.625 | 2 | 15.0 |\n'
                      '| NumPy MLP | learning_rate 0.05 | 0.2500 | 0.625 | 2 | 15.0 |', before)  # fmt: skip
        recipe = 'NumPy MLP, recipe | 0.6750 ± 0.0025 | 0.7000 ± 0.0050 |'
        self.assertIn(f'| {recipe} 3 | 0.4370 | 10 min on one; 12 min on two |', before)
        glance = (self.root / 'README.md').read_text()
        self.assertIn('| NumPy MLP, recipe, last step | 0.6750 ± 0.0025 | – | – |', glance)
        self.assertTrue((self.root / 'figures/recipes.png').exists())
        self.assertIn('| step | 100 | ours / pytorch | 0.70 | 0.60 to 0.80 | 1 | reached | 1.25 |', before)
        self.assertIn('The last column was measured on a Xeon.', before)
        self.assertIn('On another, a processor without instructions for bfloat16, ', before)
        told = '| 0.002 | 200 | 0.344 ± 0.137 (1 of 5 diverged) | 0.400 ± 0.016 | 0.400 ± 0.016 |'
        self.assertIn(told, before)

    def test_a_recipe_of_one_run_has_no_standard_deviation(self) -> None:
        record = {'mean': {'last': {'test_acc': 0.5}}, 'std': {'last': {'test_acc': None}}}
        self.assertEqual(over_seeds(record, 'test_acc'), '0.5000')

    def test_a_later_network_that_was_interrupted(self) -> None:
        self.replace('results/mlp_numpy_later.json', '"finished"', '"interrupted"')
        self.assert_fails(later_networks='mlp_numpy_later is interrupted on cifar10')

    def test_a_run_that_is_not_its_commands(self) -> None:
        self.replace('results/mlp_pytorch_later_256-128.json', '"activation": "elu"', '"activation": "relu"')
        self.assert_fails(commands_of_runs="mlp_pytorch_later_256-128 has the flags {'learning_rate': '0.1', ")

    def test_recipes_that_are_not_their_files(self) -> None:
        path = 'results/mlp_numpy_recipe_seed=2.json'
        for old, new, words in (
            ('0.9', '0.8', "seed 2 has the flags {'momentum': '0.8'}, its file has {'momentum': '0.9'}"),
            ('finished', 'diverged', 'seed 2 is diverged on cifar10'),
            ('cifar10', 'synthetic', 'seed 2 is finished on synthetic'),
        ):
            self.replace(path, old, new)
            self.assert_fails(recipes=words)
            self.replace(path, new, old)

    def test_recipes_of_other_names(self) -> None:
        for number, name in enumerate(('mlp_numpy_recipe_wide', 'mlp_numpy_recipe_wider')):
            for suffix, own in (('', {'name': name, 'seeds': [1]}), ('_seed=1', {'name': f'run {number}'})):
                there = json.loads((self.root / f'results/mlp_numpy_recipe{suffix}.json').read_text())
                write_json(self.root / f'results/{name}{suffix}.json', there | own)
            shutil.copy(self.root / 'results/mlp_numpy_recipe_seed=1.csv', self.root / f'results/{name}_seed=1.csv')
        self.main()
        self.assertIn('| NumPy MLP, recipe wider | 0.6750', (self.root / 'REPORT.md').read_text())
        self.replace('results/mlp_numpy_recipe_wide_seed=1.json', 'finished', 'diverged')
        self.assert_fails(recipes='run 0 is diverged on cifar10')
        (self.root / 'recipes/mlp_numpy_wider.txt').write_text('--momentum 0.8')
        self.replace('results/mlp_numpy_recipe_wide_seed=1.json', 'diverged', 'finished')
        self.assert_fails(recipes="run 1 has the flags {'momentum': '0.9'}, its file has {'momentum': '0.8'}")

    def test_a_wrong_number_is_found_and_mended(self) -> None:
        before = (self.root / 'REPORT.md').read_text()
        self.replace('REPORT.md', '| training | accuracy | 0.525 (', '| training | accuracy | 0.999 (')
        self.assert_fails(tables='REPORT.md: numpy_mlp out of date')
        self.assertEqual(self.main(), (0, 'REPORT.md: filled numpy_mlp\n', ''))
        self.assertEqual((self.root / 'REPORT.md').read_text(), before)

    def test_a_table_that_there_is_not(self) -> None:
        self.replace('README.md', 'table: glance', 'table: nonsense')
        self.assert_fails(tables="README.md: there is no table 'nonsense'")
        status, _, err = self.main()
        self.assertEqual((status, err.count('\n')), (2, 1))
        self.assertIn("no table 'nonsense'", err)

    def test_a_table_that_stands_nowhere(self) -> None:
        self.replace('REPORT.md', '<!-- table: convnet -->', '')
        self.assert_fails(tables='no document has a place for convnet')

    def test_results_that_cannot_be_read(self) -> None:
        path = self.root / 'results/convnet_pytorch.json'
        for text in (None, '{', '{}', '[]'):
            path.unlink() if text is None else path.write_text(text)
            unread = 'cannot read what it looks at'
            self.assert_fails(tables='the results behind table convnet cannot be read', commands_of_runs=unread)
            status, _, err = self.main()
            self.assertEqual((status, err.count('\n')), (2, 1))
            self.assertIn('convnet', err)
        (self.root / 'results/mlp_numpy.json').unlink()
        missing = 'FileNotFoundError'
        self.assert_fails(tables='numpy_mlp cannot be read', table_1=missing, commands_of_runs=missing)

    def test_a_missing_figure(self) -> None:
        (self.root / 'figures/a.png').unlink()
        self.assert_fails(links='REPORT.md: there is no figures/a.png')

    def test_equations_and_their_tests(self) -> None:
        for path, old, new, words in (
            ('unittests.py', 'test_equation_2_', 'test_equation_22_', 'equation 2 has no test; equation 22 has a test'),
            ('REPORT.md', 'tag{2}', 'tag{3}', 'not numbered one after the other: 1, 3'),
            ('modules.py', 'from Eq. 1', 'from Eq. 9', 'equation 9 is named by the code'),
            ('modules.py', '(Eq. 1 at once)', 'Eq. 1', 'equation 1 is not cited behind the formula'),
        ):
            self.replace(path, old, new)
            self.main()
            self.assert_fails(equations=words)
            self.replace(path, new, old)
            self.main()
        self.assertEqual(self.main('--check')[0], 0)

    def test_equations_stand_at_names(self) -> None:
        code = {1: ['[`Triple.forward.inner`](modules.py)'],
                2: ['[`modules.py`](modules.py)', '[`Triple.forward`](modules.py)']}  # fmt: skip
        self.assertEqual(equations.computed(self.root), code)
        self.assertEqual(equations.tests(self.root)[2], ['[`test_equation_2_triple`](unittests.py)'])
        for path in ('modules.py', 'unittests.py'):
            self.replace(path, '\n', '\n# A line more.\n')
        self.assertEqual(self.main('--check')[0], 0)

    def test_several_equations_in_one_citation(self) -> None:
        cited = {'(Eqs. 1 and 2)': {1, 2}, '(Eqs. 4, 6 and 8)': {4, 6, 8}, '(Eqs. 3 to 5)': {3, 4, 5},
                 '(Eq. 3, with 2 layers)': {3}, 'by Eqs. 1 and 2': set()}  # fmt: skip
        for text, numbers in cited.items():
            (self.root / 'modules.py').write_text(f'# {text}\n')
            self.assertEqual(equations.computed(self.root).keys(), numbers, text)

    def test_the_errata_s_checks_have_these_very_names(self) -> None:
        self.replace('unittests.py', 'def test_erratum_2(self): ...', '')
        self.assert_fails(errata='there is no test_erratum_2, ')
        self.replace('unittests.py', 'test_erratum_23_is_another', 'test_erratum_2')
        self.replace('REPORT.md', '`erratum_table_2`', '`erratum_table`')
        self.assert_fails(errata='there is no erratum_table, ')

    def test_table_1_has_every_digit(self) -> None:
        for old, new, words in (
            ('0.437', '0.438', 'last test_acc is 0.438, printed is 0.437'),
            ('cifar10', 'synthetic', 'the run is on synthetic'),
        ):
            self.replace('results/mlp_numpy.json', old, new)
            self.main()
            self.assert_fails(table_1=words)
            self.replace('results/mlp_numpy.json', new, old)
        path = self.root / 'results/mlp_numpy.csv'
        path.write_text(path.read_text() + '1101,0.526,2.0,0.1,2.0\n')  # best in one metric alone
        self.main()
        self.assert_fails(table_1='best train_acc is 0.526, printed is 0.525')

    def test_a_grid_that_is_not_whole(self) -> None:
        name = 'grid_search_mlp_pytorch_additional_validation'
        path = self.root / f'results/{name}.csv'
        whole = path.read_text()
        path.write_text(''.join(whole.splitlines(keepends=True)[:-1]))
        self.main()
        self.assert_fails(grids=f'{name} has 2 of the 3 settings whole')
        path.write_text(whole + whole.splitlines()[-1].replace(',3000,', ',1000,') + '\n')
        self.main()
        self.assert_fails(grids=f'{name} has 1 settings of another grid')
        path.write_text(whole)
        self.replace(f'results/{name}.json', '0.0002', '0.002')
        self.main()
        self.assert_fails(grids=f'{name} has not the times')

    def test_a_comparison_that_is_not_whole(self) -> None:
        path = self.root / 'results/normalisation_mlp_pytorch.csv'
        before = path.read_text()
        path.write_text(before.replace('none,0.02,200,43,', 'none,0.02,200,47,'))
        self.assert_fails(comparison='it has 89 of its 90 runs, and 90 rows')
        path.write_text(before + before.splitlines()[-1] + '\n')
        self.assert_fails(comparison='it has 90 of its 90 runs, and 91 rows')
        path.write_text(before.replace('finished,0.41', 'finished,0.42', 1))
        self.assert_fails(comparison='its summary is not that of its rows')
        path.write_text(before)
        self.replace('results/normalisation_mlp_pytorch.json', 'cifar10', 'synthetic')
        self.assert_fails(comparison='the runs are on synthetic')
        self.replace('results/normalisation_mlp_pytorch.json', 'synthetic', 'cifar10')
        self.replace('results/normalisation_mlp_pytorch.json', '"max_steps": 1000', '"max_steps": 20')
        self.assert_fails(comparison='its max_steps is 20, by default it is 1000')

    def test_a_setting_in_both_searches(self) -> None:
        path = 'results/grid_search_mlp_pytorch_additional.csv'
        self.replace(path, '400,"400,400,400",3000,finished,1,', '400,"400,400,400",3000,finished,2,')
        self.assert_fails(same_in_both_searches='has other rows')

    def test_errata_that_the_records_do_not_bear_out(self) -> None:
        """Each check of an erratum fails where the student's records are such that the report would be right."""
        full, additional = (student_searches()[search] for search in ('full', 'additional'))
        three, four, five = additional
        as_told = {setting: (0.5192 if setting == NAMED_BEST else 0.2 + 1e-5 * sum(setting.widths)
                             + 0.1 * (setting.learning_rate < 2e-3), 0.1) for setting in full}  # fmt: skip
        depths = {three: (0.5311, 0.51), four: (0.52, 0.5247), five: (0.53, 0.52)}
        whole = [row | {'train_acc': 0.3333, 'test_acc': 0.75001} for row in student_convnet()]
        for of_records, expected in (
            ({'full': as_told, 'additional': additional}, {
                'erratum_2_best': 'has it as well', 'erratum_2_rates': 'sgd is best at 0.0002; adam is best at 0.0002',
                'erratum_2_size': 'wider networks consistently',
            }),
            ({'full': full, 'additional': depths}, {'erratum_2_depth': 'highest: 3 layers with 0.5311, not 4'}),
        ):  # fmt: skip
            with mock.patch.object(checks, 'student_searches', return_value=of_records):
                for name, words in expected.items():
                    self.assertIn(words, '; '.join(checks.CHECKS[name](self.root)))
        with mock.patch.object(checks, 'student_convnet', return_value=whole):
            complaints = '; '.join(checks.CHECKS['erratum_table_2'](self.root))
        self.assertIn('best train_acc is 0.3333, printed is 0.844', complaints)
        self.assertIn('a train_acc is not a multiple of 1/32; a test_acc is not a multiple of 1/10016', complaints)


class ClaimsTest(unittest.TestCase):
    def test_findings(self) -> None:
        """On made-up results, of which each finding is known."""
        levels = {
            'sgd': {2e-2: 0.1, 2e-3: 0.45, 2e-4: 0.46},
            'adam': {2e-2: 0.1, 2e-3: 0.47, 2e-4: 0.48},
            'adadelta': {2e-2: 0.44, 2e-3: 0.4, 2e-4: 0.3},
        }

        def accuracy(setting: Setting) -> float:
            level = levels[setting.optimizer][setting.learning_rate]
            if level == 0.1:
                return 0.4 if setting.optimizer == 'adam' and len(setting.widths) == 1 else 0.1
            return level + 1e-6 * (sum(setting.widths) + setting.max_steps + setting.batch_size)

        settings = all_settings(GRIDS['full'])
        runs = {setting: [{'test_acc': accuracy(setting)}] for setting in settings}
        found = findings(runs)
        self.assertEqual([finding.holds for finding in found], [True, True, True, True, True, False, False])
        self.assertIn('78% of 324 pairs', found[5].numbers)  # all but those of SGD and Adam at 0.02
        self.assertIn('100% of those', found[5].numbers)
        runs[Setting('sgd', 2e-3, 100, '100', 1500)] = [{'test_acc': 0.9}]
        holds = [finding.holds for finding in findings(runs)]
        self.assertEqual(holds, [True, True, True, False, False, False, False])
        self.assertEqual(findings({settings[0]: [{'test_acc': 0.5}]}), [])

        deep = all_settings(GRIDS['additional'])
        columns = ('step', 'test_acc', 'test_loss', 'train_acc', 'train_loss')
        rows = [[(1, 0.2, 2.0, 0.2, 2.2), (1000, 0.55, 1.5, 0.7, 0.9), (3000, 0.50, 2.5, 0.95, 0.2)],
                [(1, 0.1, 2.0, 0.2, 2.2), (1000, 0.53, 1.5, 0.7, 0.9), (3000, 0.51, 2.0, 0.90, 0.3)],
                [(1, 0.1, 2.0, 0.2, 2.2), (1000, 0.54, 1.5, 0.7, 0.9), (3000, 0.52, 1.8, 0.85, 0.4)]]  # fmt: skip
        runs = {setting: [dict(zip(columns, row, strict=True)) for row in of_setting]
                for setting, of_setting in zip(deep, rows, strict=True)}  # fmt: skip
        self.assertEqual([finding.holds for finding in findings(runs)], [True, True, True])
