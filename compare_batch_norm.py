"""Trains the PyTorch MLP without normalisation, with batch and with layer normalisation, and shows what each needs.

    python compare_batch_norm.py --seeds 42,43,44,45,46

One panel of the figure varies the learning rate: normalisation is for larger ones. The other varies the batch size:
batch normalisation takes its statistics over the batch, layer normalisation over one example.

Every run sees the same number of examples, `--max_steps` times `--batch_size`; the smaller its batch, the more steps it
takes, at the same learning rate. What is compared is the test accuracy of the last evaluation, so that the test set
picks none. A run that diverged counts as chance, one in ten, and is marked.

Each run leaves its record as `train_mlp_pytorch.py` does, all of them in results/normalisation_mlp_pytorch_runs/, and
one that is finished there is not done again. Out of them come results/normalisation_mlp_pytorch.csv (a row for each
run), the summary beside it as JSON, and figures/normalisation_mlp_pytorch.png; the folder may then be deleted. A
comparison takes the place of a smaller one, with fewer rates, sizes or seeds; any other needs another `--name`.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

import train_mlp_pytorch
from cifar10_utils import N_CLASSES
from experiment import DATASET_TITLES, RunRecord, check_output_dir, output_paths, read_json, record_name, say
from files import write_csv, write_json
from flags import PLACE_FLAGS, check_same_flags, defaults, distinct_seeds, file_name, positive_float, positive_int
from machine import machine, versions
from parsing import FlagError, OneLineParser, is_main_process
from plots import PALETTE, new_figure, save_figure
from schedules import check_share
from script import load_data, run_script, train_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = 'normalisation_mlp_pytorch'
CHANCE = 1 / N_CLASSES
LISTS = ('learning_rates', 'batch_sizes', 'seeds')  # the flags with several values
KINDS = {  # of `--norm`, what it is called, and its colour and mark in the figure
    'none': ('without', PALETTE[1], 'o'),
    'batch_manual': ('batch normalisation', PALETTE[0], 's'),
    'layer_manual': ('layer normalisation', PALETTE[2], '^'),
}
APART = 1.05  # factor between what would lie on top of each other on a logarithmic axis
Cell = dict[str, object]  # what the runs of one setting come to; see `summarise`


# What is compared


class Setting(NamedTuple):
    """What the seeds' runs have in common, and the CSV's first columns."""

    norm: str
    learning_rate: float
    batch_size: int


def setting_of(row: dict[str, object]) -> Setting:
    """The setting that a row of the CSV belongs to."""
    return Setting(*(row[column] for column in Setting._fields))


def build_parser() -> OneLineParser:
    """The flags of `train_mlp_pytorch.py` that all runs share, the seeds, and the values of both panels."""
    parser = OneLineParser(description='Trains the PyTorch MLP without, with batch and with layer normalisation.')
    train_mlp_pytorch.add_flags(parser)
    add = parser.add_argument
    add('--learning_rates', type=positive_float, nargs='+', default=[2e-3, 2e-2, 0.1], metavar='RATE',
        help='those to compare, at --batch_size')  # fmt: skip
    add('--batch_sizes', type=positive_int, nargs='+', default=[4, 16, 64, 200], metavar='SIZE',
        help='those to compare, at --learning_rate')  # fmt: skip
    add('--max_steps', type=positive_int, default=1000,
        help='training steps of --batch_size; others see as many examples')  # fmt: skip
    add('--seeds', type=distinct_seeds, default=[42, 43, 44, 45, 46], metavar='N,N,...',
        help='of the weights and the order of the batches; a run of each setting for each')  # fmt: skip
    add('--name', type=file_name, help=f'of its files; if not given, {NAME}')
    return parser


def all_settings(
    learning_rates: list[float], batch_sizes: list[int], learning_rate: float, batch_size: int
) -> list[Setting]:
    """The settings of both panels, each once: every rate at `batch_size`, every size at `learning_rate`."""
    points = [(rate, batch_size) for rate in sorted(learning_rates)]
    points += [(learning_rate, size) for size in sorted(batch_sizes)]
    return [Setting(norm, *point) for point in dict.fromkeys(points) for norm in KINDS]


def trainer_flags(setting: Setting, flags: argparse.Namespace) -> argparse.Namespace:
    """The trainer's flags for the runs of a setting, which see as many examples as `max_steps` of `batch_size` have."""

    def steps(n: int) -> int:
        return math.ceil(n * flags.batch_size / setting.batch_size)

    of_trainer = defaults(train_mlp_pytorch.build_parser())
    shared = {flag: vars(flags).get(flag, value) for flag, value in of_trainer.items()}
    own = {'max_steps': steps(flags.max_steps), 'eval_freq': steps(flags.eval_freq), 'name': None,
           'output_dir': str(Path(flags.output_dir) / 'results' / f'{NAME}_runs')}  # fmt: skip
    return argparse.Namespace(**shared | own | setting._asdict())


