"""The lower layer: one pass over a cohort, in one program or streamed chunk by chunk.

Nothing here knows of graphs, types or algorithms. A `Pass` is run by `map_reduce` inside a traced program, or by
`PassStream` from a host loop. Both take the same step: map one chunk, add it to accumulators that
stay on their device, and, after the last chunk, reduce across devices once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Literal

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.execution.devices import Placer, compiler_options
from fedjx.core.execution.hosts import agreed, auto_mesh
from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.padding import filled, own_padding
from fedjx.core.language.passes import Merge, Pass
from fedjx.core.language.shares import AXIS
from fedjx.core.language.values import Clients, map_own, padded, per_client, shares_pool
from fedjx.core.rewriting.rewrite import Traced, mapped, traced

_SPLIT, _WHOLE = PartitionSpec(AXIS), PartitionSpec()


# --- one chunk ----------------------------------------------------------------------------------


def trace_one(run: Pass, server: PyTree, clients: Clients) -> Traced:
    """Traces what a pass does for one client; all clients together would take longer."""
    own, pools, join = per_client(clients.value)

    def one(shared: PyTree, member: PyTree) -> tuple[tuple[PyTree, ...], PyTree]:
        (server, pools), (own, client_id) = shared, member
        return run.fn(server, own_padding(join(own, pools)), client_id)

    return traced(one, (server, pools), jax.tree.map(_row_type, (own, clients.id)))


def _row_type(x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, weak_type=getattr(x, "weak_type", False))


def _zeros(run: Pass, one: Traced) -> tuple[PyTree, ...]:
    members, _ = one.result
    return tuple(r.zero(member) for r, member in zip(run.reductions, members, strict=True))


def _step(run: Pass, one: Traced, accumulators: PyTree, server: PyTree, clients: Clients) -> tuple[PyTree, PyTree]:
    # A client that is padding is a copy of a real one, and what pads a client's own data is its own.
    own, pools, _ = per_client(map_own(lambda x: filled(x, clients.mask), clients.value))
    stop_early = not (run.differentiable or run.in_step)
    values, outputs = mapped(one, (server, pools), (own, clients.id), stop_early=stop_early)
    updated = tuple(
        r.update(accumulator, value, clients.mask)
        for r, accumulator, value in zip(run.reductions, accumulators, values, strict=True)
    )
    return updated, outputs


def _fold(
    run: Pass, one: Traced, accumulators: PyTree, server: PyTree, clients: Clients, lanes: int | None
) -> tuple[PyTree, PyTree]:
    """Adds one device's clients to its accumulators, a group of ``lanes`` after the other."""
    num_clients = clients.num_clients
    if lanes is None or lanes >= num_clients:
        return _step(run, one, accumulators, server, clients)
    clients = padded(clients, lanes)
    # Leaves [C, ...] become [groups, lanes, ...].
    own, pools, join = per_client(map_own(lambda x: x.reshape(-1, lanes, *x.shape[1:]), clients))
    _, member = one.result

    def add(accumulators: PyTree, group: PyTree) -> tuple[PyTree, PyTree]:
        def step(accumulators: PyTree, group: PyTree) -> tuple[PyTree, PyTree]:
            return _step(run, one, accumulators, server, join(group, pools))

        def skip(accumulators: PyTree, group: PyTree) -> tuple[PyTree, PyTree]:
            return accumulators, jax.tree.map(lambda x: lax.full((lanes, *x.shape), 0, x.dtype), member)

        has_client = run.in_step or jnp.any(group.mask)  # of only padding there is nothing to do
        return lax.cond(has_client, step, skip, accumulators, group)

    accumulators, outputs = lax.scan(add, accumulators, own)
    return accumulators, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_clients], outputs)


def _check_same_shapes(before: PyTree, after: PyTree) -> None:
    old, new = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (before, after))
    if old != new:
        raise ValueError(
            "a reduced value needs one shape in every chunk, so it cannot depend on the padded length of a sequence; "
            f"got {new} after {old}. Reduce over the sequence first (sequence_reduce)."
        )


