"""Attacks on what clients send, to test aggregators with.

`attacked` wraps an aggregator: the values of malicious clients are replaced before it sees them, so an attack works
in every algorithm that takes an aggregator. Attacks on what clients train on are in `fedjx.data.poison`. An update is
the initial minus the trained parameters, as algorithms here report it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from fedjx.aggregation.mean import wrapped
from fedjx.aggregation.norms import euclidean_norm
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator, bounded_after
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_client_ids,
    federated_keys,
    federated_mean,
    federated_sum,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float


class Scene(NamedTuple):
    """What an attack knows: the values that the clients would send, and who is malicious.

    Attributes:
      key: The random key, at SERVER.
      value: The honest values, at CLIENTS.
      weight: float32 ``[]``, at CLIENTS; 0 for those that take no part.
      malicious: bool ``[]``, at CLIENTS.
    """

    key: FederatedValue
    value: FederatedValue
    weight: FederatedValue
    malicious: FederatedValue


Attack = Callable[[Scene], FederatedValue]


def attacked(
    attack: Attack, is_malicious: Callable[[jax.Array], ArrayLike], *, inner: Aggregator | None = None
) -> Aggregator:
    """Aggregates after an attack.

    Args:
      attack: What malicious clients send, at CLIENTS, of the members' type; written with federated operators.
      is_malicious: From a client's id, int32 ``[]``, to whether it is.
      inner: The `mean` if not given.

    Weights stay as they are. An omniscient attack looks at the honest clients in a pass of its own, in which the
    clients compute their values once more; memory stays flat in the scene. The bill has what it looks at, and what the
    malicious are told of it, beside what a round sends: for what a defence costs, bill ``inner`` alone.

    >>> aggregator = attacked(sign_flip(scale=10.0), lambda client: client == 0)
    >>> value, weight = fedjx.Clients.of(np.float32([1, 1, 1])), fedjx.Clients.of(np.float32([1, 1, 2]))
    >>> float(aggregator.next(jax.random.key(0), aggregator.init(np.float32(0)), value, weight)[1])
    -1.75
    """
    inner = wrapped(inner)

    def sent(key: FederatedValue, value: FederatedValue, weight: FederatedValue) -> FederatedValue:
        malicious = federated_map(lambda client: jnp.asarray(is_malicious(client), bool), federated_client_ids())
        weight_of = federated_map(as_float, weight)
        # A stream of its own: the inner aggregator draws from the same key.
        key_attack = federated_map(lambda key: jax.random.fold_in(key, 0x61747461), key)
        forged = attack(Scene(key_attack, value, weight_of, malicious))
        return federated_map(_replace, malicious, forged, value)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        return inner.next(key, state, sent(key, value, weight), weight)

    def to_inner(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        return key, state, sent(key, value, weight), weight

    return Aggregator(inner.init, next, bounded_after(inner, to_inner), inner.secure)


def _replace(malicious: jax.Array, forged: PyTree, value: PyTree) -> PyTree:
    return jax.tree.map(lambda f, v: jnp.where(malicious, f.astype(v.dtype), v), forged, value)


def in_turn(*attacks: Attack) -> Attack:
    """Makes one attack of several, each applied to what the one before sends: project, then boost."""

    def attack(scene: Scene) -> FederatedValue:
        for one in attacks:
            forged = federated_map(_replace, scene.malicious, one(scene), scene.value)
            scene = scene._replace(value=forged)
        return scene.value

    return attack


# --- attacks that look at nobody else -------------------------------------------------------------


def sign_flip(*, scale: float = 1.0) -> Attack:
    """Sends the negative of the value, times ``scale``."""
    return boosted(factor=-scale)


def boosted(*, factor: float) -> Attack:
    """Sends the value times ``factor``: explicit boosting (Bhagoji et al., arXiv 1811.12470, section 3.2)."""
    return lambda scene: federated_map(_Times(factor), scene.value)


def gaussian(*, stddev: float) -> Attack:
    """Sends independent Gaussian noise, another for every client."""

    def noise(value: PyTree, key: jax.Array) -> PyTree:
        flat, unravel = ravel_pytree(value)  # one draw: a generator is long to compile
        return unravel((stddev * jax.random.normal(key, flat.shape, jnp.float32)).astype(flat.dtype))

    return lambda scene: federated_map(noise, scene.value, federated_keys(scene.key))


def constant(*, number: float) -> Attack:
    """Sends the same number everywhere: 0 for a free rider, NaN or infinity to break what does not look."""
    return lambda scene: federated_map(lambda v: jax.tree.map(lambda x: jnp.full_like(x, number), v), scene.value)


def scaled_to_norm(*, norm: float) -> Attack:
    """Sends the value at this norm, up to rounding: the scale step of constrain-and-scale.

    Bagdasaryan et al., "How To Backdoor Federated Learning" (arXiv 1807.00459, algorithm 1).
    """
    return lambda scene: federated_map(_Rescaled(norm, only_down=False), scene.value)


def projected(*, radius: float) -> Attack:
    """Sends the value projected to the ball of this radius around 0.

    With `boosted` after it, ``in_turn(projected(radius=r), boosted(factor=b))``, it is projected boosting: a norm of at
    most ``b * r``.
    """
    return lambda scene: federated_map(_Rescaled(radius, only_down=True), scene.value)


class _Times(NamedTuple):
    factor: float

    def __call__(self, value: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x * self.factor, value)


class _Rescaled(NamedTuple):
    norm: float
    only_down: bool

    def __call__(self, value: PyTree) -> PyTree:
        found = euclidean_norm(value)
        scale = self.norm / jnp.maximum(found, jnp.finfo(jnp.float32).tiny)
        scale = jnp.minimum(scale, 1.0) if self.only_down else scale
        return jax.tree.map(lambda x: (x * scale).astype(x.dtype), value)


# --- attacks that look at the others --------------------------------------------------------------


def model_replacement(*, server_rate: float = 1.0) -> Attack:
    """Boosts so that the mean becomes the attacker's model, if the others' updates cancel or are 0.

    The factor is ``sum(weight) / (server_rate * the malicious clients' weight)``, n / eta for one of n equal clients
    (Bagdasaryan et al., arXiv 1807.00459, equation 3).

    Args:
      server_rate: eta, the learning rate of the server's SGD.
    """

    def attack(scene: Scene) -> FederatedValue:
        total = federated_sum(scene.weight)
        own = federated_sum(federated_map(lambda w, m: jnp.where(m, w, 0.0), scene.weight, scene.malicious))
        factor = federated_map(lambda total, own: total / (server_rate * jnp.where(own == 0, 1.0, own)), total, own)
        times = lambda value, factor: jax.tree.map(lambda x: (x * factor).astype(x.dtype), value)  # noqa: E731
        return federated_map(times, scene.value, federated_broadcast(factor))

    return attack


def alie(*, num_stddevs: float | None = None) -> Attack:
    """Sends the honest mean less some standard deviations: "a little is enough".

    Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning" (arXiv 1902.06156, algorithm
    3). Moments are of honest clients that take part, unweighted, with ddof 0.

    Args:
      num_stddevs: z; if not given, the largest that hides among the honest clients a majority needs,
        ``z = Phi^-1((n - f - s) / (n - f))``, ``s = floor(n / 2) + 1 - f``, for f malicious of n clients.
    """

    def attack(scene: Scene) -> FederatedValue:
        present = federated_map(lambda weight: (weight > 0).astype(jnp.float32), scene.weight)
        honest = federated_map(_honest, scene.weight, scene.malicious)
        number, num_honest = federated_sum(present), federated_sum(honest)
        centre = federated_mean(scene.value, honest)
        squares = federated_map(_squared_difference, scene.value, federated_broadcast(centre))
        variance = federated_mean(squares, honest)
        forged = federated_map(_Shifted(num_stddevs), centre, variance, number, num_honest)
        return federated_broadcast(forged)

    return attack


def inner_product_manipulation(*, scale: float) -> Attack:
    """Sends the negative of the honest clients' mean, times ``scale`` (Xie et al., arXiv 1903.03936, section 4)."""

    def attack(scene: Scene) -> FederatedValue:
        centre = federated_mean(scene.value, federated_map(_honest, scene.weight, scene.malicious))
        return federated_broadcast(federated_map(_Times(-scale), centre))

    return attack


def _honest(weight: jax.Array, malicious: jax.Array) -> jax.Array:
    return ((weight > 0) & ~malicious).astype(jnp.float32)


def _squared_difference(value: PyTree, centre: PyTree) -> PyTree:
    return jax.tree.map(lambda x, c: jnp.square(x - c), value, centre)


class _Shifted(NamedTuple):
    num_stddevs: float | None

    def __call__(self, centre: PyTree, variance: PyTree, number: jax.Array, num_honest: jax.Array) -> PyTree:
        z = self.num_stddevs
        if z is None:
            supporters = jnp.floor(number / 2) + 1 - (number - num_honest)
            share = (num_honest - supporters) / jnp.maximum(num_honest, 1.0)
            # A majority of malicious clients needs no supporters: the bound keeps z finite.
            z = ndtri(jnp.clip(share, 1e-3, 1 - 1e-3))
        return jax.tree.map(lambda m, v: (m - z * jnp.sqrt(v)).astype(m.dtype), centre, variance)
