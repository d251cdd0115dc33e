"""Secure sums and means: bit for bit what big integers give, no overflow, nothing but totals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.fixed_point import decode, encode, fixed_point, num_clipped
from fedjx.aggregation.secure import secure_mean, secure_sum, secure_total
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.operators import federated_secure_sum
from fedjx.core.language.types import parse_type
from fedjx.core.language.values import Clients

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(scale=3.0, size=(6, 7)).astype(np.float32)
WEIGHTS = np.array([1, 5, 0, 2, 9, 4], np.float32)


def mesh(num_devices):
    return jax.make_mesh((num_devices,), ("clients",), devices=jax.devices()[:num_devices])


def ways(computation):
    """Every way to run a computation; each padded, chunked or sharded in its own manner."""
    for num_devices, lanes in ((1, None), (1, 3), (4, 1)):
        yield computation.in_graph(mesh=mesh(num_devices), lanes=lanes)
    yield computation.streamed(mesh=mesh(1), lanes=2)


def padded(x):
    garbage = np.full((2, *x.shape[1:]), np.nan if x.dtype.kind == "f" else 2**31 - 1, x.dtype)
    real = np.arange(len(x) + 2) < len(x)
    return Clients.of(np.concatenate([x, garbage]), ids=np.where(real, np.arange(len(x) + 2), -1), mask=real)


def modulo(total, num_bits):
    """A Python integer in the ring's signed range."""
    return (int(total) + 2 ** (num_bits - 1)) % 2**num_bits - 2 ** (num_bits - 1)


@pytest.mark.parametrize("num_bits", [1, 7, 15, 23, 31, 32])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_secure_sums_are_those_of_big_integers_however_they_run(num_bits, dtype):
    limits = np.iinfo(dtype)
    values = RANDOM.integers(limits.min, limits.max, size=(5, 6), dtype=dtype, endpoint=True)
    totals = [sum(map(int, column)) for column in values.T]
    oracle = [modulo(t, num_bits) if dtype == np.int32 else t % 2**num_bits for t in totals]
    computation = federated_computation(lambda x: federated_secure_sum(x, num_bits=num_bits))
    for run in ways(computation) if num_bits == 23 else [computation]:
        assert run(padded(values)).tolist() == oracle


@pytest.mark.parametrize(("num_elements", "num_bits", "words"), [(10, 32, 10), (10, 23, 8), (32, 15, 15), (1, 4, 1)])
def test_the_bill_counts_the_bits_of_the_ring(num_elements, num_bits, words):
    computation = federated_computation(lambda x: federated_secure_sum(x, num_bits=num_bits))
    (message,) = computation.communication(parse_type(f"{{int16[{num_elements}]}}@CLIENTS"))
    assert (message.secure, message.bits) == (True, 32 * words)


@pytest.mark.parametrize("num_bits", [0, 33])
def test_rings_have_1_to_32_bits(num_bits):
    with pytest.raises(ValueError, match=f"num_bits must be between 1 and 32; got num_bits={num_bits}"):
        federated_computation(lambda x: federated_secure_sum(x, num_bits=num_bits))(Clients.of(np.arange(3)))


# --- fixed point ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_clients", "value_bits", "num_bits"), [(100, 8, 15), (100, 16, 23), (1000, 16, 26)])
def test_rings_are_as_wide_as_published(max_clients, value_bits, num_bits):
    """A value of k bits takes ceil(log2(n * (2^k - 1) + 1)) bits in a sum of n; one bit fewer is too few."""
    assert fixed_point(bound=1.0, max_clients=max_clients, num_bits=num_bits).num_levels >= 2 ** (value_bits - 1) - 1
    assert fixed_point(bound=1.0, max_clients=max_clients, num_bits=num_bits - 1).num_levels < 2 ** (value_bits - 1) - 1


