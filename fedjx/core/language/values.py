"""Device forms: how a cohort of clients, and one client's data set, lie in arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_alike
from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.narrow import is_numeric, narrowed
from fedjx.core.language.shares import own_rows

MASK = "mask"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of examples, stored as indices into a pool that all clients share.

    This is what travels to the device: the examples once, in their native dtype,
    and one int32 per position. A batch is gathered inside the step that trains on it.

    Attributes:
      pool: Features by name, each ``[N, ...]``.
      index: int32 ``[..., B]``; row of the pool, or negative for padding: ``~row`` of what it shows, which is -1
        for the first.
      shared: Whether every device needs all of the pool. If not, it is in as many equal parts as
        there are devices, and a client's index counts from the beginning of its device's part.
    """

    pool: Mapping[str, Any]
    index: Any
    shared: bool = dataclasses.field(default=True, metadata={"static": True})

    def gather(self) -> dict[str, jax.Array]:
        """Returns the features ``[..., B, ...]`` and ``mask``, bool ``[..., B]``.

        Padding shows the row of its index, and zeros past the pool's end. In a function of one client it shows an
        example of the same client (`own_padding`), so that a loss or gradient computed on it is finite before the
        mask removes it.
        """
        rows = jnp.where(self.index < 0, ~self.index, self.index)
        take = functools.partial(jnp.take, indices=rows, axis=0, mode="fill", fill_value=0)
        batch = {name: take(column) for name, column in self.pool.items()}
        return {**batch, MASK: self.index >= 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequence:
    """A client's data set: elements consumed in order, of type ``T*``.

    Attributes:
      elements: Pytree of leaves ``[S, ...]``, or a `Batches` with index ``[S, B]``. The
        capacity S is padding and no part of the type. In a dict, ``mask``, bool ``[S, B]``, says that
        the elements are batches of features ``[S, B, ...]``, and which of their examples are real.
      length: int32 ``[]``; only the first ``length`` elements exist. A function of one client sees
        copies of the first in the place of others, and zeros if there is none.
    """

    elements: PyTree
    length: Any

    @property
    def mask(self) -> jax.Array:
        """Tells which positions hold an element: bool ``[S]``."""
        return jnp.arange(_capacity(self), dtype=jnp.int32) < self.length

    @classmethod
    def of(cls, elements: PyTree) -> Sequence:
        """Makes a full sequence of arrays with a common leading axis.

        >>> Sequence.of(np.arange(3)).length
        Array(3, dtype=int32)
        """
        sizes = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves(elements)}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"the leaves of a sequence need one common leading axis; got sizes {sorted(map(str, sizes))}. "
                "Stack the elements along axis 0."
            )
        return cls(elements, jnp.int32(sizes.pop()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clients:
    """A cohort, or a chunk of one: one member per client along the leading axis.

    Attributes:
      value: Pytree of leaves ``[C, ...]``; the pools of `Batches` in it are shared by all
        clients and have no clients axis.
      mask: bool ``[C]``; False marks padding, which every reduction ignores.
      id: int32 ``[C]``; the clients' identities, from which their random keys are made.
    """

    value: PyTree
    mask: Any
    id: Any

    @classmethod
    def of(cls, value: PyTree, *, ids: Any = None, mask: Any = None) -> Clients:
        """Makes a cohort of arrays whose leading axis is the clients.

        Args:
          value: Pytree of leaves ``[C, ...]``, or a list with one member per client.
          ids: int32 ``[C]``; ``0 .. C-1`` if not given. Random keys are made from them: name the
            clients when a cohort comes in several chunks.
          mask: bool ``[C]``; all True if not given.

        Raises:
          ValueError: If the leaves disagree on the number of clients, or there is none.

        >>> Clients.of(np.zeros((3, 2))).num_clients
        3
        >>> Clients.of([{"age": 31}, {"age": 45}]).value
        {'age': array([31, 45])}
        """
        value = stack(value) if isinstance(value, list) else value
        for leaf in own_leaves(value):
            if isinstance(leaf, np.ndarray) and is_numeric(leaf.dtype):
                narrowed(leaf, "a value", may_round=True)
        sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in own_leaves(value)}
        sizes |= {len(x) for x in (ids, mask) if x is not None}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                "every leaf of a CLIENTS value needs the number of clients as its leading axis; got sizes "
                f"{sorted(map(str, sizes))}. Stack one member per client along axis 0."
            )
        (num_clients,) = sizes
        if isinstance(num_clients, int) and num_clients == 0:
            raise ValueError("a cohort needs at least one client; got 0. Sample again, or skip the round.")
        return cls(
            value,
            jnp.ones(num_clients, bool) if mask is None else jnp.asarray(mask, bool),
            jnp.arange(num_clients, dtype=jnp.int32) if ids is None else jnp.asarray(ids, jnp.int32),
        )

    @property
    def num_clients(self) -> int:
        """Returns the number of members, padding included."""
        return self.mask.shape[0]

    def members(self) -> dict[int, PyTree]:
        """Copies to the host what belongs to each real client, by id; for looking at results.

        Of a cohort that several processes share, each gets the clients of its own devices.
        """
        value, mask, ids = jax.device_get(own_rows((self.value, self.mask, self.id)))
        return {int(ids[c]): jax.tree.map(lambda x, c=c: x[c], value) for c in np.flatnonzero(mask)}


