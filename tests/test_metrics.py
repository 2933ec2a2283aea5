"""The confusion matrix, what follows from it, and which arguments it takes."""

import unittest
import warnings

import numpy as np
import torch

import metrics
import train_mlp_numpy
import train_mlp_pytorch

N_CLASSES = 4


def scores_of(predicted: list[int]) -> np.ndarray:
    """Scores whose highest is that of these classes."""
    return np.eye(N_CLASSES)[predicted] - 0.5


class ConfusionMatrixTest(unittest.TestCase):
    def setUp(self) -> None:
        rng = np.random.RandomState(0)
        self.scores = rng.randn(60, N_CLASSES)
        self.targets = rng.randint(N_CLASSES, size=60)
        self.expected = np.zeros((N_CLASSES, N_CLASSES))
        for row, target in zip(self.scores, self.targets, strict=True):
            self.expected[target, row.argmax()] += 1

    def test_a_row_for_each_true_class(self) -> None:
        matrix = metrics.confusion_matrix(scores_of([2, 2, 0]), [1, 1, 3])
        self.assertEqual(matrix.tolist(), [[0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
        np.testing.assert_array_equal(metrics.confusion_matrix(self.scores, self.targets), self.expected)

    def test_whatever_becomes_an_array(self) -> None:
        for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64):
            matrix = metrics.confusion_matrix(self.scores, self.targets.astype(dtype))
            np.testing.assert_array_equal(matrix, self.expected, str(dtype))
        for scores, targets in (
            (self.scores.tolist(), self.targets.tolist()),
            (torch.from_numpy(self.scores), torch.from_numpy(self.targets)),
            (torch.from_numpy(self.scores), torch.from_numpy(self.targets).to(torch.uint8)),
            (self.scores.astype(np.float16) * 4, np.eye(N_CLASSES, dtype=bool)[self.targets]),
        ):
            np.testing.assert_array_equal(metrics.confusion_matrix(scores, targets), self.expected)

    def test_many_classes_in_bytes(self) -> None:
        matrix = metrics.confusion_matrix(np.eye(200), np.arange(200, dtype=np.uint8))
        np.testing.assert_array_equal(matrix, np.eye(200))

    def test_none_at_all(self) -> None:
        self.assertEqual(metrics.confusion_matrix(np.zeros((0, N_CLASSES)), []).tolist(), np.zeros((4, 4)).tolist())

    def test_what_does_not_fit(self) -> None:
        scores = scores_of([0, 1])
        for targets in ([0, 4], [-1, 0], [0.0, 1.0], [True, False], [[0], [1]], 0, ['a', 'b']):
            with self.assertRaisesRegex(ValueError, 'labels must be class numbers'):
                metrics.confusion_matrix(scores, targets)
        with self.assertRaisesRegex(ValueError, 'got int64 of shape .2,., 0 to 4$'):
            metrics.confusion_matrix(scores, [0, 4])
        with self.assertRaisesRegex(ValueError, 'got 2 and 3'):
            metrics.confusion_matrix(scores, [0, 1, 2])
        for scores in ([0, 1], np.zeros((2, 0)), 1.0):
            with self.assertRaisesRegex(ValueError, 'predictions must be scores'):
                metrics.confusion_matrix(scores, [0, 1])

    def test_accuracy(self) -> None:
        expected = np.trace(self.expected) / 60
        self.assertEqual(metrics.accuracy(self.scores, self.targets), expected)
        self.assertEqual(metrics.accuracy(self.scores, np.eye(N_CLASSES)[self.targets]), expected)
        self.assertEqual(metrics.accuracy(np.zeros((0, N_CLASSES)), []), 0)

    def test_both_trainers_offer_them(self) -> None:
        for trainer in (train_mlp_numpy, train_mlp_pytorch):
            self.assertIs(trainer.confusion_matrix, metrics.confusion_matrix)
            self.assertIs(trainer.confusion_matrix_to_metrics, metrics.confusion_matrix_to_metrics)
            self.assertEqual([name for name in trainer.__all__ if not hasattr(trainer, name)], [])


class MetricsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(warnings.catch_warnings(action='error'))
        self.matrix = np.random.RandomState(0).randint(1, 50, size=(N_CLASSES, N_CLASSES))

    def test_by_their_definitions(self) -> None:
        for beta in (0.1, 1.0, 2, 10.0):
            found = metrics.confusion_matrix_to_metrics(self.matrix, beta)
            self.assertEqual(list(found), ['accuracy', 'precision', 'recall', 'f1_beta'])
            self.assertIsInstance(found['accuracy'], float)
            self.assertAlmostEqual(found['accuracy'], np.trace(self.matrix) / self.matrix.sum())
            for c in range(N_CLASSES):
                precision = self.matrix[c, c] / sum(self.matrix[i, c] for i in range(N_CLASSES))
                recall = self.matrix[c, c] / sum(self.matrix[c, j] for j in range(N_CLASSES))
                f_beta = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
                self.assertAlmostEqual(found['precision'][c], precision)
                self.assertAlmostEqual(found['recall'][c], recall)
                self.assertAlmostEqual(found['f1_beta'][c], f_beta)

    def test_beta_is_one_unless_given_and_has_limits(self) -> None:
        given = metrics.confusion_matrix_to_metrics(self.matrix, beta=1.0)
        default = metrics.confusion_matrix_to_metrics(self.matrix)
        np.testing.assert_array_equal(given['f1_beta'], default['f1_beta'])
        for beta, key in ((0, 'precision'), (1e150, 'recall')):
            found = metrics.confusion_matrix_to_metrics(self.matrix, beta)
            np.testing.assert_allclose(found['f1_beta'], found[key])
        for beta in (-1, float('nan'), float('inf'), 1e200):
            with self.assertRaisesRegex(ValueError, 'beta must be a number from 0'):
                metrics.confusion_matrix_to_metrics(self.matrix, beta)

    def test_shares_and_tensors_and_lists_are_matrices_too(self) -> None:
        expected = metrics.confusion_matrix_to_metrics(self.matrix)
        for matrix in (self.matrix / self.matrix.sum(), torch.from_numpy(self.matrix), self.matrix.tolist()):
            for key, value in metrics.confusion_matrix_to_metrics(matrix).items():
                np.testing.assert_allclose(value, expected[key])
        for matrix in (np.zeros((2, 3)), np.zeros(4), 1):
            with self.assertRaisesRegex(ValueError, 'must be .n_classes, n_classes.'):
                metrics.confusion_matrix_to_metrics(matrix)

    def test_a_quotient_of_nothing_by_nothing_is_zero(self) -> None:
        """Class 2 is never predicted, class 3 never occurs, class 0 neither."""
        matrix = np.array([[0, 0, 0, 0], [0, 3, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0]])
        for beta in (0, 0.1, 1, 10):
            found = metrics.confusion_matrix_to_metrics(matrix, beta)
            np.testing.assert_allclose(found['precision'], [0, 3 / 5, 0, 0])
            np.testing.assert_allclose(found['recall'], [0, 3 / 4, 0, 0])
            np.testing.assert_array_equal(found['f1_beta'] > 0, [False, True, False, False])
        nothing = metrics.confusion_matrix_to_metrics(np.zeros((3, 3)))
        self.assertEqual(nothing['accuracy'], 0)
        for key in ('precision', 'recall', 'f1_beta'):
            self.assertEqual(nothing[key].tolist(), [0, 0, 0])


class CalibrationTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(warnings.catch_warnings(action='error'))

    def test_by_hand(self) -> None:
        """Two examples in one bin, one of them right; one, right, in another; and one as sure as can be, wrong."""
        probabilities = [[0.55, 0.45], [0.41, 0.59], [0.75, 0.25], [0, 1]]
        found = metrics.calibration(probabilities, [0, 0, 0, 0], n_bins=5)
        np.testing.assert_array_equal(found['examples'], [0, 0, 2, 1, 1])
        np.testing.assert_allclose(found['confidence'], [0, 0, 0.57, 0.75, 1])
        np.testing.assert_allclose(found['accuracy'], [0, 0, 0.5, 1, 0])
        self.assertAlmostEqual(found['expected_calibration_error'], (2 * 0.07 + 0.25 + 1) / 4)

    def test_one_who_is_as_sure_as_right(self) -> None:
        rng = np.random.RandomState(0)
        probabilities = rng.dirichlet(np.ones(5), size=100_000)
        targets = (probabilities.cumsum(axis=1) > rng.rand(100_000, 1)).argmax(axis=1)
        self.assertLess(metrics.calibration(probabilities, targets)['expected_calibration_error'], 0.01)
        sharper = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)
        self.assertGreater(metrics.calibration(sharper, targets)['expected_calibration_error'], 0.1)

    def test_edges(self) -> None:
        self.assertEqual(metrics.calibration(np.zeros((0, 3)), [])['expected_calibration_error'], 0)
        self.assertEqual(metrics.calibration([[np.nan, 1]], [0])['examples'].sum(), 1)
