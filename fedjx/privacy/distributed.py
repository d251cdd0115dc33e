"""Distributed differential privacy: each client adds a share of the noise, and the server sees secure sums alone.

Kairouz, Liu & Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation"
(arXiv 2102.06387, algorithms 1 and 2), and Agarwal, Kairouz & Liu, "The Skellam Mechanism for Differentially Private
Federated Learning" (arXiv 2110.04995).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.aggregation.norms import within_norm
from fedjx.aggregation.rotate import hadamard_transform, random_signs
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_secure_sum
from fedjx.core.language.placed import FederatedValue, check_numeric, federated_map
from fedjx.core.language.trees import cast_like
from fedjx.privacy.events import Event, Mechanism, Shared
from fedjx.privacy.integer_loss import LOG_INVERSE_BETA, norms_after_rounding
from fedjx.privacy.integer_noise import discrete_gaussian, skellam

_MOST_ROUNDINGS = 64  # each is accepted with a probability of 0.39 at least: all fail once in 10^13 clients


def distributed_dp_mean(
    *,
    clip: float,
    noise_multiplier: float,
    expected_clients: float,
    num_elements: int,
    min_clients: int,
    max_clients: int,
    num_bits: int = 16,
    num_stddevs: float = 4.0,
    mechanism: Mechanism = "skellam",
    log_inverse_beta: float = LOG_INVERSE_BETA,
) -> Aggregator:
    """Averages as `dp_mean`, without a server that sees a client's value, or a sum without noise.

    Each client clips its value, rotates it at random, all alike, rounds it at random to a grid, and adds its share of
    integer noise, a ``max_clients``-th of the whole. The server sees the sum modulo ``2^num_bits``, adds the shares
    of those who are missing, so that the noise on the result does not tell how many there were, and rotates back.

    Args:
      clip: The most that the joint L2 norm of a client's value may be; more is scaled to it.
      noise_multiplier: Standard deviation of the noise on the sum, of ``max_clients`` shares, in clips; in the sum that
        the server sees there are ``min_clients`` of these at least. 0 makes none.
      expected_clients: The number to divide by, as for `dp_mean`.
      num_elements: The most elements of a client's value, over all leaves. Values are padded to the next power of two,
        of which what they cost depends a little; each client sends so many integers.
      min_clients: The fewest of which a sum is shown, the threshold of the secure protocol; the result of fewer is 0.
      max_clients: The most; the result of more is NaN. With `poisson_sampler`, take both some eight standard deviations
        from `expected_clients`, or an account is infinite: one client could decide whether anything is shown.
      num_bits: Of each integer on its way, at most 24. More make finer steps, and no difference from 20 on.
      num_stddevs: So many standard deviations of an element of the sum fit into the ring. What wraps around is wrong,
        and as private as all else.
      log_inverse_beta: ``ln(1/beta)``: clients round again what has become too long, at most a part of beta of all
        (proposition 22). It makes what they add a little smaller: a mean of a hundred does not show it, but the sum of
        many thousands is off by more than its noise. With 20 it is not, and where steps are coarse there is more noise.
      mechanism: "skellam", whose shares add up exactly, or "discrete_gaussian".

    Returns:
      An `Aggregator` without a state, ``secure``, whose ``event`` is that of the sum. A client with weight whose norm
      is not finite adds nothing but noise. It measures ``clip`` and ``noise_stddev``, of the noise on an element of
      the result; and in ``not_private`` what is exact: ``num_clients``, ``num_clipped``, ``num_non_finite``,
      ``too_few`` and ``overflow``.

    Raises:
      ValueError: If a number is out of range, the ring is too small for so many clients, or steps are so fine that the
        noise could not be drawn.

    >>> private = distributed_dp_mean(
    ...     clip=1.0, noise_multiplier=0.1, expected_clients=3, num_elements=2, min_clients=2, max_clients=3
    ... )
    >>> value, weight = fedjx.Clients.of(np.float32([[0.6, 0.8]] * 3)), fedjx.Clients.of(np.ones(3))
    >>> _, result, measured = private.next(jax.random.key(0), private.init(jnp.zeros(2)), value, weight)
    >>> result.shape, round(float(measured["noise_stddev"]), 4)
    ((2,), 0.0333)
    """
    check_choice(("skellam", "discrete_gaussian"), mechanism=mechanism)
    check_number("(0, inf)", log_inverse_beta=log_inverse_beta)
    of_clients = {"min_clients": min_clients, "max_clients": max_clients}
    _check(clip, noise_multiplier, expected_clients, num_elements, **of_clients)
    step = _step(clip, noise_multiplier, num_elements, max_clients, num_bits, num_stddevs)
    stddev = noise_multiplier * clip / math.sqrt(max_clients)
    shared = Shared(mechanism, stddev / step, **of_clients, clip=clip / step, size=_padded(num_elements))
    shared = shared._replace(log_inverse_beta=log_inverse_beta)
    jax.eval_shape(lambda: _share(shared, jax.random.key(0)))  # refuses what could not be drawn

    def client(signs: jax.Array, key: jax.Array, value: PyTree, weight: jax.Array) -> tuple[jax.Array, Metrics]:
        flat, counts = _clipped(clip, value)
        key_round, key_noise = jax.random.split(key)
        rotated = hadamard_transform(jnp.pad(flat, (0, shared.size - flat.size)) * random_signs(signs, shared.size))
        code = _rounded(key_round, rotated / step, shared) + _share(shared, key_noise)
        return jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), (code, counts))

    def server(signs: jax.Array, key: jax.Array, total: jax.Array, counts: Metrics) -> tuple[jax.Array, Metrics]:
        number = counts["num_clients"]
        filled = _centred(total + _shares(shared, key, max_clients - number), num_bits)
        turned_back = hadamard_transform(filled.astype(jnp.float32) * step) * random_signs(signs, shared.size)
        too_few, overflow = number < min_clients, number > max_clients
        result = jnp.where(too_few, 0, jnp.where(overflow, jnp.nan, turned_back / expected_clients))
        measured = {"clip": clip, "noise_stddev": noise_multiplier * clip / expected_clients}
        not_private = {**counts, "too_few": too_few, "overflow": overflow}
        return result, {**jax.tree.map(jnp.float32, measured), "not_private": not_private}

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        check_numeric("a private mean", value, (jnp.floating,), "real floating-point", "Map them to float32 first.")
        member = value.type.member
        _check_size(num_elements, member)
        keys = federated_map(lambda key: tuple(jax.random.split(key, 3)), key)
        sent = federated_map(client, federated_broadcast(keys[0]), federated_keys(keys[1]), value, weight)
        total, counts = federated_secure_sum(sent[0], num_bits=num_bits), federated_secure_sum(sent[1])
        shown = federated_map(server, keys[0], keys[2], total, counts)
        return state, federated_map(lambda flat: _unflattened(member, flat), shown[0]), shown[1]

    def init(member: PyTree) -> tuple[()]:
        return _check_size(num_elements, member)

    return Aggregator(init, next, secure=True, event=Event(noise_multiplier, shared, clip))


def _check(
    clip: float, noise_multiplier: float, expected_clients: float, num_elements: int, min_clients: int, max_clients: int
) -> None:
    check_number("(0, inf)", "Choose a finite clip, such as the median norm.", clip=clip)
    check_number("[0, inf)", noise_multiplier=noise_multiplier)
    check_number("(0, inf)", "Pass the expected size of a cohort.", expected_clients=expected_clients)
    check_integer("[1, inf)", num_elements=num_elements, max_clients=max_clients)
    check_integer(f"[1, {max_clients}]", "Pass the threshold of the protocol.", min_clients=min_clients)


def _step(
    clip: float, noise_multiplier: float, num_elements: int, max_clients: int, num_bits: int, num_stddevs: float
) -> float:
    """Returns the least step of the grid with which the sum fits into the ring (arXiv 2102.06387, section 5)."""
    check_integer("[2, 24]", "Floats have no finer steps.", num_bits=num_bits)
    check_number("(0, inf)", num_stddevs=num_stddevs)
    room = 4.0**num_bits - max_clients * num_stddevs**2
    if room <= 0:
        raise ValueError(
            f"the rounding errors of all clients must fit into the ring; got {num_bits=}, {max_clients=} and "
            f"{num_stddevs=}. Use more than {math.log2(max_clients * num_stddevs**2) / 2:.0f} bits, better 16."
        )
    variance = clip**2 * (max_clients**2 / _padded(num_elements) + noise_multiplier**2)
    return 2 * num_stddevs * math.sqrt(variance / room)


def _padded(num_elements: int) -> int:
    return 1 << (num_elements - 1).bit_length()


def _clipped(clip: float, value: PyTree) -> tuple[jax.Array, Metrics]:
    """Returns one client's value, clipped, as a vector, and what is counted; zeros if its norm is not finite."""
    clipped, norm = within_norm(value, clip)
    finite, leaves = jnp.isfinite(norm), [x.astype(jnp.float32).ravel() for x in jax.tree.leaves(clipped)]
    counts = {"num_clients": jnp.bool_(True), "num_clipped": finite & (norm > clip), "num_non_finite": ~finite}
    return jnp.concatenate(leaves), {name: count.astype(jnp.int32) for name, count in counts.items()}