# What it comes to


def row_of(setting: Setting, record: RunRecord) -> dict[str, object]:
    """A run's row of the CSV, with its last evaluation."""
    of_run = {'seed': record.flags['seed'], 'status': record.status, 'seconds': round(record.seconds, 3)}
    return {**setting._asdict(), **of_run, **record.rows[-1]}


def summarise(rows: list[dict[str, object]]) -> list[Cell]:
    """The test accuracies over the seeds of each setting, in the order of the rows.

    A cell has the setting's values, mean, std (n − 1; NaN of one run), min, max, n_runs and n_diverged.
    """
    by_setting: dict[Setting, list[dict[str, object]]] = {}
    for row in rows:
        by_setting.setdefault(setting_of(row), []).append(row)
    cells = []
    for setting, of_setting in by_setting.items():
        diverged = [row['status'] == 'diverged' for row in of_setting]
        values = [CHANCE if lost else row['test_acc'] for row, lost in zip(of_setting, diverged, strict=True)]
        cells.append({
            **setting._asdict(), 'mean': statistics.fmean(values),
            'std': statistics.stdev(values) if len(values) > 1 else math.nan, 'min': min(values), 'max': max(values),
            'n_runs': len(values), 'n_diverged': sum(diverged),
        })  # fmt: skip
    return cells


def told(cell: Cell) -> str:
    """A cell in words, such as '0.280 ± 0.164 (2 of 5 diverged)'."""
    if cell['n_diverged'] == cell['n_runs']:
        return 'diverged' if cell['n_runs'] == 1 else f'all {cell["n_runs"]} diverged'
    spread = '' if cell['n_runs'] == 1 else f' ± {cell["std"]:.3f}'
    diverged = f' ({cell["n_diverged"]} of {cell["n_runs"]} diverged)' if cell['n_diverged'] else ''
    return f'{cell["mean"]:.3f}{spread}{diverged}'


