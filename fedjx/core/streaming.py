"""The streamed executor: a host loop over chunks of the cohort."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.engine import AXIS, PassStream, Placer, auto_mesh
from fedjx.core.placed import FederatedValue
from fedjx.core.program import Environment, Program
from fedjx.core.types import FederatedType, type_of
from fedjx.core.values import Clients, check_same_clients, per_client, side_by_side

if TYPE_CHECKING:
    from fedjx.core.computation import Computation

PyTree = Any
Sink = Callable[[Clients], None]


def is_stream(value: Any) -> bool:
    """Tells whether an argument is a cohort in chunks: a list of `Clients`, or an iterable that is no pytree.

    Raises:
      TypeError: If it can be iterated over only once; every pass reads it again.
    """
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Clients)
    no_stream = isinstance(value, (FederatedValue, FederatedType, Mapping, str)) or hasattr(value, "shape")
    if no_stream or not isinstance(value, Iterable):
        return False
    if iter(value) is value:
        raise TypeError(
            f"a stream is read once per pass, so it must be iterable again; got {type(value).__name__}. "
            "Pass a list of chunks, or an object with __iter__."
        )
    return jax.tree_util.all_leaves([value])


def first_chunk(value: Any) -> Any:
    """Returns the first chunk of a stream, anything else as it is.

    Raises:
      ValueError: If the stream has no chunk.
      TypeError: If it is no stream of `Clients`.
    """
    if not is_stream(value):
        return value
    first = next(iter(value), None)
    if first is None:
        raise ValueError("a cohort needs at least one client; got an empty stream. Sample again, or skip the round.")
    if not isinstance(first, Clients):
        raise TypeError(f"a stream yields Clients; got {type(first).__name__} from {type(value).__name__}. Wrap it.")
    return first


class Stream:
    """A computation as a host loop. Holds compiled programs by the types of the arguments."""

    def __init__(self, computation: Computation, mesh: Mesh | None, chunk_size: int | None, sink: Sink | None):
        self._computation, self._chunk_size, self._sink = computation, chunk_size, sink
        self._mesh = auto_mesh(mesh or Mesh(np.array(jax.devices()[:1]), (AXIS,)))
        self._placer = Placer(self._mesh)
        self._by_arrays: dict[Any, _Compiled] = {}
        self._by_type: dict[Any, _Compiled] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs every pass over the cohort's chunks."""
        values = self._computation.bind(args, kwargs)
        shown = [first_chunk(value) for value in values]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *jax.tree.leaves(shown)]):
            raise TypeError("a streamed computation is a host loop; got called while tracing. Use in_graph under jit.")
        shown = self._computation.converted(shown)
        at_clients = [(v, s) for v, s in zip(values, shown, strict=True) if isinstance(s, Clients)]
        chunks = _Chunks([v if is_stream(v) else s for v, s in at_clients], self._chunk_size)
        compiled = self._compile(shown)
        server = self._placer.server(compiled.program.server_arguments(shown))
        return compiled.run(server, chunks, self._sink)

    def _compile(self, values: list[Any]) -> _Compiled:
        leaves, treedef = jax.tree.flatten(values)
        arrays = (treedef, *((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves))
        if arrays not in self._by_arrays:
            types = tuple(map(type_of, values))
            # A type leaves out padded lengths, and so does a program: chunks of all lengths share it.
            if (types, treedef) not in self._by_type:
                self._by_type[types, treedef] = _Compiled(self._computation.trace(types), self._mesh, self._placer)
            self._by_arrays[arrays] = self._by_type[types, treedef]
        return self._by_arrays[arrays]


class _Compiled:
    """A program and the compiled steps of its passes."""

    def __init__(self, program: Program, mesh: Mesh, placer: Placer):
        self.program = program
        whole = NamedSharding(mesh, PartitionSpec())
        self._passes = [PassStream(program.client_pass(k), mesh, placer) for k in range(program.num_passes)]
        self._first = jax.jit(functools.partial(program.server_stage, 0), out_shardings=whole)
        stages = [functools.partial(self._finish, level) for level in range(program.num_passes)]
        self._finishes = [jax.jit(stage, out_shardings=whole) for stage in stages]

    def _finish(self, level: int, environment: Environment, accumulators: Any, members: Any, mask: Any) -> Environment:
        reduced = self._passes[level].finish(accumulators)
        return self.program.after_pass(level, environment, reduced, members, mask)

    def run(self, server: Environment, chunks: _Chunks, sink: Sink | None) -> Any:
        environment, finished = self._first(server), {}
        for level, (run, finish) in enumerate(zip(self._passes, self._finishes, strict=True)):
            receiver = _Receiver(sink)
            accumulators = run(environment, chunks, receiver)
            environment = finish(environment, accumulators, *receiver.members())
            finished.update(zip(self.program.outputs(level), receiver.outputs(), strict=False))
        return self.program.assemble({**dict.fromkeys(self.program.client_results()), **environment, **finished})


class _Receiver:
    """Keeps what chunks leave behind: members to collect on the device, results in host memory."""

    def __init__(self, sink: Sink | None):
        self._sink = sink
        self._members: list[tuple[PyTree, Any]] = []
        self._outputs: list[Clients] = []

    def __call__(self, chunk: Clients) -> None:
        members, results = chunk.value
        if members:
            self._members.append((members, chunk.mask))
        if results and self._sink is not None:
            self._sink(Clients(tuple(results), chunk.mask, chunk.id))
        elif results:
            self._outputs.append(jax.tree.map(_to_host, Clients(results, chunk.mask, chunk.id)))

    def members(self) -> tuple[Any, Any]:
        return jax.tree.map(_concatenated, *self._members) if self._members else ([], ())

    def outputs(self) -> list[Clients]:
        if not self._outputs:
            return []
        whole = jax.tree.map(_concatenated, *self._outputs)
        real = jax.tree.map(lambda x: x[whole.mask], whole)
        return [Clients(value, real.mask, real.id) for value in real.value]


def _to_host(x: jax.Array) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)  # NumPy has no random keys


