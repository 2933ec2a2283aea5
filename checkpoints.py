"""A run to go on with: everything that its next step depends on, in one file.

    state = RunState(flags, defaults, model, optimizer, data['train'], record)
    state.save('run.pt', step=500)
    step = state.load('run.pt')

The steps that follow in another process are the same, bit for bit on a CPU.
"""

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cifar10_utils import DataSet
from experiment import RunRecord, atomic_file
from flags import FlagError, check_same_flags

# Flags that may differ between a checkpoint and the run that resumes it: where it runs, not what it trains.
FREE_FLAGS = {'data_dir', 'dataset', 'output_dir', 'checkpoint', 'resume', 'device', 'compile'}


class RunState:
    """All that a PyTorch run needs to go on: weights, optimizer, order of the batches, random numbers and record.

    Args:
        flags: every flag of the run, by name; a checkpoint must agree with all but FREE_FLAGS.
        defaults: the same flags at their defaults, which stand for flags that an older checkpoint lacks.
        model, optimizer, data, record: what is saved, and put back in place.
    """

    def __init__(
        self,
        flags: dict[str, object],
        defaults: dict[str, object],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: DataSet,
        record: RunRecord,
    ) -> None:
        self.flags = {flag: value for flag, value in flags.items() if flag not in FREE_FLAGS}
        self.flags['dataset'] = record.dataset
        self.flags['script'] = record.script
        self.defaults = defaults
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.record = record

    def save(self, path: str, step: int) -> None:
        """Writes the state after `step` steps, whole or not at all.

        Raises:
            OSError: the file cannot be written; what was there before is left as it was.
        """
        self.record.seconds = self.record.elapsed()
        state = {
            'flags': self.flags,
            'step': step,
            'model': self.model.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'order': {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                      for key, value in self.data.state().items()},
            'torch_rng': torch.get_rng_state(),
            'record': self.record.state(),
        }  # fmt: skip
        with atomic_file(Path(path)) as file:
            torch.save(state, file)

    def load(self, path: str) -> int:
        """Puts everything back as it was and returns the number of steps already done.

        Raises:
            FlagError: the file cannot be read, is damaged, or belongs to a run with other flags.
        """
        try:
            with zipfile.ZipFile(path) as archive:  # PyTorch does not look at the checksums
                if archive.testzip():
                    raise zipfile.BadZipFile
            with warnings.catch_warnings(action='ignore'):  # PyTorch comments on damaged files before it refuses them
                state = torch.load(path, map_location='cpu', weights_only=True)
            check_same_flags(f'--resume {path}', state['flags'], self.flags, self.defaults)
            self.model.load_state_dict(state['model'])
            self.optimizer.load_state_dict(state['optimizer'])
            self.data.restore({key: value.numpy() if isinstance(value, torch.Tensor) else value
                               for key, value in state['order'].items()})  # fmt: skip
            torch.set_rng_state(state['torch_rng'])
            self.record.restore(state['record'])
            return state['step']
        except FlagError:
            raise
        except OSError as error:
            raise FlagError(f'cannot read --resume {path}: {error.strerror or error}') from error
        except (
            zipfile.BadZipFile,
            RuntimeError,
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise FlagError(
                f'--resume {path} is damaged or no checkpoint of these scripts; start anew without it'
            ) from error
