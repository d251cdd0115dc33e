"""What fedjx assumes of JAX's insides, one test each, and what happens where an assumption does not hold.

When a test of the first part fails under a new JAX, `fedjx/core/rewriting/jaxprs.py` has something to learn. The
second part says what users of that JAX have until then: the right numbers, and a warning.
"""

from __future__ import annotations

import functools
import types
import warnings
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from fedjx import fed_avg
from fedjx.core.execution import hosts
from fedjx.core.rewriting import early_stop, jaxprs, rewrite, threefry
from fedjx.core.rewriting.rewrite import mapped, rewritten
from fedjx.data import Cohort, FederatedData
from fedjx.models import from_flax

X, KERNEL = (
    jnp.linspace(-1, 1, 2 * 6 * 6 * 3).reshape(2, 6, 6, 3),
    jnp.linspace(-1, 1, 3 * 3 * 3 * 3).reshape(3, 3, 3, 3),
)


def convolve(x: Any, kernel: Any) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pool(x: Any, _: Any = None) -> Any:
    return nnx.max_pool(x, (2, 2), (2, 2))


def looped(x: Any, kernel: Any) -> Any:
    return lax.scan(lambda c, k: (jnp.sin(convolve(c, kernel * k)), c.sum()), x, jnp.arange(3.0))


def while_(x: Any, kernel: Any) -> Any:
    body = lambda s: (s[0] + 1, jnp.sin(convolve(s[1], kernel)))  # noqa: E731
    return lax.while_loop(lambda s: s[0] < 2, body, (0, x))[1]


# For each operation that is looked into: a function of arrays, in whose program it is.
OPERATIONS: dict[str, Any] = {
    "conv_general_dilated": convolve,
    "dot_general": lambda x, kernel: jnp.sin(x) @ kernel[0, 0],
    "reduce_sum": lambda x, _: jnp.sum(x, axis=(1, 3)),
    "rev": jax.grad(lambda x, kernel: jnp.sin(convolve(x, kernel)).sum()),
    "reduce_window_max": pool,
    "reduce_window_min": lambda x, _: nnx.min_pool(x, (2, 2), (2, 2)),
    "reduce_window_sum": lambda x, _: nnx.avg_pool(x, (2, 2), (2, 2)),
    "select_and_scatter_add": jax.grad(lambda x, _: jnp.sin(pool(x)).sum()),
    "random_bits": lambda x, _: x[0, 0, 0, 0] + jax.random.uniform(jax.random.key(3), (5000,)),
    "jit": jax.jit(convolve),
    "remat2": jax.checkpoint(convolve),
    "scan": looped,
    "while": while_,
    "cond": lambda x, kernel: lax.cond(x.sum() > 0, lambda: convolve(x, kernel), lambda: convolve(-x, kernel)),
}


def equations(fn: Any, *args: Any) -> list[Any]:
    """Lists the equations of a function, inner ones included."""

    def all_in(program: Any) -> Any:
        for eqn in program.equations:
            yield eqn
            for inner in jaxprs.inner(eqn):
                yield from all_in(inner)

    return list(all_in(jaxprs.trace(fn, *args)[0]))


def one(name: str, fn: Any, *args: Any) -> Any:
    return next(eqn for eqn in equations(fn, *args) if jaxprs.name_of(eqn) == name)


# --- what is assumed --------------------------------------------------------------------------------


def test_a_program_has_constants_inputs_equations_and_outputs_and_evaluates():
    constant = np.arange(4.0, dtype=np.float32)
    program, shape = jaxprs.trace(lambda x, y: {"a": jnp.sin(x) + constant * y, "b": 3}, jnp.ones(4), 2.0)
    assert (len(program.inputs), len(program.outputs)) == (2, 2)
    assert jaxprs.name_of(program.equations[0]) == "sin"
    assert jax.tree.structure(shape) == jax.tree.structure({"a": 0, "b": 0})
    got = program(jnp.ones(4), 2.0)
    np.testing.assert_allclose(got[0], np.sin(np.ones(4)) + 2 * constant, rtol=1e-6)


