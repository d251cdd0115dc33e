"""Canary clients: they send what a server can recognise, to find out how much a run gives away of who was in it.

Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning" (arXiv 2302.03098).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from fedjx.aggregation.bounding import with_own
from fedjx.aggregation.mean import wrapped
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator, bounded_after
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Key, PyTree
from fedjx.core.language.operators import federated_client_ids, federated_keys
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float, map_keeping


def with_canaries(
    clients: Sequence[int] | np.ndarray,
    included: ArrayLike,
    *,
    norm: float,
    expected_clients: float,
    inner: Aggregator,
    seed: int | None = None,
) -> Aggregator:
    """Lets some clients send random directions instead of their values, and looks for these in the result.

    It goes into any algorithm that takes an aggregator, and is for an audit: what the canaries' own data would have
    taught is lost. Cohorts stay those of the sampler, and so does the account: a canary that is not included is drawn
    as any other, and has no weight.

    Args:
      clients: The canaries' ids.
      included: Which of them send their direction, bool ``[canaries]``: `coins`.
      norm: Of a direction; the clip of the inner aggregator.
      expected_clients: What the inner aggregator divides by.
      inner: What is audited.
      seed: Of one direction for the whole run. Directions are drawn anew in every round if it is not given, so that
        canaries do not disturb each other for long. Noise of a `tree` or `matrix` cancels in a direction that stays.

    Returns:
      An `Aggregator` with the inner one's state, account and measurements, and ``canary_scores``, float32 or wider
      ``[canaries]``: the result's inner product with each direction, of which a canary's full part is 1, and noise has
      the standard deviation ``noise_multiplier``. `canary_score` makes one score of those of all rounds.

    Guarantees: the scores are computed of the result alone, one after the other: in memory of one direction.

    Raises:
      ValueError: If a canary is named twice, or not every one has its flag.

    >>> private = fedjx.privacy.dp_mean(clip=1.0, noise_multiplier=0, expected_clients=4)
    >>> audited = with_canaries([7, 9], [True, False], norm=1.0, expected_clients=4, inner=private)
    >>> value, weight = (fedjx.Clients.of(np.ones(shape), ids=[7, 9]) for shape in ((2, 1000), 2))
    >>> _, _, measured = audited.next(jax.random.key(0), audited.init(jnp.zeros(1000)), value, weight)
    >>> measured["canary_scores"].round(1)
    Array([ 1., -0.], dtype=float32)
    """
    check_number("(0, inf)", norm=norm, expected_clients=expected_clients)
    inner, (ids, flags) = wrapped(inner), _canaries(clients, included)
    share = expected_clients / norm

    def round_key(key: Key) -> Key:
        # A stream of its own: the inner aggregator draws from the same key.
        return jax.random.fold_in(key if seed is None else jax.random.key(seed), 0x63616E61)

    def sent(value: PyTree, weight: jax.Array, client: jax.Array, key: Key) -> tuple[PyTree, jax.Array]:
        is_canary, is_out = (jnp.any(some == client) for some in (ids, ids[~flags]))
        flat = norm * _direction(key, sum(x.size for x in jax.tree.leaves(value)))
        unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), value))[1]
        value = map_keeping(lambda v, d: jnp.where(is_canary, d.astype(v.dtype), v), value, unravel(flat))
        return value, jnp.where(is_out, 0, weight)

    def scores(key: Key, result: PyTree) -> dict[str, jax.Array]:
        flat = ravel_pytree(jax.tree.map(as_float, result))[0]
        of_one = lambda client: jnp.sum(flat * _direction(jax.random.fold_in(key, client), flat.size))  # noqa: E731
        return {"canary_scores": share * lax.map(of_one, jnp.asarray(ids))}

    def each(key: FederatedValue, value: FederatedValue, weight: FederatedValue) -> FederatedValue:
        return federated_map(sent, value, weight, federated_client_ids(), federated_keys(federated_map(round_key, key)))

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        changed = each(key, value, weight)
        state, result, measured = inner.next(key, state, changed[0], changed[1])
        own = federated_map(scores, federated_map(round_key, key), result)
        return state, result, federated_map(with_own, measured, own)

    def to_inner(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        changed = each(key, value, weight)
        return key, state, changed[0], changed[1]

    return Aggregator(inner.init, next, bounded_after(inner, to_inner), inner.secure, inner.event)


def canary_score(rounds: ArrayLike, *, noise_multiplier: float, probability: float = 1.0) -> np.ndarray:
    """Makes one score of a canary's scores in all rounds: how much more likely they are if it was in the run.

    It is ``sum(log(1 - q + q exp((s - 1/2) / z^2)))``, the logarithm of the likelihood ratio for Gaussian noise of
    multiplier z and cohorts that a client is in with probability q; for q of 1 it orders canaries by their sum.

    Args:
      rounds: ``canary_scores``, ``[rounds, canaries]``.
      noise_multiplier: z. A bound is right whichever is taken; for noise that may have been left out, take less.
      probability: q.

    Returns:
      float64 ``[canaries]``, for `audit`.

    >>> canary_score([[1.0, 0.0], [0.0, 0.0]], noise_multiplier=0.5, probability=0.25).round(2)
    array([ 0.71, -0.49])
    """
    check_number("(0, inf)", "Take the least that there may be.", noise_multiplier=noise_multiplier)
    check_number("(0, 1]", probability=probability)
    exponents = (np.asarray(rounds, np.float64) - 0.5) / noise_multiplier**2
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-probability), np.log(probability) + exponents).sum(axis=0)


def _canaries(clients: Sequence[int] | np.ndarray, included: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    ids, flags = np.asarray(clients), np.asarray(included)
    is_named = ids.ndim == 1 and ids.dtype.kind in "iu" and len(np.unique(ids)) == len(ids) > 0
    if not is_named or flags.shape != ids.shape or flags.dtype != bool:
        raise ValueError(
            "canaries are ids that differ, with a flag for each; got clients of "
            f"{ids.dtype}{list(ids.shape)} and included {flags.dtype}{list(flags.shape)}. Pass range(100) and "
            "coins(100, seed=0), for example."
        )
    return ids.astype(np.int32), flags


def _direction(key: Key, size: int) -> jax.Array:
    drawn = jax.random.normal(key, (size,), jnp.float32)
    return drawn / jnp.sqrt(jnp.sum(jnp.square(drawn)))
