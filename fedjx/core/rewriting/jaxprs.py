"""All that fedjx reads of the insides of JAX: the operations of a traced program and their parameters.

JAX documents how a function is traced and a program evaluated, but neither how its operations are
called nor what parameters they carry, which change from version to version. They are read here and
nowhere else. `parameters` gives those of an operation in one form for all versions, or None where the
operation is not exactly as it is known: the rewriting then leaves it as JAX has it, right and slow,
and says so once. `tests/core/rewriting/test_jaxprs.py` names every assumption made here.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core

PyTree = Any  # of arrays, in any structure
Values = list[jax.Array]  # of arguments or results of a program, in their order
Parameters = dict[str, Any]  # of an operation, by name
Jaxpr = Any  # jax.extend.core.Jaxpr, and until JAX 0.11 ClosedJaxpr too
Equation = Any  # jax.extend.core.JaxprEqn
Atom = Any  # jax.extend.core.Var or Literal

# The parameters of each operation that is looked into: what it must have, and what it may.
_PARAMETERS: dict[str, tuple[str, str]] = {
    "conv_general_dilated": (
        "window_strides padding lhs_dilation rhs_dilation dimension_numbers feature_group_count batch_group_count "
        "precision preferred_element_type",
        "out_sharding",
    ),
    "dot_general": ("dimension_numbers precision preferred_element_type", "out_sharding"),
    "reduce_sum": ("axes", "out_sharding"),
    "rev": ("dimensions", ""),
    "reduce_window_max": ("window_dimensions window_strides padding base_dilation window_dilation", ""),
    "reduce_window_min": ("window_dimensions window_strides padding base_dilation window_dilation", ""),
    "reduce_window_sum": ("window_dimensions window_strides padding base_dilation window_dilation", ""),
    "select_and_scatter_add": ("select_prim window_dimensions window_strides padding", ""),
    "random_bits": ("bit_width shape", ""),
    "jit": (
        "jaxpr name",
        "in_shardings out_shardings in_layouts out_layouts donated_invars ctx_mesh keep_unused inline "
        "compiler_options_kvs",
    ),
    "remat2": ("jaxpr policy prevent_cse", "differentiated"),
    "scan": ("jaxpr length reverse unroll", "num_consts num_carry ft_in ft_out"),
    "while": ("cond_jaxpr cond_nconsts body_jaxpr body_nconsts", ""),
    "cond": ("branches", "branches_platforms"),
}
# What is left as it is on purpose: a rule of differentiation or mapping belongs to the function that it comes with.
_WITH_A_RULE = ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "custom_linear_solve")


class Program(NamedTuple):
    """A traced program.

    Attributes:
      constants: Values of variables that are neither given nor computed.
      inputs: The variables of its arguments.
      equations: Its operations, in the order in which they can be evaluated.
      outputs: The variables, or literals, of its results.
      jaxpr: JAX's own form of it, without constants.
    """

    constants: Mapping[Atom, jax.Array]
    inputs: list[Atom]
    equations: list[Equation]
    outputs: list[Atom]
    jaxpr: Jaxpr

    def part(self, equations: list[Equation], inputs: list[Atom], outputs: list[Atom]) -> Program:
        """Returns the program of some of the equations."""
        constants = list(self.constants)
        jaxpr = self.jaxpr.replace(constvars=constants, invars=inputs, outvars=outputs, eqns=equations)
        return Program(self.constants, inputs, equations, outputs, jaxpr)

    def __call__(self, *args: jax.Array) -> Values:
        """Evaluates the program as JAX has it."""
        with jax.debug_nans(False):  # which the traced function may have switched off where it was traced
            return list(jax.core.eval_jaxpr(self.jaxpr, list(self.constants.values()), *args))


def trace(fn: Callable[..., PyTree], *args: PyTree) -> tuple[Program, PyTree]:
    """Traces a function of arrays; returns its program, and its result's structure of shapes and dtypes."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    return program(closed), shape


def program(jaxpr: Jaxpr) -> Program:
    """Reads a program out of JAX's form of it, with or without constants."""
    open_, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    constants = dict(zip(open_.constvars, consts, strict=True))
    return Program(constants, list(open_.invars), list(open_.eqns), list(open_.outvars), open_)


def is_literal(atom: Atom) -> bool:
    """Tells a literal, whose value is `atom.val`, from a variable."""
    return isinstance(atom, jax.extend.core.Literal)


def is_sized(atom: Atom) -> bool:
    """Tells whether all dimensions are numbers; those of a program that is exported for any size are not."""
    return all(isinstance(n, int) for n in atom.aval.shape)


def name_of(equation: Equation) -> str:
    """Returns the name of an equation's operation."""
    return equation.primitive.name


def called(equation: Equation) -> str | None:
    """Returns the name of the function that an equation calls, if it calls one compiled by `jax.jit`."""
    return equation.params.get("name") if name_of(equation) == "jit" else None


def draws_threefry(equation: Equation) -> bool:
    """Tells whether an equation draws from JAX's default generator, under its default scheme."""
    scheme = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype
    is_default = getattr(jax.config, "jax_threefry_partitionable", True)
    return is_default and equation.invars[0].aval.dtype == scheme


def inner(equation: Equation) -> Iterable[Program]:
    """Lists the programs within an equation, for a look at them; their constants are not all known."""
    for jaxpr in jax.extend.core.jaxprs_in_params(equation.params):
        open_ = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip(open_.constvars, getattr(jaxpr, "consts", ()), strict=False))
        yield Program(known, list(open_.invars), list(open_.eqns), list(open_.outvars), open_)