def _rounded(key: jax.Array, x: jax.Array, shared: Shared) -> jax.Array:
    """Rounds at random, without bias, until the norm is within its bound; in the end towards 0, which is."""
    most = norms_after_rounding(shared.clip, shared.size, log_inverse_beta=shared.log_inverse_beta).l2
    whole = jnp.floor(x)  # the fraction is exact; a random number added to a large float would be rounded away

    def draw(at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, _, _ = at
        drawn = whole + (jax.random.uniform(jax.random.fold_in(key, number), x.shape, jnp.float32) < x - whole)
        return number + 1, drawn, jnp.sum(drawn**2) <= most**2

    def goes_on(at: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return ~at[2] & (at[0] < _MOST_ROUNDINGS)

    _, drawn, fits = lax.while_loop(goes_on, draw, (jnp.int32(0), whole, jnp.bool_(False)))
    return jnp.where(fits, drawn, jnp.trunc(x)).astype(jnp.int32)


def _share(shared: Shared, key: jax.Array) -> jax.Array:
    """Draws one share of the noise, int32 ``[size]``."""
    if shared.mechanism == "skellam":
        return skellam(key, shared.stddev**2, (shared.size,))
    return discrete_gaussian(key, shared.stddev, (shared.size,))


def _shares(shared: Shared, key: jax.Array, number: jax.Array) -> jax.Array:
    """Draws the sum of so many shares."""
    zeros = jnp.zeros(shared.size, jnp.int32)
    return lax.fori_loop(0, number, lambda k, sum_: sum_ + _share(shared, jax.random.fold_in(key, k)), zeros)


def _centred(x: jax.Array, num_bits: int) -> jax.Array:
    """Returns integers modulo ``2^num_bits``, around 0."""
    unused = jnp.int32(32 - num_bits)
    return x << unused >> unused


def _unflattened(member: PyTree, flat: jax.Array) -> PyTree:
    leaves, treedef = jax.tree.flatten(member)
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + leaf.size)
    parts = [flat[a:b].reshape(x.shape) for a, b, x in zip(ends, ends[1:], leaves, strict=False)]
    return cast_like(member, treedef.unflatten(parts))


def _check_size(num_elements: int, member: PyTree) -> tuple[()]:
    size = sum(math.prod(np.shape(x)) for x in jax.tree.leaves(member))
    if size > num_elements:
        raise ValueError(
            f"noise was made for values of at most {num_elements=}; got one of {size}. Pass num_elements={size}."
        )
    return ()
