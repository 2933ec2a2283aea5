"""Fills the tables of REPORT.md and README.md from `results/`, or checks that they say what `results/` says.

    python report.py            # after new results
    python report.py --check    # exit status 1 where a table says something else, and its name

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is one of the functions under `@table` here.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import grid_search_mlp_pytorch as grid_search
from benchmark.ratios import read_ratios
from compare_batch_norm import VARIANTS
from experiment import OneLineParser, atomic_file, best_row

ROOT = Path(__file__).resolve().parent
DOCUMENTS = ('REPORT.md', 'README.md')
MARKED = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- /table -->)', re.DOTALL)

COLUMNS = ('train_acc', 'train_loss', 'test_acc', 'test_loss')
# What the student's report prints: its Tables 1 and 2, and the accuracies in the text of its section 2.
STUDENT_TABLES = {
    'mlp_numpy': {
        'best': dict(zip(COLUMNS, (0.525, 1.367, 0.469, 1.515), strict=True)),
        'last': dict(zip(COLUMNS, (0.39, 1.616, 0.437, 1.602), strict=True)),
    },
    'convnet_pytorch': {
        'best': dict(zip(COLUMNS, (0.844, 0.433, 0.750, 0.748), strict=True)),
        'last': dict(zip(COLUMNS, (0.750, 0.941, 0.750, 0.748), strict=True)),
    },
}
STUDENT_FULL_GRID, STUDENT_ADDITIONAL, STUDENT_ADDITIONAL_LAST = 0.5192, 0.5311, 0.5247

TABLES: dict[str, Callable[[], str]] = {}


class ReportError(ValueError):
    """A document or the results behind it cannot be used; the message is one line."""


def table(function: Callable[[], str]) -> Callable[[], str]:
    """Makes a function's Markdown a table that a document may ask for by its name."""
    TABLES[function.__name__] = function
    return function


# Reading the results


def summary(name: str) -> dict:
    """The JSON of the run `name`."""
    return json.loads((ROOT / f'results/{name}.json').read_text())


def searched(name: str) -> dict[grid_search.Setting, list[dict]]:
    """The rows of each setting of a search; `name` is '', '_additional' or '_additional_validation'."""
    return grid_search.by_setting(grid_search.read_rows(ROOT / f'results/grid_search_mlp_pytorch{name}.csv'))


def picks(name: str) -> dict[grid_search.Setting, dict]:
    """The best row of each setting of a search, the best setting first."""
    best = {setting: best_row(rows) for setting, rows in searched(name).items()}
    return dict(sorted(best.items(), key=lambda item: -item[1].get('val_acc', item[1]['test_acc'])))


# Markdown


def markdown(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)


def bullets(findings: list[grid_search.Finding]) -> str:
    """A line for each finding."""
    verdicts = {True: 'Borne out', False: 'Not borne out'}
    return ''.join(f'- **{verdicts[found.holds]}**: {found.claim}. Here: {found.numbers}.\n' for found in findings)


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


def best_and_last(name: str) -> str:
    """The layout of the student's Tables 1 and 2, with that report's numbers beside ours where it has them."""
    ours, theirs = summary(name), STUDENT_TABLES.get(name)
    header = ['data set', 'metric', f'best (step {ours["best"]["step"]})', f'last (step {ours["last"]["step"]})']
    rows = []
    for column in COLUMNS:
        part, metric = column.split('_')
        row = [{'train': 'training', 'test': 'test'}[part], {'acc': 'accuracy', 'loss': 'loss'}[metric]]
        row += [f'{ours[which][column]:.3f}' for which in ('best', 'last')]
        if theirs:
            row += [f'{theirs[which][column]:.3f}' for which in ('best', 'last')]
        rows.append(row)
    return markdown(header + (['that report, best', 'that report, last'] if theirs else []), rows)


def accuracy_range(numbers: dict[str, float], which: str) -> str:
    """Mean and standard deviation, over the seeds, of the best or the last test accuracy."""
    return f'{numbers[f"{which}_mean"]:.3f} ± {numbers[f"{which}_std"]:.3f}'


# The tables


@table
def numpy_mlp() -> str:
    """Table 1."""
    return best_and_last('mlp_numpy')


@table
def pytorch_mlp() -> str:
    """The PyTorch MLP at its default flags."""
    return best_and_last('mlp_pytorch')


@table
def convnet() -> str:
    """Table 2."""
    return best_and_last('convnet_pytorch')


