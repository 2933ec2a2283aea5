"""What changes over a run: the learning rate, which may rise at first and fall towards the end, and the images' size.

    schedule = Schedule('triangular', warmup=0.2, max_steps=1500)
    [schedule.factor(step) for step in range(1500)]  # what the learning rate is multiplied by in each step

This module never imports PyTorch.
"""

import math
from typing import NamedTuple

from parsing import FlagError

# What is left of the learning rate when a share of the steps after the warm-up, from 0 to 1, is over.
SHAPES = {
    'constant': lambda over: 1.0,
    'triangular': lambda over: 1 - over,
    'cosine': lambda over: (1 + math.cos(math.pi * over)) / 2,
}


class Schedule(NamedTuple):
    """The factor of the learning rate in each step of a run.

    It rises in equal steps to 1 during the warm-up, and then is what the shape says: 1 to the end, or down to nearly
    zero in a straight line or along half a cosine wave.

    Args:
        shape: a key of SHAPES.
        warmup: the share of the steps in which it rises, from 0 to below 1.
        max_steps: the number of steps of the run.
    """

    shape: str
    warmup: float
    max_steps: int

    def factor(self, step: int) -> float:
        """The factor in step `step`, counted from 0; above 0 in each of the run's."""
        n_rising = round(self.warmup * self.max_steps)
        if step < n_rising:
            return (step + 1) / (n_rising + 1)
        return SHAPES[self.shape]((step - n_rising) / max(self.max_steps - n_rising, 1))

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer run has other learning rates from the start."""
        return self.shape != 'constant' or self.warmup > 0


def check_share(flag: str, share: float, max_steps: int) -> None:
    """Raises a FlagError if a share of the steps, above 0, comes to none of them; `flag` is what asked for it."""
    if share and not round(share * max_steps):
        raise FlagError(f'{flag} does nothing in {max_steps} step(s): it is a share of them that comes to none')


class ImageSize(NamedTuple):
    """The side of the images in each step of a run: small ones first, which take less time and show what is coarse.

    Args:
        small: of the small ones.
        full: of the others.
        share: of the steps in which they are small.
        max_steps: the number of steps of the run.
    """

    small: int
    full: int
    share: float
    max_steps: int

    def at(self, step: int) -> int:
        """The side in step `step`, counted from 0."""
        return self.small if step < round(self.share * self.max_steps) else self.full