@pytest.mark.parametrize("num_bits", [2, 9, 15, 23, 31, 32])
@pytest.mark.parametrize("max_clients", [1, 3, 100, 1000])
def test_the_sum_of_extremes_never_overflows(num_bits, max_clients):
    if max_clients > 2 ** (num_bits - 1) - 1:
        with pytest.raises(ValueError, match="must fit into the ring"):
            fixed_point(bound=1.0, max_clients=max_clients, num_bits=num_bits)
        return
    grid = fixed_point(bound=0.1, max_clients=max_clients, num_bits=num_bits)
    extremes = jnp.array([1e30, -1e30, jnp.inf, -jnp.inf, 0.1, -0.1], jnp.float32)
    for key in (None, *jax.random.split(KEY, 3)):
        codes = np.asarray(encode(grid, extremes, key)).astype(object)
        assert codes.tolist() == [grid.num_levels, -grid.num_levels] * 3
        assert abs(codes * max_clients).max() < 2 ** (num_bits - 1)
    assert grid.num_levels * max_clients * 2 + max_clients * 2 + 2**9 * max_clients >= 2 ** (
        num_bits - 1
    )  # no bit wasted


def test_encoding_rounds_to_the_nearest_level():
    grid = fixed_point(bound=2.0, max_clients=50, num_bits=16)
    x = RANDOM.uniform(-2, 2, size=1000).astype(np.float32)
    assert abs(np.asarray(decode(grid, encode(grid, x))) - x).max() <= 0.501 * 2.0 / grid.num_levels
    assert encode(grid, jnp.array([0.0, jnp.nan])).tolist() == [0, 0]
    assert int(num_clipped(grid, {"a": jnp.array([2.0, -2.1, jnp.nan]), "b": jnp.array(jnp.inf)})) == 3


def test_random_rounding_is_unbiased_and_rounding_to_the_nearest_is_not():
    grid = fixed_point(bound=1.0, max_clients=1, num_bits=4)
    x, num_draws = jnp.full(20_000, 0.3 / grid.num_levels), 20_000
    assert abs(float(encode(grid, x, KEY).mean()) - 0.3) < 5 * np.sqrt(0.21 / num_draws)
    assert not encode(grid, x).any()
    assert set(encode(grid, -x, KEY).tolist()) == {-1, 0}