@table
def grid_best() -> str:
    """The ten best of the 486 settings."""
    rows = [[f'{row["test_acc"]:.4f}', row['step'], grid_search.OPTIMIZER_TITLES[setting.optimizer],
             f'{setting.learning_rate:g}', setting.batch_size, setting.dnn_hidden_units, setting.max_steps]
            for setting, row in list(picks('').items())[:10]]  # fmt: skip
    header = ['best test accuracy', 'at step', 'optimiser', 'learning rate', 'batch', 'hidden units', 'steps']
    return markdown(header, rows) + f'\nThe best of that report: {STUDENT_FULL_GRID:.4f}.\n'


@table
def grid_findings() -> str:
    """What the student's report says of the full grid."""
    return bullets(grid_search.findings(searched('')))


@table
def additional() -> str:
    """The additional search, picked by test accuracy and by validation accuracy."""
    by_test, by_validation = picks('_additional'), picks('_additional_validation')
    last = {setting: rows[-1]['test_acc'] for setting, rows in searched('_additional').items()}
    chosen = next(iter(by_validation))
    rows = []
    for setting, row in sorted(by_test.items(), key=lambda item: len(item[0].widths)):
        held_out = by_validation[setting]
        test = f'**{held_out["test_acc"]:.4f}**' if setting == chosen else ''
        rows.append([setting.dnn_hidden_units, f'{last[setting]:.4f}', f'{row["test_acc"]:.4f}', row['step'],
                     f'{held_out["val_acc"]:.4f}', held_out['step'], test])  # fmt: skip
    header = ['hidden units', 'last test accuracy', 'best test accuracy', 'at step',
              'best validation accuracy', 'at step', 'test accuracy of the pick']  # fmt: skip
    return markdown(header, rows) + (
        f'\nThat report: last {STUDENT_ADDITIONAL_LAST:.4f}, best {STUDENT_ADDITIONAL:.4f}, each the highest of its '
        'three networks.\n'
    )


@table
def additional_findings() -> str:
    """What the student's report says of the additional search."""
    return bullets(grid_search.findings(searched('_additional')))


@table
def batch_norm() -> str:
    """The MLP with and without batch normalisation."""
    accuracies = summary('batch_norm_mlp_pytorch')['test_acc']
    rows = [[VARIANTS[kind][0], *(accuracy_range(numbers, which) for which in ('best', 'last'))]
            for kind, numbers in accuracies.items()]  # fmt: skip
    return markdown(['batch normalisation', 'best test accuracy', 'last test accuracy'], rows)


@table
def equations() -> str:
    """Where each equation is tested and, where the code computes it, computed."""
    code = find_lines(r'Eq\. (\d+)', sorted(set(ROOT.glob('*.py')) - {ROOT / 'report.py', ROOT / 'unittests.py'}))
    tests = find_lines(r'def test_equation_(\d+)_', [ROOT / 'unittests.py'])
    numbers = re.findall(r'\\tag\{(\d+)\}', (ROOT / 'REPORT.md').read_text())
    return markdown(
        ['equation', 'computed in', 'held by'],
        [[number, ', '.join(code.get(number, [])) or 'derivation only', ', '.join(tests.get(number, ['nothing']))]
         for number in numbers],
    )  # fmt: skip


