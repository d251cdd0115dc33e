"""Batch statistics in federated training: no server optimizer changes them, and clients may keep their own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjx.core.language.names import PyTree
from fedjx.models.model import Model, Variables


def trained_alone(server_optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns a server's optimizer that sees the trained parameters alone; batch statistics follow the delta.

    Guarantees: Parameters that are no `Variables` are optimized as before, with the same state.

    >>> optimizer = trained_alone(optax.sgd(0.1))
    >>> params = Variables(jnp.float32(1), jnp.float32(5))
    >>> delta = Variables(jnp.float32(1), jnp.float32(2))  # initial minus aggregated
    >>> updates, _ = optimizer.update(delta, optimizer.init(params), params)
    >>> jax.tree.map(float, optax.apply_updates(params, updates))
    Variables(params=0.8999999761581421, batch_stats=3.0)
    """
    inner = optax.with_extra_args_support(server_optimizer)

    def trained(tree: PyTree) -> PyTree:
        return tree.params if isinstance(tree, Variables) else tree

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **others: PyTree) -> tuple[PyTree, PyTree]:
        steps, state = inner.update(trained(updates), state, trained(params), **others)
        if isinstance(updates, Variables):
            steps = Variables(steps, jax.tree.map(jnp.negative, updates.batch_stats))
        return steps, state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(trained(params)), update)


def no_batch_stats(model: Model, method: str) -> Model:
    """Returns the model; its ``init`` refuses batch statistics for a method that would treat them as parameters.

    Raises:
      ValueError: When the model is initialised, if it has batch statistics.
    """

    def init(key: jax.Array) -> PyTree:
        params = model.init(key)
        if isinstance(params, Variables):
            raise ValueError(
                f"{method} takes models without batch statistics; got Variables. "
                "Freeze them (from_flax(..., frozen_batch_stats=...)), or use fed_bn."
            )
        return params

    return model._replace(init=init)


def is_batch_stat(name: str) -> bool:
    """Tells whether the name of a leaf of `Variables` is that of a batch statistic."""
    return name.split("/")[0] == "batch_stats"


def in_batch_norm(model: Model) -> Callable[[str], bool]:
    """Returns whether the name of a leaf is in a layer that has batch statistics: its scale and bias, or a statistic.

    Raises:
      ValueError: If the model has no batch statistics.

    >>> in_batch_norm(fedjx.models.linear(2, input_shape=(3,)))
    Traceback (most recent call last):
    ValueError: the model must have batch statistics; got parameters of dict. Adapt a module with nnx.BatchNorm.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    if not isinstance(variables, Variables):
        raise ValueError(
            f"the model must have batch statistics; got parameters of {type(variables).__name__}. "
            "Adapt a module with nnx.BatchNorm."
        )
    paths, _ = zip(*jax.tree_util.tree_leaves_with_path(variables.batch_stats), strict=True)
    layers = {_layer(jax.tree_util.keystr(path, simple=True, separator="/")) for path in paths}
    return lambda name: _layer(name.partition("/")[2]) in layers


def _layer(name: str) -> str:
    return name.rpartition("/")[0]
