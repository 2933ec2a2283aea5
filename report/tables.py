"""The tables of REPORT.md and README.md, in Markdown, out of the results, and how a document's are filled.

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is one of the functions under `@table` here.
Each of them takes `root`, the directory that holds `results/` and the documents.
"""

import importlib
import itertools
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import compare_batch_norm
from benchmark.ratios import read_ratios, two_digits
from cifar10_files import EXAMPLES_PER_FILE, TRAIN_FILES
from cifar10_utils import CLASSES, N_CLASSES, N_PIXELS
from experiment import read_json, shaping, told_flags
from flags import LENGTH_FLAGS, defaults
from grid_search_figures import describe, optimizer_title
from grid_search_results import GRIDS
from metrics import confusion_matrix_to_metrics
from report.claims import NAMED_BEST, Finding, findings, findings_on_size
from report.equations import computed, numbered, tests
from report.records import (
    COLUMNS,
    SCRIPTS,
    STUDENT_ADDITIONAL,
    STUDENT_ADDITIONAL_LAST,
    STUDENT_FULL_GRID,
    STUDENT_TABLES,
    evaluations,
    highest,
    own_bests,
    picks,
    recipe_runs,
    searched,
    student_searches,
    summary,
)

DOCUMENTS = ('REPORT.md', 'README.md')
MARKED = re.compile(r'(<!-- table: (\w+) -->\n)(.*?)(<!-- /table -->)', re.DOTALL)
LATER_FLAGS = (
    '--lr 0.1 --batch_size 128 --epochs 10 --standardise --init kaiming --activation elu --validation_size 5000'
)
# The highest test accuracies published for networks of the kind, as far as they could be found.
ELSEWHERE = {
    'mlp_pytorch': '0.78, with layers trained one by one as autoencoders first '
                   '([Lin, Memisevic and Konda 2015](https://arxiv.org/abs/1511.02580))',
    'convnet_pytorch': '0.924, VGG-11 with 28 million parameters, ours has 9 '
                       '([PyTorch_CIFAR10](https://github.com/huyvnphan/PyTorch_CIFAR10))',
}  # fmt: skip
TABLES: dict[str, Callable[[Path], str]] = {}


class ReportError(ValueError):
    """A document or the results behind it cannot be used; the message is one line."""


def table(function: Callable[[Path], str]) -> Callable[[Path], str]:
    """Makes a function's Markdown a table that a document may ask for by its name."""
    TABLES[function.__name__] = function
    return function


def fill(root: Path, text: str) -> tuple[str, list[str]]:
    """The document `text` with every table as `results/` has it, and the names of those that said something else.

    Raises:
        ReportError: it asks for a table that there is not, or its results cannot be read.
    """
    changed = []

    def filled(match: re.Match) -> str:
        opening, name, before, closing = match.groups()
        if name not in TABLES:
            raise ReportError(f'there is no table {name!r}; there are {", ".join(TABLES)}')
        try:
            after = TABLES[name](root)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ReportError(f'the results behind table {name} cannot be read ({error}): run its script') from error
        if after != before:
            changed.append(name)
        return opening + after + closing

    return MARKED.sub(filled, text), changed


# Markdown


def markdown(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)


def bullets(findings: list[Finding]) -> str:
    """A line for each finding."""
    verdicts = {True: 'Borne out', False: 'Not borne out'}
    return ''.join(f'- **{verdicts[found.holds]}**: {found.claim}. Here: {found.numbers}.\n' for found in findings)


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


def best_and_last(root: Path, name: str) -> str:
    """The student's Tables 1 and 2: each metric's own best and its last, that report's beside ours; and our pick."""
    ours, theirs = summary(root, name), STUDENT_TABLES.get(name, {})
    own = own_bests(evaluations(root, name))
    rows = []
    for column in COLUMNS:
        part, metric = column.split('_')
        printed = {which: [f'{row[column]:.3f}'] for which, row in theirs.items()}
        rows.append([{'train': 'training', 'test': 'test'}[part], {'acc': 'accuracy', 'loss': 'loss'}[metric],
                     f'{own[column][column]:.3f} (step {own[column]["step"]})', *printed.get('best', []),
                     f'{ours["last"][column]:.3f}', *printed.get('last', []),
                     f'{ours["best"][column]:.3f}'])  # fmt: skip
    that_report = ['that report'] if theirs else []
    header = ['data set', 'metric', 'its own best', *that_report, f'last (step {ours["last"]["step"]})', *that_report,
              f'at the pick (step {ours["best"]["step"]})']  # fmt: skip
    return markdown(header, rows)


