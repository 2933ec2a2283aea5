"""A ratio: two sides that take turns, what one takes divided by what the other takes, and the file that keeps it.

The sides take turns, A B A B …, after one turn that does not count; a ratio is the median over the turns of A's time
divided by B's, given with the 10th and the 90th percentile. Where these lie on both sides of 1, the difference drowns
in noise.
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from files import write_json
from machine import machine, versions

Action = Callable[[], object]


class Ratio(NamedTuple):
    """A measured pair: the time (or the memory) of `ours` divided by that of `theirs`."""

    benchmark: str
    case: str
    ours: str
    theirs: str
    ratio: float  # the median over the turns
    low: float  # 10th percentile
    high: float  # 90th percentile
    measured: float  # of ours, the median: seconds, or bytes
    at_most: float | None  # what is to be reached

    @property
    def verdict(self) -> str:
        """Whether the ratio is what was to be reached, and whether it can be told from 1."""
        words = [] if self.at_most is None else ['reached' if self.ratio <= self.at_most else 'MISSED']
        return ', '.join(words + ['drowns in the noise'] * (self.low < 1 < self.high))

    @property
    def spread(self) -> str:
        """The 10th and the 90th percentile."""
        return f'{two_digits(self.low)} to {two_digits(self.high)}'

    def __str__(self) -> str:
        target = '' if self.at_most is None else f'(to reach: {self.at_most:.3g})'
        pair = f'{self.case:<34} {self.ours:<16}/ {self.theirs:<22}'
        return f'{pair}{two_digits(self.ratio):>6}  {self.spread:<15}{target:<18}{self.verdict}'


def two_digits(number: float) -> str:
    """A number with two digits after the point, or its first two where it is below 0.1."""
    return f'{number:.2f}' if number >= 0.1 else f'{number:.2g}'


# Measuring

# The threads of NumPy's matrix library wait for more work at full speed for a tenth of a second after a product, and so
# take PyTorch's cores from it. Before a short action all threads get the time to fall asleep; then it is done once
# untimed.
SETTLE = 0.15  # seconds


def take_turns(actions: dict[str, Action], repeats: int, at_least: float = 0.05) -> dict[str, np.ndarray]:
    """The seconds of each action, once for each of `repeats` turns.

    An action shorter than `at_least` seconds is done several times in a turn, always as often.
    """

    def seconds_of(action: Action, count: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(count):
            action()
        return (time.perf_counter() - start) / count

    is_short = {name: seconds_of(action) < 1 for name, action in actions.items()}

    def prepare(name: str) -> None:
        if is_short[name]:
            time.sleep(SETTLE)
            actions[name]()

    counts = {}
    for name, action in actions.items():
        prepare(name)
        counts[name] = max(1, round(at_least / seconds_of(action)))
    seconds = {name: np.empty(repeats) for name in actions}
    for turn in range(repeats):
        for name, action in actions.items():
            prepare(name)
            seconds[name][turn] = seconds_of(action, counts[name])
    return seconds


def compare(
    benchmark: str, case: str, seconds: dict[str, np.ndarray], ours: str, at_most: dict[str, float | None]
) -> list[Ratio]:
    """The ratios of `ours` to the others that `at_most` names, with what is to be reached; prints them."""
    ratios = []
    for theirs, target in at_most.items():
        turns = seconds[ours] / seconds[theirs]
        low, high = np.percentile(turns, (10, 90))
        ratios.append(Ratio(benchmark, case, ours, theirs, float(np.median(turns)), float(low), float(high),
                            float(np.median(seconds[ours])), target))  # fmt: skip
        tqdm.write(str(ratios[-1]))
    return ratios


def optional(module: str, package: str, what_for: str) -> ModuleType | None:
    """A module that only a benchmark needs; without its package None, and a line that says what is left out."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f'{what_for} is left out: pip install {package} to have it', file=sys.stderr)
        return None


# What a run of everything writes


def describe_environment(repeats: int) -> dict[str, object]:
    """All that a ratio depends on besides the code."""
    others = {}
    for name in ('torchvision', 'scikit-learn'):
        with contextlib.suppress(PackageNotFoundError):
            others[name] = version(name)
    return {'machine': machine(), 'threads': torch.get_num_threads(), 'versions': {**versions(), **others},
            'repeats': repeats}  # fmt: skip


def write_ratios(path: Path, environment: dict[str, object], ratios: dict[str, list[Ratio]]) -> None:
    """Writes the ratios of each benchmark, and what they depend on."""
    rows = {name: [ratio._asdict() for ratio in measured] for name, measured in ratios.items()}
    write_json(path, {**environment, 'ratios': rows})


def read_ratios(path: Path) -> tuple[dict[str, object], dict[str, list[Ratio]]]:
    """What `write_ratios` wrote: the environment and the ratios of each benchmark.

    Raises:
        OSError, ValueError: the file cannot be read, or is another.
    """
    environment = json.loads(path.read_text())
    try:
        rows = environment.pop('ratios')
        return environment, {name: [Ratio(**row) for row in measured] for name, measured in rows.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f'no ratios of benchmarks in it: {error}') from error
