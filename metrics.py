"""Accuracy, the confusion matrix and what follows from it for each class, and calibration.

    matrix = confusion_matrix(scores, labels)  # matrix[i, j]: how many of class i were taken for class j
    confusion_matrix_to_metrics(matrix, beta=2.0)['recall']

A prediction is the class of the highest score, the first of several. Arguments may be whatever `np.asarray` takes, such
as lists or PyTorch's tensors.
"""

import numpy as np
from numpy.typing import ArrayLike


def class_numbers(labels: ArrayLike, n_classes: int) -> np.ndarray:
    """Labels as class numbers (n,) from 0 to n_classes − 1: such numbers already, of any integer type, or one-hot.

    Raises:
        ValueError: they are neither.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == n_classes:
        return labels.argmax(axis=1)
    whole = labels.ndim == 1 and (np.issubdtype(labels.dtype, np.integer) or not labels.size)
    if not whole or (labels.size and not 0 <= labels.min() <= labels.max() < n_classes):
        shown = f', {labels.min()} to {labels.max()}' if whole else ''
        raise ValueError(
            f'labels must be class numbers (n,) from 0 to {n_classes - 1}, or one-hot (n, {n_classes}), '
            f'got {labels.dtype} of shape {labels.shape}{shown}'
        )
    return labels.astype(np.int64, copy=False)  # which calculate without overflow


def predicted_and_true(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The class of the highest score and the class of the label, (n,) each.

    Args:
        predictions: scores (n, n_classes), such as probabilities or logits.
        labels: class numbers (n,), or one-hot (n, n_classes).

    Raises:
        ValueError: they have other shapes, or a label is no class.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or not predictions.shape[1]:
        raise ValueError(f'predictions must be scores (n, n_classes), got shape {predictions.shape}')
    targets = class_numbers(labels, predictions.shape[1])
    if len(targets) != len(predictions):
        raise ValueError(f'predictions and labels must be as many, got {len(predictions)} and {len(targets)}')
    return predictions.argmax(axis=1), targets


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """The share of examples whose highest score is that of their class, and 0 where there are none.

    For the arguments, and what is raised, see `predicted_and_true`.
    """
    predicted, true = predicted_and_true(predictions, labels)
    return float((predicted == true).mean()) if len(true) else 0.0


def confusion_matrix(predictions: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """How many examples of class i (the row) were taken for class j (the column), (n_classes, n_classes) int64.

    Args:
        predictions: scores (n, n_classes).
        targets: class numbers (n,) of any integer type; or one-hot (n, n_classes).

    Raises:
        ValueError: they have other shapes, or a target is no class.
    """
    predicted, true = predicted_and_true(predictions, targets)
    n_classes = np.shape(predictions)[1]
    return np.bincount(true * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def confusion_matrix_to_metrics(confusion_matrix: ArrayLike, beta: float = 1.0) -> dict[str, float | np.ndarray]:
    """What follows from a confusion matrix.

    For a class with TP hits, FN misses (the rest of its row) and FP false alarms (the rest of its column):

        precision = TP / (TP + FP)
        recall    = TP / (TP + FN)
        f1_beta   = (1 + β²) · precision · recall / (β² · precision + recall)
                  = TP / (w (TP + FN) + (1 − w) (TP + FP)) with w = β² / (1 + β²)

    So a large β asks for few misses, a small one for few false alarms, and 1 for both alike.

    A quotient of nothing by nothing is 0: the precision of a class that was never predicted, the recall of one that
    never occurs, and all that is said of a matrix of zeros. There was not a single hit, so the class is not credited
    with any; and a mean over the classes stays a number, which only a hit can raise.

    Args:
        confusion_matrix: (n_classes, n_classes), a row for each true class: counts, or shares of all examples.
        beta: how many times as much recall weighs as precision, from 0 to 1e150.

    Returns:
        `accuracy`, a number, and `precision`, `recall` and `f1_beta`, (n_classes,) each.

    Raises:
        ValueError: the matrix is not square, or beta is out of its range.
    """
    matrix = np.asarray(confusion_matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f'confusion_matrix must be (n_classes, n_classes), got shape {matrix.shape}')
    if not 0 <= beta <= 1e150:
        raise ValueError(f'beta must be a number from 0 to 1e150, got {beta}')
    hits = np.diag(matrix)
    predicted, true = matrix.sum(axis=0), matrix.sum(axis=1)
    weight = beta * beta / (1 + beta * beta)
    return {
        'accuracy': float(_ratio(hits.sum(), matrix.sum())),
        'precision': _ratio(hits, predicted),
        'recall': _ratio(hits, true),
        'f1_beta': _ratio(hits, weight * true + (1 - weight) * predicted),
    }


def calibration(probabilities: ArrayLike, targets: ArrayLike, n_bins: int = 15) -> dict[str, float | np.ndarray]:
    """How often a network is right where it is so and so sure.

    Its confidence is the highest of an example's probabilities. Examples go into bins of confidence, equally wide, and
    the expected calibration error is the mean of |accuracy − mean confidence| over the bins, each weighing as much as
    it has examples (Guo et al., 2017).

    Args:
        probabilities: (n, n_classes).
        targets: class numbers (n,), or one-hot (n, n_classes).
        n_bins: bin i holds the confidences from i / n_bins to (i + 1) / n_bins.

    Returns:
        `expected_calibration_error`, a number, and `examples`, `confidence` and `accuracy`, (n_bins,) each, 0 for a bin
        without an example.

    Raises:
        ValueError: the arguments have other shapes, or a target is no class.
    """
    predicted, true = predicted_and_true(probabilities, targets)
    confidences = np.nan_to_num(np.asarray(probabilities, dtype=np.float64).max(axis=1))
    bins = np.minimum((confidences * n_bins).astype(int), n_bins - 1)
    examples = np.bincount(bins, minlength=n_bins)
    confidence = _ratio(np.bincount(bins, confidences, n_bins), examples.astype(float))
    accuracy = _ratio(np.bincount(bins, predicted == true, n_bins), examples.astype(float))
    return {
        'expected_calibration_error': float(examples @ np.abs(accuracy - confidence) / max(len(bins), 1)),
        'examples': examples,
        'confidence': confidence,
        'accuracy': accuracy,
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is nothing."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