# The tables


@table
def numpy_mlp(root: Path) -> str:
    """Table 1."""
    return best_and_last(root, 'mlp_numpy')


@table
def pytorch_mlp(root: Path) -> str:
    """The PyTorch MLP at its default flags."""
    return best_and_last(root, 'mlp_pytorch')


@table
def convnet(root: Path) -> str:
    """Table 2."""
    return best_and_last(root, 'convnet_pytorch')


@table
def grid_best(root: Path) -> str:
    """The ten best of the 486 settings."""
    rows = [[f'{row["test_acc"]:.4f}', row['step'], optimizer_title(setting.optimizer),
             f'{setting.learning_rate:g}', setting.batch_size, setting.dnn_hidden_units, setting.max_steps]
            for setting, row in list(picks(root, '').items())[:10]]  # fmt: skip
    header = ['best test accuracy', 'at step', 'optimiser', 'learning rate', 'batch', 'hidden units', 'steps']
    return markdown(header, rows) + f'\nThe best of that report: {STUDENT_FULL_GRID:.4f}.\n'


@table
def grid_findings(root: Path) -> str:
    """What the student's report says of the full grid."""
    return bullets(findings(searched(root, '')))


@table
def additional(root: Path) -> str:
    """The additional search, picked by test accuracy and by validation accuracy."""
    by_test, by_validation = picks(root, '_additional'), picks(root, '_additional_validation')
    last = {setting: rows[-1]['test_acc'] for setting, rows in searched(root, '_additional').items()}
    chosen = next(iter(by_validation))
    highest_of_all = max(row['test_acc'] for rows in searched(root, '_additional_validation').values() for row in rows)
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
        f'three networks. The highest test accuracy of the search that holds images out is {highest_of_all:.4f}.\n'
    )


@table
def additional_findings(root: Path) -> str:
    """What the student's report says of the additional search."""
    return bullets(findings(searched(root, '_additional')))


@table
def normalisation(root: Path) -> str:
    """The MLP without, with batch and with layer normalisation."""
    return markdown(*compare_batch_norm.table(summary(root, compare_batch_norm.NAME)['cells']))


@table
def later_years(root: Path) -> str:
    """The networks that the course's later assignments ask for, each where its validation accuracy is best."""
    rows = []
    for _, name in later_commands().values():
        record = summary(root, name)
        flags, best = record['flags'], record['best']
        widths, norm = flags['dnn_hidden_units'], flags['norm'] != 'none'
        n_params = sum((a + 1) * b for a, b in itertools.pairwise([N_PIXELS, *widths, N_CLASSES]))
        rows.append([f'{"NumPy" if "numpy" in name else "PyTorch"}, {" ".join(map(str, widths))}',
                     'with' if norm else 'without', f'{n_params + 2 * norm * sum(widths):,}',
                     f'{best["val_acc"]:.4f}', best['step'], f'{best["test_acc"]:.4f}'])  # fmt: skip
    header = ['hidden units', 'batch normalisation', 'parameters', 'best validation accuracy', 'at step',
              'test accuracy of the pick']  # fmt: skip
    return markdown(header, rows)


@table
def f_beta(root: Path) -> str:
    """Precision, recall and F-beta of each class, of the later years' NumPy network."""
    record = summary(root, 'evaluate_mlp_numpy_later')
    metrics = [confusion_matrix_to_metrics(record['confusion_matrix'], beta) for beta in (0.1, 1.0, 10.0)]
    columns = [metrics[0]['precision'], metrics[0]['recall'], *(of_beta['f1_beta'] for of_beta in metrics)]
    rows = [[name, *(f'{value:.3f}' for value in values)] for name, *values in zip(CLASSES, *columns, strict=True)]
    rows.append(['mean', *(f'{column.mean():.3f}' for column in columns)])
    header = ['class', 'precision', 'recall', *(f'F-beta, β = {beta}' for beta in ('0.1', '1', '10'))]
    return markdown(header, rows) + f'\nAccuracy {record["accuracy"]:.4f}.\n'


