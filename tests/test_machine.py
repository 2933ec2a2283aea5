"""What a record says of the machine and of the libraries."""

import os
import sys
import unittest
from unittest import mock

import numpy as np
import torch

import machine

CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 1
model name\t: An EPYC
flags\t\t: fpu avx2 avx512f

processor\t: 1
model name\t: Another
"""


class MachineTest(unittest.TestCase):
    def machine(self, **environment: str) -> str:
        with (
            mock.patch.object(machine.Path, 'read_text', return_value=CPUINFO),
            mock.patch.object(machine.os, 'sched_getaffinity', return_value={0, 5, 7}, create=True),
            mock.patch.dict(os.environ, environment, clear=True),
        ):
            return machine.machine()

    def test_processor_and_cores(self) -> None:
        self.assertEqual(self.machine(), 'An EPYC (family 25, model 1, avx2, avx512f), 3 cores')

    def test_kernels_of_another_processor_are_told(self) -> None:
        self.assertRegex(self.machine(OPENBLAS_CORETYPE='Zen'), r'3 cores, OPENBLAS_CORETYPE=Zen$')

    def test_where_there_is_no_such_file(self) -> None:
        with (
            mock.patch.object(machine.Path, 'read_text', side_effect=FileNotFoundError),
            mock.patch.object(machine.platform, 'processor', return_value='arm'),
        ):
            self.assertRegex(machine.machine(), r'^arm, \d+ cores?\b')
            with mock.patch.object(machine, 'usable_cores', return_value=1):
                self.assertRegex(machine.machine(), r'^arm, 1 core\b')

    def test_versions(self) -> None:
        versions = machine.versions()
        self.assertEqual(versions['numpy'], np.__version__)
        self.assertIn(versions['torch'], (torch.__version__, torch.__version__.split('+')[0]))  # as its wheel has it
        without = {name: module for name, module in sys.modules.items() if name != 'torch'}
        with mock.patch.dict(sys.modules, without, clear=True):
            self.assertNotIn('torch', machine.versions())
