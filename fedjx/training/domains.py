"""Losses by domain, and a server optimizer that moves the domains' weights towards the higher ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.trees import number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio
from fedjx.training.client import local_evaluate


def domain_losses(model: Model, params: PyTree, data: Sequence, feature: str, num_domains: int) -> Ratio:
    """Sums one client's losses, and counts its examples, by domain: a `Ratio` of ``[D]`` and int32 ``[D]``."""

    def metrics(params: PyTree, batch: Batch) -> dict[str, Ratio]:
        loss = one_each(model.metrics(params, batch)["loss"])
        own = [batch[feature] == i for i in range(num_domains)]
        return {str(i): Ratio(jnp.where(own[i], loss, 0), own[i]) for i in range(num_domains)}

    sums = local_evaluate(model._replace(metrics=metrics), params, data)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *[sums[str(i)] for i in range(num_domains)])


def one_each(losses: PyTree) -> jax.Array:
    """Returns the losses of examples that count 1 each, and refuses others: domains have their own weights."""
    if isinstance(losses, Ratio):
        raise TypeError("agnostic averaging weights examples by their domains; got a loss as Ratio. Return [B].")
    return losses


class WorstDomains(NamedTuple):
    """The server optimizer's state, the weights l ``[D]``, and the last rounds' examples ``[window, D]``."""

    inner: PyTree
    domain_weights: jax.Array
    num_examples: jax.Array


def worst_domains(
    server_optimizer: optax.GradientTransformation, domain_weights: Array, learning_rate: float, window: int
) -> optax.GradientTransformationExtraArgs:
    """Wraps a server optimizer to move domain weights towards the higher losses by exponentiated gradients."""
    inner = optax.with_extra_args_support(server_optimizer)

    def init(params: PyTree) -> WorstDomains:
        weights = jnp.asarray(domain_weights, number_dtype(params))
        return WorstDomains(inner.init(params), weights, jnp.ones((window, len(weights)), weights.dtype))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, metrics: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, WorstDomains]:
        updates, inner_state = inner.update(updates, state.inner, params, metrics=metrics, **extra)
        moved = jax.nn.softmax(jnp.log(state.domain_weights) + learning_rate * metrics["domain_loss"])
        weights = moved.astype(state.domain_weights.dtype)
        seen = jnp.concatenate([state.num_examples[1:], metrics["domain_examples"][None].astype(weights.dtype)])
        return updates, WorstDomains(inner_state, weights, seen)

    return optax.GradientTransformationExtraArgs(init, update)