def table(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: a row for each learning rate and batch size, a column for each kind."""
    points: dict[tuple[float, int], dict[str, str]] = {}
    for cell in cells:
        points.setdefault((cell['learning_rate'], cell['batch_size']), {})[cell['norm']] = told(cell)
    header = ['learning rate', 'batch size', *(title for title, *_ in KINDS.values())]
    return header, [[f'{rate:g}', str(size), *(of_kind[norm] for norm in KINDS)]
                    for (rate, size), of_kind in points.items()]  # fmt: skip


def plot(
    cells: list[Cell], dataset: str, learning_rate: float, batch_size: int, n_examples: int, path: str | Path
) -> None:
    """Draws mean and range over the seeds against the learning rates at `batch_size`, and the sizes at that rate."""
    n_seeds = cells[0]['n_runs']
    figure, panels = new_figure(
        f'MLP in PyTorch on {DATASET_TITLES[dataset]}: test accuracy after {n_examples:,} examples, '
        + ('one seed' if n_seeds == 1 else f'mean and range over {n_seeds} seeds'), size=(10, 4.6),
    )  # fmt: skip
    rates, sizes = panels
    draw(rates, [cell for cell in cells if cell['batch_size'] == batch_size], 'learning_rate')
    draw(sizes, [cell for cell in cells if cell['learning_rate'] == learning_rate], 'batch_size')
    rates.set_title(f'batch size {batch_size}', fontsize=10)
    rates.set(xlabel='learning rate', ylabel='test accuracy')
    sizes.set_title(f'learning rate {learning_rate:g}; the smaller the batch, the more steps', fontsize=10)
    sizes.set(xlabel='batch size')
    sizes.sharey(rates)
    rates.set_ylim(bottom=0)
    if any(cell['n_diverged'] for cell in cells):
        rates.plot([], [], 'x', color='black', markersize=9, label='how many runs diverged; they count as chance')
    figure.legend(*rates.get_legend_handles_labels(), loc='outside lower center', ncols=5, fontsize=9)
    save_figure(figure, path)


def draw(panel: 'Axes', cells: list[Cell], column: str) -> None:
    """Draws the cells of each kind over their values of a column, on a logarithmic axis."""
    for place, (norm, (title, colour, mark)) in enumerate(KINDS.items()):
        of_kind = sorted((cell for cell in cells if cell['norm'] == norm), key=lambda cell: cell[column])
        x = [cell[column] * APART ** (place - 1) for cell in of_kind]
        mean, low, high = ([cell[which] for cell in of_kind] for which in ('mean', 'min', 'max'))
        panel.plot(x, mean, color=colour, marker=mark, label=title)
        panel.vlines(x, low, high, color=colour, linewidth=5, alpha=0.4)
        for at, cell in zip(x, of_kind, strict=True):
            if cell['n_diverged']:
                panel.plot(at, CHANCE, 'x', color=colour, markersize=11, markeredgewidth=2)
                panel.annotate(f'{cell["n_diverged"]} of {cell["n_runs"]}', (at, CHANCE), (0, -16 - 10 * place),
                               textcoords='offset points', ha='center', color=colour, fontsize=9)  # fmt: skip
    panel.axhline(CHANCE, color='grey', linestyle=':', label='chance', zorder=0)
    panel.set_xscale('log')
    values = sorted({cell[column] for cell in cells})
    panel.set_xticks(values, [f'{value:g}' for value in values])
    panel.minorticks_off()
    panel.set_xlim(values[0] / 1.4, values[-1] * 1.4)


# The script


def check_name(name: str, flags: argparse.Namespace, dataset: str) -> None:
    """Raises a FlagError if the files of a name cannot be written, or have a comparison that this one does not hold."""
    check_output_dir(flags.output_dir, name)
    path = output_paths(flags.output_dir, name)[1]
    there = read_json(path)
    if 'cells' not in there:
        if there:
            raise FlagError(f'{path} holds what is no comparison (give this one another --name)')
        return
    before, now = ({**of_flags, 'dataset': of_data} for of_flags, of_data in (
        (there['flags'], there['dataset']), (vars(flags), dataset)))  # fmt: skip
    held = {flag for flag in LISTS if set(before[flag]) <= set(now[flag])}
    may_differ = PLACE_FLAGS - {'dataset', *LISTS} | held
    check_same_flags(f'{path} (give this one another --name)', before, now, defaults(build_parser()), may_differ)


def write(rows: list[dict[str, object]], flags: argparse.Namespace, name: str, dataset: str) -> None:
    """Says the table, and writes CSV, JSON and figure.

    Raises:
        OSError: one of them cannot be written.
    """
    csv_path, json_path, png_path = paths = output_paths(flags.output_dir, name)
    cells = summarise(rows)
    several = len(flags.seeds) > 1
    say('test accuracy' + (f', mean ± standard deviation over {len(flags.seeds)} seeds' if several else ''))
    header, lines = table(cells)
    for line in (header, *lines):
        say(''.join(f'{cell:<15}' for cell in line[:2]) + ''.join(f'{cell:<34}' for cell in line[2:]).rstrip())
    write_csv(csv_path, rows)
    write_json(json_path, {
        'name': name, 'dataset': dataset, 'seconds': round(sum(row['seconds'] for row in rows), 3), 'cells': cells,
        'seeds': flags.seeds, 'flags': vars(flags), 'versions': versions(), 'machine': machine(),
    })  # fmt: skip
    plot(cells, dataset, flags.learning_rate, flags.batch_size, flags.max_steps * flags.batch_size, png_path)
    say('wrote ' + ', '.join(map(str, paths)))


def write_part(records: list[tuple[Setting, RunRecord]], output_dir: str, name: str) -> None:
    """Writes the CSV of the runs that a comparison has finished so far; that of a whole comparison stays."""
    csv_path, json_path, _ = output_paths(output_dir, name)
    if not json_path.exists():
        write_csv(csv_path, [row_of(*run) for run in records])


def tell(record: RunRecord) -> None:
    """Says in a line how a run ended."""
    if is_main_process():
        norm, rate, size, seed = (record.flags[flag] for flag in (*Setting._fields, 'seed'))
        end = f'test accuracy {record.rows[-1]["test_acc"]:.4f}' if record.status == 'finished' else record.status
        say(f'{KINDS[norm][0]}, learning rate {rate:g}, batch size {size}, seed {seed}: {end}')


def compare(flags: argparse.Namespace) -> int:
    """Trains what is not on disk yet, and compares; returns the exit status.

    Raises:
        DataError, FlagError: the data cannot be had, or the flags cannot work together.
        OSError: the comparison cannot be written.
    """
    settings = all_settings(flags.learning_rates, flags.batch_sizes, flags.learning_rate, flags.batch_size)
    for setting in settings:  # before any is trained
        of_setting = trainer_flags(setting, flags)
        train_mlp_pytorch.check_flags(of_setting)
        check_share(f'--warmup {flags.warmup:g}', flags.warmup, of_setting.max_steps)
    if is_main_process():
        largest = max(setting.batch_size for setting in settings)
        data = load_data(flags.data_dir, flags.dataset, flags.validation_size, largest)
        dataset = data['train'].name
        flags = argparse.Namespace(**{**vars(flags), 'dataset': dataset})  # of every run, whatever becomes of the data
        name = flags.name or record_name(NAME, dataset)
        check_name(name, flags, dataset)

    records: list[tuple[Setting, RunRecord]] = []
    n_runs = len(settings) * len(flags.seeds)
    with tqdm(total=n_runs, unit='run', disable=None if is_main_process() else True) as bar:

        def train(of_run: argparse.Namespace, output_dir: str) -> RunRecord:
            record = train_mlp_pytorch.train(of_run, output_dir, quiet=True)
            if record.status != 'interrupted':
                bar.update()
                tell(record)
                records.append((Setting(*(getattr(of_run, field) for field in Setting._fields)), record))
            return record

        try:
            for setting in settings:
                of_setting = train_seeds(trainer_flags(setting, flags), train)
                if of_setting[-1].status == 'interrupted':
                    say('interrupted: every finished run is on disk, and the same command goes on')
                    return of_setting[-1].exit_status
        finally:
            if is_main_process() and 0 < len(records) < n_runs:
                write_part(records, flags.output_dir, name)
    if is_main_process():
        check_name(name, flags, dataset)  # which another comparison may have taken since
        write([row_of(*run) for run in records], flags, name, dataset)
    # A run that diverges is a result here.
    return max((record.exit_status for _, record in records if record.status == 'finished'), default=0)


if __name__ == '__main__':
    sys.exit(run_script(build_parser(), compare))
