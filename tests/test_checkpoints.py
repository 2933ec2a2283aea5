"""What a checkpoint restores, which runs may go on from it, and what is no checkpoint; all of it in this process."""

import os
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import experiment
import train_mlp_pytorch
from checkpoints import KeptNetwork, RunState
from cifar10_utils import get_cifar10
from flags import defaults
from mlp_pytorch import MLP as TorchMLP
from parsing import FlagError
from tests.helpers import temporary_directory

FLAGS = defaults(train_mlp_pytorch.build_parser()) | {'max_steps': 9}
ARGUMENTS = {'n_inputs': 3072, 'n_hidden': [3], 'n_classes': 10, 'neg_slope': 0.0, 'norm': 'batch_torch'}


class CheckpointTest(unittest.TestCase):
    def setUp(self) -> None:
        self.path = Path(self.enterContext(temporary_directory())) / 'run.pt'

    def state(
        self, seed: int = 0, script: str = 'mlp_pytorch', dataset: str = 'synthetic', n_ranks: int = 1, **flags: object
    ) -> RunState:
        """A run at its start."""
        torch.manual_seed(seed)
        model, run_flags = TorchMLP(**ARGUMENTS), {**FLAGS, **flags}
        network = KeptNetwork(script, model, ARGUMENTS, np.zeros(3072, np.float32))
        record = experiment.RunRecord(
            script, 'MLP', dataset, run_flags, quiet=True, network=network, processes=n_ranks
        )  # fmt: skip
        data = get_cifar10(dataset='synthetic', one_hot=False, rng=np.random.RandomState(seed))['train']
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        return RunState(FLAGS, model, optimizer, data, record)

    def train(self, state: RunState, n_steps: int, accuracies: tuple[float, ...]) -> None:
        """Some steps and evaluations; those of validation accuracy."""
        for _ in range(n_steps):
            images, labels = state.data.next_batch(4000)
            loss = torch.nn.functional.cross_entropy(state.model(torch.from_numpy(images)), torch.from_numpy(labels))
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
        for step, accuracy in enumerate(accuracies):
            state.record.add(step, (0.1, 1.0), (0.1, 1.0), (accuracy, 1.0))

    def saved(self, step: int = 5, accuracies: tuple[float, ...] = (0.3, 0.2), **kwargs: object) -> RunState:
        """A run that has saved its checkpoint after some steps, of which the last two were not the best."""
        state = self.state(**kwargs)
        with state.record.running():
            self.train(state, 1, accuracies[:1])
            self.train(state, 2, accuracies[1:])
            state.record.started -= 100
            state.save(str(self.path), step)
        return state

    def test_all_that_a_run_needs_is_put_back(self) -> None:
        before = self.saved()
        indices = [before.data.next_indices(4000) for _ in range(4)]  # two epochs more
        after = self.state(seed=1)
        self.assertEqual(after.load(str(self.path)), 5)
        np.testing.assert_array_equal([after.data.next_indices(4000) for _ in range(4)], indices)
        self.assertEqual(after.data.epochs_completed, before.data.epochs_completed)
        for name, tensor in before.model.state_dict().items():
            torch.testing.assert_close(after.model.state_dict()[name], tensor, rtol=0, atol=0)
        for param, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
            for name, tensor in before.optimizer.state[theirs].items():
                torch.testing.assert_close(after.optimizer.state[param][name], tensor, rtol=0, atol=0)
        self.assertEqual(after.record.rows, before.record.rows)
        self.assertEqual(after.record.kept_row, before.record.rows[0])
        for name, tensor in before.record.network.state.items():
            torch.testing.assert_close(after.record.network.state[name], tensor, rtol=0, atol=0)
        kept = after.record.network.state['layers.0.weight']
        self.assertFalse(torch.equal(kept, after.model.state_dict()['layers.0.weight']))

    def test_the_seconds_go_on(self) -> None:
        before, after = self.saved(), self.state()
        after.load(str(self.path))
        self.assertGreaterEqual(after.record.seconds, 100)
        with after.record.running(5):
            pass
        self.assertGreaterEqual(after.record.seconds, before.record.seconds - 1)

    def test_a_run_that_diverged_stays_so(self) -> None:
        self.saved(accuracies=(0.3, float('nan')))
        after = self.state()
        after.load(str(self.path))
        self.assertEqual(after.record.status, 'diverged')

    def test_flags_that_may_differ(self) -> None:
        self.saved()
        for flags in (
            {'max_steps': 12}, {'max_steps': 5}, {'eval_freq': 7}, {'data_dir': 'x'}, {'output_dir': 'x'},
            {'name': 'x'}, {'device': 'cuda'}, {'compile': True}, {'checkpoint': 'x'}, {'resume': 'x'},
        ):  # fmt: skip
            self.assertEqual(self.state(**flags).load(str(self.path)), 5, flags)

    def test_flags_that_may_not_differ(self) -> None:
        self.saved()
        for flag, value in {
            'batch_size': 100, 'learning_rate': 1.0, 'optimizer': 'adam', 'validation_size': 7, 'precision': 'bfloat16',
            'dnn_hidden_units': [3], 'neg_slope': 0.5, 'norm': 'batch_torch',
        }.items():  # fmt: skip
            with self.assertRaisesRegex(FlagError, f'belongs to another run: its {flag} is '):
                self.state(**{flag: value}).load(str(self.path))
        state = self.state()
        state.flags['seed'] = 3
        with self.assertRaisesRegex(FlagError, 'its seed is 42, here it is 3'):
            state.load(str(self.path))
        for kwargs, word in (({'script': 'convnet_pytorch'}, 'script'), ({'dataset': 'cifar10'}, 'dataset'),
                             ({'n_ranks': 2}, 'processes')):  # fmt: skip
            with self.assertRaisesRegex(FlagError, f'its {word} is '):
                self.state(**kwargs).load(str(self.path))
        with self.assertRaisesRegex(FlagError, '--checkpoint .* has 5 steps already'):
            self.state(max_steps=4).load(str(self.path), flag='checkpoint')

    def test_an_older_checkpoint_lacks_flags(self) -> None:
        self.saved()
        contents = torch.load(self.path, weights_only=True)
        for flag in ('processes', 'precision'):
            del contents['flags'][flag]
        torch.save(contents, self.path)
        self.assertEqual(self.state().load(str(self.path)), 5)
        with self.assertRaisesRegex(FlagError, 'its processes is 1, here it is 2'):
            self.state(n_ranks=2).load(str(self.path))

    def test_a_save_that_fails_leaves_the_old_one(self) -> None:
        state = self.saved()
        before = self.path.read_bytes()

        def half(contents: object, file: object) -> None:
            file.write(b'half')
            raise OSError(28, 'No space left on device')

        with mock.patch.object(torch, 'save', half), self.assertRaises(OSError):
            state.save(str(self.path), 6)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_damage_anywhere_is_noticed(self) -> None:
        self.saved()
        whole = self.path.read_bytes()
        before = self.state()
        for i in range(1, 8):
            damaged = bytearray(whole)
            damaged[len(whole) * i // 9] ^= 1
            self.path.write_bytes(damaged)
            with self.assertRaisesRegex(FlagError, 'is damaged or no checkpoint'):
                before.load(str(self.path))

    def test_no_code_is_run_from_a_file(self) -> None:
        trace = self.path.with_name('trace')

        class Hostile:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(trace),)

        torch.save({'flags': Hostile()}, self.path)
        with self.assertRaisesRegex(FlagError, 'is damaged or no checkpoint'):
            self.state().load(str(self.path))
        self.assertFalse(trace.exists())
