"""What makes a training go further: momentum, decay, schedules, smoothed labels, averages, augmentation, views."""

import argparse
import contextlib
import importlib
import io
import itertools
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

import augmentation
import cifar10_utils
import train_convnet_pytorch
import train_mlp_numpy
import train_mlp_pytorch
import training_pytorch
from convnet_pytorch import ConvNet
from experiment import RunRecord
from mlp_numpy import MLP
from mlp_pytorch import MLP as TorchMLP
from parsing import FlagError
from report.records import SCRIPTS
from schedules import SHAPES, Schedule
from tests.helpers import ROOT, read_rows, refused, small_stand_in, temporary_directory, torchrun
from tests.test_numpy_training import torch_copy

TRAINERS = (train_mlp_numpy, train_mlp_pytorch)
TRAINER = ROOT / 'train_mlp_pytorch.py'
ALL = ('--augment', 'flip', 'shift=2', 'cutout=8', '--schedule', 'triangular', '--warmup', '0.3', '--momentum', '0.9',
       '--weight_decay', '1e-3', '--label_smoothing', '0.1', '--dropout', '0.2')  # fmt: skip

MIXED = ('--augment', 'flip', 'shift=2', 'cutout=8', 'mixup=0.3', 'cutmix=0.3')  # the later flag wins


def parse(trainer: types.ModuleType, *args: str) -> argparse.Namespace:
    return trainer.build_parser().parse_args(['--dataset', 'synthetic', *args])


def train(trainer: types.ModuleType, *args: str, quiet: bool = True) -> RunRecord:
    with small_stand_in():
        return trainer.train(parse(trainer, '--batch_size', '100', *args), quiet=quiet)


class SGDTest(unittest.TestCase):
    def test_it_is_pytorchs(self) -> None:
        """With momentum and decay, of matrices alone; at once, and in blocks of two or three rows."""
        rng = np.random.RandomState(0)
        for momentum, weight_decay, block in itertools.product((0.0, 0.9), (0.0, 0.1), (2**16, 15)):
            self.enterContext(mock.patch.object(train_mlp_numpy, 'BLOCK', block))
            mlp = MLP(6, [7], 4, rng=rng, init='torch')
            theirs = torch_copy(mlp, [7])
            ours = train_mlp_numpy.SGD(mlp, 0.1, momentum, weight_decay)
            by_torch = training_pytorch.make_optimizer('sgd', theirs, 0.1, momentum, weight_decay=weight_decay)
            for step in range(5):
                ours.learning_rate = by_torch.param_groups[0]['lr'] = by_torch.param_groups[-1]['lr'] = 0.1 / (1 + step)
                for (_, grad), param in zip(mlp.params_and_grads(), theirs.parameters(), strict=True):
                    grad[...] = rng.randn(*grad.shape)
                    param.grad = torch.from_numpy(grad.copy())
                ours.step()
                by_torch.step()
            for (param, _), their in zip(mlp.params_and_grads(), theirs.parameters(), strict=True):
                np.testing.assert_allclose(param, their.detach().numpy(), rtol=1e-9, atol=1e-12)

    def test_the_gradients_are_left_as_they_are(self) -> None:
        mlp = MLP(6, [7], 4, rng=np.random.RandomState(0), init='torch')
        optimizer = train_mlp_numpy.SGD(mlp, 0.1, 0.9, 0.1)
        for _ in range(2):
            before = [grad.copy() for _, grad in mlp.params_and_grads()]
            optimizer.step()
            for (_, grad), old in zip(mlp.params_and_grads(), before, strict=True):
                np.testing.assert_array_equal(grad, old)

    def test_decay_is_of_matrices_and_filters_alone(self) -> None:
        for model in (TorchMLP(6, [5], 4, norm='batch_manual'), train_convnet_pytorch.build_model()):
            for name in training_pytorch.OPTIMIZERS:
                optimizer = training_pytorch.make_optimizer(name, model, 0.1, weight_decay=0.3)
                decays = {
                    id(param): group['weight_decay'] for group in optimizer.param_groups for param in group['params']
                }
                found = {(param.ndim > 1, decays[id(param)]) for param in model.parameters()}
                self.assertEqual(found, {(True, 0.3), (False, 0.0)})

    def test_none_by_default(self) -> None:
        for name in training_pytorch.OPTIMIZERS:
            (group,) = training_pytorch.make_optimizer(name, TorchMLP(6, [5], 4), 0.1).param_groups
            self.assertEqual(
                (group['weight_decay'], group.get('momentum', 0), group.get('nesterov', False)), (0, 0, False)
            )

    def test_nesterov(self) -> None:
        (group,) = training_pytorch.make_optimizer('sgd', TorchMLP(6, [5], 4), 0.1, 0.5, nesterov=True).param_groups
        self.assertTrue(group['nesterov'])
        # Before any data is looked for, which may be a download.
        said = refused(self, train_mlp_pytorch, '--nesterov', '--dataset', 'cifar10', '--data_dir', 'nowhere')
        self.assertIn('--momentum above 0', said)
        said = refused(self, train_mlp_pytorch, '--momentum', '0.9', '--optimizer', 'adam')
        self.assertIn('--momentum 0.9 does nothing with --optimizer adam', said)