def test_a_literal_has_a_value_and_a_variable_none():
    (eqn,) = equations(lambda x: x + 2.5, 1.0)
    x, two = eqn.invars
    assert not jaxprs.is_literal(x)
    assert (jaxprs.is_literal(two), two.val) == (True, 2.5)


def test_a_part_of_a_program_evaluates():
    constant = np.arange(3.0, dtype=np.float32)
    program, _ = jaxprs.trace(lambda x: jnp.cos(jnp.sin(x * constant)), jnp.ones(3))
    first, second, third = program.equations
    part = program.part([first, second], program.inputs, list(second.outvars))
    np.testing.assert_allclose(part(jnp.full(3, 2.0))[0], np.sin(2 * constant), rtol=1e-6)
    (got,) = jaxprs.alone(program, third, [constant])
    np.testing.assert_allclose(got, np.cos(constant), rtol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_parameters_of_an_operation_are_known(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jaxprs.parameters(one(name, OPERATIONS[name], X, KERNEL)) is not None


def test_programs_within_operations_are_found():
    for name in ("jit", "remat2", "scan", "while", "cond"):
        inner = jaxprs.inner(one(name, OPERATIONS[name], X, KERNEL))
        assert "conv_general_dilated" in [jaxprs.name_of(eqn) for program in inner for eqn in program.equations]


SCANS = [(0, 1, 1, 1), (2, 1, 0, 0), (1, 3, 2, 1), (3, 0, 1, 2), (0, 2, 1, 0)]


@pytest.mark.parametrize(("consts", "carry", "xs", "ys"), SCANS)
def test_a_scan_tells_constants_carry_and_rows_apart(consts, carry, xs, ys):
    def fn(consts: Any, carry: Any, xs: Any) -> Any:
        def step(carry: Any, xs: Any) -> Any:
            total = sum(map(jnp.sum, [*consts, *carry, *xs]), start=jnp.float32(0))
            return [c + (i + 1) * total for i, c in enumerate(carry)], [total * (i + 2) for i in range(ys)]

        return lax.scan(step, carry, xs, length=3)

    args = [[jnp.full(3, 0.1 * (i + 1 + 4 * n)) for i in range(k)] for n, k in enumerate((consts, carry, xs))]
    params = jaxprs.parameters(one("scan", fn, *args))
    assert (params["num_consts"], params["num_carry"], params["length"]) == (consts, carry, 3)


def test_a_differentiated_scan_is_read_and_written_anew():
    both = jax.value_and_grad(lambda kernel, x: jnp.sin(looped(x, kernel)[0]).sum() + looped(x, kernel)[1].sum())
    got, want = jax.jit(lambda *a: rewritten(both, *a))(KERNEL, X), jax.jit(both)(KERNEL, X)
    own = jax.jit(lambda *a: rewritten(lambda _, a: both(*a), (), a))(KERNEL, X)
    for a, b, c in zip(jax.tree.leaves(got), jax.tree.leaves(own), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(b, c, rtol=1e-4, atol=1e-4)
    names = map(jaxprs.name_of, equations(lambda *a: rewritten(lambda _, a: both(*a), (), a), KERNEL, X))
    assert "conv_general_dilated" not in set(names)


def test_the_branches_of_a_cond_come_in_the_order_of_its_index():
    params = jaxprs.parameters(one("cond", lambda i: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], 1.0), 0))
    assert [jaxprs.name_of(b.equations[0]) for b in params["branches"]] == ["sin", "cos", "tan"]


def test_branches_for_platforms_are_left_alone():
    def fn(x: Any, kernel: Any) -> Any:
        return lax.platform_dependent(x, kernel, cpu=convolve, tpu=lambda x, k: 2 * convolve(x, k))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(rewritten(fn, X, KERNEL), fn(X, KERNEL))
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x, k: rewritten(fn, x, k))(X, KERNEL))


