"""What the committed results and documents must bear out: `python -m report --check`.

A check is a function under `@check`; it takes `root`, the directory that holds all these files, and yields a line for
each thing that is wrong. The unit tests look at none of these files, since a user's own runs write anew what is there.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import compare_batch_norm
from experiment import is_finite, shaping
from flags import defaults
from grid_search_results import BASE_NAME, GRIDS, Setting, all_settings
from report.equations import computed, mentioned, numbered, test_methods, tests
from report.records import STUDENT_TABLES, compared, searched, summary
from report.tables import DOCUMENTS, LATER_NETWORKS, MARKED, TABLES, ReportError, fill

# The equations of a batch, which the NumPy modules compute, those of the normalisations by hand, Kaiming's weights.
COMPUTED = {12, 13, 15, 16, 17, 18, 19, 20, 25, 28, 29, 30, 32, 33, 35, 36, 38}

Check = Callable[[Path], Iterator[str]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Makes a function one of the checks, by its name."""
    CHECKS[function.__name__] = function
    return function


def failures(root: Path) -> dict[str, str]:
    """What is wrong, in one line for each check that fails, by the check's name."""
    found = {}
    for name, function in CHECKS.items():
        try:
            complaints = list(function(root))
        except (OSError, ValueError, LookupError, TypeError) as error:
            complaints = [f'cannot read what it looks at ({type(error).__name__}: {error})']
        if complaints:
            found[name] = ' '.join('; '.join(complaints).split())
    return found


# The documents


@check
def tables(root: Path) -> Iterator[str]:
    """Every table says what `results/` says, and stands in a document."""
    texts = {document: (root / document).read_text(encoding='utf-8') for document in DOCUMENTS}
    for document, text in texts.items():
        try:
            _, names = fill(root, text)
        except ReportError as error:
            yield f'{document}: {error}'
        else:
            if names:
                yield f'{document}: {", ".join(names)} out of date: run python -m report'
    asked_for = {match[2] for text in texts.values() for match in MARKED.finditer(text)}
    if missing := TABLES.keys() - asked_for:
        yield f'no document has a place for {", ".join(sorted(missing))}'


@check
def links(root: Path) -> Iterator[str]:
    """Every figure and file that a document links to is there."""
    for document in DOCUMENTS:
        for target in re.findall(r'\]\(([^)#]+)', (root / document).read_text(encoding='utf-8')):
            if '://' not in target and not (root / target).exists():
                yield f'{document}: there is no {target}'


@check
def equations(root: Path) -> Iterator[str]:
    """The equations are numbered without a gap, each has its test, and the code cites those that it computes."""
    numbers, held = numbered(root), tests(root).keys()
    if numbers != list(range(1, len(numbers) + 1)):
        yield f'the equations of REPORT.md are not numbered one after the other: {", ".join(map(str, numbers))}'
    problems = {
        'has no test': set(numbers) - held,
        'has a test, but does not stand in REPORT.md': held - set(numbers),
        'is named by the code, but does not stand in REPORT.md': mentioned(root) - set(numbers),
        'is not cited behind the formula that computes it': COMPUTED - computed(root).keys(),
    }
    for problem, at in problems.items():
        for number in sorted(at):
            yield f'equation {number} {problem}'


@check
def errata(root: Path) -> Iterator[str]:
    """Every check that a line of the errata names is there, by that very name."""
    names = re.findall(r'Check: `(\w+)`', (root / 'REPORT.md').read_text(encoding='utf-8'))
    if not names:
        yield 'no line of the errata names a check'
    known = {*CHECKS, *(name for name, _ in test_methods(root))}
    for name in dict.fromkeys(names):
        if name not in known:
            yield f'there is no {name}, which the errata name'


# The results


@check
def table_1(root: Path) -> Iterator[str]:
    """The NumPy run has every digit that the student's Table 1 prints."""
    record = summary(root, 'mlp_numpy')
    if record['dataset'] != 'cifar10':
        yield f'the run is on {record["dataset"]}'
    for which, printed in STUDENT_TABLES['mlp_numpy'].items():
        for column, value in printed.items():
            if round(record[which][column], 3) != value:
                yield f'{which} {column} is {record[which][column]:.3f}, printed is {value:.3f}'


@check
def grids(root: Path) -> Iterator[str]:
    """The searches have all their settings, each up to its last step, and the times of all their runs."""
    for name, grid in (('', 'full'), ('_additional', 'additional'), ('_additional_validation', 'additional'),
                       ('_learning_rate_validation', 'learning_rate')):  # fmt: skip
        settings = set(all_settings(GRIDS[grid]))
        rows = searched(root, name)
        whole = {setting for setting, of_setting in rows.items()
                 if of_setting[-1]['step'] == setting.max_steps or not is_finite(of_setting[-1])}  # fmt: skip
        if not settings <= whole:
            yield f'{BASE_NAME}{name} has {len(whole & settings)} of the {len(settings)} settings whole'
        if extra := len(rows.keys() - settings):
            yield f'{BASE_NAME}{name} has {extra} settings of another grid'
        if summary(root, f'{BASE_NAME}{name}')['times'].keys() != {setting.run for setting in settings}:
            yield f'{BASE_NAME}{name} has not the times of just its runs'


@check
def comparison(root: Path) -> Iterator[str]:
    """The comparison of the normalisations has the runs of its default flags, and its summary is theirs."""
    asked = defaults(compare_batch_norm.build_parser())
    settings = compare_batch_norm.all_settings(
        asked['learning_rates'], asked['batch_sizes'], asked['learning_rate'], asked['batch_size']
    )
    runs = {(setting, seed) for setting in settings for seed in asked['seeds']}
    rows, told = compared(root), summary(root, compare_batch_norm.NAME)
    there = [(compare_batch_norm.setting_of(row), row['seed']) for row in rows]
    if told['dataset'] != 'cifar10':
        yield f'the runs are on {told["dataset"]}'
    for flag, value in shaping(asked).items():
        if told['flags'][flag] != value:
            yield f'its {flag} is {told["flags"][flag]}, by default it is {value}'
    if len(there) != len(runs) or set(there) != runs:
        yield f'it has {len(runs & set(there))} of its {len(runs)} runs, and {len(there)} rows'
    if told['cells'] != compare_batch_norm.summarise(rows):
        yield 'its summary is not that of its rows'


@check
def later_networks(root: Path) -> Iterator[str]:
    """The networks of the later years are trained to their end, on CIFAR-10."""
    for name in LATER_NETWORKS:
        record = summary(root, name)
        if (record['status'], record['dataset']) != ('finished', 'cifar10'):
            yield f'{name} is {record["status"]} on {record["dataset"]}'


# The errata, those that rest on records; the others are tests of the equations


@check
def erratum_2(root: Path) -> Iterator[str]:
    """The setting that stands in both searches gives the same in both."""
    setting = Setting('adam', 2e-4, 400, '400,400,400', 3000)
    if searched(root, '')[setting] != searched(root, '_additional')[setting]:
        yield 'the setting that stands in both searches has other rows in one than in the other'


@check
def erratum_table_2(root: Path) -> Iterator[str]:
    """The student's training figures are of single batches of 32, and the best test figures are the last ones."""
    best, last = (STUDENT_TABLES['convnet_pytorch'][which] for which in ('best', 'last'))
    if (best['train_acc'], last['train_acc']) != (round(27 / 32, 3), round(24 / 32, 3)):
        yield 'the training accuracies are not 27/32 and 24/32'
    if (best['test_acc'], best['test_loss']) != (last['test_acc'], last['test_loss']):
        yield 'the best test figures are not the last ones'
