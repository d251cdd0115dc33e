"""`federated_computation`: trace a function of placed values, and run it in one program or streamed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fedjx.core.execution.agreement import check_agreement
from fedjx.core.execution.cache import use_compilation_cache
from fedjx.core.execution.devices import Placer
from fedjx.core.execution.engine import map_reduce
from fedjx.core.execution.hosts import auto_mesh
from fedjx.core.execution.streaming import Sink, Stream
from fedjx.core.execution.whole import run_whole
from fedjx.core.language.meshes import outside_meshes
from fedjx.core.language.names import PyTree, Type
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.streams import Planned, is_planned, is_stream, whole
from fedjx.core.language.traced import Hooks, Traced
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients, check_same_clients, per_client, stack_cohorts

P = ParamSpec("P")
R = TypeVar("R")


@overload
def federated_computation(fn: Callable[..., PyTree], /) -> Computation[..., Any]: ...
@overload
def federated_computation(*types: Type) -> Callable[[Callable[..., PyTree]], Computation[..., Any]]: ...
def federated_computation(*types: Type) -> Any:
    """Makes a federated computation of a function of placed values.

    Used bare, the types of the arguments are inferred at each call: `Clients` (or a stream of
    them) are at CLIENTS, everything else is at SERVER. Given types, or their notation, the
    function is traced at once and its calls are checked. A function of unplaced types is a
    local computation: an ordinary JAX function with a type.

    >>> @fedjx.federated_computation(fedjx.FederatedType(jnp.float32, fedjx.CLIENTS))
    ... def get_average_temperature(sensor_readings):
    ...     return fedjx.federated_mean(sensor_readings)
    >>> print(get_average_temperature.type_signature)
    ({float32}@CLIENTS -> float32@SERVER)
    >>> get_average_temperature([68.5, 70.3, 69.8])
    Array(69.53334, dtype=float32)
    """
    if len(types) == 1 and callable(types[0]) and not isinstance(types[0], type) and not hasattr(types[0], "dtype"):
        return Computation(types[0])
    return functools.partial(Computation, types=types)


class Computation(Traced, Generic[P, R]):
    """A function of placed values. Call it, or choose how it runs with `in_graph` or `streamed`.

    To a type checker it is a function of what it is called with, to what comes back:
    ``Computation[[State, AtClients], tuple[State, Metrics]]``.

    A call with arrays runs as one compiled program, and inside another traced program as part
    of it: `jit`, `grad`, `vmap`, `scan` and `jax.export` apply. A call with a stream of chunks, such as a `Cohort`,
    runs as a host loop; where it is part of a traced program, a `Cohort` is taken whole.
    """

    def __init__(self, fn: Callable[..., PyTree], types: tuple[Type, ...] | None = None, hooks: Hooks = Hooks()):
        functools.update_wrapper(self, fn)
        super().__init__(fn, types, hooks)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the computation; within another one, becomes part of it."""
        values = self.bind(args, kwargs)
        if any(map(is_stream, values)) and not (_is_tracing(values) and any(map(is_planned, values))):
            return self._streamed(*args, **kwargs)
        if any(isinstance(leaf, FederatedValue) for leaf in jax.tree.leaves(values)):
            return self.inline(values)
        return self._in_graph(*args, **kwargs)

    def in_graph(
        self, *, mesh: Mesh | None = None, lanes: int | None = None, differentiable: bool = True
    ) -> Callable[P, R]:
        """Returns the computation as one compiled, traceable JAX function of arrays; a `Cohort` is taken whole.

        Keep the returned function: it holds the compiled programs.

        Args:
          mesh: Devices with an axis ``clients`` to divide the cohort among, padded if need be. Over further
            axes your own sharding constraints may spread what belongs to one client.
          lanes: How many clients each device maps at once: bounds the memory.
          differentiable: Whether the result has a derivative in reverse. If not, the loop over a client's
            data ends with the longest of the clients that run at once, and costs nothing beyond.
        """
        _check_lanes(lanes)
        use_compilation_cache()
        placer = None if mesh is None else Placer(auto_mesh(mesh))
        agreed: set[tuple[Type, ...]] = set()  # by type, what processes that share the mesh have compared

        @jax.jit
        def compiled(*values: PyTree) -> PyTree:
            if self._is_local(self._types):
                return self._fn(*values)
            program = self.trace(tuple(map(type_of, values)))
            sweep = functools.partial(map_reduce, lanes=lanes, mesh=mesh)
            return run_whole(program, values, sweep, differentiable=differentiable)

        @outside_meshes
        @functools.wraps(self._fn)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            values = self.converted([whole(value) for value in self.bind(args, kwargs)])
            self.check_arrays(values)
            check_same_clients([v for v in values if isinstance(v, Clients)])
            if placer is not None and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values)):
                self._check_agreement(values, mesh, agreed)
                # Or the second round, whose state comes from the mesh, would compile again.
                values = [placer.clients(v) if isinstance(v, Clients) else placer.server(v) for v in values]
            result = compiled(*values)
            self.hooks.result(result)
            return result

        return run

    def scanned(
        self, *, mesh: Mesh | None = None, lanes: int | None = None
    ) -> Callable[[PyTree, Iterable[Clients | Planned]], R]:
        """Returns many rounds of ``(state, cohort) -> (state, metrics)`` as one compiled program.

        Keep the returned function ``(state, cohorts) -> (state, metrics [R, ...])``: it holds the compiled
        programs. Only the plans of the R cohorts are stacked; their pool of examples is one.

        Args:
          mesh: As for `in_graph`.
          lanes: As for `in_graph`.

        >>> import optax
        >>> train, _ = fedjx.data.digits(num_clients=20)
        >>> algorithm = fedjx.fed_avg(fedjx.models.linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.01))
        >>> cohorts = [fedjx.data.Cohort(train, [k, k + 1], batch_size=20) for k in range(5)]
        >>> state, metrics = algorithm.next.scanned()(algorithm.init(jax.random.key(0)), cohorts)
        >>> metrics["loss"].shape, int(state.round)
        ((5,), 5)
        """
        if len(self._parameters) != 2:
            raise TypeError(
                f"rounds run as one program are of (state, data); {self.name} takes ({', '.join(self._parameters)}). "
                "Keep client states on disk or in memory, and call round by round."
            )
        step: Callable[..., PyTree] = self.in_graph(mesh=mesh, lanes=lanes, differentiable=False)
        agreed: set[tuple[Type, ...]] = set()

        @outside_meshes
        @functools.wraps(self._fn)
        def all_rounds(state: PyTree, cohorts: Iterable[Clients | Planned]) -> R:
            if is_planned(cohorts) or isinstance(cohorts, Clients):
                raise TypeError(
                    f"several rounds take a list of cohorts; got a {type(cohorts).__name__} alone. Wrap it: [...]."
                )
            cohorts = [whole(self.hooks.argument(cohort)) for cohort in cohorts]
            for first in cohorts[:1]:
                self._check_agreement([state, first], mesh, agreed)
            result = run(state, stack_cohorts(cohorts))
            self.hooks.result(result)
            return result

        @jax.jit
        def run(state: PyTree, cohorts: Clients) -> PyTree:
            own, pools, join = per_client(cohorts)
            return lax.scan(lambda state, own: step(state, join(own, pools)), state, own)

        all_rounds.__dict__["takes_rounds"] = True  # a list of cohorts, for who counts rounds before they run
        return all_rounds

    def streamed(
        self,
        *,
        mesh: Mesh | None = None,
        lanes: int | None = None,
        sink: Sink | None = None,
        debug: bool = False,
    ) -> Stream[P, R]:
        """Returns the computation as a host loop over chunks of the cohort, in constant memory.

        Keep the returned function: it holds the compiled programs.

        Args:
          mesh: Devices with an axis ``clients``; all devices if not given. Where several processes share
            them, each calls with the same arguments, and plans and places the clients of its own devices.
          lanes: How many clients each device maps at once, if `Clients` are given whole: they are cut into
            chunks of so many. A `Cohort` knows its own; other streams come in chunks already.
          sink: Called with the results at CLIENTS, chunk by chunk, on the device, in the order of the
            chunks; they are then None in the result. Without a sink they are gathered in host
            memory, in the order of the cohort. Each process gets the results of its own devices' clients.
          debug: Whether one client runs after the other, on one device, and nothing is compiled, so that a debugger and
            `print` see numbers. Slow. A client whose numbers stop being finite is an error, `fedjx.NonFiniteError`,
            that names it, the step, the batch and the leaf, where it would be left out and counted; an exception
            raised in a client's work gets a note of the same.

        >>> import optax
        >>> train, _ = fedjx.data.digits(num_clients=20)
        >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1))
        >>> algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(1e38))
        >>> cohort = fedjx.data.Cohort(train, [3, 4], batch_size=20)
        >>> algorithm.next.streamed(debug=True)(algorithm.init(jax.random.key(0)), cohort)
        Traceback (most recent call last):
        fedjx.core.language.debugging.NonFiniteError: ...
        """
        _check_lanes(lanes)
        stream: Stream[P, R] = Stream(self, mesh, lanes, sink, debug)
        functools.update_wrapper(stream, self._fn)
        return stream

    def _check_agreement(self, values: list[PyTree], mesh: Mesh | None, agreed: set[tuple[Type, ...]]) -> None:
        if mesh is None or not mesh.is_multi_process or self._is_local(self._types):
            return
        types = tuple(map(type_of, values))
        if types not in agreed:
            check_agreement(self.name, self.trace(types), self.named(values), mesh)
            agreed.add(types)

    @functools.cached_property
    def _in_graph(self) -> Callable[P, R]:
        return self.in_graph()

    @functools.cached_property
    def _streamed(self) -> Stream[P, R]:
        return self.streamed()


def _is_tracing(values: list[PyTree]) -> bool:
    """Tells whether a transformation of JAX is at work, on the arguments or around the call."""
    leaves = [leaf for value in values if not is_stream(value) for leaf in jax.tree.leaves(value)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *leaves])


def _check_lanes(lanes: int | None) -> None:
    if lanes is not None and lanes < 1:
        raise ValueError(f"at least one client runs at once; got {lanes=}. Leave it out for all at once.")