# --- in one program -----------------------------------------------------------------------------


def map_reduce(
    run: Pass, server: PyTree, clients: Clients, *, lanes: int | None = None, mesh: Mesh | None = None
) -> tuple[tuple[PyTree, ...], PyTree]:
    """Runs a pass over a whole cohort inside one traceable program.

    Args:
      run: The pass.
      server: Values that every client sees.
      clients: The cohort; padded here as chunks and devices require.
      lanes: How many clients each device maps at once; all of its clients if not given.
      mesh: Devices with an axis ``clients``; without one the cohort stays where it is.

    Returns:
      The reduced values, and the outputs ``[C, ...]``.
    """
    if mesh is None:
        one = trace_one(run, server, clients)
        accumulators, outputs = _fold(run, one, _zeros(run, one), server, clients, lanes)
        return _report(run, accumulators), outputs

    mesh = auto_mesh(mesh)
    run = run._replace(in_step=_spreads_clients(mesh))
    num_clients = clients.num_clients
    whole = clients
    if num_clients % mesh.shape[AXIS]:
        # A cohort that does not divide is not divided yet: say so, or XLA pads it with collectives.
        whole = lax.with_sharding_constraint(padded(clients, mesh.shape[AXIS]), NamedSharding(mesh, _WHOLE))
    own, pools, join = per_client(whole)

    def device(server: PyTree, own: PyTree, pools: PyTree) -> PyTree:
        shard = join(own, pools)
        one = trace_one(run, server, shard)
        accumulators, outputs = _fold(run, one, _zeros(run, one), server, shard, lanes)
        return _report(run, _all_reduce(run, accumulators)), outputs

    reduced, outputs = _by_device(
        device,
        mesh,
        in_specs=(_WHOLE, _SPLIT, _pool_specs(clients)),
        out_specs=(_WHOLE, _SPLIT),
    )(server, own, pools)
    if not run.in_step:
        # Said, not only computed: where processes share the mesh, each can then read what is at the server.
        reduced = lax.with_sharding_constraint(reduced, NamedSharding(mesh, _WHOLE))
    return reduced, jax.tree.map(lambda x: x[:num_clients], outputs)


def _report(run: Pass, accumulators: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    return tuple(r.report(accumulator) for r, accumulator in zip(run.reductions, accumulators, strict=True))


def _pool_specs(value: PyTree) -> list[PartitionSpec]:
    return [_WHOLE if shared else _SPLIT for shared in shares_pool(value)]


# --- across devices -----------------------------------------------------------------------------


def _spreads_clients(mesh: Mesh) -> bool:
    return mesh.size > mesh.shape[AXIS]


def _by_device(fn: Callable[..., PyTree], mesh: Mesh, in_specs: PyTree, out_specs: PyTree) -> Callable[..., PyTree]:
    """Runs a function on every device's part of the clients; further axes of the mesh stay for the users' own code.

    Without replication checks a gradient inside stays on its device (with them JAX sums it over
    all devices behind our back), and the users' scans need no annotations.
    """
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS}, check_vma=False)


