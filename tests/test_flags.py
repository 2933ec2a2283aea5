"""The types of flags, and what becomes of files that were written before a flag was there."""

import argparse
import contextlib
import io
import os
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import checkpoints
import experiment
import flags
import grid_search_mlp_pytorch as grid_search
import parsing
import train_mlp_pytorch
from tests.helpers import only, temporary_directory


class TypesTest(unittest.TestCase):
    def test_bounds(self) -> None:
        good = {
            flags.positive_int: {'1': 1, '007': 7},
            flags.non_negative_int: {'0': 0, str(2**32 - 1): 2**32 - 1},
            flags.positive_float: {'1e-30': 1e-30, ' 2 ': 2.0},
            flags.non_negative_float: {'0': 0.0, '0.5': 0.5},
            flags.hidden_units: {'': [], ' ': [], '100': [100], '2, 3': [2, 3], '1,100000': [1, 100_000]},
            flags.distinct_seeds: {'0': [0], '3,1': [3, 1]},
        }
        bad = {
            flags.positive_int: ('0', '-1', '1.0', '', '²', '1e3'),
            flags.non_negative_int: ('-1', str(2**32), 'x'),
            flags.positive_float: ('0', '-1', 'nan', 'inf', 'x', ''),
            flags.non_negative_float: ('-0.1', 'nan', 'inf', 'x', ''),
            flags.hidden_units: ('0', '100001', '1,,2', ',', '1.5'),
            flags.distinct_seeds: ('1,1', '', '1,', 'x', '-1'),
        }
        for kind, cases in good.items():
            for text, value in cases.items():
                self.assertEqual(kind(text), value)
        for kind, texts in bad.items():
            for text in texts:
                with self.assertRaises(argparse.ArgumentTypeError, msg=f'{kind.__name__} {text!r}'):
                    kind(text)


class FlagFileTest(unittest.TestCase):
    def test_comments_and_quotes(self) -> None:
        for text, words in (
            ('--name "run #2" # a comment, and no "quote', ['--name', 'run #2']),
            ("# don't\n--name 'a # b' --lr 1 #\n#end", ['--name', 'a # b', '--lr', '1']),
            ('--name run#2\t#no\n"--x"', ['--name', 'run#2', '--x']),
        ):
            with temporary_directory() as directory:
                (directory / 'flags.txt').write_text(text)
                self.assertEqual(parsing.flags_of(f'@{directory}/flags.txt'), words)

    def test_files_of_windows(self) -> None:
        """A mark of the byte order at the beginning, and paths with backslashes."""
        with temporary_directory() as directory:
            (directory / 'flags.txt').write_bytes(b'\xef\xbb\xbf--data_dir C:\\data\\new')
            self.assertEqual(parsing.flags_of(f'@{directory}/flags.txt'), ['--data_dir', r'C:\data\new'])

    def test_a_file_that_names_itself(self) -> None:
        with temporary_directory() as directory:
            path = directory / 'flags.txt'
            path.write_text(f'--lr 1 @{path}')
            with self.assertRaisesRegex(parsing.FlagError, 'flags.txt names itself'):
                parsing.flags_of(f'@{path}')


class MainProcessTest(unittest.TestCase):
    def test_rank_0_alone_prints_and_writes(self) -> None:
        for environment, is_main in (({}, True), ({'TORCHELASTIC_RUN_ID': 'x', 'RANK': '0'}, True),
                                     ({'TORCHELASTIC_RUN_ID': 'x', 'RANK': '1'}, False)):  # fmt: skip
            with mock.patch.dict(os.environ, environment, clear=True):
                self.assertEqual(parsing.is_main_process(), is_main)


class RankErrorsTest(unittest.TestCase):
    def test_each_rank_says_its_own_mistake_and_rank_0_first(self) -> None:
        for rank, waits in (('0', 0), ('1', 1)):
            with (
                mock.patch.dict('os.environ', {'TORCHELASTIC_RUN_ID': 'x', 'RANK': rank}),
                mock.patch('time.sleep') as sleep,
                contextlib.redirect_stderr(io.StringIO()) as stderr,
                self.assertRaises(SystemExit) as caught,
            ):
                parsing.OneLineParser(prog='x').parse_args(['--no_such_flag'])
            self.assertEqual((caught.exception.code, sleep.call_count), (2, waits))
            self.assertIn('unrecognized arguments: --no_such_flag', stderr.getvalue())


