"""The streamed executor: a host loop over chunks of the cohort."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjx.core.execution.agreement import check_agreement
from fedjx.core.execution.ahead import fed
from fedjx.core.execution.cache import compiling, use_compilation_cache
from fedjx.core.execution.chunks import Chunks, Level
from fedjx.core.execution.debug import one_by_one
from fedjx.core.execution.devices import Placer
from fedjx.core.execution.engine import PassStream
from fedjx.core.execution.hosts import agreed, auto_mesh, device_memory, share_of
from fedjx.core.execution.lanes import Lanes
from fedjx.core.execution.stages import Stage
from fedjx.core.execution.whole import run_whole
from fedjx.core.language.meshes import outside_meshes
from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.program import Environment, Program
from fedjx.core.language.shares import AXIS, own_rows
from fedjx.core.language.streams import Planned, first_chunk, is_planned, is_stream, whole
from fedjx.core.language.traced import Traced
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients

P = ParamSpec("P")
R = TypeVar("R")
Sink = Callable[[Clients], None]


class Stream(Generic[P, R]):
    """A computation as a host loop. Holds compiled programs by the types of the arguments.

    Attributes:
      lanes: How many clients each device ran at once in the last call; None if all of a chunk's.
    """

    def __init__(
        self, computation: Traced, mesh: Mesh | None, lanes: int | None, sink: Sink | None, debug: bool = False
    ):
        use_compilation_cache()
        self.lanes = self._asked_lanes = lanes
        self._levels: list[Level] = []
        self._search: Lanes | None = None
        self._result_bytes: int | None = 0
        self._computation, self._sink, self._debug = computation, sink, debug
        self._mesh = auto_mesh(mesh or Mesh(np.array(jax.devices()), (AXIS,)))
        # A cohort decides by it what goes to the device, which must be the same in all processes.
        self._share = share_of(self._mesh)._replace(memory=agreed(device_memory()))
        self._placer = Placer(self._mesh)
        self._by_arrays: dict[Hashable, _Compiled] = {}
        self._by_type: dict[Hashable, _Compiled] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs every pass over the cohort's chunks."""
        return outside_meshes(self._run)(*args, **kwargs)

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        values = self._computation.bind(args, kwargs)
        shown = [first_chunk(value) for value in values]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *jax.tree.leaves(shown)]):
            raise TypeError("a streamed computation is a host loop; got called while tracing. Use in_graph under jit.")
        self._computation.check_arrays(shown)
        if self._debug:
            return self._one_by_one(values)
        shown = self._computation.converted(shown)
        compiled = self._compile(shown)
        if not compiled.is_agreed:
            arguments = self._computation.named([v if is_stream(v) else s for v, s in zip(values, shown, strict=True)])
            check_agreement(self._computation.name, compiled.program, arguments, self._mesh)
            compiled.is_agreed = True
        server = self._placer.server(compiled.program.server_arguments(shown))
        at_clients = [v if is_stream(v) else s for v, s in zip(values, shown, strict=True) if isinstance(s, Clients)]
        self._result_bytes = compiled.program.result_bytes()
        chunks = Chunks(at_clients, self._share, result_bytes=self._result_bytes)
        lanes = self._asked_lanes or chunks.asked_lanes
        self._search = compiled.lanes if lanes == "auto" else None
        if self._search:
            self._levels = self._search.levels
        else:
            self._levels = [Level(int(lanes), 1.0)] if lanes else []
        self.lanes = self._levels[0].lanes if self._levels else None
        result, environments = compiled.run(server, chunks, self._levels, self._sink)
        if self._search:
            self._search.after_round(environments, chunks)
        self._computation.hooks.result(result)
        return result

    @property
    def is_settled(self) -> bool:
        """Whether the lanes of cohorts like the last one stay as they are: said by the caller, or tried to the end."""
        return self._search is None or self._search.is_settled

    def ahead(self, cohorts: Iterable[Planned], *, num_chunks: int = 4, max_bytes: int = 1 << 30) -> Iterator[Planned]:
        """Yields cohorts whose chunks a background thread makes while the device computes.

        The first cohort comes as it is: how many clients run at once is known after it.

        Args:
          cohorts: For this computation's only argument at CLIENTS that is a cohort, round by round;
            read in the thread, one by one.
          num_chunks: How many chunks may wait at any time; more hide longer hitches, and take memory.
          max_bytes: No chunk is begun while those that wait have so many bytes on the devices, pools that
            are resident apart.

        >>> import optax
        >>> train, _ = fedjx.data.digits(num_clients=20)
        >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1), scale=1 / 16)
        >>> algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1))
        >>> step, state = algorithm.next.streamed(), algorithm.init(jax.random.key(0))
        >>> for cohort in step.ahead(fedjx.data.Cohort(train, [k, k + 1], batch_size=20) for k in range(3)):
        ...     state, metrics = step(state, cohort)
        >>> int(state.round)
        3
        """
        if is_planned(cohorts):
            raise TypeError(
                f"`ahead` takes the cohorts of several rounds; got one {type(cohorts).__name__}. Wrap it: [...]."
            )
        if self._debug:
            yield from cohorts
            return
        cohorts = map(self._computation.hooks.argument, cohorts)
        for first in itertools.islice(cohorts, 1):
            yield first
            if not self._levels:
                raise RuntimeError(
                    "the first cohort decides how the others are cut, so this computation must have run it; "
                    "got the second asked for before. Call the object whose `ahead` this is."
                )

        def chunks(cohort: Planned) -> Chunks:
            return Chunks([cohort], self._share, result_bytes=self._result_bytes)

        def make(cohort: Planned, ids: np.ndarray, mask: np.ndarray) -> Clients:
            return self._placer.chunk(cohort.members(ids, mask, self._share), are_fresh=True)

        yield from fed(
            cohorts,
            order=lambda cohort: [(ids, mask) for _, ids, mask in chunks(cohort).order(self._levels)],
            make=outside_meshes(make),
            num_chunks=num_chunks,
            max_bytes=max_bytes,
            share=self._share,
        )

    def _one_by_one(self, values: list[PyTree]) -> R:
        """Runs the computation in debug mode."""
        values = self._computation.converted(list(map(whole, values)))
        program = self._computation.trace(tuple(map(type_of, values)))
        result = run_whole(program, tuple(values), one_by_one)
        if self._sink is None:
            return result
        results = [x for x in jax.tree.leaves(result, is_leaf=_is_clients) if _is_clients(x)]
        self._sink(Clients(tuple(x.value for x in results), results[0].mask, results[0].id)) if results else None
        return jax.tree.map(lambda x: None if _is_clients(x) else x, result, is_leaf=_is_clients)

    def _compile(self, values: list[PyTree]) -> _Compiled:
        leaves, treedef = jax.tree.flatten(values)
        arrays = (treedef, *((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves))
        if arrays not in self._by_arrays:
            types = tuple(map(type_of, values))
            # A type leaves out padded lengths, and so does a program: chunks of all lengths share it.
            if (types, treedef) not in self._by_type:
                self._by_type[types, treedef] = _Compiled(
                    self._computation.name, self._computation.trace(types), self._mesh, self._placer
                )
            self._by_arrays[arrays] = self._by_type[types, treedef]
        return self._by_arrays[arrays]


class _Compiled:
    """A program and the compiled steps of its passes."""

    def __init__(self, name: str, program: Program, mesh: Mesh, placer: Placer):
        self._name, self.program = name, program
        passes = [program.client_pass(k)._replace(differentiable=False) for k in range(program.num_passes)]
        self._passes = [PassStream(run, mesh, placer) for run in passes]
        self._first = Stage(program, 0, functools.partial(program.server_stage, 0), mesh)
        finishes = [functools.partial(self._finish, level) for level in range(program.num_passes)]
        self._finishes = [Stage(program, level + 1, finish, mesh) for level, finish in enumerate(finishes)]
        self.lanes = Lanes(self._passes)
        self.is_agreed = False  # whether all processes have said that they run it on the same arguments
        self._has_run = False

    def _finish(
        self, level: int, environment: Environment, accumulators: PyTree, members: PyTree = (), mask: PyTree = ()
    ) -> Environment:
        reduced = self._passes[level].finish(accumulators)
        return self.program.after_pass(level, environment, reduced, members, mask)

    def run(
        self, server: Environment, chunks: Chunks, levels: list[Level], sink: Sink | None
    ) -> tuple[PyTree, list[Environment]]:
        """Returns the result, and what the server had for each pass."""
        environment, environments, finished, cut = self._first(server), [], {}, chunks.cut(levels)
        for level, (run, finish) in enumerate(zip(self._passes, self._finishes, strict=True)):
            receiver = _Receiver(sink)
            environments.append(environment)
            collects = self.program.collections(level)  # of shapes that only the pass tells
            begin = None if collects else functools.partial(finish.begin, environment)
            told = None if self._has_run else compiling(self._name)
            accumulators = run(environment, cut, receiver, are_fresh=chunks.are_fresh, begin=begin, compiling=told)
            environment = finish(environment, accumulators, *receiver.members())
            finished.update(zip(self.program.outputs(level), receiver.outputs(chunks.places), strict=False))
        self._has_run = True
        results = {**dict.fromkeys(self.program.client_results()), **environment, **finished}
        return self.program.assemble(results), environments


class _Receiver:
    """Keeps what chunks leave behind: members to collect on the device, results in host memory."""

    def __init__(self, sink: Sink | None):
        self._sink = sink
        self._members: list[tuple[PyTree, Array]] = []
        self._outputs: list[Clients] = []

    def __call__(self, chunk: Clients) -> None:
        members, results = chunk.value
        if members:
            self._members.append((members, chunk.mask))
        own = own_rows(Clients(results, chunk.mask, chunk.id))
        if results and self._sink is not None:
            self._sink(Clients(tuple(own.value), own.mask, own.id))
        elif results:
            self._outputs.append(jax.tree.map(_to_host, own))

    def members(self) -> tuple[PyTree, ...]:
        return jax.tree.map(_concatenated, *self._members) if self._members else ()

    def outputs(self, places: Callable[[np.ndarray], np.ndarray]) -> list[Clients]:
        if not self._outputs:
            return []
        whole = jax.tree.map(_concatenated, *self._outputs)
        rows = np.flatnonzero(whole.mask)
        rows = rows[places(whole.id[rows])]
        real = jax.tree.map(lambda x: x[rows], whole)
        return [Clients(value, real.mask, real.id) for value in real.value]


def _is_clients(x: object) -> bool:
    return isinstance(x, Clients)


def _to_host(x: jax.Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)  # NumPy has no random keys


def _concatenated(*parts: Array) -> Array:
    shapes = sorted({x.shape[1:] for x in parts})
    if len(shapes) > 1:
        raise ValueError(
            "what chunks leave at CLIENTS needs one shape, so it cannot depend on the padded length of a sequence; "
            f"got {shapes}. Reduce over the sequence first, give the chunks one num_steps, or pass a sink."
        )
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else jnp.concatenate(parts)