def strongly_typed(value: PyTree) -> PyTree:
    """Makes arrays of definite dtype out of numbers and weakly typed arrays."""

    def strong(leaf: PyTree) -> jax.Array:
        if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False):
            return leaf
        array = jnp.asarray(leaf)
        return jnp.asarray(array, array.dtype)

    return jax.tree.map(strong, value)


def check_same_clients(arguments: list[Clients]) -> None:
    """Refuses cohorts that are not of the same clients, as far as is known while tracing."""
    sizes = [c.num_clients for c in arguments]
    if any(size != sizes[0] for size in sizes[1:]):
        raise ValueError(f"all arguments at CLIENTS need the same clients; got {sizes} of them. Sample them together.")
    if len(arguments) < 2:
        return
    known = [np.asarray(c.id) for c in arguments if not isinstance(c.id, jax.core.Tracer)]
    for other in known[1:]:
        if not np.array_equal(known[0], other):
            raise ValueError(
                "all arguments at CLIENTS need the same clients in the same order; "
                f"got {known[0].tolist()} and {other.tolist()}. Sample them together."
            )


def side_by_side(arguments: list[Clients]) -> Clients:
    """Makes one cohort of several: a client's member is the tuple of its members.

    Where ids are traced nobody can refuse a cohort in another order. Who has two of them then takes no part, so that
    nobody ever gets what is another client's.
    """
    check_same_clients(arguments)
    first, *rest = arguments
    mask = first.mask
    for other in rest:
        mask = mask & other.mask
        if isinstance(first.id, jax.core.Tracer) or isinstance(other.id, jax.core.Tracer):
            mask = mask & (first.id == other.id)
    return Clients(tuple(c.value for c in arguments), mask, first.id)


def map_own(fn: Callable[..., Any], value: PyTree, *others: PyTree) -> PyTree:
    """Maps over what is each client's own, leaves ``[C, ...]``: of `Batches` the index; their pools stay.

    Args:
      fn: From a leaf, and those of the others in the same place, to another one.
      value: A pytree with `Batches` in it, or none.
      others: Pytrees of the same structure; of their `Batches` the pools do not matter.

    >>> plan = Batches({"x": np.arange(3)}, np.array([[0], [2]]))
    >>> map_own(lambda x: x[1:], (plan, np.arange(2)))
    (Batches(pool={'x': array([0, 1, 2])}, index=array([[2]]), shared=True), array([1]))
    """

    def mapped(x: PyTree, *rest: PyTree) -> PyTree:
        if _is_batches(x):
            return dataclasses.replace(x, index=fn(x.index, *[y.index for y in rest]))
        return fn(x, *rest)

    return jax.tree.map(mapped, value, *others, is_leaf=_is_batches)


def own_leaves(value: PyTree) -> list[Any]:
    """Returns the arrays that `map_own` maps over."""
    return [leaf.index if _is_batches(leaf) else leaf for leaf in jax.tree.leaves(value, is_leaf=_is_batches)]


def per_client(value: PyTree) -> tuple[PyTree, PyTree, Callable[[PyTree, PyTree], PyTree]]:
    """Separates what is each client's own from the pools that all share.

    Args:
      value: A pytree with `Batches` in it, or none.

    Returns:
      The same tree with the index in place of each `Batches`; the pools; and the function of
      both that puts them together again, for what maps over arrays alone: `vmap`, `scan` and `shard_map`.
    """
    leaves, treedef = jax.tree.flatten(value, is_leaf=_is_batches)
    own = treedef.unflatten([leaf.index if _is_batches(leaf) else leaf for leaf in leaves])
    pools = [leaf.pool if _is_batches(leaf) else None for leaf in leaves]

    def join(own: PyTree, pools: PyTree) -> PyTree:
        pairs = zip(jax.tree.leaves(own), pools, strict=True)
        return treedef.unflatten(
            [
                x if pool is None else dataclasses.replace(leaf, pool=pool, index=x)
                for leaf, (x, pool) in zip(leaves, pairs, strict=True)
            ]
        )

    return own, pools, join


def padded(clients: Clients, multiple: int) -> Clients:
    """Pads a cohort with copies of its last client, the shortest of a sorted one; no reduction counts them."""
    missing = -clients.num_clients % multiple
    if not missing:
        return clients

    def pad(x: Array, filler: int | bool | None = None) -> Array:
        module = np if isinstance(x, np.ndarray) else jnp  # a chunk on the host stays there
        rows = module.repeat(x[-1:], missing, axis=0) if filler is None else module.full(missing, filler, x.dtype)
        return module.concatenate([x, rows])

    return Clients(map_own(pad, clients.value), pad(clients.mask, False), pad(clients.id, -1))


def shares_pool(value: PyTree) -> list[bool]:
    """Tells of each of the pools that `per_client` separates whether every device needs all of it."""
    return [not _is_batches(leaf) or leaf.shared for leaf in jax.tree.leaves(value, is_leaf=_is_batches)]


