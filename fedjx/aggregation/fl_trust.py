"""FLTrust: clients count by how much they agree with an update from data that the server trusts.

Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping" (arXiv 2012.13995, equations 1 to 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjx.aggregation.norms import euclidean_norm
from fedjx.aggregation.votes import Vote, measurements, votes
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_client_ids, federated_mean, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float


def fl_trust(is_trusted: Callable[[jax.Array], ArrayLike]) -> Aggregator:
    """Averages the members, rescaled to the norm of a trusted update, by their cosine with it if that is positive.

    The server's own data enter as a client (or several, whose mean is taken) that is in every cohort: its update is
    then made by the same algorithm, from the same model. It is a measure for the others and no part of their mean.
    States no fraction: the result is never longer than the trusted update, nor does it point away from it, however
    many clients are malicious; but if hardly any is honest, one that agrees a little is all that counts. Memory is
    flat in the cohort: two passes over it, in each of which the clients compute their values.

    Weights say only who takes part: trust is the weight.

    Args:
      is_trusted: From a client's id, int32 ``[]``, to whether its data are the server's.

    Returns:
      An `Aggregator`. Its result is 0 without a trusted client, or if no client agrees with it.
    """

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=False)
        trusted = federated_map(is_trusted, federated_client_ids())
        reference = federated_mean(vote.value, federated_map(_only, vote.weight, trusted))
        judged = federated_map(_judge, vote, trusted, federated_broadcast(reference))
        trust = {"trust": federated_sum(judged.trust)}
        measured = federated_map(lambda counts, trust: {**counts, **trust}, measurements(vote), trust)
        return state, federated_mean(judged.value, judged.trust), measured

    return Aggregator(lambda member: (), next)


class _Judged(NamedTuple):
    value: PyTree
    trust: jax.Array


def _only(weight: jax.Array, trusted: ArrayLike) -> jax.Array:
    return jnp.where(trusted, weight, 0.0)


def _judge(vote: Vote, trusted: ArrayLike, reference: PyTree) -> _Judged:
    value, reference = (jax.tree.map(as_float, tree) for tree in (vote.value, reference))
    norm, reference_norm = euclidean_norm(value), euclidean_norm(reference)
    tiny = jnp.finfo(jnp.float32).tiny
    direction, towards = (
        jax.tree.map(lambda x, length=length: x / jnp.maximum(length, tiny), tree)
        for tree, length in ((value, norm), (reference, reference_norm))
    )
    cosine = optax.tree.vdot(direction, towards)
    sound = jnp.isfinite(norm) & ~jnp.asarray(trusted, bool)
    trust = jnp.where(sound, vote.weight * jnp.maximum(cosine, 0.0), 0.0)
    scaled = jax.tree.map(lambda d, x: (d * reference_norm).astype(x.dtype), direction, vote.value)
    return _Judged(scaled, trust)
