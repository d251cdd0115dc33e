"""Attacks on how clients train: client updates of which some are malicious, for `compose`.

Constrain-and-scale: Bagdasaryan et al., "How To Backdoor Federated Learning" (arXiv 1807.00459, algorithm 1).
Projected boosting: Sun et al., "Can You Really Backdoor Federated Learning?" (arXiv 1911.07963, section 3). Both
train on what the malicious clients have, see `fedjx.data.poison`; attacks on what is sent are in
`fedjx.aggregation.attacks`.

These two are one training for all clients, with a coefficient that is neutral for the honest: lanes that run
different code would run both.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjx.aggregation.norms import euclidean_norm
from fedjx.core.language.checks import check_number, check_params
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import cast_like, map_keeping, squared_norm
from fedjx.core.language.values import Sequence
from fedjx.models.model import Ratio
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.each_client import told_to
from fedjx.training.method import Reported


def malicious_clients(
    is_malicious: Callable[[jax.Array], ArrayLike],
    attack_update: Callable[..., Reported],
    client_update: Callable[..., Reported],
) -> Callable[..., Reported]:
    """Gives malicious clients another client update; every client runs both.

    Args:
      is_malicious: From a client's id, int32 ``[]``, to whether it is.
      attack_update: What the malicious do, a client update of a `Method`.
      client_update: What the others do; its result has the same type.

    >>> from fedjx.training import ClientUpdate, Method, compose
    >>> send = lambda number: lambda params, data, key: ClientUpdate(jnp.float32(number), jnp.float32(1), {})
    >>> update = malicious_clients(lambda client: client == 3, send(-9), send(1))
    >>> algorithm = compose(Method(lambda key: jnp.float32(0), update))
    >>> state, _ = algorithm.next(algorithm.init(jax.random.key(0)), fedjx.Clients.of(np.zeros(4), ids=np.arange(4)))
    >>> float(state.params)  # minus the mean of 1, 1, 1 and -9
    1.5
    """

    def update(params: PyTree, data: PyTree, key: jax.Array, **told: PyTree) -> Reported:
        forged, honest = (one(params, data, key, **told_to(one, told)) for one in (attack_update, client_update))
        return _chosen(jnp.asarray(is_malicious(told["id"]), bool), forged, honest)

    return update


def constrain_and_scale(
    training: Callable[..., ClientUpdate],
    is_malicious: Callable[[jax.Array], ArrayLike],
    *,
    alpha: float,
    norm: float,
    anomaly: Callable[[PyTree, PyTree], jax.Array] | None = None,
) -> Callable[..., ClientUpdate]:
    """Lets malicious clients train on ``alpha * L_class + (1 - alpha) * L_anomaly`` and send at a norm.

    Args:
      training: What all clients do, a client update that trains with ``local.optimizer``, such as `local_update`.
      is_malicious: From a client's id, int32 ``[]``, to whether it is.
      alpha: In [0, 1]; 1 trains as the honest do.
      norm: Of what malicious clients send, S: what a defence just lets pass, or what replaces the model.
      anomaly: L_anomaly, ``(params, global params) -> float32 []``; the squared distance if not given. It must be
        differentiable where both are equal, for training starts there: a norm of the difference is not.
    """
    check_number("[0, 1]", "1 leaves the loss as it is.", alpha=alpha)
    check_number("(0, inf]", norm=norm)

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local, id: jax.Array) -> ClientUpdate:
        malicious = jnp.asarray(is_malicious(id), bool)
        optimizer = constrained(local.optimizer, jnp.where(malicious, alpha, 1.0), anomaly)
        update = training(params, data, key, local=local._replace(optimizer=optimizer))
        size = jnp.maximum(euclidean_norm(update.delta), jnp.finfo(jnp.float32).tiny)
        return _scaled(update, jnp.where(malicious, norm / size, 1.0))

    return client_update


def projected_boosting(
    training: Callable[..., ClientUpdate],
    is_malicious: Callable[[jax.Array], ArrayLike],
    *,
    radius: float,
    boost: float,
) -> Callable[..., ClientUpdate]:
    """Lets malicious clients train within a ball around the global model, and send ``boost`` times what comes of it.

    What they send is of a norm of at most ``boost * radius``.

    Args:
      training: What all clients do, as for `constrain_and_scale`.
      is_malicious: From a client's id, int32 ``[]``, to whether it is.
      radius: Of the ball.
      boost: The factor.
    """
    check_number("(0, inf]", "Take the bound of the defence over the boost.", radius=radius)

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local, id: jax.Array) -> ClientUpdate:
        malicious = jnp.asarray(is_malicious(id), bool)
        optimizer = projected_descent(local.optimizer, jnp.where(malicious, radius, jnp.inf))
        update = training(params, data, key, local=local._replace(optimizer=optimizer))
        return _scaled(update, jnp.where(malicious, boost, 1.0))

    return client_update


def lying(
    is_malicious: Callable[[jax.Array], ArrayLike], *, factor: float
) -> Callable[[jax.Array, ClientUpdate], ClientUpdate]:
    """Lets malicious clients say a multiple of the truth in all but the delta: of weight, counts, and means.

    Args:
      is_malicious: From a client's id, int32 ``[]``, to whether it is.
      factor: The multiple; a huge one, a tiny one, or a negative one.

    Returns:
      What `fedjx.training.Failures` takes as ``forged``.

    >>> from fedjx.training import ClientUpdate, Failures
    >>> failures = Failures(forged=lying(lambda client: client == 3, factor=1e6))
    >>> said = failures.forged(jnp.int32(3), ClientUpdate(jnp.float32(1), jnp.float32(1), {"loss": jnp.float32(2)}))
    >>> [float(x) for x in jax.tree.leaves(said)]
    [1.0, 1000000.0, 2000000.0]
    """

    def forged(id: jax.Array, update: ClientUpdate) -> ClientUpdate:
        malicious = jnp.asarray(is_malicious(id), bool)
        lie = lambda x: jnp.where(malicious, _times(x, factor), x)  # noqa: E731

        def said(x: PyTree) -> PyTree:  # of a mean not what it is over, or the mean would stay what it was
            return x._replace(numerator=lie(x.numerator)) if isinstance(x, Ratio) else lie(x)

        metrics = jax.tree.map(said, update.metrics, is_leaf=lambda x: isinstance(x, Ratio))
        return update._replace(weight=jnp.abs(lie(update.weight)), metrics=metrics)

    return forged


def _times(x: jax.Array, factor: float) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x * factor
    return jnp.clip(x * factor, -(2.0**24), 2.0**24).astype(x.dtype)


# --- optimizers that remember where they began ----------------------------------------------------


def constrained(
    optimizer: optax.GradientTransformation,
    alpha: float | jax.Array,
    anomaly: Callable[[PyTree, PyTree], jax.Array] | None = None,
) -> optax.GradientTransformation:
    """Descends on ``alpha * loss + (1 - alpha) * anomaly(params, first params)``; see `constrain_and_scale`."""
    anomaly = _squared_distance if anomaly is None else anomaly

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        check_params("constrained", params)
        back = jax.grad(anomaly)(params, state)
        # Honest clients, of alpha = 1, are not to depend on an anomaly, even one without a gradient.
        pulled = lambda g, b: alpha * g + jnp.where(alpha == 1, 0, (1 - alpha) * b)  # noqa: E731
        return map_keeping(pulled, updates, back), state

    return optax.chain(optax.GradientTransformation(lambda params: params, update), optimizer)


def projected_descent(
    optimizer: optax.GradientTransformation, radius: float | jax.Array
) -> optax.GradientTransformation:
    """Projects the parameters after every step to the ball of a radius around the first ones."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        check_params("projected_descent", params)
        moved = jax.tree.map(lambda p, u, c: p + u - c, params, updates, state)
        size = jnp.maximum(euclidean_norm(moved), jnp.finfo(jnp.float32).tiny)
        inside = lambda p, u, c: jnp.where(size <= radius, u, c + (p + u - c) * (radius / size) - p)  # noqa: E731
        return cast_like(updates, jax.tree.map(inside, params, updates, state)), state

    return optax.chain(optimizer, optax.GradientTransformation(lambda params: params, update))


def _squared_distance(params: PyTree, centre: PyTree) -> jax.Array:
    return squared_norm(jax.tree.map(jnp.subtract, params, centre))


def _chosen(malicious: jax.Array, forged: PyTree, honest: PyTree) -> PyTree:
    return jax.tree.map(lambda f, h: jnp.where(malicious, f, h), forged, honest)


def _scaled(update: ClientUpdate, factor: jax.Array) -> ClientUpdate:
    return update._replace(delta=map_keeping(lambda x: x * factor, update.delta))