@table
def learnt(root: Path) -> str:
    """What the report's networks confuse, how sure they are, and how far their first weights are from the start."""
    networks = {
        'mlp_numpy': ('NumPy MLP, default flags', 1e-4),
        'mlp_pytorch_best': ('PyTorch MLP, the best of the 486', 1 / math.sqrt(3 * N_PIXELS)),
        'convnet_pytorch': ('ConvNet, default flags', 1 / math.sqrt(3 * 3 * 3 * 3)),
    }  # of the initial weights the standard deviation; PyTorch's are uniform up to 1 / √n_inputs
    rows = []
    for name, (title, initial_std) in networks.items():
        record = summary(root, f'evaluate_{name}')
        mistakes = sorted(((count, CLASSES[is_], CLASSES[said])
                           for is_, counts in enumerate(record['confusion_matrix'])
                           for said, count in enumerate(counts) if said != is_), reverse=True)  # fmt: skip
        rows.append([title, f'{record["accuracy"]:.4f}', f'{record["calibration"]["expected_calibration_error"]:.3f}',
                     ', '.join(f'{is_} as {said} {count}' for count, is_, said in mistakes[:4]),
                     f'{initial_std:.4f}', f'{record["first_layer_std"]:.4f}'])  # fmt: skip
    header = ['network, after its last step', 'test accuracy', 'calibration error', 'most frequent mistakes, of 1000',
              'first weights: std at the start', 'at the end']  # fmt: skip
    return markdown(header, rows)


@table
def sweep(root: Path) -> str:
    """The nine learning rates."""
    best = picks(root, '_learning_rate_validation')
    rows = [[f'{setting.learning_rate:g}', f'{row["val_acc"]:.4f}', row['step'], row['status'],
             f'**{row["test_acc"]:.4f}**' if setting == next(iter(best)) else '']
            for setting, row in sorted(best.items(), key=lambda item: item[0].learning_rate)]  # fmt: skip
    header = ['learning rate', 'best validation accuracy', 'at step', 'the run', 'test accuracy of the pick']
    return markdown(header, rows)


@table
def student_records(root: Path) -> str:
    """What the records behind the student's report say of its searches."""
    records = student_searches()
    best = highest(records['full'])
    top: dict[tuple[float, str], float] = {}
    optimizers = GRIDS['full']['optimizer']
    for setting, accuracy in sorted(best.items(), key=lambda item: item[1]):
        top[setting.learning_rate, setting.optimizer] = accuracy
    table = [[f'{rate:g}', *(f'{top[rate, name]:.4f}' for name in optimizers)] for rate in (2e-2, 2e-3, 2e-4)]
    depths = ', '.join(f'{len(setting.widths)} layers {top:.4f} and {last:.4f}'
                       for setting, (top, last) in records['additional'].items())  # fmt: skip
    sizes = '. '.join(f'{word} networks do better {finding.numbers}'
                      for word, finding in zip(('Wider', 'Deeper'), findings_on_size(best), strict=True))  # fmt: skip
    return markdown(['learning rate', *map(optimizer_title, optimizers)], table) + (
        f'\nThe highest test accuracy at each learning rate, over {len(best)} settings. Of the setting that is named '
        f'as the best it is {best[NAMED_BEST]:.4f}. In the additional search highest and last are: {depths}. {sizes}.\n'
    )


@table
def recipe_trials(root: Path) -> str:
    """What each setting brings in trial runs that hold out validation images, beside a base for each script."""
    records = [read_json(path) for path in sorted((root / 'recipes/trials/results').glob('*.json'))]
    bases = {record['script']: record for record in records if record['name'].endswith('_base')}
    rows = []
    for record in sorted(records, key=lambda record: (record['script'], -record['last']['val_acc'])):
        base, flags = bases[record['script']], record['flags']
        others = shaping(defaults(importlib.import_module(f'train_{record["script"]}').build_parser()))
        if record is not base:
            others |= shaping(base['flags'])  # which may lack flags that are younger
        what = ', '.join(f'{flag} {value or "none"}' for flag, value in told_flags(shaping(flags), others).items()
                         if flag not in LENGTH_FLAGS)  # fmt: skip
        n_train = len(TRAIN_FILES) * EXAMPLES_PER_FILE - flags['validation_size']
        epochs = flags['max_steps'] // (n_train // flags['batch_size'])
        rows.append([SCRIPTS[record['script']], f'the base: {what}' if record is base else what,
                     f'{record["last"]["val_acc"]:.4f}', f'{record["last"]["train_acc"]:.3f}', epochs,
                     f'{record["seconds"] / epochs:.1f}'])  # fmt: skip
    header = ['network', 'what differs from the base', 'validation accuracy', 'training accuracy of the last batch',
              'epochs', 'seconds an epoch']  # fmt: skip
    return markdown(header, rows)


