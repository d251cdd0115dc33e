"""What methods with control variates take of a client's gradients, and add to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.core.language.names import PyTree
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.trees import cast_like, map_keeping, wide_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio, batch_loss
from fedjx.training.client import ClientUpdate, as_batches, drop_non_finite, no_loss


class LocalGradient(NamedTuple):
    """The gradient of a client's loss over all of its examples.

    Attributes:
      gradient: Of the mean loss; zero if there is no example.
      metrics: The loss, summed over the examples.
      num_examples: int32 ``[]``; how many examples the client has.
    """

    gradient: PyTree
    metrics: dict[str, Ratio]
    num_examples: jax.Array


def local_gradient(model: Model, params: PyTree, data: Sequence, key: jax.Array) -> LocalGradient:
    """Takes the gradient of a model's mean loss over all examples of one client, batch by batch.

    Args:
      model: As for `local_train`.
      params: Where the gradient is taken.
      data: As for `local_train`.
      key: Makes the model's dropout, batch by batch as in the steps of `local_train` without shuffling.

    Guarantees: The result depends neither on the order of the examples nor on their batches, if the loss is not
    random, nor on how far the data is padded.
    """
    _, key_loss = jax.random.split(key)
    batches = as_batches(data)
    num_examples = jnp.sum(batches.index >= 0, dtype=jnp.int32)

    def total(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Ratio]]:
        _, (sums, _) = batch_loss(model)(params, batch, key)
        return sums["loss"].numerator, sums

    def add(carry: PyTree, batch: Batch) -> PyTree:
        sums, t = carry
        found = jax.grad(total, has_aux=True)(params, batch, jax.random.fold_in(key_loss, t))
        return map_keeping(jnp.add, sums, found), t + 1

    wide = jax.tree.map(lambda w: jnp.zeros(w.shape, wide_dtype(w.dtype)), params)
    zero = wide, no_loss(model, params, batches, key_loss)
    (total_gradient, metrics), _ = sequence_reduce(add, (zero, jnp.int32(0)), Sequence(batches, data.length))
    number = metrics["loss"].denominator
    gradient = jax.tree.map(lambda g: g / jnp.where(number == 0, 1, number), total_gradient)
    return LocalGradient(cast_like(params, gradient), metrics, num_examples)


def gradient_update(model: Model) -> Callable[..., ClientUpdate]:
    """Returns the client update that is the `local_gradient`, unless it is not finite (`drop_non_finite`).

    It is ``(params, data, key, *, weight) -> ClientUpdate``, where ``weight`` makes the client's weight of its number
    of examples; a round gives it by name to a method's functions that take it.
    """

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, weight: Callable[[jax.Array], jax.Array]
    ) -> ClientUpdate:
        found = local_gradient(model, params, data, key)
        metrics = {**found.metrics, "num_examples": found.num_examples}
        return drop_non_finite(ClientUpdate(found.gradient, weight(found.num_examples), metrics))

    return client_update


def shift(correction: PyTree) -> optax.GradientTransformation:
    """Adds a correction to every gradient, as control variates do; to be chained before a client's optimizer."""
    return optax.stateless(lambda gradient, params: jax.tree.map(jnp.add, gradient, correction))


class GradientMean(NamedTuple):
    """How many gradients there were, and their mean, wide."""

    number: jax.Array
    mean: PyTree


def averaged() -> optax.GradientTransformation:
    """Passes gradients on as they are and keeps their mean in its state."""

    def init(params: PyTree) -> GradientMean:
        return GradientMean(jnp.int32(0), jax.tree.map(lambda w: jnp.zeros_like(w, wide_dtype(w.dtype)), params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, GradientMean]:
        del params
        number = state.number + 1
        mean = map_keeping(lambda m, g: m + (g - m) / number, state.mean, updates)
        return updates, GradientMean(number, mean)

    return optax.GradientTransformation(init, update)
