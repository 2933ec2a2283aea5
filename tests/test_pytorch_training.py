"""The PyTorch networks and their training: evaluation, checkpoints, several processes, the scripts."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import convnet_pytorch
import experiment
import ranks
import script
import train_convnet_pytorch
import train_mlp_pytorch
import training_pytorch
from checkpoints import load_network
from cifar10_utils import get_cifar10
from convnet_pytorch import ConvNet, Convolution3x3
from mlp_pytorch import MLP as TorchMLP
from parsing import FlagError
from tests.helpers import ROOT, only, read_rows, refused, small_stand_in, temporary_directory, torchrun


class TorchNetworksTest(unittest.TestCase):
    def test_mlp_layers(self) -> None:
        def kinds(*args: object) -> list[str]:
            return [type(layer).__name__ for layer in TorchMLP(6, *args).layers]

        self.assertEqual(kinds([], 3), ['Linear'])
        self.assertEqual(kinds([5, 4], 3), ['Linear', 'ReLU', 'Linear', 'ReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.1, 'batch_torch'), ['Linear', 'BatchNorm1d', 'LeakyReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.0, 'batch_manual')[1], 'CustomBatchNormManualModule')
        self.assertEqual(kinds([5], 3, 0.0, 'batch_autograd')[1], 'CustomBatchNormAutograd')
        deep = ['Linear', 'BatchNorm1d', 'LeakyReLU'] * 2 + ['Linear']
        self.assertEqual(kinds([5, 4], 3, 0.1, 'batch_torch'), deep)
        self.assertEqual(TorchMLP(6, [5], 3, 0.1).layers[1].negative_slope, 0.1)
        self.assertEqual(TorchMLP(3072, [5], 3)(torch.ones(2, 3, 32, 32)).shape, (2, 3))

    def test_batch_norms_train_alike(self) -> None:
        losses = []
        for norm in ('batch_autograd', 'batch_manual', 'batch_torch'):
            torch.manual_seed(0)
            mlp = TorchMLP(20, [16, 12], 4, norm=norm).double()
            optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
            losses.append([])
            for _ in range(20):
                x, y = torch.randn(30, 20, dtype=torch.float64), torch.randint(4, (30,))
                loss = torch.nn.functional.cross_entropy(mlp(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
        np.testing.assert_allclose(losses[0], losses[2], rtol=1e-9)
        np.testing.assert_allclose(losses[1], losses[2], rtol=1e-9)

    def test_convnet_layers_and_shapes(self) -> None:
        model, x = ConvNet(3, 10).eval(), torch.randn(2, 3, 32, 32)
        shapes = []
        for layer in model.features:
            x = layer(x)
            if isinstance(layer, torch.nn.Conv2d):
                self.assertEqual((layer.kernel_size, layer.stride, layer.padding), ((3, 3), (1, 1), (1, 1)))
                shapes.append(('conv', layer.in_channels, *x.shape[1:3]))
            elif isinstance(layer, torch.nn.MaxPool2d):
                self.assertEqual((layer.kernel_size, layer.stride, layer.padding), (3, 2, 1))
                shapes.append(('pool', *x.shape[1:3]))
        expected = [
            ('conv', 3, 64, 32), ('pool', 64, 16), ('conv', 64, 128, 16), ('pool', 128, 8),
            ('conv', 128, 256, 8), ('conv', 256, 256, 8), ('pool', 256, 4),
            ('conv', 256, 512, 4), ('conv', 512, 512, 4), ('pool', 512, 2),
            ('conv', 512, 512, 2), ('conv', 512, 512, 2), ('pool', 512, 1),
        ]  # fmt: skip
        self.assertEqual(shapes, expected)
        kinds = [type(layer).__name__ for layer in model.features]
        block, pool = ['Convolution3x3', 'BatchNorm2d', 'ReLU'], ['MaxPool2d']
        stages = (1, 1, 2, 2, 2)
        self.assertEqual(kinds, [kind for n_blocks in stages for kind in block * n_blocks + pool])
        logits = model(torch.randn(1, 3, 32, 32))
        self.assertEqual(logits.shape, (1, 10))
        self.assertLess(logits.min(), 0)  # no probabilities yet

    def test_convolution_is_the_library_s(self) -> None:
        self.enterContext(mock.patch.object(convnet_pytorch, 'LARGEST_PRODUCT', 4))  # here in float64, too
        for height, width in ((1, 1), (2, 2), (3, 3), (2, 4), (4, 4), (4, 5), (6, 6)):
            torch.manual_seed(0)
            ours = Convolution3x3(5, 7).double()
            library = torch.nn.Conv2d(5, 7, kernel_size=3, padding=1).double()
            library.load_state_dict(ours.state_dict())
            x, gradient = torch.randn(3, 5, height, width).double(), torch.randn(3, 7, height, width).double()
            seen = []
            for layer in (ours, library):
                copy = x.clone().requires_grad_()
                out = layer(copy)
                out.backward(gradient)
                seen.append((out, copy.grad, layer.weight.grad, layer.bias.grad))
            with self.subTest(height=height, width=width):
                for mine, theirs in zip(*seen, strict=True):
                    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
            laid_out = ours.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
            self.assertTrue(laid_out.is_contiguous(memory_format=torch.channels_last))

    def test_convolution_in_bfloat16_is_the_library_s(self) -> None:
        torch.manual_seed(0)
        layer, x = Convolution3x3(64, 32), torch.randn(8, 64, 3, 3, dtype=torch.bfloat16)
        with training_pytorch.autocast(torch.device('cpu'), 'bfloat16'):
            mine, theirs = layer(x), torch.nn.Conv2d.forward(layer, x)
        self.assertEqual(mine.dtype, torch.bfloat16)
        exact = layer(x.float())
        self.assertLess((mine - theirs).abs().max(), 0.02)
        self.assertLess((mine - exact).norm(), 1.1 * (theirs - exact).norm())

    def test_convnet_in_bfloat16(self) -> None:
        torch.manual_seed(0)
        model, x = train_convnet_pytorch.build_model(), torch.randn(2, 3, 32, 32)
        self.assertTrue(model.features[0].weight.is_contiguous(memory_format=torch.channels_last))
        with training_pytorch.autocast(torch.device('cpu'), 'bfloat16'):
            narrow = model(x)
        self.assertEqual(narrow.dtype, torch.bfloat16)
        torch.testing.assert_close(narrow.float(), model(x), rtol=0.1, atol=0.2)

    def test_convnet_parameter_count(self) -> None:
        # A convolution a→b has 9ab weights and b biases, its normalisation 2b parameters.
        pairs = ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
        by_hand = sum(9 * a * b + 3 * b for a, b in pairs) + 512 * 10 + 10
        self.assertEqual(by_hand, 9_231_114)
        self.assertEqual(sum(param.numel() for param in ConvNet(3, 10).parameters()), by_hand)


class TorchTrainingTest(unittest.TestCase):
    SHORT = ('--dataset', 'synthetic', '--max_steps', '9', '--eval_freq', '3', '--dnn_hidden_units', '20')

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def train(self, *args: str, output_dir: str | None = None) -> experiment.RunRecord:
        """A short run of the MLP on the stand-in, in this process; `output_dir` is inside the test's directory."""
        flags = [*self.SHORT, *args]
        where = None if output_dir is None else str(self.directory / output_dir)
        return train_mlp_pytorch.train(train_mlp_pytorch.build_parser().parse_args(flags), where, quiet=True)

    def test_batches_equal_those_of_the_numpy_path(self) -> None:
        data = get_cifar10(dataset='synthetic', one_hot=False)['train']
        indices = np.array([5, 3, 9_999])
        images, labels = training_pytorch.DeviceData(data, torch.device('cpu')).examples(indices)
        np.testing.assert_array_equal(images.numpy(), data.examples(indices)[0])
        np.testing.assert_array_equal(labels.numpy(), data.examples(indices)[1])

    def test_evaluation(self) -> None:
        """In evaluation mode, without gradients, over every example once, and back in the mode before."""
        data = training_pytorch.DeviceData(get_cifar10(dataset='synthetic')['test'], torch.device('cpu'))
        seen = []

        class Watched(TorchMLP):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append((self.training, torch.is_grad_enabled(), x))
                return super().forward(x)

        model = Watched(3072, [10], 10, norm='batch_manual').train()
        before = model.layers[1].running_mean.clone()
        accuracy, loss = training_pytorch.evaluate(model, data, 'float32')
        self.assertTrue(model.training)
        self.assertEqual({(training, grad) for training, grad, _ in seen}, {(False, False)})
        images = torch.cat([x for _, _, x in seen])
        torch.testing.assert_close(images, data.examples(np.arange(2000))[0])
        torch.testing.assert_close(model.layers[1].running_mean, before)
        logits = model.eval()(images)
        self.assertEqual(training_pytorch.evaluate(model, data, 'float32'), (accuracy, loss))
        self.assertFalse(model.training)
        self.assertAlmostEqual(accuracy, (logits.argmax(dim=1) == data.labels).double().mean().item(), delta=1e-6)
        self.assertAlmostEqual(loss, torch.nn.functional.cross_entropy(logits, data.labels).item(), delta=1e-5)

    def test_seed_optimizers_precision_and_divergence(self) -> None:
        rows = self.train().rows
        self.assertEqual(rows, self.train().rows)
        self.assertNotEqual(rows, self.train('--seed', '1').rows)
        for optimizer in ('SGD', 'Adam', 'Adadelta', 'adam'):
            record = self.train('--optimizer', optimizer, '--learning_rate', '1e-3')
            self.assertLess(record.rows[-1]['train_loss'], 20)
            self.assertEqual(record.flags['optimizer'], optimizer.lower())
        narrow = self.train('--precision', 'bfloat16').rows
        self.assertNotEqual(narrow, rows)
        self.assertAlmostEqual(narrow[0]['train_loss'], rows[0]['train_loss'], delta=0.05 * rows[0]['train_loss'])
        for capability, warned in (('AVX2', True), ('AVX512', False)):
            with (
                mock.patch('torch.backends.cpu.get_cpu_capability', return_value=capability),
                mock.patch.object(experiment.RunRecord, 'say') as say,
            ):
                self.train('--precision', 'bfloat16', '--max_steps', '1')
            self.assertEqual('no bfloat16 instructions' in str(say.call_args_list), warned)
        checkpoint = ('--checkpoint', str(self.directory / 'run.pt'))
        for _ in range(2):  # one that diverged does not go on
            record = self.train('--learning_rate', '1e30', *checkpoint)
            self.assertEqual((record.status, [row['step'] for row in record.rows]), ('diverged', [1]))

    def test_resumed_equals_uninterrupted(self) -> None:
        args = ('--optimizer', 'adam', '--batch_norm', 'manual', '--validation_size', '9800', '--batch_size', '60')
        whole = self.train(*args)  # with 200 training examples, every fourth batch begins an epoch
        checkpoint = str(self.directory / 'run.pt')
        add = experiment.RunRecord.add

        def killed_in_the_third_evaluation(record: experiment.RunRecord, *args: object, **kwargs: object) -> None:
            add(record, *args, **kwargs)
            if len(record.rows) == 3:
                raise InterruptedError

        with (
            mock.patch.object(experiment.RunRecord, 'add', killed_in_the_third_evaluation),
            self.assertRaises(InterruptedError),
        ):
            self.train(*args, '--checkpoint', checkpoint)
        torch.manual_seed(99)
        resumed = self.train(*args, '--resume', checkpoint)
        self.assertEqual(len(resumed.rows), 4)
        self.assertEqual(resumed.rows, whole.rows)

    def test_a_killed_script_goes_on(self) -> None:
        args = ('--dataset', 'synthetic', '--max_steps', '500', '--eval_freq', '100', '--dnn_hidden_units', '10')
        checkpoint = self.directory / 'run.pt'
        command = [sys.executable, '-u', ROOT / 'train_mlp_pytorch.py', *args]
        with subprocess.Popen(
            [*command, '--checkpoint', checkpoint, '--output_dir', self.directory / 'killed'],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            for _ in range(3):  # the device and two evaluations
                process.stdout.readline()
            process.kill()
        evaluated = read_rows(only(self.directory / 'killed', '.csv.running'))
        self.assertEqual(evaluated[0]['step'], '1')
        self.train(*args, '--resume', str(checkpoint), output_dir='on')
        self.train(*args, output_dir='whole')
        resumed, whole = (read_rows(only(self.directory / name, '.csv')) for name in ('on', 'whole'))
        self.assertEqual(len(whole), 6)
        self.assertEqual(resumed, whole)

    def test_checkpoints_that_do_not_fit(self) -> None:
        checkpoint = self.directory / 'run.pt'
        args = ('--max_steps', '2', '--eval_freq', '1', '--dnn_hidden_units', '20')

        def refused_resume(*more: str) -> str:
            return refused(self, train_mlp_pytorch, *args, '--resume', str(checkpoint), *more)

        self.assertIn('No such file', refused_resume())
        self.train(*args, '--checkpoint', str(checkpoint))
        self.assertRegex(refused_resume('--learning_rate', '1'), 'its learning_rate is 0.002, here it is 1.0')
        self.assertRegex(
            refused_resume('--dnn_hidden_units', '30'), r'its dnn_hidden_units is \[20\], here it is \[30\]'
        )
        self.assertRegex(refused_resume('--optimizer', 'adam'), 'its optimizer is sgd, here it is adam')
        whole = checkpoint.read_bytes()
        for damaged in (b'', b'nonsense', whole[: len(whole) // 2], pickle.dumps({'step': 3})):
            checkpoint.write_bytes(damaged)
            self.assertIn('damaged', refused_resume())
        in_a_tensor = whole.index(b'archive/data/0') + 300
        flipped = bytearray(whole)
        flipped[in_a_tensor] ^= 1
        checkpoint.write_bytes(flipped)
        self.assertIn('damaged', refused_resume())
        checkpoint.write_bytes(pickle.dumps(os.system))
        self.assertIn('damaged', refused_resume())
        torch.save({'state': 1}, checkpoint)
        self.assertIn('damaged', refused_resume())

    def test_bad_flags(self) -> None:
        def refuse(*args: str) -> str:
            return refused(self, train_mlp_pytorch, *args)

        self.assertIn('no_such', refuse('--optimizer', 'No_such'))
        self.assertIn('at least 2 examples', refuse('--batch_norm', 'manual', '--batch_size', '1'))
        self.assertIn('needs a hidden layer', refuse('--batch_norm', 'torch', '--dnn_hidden_units', ''))
        self.assertIn('cannot read --resume', refuse('--resume', ''))
        self.assertIn('cannot look into --data_dir', refuse('--dataset', 'auto', '--data_dir', 'x' * 300))
        self.assertIn('is a directory', refuse('--checkpoint', str(self.directory)))
        if not torch.cuda.is_available():
            self.assertIn('no such device', refuse('--device', 'cuda'))

    def test_convnet_script_end_to_end(self) -> None:
        """In this process, and on a tenth of the stand-in's test images: all of them take a CPU ten seconds."""
        args = ('--dataset', 'synthetic', '--max_steps', '1', '--batch_size', '8', '--output_dir', str(self.directory))
        with (
            mock.patch.object(sys, 'argv', ['train_convnet_pytorch.py', *args]),
            small_stand_in(),
            contextlib.redirect_stdout(io.StringIO()) as stdout,
        ):
            status = script.main(train_convnet_pytorch.build_parser(), train_convnet_pytorch.train)
        self.assertEqual(status, 0)
        self.assertTrue(stdout.getvalue().startswith('device: '))
        rows = read_rows(only(self.directory, '.csv'))
        self.assertEqual([row['step'] for row in rows], ['1'])
        summary = json.loads(only(self.directory, '.json').read_text())
        self.assertIn(summary['versions']['torch'], (torch.__version__, torch.__version__.split('+')[0]))
        self.assertEqual(summary['flags']['optimizer'], 'adam')
        self.assertTrue(only(self.directory, '.png').exists())
        network = load_network(only(self.directory / 'networks', '.pt'))
        with small_stand_in():
            test = get_cifar10(dataset='synthetic')['test']
        probabilities = network.probabilities(test.pixels)
        self.assertEqual((probabilities.argmax(axis=1) == test.classes).mean(), float(rows[0]['test_acc']))

    def test_two_ranks_give_what_one_process_does(self) -> None:
        args = ('--dataset', 'synthetic', '--max_steps', '30', '--eval_freq', '10', '--batch_size', '63')
        args += ('--validation_size', '101', '--learning_rate', '1e-4')
        done = torchrun(ROOT / 'train_mlp_pytorch.py', *args, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([done.stdout.count(said) for said in ('device: ', 'step     1 ', 'best step')], [1, 1, 1])
        self.train('--dnn_hidden_units', '100', *args, output_dir='one')
        one, two = (read_rows(only(self.directory / name, '.csv')) for name in ('one', 'two'))
        self.assertEqual(json.loads(only(self.directory / 'two', '.json').read_text())['processes'], 2)
        self.assertEqual(len(one), 4)
        for row, row_of_two in zip(one, two, strict=True):
            for key, value in row.items():
                self.assertAlmostEqual(float(value), float(row_of_two[key]), delta=1e-6 * max(1, float(value)))

    def test_two_ranks_evaluate_one_network(self) -> None:
        """With the same running statistics, which a training step leaves different: once before it, then twice."""
        script_path = self.directory / 'watched.py'
        script_path.write_text(
            'import experiment, os, sys, script, torch, train_mlp_pytorch\n'
            'forward = torch.nn.BatchNorm1d.forward\n'
            'def watched(module, x):\n'
            '    if not module.training:\n'
            '        with open(__file__ + os.environ["RANK"], "a") as file:\n'
            '            print(module.running_mean.tolist(), module.running_var.tolist(), file=file)\n'
            '    return forward(module, x)\n'
            'torch.nn.BatchNorm1d.forward = watched\n'
            'write = experiment.RunRecord.write\n'
            'def told(record, output_dir):\n'
            '    open(__file__ + "written by " + os.environ["RANK"], "w").close()\n'
            '    return write(record, output_dir)\n'
            'experiment.RunRecord.write = told\n'
            'sys.exit(script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '2', '--eval_freq', '9', '--dnn_hidden_units', '2')
        done = torchrun(script_path, *args, '--batch_norm', 'torch', '--output_dir', self.directory / 'out')
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second = ((self.directory / f'watched.py{rank}').read_text() for rank in (0, 1))
        self.assertEqual(first, second)
        self.assertEqual(
            (len(first.splitlines()), len(set(first.splitlines()))), (1 + 2 * 5, 3)
        )  # before the first step, then twice
        self.assertEqual([path.name for path in self.directory.glob('*written*')], ['watched.pywritten by 0'])

    def test_ranks_mix_alike_and_drop_out_each_in_its_own_way(self) -> None:
        """As one process does: the same batches, by the same shares; and each step draws anew."""
        script_path = self.directory / 'mixing.py'
        script_path.write_text(
            'import os, sys, script, torch, train_mlp_pytorch, training_pytorch\n'
            'step = training_pytorch.training_step\n'
            'def watched(model, optimizer, images, labels, *args):\n'
            '    share = labels.max(dim=1).values.min().item() if labels.ndim == 2 else 1\n'
            '    with open(__file__ + os.environ.get("RANK", "alone"), "a") as file:\n'
            '        print(share, torch.initial_seed(), file=file)\n'
            '    return step(model, optimizer, images, labels, *args)\n'
            'training_pytorch.training_step = watched\n'
            'sys.exit(script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '12', '--augment', 'mixup=0.5')
        args += ('--output_dir', self.directory / 'out')
        torchrun(script_path, *args)
        environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
        subprocess.run([sys.executable, script_path, *args], env=environment, check=True, capture_output=True)
        shares, seeds = {}, {}
        for name in ('alone', '0', '1'):
            lines = (self.directory / f'mixing.py{name}').read_text().splitlines()
            shares[name], seeds[name] = zip(*map(str.split, lines), strict=True)
            self.assertEqual(len(set(seeds[name])), 12)
        self.assertEqual([shares['0'], shares['1'], seeds['0']], [shares['alone'], shares['alone'], seeds['alone']])
        self.assertTrue(set(seeds['0']).isdisjoint(seeds['1']))
        self.assertTrue(2 < len(set(shares['alone'])) < 12)  # some batches are mixed, others not

    def test_a_rank_that_dies_ends_the_run(self) -> None:
        script_path = self.directory / 'dying.py'
        script_path.write_text(
            'import os, sys, experiment, script, train_mlp_pytorch\n'
            'due = experiment.RunRecord.evaluation_due\n'
            'def dying(record, step, loss):\n'
            '    if step == 5 and os.environ["RANK"] == "1":\n'
            '        os.kill(os.getpid(), 9)\n'
            '    return due(record, step, loss)\n'
            'experiment.RunRecord.evaluation_due = dying\n'
            'sys.exit(script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '100000', '--output_dir', self.directory / 'out')
        done = torchrun(script_path, *args)
        self.assertNotEqual(done.returncode, 0)
        summary = json.loads(only(self.directory / 'out', '.json').read_text())
        self.assertIn(summary['status'], ('failed', 'interrupted'))  # whether gloo or torchrun is the first to tell
        self.assertEqual(summary['last']['step'], 1)

    def test_a_longer_run_goes_on_from_a_shorter_one(self) -> None:
        checkpoint = str(self.directory / 'run.pt')
        short = self.train('--checkpoint', checkpoint)
        self.assertEqual([row['step'] for row in short.rows], [1, 4, 7, 9])
        longer = self.train('--max_steps', '14', '--resume', checkpoint)
        at_once = self.train('--max_steps', '14')
        self.assertEqual([row for row in longer.rows if row['step'] != 9], at_once.rows)
        self.assertEqual(longer.rows[3], short.rows[-1])
        more_often = self.train('--max_steps', '14', '--eval_freq', '1', '--resume', checkpoint)
        self.assertEqual([row['step'] for row in more_often.rows], [1, 4, 7, *range(9, 15)])
        self.assertEqual(more_often.rows[-1], at_once.rows[-1])
        line = refused(self, train_mlp_pytorch, *self.SHORT, '--max_steps', '5', '--resume', checkpoint)
        self.assertIn('has 9 steps already: --max_steps must be as many or more', line)

    def test_the_same_command_goes_on_from_its_checkpoint(self) -> None:
        args = ('--checkpoint', str(self.directory / 'run.pt'), '--validation_size', '1000')
        whole = self.train('--validation_size', '1000', output_dir='whole')
        add = experiment.RunRecord.add

        def killed(record: experiment.RunRecord, *args: object, **kwargs: object) -> None:
            add(record, *args, **kwargs)
            if len(record.rows) == 3:
                raise InterruptedError

        with mock.patch.object(experiment.RunRecord, 'add', killed), self.assertRaises(InterruptedError):
            self.train(*args)
        resumed = self.train(*args, output_dir='resumed')
        self.assertEqual(resumed.rows, whole.rows)
        first, second = (load_network(only(self.directory / name / 'networks', '.pt')) for name in ('whole', 'resumed'))
        self.assertEqual(first.description['row'], second.description['row'])
        pixels = get_cifar10(dataset='synthetic')['test'].pixels[:50]
        np.testing.assert_array_equal(first.probabilities(pixels), second.probabilities(pixels))
        self.assertGreaterEqual(resumed.seconds, 0)

    def test_what_no_run_has_written_is_not_overwritten(self) -> None:
        for contents in (b'my notes', b''):
            notes = self.directory / 'notes.txt'
            notes.write_bytes(contents)
            self.assertIn('is damaged or no checkpoint', refused(self, train_mlp_pytorch, '--checkpoint', str(notes)))
            self.assertEqual(notes.read_bytes(), contents)
        self.assertIn('is no regular file', refused(self, train_mlp_pytorch, '--checkpoint', '/dev/null'))

    def test_a_checkpoint_is_no_file_of_the_run_itself(self) -> None:
        (self.directory / 'link').symlink_to(self.directory / 'out')
        for path in ('out/networks/x.pt', 'out/results/../results/x.csv', 'link/networks/x.pt'):
            with self.assertRaisesRegex(FlagError, f'--checkpoint .*{path} is what the run itself writes'):
                self.train('--name', 'x', '--checkpoint', str(self.directory / path), output_dir='out')
        self.assertFalse((self.directory / 'out').exists())

    def test_a_checkpoint_that_is_there_comes_before_the_one_to_resume(self) -> None:
        """So that the same command goes on, whatever it first began from."""
        first, second = (str(self.directory / name) for name in ('first.pt', 'second.pt'))
        self.train('--max_steps', '4', '--checkpoint', first)
        whole = self.train('--resume', first, '--checkpoint', second)
        with mock.patch.object(training_pytorch, 'training_step', side_effect=AssertionError):
            again = self.train('--resume', first, '--checkpoint', second)
        self.assertEqual(again.rows, whole.rows)
        notes = self.directory / 'notes.txt'
        notes.write_text('my notes')
        said = refused(self, train_mlp_pytorch, '--resume', first, '--checkpoint', str(notes))
        self.assertIn('notes.txt is damaged or no checkpoint', said)

    def test_a_link_to_a_checkpoint_that_is_yet_to_be_written(self) -> None:
        link, target = self.directory / 'run.pt', self.directory / 'target.pt'
        link.symlink_to(target)
        rows = self.train('--checkpoint', str(link)).rows
        self.assertTrue(link.is_symlink() and target.is_file())
        self.assertEqual(self.train('--checkpoint', str(link)).rows, rows)

    def test_checkpoints_of_several_seeds_that_can_be_none(self) -> None:
        for path, reason in (('', 'cannot write --checkpoint'), ('.', 'cannot write --checkpoint .')):
            self.assertIn(reason, refused(self, train_mlp_pytorch, '--seeds', '1,2', '--checkpoint', path))
        said = refused(self, train_mlp_pytorch, '--seeds', '1,2', '--resume', 'run.pt')
        self.assertIn('--resume is of one run', said)

    def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(self) -> None:
        with (
            mock.patch.object(training_pytorch.RunState, 'save', side_effect=OSError(28, 'No space left on device')),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            record = self.train('--checkpoint', str(self.directory / 'run.pt'), output_dir='out')
        self.assertEqual((len(record.rows), record.status, record.exit_status), (4, 'finished', 1))
        self.assertEqual(stderr.getvalue().count('No space left on device'), 4)
        self.assertEqual(len(read_rows(only(self.directory / 'out', '.csv'))), 4)

    def test_kept_networks_give_the_recorded_figures(self) -> None:
        test = get_cifar10(dataset='synthetic')['test']
        for i, more in enumerate((
            (), ('--batch_norm', 'manual', '--validation_size', '2000'), ('--batch_norm', 'torch'),
            ('--batch_norm', 'autograd', '--precision', 'bfloat16', '--neg_slope', '0.1'),
        )):  # fmt: skip
            record = self.train(*more, output_dir=str(i))
            network = load_network(only(self.directory / str(i), '.pt'))
            probabilities = network.probabilities(test.pixels)
            row = network.description['row']
            self.assertEqual(row, record.best() if 'val_acc' in row else record.rows[-1])
            self.assertEqual((probabilities.argmax(axis=1) == test.classes).mean(), row['test_acc'])
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)

    def test_the_seed_chooses_weights_and_order(self) -> None:
        first, second = (self.train('--seed', seed, '--batch_size', '6000') for seed in ('1', '2'))
        self.assertNotEqual(first.rows[0]['test_loss'], second.rows[0]['test_loss'])
        torch.manual_seed(0)
        orders = []
        for seed in (1, 2, 1):
            sets = training_pytorch.load_on_all_ranks('.', 'synthetic', 0, 6000, False, seed, ranks.ALONE)
            sets['train'].next_indices(6000)
            orders.append(sets['train'].next_indices(6000).tolist())
        self.assertEqual(orders[0], orders[2])
        self.assertNotEqual(orders[0], orders[1])

    def test_numbers_that_float32_has_not(self) -> None:
        for flag in ('--learning_rate', '--neg_slope'):
            self.assertIn('must be at most 3.4e+38', refused(self, train_mlp_pytorch, flag, '1e39'))

    def test_ranks_that_do_not_agree_say_so(self) -> None:
        """One that would train something else, and one that misses a file."""
        script_path = self.directory / 'different.py'
        script_path.write_text(
            'import os, sys, script, train_mlp_pytorch\n'
            'if os.environ["RANK"] == "1":\n'
            '    sys.argv += sys.argv.pop(1).split()\n'
            'else:\n'
            '    sys.argv.pop(1)\n'
            'sys.exit(script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train))\n'
        )
        for difference, reason in (
            (
                '--learning_rate 3',
                'rank 1: the run of rank 0 belongs to another run: its learning_rate is 0.002, here it is 3.0',
            ),
            ('--resume none.pt', 'rank 1: cannot read --resume none.pt'),
        ):
            done = torchrun(script_path, difference, *self.SHORT, '--output_dir', self.directory / 'out')
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count(reason), 1, done.stderr)
            self.assertNotIn('Traceback', done.stderr.split('Root Cause')[0].split('elastic')[0])
        self.assertFalse((self.directory / 'out').exists())

    def test_three_ranks_go_on_as_if_never_stopped(self) -> None:
        """The three runs are made in one process a rank, which takes its place among the ranks once."""
        script_path = self.directory / 'three.py'
        script_path.write_text(
            'import sys, script, train_mlp_pytorch\n'
            'words = sys.argv[1:]\n'
            'for name, steps, more in (("whole", "9", []), ("half", "5", ["run.pt"]), ("on", "9", ["run.pt"])):\n'
            '    checkpoint = [f"--checkpoint={words[0]}/{file}" for file in more]\n'
            '    sys.argv[1:] = [*words[1:], f"--output_dir={words[0]}/{name}", "--max_steps", steps, *checkpoint]\n'
            '    if script.main(train_mlp_pytorch.build_parser(), train_mlp_pytorch.train):\n'
            '        sys.exit(1)\n'
        )
        args = ('--dataset', 'synthetic', '--eval_freq', '4', '--dnn_hidden_units', '300,300')
        done = torchrun(script_path, self.directory, *args, n_processes=3)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count('step     1 '), 2)  # the third goes on
        whole, on = (read_rows(only(self.directory / name, '.csv')) for name in ('whole', 'on'))
        self.assertEqual(on, whole)
        checkpoint = str(self.directory / 'run.pt')
        line = refused(self, train_mlp_pytorch, *args, '--max_steps', '9', '--resume', checkpoint)
        self.assertIn('its processes is 3, here it is 1', line)

    def test_devices(self) -> None:
        """What cannot be run here, by stand-ins: GPUs under torchrun, and a Mac's."""
        with (
            mock.patch.object(ranks, 'launched', return_value=True),
            mock.patch.object(torch.backends.mps, 'is_available', return_value=True),
            mock.patch.object(torch.cuda, 'is_available', return_value=False),
        ):
            self.assertEqual(ranks.pick_device('auto').type, 'cpu')
            with self.assertRaisesRegex(FlagError, 'processes cannot share it'):
                ranks.pick_device('mps')
            with self.assertRaisesRegex(FlagError, '--device cuda: PyTorch finds no such device here'):
                ranks.pick_device('cuda')
        with (
            mock.patch.object(ranks, 'launched', return_value=True),
            mock.patch.dict(os.environ, {'LOCAL_RANK': '1'}),
            mock.patch.object(torch.cuda, 'is_available', return_value=True),
            mock.patch.object(torch.cuda, 'device_count', side_effect=[2, 1]),
            mock.patch.object(torch.cuda, 'set_device') as set_device,
        ):
            self.assertEqual(ranks.pick_device('auto'), torch.device('cuda', 1))
            set_device.assert_called_once_with(1)
            with self.assertRaisesRegex(FlagError, 'at most the number of GPUs, 1'):
                ranks.pick_device('cuda')


class TrainerArgumentsTest(unittest.TestCase):
    """What the flags make of the network, and what they are at their defaults."""

    def models(self, trainer: types.ModuleType, *args: str, seeds: tuple[int, ...] = (42,)) -> list[torch.nn.Module]:
        with mock.patch.object(trainer, 'train_model') as train_model:
            for seed in seeds:
                torch.rand(1)
                trainer.train(trainer.build_parser().parse_args([*args, '--seed', str(seed)]))
        return [call.args[2] for call in train_model.call_args_list]

    def test_the_seed_chooses_the_weights(self) -> None:
        for trainer in (train_mlp_pytorch, train_convnet_pytorch):
            first, again, other = (
                next(model.parameters()).detach() for model in self.models(trainer, seeds=(1, 1, 2))
            )  # fmt: skip
            self.assertTrue(torch.equal(first, again))
            self.assertFalse(torch.equal(first, other))

    def test_the_network_is_the_one_asked_for(self) -> None:
        args = ('--dnn_hidden_units', '5,4', '--neg_slope', '0.3', '--batch_norm', 'torch')
        (model,) = self.models(train_mlp_pytorch, *args)
        kinds = [type(layer).__name__ for layer in model.layers]
        self.assertEqual(kinds, ['Linear', 'BatchNorm1d', 'LeakyReLU', 'Linear', 'BatchNorm1d', 'LeakyReLU', 'Linear'])
        self.assertEqual((model.layers[2].negative_slope, model.layers[3].out_features), (0.3, 4))

    def test_defaults(self) -> None:
        for trainer, expected in (
            (train_mlp_pytorch, (2e-3, 1500, 200, 100, 'sgd')), (train_convnet_pytorch, (1e-4, 5000, 32, 500, 'adam')),
        ):  # fmt: skip
            flags = trainer.build_parser().parse_args([])
            numbers = flags.learning_rate, flags.max_steps, flags.batch_size, flags.eval_freq, flags.optimizer
            self.assertEqual(numbers, expected)


class TrainLoopTest(unittest.TestCase):
    """The pieces of the loop, each on its own, and the loop itself written out."""

    SHORT = ('--dataset', 'synthetic', '--validation_size', '700', '--max_steps', '4', '--eval_freq', '3',
             '--batch_size', '190', '--dnn_hidden_units', '6')  # fmt: skip

    def setUp(self) -> None:
        self.enterContext(small_stand_in())

    def train(self, *args: str, **kwargs: object) -> experiment.RunRecord:
        flags = train_mlp_pytorch.build_parser().parse_args([*self.SHORT, *args])
        return train_mlp_pytorch.train(flags, quiet=True, **kwargs)

    def test_a_run_is_the_loop_written_out(self) -> None:
        """Its seeds, its gradient's scale, what each figure of a row is of, and in which mode it is taken."""
        record = self.train('--seed', '7', '--batch_norm', 'torch', '--learning_rate', '0.05')
        torch.manual_seed(7)
        model = TorchMLP(3072, [6], 10, norm='batch_torch')
        rng = np.random.RandomState(7)
        data = get_cifar10(dataset='synthetic', validation_size=700, one_hot=False, rng=rng)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        expected = []

        def figures(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
            hits = (logits.argmax(dim=1) == labels).double().mean()
            return [hits.item(), torch.nn.functional.cross_entropy(logits, labels).item()]

        for step in range(4):
            images, labels = map(torch.from_numpy, data['train'].next_batch(190))
            labels = labels.long()
            logits = model(images)
            row = figures(logits, labels)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            if step in (0, 3):
                model.eval()
                for part in ('test', 'validation'):
                    images, labels = torch.from_numpy(data[part].images), torch.from_numpy(data[part].classes).long()
                    with torch.no_grad():
                        row += figures(model(images), labels)
                model.train()
                expected.append([step + 1, *row])
        np.testing.assert_allclose([list(row.values()) for row in record.rows], expected, rtol=1e-4)
        self.assertEqual(record.flags['device'], 'cpu')

    def test_evaluation_of_a_last_batch_that_is_smaller(self) -> None:
        data = training_pytorch.DeviceData(get_cifar10(dataset='synthetic')['test'], torch.device('cpu'))
        model, results = TorchMLP(3072, [], 10), []
        for batch_size in (200, 190, 30):
            with mock.patch.object(training_pytorch, 'EVALUATION_BATCH', batch_size):
                results.append(training_pytorch.evaluate(model, data, 'float32'))
        np.testing.assert_allclose(results[1:], results[:1] * 2, rtol=1e-5)

    def test_precision_of_evaluation(self) -> None:
        data = training_pytorch.DeviceData(get_cifar10(dataset='synthetic')['test'], torch.device('cpu'))
        model = TorchMLP(3072, [], 10)
        wide, narrow = (training_pytorch.evaluate(model, data, precision) for precision in ('float32', 'bfloat16'))
        self.assertNotEqual(wide, narrow)
        np.testing.assert_allclose(wide, narrow, rtol=0.1)

    def test_optimizers(self) -> None:
        for name, kind in (('sgd', torch.optim.SGD), ('adam', torch.optim.Adam), ('adadelta', torch.optim.Adadelta)):
            optimizer = training_pytorch.make_optimizer(name, TorchMLP(4, [], 2), 0.25)
            self.assertIs(type(optimizer), kind)
            self.assertEqual(optimizer.param_groups[0]['lr'], 0.25)
            with self.assertRaisesRegex(FlagError, 'must be at most 3.4e'):
                training_pytorch.make_optimizer(name, TorchMLP(4, [], 2), 1e39)

    def test_precision_of_a_step(self) -> None:
        widths = []
        model = TorchMLP(4, [], 2)
        model.register_forward_hook(lambda _module, _input, logits: widths.append(logits.dtype))
        optimizer = training_pytorch.make_optimizer('sgd', model, 0.1)
        for precision in ('float32', 'bfloat16'):
            batch = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
            training_pytorch.training_step(model, optimizer, *batch, precision, torch.tensor(1 / 3))
        self.assertEqual(widths, [torch.float32, torch.bfloat16])

    def test_compile(self) -> None:
        for args, times in (((), 0), (('--compile',), 1)):
            with mock.patch.object(torch.nn.Module, 'compile') as compile_:
                self.train(*args)
            self.assertEqual(compile_.call_count, times)

    def test_shares_are_disjoint_and_whole(self) -> None:
        shares = [ranks.Ranks(rank, 3).share(np.arange(8)).tolist() for rank in range(3)]
        self.assertEqual(sorted(np.concatenate(shares)), list(range(8)))
        self.assertEqual([len(share) for share in shares], [3, 3, 2])

    def test_a_rank_without_an_example_is_refused(self) -> None:
        state = mock.Mock(flags={'batch_size': 2})
        self.assertEqual(training_pytorch.find_start(state, None, None, ranks.Ranks(0, 2)), 0)
        with self.assertRaisesRegex(FlagError, 'leaves some of 3 processes without an example'):
            training_pytorch.find_start(state, None, None, ranks.Ranks(0, 3))

    def test_ranks_that_would_begin_at_other_steps_are_refused(self) -> None:
        with mock.patch.object(training_pytorch, 'from_rank_0', return_value=({}, 3)):
            training_pytorch.check_agreement({}, 3, ranks.ALONE)
            for start in (2, 4):
                with self.assertRaisesRegex(FlagError, f'from step {start}, rank 0 from step 3'):
                    training_pytorch.check_agreement({}, start, ranks.ALONE)

    def test_where_one_rank_cannot_go_on_all_end(self) -> None:
        def gather(reasons: list, _: object) -> None:
            reasons[:] = [None, 'no file']

        with mock.patch.object(ranks.dist, 'all_gather_object', gather):
            with (
                self.assertRaisesRegex(FlagError, 'rank 1: no file'),
                ranks.together(ranks.Ranks(0, 2)),
            ):
                pass
            with self.assertRaises(SystemExit) as caught, ranks.together(ranks.Ranks(1, 2)):
                pass
        self.assertEqual(caught.exception.code, 2)

    def test_a_checkpoint_for_each_seed(self) -> None:
        with temporary_directory() as directory:
            where = directory / 'run.pt'
            self.train('--seeds', '1,2', '--checkpoint', str(where))
            self.train('--checkpoint', str(where))
            self.assertEqual(sorted(path.name for path in directory.iterdir()), ['run.pt', 'run_seed=42.pt'])

    def test_a_checkpoint_has_the_steps_that_are_done(self) -> None:
        with temporary_directory() as directory:
            self.train('--checkpoint', str(directory / 'run.pt'))
            with mock.patch.object(training_pytorch, 'training_step', side_effect=AssertionError):
                record = self.train('--checkpoint', str(directory / 'run.pt'))
            self.assertEqual([row['step'] for row in record.rows], [1, 4])

    def test_a_checkpoint_that_could_not_be_written_is_refused_at_once(self) -> None:
        with temporary_directory() as directory:
            (directory / 'lost').symlink_to('/nonexistent/disk')
            with self.assertRaisesRegex(FlagError, 'cannot write --checkpoint .*nonexistent'):
                self.train('--checkpoint', str(directory / 'lost/run.pt'))

    def test_a_seed_s_run_that_is_there_is_not_trained_again(self) -> None:
        with temporary_directory() as directory:
            first = self.train('--seeds', '1,2', output_dir=str(directory))
            with mock.patch.object(training_pytorch, 'training_step', side_effect=AssertionError):
                again = self.train('--seeds', '1,2', output_dir=str(directory))
        self.assertEqual(again.rows, first.rows)
