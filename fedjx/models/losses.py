"""Losses of a network's outputs, each with the labels that it takes and with metrics that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.models import metrics
from fedjx.models.inputs import Feature, check_batch
from fedjx.models.model import Batch, Metric, PerExample, Ratio

OutputMetric = Callable[[jax.Array, Batch], Metric]  # a metric of a network's outputs and the batch


class Loss(NamedTuple):
    """A loss of the outputs, of the labels ``batch["y"]``; call it: ``loss(outputs, batch)``.

    Attributes:
      of: ``(outputs [B, ...], labels [B, ...]) -> [B]`` or ``Ratio([B], [B])``; NaN for labels out of range.
      labels: From the shape of one example's outputs, None for an axis of any length, to the labels that go with them.
      metrics: By name, metrics that fit, ``(outputs, batch) -> [B]``, `Ratio` or `Sums`.
    """

    of: Callable[[jax.Array, jax.Array], PerExample]
    labels: Callable[[tuple[int | None, ...]], Feature]
    metrics: Mapping[str, OutputMetric]

    def __call__(self, outputs: PyTree, batch: Batch) -> PerExample:
        """Computes the loss of each example, and refuses labels of another shape or dtype."""
        if not hasattr(outputs, "shape"):
            raise TypeError(
                f"this loss takes one array of outputs; got {jax.tree.map(jnp.shape, outputs)}. Give "
                "from_flax(loss=...) a function of all of them."
            )
        check_batch({"y": self.labels(outputs.shape[1:])}, batch)
        return self.of(outputs, batch["y"])


def softmax_cross_entropy(*, class_weights: Sequence[float] | None = None, ignored: int | None = None) -> Loss:
    """Makes the softmax cross entropy of logits ``[B, K]`` and labels int ``[B]`` in ``0 .. K - 1``.

    Of logits ``[B, T, K]`` and labels ``[B, T]`` it is a mean over all T, as of characters.

    Args:
      class_weights: ``[K]``, how much an example of each class counts. The loss is then the weighted mean.
      ignored: A label that says to leave an example, or a position, out, such as -100.

    >>> loss = softmax_cross_entropy(ignored=-100)
    >>> print(loss(jnp.zeros((3, 2)), {"y": jnp.array([0, 1, -100])}))
    Ratio(numerator=Array([0.6931472, 0.6931472, 0.       ], dtype=float32), denominator=Array([1, 1, 0], dtype=int32))
    """
    if class_weights is not None:
        check_number("[0, inf)", class_weights=class_weights)

    def labels(shape: tuple[int | None, ...]) -> Feature:
        if not shape or shape[-1] is None:
            raise ValueError("logits need an axis of classes, [B, K]; got [B]. Take sigmoid_cross_entropy for one.")
        advice = (
            "Renumber the labels from 0, give the model more classes, or say with "
            "softmax_cross_entropy(ignored=...) which label to leave out; for labels of -1 and 1 there is hinge."
        )
        return Feature(shape[:-1], np.integer, 0, shape[-1] - 1, ignored, advice=advice)

    def loss(logits: jax.Array, y: jax.Array) -> PerExample:
        known = (y >= 0) & (y < logits.shape[-1])
        counts = jnp.ones(y.shape, bool) if ignored is None else y != ignored
        safe = jnp.where(known, y, 0).astype(jnp.int32)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
        values = jnp.where(known, values, jnp.nan)
        if ignored is None and class_weights is None and y.ndim == 1:
            return values
        values = jnp.where(counts, values, 0)
        if class_weights is not None:
            if len(class_weights) != logits.shape[-1]:
                raise ValueError(
                    f"class_weights need one number for each of {logits.shape[-1]} classes; got "
                    f"{len(class_weights)}. Give as many."
                )
            counts = jnp.where(counts, jnp.asarray(class_weights, values.dtype)[safe], 0)
            values = values * counts
        return Ratio(_over_positions(values), _over_positions(counts))

    fitting = metrics.accuracy if ignored is None else metrics.accuracy_without(ignored)
    return Loss(loss, labels, MappingProxyType({"accuracy": fitting}))


cross_entropy = softmax_cross_entropy()


def _over_positions(values: jax.Array) -> jax.Array:
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.inexact) else jnp.int32
    return values.sum(axis=tuple(range(1, values.ndim)), dtype=dtype)


def _alike(low: float | None = None, high: float | None = None, **more: PyTree) -> Callable[..., Feature]:
    """Makes the labels of a loss that compares them with outputs of the same shape; one output needs no axis."""
    return lambda shape: Feature(() if shape == (1,) else shape, np.number, low, high, **more)


def _compared(of: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes a loss ``[B]`` of one for each output: their mean."""

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        values = of(outputs.reshape(y.shape), y.astype(outputs.dtype))
        return values.mean(axis=tuple(range(1, values.ndim)))

    return loss


def _one_hot(logits: jax.Array, y: jax.Array) -> jax.Array:
    values = optax.softmax_cross_entropy(logits, y.astype(logits.dtype))
    return jnp.where(((y >= 0) & (y <= 1)).all(axis=-1), values, jnp.nan)


def _sigmoid(logits: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where((y >= 0) & (y <= 1), optax.sigmoid_binary_cross_entropy(logits, y), jnp.nan)


def _hinge(scores: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(y) == 1, jnp.maximum(1 - y * scores, 0), jnp.nan)


_ERRORS: Mapping[str, OutputMetric] = MappingProxyType(
    {"mean_absolute_error": metrics.absolute_error, "mean_squared_error": metrics.squared_error}
)
one_hot_cross_entropy = Loss(
    _one_hot,
    lambda shape: Feature(shape, np.number, 0, 1, advice="Give each class a share from 0 to 1."),
    MappingProxyType({"accuracy": metrics.one_hot_accuracy}),
)
sigmoid_cross_entropy = Loss(
    _compared(_sigmoid),
    _alike(0, 1, advice="Label what is so with 1, and what is not with 0."),
    MappingProxyType({"accuracy": metrics.label_accuracy}),
)
hinge = Loss(
    _compared(_hinge),
    _alike(only=(-1, 1), advice="Label the two classes with -1 and 1: 2 * y - 1."),
    MappingProxyType({"accuracy": metrics.sign_accuracy}),
)
squared_error = Loss(_compared(lambda outputs, y: (outputs - y) ** 2), _alike(), _ERRORS)
absolute_error = Loss(_compared(lambda outputs, y: jnp.abs(outputs - y)), _alike(), _ERRORS)


def huber(*, delta: float = 1.0) -> Loss:
    """Makes Huber's loss of predictions: half the squared error up to delta, linear beyond.

    >>> huber()(jnp.array([1.0, 5.0]), {"y": jnp.array([0.0, 0.0])}).tolist()
    [0.5, 4.5]
    """
    check_number("(0, inf)", delta=delta)
    return Loss(_compared(lambda outputs, y: optax.huber_loss(outputs, y, delta=delta)), _alike(), _ERRORS)