@table
def recipes(root: Path) -> str:
    """What each recipe reaches after its last step, over its seeds, and what a run of it costs."""
    rows = []
    for record in recipe_runs(root):
        on_machine: dict[str, list[float]] = {}
        for run in (summary(root, name) for name in record['runs']):
            on_machine.setdefault(run['machine'], []).append(run['seconds'])
        takes = '; '.join(f'{duration(statistics.fmean(seconds))} on {name}' for name, seconds in on_machine.items())
        by_default = summary(root, record['script'])['last']['test_acc']
        rows.append([record['title'], over_seeds(record, 'test_acc'), over_seeds(record, 'test_views_acc'),
                     len(record['runs']), f'{by_default:.4f}', takes])  # fmt: skip
    header = ['recipe', 'test accuracy', 'by views', 'runs', 'default flags', 'a run takes']
    return markdown(header, rows)


def over_seeds(record: dict, column: str) -> str:
    """Mean and standard deviation, if there is one, of a column after the last step; a dash without such a column."""
    if column not in record['mean']['last']:
        return '–'
    mean, std = (record[statistic]['last'][column] for statistic in ('mean', 'std'))
    return f'{mean:.4f}' if std is None else f'{mean:.4f} ± {std:.4f}'


@table
def equations(root: Path) -> str:
    """Which definition computes each equation, if any, and which test holds it."""
    code, held = computed(root), tests(root)
    rows = [[number, ', '.join(code.get(number, ['derivation only'])), ', '.join(held.get(number, ['nothing']))]
            for number in numbered(root)]  # fmt: skip
    return markdown(['equation', 'computed in', 'held by'], rows)


def later_commands() -> dict[str, tuple[str, str]]:
    """The part of `commands` that is about the networks of the course's later years."""

    def command(script: str, units: str, more: str, name: str) -> tuple[str, str]:
        return f'train_{script}.py --hidden_dims {units} {LATER_FLAGS}{more} --name {name}', name

    found = {'5, the NumPy MLP of 2024 and 2025': command('mlp_numpy', '128', '', 'mlp_numpy_later')}
    for units in ('128', '256 128', '512 256 128'):
        title, name = f'5, PyTorch, {units}', f'mlp_pytorch_later_{units.replace(" ", "-")}'
        found[title] = command('mlp_pytorch', units, '', name)
        found[f'{title}, batch normalisation'] = command(
            'mlp_pytorch', units, ' --use_batch_norm', f'{name}_batch_norm'
        )
    return found


def commands() -> dict[str, tuple[str, str]]:
    """For each result where it stands, the command behind it and the name of its record."""
    return {
        '1.2; Table 1, Figure 1': ('train_mlp_numpy.py', 'mlp_numpy'),
        '2, the MLP at its default flags': ('train_mlp_pytorch.py', 'mlp_pytorch'),
        '2, the 486 settings': ('grid_search_mlp_pytorch.py --grid full', 'grid_search_mlp_pytorch'),
        '2, the additional search': (
            'grid_search_mlp_pytorch.py --grid additional', 'grid_search_mlp_pytorch_additional',
        ),
        '2, the same, picked by validation': (
            'grid_search_mlp_pytorch.py --grid additional --validation_size 5000',
            'grid_search_mlp_pytorch_additional_validation',
        ),
        '3.3, without, with batch and with layer normalisation': ('compare_batch_norm.py', compare_batch_norm.NAME),
        '4; Table 2, Figure 5': ('train_convnet_pytorch.py', 'convnet_pytorch'),
        '5, the learning rate': (
            'grid_search_mlp_pytorch.py --grid learning_rate', 'grid_search_mlp_pytorch_learning_rate_validation',
        ),
        **later_commands(),
        '6, the best of the 486': (
            'train_mlp_pytorch.py --optimizer adam --learning_rate 2e-4 --batch_size 200 '
            '--dnn_hidden_units 400,400,400 --max_steps 3000 --name mlp_pytorch_best', 'mlp_pytorch_best',
        ),
    }  # fmt: skip


