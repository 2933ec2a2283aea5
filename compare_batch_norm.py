"""Trains the PyTorch MLP without batch normalisation and with it, by hand, from the same seeds; draws the difference.

    python compare_batch_norm.py --seeds 42,43,44

It takes the flags of `train_mlp_pytorch.py` and writes results/batch_norm_mlp_pytorch.csv (a row per evaluation of each
run), the summary beside it as JSON, and figures/batch_norm_mlp_pytorch.png.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import train_mlp_pytorch
from experiment import (
    DATASET_TITLES,
    PALETTE,
    best_row,
    machine,
    main,
    new_figure,
    output_paths,
    record_name,
    save_figure,
    versions,
    write_csv,
    write_json,
)
from flags import FlagError, OneLineParser, defaults, distinct_seeds

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
    """The runs of both kinds: `rows` has one for each evaluation of each run."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.rows: list[dict[str, object]] = []
        self.status = 'finished'

    def runs(self, batch_norm: str) -> list[list[dict[str, object]]]:
        """The rows of each run of one kind, a run for each seed."""
        return [[row for row in self.rows if (row['batch_norm'], row['seed']) == (batch_norm, seed)]
                for seed in self.flags.seeds]  # fmt: skip

    def test_accuracies(self, batch_norm: str) -> np.ndarray:
        """The test accuracies (n_seeds, n_evaluations) of the runs of one kind."""
        return np.array([[row['test_acc'] for row in rows] for rows in self.runs(batch_norm)])

    def summary(self) -> dict[str, dict[str, float]]:
        """For each kind the mean and the standard deviation, over the seeds, of the best and the last test accuracy."""
        summary = {}
        for batch_norm in VARIANTS:
            runs = self.runs(batch_norm)
            picked = {'best': [best_row(rows) for rows in runs], 'last': [rows[-1] for rows in runs]}
            summary[batch_norm] = {
                f'{which}_{statistic.__name__}': float(statistic([row['test_acc'] for row in rows]))
                for which, rows in picked.items()
                for statistic in (np.mean, np.std)
            }
        return summary

    def table(self) -> str:
        """The summary as a table."""
        lines = [f'{"test accuracy":<28}{"best":>16}{"last":>16}']
        for batch_norm, numbers in self.summary().items():
            cells = [f'{numbers[f"{which}_mean"]:.3f} ± {numbers[f"{which}_std"]:.3f}' for which in ('best', 'last')]
            lines.append(f'{VARIANTS[batch_norm][0]:<28}' + ''.join(f'{cell:>16}' for cell in cells))
        return '\n'.join(lines)

    def write(self, output_dir: str | Path) -> list[Path]:
        """Writes the CSV, the JSON and the figure under `output_dir`, and returns their paths."""
        name = record_name('batch_norm_mlp_pytorch', self.dataset)
        csv_path, json_path, png_path = paths = output_paths(output_dir, name)
        write_csv(csv_path, self.rows)
        write_json(json_path, {
            'name': name, 'dataset': self.dataset, 'seconds': round(self.seconds, 3), 'test_acc': self.summary(),
            'flags': vars(self.flags), 'versions': versions(), 'machine': machine(),
        })  # fmt: skip
        self.plot(png_path)
        return paths

    def plot(self, path: Path) -> None:
        """Draws the test accuracy of both kinds, and their difference seed by seed: mean and range over the seeds."""
        n_seeds = len(self.flags.seeds)
        figure, (both, difference) = new_figure(
            f'MLP in PyTorch on {DATASET_TITLES[self.dataset]}: mean and range over {n_seeds} seeds'
        )
        steps = sorted({row['step'] for row in self.rows})
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


def train(flags: argparse.Namespace) -> Comparison:
    """Trains all networks and returns the comparison.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
    """
    comparison = Comparison(flags)
    of_trainer = defaults(train_mlp_pytorch.build_parser())
    start = time.perf_counter()
    # With it first, so that a batch too small for it is refused at once.
    runs = [(batch_norm, seed) for seed in flags.seeds for batch_norm in reversed(VARIANTS)]
    for batch_norm, seed in tqdm(runs, unit='run', disable=None):
        run_flags = argparse.Namespace(**{**of_trainer, **vars(flags), 'batch_norm': batch_norm, 'seed': seed})
        record = train_mlp_pytorch.train(run_flags, quiet=True)
        if record.status == 'interrupted':
            raise KeyboardInterrupt
        if record.status == 'diverged':
            raise FlagError(f'the run {VARIANTS[batch_norm][0]}, seed {seed}, diverged: try a smaller --learning_rate')
        comparison.dataset = record.dataset
        comparison.rows += [{'batch_norm': batch_norm, 'seed': seed, **row} for row in record.rows]
        tqdm.write(f'{VARIANTS[batch_norm][0]}, seed {seed}: best test accuracy {record.best()["test_acc"]:.4f}')
    comparison.seconds = time.perf_counter() - start
    return comparison


if __name__ == '__main__':
    sys.exit(main('batch_norm_mlp_pytorch', build_parser(), train))
