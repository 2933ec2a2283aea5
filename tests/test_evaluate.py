"""What `evaluate.py` says, writes and draws of kept networks, and how it answers files that are none."""

import contextlib
import io
import json
import os
import subprocess
import sys
import types
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

import cifar10_utils
import evaluate
import evaluate_figures
import script
import train_convnet_pytorch
import train_mlp_numpy
import train_mlp_pytorch
from checkpoints import LoadedNetwork, load_network
from cifar10_utils import CLASSES, read_part
from experiment import RunRecord
from parsing import FlagError
from tests.helpers import (
    NO_NETWORK,
    REAL_DATA,
    ROOT,
    files_under,
    needs_real_data,
    only,
    refused,
    run_script,
    small_stand_in,
    temporary_directory,
)

SHORT = ('--dataset', 'synthetic', '--max_steps', '3', '--eval_freq', '1')
FIGURES = ('calibration', 'confusion_matrix', 'mistakes', 'weights')


def train(trainer: types.ModuleType, directory: Path, name: str, *args: str) -> RunRecord:
    flags = trainer.build_parser().parse_args([*SHORT, '--name', name, *args])
    return trainer.train(flags, str(directory), quiet=True)


def run(*args: object) -> tuple[int, str, str]:
    """Runs the script in this process; its exit status, stdout and stderr."""
    with (
        mock.patch.object(sys, 'argv', ['evaluate.py', *map(str, args)]),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            status = script.run_script(evaluate.build_parser(), evaluate.work)
        except SystemExit as end:
            status = end.code
    return status, stdout.getvalue(), stderr.getvalue()


def fake_network(log_probabilities: object, description: dict[str, object] | None = None) -> LoadedNetwork:
    """A network that does what a function of pixels (n, 3, 32, 32), which are not centred, says."""

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logs = log_probabilities(images)
        return np.exp(logs), logs

    weights = np.random.RandomState(0).randn(5, 3, 32, 32)
    description = {'dataset': 'synthetic', 'flags': {}, 'row': {}, 'classes': list(CLASSES)} | (description or {})
    return LoadedNetwork(description, np.zeros(3072, np.float32), None, weights, forward)


def without_figures() -> contextlib.AbstractContextManager:
    """Inside, nothing is drawn, which takes the most time."""
    names = ('plot_calibration', 'plot_confusion_matrix', 'plot_images', 'plot_weights')
    return mock.patch.multiple(evaluate, **dict.fromkeys(names, mock.DEFAULT))


class RecordedFiguresTest(unittest.TestCase):
    """The accuracy is the recorded one, to the digit, and the loss nearly so."""

    def setUp(self) -> None:
        self.enterContext(without_figures())
        self.enterContext(small_stand_in())
        self.directory = Path(self.enterContext(temporary_directory()))

    def check(self, trainer: types.ModuleType, *args: str) -> None:
        record = train(trainer, self.directory, 'x', *args)
        path = only(self.directory / 'networks', '')
        row = load_network(path).description['row']
        for part, key in (('test', 'test'), *([('validation', 'val')] if 'val_acc' in row else [])):
            status, out, err = run(path, '--part', part, '--output_dir', self.directory)
            self.assertEqual((status, err), (0, ''))
            name = 'evaluate_x.json' if part == 'test' else f'evaluate_x_{part}.json'
            found = json.loads((self.directory / 'results' / name).read_text())
            self.assertEqual(found['accuracy'], row[f'{key}_acc'], args)
            self.assertEqual(found['recorded_accuracy'], row[f'{key}_acc'])
            self.assertAlmostEqual(found['loss'], row[f'{key}_loss'], delta=2e-6 * row[f'{key}_loss'])
            self.assertIn(f'{row[f"{key}_acc"]:.4f}      {row[f"{key}_acc"]:.4f}', out)
        self.assertIn(row, record.rows)
        path.unlink()
        (self.directory / 'results/x.json').unlink()  # the name is free again

    def test_mlp_in_numpy(self) -> None:
        self.check(train_mlp_numpy)
        self.check(train_mlp_numpy, '--dtype', 'float32', '--norm', 'batch', '--validation_size', '300')

    def test_mlp_in_pytorch(self) -> None:
        self.check(train_mlp_pytorch, '--validation_size', '300')
        self.check(train_mlp_pytorch, '--precision', 'bfloat16')
        self.check(train_mlp_pytorch, '--norm', 'batch_manual', '--precision', 'bfloat16')
        self.check(train_mlp_pytorch, '--norm', 'layer_torch', '--neg_slope', '0.1')
        self.check(train_mlp_pytorch, '--dnn_hidden_units', '')

    def test_mlp_in_pytorch_that_is_too_sure(self) -> None:
        """Its probabilities are zeros and ones in float32: the loss still tells how wrong it is."""
        self.check(train_mlp_pytorch, '--learning_rate', '1')
        network = load_network_of_scale(self.directory, 1e4)
        pixels, classes = read_part('test', 'synthetic')
        self.assertEqual(network.probabilities(pixels)[np.arange(200), classes].min(), 0)
        self.assertTrue(np.isfinite(network.log_probabilities(pixels)).all())

    def test_convnet(self) -> None:
        args = ('--batch_size', '8', '--max_steps', '1')
        self.check(train_convnet_pytorch, *args)
        self.check(train_convnet_pytorch, *args, '--precision', 'bfloat16')

    def test_logits_that_hardly_differ_are_told_apart(self) -> None:
        """As the trainer tells them apart, and as probabilities in float32 cannot."""
        network = load_network_of_scale(self.directory, 1e-12)
        pixels, _ = read_part('test', 'synthetic')
        state = torch.load(only(self.directory / 'networks', '.pt'), weights_only=True)['state']
        centred = torch.from_numpy(pixels - network.mean_image)
        logits = centred @ state['layers.0.weight'].T + state['layers.0.bias']
        self.assertEqual(len(np.unique(network.probabilities(pixels))), 1)
        self.assertGreater(
            (network.log_probabilities(pixels).argmax(axis=1) == logits.argmax(dim=1).numpy()).mean(), 0.9
        )


def load_network_of_scale(directory: Path, scale: float) -> LoadedNetwork:
    """A network without a hidden layer whose weights are multiplied by this."""
    train(train_mlp_pytorch, directory, 'scaled', '--dnn_hidden_units', '')
    path = directory / 'networks/scaled.pt'
    contents = torch.load(path, weights_only=True)
    for tensor in contents['state'].values():
        tensor *= scale
    torch.save(contents, path)
    return load_network(path)


class EvaluationTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(small_stand_in())
        self.directory = Path(self.enterContext(temporary_directory()))

    def test_files_tables_and_several_networks(self) -> None:
        for name in ('one', 'two'):
            train(train_mlp_numpy, self.directory, name, '--dnn_hidden_units', '5', '--validation_size', '300')
        paths = [self.directory / f'networks/{name}.npz' for name in ('one', 'two')]
        out_dir = self.directory / 'out'
        status, out, err = run(paths[0], '--output_dir', out_dir)
        self.assertEqual((status, err), (0, ''))
        files = ['figures', *(f'figures/one_{figure}.png' for figure in FIGURES), 'results']
        self.assertEqual(files_under(out_dir), [*files, 'results/evaluate_one.json'])
        lines = out.splitlines()
        self.assertEqual(lines[0].split()[:2], ['accuracy', 'recorded'])
        self.assertTrue(lines[1].endswith('200           1  one'))
        self.assertEqual([line.split()[0] for line in lines[3:13]], list(CLASSES))

        status, out, _ = run(*paths, '--output_dir', out_dir, '--views', '6', '--part', 'validation')
        self.assertEqual(status, 0)
        lines = out.splitlines()
        self.assertEqual([line.split()[-3:] for line in lines[1:3]], [['300', '6', 'one'], ['300', '6', 'two']])
        self.assertEqual(len(lines), 4)
        for name in ('one', 'two'):
            found = json.loads((out_dir / f'results/evaluate_{name}_validation_views=6.json').read_text())
            self.assertEqual((found['views'], found['part'], found['network']), (6, 'validation', name))
            for figure in FIGURES:
                stem = name if figure == 'weights' else f'{name}_validation_views=6'
                self.assertTrue((out_dir / f'figures/{stem}_{figure}.png').exists())
        with without_figures():
            status, out, _ = run(paths[0], '--output_dir', out_dir, '--part', 'train')
        self.assertEqual([out.splitlines()[1].split()[i] for i in (1, 5)], ['–', '700'])

    def evaluation(self, network: LoadedNetwork, n_views: int = 1) -> evaluate.Evaluation:
        evaluation = evaluate.Evaluation('x', network, 'test', n_views, None, '.', str(self.directory))
        evaluation.run()
        return evaluation

    def test_what_is_computed(self) -> None:
        pixels, classes = read_part('test', 'synthetic')
        logs = np.random.RandomState(0).randn(200, 10) * 2
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        place = {row.tobytes(): i for i, row in enumerate(pixels)}

        def forward(images: np.ndarray) -> np.ndarray:
            return logs[[place[image.astype(np.uint8).tobytes()] for image in images]]

        found = self.evaluation(fake_network(forward, {'row': {'test_acc': 0.25, 'val_acc': 0.5}}))
        said = logs.argmax(axis=1)
        summary = found.summary()
        self.assertEqual(summary['accuracy'], (said == classes).mean())
        self.assertEqual(summary['recorded_accuracy'], 0.25)
        self.assertAlmostEqual(summary['loss'], -logs[np.arange(200), classes].mean())
        self.assertEqual(np.sum(summary['confusion_matrix']), 200)
        self.assertAlmostEqual(summary['first_layer_std'], found.network.first_weights.std())
        for c, name in enumerate(CLASSES):
            self.assertAlmostEqual(summary['recall'][c], (said[classes == c] == c).mean())
            self.assertAlmostEqual(summary['precision'][c], (classes[said == c] == c).mean())
            line = found.table().splitlines()[c + 1].split()
            self.assertEqual(line[0], name)
            self.assertEqual(
                line[2:], [f'{summary[key][c]:.4f}' for key in ('recall', 'f1_beta')] + [str((classes == c).sum())]
            )
        self.assertEqual(len(summary['surest_mistakes']), 24)
        wrong = sorted((i for i in range(200) if said[i] != classes[i]), key=lambda i: -logs[i].max())
        for mistake, i in zip(summary['surest_mistakes'], wrong, strict=False):
            expected = {'image': i, 'said': CLASSES[said[i]], 'is': CLASSES[classes[i]]}
            self.assertEqual({key: mistake[key] for key in expected}, expected)
            self.assertAlmostEqual(mistake['confidence'], np.exp(logs[i].max()))

        with without_figures() as drawn:
            found.write()
        images, captions = drawn['plot_images'].call_args.args[:2]
        np.testing.assert_array_equal(images, pixels[wrong[:24]].reshape(24, 3, 32, 32))
        self.assertEqual(captions[0], f'said {CLASSES[said[wrong[0]]]} {np.exp(logs[wrong[0]].max()):.1%}\n'
                                      f'is {CLASSES[classes[wrong[0]]]}')  # fmt: skip

    def test_no_mistakes_and_nothing_else(self) -> None:
        """Of a network that is always right, and one that always says the same."""
        pixels, classes = read_part('test', 'synthetic')
        place = {row.tobytes(): i for i, row in enumerate(pixels)}
        right = np.log(np.eye(10)[classes] * 0.99 + 0.001)
        always = fake_network(lambda images: right[[place[image.astype(np.uint8).tobytes()] for image in images]])
        self.assertEqual(self.evaluation(always).summary()['surest_mistakes'], [])
        self.evaluation(always).write()
        same = self.evaluation(fake_network(lambda images: np.log(np.full((len(images), 10), 0.1))))
        self.assertEqual(same.summary()['precision'][1:], [0] * 9)
        same.write()

    def test_views_are_averaged(self) -> None:
        """Probabilities are; each view with its weight."""
        pixels, _ = read_part('test', 'synthetic')

        def forward(images: np.ndarray) -> np.ndarray:
            logits = images[:, 0, 5, 3:13].astype(np.float64) / 30
            return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

        def shifted(images: np.ndarray, by: int) -> np.ndarray:
            return np.roll(images, by, axis=(2, 3))  # what comes in at the edge is not looked at

        images = pixels.reshape(-1, 3, 32, 32).astype(np.float32)
        mirrored = images[..., ::-1]
        two = [(images, 1), (mirrored, 1)]
        six = two + [(shifted(one, by), 0.5) for one in (images, mirrored) for by in (-1, 1)]
        for n_views, expected in ((1, two[:1]), (2, two), (6, six)):
            mean = sum(np.exp(forward(view)) * weight for view, weight in expected) / sum(w for _, w in expected)
            found = evaluate.predict(fake_network(forward), pixels, n_views, 'x')
            np.testing.assert_allclose(np.exp(found), mean, rtol=1e-10)

    def test_a_dataset_other_than_its_own(self) -> None:
        train(train_mlp_numpy, self.directory, 'x')
        path = self.directory / 'networks/x.npz'
        described = load_network(path).description
        described['dataset'] = 'cifar10'
        network = fake_network(lambda images: np.zeros((len(images), 10)), described)
        found = evaluate.Evaluation('x', network, 'test', 1, 'synthetic', '.', str(self.directory))
        self.assertIsNone(found.recorded)
        self.assertEqual(found.json_path.name, 'evaluate_x_test_synthetic.json')

    def test_flags_that_cannot_be_followed(self) -> None:
        train(train_mlp_numpy, self.directory, 'x')
        path = self.directory / 'networks/x.npz'
        (self.directory / 'file').touch()
        for args, reason in (
            ((path, '--part', 'validation'), 'trained without --validation_size'),
            ((path, path), 'two networks are named x'),
            ((path, '--image', 'none.jpg'), 'cannot read none.jpg'),
            ((path, '--image', path), 'is no picture'),
            ((path, '--image', path, '--part', 'train'), 'not allowed with'),
            ((path, '--image', path, '--dataset', 'synthetic'), 'leave out --dataset'),
            ((path, '--views', '3'), 'invalid choice: 3'),
            ((path, '--output_dir', self.directory / 'file'), 'cannot write to --output_dir'),
            ((self.directory / 'none.npz',), 'cannot read .*none.npz: No such file'),
            ((self.directory,), 'its name must end in'),
            ((), 'NETWORK'),
        ):
            before = files_under(self.directory)
            status, out, err = run(*args, *([] if '--output_dir' in args else ['--output_dir', self.directory]))
            self.assertEqual((status, err.count('\n'), out), (2, 1, ''), err)
            self.assertRegex(err, reason)
            self.assertEqual(files_under(self.directory), before)

    def test_not_under_torchrun(self) -> None:
        train(train_mlp_numpy, self.directory, 'x')
        with mock.patch.dict(os.environ, TORCHELASTIC_RUN_ID='x', RANK='0'):
            status, _, err = run(self.directory / 'networks/x.npz', '--output_dir', self.directory)
            self.assertIn('not under torchrun', refused(self, train_mlp_numpy))
        self.assertEqual((status, 'not under torchrun' in err), (2, True))

    def test_pictures(self) -> None:
        for name in ('one', 'two'):
            train(train_mlp_numpy, self.directory, name, '--learning_rate', '0.01')
        pixels, _ = read_part('test', 'synthetic')
        files = [self.directory / 'a $x$.png', self.directory / 'b.png']
        for i, file in enumerate(files):
            Image.fromarray(pixels[i].reshape(3, 32, 32).transpose(1, 2, 0)).save(file)
        networks = [self.directory / f'networks/{name}.npz' for name in ('one', 'two')]
        with mock.patch.object(cifar10_utils, 'load', side_effect=AssertionError):  # no data are needed
            status, out, err = run(*networks, '--image', *files, '--output_dir', self.directory)
        self.assertEqual((status, err), (0, ''))
        for path in networks:
            probabilities = load_network(path).probabilities(pixels[:2])
            found = json.loads((self.directory / f'results/evaluate_{path.stem}_pictures.json').read_text())['pictures']
            for one, file, row in zip(found, files, probabilities, strict=True):
                likeliest = np.argsort(-row)[:3]
                self.assertEqual(one['file'], file.name)
                self.assertEqual(list(one['likeliest']), [CLASSES[c] for c in likeliest])
                np.testing.assert_allclose(list(one['likeliest'].values()), row[likeliest], rtol=1e-6)
                told = ', '.join(f'{CLASSES[c]} {row[c]:.1%}' for c in likeliest)
                self.assertIn(f'  {file.name}: {told}\n', out)
            self.assertTrue((self.directory / f'figures/{path.stem}_pictures_as_seen.png').exists())

    def test_a_network_of_numpy_s_needs_no_pytorch(self) -> None:
        train(train_mlp_numpy, self.directory, 'x')
        Image.new('L', (9, 9)).save(self.directory / 'grey.png')
        args = [
            self.directory / 'networks/x.npz',
            '--image',
            self.directory / 'grey.png',
            '--output_dir',
            self.directory,
        ]
        command = [sys.executable, '-X', 'importtime', ROOT / 'evaluate.py', *args]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
        self.assertIn('PIL', imported)
        self.assertNotIn('torch', imported)

    @needs_real_data
    def test_the_training_set_is_never_needed(self) -> None:
        directory = self.directory / 'data'
        directory.mkdir()
        (directory / 'test_batch').symlink_to(cifar10_utils.find_batches(REAL_DATA) / 'test_batch')
        train(train_mlp_numpy, self.directory, 'x')
        done = run_script(
            'evaluate.py', self.directory / 'networks/x.npz', '--dataset', 'cifar10', '--data_dir', directory,
            '--output_dir', self.directory, env=NO_NETWORK,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertIn('10000           1  x', done.stdout)


class DamagedNetworksTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(small_stand_in())
        self.directory = Path(self.enterContext(temporary_directory()))

    def test_two_hundred_damaged_files(self) -> None:
        """One line each; where only bytes were hit that nobody reads, all that the network says stays as it was."""
        rng, pixels = np.random.RandomState(0), np.arange(3072, dtype=np.uint8)[None]
        for trainer, suffix in ((train_mlp_numpy, 'npz'), (train_mlp_pytorch, 'pt')):
            train(trainer, self.directory, suffix, '--dnn_hidden_units', '2')
            path = self.directory / f'networks/{suffix}.{suffix}'
            whole, before, n_refused = path.read_bytes(), load_network(path), 0
            for i in range(100):
                path.write_bytes(damaged(whole, i, rng))
                try:
                    with contextlib.redirect_stderr(io.StringIO()) as stderr:
                        network = evaluate.load_networks([str(path)])[suffix]
                except FlagError as error:
                    n_refused += 1
                    self.assertNotIn('\n', str(error))
                    self.assertRegex(str(error), 'is damaged or no network|cannot read')
                else:
                    np.testing.assert_array_equal(network.probabilities(pixels), before.probabilities(pixels))
                    self.assertEqual(network.description, before.description)
                self.assertEqual(stderr.getvalue(), '')
            self.assertGreater(n_refused, 85)
            path.write_bytes(whole[:-1])
            status, out, err = run(path, '--output_dir', self.directory / 'out')
            self.assertEqual((status, out, err.count('\n')), (2, '', 1))
            self.assertFalse((self.directory / 'out').exists())

    def test_networks_that_are_well_formed_and_wrong(self) -> None:
        train(train_mlp_numpy, self.directory, 'x', '--dnn_hidden_units', '2')
        path = self.directory / 'networks/x.npz'
        with np.load(path) as archive:
            arrays = dict(archive)
        description = json.loads(str(arrays['description']))
        for change in (
            {'arguments': {**description['arguments'], 'n_hidden': [3]}}, {'arguments': {}},
            {'script': 'convnet_pytorch'}, {'classes': ['a', 'b']},
            {'arguments': None}, {'dataset': 'no such'}, {'flags': None}, {'row': [1]},
        ):  # fmt: skip
            self.assert_refused({**arrays, 'description': json.dumps({**description, **change})})
        np.savez(path, **{**arrays, 'description': json.dumps({**description, 'script': 'os'})})
        status, out, err = run(path, '--output_dir', self.directory / 'out')
        self.assertEqual((status, out, err.count('\n')), (2, '', 1), err)
        self.assertIn("cannot be built again: NETWORKS in checkpoints.py has no line for 'os'", err)
        self.assert_refused({**arrays, 'description': 'no JSON'})
        self.assert_refused({**arrays, 'description': '[' * 100_000})
        self.assert_refused({**arrays, 'mean_image': arrays['mean_image'][1:]})
        self.assert_refused({name: array for name, array in arrays.items() if name != 'mean_image'})
        self.assert_refused({**arrays, '0.weight': arrays['0.weight'][:, 1:]})
        np.savez_compressed(path, **arrays)  # in which much might be hidden in little
        self.assertIn('damaged', run(path, '--output_dir', self.directory)[2])
        np.savez(path, **arrays)
        with without_figures():
            self.assertEqual(run(path, '--output_dir', self.directory)[0], 0)

    def test_programs_of_pytorchs_that_break_off(self) -> None:
        """In archives whose checksums are right."""
        train(train_mlp_pytorch, self.directory, 'x', '--dnn_hidden_units', '2')
        path = self.directory / 'networks/x.pt'
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        (program,) = (name for name in contents if name.endswith('data.pkl'))
        for length in (*range(0, len(contents[program]), 7), contents[program].index(b'X') + 3):
            with zipfile.ZipFile(path, 'w') as archive:
                for name, data in contents.items():
                    archive.writestr(name, data[:length] if name == program else data)
            with self.assertRaisesRegex(FlagError, 'is damaged or no network'):
                evaluate.load_networks([str(path)])

    def assert_refused(self, arrays: dict[str, object]) -> None:
        path = self.directory / 'networks/x.npz'
        np.savez(path, **arrays)
        status, out, err = run(path, '--output_dir', self.directory / 'out')
        self.assertEqual((status, out, err.count('\n')), (2, '', 1), err)
        self.assertRegex(err, 'is damaged or no network|does not say how it was trained')


def damaged(whole: bytes, i: int, rng: np.random.RandomState) -> bytes:
    """The bytes of a file, damaged in the i-th way: cut, or with some bits, bytes or blocks changed or moved."""
    at = rng.randint(len(whole))
    match i % 5:
        case 0:
            return whole[:at]
        case 1:
            return whole[:at] + bytes([whole[at] ^ 1 << rng.randint(8)]) + whole[at + 1 :]
        case 2:
            return whole[:at] + bytes(min(200, len(whole) - at)) + whole[at + 200 :]
        case 3:
            return whole[:at] + rng.bytes(1 + rng.randint(9)) + whole[at:]
    tail = len(whole) - 1 - rng.randint(min(len(whole), 1500))  # where the directory of the archive is
    return whole[:tail] + bytes([whole[tail] ^ 255]) + whole[tail + 1 :]


class FiguresTest(unittest.TestCase):
    def setUp(self) -> None:
        self.save_figure = self.enterContext(mock.patch.object(evaluate_figures, 'save_figure'))

    def panels(self) -> list:
        return self.save_figure.call_args.args[0].axes

    def test_weights_become_colours(self) -> None:
        weights = np.zeros((3, 3, 32, 32))
        weights[0, 0], weights[0, 1] = 2, -2  # red as bright, green as dark as can be
        weights[1, :, 0, 0] = -0.001
        picture = evaluate_figures.mosaic(weights)
        self.assertEqual(picture.shape, (72, 72, 3))
        np.testing.assert_array_equal(picture[2, 2], [1, 0, 0.5])
        np.testing.assert_array_equal(picture[2, 38], [0, 0, 0])
        np.testing.assert_array_equal(picture[2, 39], [0.5, 0.5, 0.5])
        np.testing.assert_array_equal(picture[38, 2], [0.5, 0.5, 0.5])
        np.testing.assert_array_equal(picture[37:, 37:], np.ones((35, 35, 3)))
        np.testing.assert_array_equal(picture[36], np.ones((72, 3)))
        filters = np.arange(27.0).reshape(1, 3, 3, 3)
        np.testing.assert_allclose(evaluate_figures.mosaic(filters)[2:-2:10, 2:-2:10],
                                   0.5 + filters[0].transpose(1, 2, 0) / 52)  # fmt: skip

    def test_of_many_units_the_strongest(self) -> None:
        weights = np.ones((200, 3, 3, 3)) * np.arange(200)[:, None, None, None]
        with mock.patch.object(evaluate_figures, 'mosaic', return_value=np.ones((9, 9, 3))) as mosaic:
            evaluate_figures.plot_weights(weights, 'title', Path('x.png'))
        np.testing.assert_array_equal(mosaic.call_args.args[0][:, 0, 0, 0], np.arange(56, 200))
        self.assertIn('the 144 of 200 units', self.panels()[0].get_title())

    def test_images_under_their_captions(self) -> None:
        images = np.random.RandomState(0).randint(256, size=(5, 3, 32, 32)).astype(np.uint8)
        evaluate_figures.plot_images(images, [*'abc', '$\\x$', 'e'], 'title', Path('x.png'), n_columns=3)
        panels = self.panels()
        self.assertEqual([panel.get_title() for panel in panels], ['a', 'b', 'c', '$\\x$', 'e', ''])
        for panel, image in zip(panels, images, strict=False):
            np.testing.assert_array_equal(panel.images[0].get_array(), image.transpose(1, 2, 0))
        self.save_figure.call_args.args[0].draw_without_rendering()  # no formula is seen in a file's name

    def test_calibration(self) -> None:
        found = {'expected_calibration_error': 0.123, 'examples': np.array([0, 1, 3]),
                 'confidence': np.array([0, 0.4, 0.9]), 'accuracy': np.array([0, 1, 2 / 3])}  # fmt: skip
        evaluate_figures.plot_calibration(found, 'title', Path('x.png'))
        accuracy, examples = self.panels()
        bars = [(bar.get_x(), bar.get_height()) for bar in accuracy.patches]
        np.testing.assert_allclose(bars, [(1 / 3, 1), (2 / 3, 2 / 3)])
        np.testing.assert_allclose([bar.get_height() for bar in examples.patches], [0, 0.25, 0.75])
        np.testing.assert_allclose([line.get_xdata()[0] for line in examples.lines], [3.1 / 4, 3 / 4])
        self.assertIn('0.1230', self.save_figure.call_args.args[0].get_suptitle())
