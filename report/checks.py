"""What the committed results and documents must bear out: `python -m report --check`.

A check is a function under `@check`; it takes `root`, the directory that holds all these files, and yields a line for
each thing that is wrong. The unit tests look at none of these files, since a user's own runs write anew what is there.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import compare_batch_norm
from experiment import is_finite, shaping, told_flags
from flags import defaults
from grid_search_results import BASE_NAME, GRIDS, all_settings
from report.claims import NAMED_BEST, findings_on_size
from report.equations import computed, mentioned, numbered, test_methods, tests
from report.records import (
    STUDENT_ADDITIONAL,
    STUDENT_ADDITIONAL_LAST,
    STUDENT_FULL_GRID,
    STUDENT_TABLES,
    compared,
    evaluations,
    highest,
    own_bests,
    recipe_runs,
    searched,
    student_convnet,
    student_searches,
    summary,
)
from report.tables import DOCUMENTS, MARKED, TABLES, ReportError, commands, fill, later_commands

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
    record, own = summary(root, 'mlp_numpy'), own_bests(evaluations(root, 'mlp_numpy'))
    if record['dataset'] != 'cifar10':
        yield f'the run is on {record["dataset"]}'
    for which, printed in STUDENT_TABLES['mlp_numpy'].items():
        for column, value in printed.items():
            ours = own[column][column] if which == 'best' else record['last'][column]
            if round(ours, 3) != value:
                yield f'{which} {column} is {ours:.3f}, printed is {value:.3f}'


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
    for _, name in later_commands().values():
        record = summary(root, name)
        if (record['status'], record['dataset']) != ('finished', 'cifar10'):
            yield f'{name} is {record["status"]} on {record["dataset"]}'


def other_flags(script: str, words: list[str], flags: dict[str, object], name: str, source: str) -> Iterator[str]:
    """A line where the run `name` has other flags than its source, these words of its script's command line."""
    parser = importlib.import_module(script).build_parser()
    asked, told = (told_flags(each, defaults(parser)) for each in (vars(parser.parse_args(words)), flags))
    if told != asked:
        yield f'{name} has the flags {told}, its {source} has {asked}'


@check
def commands_of_runs(root: Path) -> Iterator[str]:
    """The commands that "How to reproduce it" names have the flags of the runs that they stand beside."""
    for command, name in commands().values():
        script, *words = command.split()
        if script.startswith('train_'):
            yield from other_flags(script.removesuffix('.py'), words, summary(root, name)['flags'], name, 'command')


@check
def recipes(root: Path) -> Iterator[str]:
    """A recipe's runs have the flags of its file, and were trained to their end on CIFAR-10."""
    for recipe in recipe_runs(root):
        file = root / 'recipes' / f'{recipe["name"].replace("_recipe", "", 1)}.txt'
        has_file = file.exists() or recipe['name'] == f'{recipe["script"]}_recipe'
        for record in (summary(root, run) for run in recipe['runs']):
            if (record['status'], record['dataset']) != ('finished', 'cifar10'):
                yield f'{record["name"]} is {record["status"]} on {record["dataset"]}'
            flags = {flag: value for flag, value in record['flags'].items() if flag != 'seed'}
            if has_file:
                yield from other_flags(f'train_{recipe["script"]}', [f'@{file}'], flags, record['name'], 'file')


# The errata, those that rest on records; the others are tests of the equations


@check
def same_in_both_searches(root: Path) -> Iterator[str]:
    """The setting that stands in both of our searches gives the same in both."""
    if searched(root, '')[NAMED_BEST] != searched(root, '_additional')[NAMED_BEST]:
        yield 'the setting that stands in both searches has other rows in one than in the other'


@check
def erratum_2_best(root: Path) -> Iterator[str]:
    """By the student's records the best of the 486 is another setting than the one that the report names."""
    best = highest(student_searches()['full'])
    winner = max(best, key=best.get)
    if best[winner] != STUDENT_FULL_GRID:
        yield f'the highest accuracy is {best[winner]}, printed is {STUDENT_FULL_GRID}'
    if winner != NAMED_BEST._replace(learning_rate=2e-3):
        yield f'it is that of {winner}'
    if best[NAMED_BEST] == STUDENT_FULL_GRID:
        yield 'the setting that the report names has it as well'


@check
def erratum_2_rates(root: Path) -> Iterator[str]:
    """By the student's records neither SGD nor Adam is best at the smallest learning rate."""
    for name in ('sgd', 'adam'):
        best = {setting: top for setting, top in highest(student_searches()['full']).items()
                if setting.optimizer == name}  # fmt: skip
        if (rate := max(best, key=best.get).learning_rate) == min(setting.learning_rate for setting in best):
            yield f'{name} is best at {rate:g}'


@check
def erratum_2_depth(root: Path) -> Iterator[str]:
    """By the student's records four layers have the additional search's highest accuracy, five the last one printed."""
    of_depth = {len(setting.widths): accuracies for setting, accuracies in student_searches()['additional'].items()}
    expected = {'highest': (4, STUDENT_ADDITIONAL), 'last': (5, STUDENT_ADDITIONAL_LAST)}
    for which, (what, (depth, printed)) in enumerate(expected.items()):
        winner = max(of_depth, key=lambda n, which=which: of_depth[n][which])
        if (winner, of_depth[winner][which]) != (depth, printed):
            yield f'{what}: {winner} layers with {of_depth[winner][which]}, not {depth} with {printed}'


@check
def erratum_2_size(root: Path) -> Iterator[str]:
    """By the student's records larger networks do not always do better."""
    best = highest(student_searches()['full'])
    for finding in findings_on_size(best):
        if finding.holds:
            yield f'{finding.claim}: {finding.numbers}'


@check
def erratum_table_2(root: Path) -> Iterator[str]:
    """By the student's records the accuracies of Table 2 are those of single batches of 32, and of 313 of them."""
    rows = student_convnet()
    own, last = own_bests(rows), rows[-1]
    for which, printed in STUDENT_TABLES['convnet_pytorch'].items():
        for column, value in printed.items():
            recorded = (own[column] if which == 'best' else last)[column]
            if abs(recorded - value) > 0.00051:
                yield f'{which} {column} is {recorded}, printed is {value}'
    for column, n_images in (('train_acc', 32), ('test_acc', 313 * 32)):
        if any(abs(n_images * row[column] - round(n_images * row[column])) > 0.01 for row in rows):
            yield f'a {column} is not a multiple of 1/{n_images}'
