"""Ready metrics of a network's outputs: ``(outputs, batch) -> [B]``, `Ratio` or `Sums`, of the labels ``batch["y"]``.

Each is summed over the examples, wherever they are, before anything is divided: so the metric of all clients is
exactly that of their examples taken together. Give them to `from_flax` by name, ``metrics={"top_5": top_k(5)}``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.models.model import Batch, Ratio, Sums

# --- classes --------------------------------------------------------------------------------------


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array | Ratio:
    """Tells per example, bool ``[B]``, whether the largest of the logits ``[B, K]`` is at ``batch["y"]``.

    Of logits ``[B, T, K]`` it counts positions.
    """
    return _mean_of_positions(jnp.argmax(logits, axis=-1) == batch["y"])


def accuracy_without(*ignored: int) -> Callable[[jax.Array, Batch], Ratio]:
    """Makes the accuracy over what has another label than those that say to leave it out.

    >>> metric = accuracy_without(0, 2)(jnp.zeros((1, 4, 3)), {"y": jnp.array([[0, 1, 2, 1]])})
    >>> metric.numerator.tolist(), metric.denominator.tolist()
    ([0], [2])
    """

    def metric(logits: jax.Array, batch: Batch) -> Ratio:
        counts = functools.reduce(jnp.logical_and, [batch["y"] != label for label in ignored])
        return Ratio(_positions((jnp.argmax(logits, axis=-1) == batch["y"]) & counts), _positions(counts))

    return metric


def top_k(k: int) -> Callable[[jax.Array, Batch], jax.Array | Ratio]:
    """Makes the accuracy that counts as right what is among the k largest logits; of equal ones, the first.

    >>> top_k(2)(jnp.array([[0.0, 2.0, 1.0]] * 3), {"y": jnp.arange(3)}).tolist()
    [False, True, True]
    """
    check_integer("[1, inf)", k=k)

    def metric(logits: jax.Array, batch: Batch) -> jax.Array | Ratio:
        best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]
        return _mean_of_positions((best == batch["y"][..., None]).any(axis=-1))

    return metric


def one_hot_accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Tells per example, bool ``[B]``, whether logits and labels ``[B, K]`` are largest at the same class."""
    return jnp.argmax(logits, axis=-1) == jnp.argmax(batch["y"], axis=-1)


def label_accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Computes per example, ``[B]``, how many of its labels 0 and 1 are right: those that its logits' signs say."""
    y = batch["y"]
    return _mean_of_outputs((logits.reshape(y.shape) > 0) == (y > 0.5))


def label_precision(logits: jax.Array, batch: Batch) -> Ratio:
    """Computes which part of the labels 1 that positive logits ``[B, L]`` say are so."""
    said = logits > 0
    return Ratio(_positions(said & (batch["y"] > 0.5)), _positions(said))


def label_recall(k: int) -> Callable[[jax.Array, Batch], Ratio]:
    """Makes the part of all labels 1 of ``[B, L]`` that are among the k largest logits of their example.

    >>> metric = label_recall(2)(jnp.array([[3.0, 2.0, 1.0]]), {"y": jnp.array([[1, 0, 1]])})
    >>> metric.numerator.tolist(), metric.denominator.tolist()
    ([1], [2])
    """
    check_integer("[1, inf)", k=k)

    def metric(logits: jax.Array, batch: Batch) -> Ratio:
        labels = batch["y"] > 0.5
        best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]
        return Ratio(_positions(jnp.take_along_axis(labels, best, axis=-1)), _positions(labels))

    return metric


def sign_accuracy(scores: jax.Array, batch: Batch) -> jax.Array:
    """Computes per example, ``[B]``, how many of its labels -1 and 1 have the sign of their scores."""
    y = batch["y"]
    return _mean_of_outputs((scores.reshape(y.shape) > 0) == (y > 0))


def confusion_matrix(logits: jax.Array, batch: Batch) -> Sums:
    """Counts how often each class, row, was taken for each, column: int32 ``[K, K]``; K is at least 2."""
    return _confusion(logits, batch, _identity)


