"""What the tables compare: the committed records of our runs, and what the student's report prints.

Every function takes `root`, the directory that holds `results/`, and raises an OSError, a ValueError or a LookupError
where these cannot be read.
"""

import csv
import json
from pathlib import Path

import compare_batch_norm
from experiment import best_row, score
from grid_search_results import BASE_NAME, Setting, by_setting, read_rows

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


def summary(root: Path, name: str) -> dict:
    """The JSON of the run `name`."""
    return json.loads((root / f'results/{name}.json').read_text(encoding='utf-8'))


def searched(root: Path, name: str) -> dict[Setting, list[dict]]:
    """The rows of each setting of a search; `name` is what follows `BASE_NAME`, such as '_additional'."""
    return by_setting(read_rows(root / f'results/{BASE_NAME}{name}.csv'))


def compared(root: Path) -> list[dict]:
    """The rows of the comparison of the normalisations, a row for each run."""
    kinds = {'learning_rate': float, 'batch_size': int, 'seed': int, 'test_acc': float}
    with open(root / f'results/{compare_batch_norm.NAME}.csv', encoding='utf-8', newline='') as file:
        return [row | {column: kind(row[column]) for column, kind in kinds.items()} for row in csv.DictReader(file)]


def picks(root: Path, name: str) -> dict[Setting, dict]:
    """The best row of each setting of a search, the best setting first."""
    best = {setting: best_row(rows) for setting, rows in searched(root, name).items()}
    return dict(sorted(best.items(), key=lambda item: -score(item[1])))