def test_random_rounding_is_unbiased_where_floats_are_no_finer_than_halves():
    grid = fixed_point(bound=1.0, max_clients=1, num_bits=24)
    x = jnp.full(20_000, np.float32((2**22 + 0.5) / grid.num_levels))
    exact = np.float32(x[0]) * np.float32(grid.num_levels)
    assert abs(float((encode(grid, x, KEY) - 2**22).mean()) - (exact - 2**22)) < 5 * np.sqrt(0.25 / 20_000)
    assert set(encode(grid, x, KEY).tolist()) == {2**22, 2**22 + 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0.0, "max_clients": 2}, "bound must be positive and finite; got bound=0.0"),
        ({"bound": float("nan"), "max_clients": 2}, "bound must be positive and finite; got bound=nan"),
        ({"bound": 1.0, "max_clients": 0}, "max_clients must be an integer of at least 1; got max_clients=0"),
        (
            {"bound": 1.0, "max_clients": 2, "num_bits": 40},
            r"num_bits must be an integer in \[1, 32\]; got num_bits=40",
        ),
        ({"bound": 1.0, "max_clients": 8, "num_bits": 4}, "got max_clients=8 and num_bits=4. Use at least 5 bits"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(**options)


# --- aggregators ----------------------------------------------------------------------------------


def oracle_sum(values, grid):
    """Codes from float64, their sum in big integers, decoded."""
    codes = np.rint(np.clip(values.astype(np.float64) / grid.bound, -1, 1) * grid.num_levels)
    totals = [modulo(sum(map(int, column)), grid.num_bits) for column in codes.T]
    return np.array(totals, np.float64) * (grid.bound / grid.num_levels)


def test_the_secure_sum_is_the_decoded_sum_of_codes_however_it_runs():
    grid = fixed_point(bound=4.0, max_clients=8, num_bits=20)
    aggregator = secure_sum(bound=4.0, max_clients=8, num_bits=20)
    results = [run(KEY, (), padded(VALUES), padded(WEIGHTS)) for run in ways(aggregator.next)]
    for _, result, measured in results:
        np.testing.assert_array_equal(result, results[0][1])
        assert {name: int(x) for name, x in measured.items()} == {
            "num_clients": 5,
            "num_clipped": (abs(VALUES[WEIGHTS > 0]) > 4).sum(),
            "overflow": 0,
            "too_few": 0,
        }
    np.testing.assert_allclose(results[0][1], oracle_sum(VALUES[WEIGHTS > 0], grid), rtol=1e-6)
    assert (abs(VALUES[WEIGHTS > 0]) > 4).any()


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_secure_mean_is_the_mean_of_clipped_values_to_the_width_of_the_grid(stochastic):
    aggregator = secure_mean(bound=4.0, max_weight=10.0, max_clients=6, stochastic=stochastic)
    results = [run(KEY, (), padded(VALUES), padded(WEIGHTS)) for run in ways(aggregator.next)]
    expected = np.average(np.clip(VALUES, -4, 4).astype(np.float64), axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(results[0][1], expected, rtol=1e-5)
    for _, result, _ in results:
        np.testing.assert_array_equal(result, results[0][1])


def test_weights_and_values_of_no_use_are_clipped_and_counted():
    aggregator = secure_mean(bound=1.0, max_weight=2.0, max_clients=9)
    value = Clients.of(np.array([[1.0, 9.0], [0.5, np.nan], [7.0, 7.0], [7.0, 7.0]], np.float32))
    weight = Clients.of(np.array([2.0, 50.0, -1.0, np.nan], np.float32))
    _, result, measured = aggregator.next(KEY, (), value, weight)
    np.testing.assert_allclose(result, [0.75, 0.5], rtol=1e-6)
    assert {name: int(x) for name, x in measured.items()} == {
        "num_clients": 2,
        "num_clipped": 2,
        "num_clipped_weights": 3,
        "num_lost_weights": 0,
        "overflow": 0,
        "too_few": 0,
    }


@pytest.mark.parametrize("aggregator", [secure_sum, lambda **options: secure_mean(max_weight=1.0, **options)])
def test_more_clients_than_the_ring_holds_are_detected(aggregator):
    one_too_many = Clients.of(np.ones((4, 2), np.float32)), Clients.of(np.ones(4, np.float32))
    results = [aggregator(bound=1.0, max_clients=n, num_bits=8).next(KEY, (), *one_too_many) for n in (3, 4)]
    assert [bool(measured["overflow"]) for _, _, measured in results] == [True, False]
    assert np.isnan(results[0][1]).all()
    assert np.isfinite(results[1][1]).all()


@pytest.mark.parametrize("aggregator", [secure_sum, lambda **options: secure_mean(max_weight=1.0, **options)])
def test_an_empty_cohort_gives_zero(aggregator):
    nobody = np.zeros(3, bool)
    value = Clients.of(np.full((3, 2), np.nan, np.float32), ids=np.full(3, -1), mask=nobody)
    weight = Clients.of(np.full(3, np.nan, np.float32), ids=np.full(3, -1), mask=nobody)
    _, result, measured = aggregator(bound=1.0, max_clients=3).next(KEY, (), value, weight)
    assert (result.tolist(), int(measured["num_clients"])) == ([0.0, 0.0], 0)


@pytest.mark.parametrize("aggregator", [secure_sum, lambda **options: secure_mean(max_weight=1.0, **options)])
def test_nothing_is_shown_of_fewer_clients_than_are_needed(aggregator):
    step = aggregator(bound=1.0, min_clients=2, max_clients=3).next
    for present in (1, 2):
        weight = np.arange(3) < present
        _, result, measured = step(
            KEY, (), Clients.of(np.full(3, 7.0, np.float32)), Clients.of(weight.astype(np.float32))
        )
        assert (float(result) > 0, bool(measured["too_few"])) == (present == 2, present == 1)
        assert (int(measured["num_clients"]), int(measured["num_clipped"])) == (present, 2 if present == 2 else 0)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=rf"min_clients must be an integer in \[1, 3\]; got min_clients={wrong}"):
            aggregator(bound=1.0, min_clients=wrong, max_clients=3)


def test_small_weights_are_lost_and_counted_or_right_in_expectation():
    """Shares of 0.004 in 163 levels: 0.65 of a level, which the nearest makes one, and one of 0.33 none."""
    n = 100
    value, options = Clients.of(np.full((n, 64), 0.5, np.float32)), {"bound": 1.0, "max_weight": 1e3, "max_clients": n}
    mean = secure_mean(num_bits=15, **options)
    for weight, lost in ((4.0, 0), (2.0, n)):
        _, result, measured = mean.next(KEY, (), value, Clients.of(np.full(n, weight, np.float32)))
        assert int(measured["num_lost_weights"]) == lost
        np.testing.assert_array_equal(result, 0)  # half of either share is rounded to 0
    mean = secure_mean(num_bits=15, stochastic=True, **options)
    _, result, measured = mean.next(KEY, (), value, Clients.of(np.full(n, 4.0, np.float32)))
    num_levels = 163
    share = 0.004 * num_levels
    assert abs(int(measured["num_lost_weights"]) - n * (1 - share)) < 5 * np.sqrt(n * share * (1 - share))
    kept = n - int(measured["num_lost_weights"])  # every share is then a code of 0 or 1
    deviation = np.sqrt(n * share / 2 * (1 - share / 2) / 64) / kept
    assert abs(float(result.mean()) - n * share / 2 / kept) < 5 * deviation


def test_the_bill_of_a_mean_is_its_codes_and_its_counts():
    aggregator = secure_mean(bound=1.0, max_weight=1.0, max_clients=100, num_bits=23)
    types = map(parse_type, ("uint32@SERVER", "float32[1000]@CLIENTS", "float32@CLIENTS"))
    _, value, weight = types
    messages = [m for m in aggregator.next.communication(KEY, (), value, weight) if m.direction == "up"]
    words = -(-1000 * 23 // 32) + 1
    assert [(m.secure, m.bits) for m in messages] == [(True, 32 * words), (True, 4 * 32)]


def test_integers_are_no_values_of_a_secure_mean():
    with pytest.raises(TypeError, match="real floating-point"):
        secure_sum(bound=1.0, max_clients=3).next(KEY, (), Clients.of(np.arange(3)), Clients.of(np.ones(3)))


def test_a_secure_total_takes_all_kinds_of_numbers():
    value = {
        "float": np.array([0.5, 9.0, np.nan], np.float32),
        "bool": np.array([True, False, True]),
        "count": np.array([2**31 - 1, 5, -(2**31)], np.int32),
        "unsigned": np.array([2**32 - 1, 1, 0], np.uint32),
    }
    total, most = federated_computation(secure_total(bound=1.0, max_clients=3)), (2**31 - 1) // 3
    result = total(Clients.of(value))
    assert int(result.pop("num_clipped_metrics")) == 5  # 9.0 and NaN, and all but 5, 1 and 0 of the integers
    assert {name: x.dtype for name, x in result.items()} == {
        "float": jnp.float32,
        "bool": jnp.int32,
        "count": jnp.int32,
        "unsigned": jnp.uint32,
    }
    assert {name: int(x) for name, x in result.items() if name != "float"} == {
        "bool": 2,
        "count": 5,
        "unsigned": most + 1,
    }
    np.testing.assert_allclose(result["float"], 1.5, rtol=1e-6)
    assert np.isnan(federated_computation(secure_total(bound=1.0, max_clients=2))(Clients.of(value))["float"])
