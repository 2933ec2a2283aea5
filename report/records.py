"""What the tables compare: the committed records of our runs, and what the student's report prints and records.

`root` is the directory that holds `results/`; where these cannot be read there is an OSError, a ValueError or a
LookupError. The student has published the records behind that report, at
https://github.com/sgraaf/uvadlc_practicals_2019 (commit 3cbafe2, assignment_1/output): `student_searches.csv` has the
highest and the last test accuracy of each setting in them, `student_convnet.csv` the ConvNet's evaluations.
"""

import csv
import json
from pathlib import Path

import compare_batch_norm
from experiment import Row, best_row, read_rows, score
from grid_search_results import BASE_NAME, Setting, by_setting
from grid_search_results import read_rows as read_search

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
SCRIPTS = {'mlp_numpy': 'NumPy MLP', 'mlp_pytorch': 'PyTorch MLP', 'convnet_pytorch': 'ConvNet'}


def summary(root: Path, name: str) -> dict:
    """The JSON of the run `name`."""
    return json.loads((root / f'results/{name}.json').read_text(encoding='utf-8'))


def recipe_runs(root: Path) -> list[dict]:
    """The summaries of the recipes that were trained, in the order of SCRIPTS, each with its `title` and `runs`.

    `runs` are the names of its seeds' runs; the title says the network, and what `--name` has behind `_recipe`.
    """
    found = []
    for script, title in SCRIPTS.items():
        for path in sorted((root / 'results').glob(f'{script}_recipe*.json')):
            record = summary(root, path.stem)
            if 'mean' in record and '_seed=' not in path.stem:
                what = path.stem.removeprefix(f'{script}_').replace('_', ' ')
                runs = [f'{path.stem}_seed={seed}' for seed in record['seeds']]
                found.append({**record, 'title': f'{title}, {what}', 'runs': runs})
    return found


def own_bests(rows: list[Row]) -> dict[str, Row]:
    """For each column of the tables the row in which it is best: "best" as the student's report has it."""
    return {column: (max if column.endswith('acc') else min)(rows, key=lambda row: row[column]) for column in COLUMNS}


def evaluations(root: Path, name: str) -> list[Row]:
    """The rows of the run `name`."""
    return read_rows(root / f'results/{name}.csv')


def student_searches() -> dict[str, dict[Setting, tuple[float, float]]]:
    """Of both of the student's searches, `full` and `additional`: each setting's highest and last test accuracy."""
    found: dict[str, dict[Setting, tuple[float, float]]] = {'full': {}, 'additional': {}}
    with open(Path(__file__).with_name('student_searches.csv'), encoding='utf-8', newline='') as file:
        for row in csv.DictReader(file):
            setting = Setting(row['optimizer'], float(row['learning_rate']), int(row['batch_size']),
                              row['dnn_hidden_units'], int(row['max_steps']))  # fmt: skip
            found[row['search']][setting] = float(row['best_test_acc']), float(row['last_test_acc'])
    return found


def highest(search: dict[Setting, tuple[float, float]]) -> dict[Setting, float]:
    """Each setting's highest test accuracy, of one of the `student_searches`."""
    return {setting: top for setting, (top, _) in search.items()}


def student_convnet() -> list[Row]:
    """The evaluations of the student's ConvNet."""
    return read_rows(Path(__file__).with_name('student_convnet.csv'))


def searched(root: Path, name: str) -> dict[Setting, list[dict]]:
    """The rows of each setting of a search; `name` is what follows `BASE_NAME`, such as '_additional'."""
    return by_setting(read_search(root / f'results/{BASE_NAME}{name}.csv'))


def compared(root: Path) -> list[dict]:
    """The rows of the comparison of the normalisations, a row for each run."""
    kinds = {'learning_rate': float, 'batch_size': int, 'seed': int, 'test_acc': float}
    with open(root / f'results/{compare_batch_norm.NAME}.csv', encoding='utf-8', newline='') as file:
        return [row | {column: kind(row[column]) for column, kind in kinds.items()} for row in csv.DictReader(file)]


def picks(root: Path, name: str) -> dict[Setting, dict]:
    """The best row of each setting of a search, the best setting first."""
    best = {setting: best_row(rows) for setting, rows in searched(root, name).items()}
    return dict(sorted(best.items(), key=lambda item: -score(item[1])))
