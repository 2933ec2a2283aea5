"""The flags that shape a multi-layer perceptron and its training, in NumPy and in PyTorch alike."""

import argparse
import contextlib
import io
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import cifar10_utils
import compare_batch_norm
import grid_search_mlp_pytorch
import mlp_numpy
import mlp_pytorch
import train_convnet_pytorch
import train_mlp_numpy
import train_mlp_pytorch
import training_pytorch
from checkpoints import load_network
from experiment import RunRecord
from flags import check_mlp
from modules import DropoutModule
from parsing import FlagError
from tests.helpers import REAL_DATA, needs_real_data, only, read_rows, refused, small_stand_in, temporary_directory

TRAINERS = (train_mlp_numpy, train_mlp_pytorch)


def parse(trainer: types.ModuleType, *args: str) -> argparse.Namespace:
    return trainer.build_parser().parse_args(['--dataset', 'synthetic', *args])


class FlagsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def train(self, trainer: types.ModuleType, *args: str) -> RunRecord:
        with small_stand_in(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return trainer.train(parse(trainer, '--batch_size', '100', *args), str(self.directory))

    def kinds(self, record: RunRecord) -> list[str]:
        model = record.network.model
        layers = model.modules if isinstance(model.modules, list) else model.layers
        return [type(layer).__name__.removesuffix('Module') for layer in layers]

    def test_the_courses_later_names_mean_the_same(self) -> None:
        for trainer in TRAINERS:
            norm = {train_mlp_numpy: 'batch', train_mlp_pytorch: 'batch_torch'}[trainer]
            later = parse(trainer, '--lr', '0.1', '--hidden_dims', '128', '64', '--use_batch_norm')
            earlier = parse(trainer, '--learning_rate', '0.1', '--dnn_hidden_units', '128,64', '--norm', norm)
            self.assertEqual(later, earlier)
            self.assertEqual(parse(trainer, '--hidden_dims').dnn_hidden_units, [])
            self.assertIn('from 1 to 100000', refused(self, trainer, '--hidden_dims', '0'))

    def test_every_script_that_trains_knows_lr(self) -> None:
        for script, value in (
            (train_convnet_pytorch, 0.1), (compare_batch_norm, 0.1), (grid_search_mlp_pytorch, [0.1]),
        ):  # fmt: skip
            self.assertEqual(parse(script, '--lr', '0.1').learning_rate, value)

    def test_activations_are_the_same_in_both_libraries(self) -> None:
        self.assertEqual(mlp_numpy.ACTIVATIONS.keys(), mlp_pytorch.ACTIVATIONS.keys())
        x, dout = np.random.RandomState(0).randn(2, 5, 4)
        for name, activation in mlp_numpy.ACTIVATIONS.items():
            module, of_torch = activation(0.1), mlp_pytorch.ACTIVATIONS[name](0.1)
            tensor = torch.tensor(x, requires_grad=True)
            expected = of_torch(tensor)
            expected.backward(torch.from_numpy(dout))
            np.testing.assert_allclose(module.forward(x), expected.detach(), rtol=1e-12)
            np.testing.assert_allclose(module.backward(dout), tensor.grad, rtol=1e-12)
            self.assertEqual(module.forward(x.astype(np.float32)).dtype, np.float32)

    def test_what_is_added_to_their_tables_is_a_flag_s_value(self) -> None:
        self.enterContext(mock.patch.dict(mlp_numpy.ACTIVATIONS, {'linear': lambda neg_slope: DropoutModule(0)}))
        self.enterContext(mock.patch.dict(mlp_pytorch.ACTIVATIONS, {'linear': lambda neg_slope: torch.nn.Identity()}))
        self.enterContext(mock.patch.dict(training_pytorch.OPTIMIZERS, {'rmsprop': torch.optim.RMSprop}))
        for trainer, args, kind in ((train_mlp_numpy, (), 'Dropout'),
                                    (train_mlp_pytorch, ('--optimizer', 'RMSprop'), 'Identity')):  # fmt: skip
            record = self.train(trainer, '--max_steps', '2', '--activation', 'linear', *args)
            self.assertEqual((record.status, self.kinds(record)[1]), ('finished', kind))
            self.assertIn('activation=linear', record.name)

    def test_activations(self) -> None:
        expected = {
            ('--activation', 'relu'): ['Linear', 'ReLU', 'Linear'],
            ('--activation', 'leaky_relu'): ['Linear', 'LeakyReLU', 'Linear'],
            ('--activation', 'elu'): ['Linear', 'ELU', 'Linear'],
            ('--activation', 'elu', '--dropout', '0.1'): ['Linear', 'ELU', 'Dropout', 'Linear'],
        }
        for trainer in TRAINERS:
            for args, kinds in expected.items():
                record = self.train(trainer, '--max_steps', '1', *args)
                self.assertEqual([kind for kind in self.kinds(record) if kind != 'SoftMax'], kinds)

    def test_a_leaky_rectifier_has_a_slope(self) -> None:
        for trainer in TRAINERS:
            self.assertEqual(parse(trainer, '--activation', 'leaky_relu').neg_slope, 0.01)
            for args in (('--activation', 'leaky_relu', '--neg_slope', '0.3'),
                         ('--neg_slope', '0.3', '--activation', 'leaky_relu')):  # fmt: skip
                self.assertEqual(parse(trainer, *args).neg_slope, 0.3)
            for last in ('relu', 'elu'):
                flags = parse(trainer, '--activation', 'leaky_relu', '--activation', last)
                self.assertEqual((flags.activation, flags.neg_slope), (last, 0.0))
            self.assertEqual(parse(trainer, '--neg_slope', '0', '--activation', 'leaky_relu').neg_slope, 0.0)

    def test_what_does_nothing_is_refused(self) -> None:
        none = ('--dnn_hidden_units', '')
        for trainer in TRAINERS:
            said = refused(self, trainer, '--activation', 'elu', '--neg_slope', '0.1')
            self.assertIn('--neg_slope 0.1 is of the rectifiers', said)
            with self.assertRaisesRegex(FlagError, 'does nothing with --activation tanh'):  # or any other that is added
                check_mlp([10], 'tanh', 0.1, 0.0)
            for flag, value in (('activation', 'elu'), ('neg_slope', '0.1'), ('dropout', '0.1')):
                self.assertIn(
                    f'--{flag} does nothing without a hidden layer', refused(self, trainer, *none, f'--{flag}', value)
                )
            self.assertEqual(parse(trainer, '--epochs', '2', '--max_steps', '3').epochs, None)  # the later one counts
            for value in ('1', '-0.1', 'nan', 'x'):
                self.assertIn(f"from 0 to below 1, got '{value}'", refused(self, trainer, f'--dropout={value}'))
            for value in ('0', '100001', '1.5'):
                self.assertIn(f"from 1 to 100000, got '{value}'", refused(self, trainer, '--epochs', value))

    def test_initial_weights(self) -> None:
        """The same distributions from NumPy's generator and from PyTorch's."""
        for init, std in (('report', 1e-4), ('kaiming', 3072**-0.5), ('torch', (3 * 3072) ** -0.5)):
            for trainer in TRAINERS:
                args = ['--max_steps', '1', '--learning_rate', '1e-20', '--dnn_hidden_units', '50', '--init', init]
                state = self.train(trainer, *args).network.state
                weights, biases = ([np.asarray(array) for name, array in state.items() if name.endswith(end)]
                                   for end in ('.weight', '.bias'))  # fmt: skip
                self.assertAlmostEqual(weights[0].std() / std, 1, delta=0.03)
                of_the_second = {'report': 1e-4, 'kaiming': 0.2, 'torch': 150**-0.5}[init]
                self.assertAlmostEqual(weights[1].std() / of_the_second, 1, delta=0.1)
                self.assertEqual(any(np.abs(bias).max() > 1e-9 for bias in biases), init == 'torch')

    def test_epochs(self) -> None:
        for trainer in TRAINERS:
            args = ('--epochs', '3', '--eval_freq', '1000', '--batch_size', '300', '--dnn_hidden_units', '5')
            record = self.train(trainer, *args)
            self.assertEqual([row['step'] for row in record.rows], [1, 3, 6, 9])
            name = f'{trainer.SCRIPT}_synthetic_epochs=3_batch_size=300_eval_freq=1000_dnn_hidden_units=5'
            self.assertEqual(record.name, name)
            self.assertEqual((record.flags['max_steps'], record.flags['epochs']), (9, 3))
            shorter = self.train(trainer, *args, '--validation_size', '500')  # an epoch is one of what is trained on
            self.assertEqual([row['step'] for row in shorter.rows], [1, 2, 3])

    def test_a_run_in_epochs_can_be_lengthened(self) -> None:
        path = str(self.directory / 'run.pt')
        args = ('--eval_freq', '1000', '--dropout', '0.4', '--checkpoint', path)
        whole = self.train(train_mlp_pytorch, '--epochs', '2', *args[:-2])
        self.train(train_mlp_pytorch, '--epochs', '1', *args)
        self.assertEqual(self.train(train_mlp_pytorch, '--epochs', '2', *args).rows, whole.rows)

    def test_standardised_pixels(self) -> None:
        for trainer in TRAINERS:
            self.train(trainer, '--max_steps', '3', '--standardise', '--name', 'run')
            network = load_network(
                only(self.directory / 'networks', {train_mlp_numpy: 'npz', train_mlp_pytorch: 'pt'}[trainer])
            )
            with small_stand_in():
                data = cifar10_utils.get_cifar10(dataset='synthetic', standardise=True)['test']
                raw = cifar10_utils.load('synthetic')
            accuracy = (network.probabilities(raw.test_pixels).argmax(axis=1) == raw.test_classes).mean()
            self.assertAlmostEqual(accuracy, float(read_rows(self.directory / 'results/run.csv')[-1]['test_acc']))
            np.testing.assert_allclose(network.probabilities(raw.test_pixels), network.probabilities(data.images))
            for path in self.directory.rglob('run.*'):
                path.unlink()

    def test_dropout_draws_anew_in_each_step_and_on_each_rank(self) -> None:
        from training_pytorch import seed_of_step

        seeds = [seed_of_step(1, 0), seed_of_step(1, 1), seed_of_step(2, 0), seed_of_step(1, 0, rank=1)]
        self.assertEqual(len(set(seeds)), 4)
        models = [self.train(train_mlp_pytorch, '--max_steps', '2', '--seed', seed, '--dropout', '0.5').network.model
                  for seed in ('1', '1', '2')]  # fmt: skip
        first, again, other = (model.layers[0].weight for model in models)
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        self.assertFalse(torch.allclose(first, other))


class ChannelStatisticsTest(unittest.TestCase):
    def test_of_a_few_pixels(self) -> None:
        pixels = np.random.RandomState(0).randint(256, size=(1500, 3072)).astype(np.uint8)
        pixels[:, 2048:] = 7
        mean, std = cifar10_utils.channel_statistics(pixels)
        self.assertEqual((mean.dtype, std.dtype), (np.float32, np.float32))
        for channel in range(2):
            part = slice(1024 * channel, 1024 * (channel + 1))
            np.testing.assert_allclose(mean[part], pixels[:, part].mean(), rtol=1e-6)
            np.testing.assert_allclose(std[part], pixels[:, part].std(), rtol=1e-6)
        self.assertEqual((set(mean[2048:]), set(std[2048:])), ({7}, {1}))  # nothing is divided by zero

    def test_of_the_images_that_are_trained_on(self) -> None:
        with small_stand_in():
            data = cifar10_utils.get_cifar10(dataset='synthetic', validation_size=300, standardise=True)
        images = data['train'].images.astype(np.float64)
        np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(images.std(axis=(0, 2, 3)), 1, atol=1e-5)
        self.assertGreater(abs(data['validation'].images.mean()), 1e-4)
        np.testing.assert_array_equal(data['train'].next_batch(5)[0], data['train'].images[:5])

    @needs_real_data
    def test_of_cifar10(self) -> None:
        data = cifar10_utils.get_cifar10(REAL_DATA, standardise=True)['train']
        np.testing.assert_allclose(data.mean_image[::1024] / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
        np.testing.assert_allclose(data.std_image[::1024] / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)


if __name__ == '__main__':
    unittest.main()
