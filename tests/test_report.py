"""What the committed results say, and what is said of them."""

import json
import unittest

from tests.helpers import ROOT


class CommittedResultsTest(unittest.TestCase):
    def test_table_1(self) -> None:
        """The committed NumPy run has every printed digit of Table 1 of the report."""
        summary = json.loads((ROOT / 'results/mlp_numpy.json').read_text())
        self.assertEqual(summary['dataset'], 'cifar10')
        columns = ('train_acc', 'train_loss', 'test_acc', 'test_loss')
        self.assertEqual([round(summary['best'][key], 3) for key in columns], [0.525, 1.367, 0.469, 1.515])
        self.assertEqual([round(summary['last'][key], 3) for key in columns], [0.39, 1.616, 0.437, 1.602])