def test_a_compiled_function_is_known_by_its_name():
    def some_name(x: Any) -> Any:
        return x + 1

    (eqn,) = [eqn for eqn in equations(jax.jit(some_name), 1.0) if jaxprs.name_of(eqn) == "jit"]
    assert jaxprs.called(eqn) == "some_name"
    assert jaxprs.called(equations(some_name, 1.0)[0]) is None


def test_a_fold_is_known_until_it_is_differentiated():
    def total(xs: Any) -> Any:
        return early_stop.fold(lambda total, x: total + x**2, jnp.float32(0), xs, jnp.int32(2))

    assert [early_stop.is_fold(eqn) for eqn in equations(total, jnp.ones(3))].count(True) == 1
    assert not any(early_stop.is_fold(eqn) for eqn in equations(jax.grad(total), jnp.ones(3)))


def test_a_product_on_one_device_of_a_mesh_is_not_to_be_divided():
    mesh, seen = jax.make_mesh((4,), ("clients",), (AxisType.Auto,)), []

    def body(x):
        seen.extend(jaxprs.trace(lambda x: x.T @ x, x)[0].equations)
        return x

    jax.shard_map(body, mesh=mesh, in_specs=P("clients"), out_specs=P("clients"))(jnp.ones((8, 3)))
    product = next(eqn for eqn in seen if jaxprs.name_of(eqn) == "dot_general")
    assert jaxprs.parameters(product)["out_sharding"] is None


def test_the_axes_of_a_convolution_are_batch_and_features_then_space():
    spec = jaxprs.parameters(one("conv_general_dilated", convolve, X, KERNEL))["dimension_numbers"]
    assert (spec.lhs_spec, spec.rhs_spec, spec.out_spec) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


@pytest.mark.parametrize("select", ["max", "min"])
def test_the_gradient_of_pooling_says_what_it_selects(select):
    fn = jax.grad(lambda x: getattr(nnx, f"{select}_pool")(x, (2, 2), (2, 2)).sum())
    assert jaxprs.parameters(one("select_and_scatter_add", fn, X))["select"] == select


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_default_generator_is_known_by_the_type_of_its_keys(implementation):
    eqn = one("random_bits", lambda key: jax.random.bits(key, (3,)), jax.random.key(0, impl=implementation))
    assert jaxprs.draws_threefry(eqn) == (implementation == "threefry2x32")
    with jax.threefry_partitionable(False):
        assert not jaxprs.draws_threefry(eqn)


def test_the_default_generator_draws_the_bits_that_fedjx_draws():
    threefry._are_jaxs.cache_clear()
    assert jax.jit(lambda: jnp.asarray(threefry._are_jaxs()))()  # also while a program is traced


def test_functions_with_a_rule_of_their_own_are_left_in_silence():
    @jax.custom_jvp
    def with_jvp(x: Any, kernel: Any) -> Any:
        return convolve(x, kernel)

    @jax.custom_vjp
    def with_vjp(x: Any, kernel: Any) -> Any:
        return convolve(x, kernel)

    @custom_vmap
    def with_vmap(x: Any, kernel: Any) -> Any:
        return convolve(x, kernel)

    with_jvp.defjvps(None, None)
    with_vmap.def_vmap(lambda size, batched, *args: (jax.vmap(convolve)(*args), True))
    with_vjp.defvjp(lambda x, k: (convolve(x, k), None), lambda _, g: (g, g))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fn in (with_jvp, with_vjp, with_vmap):
            np.testing.assert_array_equal(rewritten(fn, X, KERNEL), fn(X, KERNEL))


def test_a_value_in_a_traced_program_is_a_tracer_and_an_array_is_none():
    seen = []
    jax.jit(lambda x: seen.append(x))(1.0)
    assert isinstance(seen[0], jax.core.Tracer)
    assert not isinstance(jnp.ones(()), jax.core.Tracer)