def gathered(value: PyTree) -> PyTree:
    """Replaces every `Batches` in a pytree by the batch it stands for."""
    return jax.tree.map(lambda x: x.gather() if _is_batches(x) else x, value, is_leaf=_is_batches)


def stack(members: Iterable[PyTree]) -> PyTree:
    """Stacks the members of several clients, leaves ``[...]``, into leaves ``[C, ...]``.

    Sequences of different length are padded to the longest with copies of a real element.
    """
    members = list(members)
    if not members:
        raise ValueError("a cohort needs at least one client; got 0. Sample again, or skip the round.")
    first, *rest = members
    check_alike(first, rest, is_leaf=_is_sequence)
    return jax.tree.map(_stack_leaf, first, *rest, is_leaf=_is_sequence)


def stack_cohorts(cohorts: Iterable[Clients]) -> Clients:
    """Stacks the cohorts of R rounds, leaves ``[C, ...]``, into leaves ``[R, C, ...]``; a common pool stays one.

    Cohorts and sequences are padded to the largest.

    Raises:
      ValueError: If two cohorts differ in another shape, or in their pool.
    """
    cohorts = list(cohorts)
    for cohort in cohorts:
        if not isinstance(cohort, Clients):
            raise TypeError(
                f"a round is of a cohort; got {type(cohort).__name__}. Pass a list of cohorts, one a round."
            )
    if not cohorts:
        raise ValueError("at least one round is run; got no cohort. Sample some.")
    num_clients = max(c.num_clients for c in cohorts)
    capacities = [max(of_one) for of_one in zip(*map(_capacities, cohorts), strict=False)]
    cohorts = [padded(_lengthened(c, capacities), num_clients) for c in cohorts]
    shapes = {str([x.shape for x in own_leaves(c)]) for c in cohorts}
    if len(shapes) > 1:
        raise ValueError(
            f"the cohorts of rounds that run as one program need equal shapes; got {sorted(shapes)[:2]}. "
            "Give the cohorts one batch_size, and examples of one shape."
        )
    pools = [[id(leaf) for leaf in jax.tree.leaves(per_client(c)[1])] for c in cohorts]
    if any(other != pools[0] for other in pools):
        raise ValueError(
            "the cohorts of rounds that run as one program need one pool; got several. Use one data "
            'set, with placement="resident": what is streamed is copied for each cohort.'
        )
    return map_own(lambda *xs: np.stack(xs), *cohorts)


def _capacities(cohort: Clients) -> list[int]:
    """Returns the capacity S of each of a cohort's sequences, leaves ``[C, S, ...]``."""
    sequences = jax.tree.leaves(cohort.value, is_leaf=_is_sequence)
    return [own_leaves(x.elements)[0].shape[1] for x in sequences if _is_sequence(x)]


def _lengthened(cohort: Clients, capacities: list[int]) -> Clients:
    """Pads a cohort's sequences, leaves ``[C, S, ...]``, to these capacities S."""
    wanted = iter(capacities)

    def longer(x: PyTree) -> PyTree:
        if not _is_sequence(x):
            return x
        missing = next(wanted) - own_leaves(x.elements)[0].shape[1]
        # What is past a sequence's length is never read; copies of its end would do as well as zeros.
        return Sequence(
            map_own(lambda y: np.pad(y, [(0, 0), (0, missing), *[(0, 0)] * (y.ndim - 2)]), x.elements), x.length
        )

    return Clients(jax.tree.map(longer, cohort.value, is_leaf=_is_sequence), cohort.mask, cohort.id)


def _stack_leaf(*leaves: Any) -> Any:
    if isinstance(leaves[0], Sequence):
        first, *rest = [jax.tree.map(lambda x: np.broadcast_to(0, np.shape(x)[1:]), s.elements) for s in leaves]
        check_alike(first, rest)  # one element of each
        capacity = max(_capacity(s) for s in leaves)
        donor = next((s for s in leaves if _capacity(s)), None)
        padded = [_padded(s, capacity, donor) for s in leaves]
        return Sequence(*jax.tree.map(lambda *xs: np.stack(xs), *[(s.elements, np.int32(s.length)) for s in padded]))
    return jnp.stack(leaves) if isinstance(leaves[0], jax.Array) else np.stack(leaves)


def _capacity(sequence: Sequence) -> int:
    return min(leaf.shape[0] for leaf in own_leaves(sequence.elements))


def _padded(sequence: Sequence, capacity: int, donor: Sequence | None) -> Sequence:
    source = sequence if _capacity(sequence) else donor
    if source is None:
        return sequence

    def pad(leaf: Any, source: Any) -> np.ndarray:
        leaf, filler = np.asarray(leaf), np.asarray(source)[:1]
        return np.concatenate([leaf, np.repeat(filler, capacity - len(leaf), axis=0)])

    return Sequence(jax.tree.map(pad, sequence.elements, source.elements), sequence.length)


def _is_batches(x: object) -> bool:
    return isinstance(x, Batches)


def _is_sequence(x: object) -> bool:
    return isinstance(x, Sequence)