def of_confusion(finish: Callable[[jax.Array], PyTree]) -> Callable[[jax.Array, Batch], Sums]:
    """Makes a metric of the confusion matrix, such as `precision`, `recall`, `f1` or `balanced_accuracy`.

    >>> metric = of_confusion(recall)(jnp.array([[1.0, 0.0], [1.0, 0.0]]), {"y": jnp.array([0, 1])})
    >>> metric.finish(metric.values.sum(axis=0)).tolist()
    [1.0, 0.0]
    """
    return functools.partial(_confusion, finish=finish)


def _identity(sums: PyTree) -> PyTree:
    return sums


def _confusion(logits: jax.Array, batch: Batch, finish: Callable[[jax.Array], PyTree]) -> Sums:
    number = logits.shape[-1]
    if number == 1:
        raise ValueError(
            f"a confusion matrix is of two classes or more; got outputs {list(logits.shape)}. Give logits [B, K], with "
            "labels from 0 to K - 1: jnp.stack([-z / 2, z / 2], axis=-1) of one logit z for two classes."
        )
    rows, columns = (jax.nn.one_hot(x, number, dtype=jnp.int32) for x in (batch["y"], jnp.argmax(logits, axis=-1)))
    return Sums(rows[..., :, None] * columns[..., None, :], finish)


def precision(matrix: jax.Array) -> jax.Array:
    """Computes of each class which part of what was taken for it is so, ``[K]``; 0 if nothing was."""
    return _part(jnp.diagonal(matrix), matrix.sum(axis=0))


def recall(matrix: jax.Array) -> jax.Array:
    """Computes of each class which part of it was found, ``[K]``; 0 if there is none of it."""
    return _part(jnp.diagonal(matrix), matrix.sum(axis=1))