def test_a_mesh_of_devices_and_names_has_automatic_axes():
    explicit = jax.make_mesh((2, 2), ("clients", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    assert set(hosts.auto_mesh(explicit).axis_types) == {AxisType.Auto}
    assert set(Mesh(explicit.devices, ("a", "b")).axis_types) == {AxisType.Auto}


# --- where it does not hold ---------------------------------------------------------------------------


def otherwise(eqn: Any, how: str) -> Any:
    """Returns an equation as some other JAX might write it."""
    first, *_ = eqn.params
    params = {
        "a parameter more": {**eqn.params, "novelty": 1},
        "a parameter less": {name: value for name, value in eqn.params.items() if name != first},
        "other values": dict.fromkeys(eqn.params, object()),
    }[how]
    return types.SimpleNamespace(primitive=eqn.primitive, invars=eqn.invars, outvars=eqn.outvars, params=params)


WITH_PROGRAMS = ["jit", "remat2", "scan", "while", "cond"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in OPERATIONS for how in ("a parameter more", "a parameter less")),
        *((name, "other values") for name in (*WITH_PROGRAMS, "conv_general_dilated", "select_and_scatter_add")),
    ],
)
def test_another_form_of_an_operation_is_not_read(name, how):
    eqn = otherwise(one(name, OPERATIONS[name], X, KERNEL), how)
    jaxprs.leave.cache_clear()
    with pytest.warns(UserWarning, match=rf"fedjx leaves '{name}' as JAX {jax.__version__} has it"):
        assert jaxprs.parameters(eqn) is None


def test_groups_of_a_scan_that_do_not_fit_its_body_are_not_read():
    class Groups(list):
        """What JAX 0.11 and later write."""

        unpack = list.__iter__

    eqn = one("scan", looped, X, KERNEL)  # a constant, a carry, an array of rows; a carry, a stack
    kept = {name: eqn.params[name] for name in ("jaxpr", "length", "reverse", "unroll")}
    for groups, fits in {"1 1 1 1 1": True, "0 2 1 1 1": False, "1 2 0 2 0": False, "1 1 1 2 0": False}.items():
        consts, carry, xs, carried, ys = ([None] * int(n) for n in groups.split())
        params = {**kept, "ft_in": Groups([consts, carry, xs]), "ft_out": Groups([carried, ys])}
        other = types.SimpleNamespace(primitive=eqn.primitive, invars=eqn.invars, outvars=eqn.outvars, params=params)
        jaxprs.leave.cache_clear()
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            assert (jaxprs.parameters(other) is not None) == fits, groups


def make_unknown(monkeypatch: Any, *names: str) -> None:
    """Makes this JAX's form of operations one that fedjx does not know."""
    jaxprs.leave.cache_clear()
    for name in names:
        must, may = jaxprs._PARAMETERS[name]
        monkeypatch.setitem(jaxprs._PARAMETERS, name, (f"{must} novelty", may))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("dot_general", "rev")])
def test_an_unknown_operation_is_left_with_one_warning_and_the_right_result(name, monkeypatch):
    fn = OPERATIONS[name]
    make_unknown(monkeypatch, name)

    def run(own: Any) -> Any:
        return mapped(lambda shared, own: fn(own, KERNEL * own.mean() + shared), np.float32(1), own)

    clients = np.stack([X, -X])
    with pytest.warns(UserWarning, match=f"fedjx leaves '{name}' as JAX") as caught:
        got = jax.jit(run)(clients)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.make_jaxpr(lambda own: run(own))(clients)  # another function, for jax.jit remembers what it has traced
    plain = jax.jit(lambda own: fn(own, KERNEL * own.mean() + 1))
    want = jax.tree.map(lambda *a: np.stack(a), *map(plain, clients))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_an_operation_with_programs_and_a_new_name_is_left_with_a_warning(monkeypatch):
    monkeypatch.delitem(jaxprs._PARAMETERS, "remat2")
    jaxprs.leave.cache_clear()
    with pytest.warns(UserWarning, match="leaves 'remat2' as JAX .*: fedjx does not know it"):
        got = rewritten(lambda x, k: jax.checkpoint(convolve)(x, k), X, KERNEL)
    np.testing.assert_allclose(got, convolve(X, KERNEL), rtol=1e-6)