@table
def reproduce(root: Path) -> str:
    """The command behind each result, and how long it took."""
    rows = []
    for what, (command, name) in commands().items():
        record = summary(root, name)
        seconds = record.get('wall_seconds', record.get('seconds'))
        rows.append([what, f'`python {command}`', duration(seconds), record['machine']])
    return markdown(['question; table and figure of that report', 'command', 'took', 'on'], rows)


@table
def benchmarks(root: Path) -> str:
    """Every measured pair that something was to be reached for, and what it was measured on; beside it another's."""
    environment, ratios = read_ratios(root / 'results/benchmark.json')
    xeon, on_xeon = read_ratios(root / 'results/benchmark_xeon.json')
    beside = {ratio[:4]: two_digits(ratio.ratio) for measured in on_xeon.values() for ratio in measured}
    rows = [[name, ratio.case, f'{ratio.ours} / {ratio.theirs}', two_digits(ratio.ratio), ratio.spread,
             f'{ratio.at_most:.3g}', ratio.verdict, beside.get(ratio[:4], '–')]
            for name, measured in ratios.items() for ratio in measured if ratio.at_most is not None]  # fmt: skip
    header = ['benchmark', 'case', 'pair', 'ratio', '10th to 90th percentile', 'to reach', 'verdict', 'on a Xeon']
    libraries = ', '.join(f'{name} {number}' for name, number in environment['versions'].items())
    older, emulated = read_ratios(root / 'results/benchmark_without_bfloat16.json')
    (emulated,) = (ratio for ratio in emulated['convnet'] if ratio.theirs == 'plain')
    return markdown(header, rows) + (
        f'\nOn {environment["machine"]}, {environment["threads"]} threads; {libraries}.\n'
        f'The last column was measured on {xeon["machine"]}.\n'
        f'On {older["machine"]}, a processor without instructions for bfloat16, the ConvNet in bfloat16 / plain was '
        f'{two_digits(emulated.ratio)}.\n'
    )


@table
def glance(root: Path) -> str:
    """The results at a glance: best beside best, and recipes after their last step beside what is known elsewhere."""
    (full, at_full), (deep, at_deep) = (next(iter(picks(root, name).items())) for name in ('', '_additional'))
    picked, at_validation = next(iter(picks(root, '_additional_validation').items()))
    numpy_best, torch_best, convnet_best = (
        summary(root, name)['best']['test_acc'] for name in ('mlp_numpy', 'mlp_pytorch', 'convnet_pytorch')
    )
    rows = [
        ['NumPy MLP, default flags', f'{numpy_best:.3f}', f'{STUDENT_TABLES["mlp_numpy"]["best"]["test_acc"]:.3f}'],
        ['PyTorch MLP, default flags', f'{torch_best:.3f}', '–'],
        [f'the best of 486 settings ({describe(full)})', f'{at_full["test_acc"]:.4f}',
         f'{STUDENT_FULL_GRID:.4f}'],
        [f'the best of three deeper ones ({deep.dnn_hidden_units})', f'{at_deep["test_acc"]:.4f}',
         f'{STUDENT_ADDITIONAL:.4f}'],
        [f'of the three the pick by validation accuracy ({picked.dnn_hidden_units})',
         f'{at_validation["test_acc"]:.4f}', '–'],
        ['ConvNet, default flags', f'{convnet_best:.3f}',
         f'{STUDENT_TABLES["convnet_pytorch"]["best"]["test_acc"]:.3f}'],
    ]  # fmt: skip
    rows = [[*row, '–'] for row in rows]
    for recipe in recipe_runs(root):
        known = ELSEWHERE.get(recipe['script'], '–')
        rows.append([f'{recipe["title"]}, last step', over_seeds(recipe, 'test_acc'), '–', known])
    return markdown(['best test accuracy', 'here', 'that report', 'known elsewhere'], rows)