def alone(within: Program, equation: Equation, inputs: Values) -> Values:
    """Evaluates one equation, as JAX has it."""
    # A program of this one step: JAX knows best how each of its operations is called.
    variables = {v: x for v, x in zip(equation.invars, inputs, strict=True) if not is_literal(v)}
    step = within._replace(constants={}).part([equation], list(variables), list(equation.outvars))
    return step(*variables.values())


def parameters(equation: Equation) -> Parameters | None:
    """Returns the parameters of an operation that fedjx looks into, in one form for all versions of JAX.

    Programs among them are of type `Program`. Of a scan they are ``jaxpr``, ``num_consts``, ``num_carry``,
    ``length``, ``reverse`` and ``unroll``; of the gradient of pooling ``select`` is "max" or "min".

    Returns:
      None, after a warning that comes once, where something about the operation is not known.
    """
    name = name_of(equation)
    if name in _WITH_A_RULE or equation.params.get("branches_platforms") is not None:
        return None  # branches for other platforms may not compile on this one
    if name not in _PARAMETERS:
        return leave(name, "fedjx does not know it")
    must, may = (set(names.split()) for names in _PARAMETERS[name])
    found = set(equation.params)
    if not must <= found <= must | may:
        return leave(name, f"its parameters are {sorted(found)}, and fedjx knows {sorted(must | may)}")
    try:
        params = dict(equation.params)
        return _READERS[name](params, equation) if name in _READERS else params
    except Exception as error:  # whatever a form that nobody has seen yet leads to
        return leave(name, f"its parameters cannot be read: {error}")


@functools.cache
def leave(name: str, reason: str) -> None:
    """Warns, once, that something is left as JAX has it."""
    warnings.warn(
        f"fedjx leaves {name!r} as JAX {jax.__version__} has it: {reason}. "
        "Results are right, but training may be slower. A newer fedjx may know this JAX.",
        stacklevel=2,
    )


def calls(inlined: bool) -> contextlib.AbstractContextManager[None]:
    """Tells XLA whether to write out calls of `jax.jit` traced within; if not, equal ones are compiled once."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:  # slower to compile, and the same
        return contextlib.nullcontext()
    return set_xla_metadata(inlineable=None if inlined else "false")


def _sharded_as(sharding: Any) -> tuple[Any, ...]:
    """Returns the mesh axes that a result is to be divided among; JAX may say at length that there are none."""
    spec = tuple(getattr(sharding, "spec", sharding) or ())
    return spec if any(part is not None for part in spec) else ()


def _product(params: Parameters, _: Equation) -> Parameters:
    return {**params, "out_sharding": _sharded_as(params.get("out_sharding")) or None}


def _convolution(params: Parameters, equation: Equation) -> Parameters:
    spec = _sharded_as(params.pop("out_sharding", None))
    _require(not spec, f"its result is to be sharded, as {spec}")
    _require(len(params["padding"]) == len(equation.invars[0].aval.shape) - 2, "its padding has another form")
    return params


def _gradient_of_pooling(params: Parameters, _: Equation) -> Parameters:
    select = params.pop("select_prim").name
    return {**params, "select": {"ge": "max", "le": "min"}.get(select)}


def _call(params: Parameters, _: Equation) -> Parameters:
    return {"name": params["name"], "jaxpr": program(params["jaxpr"])}


def _remat(params: Parameters, _: Equation) -> Parameters:
    return {**params, "jaxpr": program(params["jaxpr"])}


def _while(params: Parameters, equation: Equation) -> Parameters:
    test, body = program(params["cond_jaxpr"]), program(params["body_jaxpr"])
    num_carry = len(equation.outvars)
    num_inputs = len(test.inputs) + len(body.inputs) - num_carry
    _require(len(body.outputs) == num_carry and len(equation.invars) == num_inputs, "it has another number of inputs")
    _require(len(body.inputs) == params["body_nconsts"] + num_carry, "its body has another number of inputs")
    return {**params, "cond_jaxpr": test, "body_jaxpr": body}


def _cond(params: Parameters, equation: Equation) -> Parameters:
    branches = [program(branch) for branch in params["branches"]]
    same = all(len(branch.inputs) == len(equation.invars) - 1 for branch in branches)
    _require(same, "a branch has another number of inputs")
    return {"branches": branches}


def _scan(params: Parameters, equation: Equation) -> Parameters:
    body = program(params["jaxpr"])
    if "num_carry" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # from JAX 0.11 on the inputs come in three groups, and the outputs in two
        (num_consts, num_carry, _), (num_carry_out, _) = (
            tuple(map(len, params[groups].unpack())) for groups in ("ft_in", "ft_out")
        )
        _require(num_carry == num_carry_out, "what it carries changes in number")
    constant = zip(equation.invars[: num_consts + num_carry], body.inputs[: num_consts + num_carry], strict=True)
    _require(all(a.aval.shape == b.aval.shape for a, b in constant), "its body takes other shapes")
    operands = equation.invars[num_consts + num_carry :]
    carried = zip(body.inputs[num_consts:][:num_carry], body.outputs[:num_carry], strict=True)
    same = all((a.aval.shape, a.aval.dtype) == (b.aval.shape, b.aval.dtype) for a, b in carried)
    _require(same, "what it carries changes its type")
    _require(all(x.aval.shape[0] == params["length"] for x in operands), "it loops over arrays of another length")
    _require(len(body.inputs) == len(equation.invars), "its body has another number of inputs")
    _require(len(body.outputs) == len(equation.outvars), "its body has another number of outputs")
    kept = {name: params[name] for name in ("length", "reverse", "unroll")}
    return {"jaxpr": body, "num_consts": num_consts, "num_carry": num_carry, **kept}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


_READERS: dict[str, Callable[[Parameters, Equation], Parameters]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "select_and_scatter_add": _gradient_of_pooling,
    "jit": _call,
    "remat2": _remat,
    "while": _while,
    "cond": _cond,
    "scan": _scan,
}