def _all_reduce(run: Pass, accumulators: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """Combines the devices' accumulators: all sums of the pass in one collective."""
    sums = [a for r, a in zip(run.reductions, accumulators, strict=True) if r.across == "sum"]
    totals = iter(_sum_in_one(sums))
    return tuple(
        next(totals) if r.across == "sum" else _combine(r.across, accumulator)
        for r, accumulator in zip(run.reductions, accumulators, strict=True)
    )


def _combine(across: Literal["min", "max"] | Merge, accumulator: PyTree) -> PyTree:
    if across == "min":
        return lax.pmin(accumulator, AXIS)
    if across == "max":
        return lax.pmax(accumulator, AXIS)
    gathered = lax.all_gather(accumulator, AXIS)
    first, rest = (jax.tree.map(lambda x, s=s: x[s], gathered) for s in (0, slice(1, None)))
    combined, _ = lax.scan(lambda total, one: (across(total, one), None), first, rest)
    return combined


def _sum_in_one(tree: PyTree) -> PyTree:
    """Sums a pytree over the devices with a single all-reduce of one float32 vector.

    XLA would use one collective per dtype. A 32-bit integer travels as three 12-bit pieces, whose
    float32 sums are exact for up to 4,096 devices. Leaves of other widths go by themselves.
    """
    leaves, treedef = jax.tree.flatten(tree)
    pieces = [_to_float32(leaf) for leaf in leaves]
    flat = jnp.concatenate([jnp.ravel(p) for p in pieces if p is not None] or [jnp.zeros(0, jnp.float32)])
    total = lax.psum(flat, AXIS) if flat.size else flat
    summed, start = [], 0
    for leaf, piece in zip(leaves, pieces, strict=True):
        if piece is None:
            summed.append(lax.psum(leaf, AXIS))
            continue
        summed.append(_from_float32(total[start : start + piece.size].reshape(piece.shape), leaf.dtype))
        start += piece.size
    return treedef.unflatten(summed)


_SHIFTS = (0, 12, 24)


def _to_float32(leaf: jax.Array) -> jax.Array | None:
    if leaf.dtype == jnp.float32:
        return leaf
    if leaf.dtype not in (jnp.int32, jnp.uint32):
        return None
    bits = lax.bitcast_convert_type(leaf, jnp.uint32)
    return jnp.stack([(bits >> s & 0xFFF).astype(jnp.float32) for s in _SHIFTS])


def _from_float32(piece: jax.Array, dtype: DType) -> jax.Array:
    if dtype == jnp.float32:
        return piece
    bits = sum((piece[i].astype(jnp.uint32) << s for i, s in enumerate(_SHIFTS)), start=jnp.uint32(0))
    return lax.bitcast_convert_type(bits, dtype)


# --- streamed -----------------------------------------------------------------------------------

# Dispatch runs ahead of the device; more chunks in flight only cost memory.
_IN_FLIGHT = 2


class PassStream:
    """Runs one pass from a host loop over chunks, in memory that does not grow with the cohort.

    The step has no collective and donates its accumulators, ``[D, ...]`` for D devices; `finish`
    traces the one reduction across devices. Compiled programs are kept for the object's life.
    """

    def __init__(self, run: Pass, mesh: Mesh, placer: Placer | None = None):
        self.mesh = mesh
        self._run, self._placer = run._replace(in_step=_spreads_clients(mesh)), placer or Placer(mesh)
        split = NamedSharding(mesh, _SPLIT)
        # What `_start` has traced, the `_step` that follows, of the same arguments, need not trace again.
        self._one: Traced | None = None
        self._start = jax.jit(self._sharded_zeros, out_shardings=split)
        options = compiler_options(mesh.devices.flat[0].platform)
        self._step = jax.jit(
            self._sharded_step, static_argnums=3, donate_argnums=0, out_shardings=split, compiler_options=options
        )

    def __call__(
        self,
        server: PyTree,
        chunks: Iterable[tuple[int | None, Clients]],
        sink: Callable[[Clients], None],
        *,
        are_fresh: bool = False,
        begin: Callable[[PyTree], None] | None = None,
        compiling: AbstractContextManager[None] | None = None,
    ) -> tuple[PyTree, ...]:
        """Maps all chunks and returns the accumulators, to be given to `finish`.

        Args:
          server: Values that every client sees, on the mesh.
          chunks: The cohort: of each chunk the `own_part`, and how many clients a device maps at
            once, or None for all of its own.
          sink: Called with each chunk's outputs, on the device, once they are computed.
          are_fresh: Whether nobody writes to the chunks' arrays any more, so that they need no copy.
          begin: Called with accumulators, before the first step is compiled.
          compiling: Left when the first step is compiled.
        """
        accumulators, waiting = None, deque()
        with ExitStack() as first:
            first.enter_context(compiling or nullcontext())
            for lanes, chunk in chunks:
                chunk = self._placer.chunk(chunk, are_fresh=are_fresh)
                if accumulators is None:
                    accumulators = self._start(server, chunk)
                    begin(accumulators) if begin else None
                accumulators, outputs, done = self._step(accumulators, server, chunk, lanes)
                first.close()
                self._one = None
                waiting.append((done, Clients(outputs, chunk.mask, chunk.id)))
                if len(waiting) > _IN_FLIGHT:
                    _hand_over(waiting, sink)
        if accumulators is None:
            raise ValueError("a cohort needs at least one client; got no chunk. Sample again, or skip the round.")
        while waiting:
            _hand_over(waiting, sink)
        return accumulators

    def lowered(self, server: PyTree, chunk: Clients, lanes: int | None) -> jax.stages.Lowered:
        """Returns a chunk's program, traced; once it is compiled, calls on chunks of the same shape find it."""
        chunk = self._placer.chunk(chunk)
        program = self._step.lower(self._start(server, chunk), server, chunk, lanes)
        self._one = None
        return program

    def seconds(self, server: PyTree, chunk: Clients, lanes: int | None) -> float:
        """Measures how long a chunk takes, once its program is compiled; the shortest of a few runs.

        All processes get the numbers of process 0, and so make equally many runs.
        """
        chunk, seconds = self._placer.chunk(chunk), []
        while len(seconds) < 3 or (len(seconds) < 10 and sum(seconds[1:]) < 0.1):
            accumulators = jax.block_until_ready(self._start(server, chunk))
            started = time.perf_counter()
            jax.block_until_ready(self._step(accumulators, server, chunk, lanes))
            seconds.append(agreed(time.perf_counter() - started))
        return min(seconds[1:])

    def finish(self, accumulators: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Reduces the devices' accumulators to the pass's values; traceable."""

        def device(accumulators: PyTree) -> PyTree:
            return _report(self._run, _all_reduce(self._run, _unstacked(accumulators)))

        return _by_device(device, self.mesh, in_specs=_SPLIT, out_specs=_WHOLE)(accumulators)

    def _sharded_zeros(self, server: PyTree, clients: Clients) -> PyTree:
        own, pools, join = per_client(clients)

        def device(server: PyTree, own: PyTree, pools: PyTree) -> PyTree:
            self._one = trace_one(self._run, server, join(own, pools))
            return _stacked(_zeros(self._run, self._one))

        return _by_device(device, self.mesh, in_specs=(_WHOLE, _SPLIT, _pool_specs(clients)), out_specs=_SPLIT)(
            server, own, pools
        )

    def _sharded_step(self, accumulators: PyTree, server: PyTree, clients: Clients, lanes: int | None) -> PyTree:
        own, pools, join = per_client(clients)

        def device(accumulators: PyTree, server: PyTree, own: PyTree, pools: PyTree) -> PyTree:
            shard, accumulators = join(own, pools), _unstacked(accumulators)
            one = self._one or trace_one(self._run, server, shard)
            _check_same_shapes(accumulators, _zeros(self._run, one))
            updated, outputs = _fold(self._run, one, accumulators, server, shard, lanes)
            # Donated accumulators cannot be waited on; this small array can.
            return _stacked(updated), outputs, jnp.any(shard.mask)[None]

        return _by_device(
            device,
            self.mesh,
            in_specs=(_SPLIT, _WHOLE, _SPLIT, _pool_specs(clients)),
            out_specs=_SPLIT,
        )(accumulators, server, own, pools)


def _stacked(accumulators: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], accumulators)


def _unstacked(accumulators: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], accumulators)


def _hand_over(waiting: deque[tuple[jax.Array, Clients]], sink: Callable[[Clients], None]) -> None:
    done, outputs = waiting.popleft()
    jax.block_until_ready(done)
    sink(outputs)
