"""`federated_computation`: trace a function of placed values, and run it in one program or streamed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax import lax
from jax.sharding import Mesh

from fedjx.core.execution.arguments import as_declared, check_type, declared_type
from fedjx.core.execution.devices import Placer
from fedjx.core.execution.engine import map_reduce
from fedjx.core.execution.hosts import auto_mesh
from fedjx.core.execution.streaming import Sink, Stream, first_chunk, is_stream
from fedjx.core.language.operators import federated_zip
from fedjx.core.language.placed import FederatedValue, Node
from fedjx.core.language.program import Environment, Message, Program
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType, FunctionType, Struct, notation, type_of
from fedjx.core.language.values import Clients, check_same_clients, per_client, side_by_side, stack_cohorts

PyTree = Any


def federated_computation(*types: Any) -> Any:
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


class Computation:
    """A function of placed values. Call it, or choose how it runs with `in_graph` or `streamed`.

    A call with arrays runs as one compiled program, and inside another traced program as part
    of it: `jit`, `grad`, `vmap`, `scan` and `jax.export` apply. A call with a stream of chunks
    runs as a host loop.
    """

    def __init__(self, fn: Callable[..., PyTree], types: tuple[Any, ...] | None = None):
        functools.update_wrapper(self, fn)
        self.name = getattr(fn, "__name__", repr(fn))
        self._fn = fn
        self._signature = inspect.signature(fn)
        self._parameters = _parameter_names(self.name, self._signature)
        if types is None and not self._parameters:
            types = ()
        self._types = None if types is None else tuple(map(declared_type, types))
        if self._types is not None and len(self._types) != len(self._parameters):
            raise TypeError(
                f"a computation declares one type per parameter; got {len(self._types)} for {self._parameters} of "
                f"{self.name}. Declare all, or none."
            )
        if self._types is not None:
            self._declared_signature = self._signature_of(self._types)

    def __repr__(self) -> str:
        return f"<federated computation {self.name}>"

    # --- types ---

    @property
    def type_signature(self) -> Any:
        """The `FunctionType`; for a computation without declared types, a function of the arguments.

        Arguments may be values, streams or types.
        """
        return self._inferred_signature if self._types is None else self._declared_signature

    def _inferred_signature(self, *args: Any, **kwargs: Any) -> FunctionType:
        return self._signature_of(self._types_of(args, kwargs))

    def _signature_of(self, types: tuple[Any, ...]) -> FunctionType:
        parameter = types[0] if len(types) == 1 else Struct(self._parameters, types) if types else None
        if self._is_local(types):
            return FunctionType(parameter, jax.eval_shape(self._fn, *types))
        return FunctionType(parameter, _result_type(self.trace(types).result))

    def _types_of(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        return tuple(type_of(first_chunk(value)) for value in self.bind(args, kwargs))

    def _is_local(self, types: tuple[Any, ...] | None) -> bool:
        return bool(types) and not any(isinstance(t, FederatedType) for t in types)

    def communication(self, *args: Any, **kwargs: Any) -> list[Message]:
        """Lists the messages between the server and one client, without running anything.

        Arguments may be values, streams or types; none are needed where types are declared.
        """
        return self.program(*args, **kwargs).communication()

    # --- tracing ---

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """Traces the computation for arguments, which may be values, streams or types, or for its declared types."""
        types = self._types if self._types is not None and not args and not kwargs else self._types_of(args, kwargs)
        return self.trace(types)

    def trace(self, types: tuple[Any, ...]) -> Program:
        """Runs the function on placed values of the types, and cuts its graph into passes."""
        for name, type_ in zip(self._parameters, types, strict=True):
            if not isinstance(type_, FederatedType):
                raise TypeError(
                    f"parameters must be all placed or all unplaced; got {notation(type_)} for {name!r}. "
                    "Write FederatedType(member, SERVER)."
                )
            if "?" in str(type_):
                raise TypeError(f"a computation is traced for arrays of known size; got {type_} for {name!r}. Give it.")
        arguments = [Node("argument", type_) for type_ in types]
        try:
            result = self._fn(*map(FederatedValue, arguments))
        except (TypeError, ValueError) as error:
            if FederatedValue.__name__ in str(error):
                error.add_note("fedjx: a placed value is no array. Act on its members with federated_map.")
            raise
        return Program(arguments, _normal(result))

    def bind(self, args: Any, kwargs: Any) -> list[Any]:
        """Returns the arguments of a call in the order of the parameters."""
        bound = self._signature.bind(*args, **kwargs)
        options = [name for name in bound.arguments if name not in self._parameters]
        if options:
            raise TypeError(
                f"keyword-only parameters keep their defaults; {self.name} got {options}. Pass by position."
            )
        bound.apply_defaults()
        values = [bound.arguments[name] for name in self._parameters]
        if self._types is None and any(isinstance(v, list) and not v for v in values):
            raise ValueError("a cohort needs at least one client; got []. Sample again, or skip the round.")
        return values

    def converted(self, values: list[Any]) -> list[Any]:
        """Brings arguments into their declared types, or leaves them if none are declared."""
        if self._types is None:
            return values
        named = zip(self._parameters, values, self._types, strict=True)
        return [as_declared(self.name, name, value, type_) for name, value, type_ in named]

    # --- calling ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the computation; within another one, becomes part of it."""
        values = self.bind(args, kwargs)
        if any(map(is_stream, values)):
            return self._streamed(*values)
        if any(isinstance(leaf, FederatedValue) for leaf in jax.tree.leaves(values)):
            return self._inline(values)
        return self._in_graph(*values)

    def _inline(self, values: list[Any]) -> Any:
        if self._types is not None:
            values = [federated_zip(value) for value in values]
            for name, value, type_ in zip(self._parameters, values, self._types, strict=True):
                check_type(self.name, name, value.type, type_)
        return self._fn(*values)

    def in_graph(
        self, *, mesh: Mesh | None = None, lanes: int | None = None, differentiable: bool = True
    ) -> Callable[..., Any]:
        """Returns the computation as one compiled, traceable JAX function of arrays.

        Keep the returned function: it holds the compiled programs.

        Args:
          mesh: Devices with an axis ``clients`` to divide the cohort among, padded if need be. Over further
            axes your own sharding constraints may spread what belongs to one client.
          lanes: How many clients each device maps at once: bounds the memory.
          differentiable: Whether the result has a derivative in reverse. If not, the loop over a client's
            data ends with the longest of the clients that run at once, and costs nothing beyond.
        """
        _check_lanes(lanes)
        placer = None if mesh is None else Placer(auto_mesh(mesh))

        @jax.jit
        def compiled(*values: Any) -> Any:
            if self._is_local(self._types):
                return self._fn(*values)
            return _run_in_graph(self.trace(tuple(map(type_of, values))), values, lanes, mesh, differentiable)

        @functools.wraps(self._fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            values = self.converted(self.bind(args, kwargs))
            check_same_clients([v for v in values if isinstance(v, Clients)])
            if placer is not None and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values)):
                # Or the second round, whose state comes from the mesh, would compile again.
                values = [placer.clients(v) if isinstance(v, Clients) else placer.server(v) for v in values]
            return compiled(*values)

        return run

    def scanned(self, *, mesh: Mesh | None = None, lanes: int | None = None) -> Callable[..., Any]:
        """Returns many rounds of ``(state, cohort) -> (state, metrics)`` as one compiled program.

        Keep the returned function ``(state, cohorts) -> (state, metrics [R, ...])``: it holds the compiled
        programs. Only the plans of the R cohorts are stacked; their pool of examples is one.

        Args:
          mesh: As for `in_graph`.
          lanes: As for `in_graph`.

        >>> import optax
        >>> train, _ = fedjx.data.digits(num_clients=20)
        >>> algorithm = fedjx.fed_avg(fedjx.models.linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.01))
        >>> cohorts = [fedjx.data.cohort(train, [k, k + 1], batch_size=20, num_steps=9) for k in range(5)]
        >>> state, metrics = algorithm.next.scanned()(algorithm.init(jax.random.key(0)), cohorts)
        >>> metrics["loss"].shape, int(state.round)
        ((5,), 5)
        """
        step = self.in_graph(mesh=mesh, lanes=lanes, differentiable=False)

        @jax.jit
        def run(state: Any, cohorts: Clients) -> Any:
            own, pools, join = per_client((cohorts.value, cohorts.mask, cohorts.id))
            return lax.scan(lambda state, own: step(state, Clients(*join(own, pools))), state, own)

        return lambda state, cohorts: run(state, stack_cohorts(cohorts))

    def streamed(
        self, *, mesh: Mesh | None = None, lanes: int | None = None, sink: Sink | None = None
    ) -> Callable[..., Any]:
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
        """
        _check_lanes(lanes)
        return functools.update_wrapper(Stream(self, mesh, lanes, sink), self._fn)

    @functools.cached_property
    def _in_graph(self) -> Callable[..., Any]:
        return self.in_graph()

    @functools.cached_property
    def _streamed(self) -> Callable[..., Any]:
        return self.streamed()


def _parameter_names(name: str, signature: inspect.Signature) -> tuple[str, ...]:
    names = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind != parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"a federated computation has positional parameters; got {parameter} in {name}. Name each.")
    return tuple(names)


def _check_lanes(lanes: int | None) -> None:
    if lanes is not None and lanes < 1:
        raise ValueError(f"at least one client runs at once; got {lanes=}. Leave it out for all at once.")


def _run_in_graph(
    program: Program, values: tuple[Any, ...], lanes: int | None, mesh: Mesh | None, differentiable: bool
) -> Any:
    environment = program.server_stage(0, program.server_arguments(values))
    clients = _cohort([v for v in values if isinstance(v, Clients)]) if program.num_passes else None
    finished: Environment = {}
    for level in range(program.num_passes):
        assert clients is not None
        run = program.client_pass(level)._replace(differentiable=differentiable)
        reduced, (members, outputs) = map_reduce(run, environment, clients, lanes=lanes, mesh=mesh)
        results = [Clients(x, clients.mask, clients.id) for x in outputs]
        finished.update(zip(program.outputs(level), results, strict=True))
        environment = program.after_pass(level, environment, reduced, members, clients.mask)
    return program.assemble({**environment, **finished})


def _cohort(arguments: list[Clients]) -> Clients:
    if not arguments:
        raise ValueError("a cohort needs at least one client; got no argument at CLIENTS. Pass Clients.")
    return side_by_side(arguments)


# --- results --------------------------------------------------------------------------------------


def _normal(result: PyTree, top: bool = True) -> PyTree:
    """Checks that all of a result is placed, and zips structures that are wholly at CLIENTS."""
    leaves = jax.tree.leaves(result)
    for leaf in leaves:
        if not isinstance(leaf, FederatedValue):
            raise TypeError(
                f"a federated computation returns placed values; got {leaf!r}. "
                "Place it with federated_value(x, fedjx.SERVER)."
            )
    if top and type(result) is tuple:
        return tuple(_normal(part, top=False) for part in result)
    at_clients = leaves and all(leaf.type.placement == CLIENTS for leaf in leaves)
    return federated_zip(result) if at_clients else result


def _result_type(result: PyTree, top: bool = True) -> Any:
    """Types a result: what is wholly at the server is one value, but for the parts of a returned tuple."""
    if isinstance(result, FederatedValue):
        return result.type
    if not (top and type(result) is tuple):
        leaves = jax.tree.leaves(result)
        if all(leaf.type.placement == SERVER for leaf in leaves):
            return FederatedType(jax.tree.map(lambda leaf: leaf.type.member, result), SERVER)
    parts, treedef = jax.tree.flatten(result, is_leaf=lambda x: x is not result)
    return treedef.unflatten([_result_type(part, top=False) for part in parts])