def f1(matrix: jax.Array) -> jax.Array:
    """Computes of each class the harmonic mean of precision and recall, ``[K]``; 0 if both are."""
    return _part(2 * jnp.diagonal(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def balanced_accuracy(matrix: jax.Array) -> jax.Array:
    """Computes the mean recall of the classes that there are, ``[]``; NaN if there is none."""
    present = matrix.sum(axis=1) > 0
    return jnp.sum(jnp.where(present, recall(matrix), 0)) / jnp.sum(present)


# --- probabilities --------------------------------------------------------------------------------


class Area(NamedTuple):
    """An area under a curve that is made of bins.

    Attributes:
      value: The area, float32 ``[]``; NaN if one of the classes is not there.
      error: The most by which the area of the exact scores may differ.
    """

    value: jax.Array
    error: jax.Array


def auc(*, num_bins: int = 1000) -> Callable[[jax.Array, Batch], Sums]:
    """Makes the area under the ROC curve of a classifier of two classes, an `Area`.

    The probabilities of class 1 are counted in bins of equal width, apart by label. Scores within a bin count as
    equal, half right; the error is half the pairs of both classes that share a bin, and so is exact about itself.

    Args:
      num_bins: Of the probabilities from 0 to 1.

    >>> metric = auc(num_bins=4)(jnp.array([-9.0, 9.0, -9.0, 9.0]), {"y": jnp.array([0, 1, 0, 0])})
    >>> jax.tree.map(lambda x: round(float(x), 3), metric.finish(metric.values.sum(axis=0)))
    Area(value=0.833, error=0.167)
    """
    check_integer("[2, inf)", num_bins=num_bins)

    def metric(outputs: jax.Array, batch: Batch) -> Sums:
        logit = _logit_of_one(outputs)
        bins = jnp.clip((jax.nn.sigmoid(logit) * num_bins).astype(jnp.int32), 0, num_bins - 1)
        rows = jax.nn.one_hot((batch["y"] > 0).astype(jnp.int32), 2, dtype=jnp.int32)
        return Sums(rows[:, :, None] * jax.nn.one_hot(bins, num_bins, dtype=jnp.int32)[:, None, :], _area)

    return metric


def _logit_of_one(outputs: jax.Array) -> jax.Array:
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        return outputs.reshape(-1)
    if outputs.shape[1:] != (2,):
        raise ValueError(
            f"the area under the curve is of two classes; got outputs {list(outputs.shape)}. Give logits [B], [B, 1] "
            "or [B, 2], or take of_confusion(balanced_accuracy)."
        )
    return outputs[:, 1] - outputs[:, 0]


def _area(counts: jax.Array) -> Area:
    negative, positive = counts.astype(jnp.float32) / counts.sum(axis=1, keepdims=True)
    below = jnp.cumsum(negative) - negative
    shared = jnp.sum(positive * negative) / 2
    return Area(jnp.sum(positive * below) + shared, shared)


def calibration_error(*, num_bins: int = 15) -> Callable[[jax.Array, Batch], Sums]:
    """Makes the expected calibration error of logits ``[B, K]``: how far confidence and accuracy are apart.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015): the mean over the examples
    of the distance between the mean confidence and the accuracy of their bin, bins of equal width.

    Args:
      num_bins: Of the largest probability, from 0 to 1.
    """
    check_integer("[1, inf)", num_bins=num_bins)

    def metric(logits: jax.Array, batch: Batch) -> Sums:
        confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(axis=-1)
        # A bin has its upper bound, so that a probability of 1 is in the last.
        bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
        own = jax.nn.one_hot(bins, num_bins, dtype=confidence.dtype)
        gap = confidence - (jnp.argmax(logits, axis=-1) == batch["y"])
        return Sums((own * gap[:, None], jnp.ones(gap.shape, jnp.int32)), _mean_gap)

    return metric


def _mean_gap(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.sum(jnp.abs(sums[0])) / sums[1]


def perplexity(loss: Callable[[jax.Array, Batch], jax.Array | Ratio]) -> Callable[[jax.Array, Batch], Sums]:
    """Makes the exponential of the mean of a loss, such as `cross_entropy`, over the examples or their positions."""
    return lambda logits, batch: Sums(_as_ratio(loss(logits, batch)), _exponential_mean)


def bits_per_character(
    loss: Callable[[jax.Array, Batch], jax.Array | Ratio],
) -> Callable[[jax.Array, Batch], Ratio]:
    """Makes the mean of a loss in nats, such as `cross_entropy`, in bits."""

    def metric(logits: jax.Array, batch: Batch) -> Ratio:
        nats, number = _as_ratio(loss(logits, batch))
        return Ratio(nats / jnp.log(2.0), number)

    return metric


def _as_ratio(values: jax.Array | Ratio) -> Ratio:
    return values if isinstance(values, Ratio) else Ratio(values, jnp.ones(values.shape, jnp.int32))


def _exponential_mean(sums: Ratio) -> jax.Array:
    return jnp.exp(_mean(sums))


# --- numbers --------------------------------------------------------------------------------------


def absolute_error(outputs: jax.Array, batch: Batch) -> Sums:
    """Computes the mean absolute error of predictions, each a number or a mean over several; NaN over none."""
    return _mean_error(jnp.abs(outputs.reshape(batch["y"].shape) - batch["y"]))


def squared_error(outputs: jax.Array, batch: Batch) -> Sums:
    """Computes the mean squared error of predictions, each a number or a mean over several; NaN over none."""
    return _mean_error((outputs.reshape(batch["y"].shape) - batch["y"]) ** 2)


def _mean_error(values: jax.Array) -> Sums:
    # The mean over nobody is no number: 0 would be the best of all errors.
    return Sums(_as_ratio(_mean_of_outputs(values)), _mean)


def _mean(sums: Ratio) -> jax.Array:
    return sums.numerator / sums.denominator


# --- sums -----------------------------------------------------------------------------------------


def _mean_of_outputs(values: jax.Array) -> jax.Array:
    return values if values.ndim == 1 else values.mean(axis=tuple(range(1, values.ndim)))


def _mean_of_positions(values: jax.Array) -> jax.Array | Ratio:
    return values if values.ndim == 1 else Ratio(_positions(values), _positions(jnp.ones(values.shape, bool)))


def _positions(values: jax.Array) -> jax.Array:
    dtype = jnp.int32 if values.dtype == bool else values.dtype
    return values.sum(axis=tuple(range(1, values.ndim)), dtype=dtype)


def _part(found: jax.Array, of: jax.Array) -> jax.Array:
    return jnp.where(of == 0, 0.0, found / jnp.where(of == 0, 1, of))