class ScheduleTest(unittest.TestCase):
    def test_shapes(self) -> None:
        expected = {
            'constant': [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1],
            'triangular': [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
            'cosine': [1 / 3, 2 / 3, *((1 + np.cos(np.pi * np.arange(8) / 8)) / 2)],
        }
        for shape, factors in expected.items():
            schedule = Schedule(shape, 0.2, 10)
            np.testing.assert_allclose([schedule.factor(step) for step in range(10)], factors)
            self.assertEqual(Schedule(shape, 0.0, 10).factor(0), 1)
        self.assertEqual(set(expected), set(SHAPES))
        for shape, warmup, depends in (('constant', 0, False), ('constant', 0.1, True), ('cosine', 0, True)):
            self.assertEqual(Schedule(shape, warmup, 10).depends_on_length, depends)

    def test_trainers_follow_it(self) -> None:
        """Each step has the learning rate that the schedule says."""
        rates = []
        step = torch.optim.SGD.step

        def note(optimizer: torch.optim.SGD, *args: object) -> None:
            rates.append(optimizer.param_groups[0]['lr'])
            step(optimizer, *args)

        args = ('--max_steps', '10', '--schedule', 'cosine', '--warmup', '0.2', '--learning_rate', '0.5')
        expected = [0.5 * Schedule('cosine', 0.2, 10).factor(step) for step in range(10)]
        with mock.patch.object(torch.optim.SGD, 'step', note):
            train(train_mlp_pytorch, *args)
        np.testing.assert_allclose(rates, expected)
        rates.clear()
        ours = train_mlp_numpy.SGD.step
        with mock.patch.object(train_mlp_numpy.SGD, 'step', lambda sgd: (rates.append(sgd.learning_rate), ours(sgd))):
            train(train_mlp_numpy, *args)
        np.testing.assert_allclose(rates, expected)

    def test_a_warm_up_of_no_step(self) -> None:
        for script in (train_mlp_numpy, train_mlp_pytorch):
            with self.assertRaisesRegex(FlagError, r'^--warmup 0.1 does nothing in 4 step'):
                train(script, '--max_steps', '4', '--warmup', '0.1')


class SmoothedLabelsTest(unittest.TestCase):
    def test_the_loss_that_is_minimised(self) -> None:
        rng = np.random.RandomState(0)
        x, classes = rng.randn(20, 6), rng.randint(4, size=20)
        mlp = MLP(6, [7], 4, rng=rng, init='torch')
        theirs = torch_copy(mlp, [7])
        probabilities = mlp.forward(x)
        plain = -np.log(probabilities[np.arange(20), classes]).mean()
        _, loss = train_mlp_numpy.training_step(mlp, train_mlp_numpy.SGD(mlp, 0.1), x, np.eye(4)[classes], 0.2)
        self.assertAlmostEqual(loss, plain, delta=1e-7)
        _, loss_sum = training_pytorch.training_step(
            theirs, torch.optim.SGD(theirs.parameters(), 0.1), torch.from_numpy(x), torch.from_numpy(classes),
            'float32', torch.tensor(1 / 20), 0.2,
        )  # fmt: skip
        self.assertAlmostEqual(loss_sum.item() / 20, plain, delta=1e-5)
        expected = torch.nn.functional.cross_entropy(torch.from_numpy(np.log(probabilities)), torch.from_numpy(classes),
                                                     label_smoothing=0.2)  # fmt: skip
        self.assertGreater(abs(expected - plain), 1e-3)
        for (_, grad), param in zip(mlp.params_and_grads(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(grad, param.grad.numpy(), atol=1e-6)
            self.assertGreater(np.abs(grad).max(), 1e-4)


class TrainersTest(unittest.TestCase):
    def test_the_images_that_are_trained_on_are_augmented(self) -> None:
        for trainer in TRAINERS:
            losses = []
            for words in (('none',), ('flip',), ('shift=4',), ('cutout=30',)):
                losses.append(train(trainer, '--max_steps', '2', '--eval_freq', '1', '--augment', *words).rows)
            self.assertEqual(len({rows[1]['test_loss'] for rows in losses}), 4)

    def what_is_mixed(self) -> list[tuple]:
        """Grows by the images and the labels of each batch that is mixed from now on."""
        mixed, mix = [], augmentation.Augmentation.mix

        def note(self: augmentation.Augmentation, images: object, labels: object) -> tuple:
            mixed.append(mix(self, images, labels))
            return mixed[-1]

        self.enterContext(mock.patch.object(augmentation.Augmentation, 'mix', note))
        return mixed

    def test_mixed_images_are_trained_on_with_their_labels(self) -> None:
        step, seen = training_pytorch.training_step, []
        mixed = self.what_is_mixed()

        def note(model: object, optimizer: object, images: torch.Tensor, labels: torch.Tensor, *args: object) -> object:
            seen.append(labels)
            self.assertEqual((id(images), id(labels)), (id(mixed[-1][0]), id(mixed[-1][1])))
            _, loss = step(model, optimizer, images, labels, *args)
            return labels, loss  # logits that are right wherever the larger share is right

        with mock.patch.object(training_pytorch, 'training_step', note):
            record = train(train_mlp_pytorch, '--augment', 'cutmix=1', '--max_steps', '3', '--eval_freq', '1')
        self.assertEqual([labels.shape for labels in seen], [(100, 10)] * 3)
        self.assertEqual([row['train_acc'] for row in record.rows], [1, 1, 1])
        self.assertEqual(len({labels[labels > 0].min().item() for labels in seen}), 3)

    def test_numpy_trains_on_mixed_images_with_their_labels(self) -> None:
        step, seen = train_mlp_numpy.training_step, []
        mixed = self.what_is_mixed()

        def note(*args: object) -> object:
            seen.append(args[3])
            self.assertEqual((id(args[2]), id(args[3])), (id(mixed[-1][0]), id(mixed[-1][1])))
            return step(*args)

        with mock.patch.object(train_mlp_numpy, 'training_step', note):
            train(train_mlp_numpy, '--augment', 'mixup=1', '--max_steps', '3')
        self.assertEqual([(labels.shape, labels.max(axis=1).min() < 1) for labels in seen], [((100, 10), True)] * 3)

    def test_numpy_refuses_what_needs_pytorch(self) -> None:
        for word in ('rotate=10', 'cutmix=0.5'):
            self.assertIn(f'got {word!r}', refused(self, train_mlp_numpy, '--augment', word))

    def test_flips_alternate_with_the_epochs(self) -> None:
        """In the trainers, too: an epoch of one batch shows each image as the epoch after the next does."""
        by_example: list[np.ndarray] = []
        draw = augmentation.Augmentation.draw

        def note(self: augmentation.Augmentation, indices: np.ndarray, epoch: int) -> augmentation.Draws:
            draws = draw(self, indices, epoch)
            by_example.append(draws.mirrored[np.argsort(indices)])
            return draws

        for trainer in TRAINERS:
            by_example.clear()
            with mock.patch.object(augmentation.Augmentation, 'draw', note):
                train(trainer, '--augment', 'flip', '--epochs', '3', '--batch_size', '1000')
            self.assertEqual([mirrored.sum() for mirrored in by_example], [500, 500, 500])
            np.testing.assert_array_equal(by_example[0], ~by_example[1])
            np.testing.assert_array_equal(by_example[0], by_example[2])

    def test_views_are_told_beside_the_plain_figures(self) -> None:
        for trainer in TRAINERS:
            args = ('--max_steps', '3', '--validation_size', '200', '--init', 'torch')
            plain, averaged = train(trainer, *args).rows[-1], train(trainer, *args, '--views', '6').rows[-1]
            more = {'test_views_acc', 'test_views_loss', 'val_views_acc', 'val_views_loss'}
            self.assertEqual(averaged.keys() - plain.keys(), more)
            self.assertEqual({key: averaged[key] for key in plain}, plain)
            self.assertNotAlmostEqual(averaged['test_views_loss'], averaged['test_loss'], delta=1e-9)

    def test_views_average_probabilities(self) -> None:
        with small_stand_in():
            sets = cifar10_utils.get_cifar10(dataset='synthetic', one_hot=True)['test']
        mlp = MLP(3072, [], 10, rng=np.random.RandomState(0), dtype=np.float32)
        theirs = torch_copy(mlp, []).float()
        expected = np.zeros((200, 10))
        for view, weight in augmentation.views(sets.pixels, 6):
            expected += weight * mlp.forward(sets.centre(view).reshape(200, -1))
        loss = -np.log(expected[np.arange(200), sets.classes] + 1e-10).mean()
        accuracy = (expected.argmax(axis=1) == sets.classes).mean()
        np.testing.assert_allclose(train_mlp_numpy.evaluate(mlp, sets, 6), (accuracy, loss), rtol=1e-5)
        data = training_pytorch.DeviceData(sets, torch.device('cpu'))
        np.testing.assert_allclose(
            training_pytorch.evaluate(theirs, data, 'float32', n_views=6), (accuracy, loss), rtol=1e-4
        )

    def test_the_average_is_what_is_evaluated_and_kept(self) -> None:
        args = ('--max_steps', '5', '--norm', 'batch_torch', '--learning_rate', '0.1', '--momentum', '0.5')
        plain, averaged = train(train_mlp_pytorch, *args), train(train_mlp_pytorch, *args, '--ema', '0.7')
        self.assertEqual(plain.rows[-1]['train_loss'], averaged.rows[-1]['train_loss'])  # the training is the same
        self.assertNotEqual(plain.rows[-1]['test_loss'], averaged.rows[-1]['test_loss'])
        states: list[dict[str, torch.Tensor]] = []
        step = torch.optim.lr_scheduler.LambdaLR.step
        model = TorchMLP(3072, [100], 10, norm='batch_torch')

        def note(scheduler: torch.optim.lr_scheduler.LambdaLR, *_: object) -> None:
            step(scheduler)
            states.append([param.detach().clone() for param in scheduler.optimizer.param_groups[0]['params']])

        with mock.patch.object(torch.optim.lr_scheduler.LambdaLR, 'step', note):
            train(train_mlp_pytorch, *args)
        expected = states[1]  # that before is of the scheduler's making
        for state in states[2:]:
            expected = [0.7 * old + 0.3 * new for old, new in zip(expected, state, strict=True)]
        kept = averaged.network.state
        for (name, _), param in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(kept[name], param, rtol=1e-4, atol=1e-6)
        self.assertFalse(torch.allclose(kept['layers.1.running_mean'], plain.network.state['layers.1.running_mean']))

    def test_adamw_decays_apart_from_the_gradient(self) -> None:
        args = ('--max_steps', '5', '--weight_decay', '0.5', '--learning_rate', '0.01')
        rows = [train(train_mlp_pytorch, *args, '--optimizer', name).rows[-1] for name in ('adam', 'adamw')]
        self.assertNotEqual(rows[0]['test_loss'], rows[1]['test_loss'])


STOPPING = """
import itertools, sys
import script, train_mlp_pytorch, training_pytorch
step, calls = training_pytorch.training_step, itertools.count()
def stopping(*args):
    if next(calls) == 6:
        raise KeyboardInterrupt
    return step(*args)
training_pytorch.training_step = stopping
sys.exit(script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train))
"""


class SmallImagesTest(unittest.TestCase):
    """A ConvNet that is trained on smaller images first."""

    def sizes_seen(self, *args: str) -> list[int]:
        """The sides of the images in the training steps of a run."""
        seen = []
        forward = ConvNet.forward

        def note(model: ConvNet, images: torch.Tensor) -> torch.Tensor:
            if model.training:
                seen.append(images.shape[-1])
            return forward(model, images)

        with mock.patch.object(ConvNet, 'forward', note):
            train(train_convnet_pytorch, '--batch_size', '4', *args)
        return seen

    def test_in_the_first_share_of_the_steps(self) -> None:
        self.assertEqual(self.sizes_seen('--max_steps', '5', '--small_images', '20=0.6'), [20, 20, 20, 32, 32])
        self.assertEqual(self.sizes_seen('--max_steps', '2'), [32, 32])

    def test_a_run_that_goes_on(self) -> None:
        args = ('--batch_size', '4', '--eval_freq', '2', '--small_images', '17=0.5')
        whole = train(train_convnet_pytorch, *args, '--max_steps', '6')
        with temporary_directory() as directory:
            checkpoint = ('--checkpoint', str(directory / 'run.pt'))
            train(train_convnet_pytorch, *args, '--max_steps', '3', *checkpoint)
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
                seen = train(train_convnet_pytorch, *args, '--max_steps', '6', *checkpoint, quiet=False)
        self.assertIn('goes on at 0.0001 with images of 32 pixels, as if it had been so from the start', out.getvalue())
        self.assertNotEqual(seen.rows[-1], whole.rows[-1])  # of the three steps it had taken, two had been small

    def test_a_small_image_is_the_mean_of_the_large_one(self) -> None:
        """As Pillow has it, with a filter as wide as what each small pixel covers."""
        image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        small = training_pytorch.resized(image, 20)
        expected = Image.fromarray(image[0, 0].numpy()).resize((20, 20), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(small[0, 0], np.asarray(expected), atol=1e-5)
        self.assertIs(training_pytorch.resized(image, 32), image)

    def test_refused(self) -> None:
        for words in ('20', '16=0.5', '32=0.5', '20=0', '20=1', 'x=0.5', '20=x', ''):
            self.assertIn('--small_images: must be', refused(self, train_convnet_pytorch, f'--small_images={words}'))
        with self.assertRaisesRegex(FlagError, r'^--small_images 20=0.1 does nothing in 4 step'):
            train(train_convnet_pytorch, '--batch_size', '4', '--max_steps', '4', '--small_images', '20=0.1')


class RecipeTest(unittest.TestCase):
    def test_each_is_a_command_under_its_own_name(self) -> None:
        recipes = sorted((ROOT / 'recipes').glob('*.txt'))
        self.assertTrue(recipes)
        for path in recipes:
            script = next(script for script in SCRIPTS if path.stem.startswith(script))
            trainer = importlib.import_module(f'train_{script}')
            flags = parse(trainer, f'@{path}')
            self.assertEqual(flags.name, path.stem.replace(script, f'{script}_recipe'))
            command = f'python train_{script}.py @recipes/{path.name}'
            self.assertIn(command, path.read_text(encoding='utf-8').splitlines()[0])
            if hasattr(flags, 'dnn_hidden_units'):
                record = train(trainer, f'@{path}', '--dnn_hidden_units', '8,8', '--epochs', '5')
                self.assertEqual((record.status, record.rows[-1]['step']), ('finished', 10))


class ResumedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def test_as_if_never_stopped(self) -> None:
        args = (*ALL, *MIXED, '--nesterov', '--ema', '0.8', '--views', '2', '--max_steps', '24', '--eval_freq', '4')
        checkpoint = ('--checkpoint', str(self.directory / 'run.pt'))
        whole = train(train_mlp_pytorch, *args)
        step, calls = training_pytorch.training_step, itertools.count()

        def stopping(*args: object) -> object:
            if next(calls) == 15:
                raise KeyboardInterrupt
            return step(*args)

        with mock.patch.object(training_pytorch, 'training_step', stopping):
            self.assertEqual(train(train_mlp_pytorch, *args, *checkpoint).status, 'interrupted')
        resumed = train(train_mlp_pytorch, *args, *checkpoint)
        self.assertEqual(resumed.rows, whole.rows)
        for name, tensor in whole.network.state.items():
            torch.testing.assert_close(resumed.network.state[name], tensor, rtol=0, atol=0)

    def test_on_two_processes(self) -> None:
        (self.directory / 'cut_short.py').write_text(STOPPING)
        args = ['--dataset', 'synthetic', '--batch_size', '101', '--eval_freq', '4', '--max_steps', '10',
                '--name', 'run', '--dnn_hidden_units', '20', *ALL, *MIXED, '--nesterov', '--ema', '0.8']  # fmt: skip
        rows, done = {}, []
        for name, scripts in (('whole', [TRAINER]), ('cut', [self.directory / 'cut_short.py', TRAINER])):
            for script in scripts:
                output_dir = self.directory / name
                done.append(torchrun(script, *args, f'--output_dir={output_dir}', f'--checkpoint={output_dir}/run.pt'))
            rows[name] = read_rows(output_dir / 'results/run.csv')
        self.assertEqual([row['step'] for row in rows['whole']], ['1', '5', '9', '10'])
        self.assertEqual(rows['cut'], rows['whole'])
        self.assertEqual([run.returncode == 0 for run in done], [True, False, True])
        self.assertEqual(['step     1 ' in run.stdout for run in done], [True, True, False])  # it did go on

    def test_a_lengthened_run_says_what_becomes_of_its_schedule(self) -> None:
        checkpoint = ('--checkpoint', str(self.directory / 'run.pt'))
        for args, said in ((('--schedule', 'triangular'), True), ((), False)):
            for max_steps in ('4', '8'):
                with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
                    train(
                        train_mlp_pytorch,
                        '--max_steps',
                        max_steps,
                        '--learning_rate',
                        '0.1',
                        *args,
                        *checkpoint,
                        quiet=False,
                    )
            expected = 'the schedule of 4 steps is now one of 8: the learning rate goes on at 0.05, as if'
            self.assertEqual(expected in out.getvalue(), said, out.getvalue())
            self.assertEqual('the schedule of' in out.getvalue(), said)
            (self.directory / 'run.pt').unlink()

    def test_a_checkpoint_from_before_there_were_such_flags(self) -> None:
        path = self.directory / 'run.pt'
        args = ('--eval_freq', '2', '--checkpoint', str(path))
        whole = train(train_mlp_pytorch, '--max_steps', '6', '--eval_freq', '2').rows
        train(train_mlp_pytorch, '--max_steps', '3', *args)
        state = torch.load(path, weights_only=True)
        for flag in ('augment', 'momentum', 'schedule', 'ema', 'views', 'epochs', 'standardise', 'activation', 'init'):
            del state['flags'][flag]
        del state['average']
        for group in state['optimizer']['param_groups']:
            del group['initial_lr']
        torch.save(state, path)
        resumed = train(train_mlp_pytorch, '--max_steps', '6', *args).rows
        self.assertEqual(resumed, whole)


if __name__ == '__main__':
    unittest.main()
