"""Tests of the federated operators: values against NumPy, the bill to the bit."""

import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx import (
    CLIENTS,
    SERVER,
    Clients,
    FederatedType,
    Sequence,
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_computation,
    federated_eval,
    federated_keys,
    federated_map,
    federated_max,
    federated_mean,
    federated_min,
    federated_reduce,
    federated_secure_sum,
    federated_select,
    federated_sum,
    federated_value,
    federated_zip,
    parse_type,
    sequence_sum,
)

X = np.array([[1.0, -2.0], [4.0, 0.5], [-3.0, 8.0], [np.nan, np.nan]], np.float32)
N = np.array([5, -7, 2**30, 99], np.int32)
MASK = np.array([True, True, True, False])  # the last client is padding, and garbage
REAL = X[:3]


def cohort(value, mask=MASK, ids=(4, 9, 2, -1)):
    return Clients.of(value, mask=mask, ids=ids)


def nobody(value):
    return cohort(value, mask=np.zeros(4, bool))


def run(fn, *args):
    return federated_computation(fn)(*args)


def bill(fn, *types):
    """The messages of one round as (pass, direction, type, bits)."""
    types = [parse_type(t) if isinstance(t, str) else t for t in types]
    messages = federated_computation(fn).communication(*types)
    return [(m.round_trip, m.direction, str(m.type), m.bits) for m in messages]


def total(x):
    return federated_sum(x)


def mean(x):
    return federated_mean(x)


def weighted_mean(x, w):
    return federated_mean(x, w)


# --- reductions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "reference"),
    [
        (total, REAL.sum(axis=0)),
        (mean, REAL.mean(axis=0)),
        (federated_min, REAL.min(axis=0)),
        (federated_max, REAL.max(axis=0)),
    ],
)
def test_reductions_of_floats(operator, reference):
    result = run(operator, cohort(X))
    np.testing.assert_allclose(result, reference, rtol=1e-6)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize(("operator", "reference"), [(total, 2**30 - 2), (federated_min, -7), (federated_max, 2**30)])
def test_reductions_of_integers_are_exact(operator, reference):
    result = run(operator, cohort(N))
    assert (int(result), result.dtype) == (reference, jnp.int32)


def test_reductions_of_structures():
    result = run(total, cohort({"x": X, "n": (N, N > 0)}))
    np.testing.assert_allclose(result["x"], REAL.sum(axis=0), rtol=1e-6)
    assert int(result["n"][0]) == 2**30 - 2
    assert int(result["n"][1]) == 2


def test_booleans():
    flags = cohort(np.array([True, False, True, True]))
    count = run(total, flags)
    assert (int(count), count.dtype) == (2, jnp.int32)
    assert not bool(run(federated_min, flags))
    assert bool(run(federated_max, flags))


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        (total, X, 0.0),
        (mean, X, 0.0),
        (federated_min, X, np.inf),
        (federated_max, X, -np.inf),
        (total, N, 0),
        (federated_min, N, 2**31 - 1),
        (federated_max, N, -(2**31)),
        (federated_min, N.astype(np.uint8), 255),
        (federated_max, N.astype(np.uint8), 0),
        (federated_min, N > 0, True),
        (federated_max, N > 0, False),
        (lambda x: federated_mean(x, federated_map(lambda v: v[0], x)), X, 0.0),
    ],
)
def test_reductions_over_no_client(operator, value, expected):
    assert (np.asarray(run(operator, nobody(value))) == expected).all()


def test_collecting_no_client():
    assert int(run(federated_collect, nobody(X)).length) == 0


@pytest.mark.parametrize("lanes", [1, 64, None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_summed_wide(lanes, dtype):
    ones = Clients.of(jnp.ones(4096, dtype))
    result = federated_computation(total).in_graph(lanes=lanes)(ones)
    assert (float(result), result.dtype) == (4096.0, jnp.float32)
    average = federated_computation(mean).in_graph(lanes=lanes)(ones)
    assert (float(average), average.dtype) == (1.0, dtype)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(np.int8, jnp.int32), (np.int16, jnp.int32), (np.uint8, jnp.uint32), (np.uint16, jnp.uint32)]
)
def test_narrow_integers_are_summed_wide(dtype, wide):
    info = np.iinfo(dtype)
    values = np.array([info.max, info.max, info.min, info.max] * 100, dtype)
    result = run(total, Clients.of(values))
    assert (int(result), result.dtype) == (int(values.astype(np.int64).sum()), wide)


