"""Times this project against what a user would otherwise pick, side by side, and prints the ratios.

    python -m benchmark --data_dir cifar10  # everything: results/benchmark.json and its figure at the end
    python -m benchmark step normalisation  # some of it, in place of its former ratios

The two sides of a pair do the same work on the same data, in the same data type, on the same number of threads. Run it
from the project's root, on a machine that does nothing else; a run of everything takes about an hour. Ratios of another
machine, of other versions or another `--repeats` than those of the file are printed alone.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from benchmark.figure import plot
from benchmark.loading import batches_root, load
from benchmark.mlp_step import step
from benchmark.normalisation import normalisation
from benchmark.processes import grid, run
from benchmark.ratios import Ratio, describe_environment, read_ratios, write_ratios
from benchmark.scale import scale
from benchmark.training import augmentation, convnet, evaluation, trainer
from experiment import check_output_dir, output_paths
from flags import add_data_dir_flag, positive_int
from parsing import OneLineParser, file_path, one_line_errors

# Each takes data_dir and repeats, whether or not it needs both.
BENCHMARKS: dict[str, Callable[[str, int], list[Ratio]]] = {
    function.__name__: function
    for function in (step, run, trainer, normalisation, load, augmentation, convnet, evaluation, grid, scale)
}


def build_parser() -> OneLineParser:
    """The command's flags."""
    parser = OneLineParser(
        prog='python -m benchmark', description='Times this project against what a user would otherwise pick.'
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}; all without one')
    parser.add_argument('--repeats', type=positive_int, default=15, help='turns of each pair (fewer of long ones)')
    add_data_dir_flag(parser)
    parser.add_argument('--output_dir', type=file_path, default='.', help='where results/ and figures/ go')
    return parser


def add_to(path: Path, environment: dict[str, object], ratios: dict[str, list[Ratio]]) -> dict[str, list[Ratio]] | None:
    """The ratios of a run of everything in `path`, these in place of the former ones.

    None where there is no such file, or it is of another machine, other versions or another number of repeats: then
    nothing is written.
    """
    try:
        former_environment, former = read_ratios(path)
    except (OSError, ValueError):
        return None
    return {**former, **ratios} if former_environment == environment else None


def main() -> int:
    """Runs the benchmarks that are named; returns the exit status."""
    parser = build_parser()
    flags = parser.parse_args()
    unknown = [name for name in flags.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f'no benchmark {unknown[0]!r}: there are {", ".join(BENCHMARKS)}')
    try:
        with one_line_errors(parser):
            check_output_dir(flags.output_dir, 'benchmark')
            if not flags.names:  # what would end a run of everything ends it before the first hour, not after
                batches_root(flags.data_dir)
            ratios = {}
            for name in tqdm(flags.names or list(BENCHMARKS), unit='benchmark', disable=None):
                tqdm.write(f'\n{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}')
                ratios[name] = BENCHMARKS[name](flags.data_dir, flags.repeats)
            _, json_path, png_path = output_paths(flags.output_dir, 'benchmark')
            environment = describe_environment(flags.repeats)
            if flags.names:
                ratios = add_to(json_path, environment, ratios)
            if ratios:
                write_ratios(json_path, environment, ratios)
                plot(list(itertools.chain(*ratios.values())), png_path)
                print(f'wrote {json_path}, {png_path}')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
