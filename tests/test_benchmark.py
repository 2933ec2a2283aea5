"""How `benchmark.py` takes turns, judges and draws; what it measures is not a test's business."""

import contextlib
import io
import sys
import unittest
from unittest import mock

import numpy as np

import benchmark
from tests.helpers import files_under, temporary_directory


class BenchmarkTest(unittest.TestCase):
    def run_main(self, *args: str) -> tuple[int, str, str]:
        argv = ['benchmark.py', *args]
        with (
            mock.patch.object(sys, 'argv', argv),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = benchmark.main()
            except SystemExit as stop:
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def test_actions_take_turns(self) -> None:
        calls = []
        actions = {name: lambda name=name: calls.append(name) for name in 'AB'}
        seconds = benchmark.take_turns(actions, repeats=3, at_least=0)
        self.assertEqual(''.join(calls), 'AB' + 'AABB' + 3 * 'AABB')  # short: each timed one after one untimed
        calls.clear()
        benchmark.take_turns({'A': lambda: calls.append('A')}, repeats=1, at_least=0.05)
        self.assertGreater(len(calls), 1 + 2 + 2)  # very short: many in a turn
        self.assertEqual([turns.shape for turns in seconds.values()], [(3,), (3,)])
        self.assertGreater(min(turns.min() for turns in seconds.values()), 0)

    def test_ratios_and_verdicts(self) -> None:
        seconds = {'ours': np.array([1.0, 2.0, 3.0]), 'slow': np.array([2.0, 4.0, 6.0]), 'like': np.array([2.0, 2, 2])}
        with contextlib.redirect_stdout(io.StringIO()):
            slow, like, free = benchmark.compare('b', 'case', seconds, 'ours', {'slow': 0.4, 'like': 1.0, 'ours': None})
        self.assertEqual((slow.ratio, slow.low, slow.high, slow.measured), (0.5, 0.5, 0.5, 2.0))
        self.assertEqual((like.ratio, like.low, like.high), (1.0, 0.6, 1.4))
        self.assertEqual((slow.verdict, like.verdict, free.verdict), ('MISSED', 'reached, drowns in the noise', ''))

    def test_some_benchmarks_are_printed_and_not_written(self) -> None:
        with temporary_directory() as directory:
            status, out, _ = self.run_main('batchnorm', '--repeats', '1', '--output_dir', str(directory))
            self.assertEqual((status, files_under(directory)), (0, []))
        self.assertRegex(out, r'\(4096, 1024\) +manual +/ native +\d+\.\d\d')
        self.assertRegex(out, r'\(4096, 1024\) bytes saved +manual +/ native +1\.00 .*reached')

    def test_a_full_run_is_written_and_drawn_and_goes_on_where_it_was_stopped(self) -> None:
        def fake(name: str) -> mock.Mock:
            ratio = benchmark.Ratio(name, f'{name} width 64 batch 256', 'ours', 'theirs', 0.5, 0.4, 0.6, 1.0, 0.9)
            return mock.Mock(return_value=[ratio], __doc__='Of its kind.')

        fakes = {name: fake(name) for name in benchmark.BENCHMARKS}
        with temporary_directory() as directory, mock.patch.object(benchmark, 'BENCHMARKS', fakes):
            args = ('--output_dir', str(directory))
            fakes['load'].side_effect = KeyboardInterrupt
            self.assertEqual(self.run_main(*args)[0], 130)
            self.assertEqual(files_under(directory), ['results', 'results/benchmark_unfinished.json'])

            status, _, err = self.run_main(*args, '--repeats', '2')
            self.assertEqual(status, 2)
            self.assertIn('(delete it to start anew) belongs to another run: its repeats is 15, here it is 2', err)

            unfinished = directory / 'results/benchmark_unfinished.json'
            whole = unfinished.read_text()
            for damaged in (whole[:-9], '{}', '[]', '{"ratios": []}', '{"ratios": {"step": [{"kase": 1}]}}'):
                unfinished.write_text(damaged)
                status, _, err = self.run_main(*args)
                self.assertEqual((status, 'is damaged: delete it' in err), (2, True), damaged)
            unfinished.write_text(whole)

            fakes['load'].side_effect = None
            status, out, _ = self.run_main(*args)
            self.assertEqual((status, out.count('measured before')), (0, list(fakes).index('load')))
            self.assertEqual([function.call_count for name, function in fakes.items() if name != 'load'],
                             [1] * (len(fakes) - 1))  # fmt: skip
            self.assertEqual(
                files_under(directory), ['figures', 'figures/benchmark.png', 'results', 'results/benchmark.json']
            )
            environment, ratios = benchmark.read_ratios(directory / 'results/benchmark.json')
        self.assertEqual(ratios, {name: function.return_value for name, function in fakes.items()})
        self.assertEqual(environment['versions']['numpy'], np.__version__)

    def test_bad_flags(self) -> None:
        for args, word in ((['fast'], "no benchmark 'fast'"), (['step', '--repeats', '0'], "got '0'")):
            status, out, err = self.run_main(*args)
            self.assertEqual((status, out, err.count('\n')), (2, '', 1))
            self.assertIn(word, err)
        with temporary_directory() as directory:
            places = ('--data_dir', str(directory), '--output_dir', str(directory))
            with mock.patch('cifar10_utils.check_network', side_effect=OSError('no network')):
                status, _, err = self.run_main('load', *places)
            self.assertEqual((status, files_under(directory)), (2, []))
            self.assertIn('no CIFAR-10 in', err)
