"""What a script does around its training: data, signals, several seeds, errors of one line, an exit status.

    if __name__ == '__main__':
        sys.exit(main(build_parser(), train))

This module never imports PyTorch.
"""

import argparse
import contextlib
import gc
import math
import os
import statistics
import sys
from collections.abc import Callable

from cifar10_utils import DataSet, get_cifar10
from experiment import RunRecord, output_paths, read_record, same_but_for_the_seed, say, table_lines
from files import write_json
from machine import versions
from parsing import FlagError, OneLineParser, is_main_process, one_line_errors
from stopping import exit_status, stopping_signals


def load_data(
    data_dir: str, dataset: str, validation_size: int, batch_size: int, **kwargs: object
) -> dict[str, DataSet]:
    """The data sets that the flags of these names ask for; see `get_cifar10`, which takes the other arguments.

    Raises:
        DataError: the data cannot be had, or are too few for the validation set.
        FlagError: the data are too few for a single batch.
    """
    data = get_cifar10(data_dir, validation_size=validation_size, dataset=dataset, **kwargs)
    n_train = data['train'].num_examples
    if batch_size > n_train:
        raise FlagError(
            f'--batch_size must be at most {n_train} (the training examples that --validation_size leaves), '
            f'got {batch_size}'
        )
    return data


def run_length(max_steps: int, epochs: int | None, batch_size: int, n_train: int) -> tuple[int, list[int]]:
    """The number of a run's steps and, where its length is said in epochs, the steps at whose end an epoch ends."""
    if epochs is None:
        return max_steps, []
    of_an_epoch = n_train // batch_size  # what is left at its end is no batch, and is dropped
    return epochs * of_an_epoch, [of_an_epoch * epoch for epoch in range(1, epochs + 1)]


def run_script(parser: OneLineParser, work: Callable[[argparse.Namespace], int]) -> int:
    """Reads the flags and works as they say; returns the exit status, which says how that ended.

    0 finished, 1 what the machine refused, 2 a user's mistake, 3 diverged, 128 and more: a signal's number above 128.
    """
    # A stream that was closed at the start would be opened anew as some file of the run.
    sys.stdout, sys.stderr = (stream or open(os.devnull, 'w') for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    flags = parser.parse_args()
    # The hundreds of thousands of objects that imports leave live to the end. Frozen, they are not walked through by
    # every collection of garbage, nor, with what PyTorch's optimizers import later, by those at exit: with PyTorch this
    # saves most of a second.
    gc.freeze()
    try:
        with one_line_errors(parser), stopping_signals():
            status = work(flags)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError, ValueError):  # of a terminal that is closed
            print('interrupted', file=sys.stderr)
        status = exit_status(stop)
    gc.collect()  # first, or a process group that is garbage would never be closed, and end the process with SIGABRT
    gc.freeze()
    try:
        sys.stdout.flush()
    except OSError:  # what could not be said is given up, or Python would fail over it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


Train = Callable[[argparse.Namespace, str], RunRecord]  # of the flags and the directory for the run's files


def main(parser: OneLineParser, train: Train) -> int:
    """Trains one network, or one for each of `--seeds`; returns the exit status of `run_script`."""

    def work(flags: argparse.Namespace) -> int:
        if not flags.seeds:
            return train(flags, flags.output_dir).exit_status
        if getattr(flags, 'resume', None):  # which the NumPy trainer has not
            raise FlagError('--resume is of one run: with --seeds name a --checkpoint, which each seed has one of')
        records = train_seeds(flags, train)
        finished = [record for record in records if record.status == 'finished']
        if finished and is_main_process():
            write_seeds(finished, flags.output_dir)
        return max(record.exit_status for record in records)

    return run_script(parser, work)


def train_seeds(flags: argparse.Namespace, train: Train) -> list[RunRecord]:
    """The records of a run for each of `--seeds`, one after the other; those on disk already are read from there.

    A run that diverges does not end the others; one that is interrupted does. All are of the data set of the first.
    """
    records: list[RunRecord] = []
    for seed in flags.seeds:
        own = {'seed': seed, 'dataset': records[0].dataset if records else flags.dataset}
        records.append(train(argparse.Namespace(**{**vars(flags), **own}), flags.output_dir))
        if records[-1].status == 'interrupted':
            break
    return records


def write_seeds(records: list[RunRecord], output_dir: str) -> None:
    """Says and writes, into results/NAME.json, mean and standard deviation (n − 1) over the runs of several seeds."""

    def over_seeds(statistic: Callable[[list[float]], float]) -> dict[str, dict[str, float]]:
        picked = {'last': [record.rows[-1] for record in records], 'best': [record.best() for record in records]}
        return {
            which: {key: statistic([row[key] for row in rows]) for key in rows[0]} for which, rows in picked.items()
        }

    first = records[0]
    mean = over_seeds(statistics.fmean)
    std = over_seeds(statistics.stdev if len(records) > 1 else lambda _: math.nan)
    title = first.title.replace(f', seed {first.flags["seed"]}', '')
    lines = [f'{title}: mean ± standard deviation over {len(records)} seed(s)']
    both = {which: {key: (value, std[which][key]) for key, value in mean[which].items()} for which in ('best', 'last')}
    lines += table_lines(both, lambda value: ('{:.4f}' if len(records) == 1 else '{:.4f} ± {:.4f}').format(*value))
    say('\n'.join(lines))
    seeds = [record.flags['seed'] for record in records]
    name = first.free_name(first.name.removesuffix(f'_seed={seeds[0]}'))
    path = output_paths(output_dir, name)[1]
    # The record of the run of one seed that has the same flags, and so the same name.
    there = read_record(path, first.script)
    if not same_but_for_the_seed(there, first.description(), first.defaults):
        there = {}
    flags = {flag: value for flag, value in first.flags.items() if flag not in ('seed', 'seeds')}
    summary = {'name': name, **first.description(), 'flags': flags, 'versions': versions(), 'machine': first.machine}
    write_json(path, summary | there | {'seeds': seeds, 'mean': mean, 'std': std})
    say(f'wrote {path}')