def find_lines(pattern: str, paths: list[Path]) -> dict[str, list[str]]:
    """For each number that `pattern` finds, links to the lines where it does."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for i, line in enumerate(path.read_text().splitlines(), start=1):
            for number in re.findall(pattern, line):
                found.setdefault(number, []).append(f'[{path.name}:{i}]({path.name}#L{i})')
    return found


@table
def reproduce() -> str:
    """The command behind each result, and how long it took."""
    commands = {
        '1.2, Table 1, Figure 1': ('train_mlp_numpy.py', 'mlp_numpy'),
        '2, the MLP at its default flags': ('train_mlp_pytorch.py', 'mlp_pytorch'),
        '2, the 486 settings': ('grid_search_mlp_pytorch.py --grid full', 'grid_search_mlp_pytorch'),
        '2, the additional search': (
            'grid_search_mlp_pytorch.py --grid additional', 'grid_search_mlp_pytorch_additional',
        ),
        '2, the same, picked by validation': (
            'grid_search_mlp_pytorch.py --grid additional --validation_size 5000',
            'grid_search_mlp_pytorch_additional_validation',
        ),
        '3.2 c, with and without batch normalisation': ('compare_batch_norm.py', 'batch_norm_mlp_pytorch'),
        '4, Table 2, Figure 5': ('train_convnet_pytorch.py', 'convnet_pytorch'),
    }  # fmt: skip
    rows = []
    for what, (command, name) in commands.items():
        record = summary(name)
        seconds = record.get('wall_seconds', record.get('seconds'))
        rows.append([what, f'`python {command}`', duration(seconds), record['machine']])
    return markdown(['question', 'command', 'took', 'on'], rows)


@table
def benchmarks() -> str:
    """Every measured pair that something was to be reached for, and what it was measured on."""
    environment, ratios = read_ratios(ROOT / 'results/benchmark.json')
    rows = [[name, ratio.case, f'{ratio.ours} / {ratio.theirs}', f'{ratio.ratio:.2f}',
             f'{ratio.low:.2f} to {ratio.high:.2f}', f'{ratio.at_most:.3g}', ratio.verdict]
            for name, measured in ratios.items() for ratio in measured if ratio.at_most is not None]  # fmt: skip
    header = ['benchmark', 'case', 'pair', 'ratio', '10th to 90th percentile', 'to reach', 'verdict']
    libraries = ', '.join(f'{name} {number}' for name, number in environment['versions'].items())
    return markdown(header, rows) + f'\nOn {environment["machine"]}, {environment["threads"]} threads; {libraries}.\n'


@table
def glance() -> str:
    """The results at a glance."""
    (full, at_full), (deep, at_deep) = (next(iter(picks(name).items())) for name in ('', '_additional'))
    at_validation = next(iter(picks('_additional_validation').values()))
    numpy_best, torch_best, convnet_best = (
        summary(name)['best']['test_acc'] for name in ('mlp_numpy', 'mlp_pytorch', 'convnet_pytorch')
    )
    return markdown(['best test accuracy', 'here', 'that report'], [
        ['NumPy MLP, default flags', f'{numpy_best:.3f}', f'{STUDENT_TABLES["mlp_numpy"]["best"]["test_acc"]:.3f}'],
        ['PyTorch MLP, default flags', f'{torch_best:.3f}', '–'],
        [f'the best of 486 settings ({grid_search.describe(full)})', f'{at_full["test_acc"]:.4f}',
         f'{STUDENT_FULL_GRID:.4f}'],
        [f'the best of three deeper ones ({deep.dnn_hidden_units})', f'{at_deep["test_acc"]:.4f}',
         f'{STUDENT_ADDITIONAL:.4f}'],
        ['the same, picked by validation accuracy', f'{at_validation["test_acc"]:.4f}', '–'],
        ['ConvNet, default flags', f'{convnet_best:.3f}',
         f'{STUDENT_TABLES["convnet_pytorch"]["best"]["test_acc"]:.3f}'],
    ])  # fmt: skip


# Filling and checking


def fill(text: str) -> str:
    """The document `text` with every table as `results/` has it.

    Raises:
        ReportError: it asks for a table that there is not, or its results cannot be read.
    """

    def filled(match: re.Match) -> str:
        opening, name, closing = match.groups()
        if name not in TABLES:
            raise ReportError(f'there is no table {name!r}; there are {", ".join(TABLES)}')
        try:
            return opening + TABLES[name]() + closing
        except (OSError, ValueError, LookupError) as error:
            raise ReportError(f'the results behind table {name} cannot be read ({error}): run its script') from error

    return MARKED.sub(filled, text)


def outdated(text: str) -> list[str]:
    """The names of the tables in `text` that do not say what `results/` says."""
    return [old[2] for old, new in zip(MARKED.finditer(text), MARKED.finditer(fill(text)), strict=True)
            if old[0] != new[0]]  # fmt: skip


def main() -> int:
    """Fills or checks both documents; returns the exit status."""
    parser = OneLineParser(description='Fills the tables of REPORT.md and README.md from results/.')
    parser.add_argument('--check', action='store_true', help='write nothing; fail where a table is out of date')
    flags = parser.parse_args()
    status = 0
    try:
        for path in (ROOT / document for document in DOCUMENTS):
            text = path.read_text()
            names = outdated(text)
            if flags.check and names:
                print(f'{path.name}: out of date: {", ".join(names)}; run python report.py', file=sys.stderr)
                status = 1
            elif names:
                with atomic_file(path) as file:
                    file.write(fill(text).encode())
                print(f'{path.name}: filled {", ".join(names)}')
    except (OSError, ReportError) as error:
        parser.error(str(error))
    return status


if __name__ == '__main__':
    sys.exit(main())
