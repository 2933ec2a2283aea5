"""Trains the PyTorch MLP without batch normalisation and with it, by hand, from the same seeds; draws the difference.

    python compare_batch_norm.py --seeds 42,43,44

Each run leaves its record, as `train_mlp_pytorch.py` does, and is not done again where that is there. Out of them come
results/batch_norm_mlp_pytorch.csv (a row per evaluation of each run), the summary beside it as JSON, and
figures/batch_norm_mlp_pytorch.png.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import train_mlp_pytorch
from experiment import (
    DATASET_TITLES,
    RunRecord,
    best_row,
    check_output_dir,
    output_paths,
    record_name,
    say,
)
from files import write_csv, write_json
from flags import OneLineParser, defaults, distinct_seeds, is_main_process
from machine import machine, versions
from plots import PALETTE, new_figure, save_figure
from script import run_script, train_seeds

NAME = 'batch_norm_mlp_pytorch'
NORMS = {'none': 'none', 'manual': 'batch_manual'}  # the trainer's word for each kind of run
VARIANTS = {'none': ('without', PALETTE[1]), 'manual': ('with batch normalisation', PALETTE[0])}


def build_parser() -> OneLineParser:
    """The flags of `train_mlp_pytorch.py` that all runs share, and the seeds."""
    parser = OneLineParser(description='Trains the PyTorch MLP without batch normalisation and with it, and compares.')
    train_mlp_pytorch.add_flags(parser)
    parser.add_argument(
        '--seeds', type=distinct_seeds, default=[42, 43, 44], metavar='N,N,...', help='a run of each kind for each'
    )
    return parser


class Comparison:
    """The runs of both kinds, of the seeds whose runs finished in both.

    Args:
        records: of each kind, a record for each seed.
        flags: the script's, by name.
    """

    def __init__(self, records: dict[str, list[RunRecord]], flags: dict[str, object]) -> None:
        by_seed = {kind: {record.flags['seed']: record for record in of_kind if record.status == 'finished'}
                   for kind, of_kind in records.items()}  # fmt: skip
        self.seeds = [seed for seed in flags['seeds'] if all(seed in of_kind for of_kind in by_seed.values())]
        self.runs = {kind: [of_kind[seed] for seed in self.seeds] for kind, of_kind in by_seed.items()}
        self.flags = flags
        self.dataset = records['none'][0].dataset

    def test_accuracies(self, batch_norm: str) -> np.ndarray:
        """The test accuracies (n_seeds, n_evaluations) of the runs of one kind."""
        return np.array([[row['test_acc'] for row in record.rows] for record in self.runs[batch_norm]])

    def summary(self) -> dict[str, dict[str, float]]:
        """For each kind the mean and the standard deviation (n − 1), over the seeds, of the best and last accuracy."""
        summary = {}
        for batch_norm, records in self.runs.items():
            picked = {
                'best': [best_row(record.rows) for record in records],
                'last': [record.rows[-1] for record in records],
            }
            accuracies = {which: [row['test_acc'] for row in rows] for which, rows in picked.items()}
            summary[batch_norm] = {f'{which}_mean': float(np.mean(values)) for which, values in accuracies.items()}
            if len(self.seeds) > 1:
                summary[batch_norm] |= {f'{w}_std': float(np.std(values, ddof=1)) for w, values in accuracies.items()}
        return summary

    def table(self) -> str:
        """The summary as a table."""
        lines = [f'{f"test accuracy over {len(self.seeds)} seeds":<32}{"best":>16}{"last":>16}']
        for batch_norm, numbers in self.summary().items():
            cells = [f'{numbers[f"{which}_mean"]:.3f} ± {numbers.get(f"{which}_std", np.nan):.3f}'
                     for which in ('best', 'last')]  # fmt: skip
            lines.append(f'{VARIANTS[batch_norm][0]:<32}' + ''.join(f'{cell:>16}' for cell in cells))
        return '\n'.join(lines)

    def write(self, output_dir: str | Path) -> list[Path]:
        """Writes the CSV, the JSON and the figure under `output_dir`, and returns their paths.

        Raises:
            OSError: one of them cannot be written.
        """
        name = record_name(NAME, self.dataset)
        csv_path, json_path, png_path = paths = output_paths(output_dir, name)
        runs = [(kind, record) for kind, records in self.runs.items() for record in records]
        write_csv(csv_path, [{'batch_norm': kind, 'seed': record.flags['seed'], **row}
                             for kind, record in runs for row in record.rows])  # fmt: skip
        seconds = sum(record.seconds for _, record in runs)
        write_json(json_path, {
            'name': name, 'dataset': self.dataset, 'seconds': round(seconds, 3), 'test_acc': self.summary(),
            'seeds': self.seeds, 'flags': self.flags, 'versions': versions(), 'machine': machine(),
        })  # fmt: skip
        self.plot(png_path)
        return paths

    def plot(self, path: Path) -> None:
        """Draws the test accuracy of both kinds, and their difference seed by seed: mean and range over the seeds."""
        figure, (both, difference) = new_figure(
            f'MLP in PyTorch on {DATASET_TITLES[self.dataset]}: mean and range over {len(self.seeds)} seeds'
        )
        steps = [row['step'] for row in self.runs['none'][0].rows]
        lines = [(both, *VARIANTS[batch_norm], self.test_accuracies(batch_norm)) for batch_norm in VARIANTS]
        gain = self.test_accuracies('manual') - self.test_accuracies('none')
        lines.append((difference, 'with minus without', PALETTE[2], gain))
        for panel, label, colour, values in lines:
            panel.plot(steps, values.mean(axis=0), color=colour, label=label, marker='.')
            panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
            panel.legend()
        difference.axhline(0, color='black', linewidth=0.8)
        both.set(xlabel='step', ylabel='test accuracy')
        difference.set(xlabel='step', ylabel='difference in test accuracy')
        save_figure(figure, path)


def train(flags: argparse.Namespace, output_dir: str) -> RunRecord:
    """A run of the trainer, told in a line."""
    record = train_mlp_pytorch.train(flags, output_dir, quiet=True)
    if record.rows and is_main_process():
        kind = next(kind for kind, norm in NORMS.items() if norm == flags.norm)
        told = f'best test accuracy {record.best()["test_acc"]:.4f}' if record.status == 'finished' else record.status
        say(f'{VARIANTS[kind][0]}, seed {flags.seed}: {told}')
    return record


def compare(flags: argparse.Namespace) -> int:
    """Trains what is not on disk yet, and compares; returns the exit status.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
        OSError: the comparison cannot be written.
    """
    check_output_dir(flags.output_dir, NAME)
    of_trainer = defaults(train_mlp_pytorch.build_parser())
    records: dict[str, list[RunRecord]] = {}
    for batch_norm in reversed(VARIANTS):  # with it first, so that a batch too small for it is refused at once
        run_flags = argparse.Namespace(**{**of_trainer, **vars(flags), 'norm': NORMS[batch_norm]})
        records[batch_norm] = train_seeds(run_flags, train)
        if records[batch_norm][-1].status == 'interrupted':
            return records[batch_norm][-1].exit_status
    if is_main_process():
        comparison = Comparison({kind: records[kind] for kind in VARIANTS}, vars(flags))
        if comparison.seeds:
            say(comparison.table())
            say('wrote ' + ', '.join(map(str, comparison.write(flags.output_dir))))
    return max(record.exit_status for of_kind in records.values() for record in of_kind)


if __name__ == '__main__':
    sys.exit(run_script(build_parser(), compare))
