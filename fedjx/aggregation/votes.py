"""What the robust rules share: who takes part, with how much weight, and all members as one matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_collect, federated_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, check_numeric, federated_map, value_at
from fedjx.core.language.trees import all_finite, as_float, number_dtype
from fedjx.core.language.types import CLIENTS
from fedjx.core.language.values import Sequence

Rule = Callable[[jax.Array, jax.Array], jax.Array]


class Vote(NamedTuple):
    """One client's part in a robust rule.

    Attributes:
      value: Its value; zeros if it takes no part.
      weight: float32 ``[]``; 0 if it takes no part.
      non_finite: int32 ``[]``; 1 if it was left out for a number that is not finite.
    """

    value: PyTree
    weight: jax.Array
    non_finite: jax.Array


def votes(value: PyTree, weight: PyTree, *, weighted: bool) -> FederatedValue:
    """Decides at every client whether, and with how much weight, it takes part; a `Vote` at CLIENTS.

    A client of weight 0 (or less), or with a number that is not finite, takes no part.

    Args:
      value: Floats at CLIENTS.
      weight: A number per client.
      weighted: Whether a client counts by its weight, or all that take part count alike. A weight is what a
        client says of itself: with weights, a rule survives a share of the weight, not of the clients.
    """
    value = value_at("a robust rule", value, CLIENTS, "Aggregators reduce values at CLIENTS.")
    check_numeric("a robust rule", value, (jnp.floating,), "floating-point", "Map the members to float32 first.")

    def vote(value: PyTree, weight: jax.Array) -> Vote:
        weight = as_float(weight)
        finite = all_finite((weight, value))
        counts = finite & (weight > 0)
        value = jax.tree.map(lambda x: jnp.where(counts, x, jnp.zeros_like(x)), value)
        weighs = jnp.where(counts, weight if weighted else jnp.ones_like(weight), jnp.zeros_like(weight))
        return Vote(value, weighs, (~finite & ~(weight <= 0)).astype(jnp.int32))

    return federated_map(vote, value, weight)


def measurements(vote: FederatedValue, *, num_needed: int = 0) -> FederatedValue:
    """Counts who was left out and, where a rule needs a number of clients, how many are missing, at SERVER."""
    counts = {"num_non_finite_clients": federated_sum(vote.non_finite)}
    if not num_needed:
        return federated_zip(counts)
    number = federated_sum(federated_map(lambda weight: (weight > 0).astype(jnp.int32), vote.weight))
    missing = federated_map(lambda number: jnp.maximum(num_needed - number, 0), number)
    return federated_zip({**counts, "num_missing_clients": missing})


def rule_of_members(rule: Rule, *, weighted: bool = False, num_needed: int = 0) -> Aggregator:
    """Makes an aggregator of a rule that needs all members at once.

    Args:
      rule: ``([clients, d], [clients]) -> [d]``: wide members and their weights; a row of weight 0 is zeros and is
        to change nothing. At least one row weighs.
      weighted: As in `votes`.
      num_needed: For how many clients the rule's guarantee holds at least; if given, ``num_missing_clients`` is
        measured, for only a round knows how many take part.

    The members are collected: memory grows with the cohort. The result is 0 if no client takes part.
    """

    def report(members: Sequence) -> PyTree:
        value, weight = members.elements
        real = lambda x: jnp.where(members.mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))  # noqa: E731
        weight, leaves = real(weight), [real(x) for x in jax.tree.leaves(value)]
        dtype = number_dtype(leaves)
        matrix = jnp.concatenate([x.reshape(len(weight), -1).astype(dtype) for x in leaves], axis=1)
        one = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], dtype), value)
        result = jnp.where(jnp.any(weight > 0), rule(matrix, weight), 0.0)
        return jax.tree.map(lambda r, x: r.astype(x.dtype), ravel_pytree(one)[1](result), value)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=weighted)
        members = federated_collect((vote.value, vote.weight))
        return state, federated_map(report, members), measurements(vote, num_needed=num_needed)

    return Aggregator(lambda member: (), next)
