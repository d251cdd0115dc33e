"""The sum of what clients put into bins: values against NumPy, however it runs, the bill, and what may be seen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx import Clients, check_secure, federated_bin_sum, federated_client_ids, federated_computation, federated_map
from fedjx.core.language.reductions import bin_sum
from fedjx.core.language.types import parse_type
from tests.algorithms.test_laws import mesh

NUM_BINS = 6
RANDOM = np.random.default_rng(0)
BINS = RANDOM.integers(-2, NUM_BINS + 2, (9, 4, 2)).astype(np.int32)  # some in none
FLOATS = RANDOM.normal(size=(9, 4, 2, 3)).astype(np.float32)
INTEGERS = RANDOM.integers(-99, 99, (9, 4, 2)).astype(np.int32)
MASK = np.arange(9) < 7
IDS = np.where(MASK, np.arange(9)[::-1], -1)


def reference(bins: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.zeros((NUM_BINS, *values.shape[bins.ndim :]), np.float64 if values.dtype.kind == "f" else np.int64)
    for index in np.ndindex(*bins.shape):
        if 0 <= bins[index] < NUM_BINS:
            out[bins[index]] += values[index]
    return out


def summed(secure: bool = False, num_bins: int = NUM_BINS) -> Any:
    return federated_computation(lambda bins, values: federated_bin_sum(bins, values, num_bins, secure=secure))


def cohort(x: np.ndarray, garbage: float) -> Clients:
    """Seven clients, and two places of padding."""
    x = x.copy()
    x[~MASK] = garbage
    return Clients.of(x, mask=MASK, ids=IDS)


@pytest.mark.parametrize("garbage", [1, -1, 2**31 - 1])
def test_adds_what_is_in_a_bin_and_leaves_out_the_rest(garbage):
    found = summed()(cohort(BINS, garbage), cohort(FLOATS, np.nan))
    np.testing.assert_allclose(found, reference(BINS[MASK], FLOATS[MASK]), rtol=1e-5, atol=1e-6)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_narrow_bins_are_of_any_number(dtype):
    bins = np.array([[0, 5], [127, 5], [1, 1]], dtype)
    mask = np.array([True, True, False])
    found = summed(num_bins=300)(Clients.of(bins, mask=mask), Clients.of(np.ones((3, 2), np.int32), mask=mask))
    assert {int(k): int(found[k]) for k in np.flatnonzero(found)} == {0: 1, 5: 2, 127: 1}


def test_what_is_below_zero_in_a_narrow_dtype_is_left_out():
    bins = Clients.of(np.array([[-1, -128, 3]], np.int8))
    found = summed(num_bins=200)(bins, Clients.of(np.ones((1, 3), np.int32)))
    np.testing.assert_array_equal(np.flatnonzero(found), [3])


@pytest.mark.parametrize("secure", [False, True])
def test_integers_are_exact_however_it_runs(secure):
    computation = summed(secure)
    arguments = cohort(BINS, 2), cohort(INTEGERS, 77)
    expected = reference(BINS[MASK], INTEGERS[MASK])
    for devices in (1, 2, 4):
        for lanes in (1, 2):
            found = jax.jit(computation.in_graph(mesh=mesh(devices), lanes=lanes))(*arguments)
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(computation.streamed(mesh=mesh(devices))(*arguments), expected)
    assert found.dtype == jnp.int32


def test_a_stream_is_the_sum_of_its_chunks():
    both = federated_computation(lambda pair: federated_bin_sum(pair[0], pair[1], NUM_BINS))
    joined = [
        Clients((BINS[k : k + 3], INTEGERS[k : k + 3]), MASK[k : k + 3], IDS[k : k + 3].astype(np.int32))
        for k in (0, 3, 6)
    ]
    np.testing.assert_array_equal(both(joined), reference(BINS[MASK], INTEGERS[MASK]))


def test_secure_sums_wrap_around_the_ring_and_others_are_booleans_too():
    bins, values = np.zeros((3, 1), np.int32), np.array([[2**31 - 1], [2**31 - 1], [5]], np.int32)
    found = summed(secure=True)(Clients.of(bins), Clients.of(values))
    np.testing.assert_array_equal(found, [3, 0, 0, 0, 0, 0])  # 2^32 + 3
    assert int(summed()(Clients.of(bins), Clients.of(values > 5))[0]) == 2


def test_the_gradient_is_that_of_the_entries():
    def loss(values: jax.Array) -> jax.Array:
        clients = Clients(values, jnp.asarray(MASK), jnp.asarray(IDS, jnp.int32))
        sums = summed().in_graph()(cohort(BINS, 1), clients)
        return jnp.sum(sums * jnp.arange(NUM_BINS, dtype=jnp.float32)[:, None])

    found = jax.grad(loss)(jnp.asarray(FLOATS))
    in_one = (BINS >= 0) & (BINS < NUM_BINS) & MASK[:, None, None]
    expected = np.where(in_one, BINS, 0)[..., None] * np.ones(3)
    np.testing.assert_allclose(found, expected)


def test_nobody_adds_nothing():
    nobody = np.zeros(9, bool)
    clients = (Clients.of(x, mask=nobody) for x in (BINS, FLOATS))
    assert not np.asarray(summed()(*clients)).any()


@pytest.mark.parametrize("secure", [False, True])
def test_the_bill_is_that_of_a_vector(secure):
    (up,) = summed(secure).communication(Clients.of(BINS), Clients.of(INTEGERS))
    assert (up.bits, up.direction, "secure" in repr(up).lower()) == (32 * NUM_BINS, "up", True)


def test_only_secure_ones_hide_the_entries():
    arguments = Clients.of(BINS), Clients.of(INTEGERS)
    check_secure(summed(secure=True), *arguments)
    with pytest.raises(ValueError, match="only secure sums may touch client values; got federated_sum"):
        check_secure(summed(), *arguments)

    @federated_computation
    def by_id(values):
        places = federated_map(lambda k, v: jnp.full(v.shape, k % NUM_BINS), federated_client_ids(), values)
        return federated_bin_sum(places, values, NUM_BINS, secure=True)

    with pytest.raises(ValueError, match="only secure sums may touch"):
        check_secure(by_id, arguments[1])


@pytest.mark.parametrize(
    ("bins", "values", "others", "error", "sentence"),
    [
        (
            FLOATS[..., 0],
            INTEGERS,
            {},
            TypeError,
            "the bins of federated_bin_sum needs integer.*Number the bins from 0",
        ),
        (
            BINS,
            FLOATS,
            {"secure": True},
            TypeError,
            "the values of federated_bin_sum needs integer.*Encode them first",
        ),
        (
            BINS,
            INTEGERS.swapaxes(1, 2),
            {},
            ValueError,
            r"a bin for each of the values; got bins \[4, 2\] and values \[2, 4\]",
        ),
        (BINS, INTEGERS, {"num_bins": 0}, ValueError, "num_bins must be an integer in"),
    ],
)
def test_mistakes_are_refused(bins, values, others, error, sentence):
    with pytest.raises(error, match=sentence):
        summed(**others)(Clients.of(bins), Clients.of(values))


def test_a_bin_of_64_bits_is_none_of_the_first():
    with jax.enable_x64(True):
        bins, reduction = jnp.array([2**32, 2**32 + 1, 1], jnp.int64), bin_sum(4, False)
        found = reduction.update(jnp.zeros(4, jnp.int64), (bins, jnp.ones(3, jnp.int64)), jnp.ones(3, bool))
    assert found.tolist() == [0, 1, 0, 0]


def test_is_exported_for_any_number_of_clients():
    @fedjx.federated_computation
    def histogram(bins):
        return fedjx.federated_bin_sum(bins, fedjx.federated_map(jnp.ones_like, bins), 3)

    loaded = fedjx.load(fedjx.export(histogram, parse_type("{int32[2]}@CLIENTS")))
    for number in (1, 5):
        bins = np.arange(2 * number, dtype=np.int32).reshape(number, 2) % 4
        np.testing.assert_array_equal(loaded(fedjx.Clients.of(bins)), np.bincount(bins.ravel(), minlength=4)[:3])