class Network(nnx.Module):
    """One of everything that is rewritten."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv, self.dense = nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.Linear(128, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
        return self.dense(self.dropout(x.reshape(len(x), -1)))


def one_round() -> Any:
    random = np.random.default_rng(0)
    sizes = [5, 12, 40]
    clients = [{"x": random.normal(size=(n, 8, 8, 1)).astype("f4"), "y": random.integers(0, 2, n)} for n in sizes]
    data = FederatedData.from_clients(clients)
    algorithm = fed_avg(from_flax(Network), client_optimizer=optax.adam(0.01))
    cohort = Cohort(data, range(3), batch_size=10, lanes=2)
    state, metrics = algorithm.next(algorithm.init(jax.random.key(0)), cohort)
    return state.params, metrics


@functools.cache
def as_it_is() -> Any:
    return one_round()


@pytest.mark.parametrize("what", ["jit", "everything", "programs", "evaluation"])
def test_training_goes_on_under_a_jax_that_nobody_has_seen(what, monkeypatch):
    want = as_it_is()
    if what == "programs":
        monkeypatch.setattr(jaxprs, "program", lambda jaxpr: jaxpr)
    elif what == "evaluation":
        monkeypatch.delattr(jax.core, "eval_jaxpr")
    else:
        make_unknown(monkeypatch, *(jaxprs._PARAMETERS if what == "everything" else [what]))
    jaxprs.leave.cache_clear()
    with pytest.warns(UserWarning, match="fedjx leaves .* as JAX"):
        got = one_round()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)


def test_a_result_of_another_shape_is_not_believed(monkeypatch):
    monkeypatch.setattr(rewrite, "convolution", lambda x, kernel, flipped, **params: x[:, :3])
    jaxprs.leave.cache_clear()
    with pytest.warns(UserWarning, match="leaves 'a program' as JAX .* became float32.* instead of"):
        got = rewritten(convolve, X, KERNEL)
    np.testing.assert_array_equal(got, convolve(X, KERNEL))


def test_a_users_own_error_is_not_taken_for_one_of_these():
    def fn(x: Any, kernel: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        rewritten(fn, X, KERNEL)


@pytest.mark.parametrize(("checkpointed", "number"), [(True, 3), (False, 0)])
def test_what_is_computed_again_to_save_memory_still_is(checkpointed, number):
    """XLA would keep what it finds computed before: JAX puts a barrier before the second time, and so do we."""

    def block(x: Any) -> Any:
        return jnp.sin(convolve(x, KERNEL)) + pool(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))[:, :1, :1]

    def loss(x: Any) -> Any:
        for _ in range(3):
            x = (jax.checkpoint(block) if checkpointed else block)(x)
        return jnp.sum(x)

    fn = jax.grad(lambda x: jnp.sum(loss(x)))
    blocks = [eqn for eqn in jaxprs.trace(fn, X)[0].equations if eqn.primitive.name == "remat2"]
    assert len(blocks) == (3 if checkpointed else 0)

    def barriers(rewriting: bool) -> int:
        traced = jax.make_jaxpr(lambda own: rewritten(lambda _, own: fn(own), (), own) if rewriting else fn(own))(X)
        operands = [len(eqn.invars) for eqn in traced.jaxpr.eqns if eqn.primitive.name == "optimization_barrier"]
        return sum(n == len(blocks[0].invars) if blocks else n > 1 for n in operands)

    assert barriers(rewriting=True) >= number
    assert barriers(rewriting=False) == 0