def test_an_infinite_member_stays_infinite():
    values = np.array([[1.0, np.inf], [2.0, 3.0], [4.0, 5.0]], np.float32)
    assert run(total, Clients.of(values)).tolist() == [7.0, np.inf]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_])
def test_weighted_mean_of_a_structure(dtype):
    weight = np.array([3, 0, 1, 7], np.float32).astype(dtype)
    value = {"x": X, "y": np.array([2.0, np.nan, -1.0, 5.0], np.float32)}  # the client of weight 0 holds a NaN
    result = run(weighted_mean, cohort(value), cohort(weight))
    kept, w = [0, 2], weight[[0, 2]].astype(np.float32)
    np.testing.assert_allclose(result["x"], np.average(X[kept], axis=0, weights=w), rtol=1e-6)
    np.testing.assert_allclose(result["y"], np.average(value["y"][kept], weights=w), rtol=1e-6)


def test_weighted_mean_keeps_the_dtype():
    result = run(weighted_mean, Clients.of(jnp.ones((3, 2), jnp.bfloat16)), Clients.of(np.array([1, 2, 3], np.int32)))
    assert result.dtype == jnp.bfloat16
    assert result.tolist() == [1.0, 1.0]


def test_weights_that_are_all_zero_give_zero():
    result = run(weighted_mean, cohort({"x": X}), cohort(np.zeros(4, np.float32)))
    assert result["x"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("num_clients", [41, 47, 55])
def test_the_mean_of_equal_values_is_that_value_to_one_unit_in_the_last_place(num_clients):
    """A mean is a product with one reciprocal, which is not exact for these numbers."""
    got = float(run(mean, Clients.of(np.ones(num_clients, np.float32))))
    assert abs(got - 1.0) <= np.finfo(np.float32).epsneg


def test_secure_sum_is_the_sum_modulo_two_to_the_32():
    values = np.array([2**31 - 1, 2**31 - 1, 7], np.int32)
    result = run(federated_secure_sum, Clients.of(values))
    assert int(result) == int(values.sum(dtype=np.int32))
    (message,) = federated_computation(federated_secure_sum).communication(parse_type("{int32}@CLIENTS"))
    assert (message.secure, message.bits) == (True, 32)
    (message,) = federated_computation(total).communication(parse_type("{int32}@CLIENTS"))
    assert not message.secure


def test_secure_and_plain_sum_of_one_value_are_two_messages():
    messages = federated_computation(lambda x: (federated_sum(x), federated_secure_sum(x))).communication(
        parse_type("{int32}@CLIENTS")
    )
    assert [m.secure for m in messages] == [False, True]


def test_aggregate_folds_members_of_another_type():
    zero = {"count": jnp.int32(0), "largest": jnp.full(2, -jnp.inf)}
    result = run(
        lambda x: federated_aggregate(
            x,
            zero,
            accumulate=lambda a, v: {"count": a["count"] + 1, "largest": jnp.maximum(a["largest"], v)},
            merge=lambda a, b: {"count": a["count"] + b["count"], "largest": jnp.maximum(a["largest"], b["largest"])},
            report=lambda a: (a["largest"], a["count"].astype(jnp.float32)),
        ),
        cohort(X),
    )
    np.testing.assert_array_equal(result[0], REAL.max(axis=0))
    assert float(result[1]) == 3.0


def test_sum_by_reduce_is_the_sum():
    @federated_computation
    def sums(x):
        return federated_sum(x), federated_reduce(x, {"x": np.zeros(2, np.float32), "n": np.int32(0)}, by_leaf)

    def by_leaf(a, b):
        return jax.tree.map(jnp.add, a, b)

    plain, reduced = sums(cohort({"x": X, "n": N}))
    np.testing.assert_allclose(reduced["x"], plain["x"], rtol=1e-6)
    assert int(reduced["n"]) == int(plain["n"]) == 2**30 - 2


def test_collect_brings_the_real_members_in_order():
    mask = np.array([True, False, True, True])
    result = run(federated_collect, cohort({"x": X, "n": N}, mask=mask))
    assert isinstance(result, Sequence)
    assert int(result.length) == 3
    np.testing.assert_array_equal(result.elements["n"][:3], N[mask])
    np.testing.assert_array_equal(result.elements["x"][:3], X[mask])
    signature = federated_computation(federated_collect).type_signature(cohort(X))
    assert str(signature) == "({float32[2]}@CLIENTS -> float32[2]*@SERVER)"


def test_a_median_by_collect():
    def median(x):
        def fn(members):
            real = jnp.arange(members.elements.shape[0]) < members.length
            return jnp.nanmedian(jnp.where(real[:, None], members.elements, jnp.nan), axis=0)

        return federated_map(fn, federated_collect(x))

    np.testing.assert_allclose(run(median, cohort(X)), np.median(REAL, axis=0))


def test_decode_acts_on_each_member_before_the_sum():
    codes = np.array([[0, 255], [128, 1], [3, 3], [9, 9]], np.uint8)
    result = run(lambda x: federated_sum(x, decode=lambda c: c.astype(jnp.float32) / 255), cohort(codes))
    np.testing.assert_allclose(result, codes[:3].astype(np.float32).sum(axis=0) / 255, rtol=1e-6)


# --- map, placement, keys -----------------------------------------------------------------------


def test_map_acts_on_one_member():
    result = run(lambda x, n: federated_map(lambda v, m: {"s": v.sum() * m}, x, n), cohort(X), cohort(N))
    assert result.value["s"].shape == (4,)
    np.testing.assert_allclose(result.value["s"][:3], REAL.sum(axis=1) * N[:3], rtol=1e-6)
    assert result.mask.tolist() == MASK.tolist()
    assert result.id.tolist() == [4, 9, 2, -1]


def test_map_at_the_server():
    assert float(run(lambda s: federated_map(lambda v: v**2, s), 3.0)) == 9.0


def test_map_takes_pytrees_of_values():
    result = run(lambda x, s: federated_map(lambda a, b: a["p"] * b[0], {"p": s, "q": None}, (s,)), cohort(X), 3.0)
    assert float(result) == 9.0


def test_closures_are_ordinary_functions():
    scale = jnp.float32(2.0)

    def program(x):
        offset = 1.0
        later = lambda v: v * scale + offset  # noqa: E731
        return lambda: federated_sum(federated_map(later, x))

    np.testing.assert_allclose(run(lambda x: program(x)(), cohort(X)), (REAL * 2 + 1).sum(axis=0), rtol=1e-6)


def test_a_closure_over_a_traced_value():
    summed = jax.jit(lambda c: run(lambda x: federated_sum(federated_map(lambda v: v * c, x)), cohort(X)))
    np.testing.assert_allclose(summed(3.0), 3 * REAL.sum(axis=0), rtol=1e-6)


def test_a_closure_over_a_loop_variable_sees_its_value_at_the_map():
    def program(x):
        sums = []
        for factor in (1.0, 10.0):
            sums.append(federated_sum(federated_map(lambda v: v * factor, x)))  # noqa: B023
        return tuple(sums)

    first, second = run(program, cohort(X))
    np.testing.assert_allclose(first, REAL.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(second, 10 * REAL.sum(axis=0), rtol=1e-6)


class Scale(NamedTuple):
    amount: float

    def __call__(self, value, _=None):
        return value * self.amount


class Shift(NamedTuple):
    amount: float

    def __call__(self, value, _=None):
        return value + self.amount


@pytest.mark.parametrize("rest", [(), (None,)], ids=["values", "pytrees"])
def test_functions_that_compare_equal_are_not_one_function(rest):
    def program(x):
        scale, shift = Scale(2.0), Shift(2.0)
        assert scale == shift
        return federated_sum(federated_map(scale, x, *rest)), federated_sum(federated_map(shift, x, *rest))

    scaled, shifted = run(program, cohort(X))
    np.testing.assert_allclose(scaled, (REAL * 2).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(shifted, (REAL + 2).sum(axis=0), rtol=1e-6)


def test_the_same_code_over_other_globals_is_another_function():
    makers = []
    for factor in (2.0, 5.0):
        namespace = {"factor": factor}
        exec("def scaled(v):\n    return v * factor", namespace)
        makers.append(namespace["scaled"])
    assert makers[0].__code__ == makers[1].__code__

    def program(x):
        return tuple(federated_sum(federated_map(fn, x)) for fn in makers)

    twice, five_times = run(program, cohort(X))
    np.testing.assert_allclose(twice, 2 * REAL.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(five_times, 5 * REAL.sum(axis=0), rtol=1e-6)


def test_zip_makes_one_value():
    result = run(lambda x, n: federated_sum(federated_zip({"x": x, "n": n})), cohort(X), cohort(N))
    assert int(result["n"]) == 2**30 - 2
    np.testing.assert_allclose(result["x"], REAL.sum(axis=0), rtol=1e-6)


def test_value_and_eval_at_both_placements():
    def program(x):
        constant = {"c": np.array([1, 2], np.int8)}
        return (
            federated_value(constant, SERVER),
            federated_sum(federated_value(constant, CLIENTS)),
            federated_eval(lambda: jnp.arange(3), SERVER),
            federated_sum(federated_eval(lambda: jnp.float32(1.5), CLIENTS)),
            federated_sum(x),
        )

    at_server, summed, evaluated, evaluated_at_clients, _ = run(program, cohort(X))
    assert at_server["c"].tolist() == [1, 2]
    assert summed["c"].tolist() == [3, 6]
    assert evaluated.tolist() == [0, 1, 2]
    assert float(evaluated_at_clients) == 4.5


def test_a_computation_without_arguments():
    @federated_computation
    def hello_world():
        return federated_value(np.frombuffer(b"Hello, World!", np.uint8), SERVER)

    assert str(hello_world.type_signature) == "( -> uint8[13]@SERVER)"
    assert bytes(np.asarray(hello_world())) == b"Hello, World!"


def test_keys_depend_on_the_id_only():
    def draw(key, x):
        return federated_map(jax.random.normal, federated_keys(key))

    key = jax.random.key(3)
    drawn = run(draw, key, cohort(X)).members()
    reversed_ids = run(draw, key, cohort(X, ids=(-1, 2, 9, 4), mask=MASK[::-1])).members()
    assert drawn.keys() == reversed_ids.keys() == {4, 9, 2}
    for client_id, value in drawn.items():
        assert value == reversed_ids[client_id] == jax.random.normal(jax.random.fold_in(key, client_id))


def test_select_gives_each_client_its_slices():
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    wanted = np.array([[0, 9], [3, 3], [1, 2], [5, 5]], np.int32)
    result = run(lambda t, k: federated_select(k, t, lambda t, i: t[i]), table, cohort(wanted))
    np.testing.assert_array_equal(result.value[:3], table[wanted[:3]])


def test_the_transpose_of_broadcast_is_the_sum():
    def program(s, x):
        return federated_sum(federated_map(lambda p, v: p * v.sum(), federated_broadcast(s), x))

    # Finite garbage: no mask after the map cures the gradient of NaN, so padding copies real clients.
    gradient = jax.grad(lambda s: run(program, s, cohort(np.nan_to_num(X, nan=99.0))))(2.0)
    np.testing.assert_allclose(gradient, REAL.sum(), rtol=1e-6)


# --- sugar --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "reference"),
    [
        (lambda x, y: x + y, lambda x, y: x + y),
        (lambda x, y: x - y, lambda x, y: x - y),
        (lambda x, y: x * y, lambda x, y: x * y),
        (lambda x, y: x / y, lambda x, y: x / y),
        (lambda x, y: -x, lambda x, y: -x),
        (lambda x, y: 1 + x - 2 * x / 4, lambda x, y: 1 + x - 2 * x / 4),
        (lambda x, y: 1 - x, lambda x, y: 1 - x),
        (lambda x, y: 1 / y, lambda x, y: 1 / y),
        (lambda x, y: np.float32(3) * x, lambda x, y: 3 * x),
    ],
)
@pytest.mark.parametrize("placement", [SERVER, CLIENTS])
def test_arithmetic(expression, reference, placement):
    x, y = np.array([1.5, -2.0, 3.0], np.float32), np.array([2.0, 4.0, 8.0], np.float32)
    if placement == SERVER:
        got = run(expression, x, y)
    else:
        got = run(expression, Clients.of(x), Clients.of(y)).value
    np.testing.assert_allclose(got, reference(x, y), rtol=1e-6)


def test_arithmetic_on_structures():
    value = {"a": X, "b": X[:, 0]}
    result = run(lambda x: federated_sum((x + x) * 0.5 - x), cohort(value))
    assert result["a"].tolist() == [0, 0]
    assert float(result["b"]) == 0


class Update(NamedTuple):
    type: Any
    delta: Any


def test_fields():
    def program(u, d, p):
        first, second = p
        return federated_sum((u["type"], u.delta, u[0], u[-1], d.a, d["a"], d["two words"], first, second, p[0]))

    data = {"a": X[:, 0], "two words": N}
    sums = run(program, cohort(Update(N, X[:, 1])), cohort(data), cohort((N, X[:, 0])))
    n, x0, x1 = 2**30 - 2, REAL[:, 0].sum(), REAL[:, 1].sum()
    np.testing.assert_allclose(sums, [n, x1, n, x1, x0, x0, n, n, x0, n], rtol=1e-6)


def test_the_own_name_of_a_value_is_type():
    seen = []
    run(lambda u: seen.append(u.type) or federated_sum(u["type"]), cohort(Update(N, X)))
    assert str(seen[0]) == "{<type=int32,delta=float32[2]>}@CLIENTS"


def test_sequences_of_a_client():
    data = Clients.of(Sequence(np.array([[1, 2, 3], [4, 5, 6]], np.int8), np.array([2, 3], np.int32)))
    assert int(run(lambda d: federated_sum(federated_map(sequence_sum, d)), data)) == 3 + 15


def test_a_local_computation():
    @federated_computation("int32*")
    def add_up_integers(x):
        return fedjx.sequence_reduce(jnp.add, jnp.int32(0), x)

    assert str(add_up_integers.type_signature) == "(int32* -> int32)"
    assert int(add_up_integers([1, 2, 3])) == 6
    assert int(add_up_integers([])) == 0
    data = Clients.of(Sequence(np.array([[1, 2, 3], [4, 5, 6]], np.int32), np.array([2, 3], np.int32)))
    assert int(run(lambda d: federated_sum(federated_map(add_up_integers, d)), data)) == 18


# --- the bill -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "bits"),
    [
        ("float32[10,5]", 1600),
        ("bfloat16[3]", 48),
        ("bool[7]", 7),
        ("int8", 8),
        ("key<fry>", 64),
        ("<w=float32[10,5],bias=bfloat16[5],bool>", 1681),
        ("<>", 0),
        ("int32*", None),
    ],
)
def test_the_bill_of_a_broadcast(member, bits):
    def program(s):
        return federated_sum(federated_map(lambda _: jnp.int8(1), federated_broadcast(s)))

    assert bill(program, f"{member}@SERVER") == [
        (0, "down", f"{member}@CLIENTS", bits),
        (0, "up", "{int8}@CLIENTS", 8),
    ]


def test_the_bill_counts_what_is_typed_before_decode():
    def program(x):
        encoded = federated_map(lambda v: (v.astype(jnp.int8), v[0].astype(jnp.bfloat16)), x)
        return federated_sum(encoded, decode=lambda e: e[0] * e[1].astype(jnp.float32))

    assert bill(program, "{float32[100]}@CLIENTS") == [(0, "up", "{<int8[100],bfloat16>}@CLIENTS", 816)]


def test_the_bill_of_a_selection_counts_slices():
    def program(table, keys):
        return federated_sum(federated_select(keys, table, lambda t, k: t[k]))

    assert bill(program, "float32[1000,4]@SERVER", "{int32[3]}@CLIENTS") == [
        (0, "down", "float32[3,4]@CLIENTS", 384),
        (0, "up", "{float32[3,4]}@CLIENTS", 384),
    ]


def slice_of(table, key):
    return table[key]


def test_the_bill_of_a_selection_and_a_broadcast_of_one_value():
    def program(table, keys, more_keys):
        sliced = federated_select(keys, table, slice_of)
        more = federated_select(more_keys, table, slice_of)
        whole = federated_map(jnp.sum, federated_broadcast(table))
        return federated_sum(sliced), federated_sum(more), federated_sum(whole)

    messages = bill(program, "float32[1000]@SERVER", "{int32[3]}@CLIENTS", "{int32[5]}@CLIENTS")
    assert sorted(bits for _, direction, _, bits in messages if direction == "down") == [96, 160, 32000]


def widened(value):
    return value.astype(jnp.float32)


def test_the_bill_of_a_sum_before_and_after_decoding():
    def program(x):
        return federated_sum(x, decode=widened), federated_sum(federated_map(widened, x))

    assert sorted(bits for *_, bits in bill(program, "{int8}@CLIENTS")) == [8, 32]


def test_the_bill_names_the_pass():
    def program(x):
        mean = federated_mean(x)
        centred = x - federated_broadcast(mean)
        return federated_mean(centred * centred)

    assert bill(program, "{float32}@CLIENTS") == [
        (0, "up", "{float32}@CLIENTS", 32),
        (1, "down", "float32@CLIENTS", 32),
        (1, "up", "{float32}@CLIENTS", 32),
    ]


def test_equal_expressions_are_one_message():
    def program(s, x, w):
        def term():
            return federated_sum(federated_map(jnp.add, federated_broadcast(s) * 2, x["a"]))

        means = [federated_mean(x, w) for _ in range(2)]
        return term() + term(), means

    assert bill(program, "float32@SERVER", "{<a=float32>}@CLIENTS", "{float32}@CLIENTS") == [
        (0, "down", "float32@CLIENTS", 32),
        (0, "up", "{float32}@CLIENTS", 32),
        (0, "up", "{<<a=float32>,float32>}@CLIENTS", 64),
    ]


@pytest.mark.parametrize(
    "term",
    [
        lambda x: federated_sum(federated_broadcast(federated_value(1.0, SERVER)) + x),
        lambda x: federated_reduce(x, 0.0, jnp.add),
    ],
    ids=["constant", "reduce"],
)
def test_equal_constants_and_aggregates_are_one_message(term):
    assert bill(lambda x: term(x) + term(x), "{float32}@CLIENTS") == bill(term, "{float32}@CLIENTS")


def test_a_value_that_is_not_used_is_not_billed():
    def program(s, x):
        federated_sum(federated_broadcast(s))
        return federated_sum(x)

    assert bill(program, "float32[100]@SERVER", "{int32}@CLIENTS") == [(0, "up", "{int32}@CLIENTS", 32)]


# --- programs -----------------------------------------------------------------------------------


def test_hundreds_of_nested_maps():
    def program(x):
        for _ in range(600):
            x = x + 1
        return federated_sum(x)

    assert run(program, Clients.of(np.zeros(2, np.float32))) == 1200


def test_a_nested_call_is_the_inlined_body():
    @federated_computation("{float32[2]}@CLIENTS", "{float32}@CLIENTS")
    def average(x, w):
        return federated_mean(x, w)

    @federated_computation
    def nested(x, w):
        return average(federated_map(jnp.abs, x), w)

    @federated_computation
    def inlined(x, w):
        return federated_mean(federated_map(jnp.abs, x), w)

    args = cohort(X), cohort(np.array([1, 2, 3, 4], np.float32))
    np.testing.assert_array_equal(nested(*args), inlined(*args))
    assert nested.communication(*args) == inlined.communication(*args)
    assert nested.type_signature(*args) == inlined.type_signature(*args)


def test_signatures():
    @federated_computation(FederatedType(jnp.float32, CLIENTS))
    def get_average_temperature(sensor_readings):
        return federated_mean(sensor_readings)

    assert str(get_average_temperature.type_signature) == "({float32}@CLIENTS -> float32@SERVER)"
    np.testing.assert_allclose(get_average_temperature([68.5, 70.3, 69.8]), 69.533333, rtol=1e-6)

    @federated_computation
    def both(state, data):
        return {"a": state.p, "b": federated_sum(data)}, federated_map(jnp.abs, data)

    class State(NamedTuple):
        p: Any
        q: Any

    signature = both.type_signature(State(1.0, np.zeros(2)), cohort(N))
    assert str(signature) == (
        "(<state=<p=float32,q=float32[2]>@SERVER,data={int32}@CLIENTS> -> <<a=float32,b=int32>@SERVER,{int32}@CLIENTS>)"
    )
    assert parse_type(str(signature)) == signature


def test_threads_do_not_disturb_each_other():
    """Two programs and two cohorts at once; every call sees its own (DrJAX used the other's cohort)."""
    wrong, start = [], threading.Barrier(2)

    def work(num_clients, factor):
        start.wait()
        for i in range(4):
            values = np.full(num_clients + i, factor, np.float32)
            got = run(lambda x: federated_sum(x * factor), Clients.of(values))
            if float(got) != (num_clients + i) * factor**2:
                wrong.append((num_clients, factor, float(got)))

    threads = [threading.Thread(target=work, args=args) for args in ((3, 2.0), (50, 4.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
