"""Partly local models: which parameters the clients share, and which each keeps for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.tree_util import KeyPath

from fedjx.core.language.names import PyTree
from fedjx.models.model import Model
from fedjx.training.client import FIRST
from fedjx.training.method import ServerState


class Parts(NamedTuple):
    """The parameters in two trees of the same structure, each with None in the places of the other.

    Attributes:
      shared: What the server has and the clients train together.
      local: What does not leave a client.
    """

    shared: PyTree
    local: PyTree


def partition(params: PyTree, is_local: Callable[[str], bool]) -> Parts:
    """Splits parameters by their names.

    Args:
      params: A pytree of arrays.
      is_local: From the path of a leaf, such as ``"out/kernel"``, to whether it is local.

    >>> params = {"body": {"kernel": np.ones(2)}, "head": {"bias": np.zeros(1), "kernel": np.ones(2)}}
    >>> parts = partition(params, lambda name: name.startswith("head"))
    >>> parts.shared
    {'body': {'kernel': array([1., 1.])}, 'head': {'bias': None, 'kernel': None}}
    >>> combine(*parts)["head"]["bias"]
    array([0.])
    """

    def part(local: bool) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if bool(is_local(_name(path))) == local else None, params
        )

    return Parts(part(False), part(True))


def _name(path: KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def combine(some: PyTree, others: PyTree) -> PyTree:
    """Puts the two trees of a `partition` together again, in either order.

    Raises:
      ValueError: If a parameter is in both.
    """

    def of_either(path: KeyPath, a: PyTree, b: PyTree) -> PyTree:
        if a is not None and b is not None:
            raise ValueError(
                f"two parts have no parameter in common; got {_name(path)!r} in both. Take the parts of one partition."
            )
        return b if a is None else a

    return jax.tree_util.tree_map_with_path(of_either, some, others, is_leaf=lambda x: x is None)


def first_parts(
    model: Model, is_local: Callable[[str], bool]
) -> tuple[Callable[[jax.Array], PyTree], Callable[[ServerState], PyTree]]:
    """Returns how the server's part and a client's are drawn at first, the latter alike for all from the run's key."""

    def init_client(state: ServerState) -> PyTree:
        return partition(model.init(jax.random.fold_in(state.key, FIRST)), is_local).local

    return lambda key: partition(model.init(key), is_local).shared, jax.jit(init_client)


def with_fixed(model: Model, fixed: PyTree) -> Model:
    """Returns a model of one of the `Parts`, the other one fixed: its parameters are those that are not.

    >>> model = fedjx.models.linear(2, input_shape=(3,))
    >>> parts = partition(model.init(jax.random.key(0)), lambda name: name.endswith("bias"))
    >>> with_fixed(model, parts.shared).init(jax.random.key(1))
    {'head': {'bias': Array([0., 0.], dtype=float32), 'kernel': None}}
    """

    def init(key: jax.Array) -> PyTree:
        return jax.tree.map(lambda f, p: p if f is None else None, fixed, model.init(key), is_leaf=lambda x: x is None)

    apply = model.apply
    return model._replace(
        init=init,
        loss=lambda params, batch, key: model.loss(combine(params, fixed), batch, key),
        metrics=lambda params, batch: model.metrics(combine(params, fixed), batch),
        apply=None if apply is None else lambda params, batch: apply(combine(params, fixed), batch),
    )
