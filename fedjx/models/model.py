"""What a model is, and the one place where per-example values become sums and means.

A batch is a dict of features ``[B, ...]`` with ``"mask"``, bool ``[B]``. A model gives one
value per example; the functions below apply the mask, and every mean or sum of a loss or a
metric is theirs. Only batch statistics, which go over the examples of a batch, are the
model's own to mask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.trees import as_float, wide_dtype
from fedjx.core.language.values import MASK
from fedjx.models.inputs import AnySpec

Batch = Mapping[str, jax.Array]  # features by name, and the mask


class Ratio(NamedTuple):
    """A metric that is the quotient of two sums, such as a perplexity per token.

    Attributes:
      numerator: Per-example values ``[B]``, or their sum ``[]``.
      denominator: Likewise; what one example counts for.
    """

    numerator: jax.Array
    denominator: jax.Array


def _unchanged(sums: PyTree) -> PyTree:
    return sums


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["finish"])
@dataclasses.dataclass(frozen=True)
class Sums:
    """A metric that is made of sums over the examples: a count, a confusion matrix, the area under a curve.

    Attributes:
      values: A pytree of per-example values ``[B, ...]``, or of their sums ``[...]``.
      finish: From the sums over all examples to the metric, a pytree of arrays; the sums themselves if not given. Give
        the same function each time, no lambda made at every call: it is part of the metric's type.
    """

    values: PyTree
    finish: Callable[[PyTree], PyTree] = _unchanged


PerExample = jax.Array | Ratio  # a loss of the examples of a batch
Metric = PerExample | Sums  # a metric of the examples of a batch
MetricSums = Ratio | Sums  # the same, summed


class Variables(NamedTuple):
    """The parameters of a model with batch statistics, in place of plain ``params``.

    Attributes:
      params: What is trained by gradients.
      batch_stats: What is computed from the data, such as the running means and variances of batch normalisation: no
        gradient reaches it, and no server optimizer.
    """

    params: PyTree
    batch_stats: PyTree


class LossWithStats(NamedTuple):
    """What the loss of a model with batch statistics returns.

    Attributes:
      loss: ``[B]``.
      batch_stats: As in `Variables`, after this batch.
    """

    loss: PerExample
    batch_stats: PyTree


class Model(NamedTuple):
    """A model as three pure functions, and two that are optional.

    Attributes:
      init: ``key -> params``; `Variables` if the model has batch statistics.
      loss: ``(params, batch, key) -> [B]``, or ``Ratio([B], [B])``; the loss of each example in training mode, with
        dropout drawn from the key. ``LossWithStats`` if the model has batch statistics.
      metrics: ``(params, batch) -> {name: [B], Ratio([B], [B]) or Sums([B, ...])}`` in evaluation mode,
        ``"loss"`` among them.
      apply: ``(params, batch) -> outputs``, ``[B, ...]``, in evaluation mode: predictions, for example to distil. It
        takes a batch as the others do, since which features a network reads, and how scaled, is the model's own; it
        reads no labels.
      input_spec: By name, which features the model takes, as a `Feature`; or a function that makes this of the types
        of an example's features, for what depends on the network. Data that are something else are refused when they
        first meet the model.
    """

    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Batch, jax.Array], PyTree]
    metrics: Callable[[PyTree, Batch], dict[str, PyTree]]
    apply: Callable[[PyTree, Batch], PyTree] | None = None
    input_spec: AnySpec | None = None


class LossSums(NamedTuple):
    """What `batch_loss` returns beside the mean.

    Attributes:
      sums: The loss, summed over the valid examples, as `finalize_metrics` takes it.
      batch_stats: As in `Variables`, after this batch; None without.
    """

    sums: dict[str, Ratio]
    batch_stats: PyTree


def batch_loss(
    model: Model, *, carries_stats: bool = False
) -> Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, LossSums]]:
    """Returns ``(params, batch, key) -> (mean, LossSums)``: a model's mean loss over the valid examples of a batch.

    A training step differentiates it, ``jax.grad(batch_loss(model), has_aux=True)``. The mean, float32 ``[]``, is 0
    when no example is valid.

    Args:
      model: Its loss is one number per example.
      carries_stats: Whether the caller puts the batch statistics into the next step's parameters, by
        `with_batch_stats`. If not, a model that has some is refused, or they would be lost in silence.

    >>> model = fedjx.models.linear(2, input_shape=(3,))
    >>> batch = {"x": jnp.ones((2, 3)), "y": jnp.array([0, 1]), "mask": jnp.array([True, False])}
    >>> params, key = model.init(jax.random.key(0)), jax.random.key(1)
    >>> gradient, (sums, _) = jax.grad(batch_loss(model), has_aux=True)(params, batch, key)
    >>> int(sums["loss"].denominator)
    1
    """

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossSums]:
        values, stats = model.loss(params, batch, key), None
        if carries_stats and isinstance(values, LossWithStats):
            values, stats = values
        summed = _loss_sum(values, batch[MASK])
        return _divide(summed), LossSums({"loss": summed}, stats)

    return loss


def map_loss(fn: Callable[[jax.Array, jax.Array], jax.Array], losses: PyTree) -> PyTree:
    """Changes the losses of a batch, and nothing of how much each example counts.

    Args:
      fn: From what the examples add to the loss, ``[B]``, and how much they count, to what they add instead. A term
        of the mean loss is ``lambda loss, count: loss + count * term``.
      losses: ``[B]``, of examples that count 1, or ``Ratio([B], [B])``.

    >>> map_loss(lambda loss, count: loss + count * 10, Ratio(jnp.array([1.0]), jnp.array([2.0])))
    Ratio(numerator=Array([21.], dtype=float32), denominator=Array([2.], dtype=float32))
    """
    if isinstance(losses, Ratio):
        return Ratio(fn(*losses), losses.denominator)
    return fn(losses, jnp.int32(1))


def with_batch_stats(params: PyTree, batch_stats: PyTree) -> PyTree:
    """Replaces the batch statistics of `Variables`, those that it has; returns other parameters as they are.

    >>> with_batch_stats(Variables({"w": 1.0}, {"mean": 0.0, "var": None}), {"mean": 2.0, "var": 3.0})
    Variables(params={'w': 1.0}, batch_stats={'mean': 2.0, 'var': None})
    """
    if not isinstance(params, Variables):
        return params
    present = jax.tree.map(
        lambda old, new: None if old is None else new, params.batch_stats, batch_stats, is_leaf=lambda x: x is None
    )
    return Variables(params.params, present)


def sum_metrics(values: Mapping[str, PyTree], mask: Array) -> dict[str, MetricSums]:
    """Sums per-example metrics over the valid examples of a batch.

    Guarantees: The sums add over batches and clients to those of the union. Booleans and
    integers are summed as int32, exactly up to 2**31; floats in float32. What stands where
    the mask is False, NaN included, has no influence.

    Args:
      values: By name, per-example values ``[B]`` (for a mean), ``Ratio([B], [B])`` or `Sums` of ``[B, ...]``.
      mask: bool ``[B]``; False marks padding.

    Returns:
      By name, ``Ratio([], [])``, or `Sums` of ``[...]``; the denominator of a mean is the number of valid examples.

    Raises:
      ValueError: If a value does not have one number per example, or one array in `Sums`.

    >>> sum_metrics({"accuracy": jnp.array([True, False, True])}, jnp.array([True, True, False]))
    {'accuracy': Ratio(numerator=Array(1, dtype=int32), denominator=Array(2, dtype=int32))}
    """
    return {name: _sum_metric(name, value, mask) for name, value in values.items()}


def finalize_metrics(sums: Mapping[str, MetricSums]) -> dict[str, PyTree]:
    """Makes metrics of their sums.

    Args:
      sums: By name, what `sum_metrics` returned, added over batches and clients.

    Returns:
      By name, of a ratio float32 ``[]``: 0 where the denominator is 0, but for the metric ``"loss"``, which is NaN
      there: 0 would be the best loss of all. Of `Sums`, what it makes of them.

    >>> float(finalize_metrics({"accuracy": Ratio(3, 4)})["accuracy"])
    0.75
    >>> {name: float(x) for name, x in finalize_metrics({"accuracy": Ratio(0, 0), "loss": Ratio(0, 0)}).items()}
    {'accuracy': 0.0, 'loss': nan}
    """
    return {name: _finished(x, jnp.nan if name == "loss" else 0.0) for name, x in sums.items()}


def mean_loss(loss_values: PyTree, mask: Array) -> jax.Array:
    """Averages per-example losses over the valid examples.

    Args:
      loss_values: ``[B]``; what `Model.loss` returned.
      mask: bool ``[B]``; False marks padding.

    Returns:
      float32 ``[]``; 0 when no example is valid.

    Raises:
      ValueError: If there is not one loss per example.

    >>> float(mean_loss(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    return _divide(_loss_sum(loss_values, mask))


def _loss_sum(values: PyTree, mask: Array) -> Ratio:
    summed = _sum_metric("loss", values, mask)
    if isinstance(summed, Sums):
        raise TypeError("a loss is one number per example, or a Ratio; got Sums. Return [B].")
    if not jnp.issubdtype(summed.numerator.dtype, jnp.floating):
        raise TypeError(
            f"a loss is a floating-point number per example; got one that adds up to {summed.numerator.dtype}, which "
            "has no gradient. Return what is to be small, and an accuracy as a metric."
        )
    return summed


def _sum_metric(name: str, value: PyTree, mask: Array) -> MetricSums:
    if isinstance(value, Ratio):
        return Ratio(*(_masked_sum(f"{name}.{field}", x, mask) for field, x in value._asdict().items()))
    if isinstance(value, Sums):
        return Sums(jax.tree.map(lambda x: _masked_sum(name, x, mask, of_arrays=True), value.values), value.finish)
    return Ratio(_masked_sum(name, value, mask), jnp.sum(mask, dtype=jnp.int32))


def _masked_sum(name: str, value: PyTree, mask: Array, *, of_arrays: bool = False) -> jax.Array:
    if isinstance(value, LossWithStats):
        raise TypeError(
            f"a model with batch statistics needs an algorithm that carries them; got {name} as LossWithStats. "
            "Train with local_train, or freeze the statistics (from_flax)."
        )
    if not hasattr(value, "shape"):
        raise TypeError(
            f"a loss or metric must be one array [B], or a Ratio of two; got {name} as {type(value).__name__}. Return "
            "one number per example; of a loss of several parts, return their sum."
        )
    value, mask = jnp.asarray(value), jnp.asarray(mask)
    if (value.shape[:1] if of_arrays else value.shape) != mask.shape:
        raise ValueError(
            f"a loss or metric must be one number per example, of the shape of the mask; got {name} with "
            f"{value.shape=} and {mask.shape=}. Return it without averaging over the batch, and reduce every "
            "axis after the first; for metrics that are arrays, return Sums."
        )
    dtype = wide_dtype(value.dtype) if jnp.issubdtype(value.dtype, jnp.inexact) else jnp.int32
    valid = mask.reshape(mask.shape + (1,) * (value.ndim - 1))
    # `where`, not a product: NaN * 0 is NaN.
    return jnp.sum(jnp.where(valid, value.astype(dtype), 0), axis=0, dtype=dtype)


def _finished(value: MetricSums, of_nothing: float) -> PyTree:
    return value.finish(value.values) if isinstance(value, Sums) else _divide(value, of_nothing)


def _divide(ratio: Ratio, of_nothing: float = 0.0) -> jax.Array:
    numerator, denominator = map(as_float, ratio)
    # The inner `where` keeps the gradient finite too where the denominator is 0.
    return jnp.where(denominator == 0, of_nothing, numerator / jnp.where(denominator == 0, 1.0, denominator))
