"""The PyTorch networks and their training: evaluation, checkpoints, several processes, the scripts."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import cifar10_utils
import compare_batch_norm
import experiment
import train_convnet_pytorch
import train_mlp_pytorch
import training_pytorch
from cifar10_utils import get_cifar10
from convnet_pytorch import ConvNet
from mlp_pytorch import MLP as TorchMLP
from tests.helpers import ROOT, read_rows, refused, temporary_directory, torchrun


class TorchNetworksTest(unittest.TestCase):
    def test_mlp_layers(self) -> None:
        def kinds(*args: object) -> list[str]:
            return [type(layer).__name__ for layer in TorchMLP(6, *args).layers]

        self.assertEqual(kinds([], 3), ['Linear'])
        self.assertEqual(kinds([5, 4], 3), ['Linear', 'ReLU', 'Linear', 'ReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.1, 'torch'), ['Linear', 'BatchNorm1d', 'LeakyReLU', 'Linear'])
        self.assertEqual(kinds([5], 3, 0.0, 'manual')[1], 'CustomBatchNormManualModule')
        self.assertEqual(kinds([5], 3, 0.0, 'autograd')[1], 'CustomBatchNormAutograd')
        self.assertEqual(TorchMLP(3072, [5], 3)(torch.ones(2, 3, 32, 32)).shape, (2, 3))

    def test_batch_norms_train_alike(self) -> None:
        losses = []
        for batch_norm in ('autograd', 'manual', 'torch'):
            torch.manual_seed(0)
            mlp = TorchMLP(20, [16, 12], 4, batch_norm=batch_norm).double()
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
        block, pool = ['Conv2d', 'BatchNorm2d', 'ReLU'], ['MaxPool2d']
        stages = (1, 1, 2, 2, 2)
        self.assertEqual(kinds, [kind for n_blocks in stages for kind in block * n_blocks + pool])
        self.assertEqual(model(torch.randn(1, 3, 32, 32)).shape, (1, 10))

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
    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def train(self, *args: str) -> experiment.RunRecord:
        """A short run of the MLP on the stand-in, in this process."""
        flags = ['--dataset', 'synthetic', '--max_steps', '9', '--eval_freq', '3', '--dnn_hidden_units', '20', *args]
        return train_mlp_pytorch.train(train_mlp_pytorch.build_parser().parse_args(flags), quiet=True)

    def test_batches_equal_those_of_the_numpy_path(self) -> None:
        data = get_cifar10(dataset='synthetic', one_hot=False)['train']
        indices = np.array([5, 3, 9_999])
        images, labels = training_pytorch.DeviceData(data, torch.device('cpu')).examples(indices)
        np.testing.assert_array_equal(images.numpy(), data.examples(indices)[0])
        np.testing.assert_array_equal(labels.numpy(), data.examples(indices)[1])

    def test_evaluation(self) -> None:
        """In evaluation mode, without gradients, over every example once, and back in training mode afterwards."""
        data = training_pytorch.DeviceData(get_cifar10(dataset='synthetic')['test'], torch.device('cpu'))
        seen = []

        class Watched(TorchMLP):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append((self.training, torch.is_grad_enabled(), x))
                return super().forward(x)

        model = Watched(3072, [10], 10, batch_norm='manual').train()
        before = model.layers[1].running_mean.clone()
        accuracy, loss = training_pytorch.evaluate(model, data, 'float32')
        self.assertTrue(model.training)
        self.assertEqual({(training, grad) for training, grad, _ in seen}, {(False, False)})
        images = torch.cat([x for _, _, x in seen])
        torch.testing.assert_close(images, data.examples(np.arange(2000))[0])
        torch.testing.assert_close(model.layers[1].running_mean, before)
        logits = model.eval()(images)
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
        record = self.train('--learning_rate', '1e30')
        self.assertEqual((record.status, record.rows[-1]['step']), ('diverged', 1))

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
        self.assertFalse((self.directory / 'killed').exists())
        self.train(*args, '--resume', str(checkpoint)).write(self.directory / 'on')
        self.train(*args).write(self.directory / 'whole')
        resumed, whole = (
            read_rows(self.directory / name / 'results/mlp_pytorch_synthetic.csv') for name in ('on', 'whole')
        )
        self.assertEqual(len(whole), 6)
        self.assertEqual(resumed, whole)

    def test_checkpoints_that_do_not_fit(self) -> None:
        checkpoint = self.directory / 'run.pt'
        args = ('--max_steps', '2', '--eval_freq', '1', '--dnn_hidden_units', '20')

        def refused_resume(*more: str) -> str:
            return refused(self, 'mlp_pytorch', train_mlp_pytorch, *args, '--resume', str(checkpoint), *more)

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
            return refused(self, 'mlp_pytorch', train_mlp_pytorch, *args)

        self.assertIn('rmsprop', refuse('--optimizer', 'RMSprop'))
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
        fewer = cifar10_utils.synthetic(n_train=1000, n_test=200)
        with (
            mock.patch.object(sys, 'argv', ['train_convnet_pytorch.py', *args]),
            mock.patch.object(cifar10_utils, 'load', return_value=fewer),
            contextlib.redirect_stdout(io.StringIO()) as stdout,
        ):
            status = experiment.main(
                'convnet_pytorch', train_convnet_pytorch.build_parser(), train_convnet_pytorch.train
            )
        self.assertEqual(status, 0)
        self.assertTrue(stdout.getvalue().startswith('device: '))
        rows = read_rows(self.directory / 'results/convnet_pytorch_synthetic.csv')
        self.assertEqual([row['step'] for row in rows], ['1'])
        summary = json.loads((self.directory / 'results/convnet_pytorch_synthetic.json').read_text())
        self.assertEqual(summary['versions']['torch'], torch.__version__.split('+')[0])
        self.assertEqual(summary['flags']['optimizer'], 'adam')
        self.assertTrue((self.directory / 'figures/convnet_pytorch_synthetic.png').exists())

    def test_two_ranks_give_what_one_process_does(self) -> None:
        args = ('--dataset', 'synthetic', '--max_steps', '30', '--eval_freq', '10', '--batch_size', '63')
        args += ('--validation_size', '101', '--learning_rate', '1e-4')
        done = torchrun(ROOT / 'train_mlp_pytorch.py', *args, '--output_dir', self.directory / 'two')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count('best step'), 1)
        self.train('--dnn_hidden_units', '100', *args).write(self.directory / 'one')
        one, two = (read_rows(self.directory / name / 'results/mlp_pytorch_synthetic.csv') for name in ('one', 'two'))
        self.assertEqual(len(one), 4)
        for row, row_of_two in zip(one, two, strict=True):
            for key, value in row.items():
                self.assertAlmostEqual(float(value), float(row_of_two[key]), delta=1e-6 * max(1, float(value)))

    def test_two_ranks_evaluate_one_network(self) -> None:
        """With the same running statistics, which a training step leaves different."""
        script = self.directory / 'watched.py'
        script.write_text(
            'import os, sys, experiment, torch, train_mlp_pytorch as script\n'
            'forward = torch.nn.BatchNorm1d.forward\n'
            'def watched(module, x):\n'
            '    if not module.training:\n'
            '        with open(__file__ + os.environ["RANK"], "a") as file:\n'
            '            print(module.running_mean.tolist(), module.running_var.tolist(), file=file)\n'
            '    return forward(module, x)\n'
            'torch.nn.BatchNorm1d.forward = watched\n'
            'sys.exit(experiment.main("mlp_pytorch", script.build_parser(), script.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '2', '--eval_freq', '9', '--dnn_hidden_units', '2')
        done = torchrun(script, *args, '--batch_norm', 'torch', '--output_dir', self.directory / 'out')
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second = ((self.directory / f'watched.py{rank}').read_text() for rank in (0, 1))
        self.assertEqual(first, second)
        self.assertEqual((len(first.splitlines()), len(set(first.splitlines()))), (2 * 5, 2))

    def test_a_rank_that_dies_ends_the_run(self) -> None:
        script = self.directory / 'dying.py'
        script.write_text(
            'import os, sys, experiment, train_mlp_pytorch as script\n'
            'due = experiment.RunRecord.evaluation_due\n'
            'def dying(record, step, loss):\n'
            '    if step == 5 and os.environ["RANK"] == "1":\n'
            '        os.kill(os.getpid(), 9)\n'
            '    return due(record, step, loss)\n'
            'experiment.RunRecord.evaluation_due = dying\n'
            'sys.exit(experiment.main("mlp_pytorch", script.build_parser(), script.train))\n'
        )
        args = ('--dataset', 'synthetic', '--max_steps', '100000', '--output_dir', self.directory / 'out')
        done = torchrun(script, *args)
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse((self.directory / 'out').exists())


class CompareBatchNormTest(unittest.TestCase):
    def test_bad_flags(self) -> None:
        for args in (
            ('--seed', '1'),
            ('--batch_norm', 'torch'),
            ('--checkpoint', 'run.pt'),
            ('--seeds', '1,1'),
            ('--seeds', 'a'),
        ):
            self.assertIn(args[0], refused(self, 'batch_norm_mlp_pytorch', compare_batch_norm, *args))

    def test_end_to_end_on_the_stand_in(self) -> None:
        args = ['--dataset', 'synthetic', '--max_steps', '6', '--eval_freq', '3', '--seeds', '1,2']
        with temporary_directory() as directory, contextlib.redirect_stdout(io.StringIO()) as stdout:
            argv = ['compare_batch_norm.py', *args, '--output_dir', str(directory)]
            with mock.patch.object(sys, 'argv', argv):
                status = experiment.main(
                    'batch_norm_mlp_pytorch', compare_batch_norm.build_parser(), compare_batch_norm.train
                )
            rows = read_rows(directory / 'results/batch_norm_mlp_pytorch_synthetic.csv')
            summary = json.loads((directory / 'results/batch_norm_mlp_pytorch_synthetic.json').read_text())
            self.assertTrue((directory / 'figures/batch_norm_mlp_pytorch_synthetic.png').exists())
        self.assertEqual((status, len(rows)), (0, 12))
        best = [
            max(float(row['test_acc']) for row in rows if (row['batch_norm'], row['seed']) == ('manual', seed))
            for seed in ('1', '2')
        ]
        self.assertAlmostEqual(summary['test_acc']['manual']['best_mean'], sum(best) / 2)
        self.assertIn(f'{sum(best) / 2:.3f} ±', stdout.getvalue())