def _concatenated(*parts: Any) -> Any:
    shapes = sorted({x.shape[1:] for x in parts})
    if len(shapes) > 1:
        raise ValueError(
            "what chunks leave at CLIENTS needs one shape, so it cannot depend on the padded length of a sequence; "
            f"got {shapes}. Reduce over the sequence first, give the chunks one num_steps, or pass a sink."
        )
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else jnp.concatenate(parts)


class _Chunks:
    """The cohort as chunks of clients, all arguments at CLIENTS side by side; can be read again."""

    def __init__(self, arguments: list[Any], chunk_size: int | None):
        if not arguments:
            raise ValueError("a cohort needs at least one client; got no argument at CLIENTS. Pass Clients.")
        check_same_clients([a for a in arguments if isinstance(a, Clients)])
        self._arguments = [_cut(a, chunk_size) if isinstance(a, Clients) else a for a in arguments]

    def __iter__(self) -> Iterator[Clients]:
        for number, chunks in enumerate(itertools.zip_longest(*self._arguments)):
            if any(chunk is None for chunk in chunks):
                raise ValueError(
                    "all arguments at CLIENTS need the same clients in the same chunks; "
                    f"got one that ends after {number} chunks. Sample them together."
                )
            yield side_by_side(list(chunks))


def _cut(clients: Clients, chunk_size: int | None) -> list[Clients]:
    """Cuts a cohort into chunks of one size, the last padded with copies of its first clients."""
    num_clients = clients.num_clients
    size = min(chunk_size or num_clients, num_clients)
    own, pools, join = per_client((clients.value, clients.mask, clients.id))
    chunks = []
    for start in range(0, num_clients, size):
        rows = np.arange(start, start + size)
        value, mask, ids = join(jax.tree.map(lambda x, rows=rows: x[rows % num_clients], own), pools)
        real = rows < num_clients
        chunks.append(Clients(value, jnp.asarray(mask) & real, jnp.where(real, ids, -1)))
    return chunks