class YoungerFlagTest(unittest.TestCase):
    """What a file lacks counts as that flag's default."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    @contextlib.contextmanager
    def new_flag(self) -> Iterator[None]:
        """Inside, all scripts that train the PyTorch MLP have a flag more than before."""
        add_flags = train_mlp_pytorch.add_flags

        def more(parser: parsing.OneLineParser, **kwargs: object) -> None:
            add_flags(parser, **kwargs)
            parser.add_argument('--brand_new', type=int, default=3)

        with mock.patch.object(train_mlp_pytorch, 'add_flags', more):
            yield

    def test_check_same_flags(self) -> None:
        def check(saved: dict, here: dict) -> None:
            flags.check_same_flags('the file', saved, here, {'old': 1, 'new': 3})

        check({'old': 1}, {'old': 1, 'new': 3})
        check({'old': 2, 'new': 3}, {'old': 2})
        with self.assertRaisesRegex(parsing.FlagError, 'the file belongs to another run: its new is 3, here it is 4'):
            check({'old': 1}, {'old': 1, 'new': 4})
        with self.assertRaisesRegex(parsing.FlagError, 'its new is 4, here it is 3'):
            check({'old': 1, 'new': 4}, {'old': 1})
        with self.assertRaisesRegex(parsing.FlagError, 'its old is 2, here it is 1'):
            check({'old': 2}, {'old': 1})

    def test_an_old_checkpoint(self) -> None:
        checkpoint = str(self.directory / 'run.pt')
        args = ['--dataset', 'synthetic', '--max_steps', '4', '--eval_freq', '2', '--dnn_hidden_units', '5']

        def train(*more: str) -> list[dict]:
            parsed = train_mlp_pytorch.build_parser().parse_args([*args, *more])
            return train_mlp_pytorch.train(parsed, quiet=True).rows

        rows = train('--checkpoint', checkpoint)
        with self.new_flag():
            self.assertEqual(train('--resume', checkpoint), rows)
            with self.assertRaisesRegex(parsing.FlagError, 'its brand_new is 3, here it is 4'):
                train('--resume', checkpoint, '--brand_new', '4')

    def test_an_old_search(self) -> None:
        args = ['--dataset', 'synthetic', '--max_steps', '4', '--dnn_hidden_units', '5', '--processes', '1']

        def search(*more: str) -> str:
            words = [*args, '--output_dir', str(self.directory), *more]
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
                grid_search.search(grid_search.build_parser().parse_args(words))
            return out.getvalue()

        search()
        with self.new_flag():
            self.assertIn('1 of 1 settings are done', search('--dry_run'))
            with self.assertRaisesRegex(parsing.FlagError, 'its brand_new is 3, here it is 4'):
                search('--dry_run', '--brand_new', '4')


class NormTest(unittest.TestCase):
    """`--batch_norm` is the older name of a part of `--norm`, in files as on the command line."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(temporary_directory()))

    def parse(self, *args: str) -> argparse.Namespace:
        argv = ['--dataset', 'synthetic', '--max_steps', '2', '--dnn_hidden_units', '4',
                '--output_dir', str(self.directory), *args]  # fmt: skip
        return train_mlp_pytorch.build_parser().parse_args(argv)

    def test_the_older_flag_sets_the_same_value(self) -> None:
        for parser in (train_mlp_pytorch.build_parser(), grid_search.build_parser()):
            for old, norm in flags.BATCH_NORM.items():
                parsed = parser.parse_args(['--batch_norm', old])
                self.assertEqual(parsed, parser.parse_args(['--norm', norm]))
                self.assertNotIn('batch_norm', vars(parsed))
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                parser.parse_args(['--batch_norm', 'layer_manual'])

    def test_files_of_older_runs_are_of_the_same_run(self) -> None:
        defaults = {'norm': 'none'}
        for old, norm in flags.BATCH_NORM.items():
            flags.check_same_flags('the file', {'batch_norm': old}, {'norm': norm}, defaults)
            self.assertTrue(
                experiment.same_but_for_the_seed(
                    {'flags': {'batch_norm': old, 'seed': 1}}, {'flags': {'norm': norm, 'seed': 2}}
                )
            )
        self.assertEqual(experiment.told_flags({'norm': 'layer_torch'}, defaults), {'norm': 'layer_torch'})
        self.assertEqual(experiment.told_flags({'norm': 'none'}, defaults), {})
        with self.assertRaisesRegex(parsing.FlagError, 'its norm is batch_torch, here it is batch_manual'):
            flags.check_same_flags('the file', {'batch_norm': 'torch'}, {'norm': 'batch_manual'}, defaults)

    def test_a_checkpoint_and_a_network_of_an_older_run(self) -> None:
        checkpoint = self.directory / 'run.pt'
        parsed = self.parse('--norm', 'batch_manual', '--checkpoint', str(checkpoint))
        train_mlp_pytorch.train(parsed, str(self.directory), quiet=True)
        state = torch.load(checkpoint, weights_only=True)
        self.assertEqual(state['flags'].pop('norm'), 'batch_manual')
        state['flags']['batch_norm'] = 'manual'
        torch.save(state, checkpoint)
        train_mlp_pytorch.train(parsed, str(self.directory), quiet=True)
        network = only(self.directory / 'networks', '.pt')
        pixels = np.random.RandomState(0).randint(256, size=(3, 3072)).astype(np.uint8)
        expected = checkpoints.load_network(network).probabilities(pixels)
        contents = torch.load(network, weights_only=True)
        contents['description'] = contents['description'].replace('"norm": "batch_manual"', '"batch_norm": "manual"')
        self.assertIn('"batch_norm": "manual"', contents['description'])
        torch.save(contents, network)
        np.testing.assert_array_equal(checkpoints.load_network(network).probabilities(pixels), expected)

    def test_layer_normalisation_trains_alike(self) -> None:
        rows = []
        for kind in ('autograd', 'manual', 'torch'):
            record = train_mlp_pytorch.train(self.parse('--norm', f'layer_{kind}', '--batch_size', '1'), quiet=True)
            rows.append([list(row.values()) for row in record.rows])
        np.testing.assert_allclose(rows[0], rows[2], rtol=1e-4)
        np.testing.assert_allclose(rows[1], rows[2], rtol=1e-4)
