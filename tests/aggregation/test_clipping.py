"""Clipping and zeroing against their closed forms, and the quantile that an adaptive bound follows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.clipping import clip_adaptively, clip_by_norm, clip_by_value
from fedjx.aggregation.mean import mean
from fedjx.aggregation.norms import follow_quantile, joint_norm
from fedjx.aggregation.total import total
from fedjx.aggregation.weights import clip_weights
from fedjx.aggregation.zeroing import zero_above, zero_outliers, zeroed_and_clipped_mean
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.values import Clients


def with_norms(norms: Any) -> np.ndarray:
    """One vector ``[2]`` for each norm, in the direction (0.6, -0.8)."""
    return np.asarray(norms, np.float32)[:, None] * np.array([0.6, -0.8], np.float32)


def one_round(aggregator: Aggregator, value: Any, weight: Any = None, state: Any = None) -> tuple[Any, Any, Any]:
    num_clients = len(jax.tree.leaves(value)[0])
    weight = np.ones(num_clients, np.float32) if weight is None else np.asarray(weight, np.float32)
    state = aggregator.init(jax.tree.map(lambda x: jnp.asarray(x[0]), value)) if state is None else state
    return aggregator.next(jax.random.key(0), state, Clients.of(value), Clients.of(weight))


def bounds(aggregator: Aggregator, norms: Any, num_rounds: int, name: str = "clip") -> list[float]:
    """The bound of every round, from the first, where all clients send the same in each."""
    value, state, seen = with_norms(norms), None, []
    for _ in range(num_rounds):
        state, _, measured = one_round(aggregator, value, state=state)
        seen.append(float(measured[name]))
    return seen


# --- norms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_the_joint_norm_is_that_of_one_vector(order):
    random = np.random.default_rng(0)
    value = {"w": random.normal(size=(3, 4)), "b": np.float64(-2.5), "n": np.array([3, -4], np.int8)}
    flat = np.concatenate([np.ravel(value[k]) for k in value])
    np.testing.assert_allclose(joint_norm(value, order), np.linalg.norm(flat, order), rtol=1e-6)
    assert np.isnan(joint_norm({"w": jnp.array([np.nan, 1.0])}, order))
    assert joint_norm((), order) == joint_norm({"w": jnp.zeros((0, 3))}, order) == 0


def test_a_norm_of_half_precision_is_computed_in_single():
    assert joint_norm(jnp.full(4, 300.0, jnp.float16)) == 600.0  # the squares alone would be infinite
    assert joint_norm(jnp.array([-128, 3], jnp.int8), np.inf) == 128


def test_another_order_is_refused():
    for fn in (lambda: joint_norm(jnp.ones(2), 3), lambda: clip_by_norm(max_norm=1.0, order=0)):
        with pytest.raises(ValueError, match="order must be one of 1, 2, inf; got order="):
            fn()


# --- fixed bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_clipping_scales_the_joint_norm_of_all_leaves(order):
    random = np.random.default_rng(1)
    value = {"w": random.normal(size=(5, 3)).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
    weight = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    flat = np.concatenate([value["w"], value["b"][:, None]], axis=1)
    norms = np.linalg.norm(flat, order, axis=1)
    clip = float(np.median(norms))
    expected = np.average(flat * np.minimum(1, clip / norms)[:, None], axis=0, weights=weight)
    _, result, measured = one_round(clip_by_norm(max_norm=clip, order=order), value, weight)
    np.testing.assert_allclose(np.append(result["w"], result["b"]), expected, rtol=1e-5)
    np.testing.assert_allclose([measured["clip"], measured["clipped_fraction"]], [clip, 2 / 5], rtol=1e-6)


def test_a_clipped_norm_is_at_most_the_bound_and_clipping_twice_is_clipping_once():
    single, double = clip_by_norm(max_norm=1.0), clip_by_norm(max_norm=1.0, inner=clip_by_norm(max_norm=1.0))
    for norm in (0.0, 1e-30, 0.3, 1.0, 7.0, 1e18):
        _, once, _ = one_round(single, with_norms([norm]))
        _, twice, _ = one_round(double, with_norms([norm]))
        np.testing.assert_allclose(once, with_norms([min(norm, 1.0)])[0], rtol=1e-6)
        np.testing.assert_allclose(twice, once, rtol=1e-6)
        assert joint_norm(once) <= 1 + 1e-6


def test_a_scalar_parameter_is_clipped_too():
    _, result, _ = one_round(clip_by_norm(max_norm=1.0), np.array([5.0], np.float32))
    assert result == 1.0


def test_clipping_keeps_half_precision_and_refuses_integers():
    _, result, _ = one_round(clip_by_norm(max_norm=1.0), with_norms([5.0]).astype(np.float16))
    assert result.dtype == np.float16
    for aggregator in (clip_by_norm(max_norm=1.0, inner=total()), clip_by_value(max_value=1.0, inner=total())):
        with pytest.raises(TypeError, match="what is clipped must be floating-point; got int32"):
            one_round(aggregator, np.array([[1, 2]], np.int32))


def test_clipping_by_value_changes_each_element_alone():
    value = np.array([[3.0, 0.1], [-0.2, -0.7], [0.1, 0.2]], np.float32)
    _, result, measured = one_round(clip_by_value(max_value=0.5, inner=total()), value)
    np.testing.assert_allclose(result, [0.5 - 0.2 + 0.1, 0.1 - 0.5 + 0.2], rtol=1e-6)
    np.testing.assert_allclose(measured["clipped_fraction"], 2 / 3, rtol=1e-6)


def test_zeroed_clients_keep_their_weight():
    value = with_norms([1.0, 1.0, 9.0])
    _, result, measured = one_round(zero_above(threshold=2.0), value, [1.0, 1.0, 2.0])
    np.testing.assert_allclose(result, with_norms([0.5])[0], rtol=1e-6)
    assert (float(measured["zeroing_threshold"]), int(measured["num_zeroed"])) == (2.0, 1)


def test_a_norm_at_the_threshold_is_let_through():
    _, result, measured = one_round(
        zero_above(threshold=4.0, inner=total()), np.array([[4.0, -1.0], [4.5, 0.0]], np.float32)
    )
    np.testing.assert_array_equal(result, [4.0, -1.0])
    assert int(measured["num_zeroed"]) == 1


def test_zeroing_passes_integers():
    _, result, _ = one_round(zero_above(threshold=10.0, inner=total()), np.array([[1, 2], [3, 40]], np.int32))
    np.testing.assert_array_equal(result, [1, 2])
    assert result.dtype == jnp.int32


@pytest.mark.parametrize(
    ("aggregator", "counter"),
    [
        (clip_by_norm(max_norm=1.0), "num_non_finite"),
        (clip_adaptively(initial=1.0), "num_non_finite"),
        (zero_above(threshold=1.0, order=2), "num_zeroed"),
    ],
    ids=["clip", "adaptive", "zero"],
)
def test_a_client_without_a_finite_norm_is_left_out_and_counted(aggregator, counter):
    for bad in (np.nan, np.inf, -np.inf, 1e30):  # 1e30 squared overflows
        value = np.concatenate([with_norms([0.5, 0.5]), [[bad, 0.0]]]).astype(np.float32)
        _, result, measured = one_round(aggregator, value)
        np.testing.assert_allclose(result, with_norms([0.5])[0], rtol=1e-6)
        assert int(measured[counter]) == 1
        assert float(measured.get("clipped_fraction", 0.0)) == 0.0


def test_two_clips_report_both():
    _, _, measured = one_round(clip_by_norm(max_norm=3.0, inner=clip_by_norm(max_norm=1.0)), with_norms([2.0, 4.0]))
    assert (float(measured["clipped_fraction"]), float(measured["inner"]["clipped_fraction"])) == (0.5, 1.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: clip_by_norm(max_norm=0.0),
        lambda: clip_by_value(max_value=-1.0),
        lambda: zero_above(threshold=np.nan),
        lambda: clip_adaptively(initial=0.0),
        lambda: clip_adaptively(learning_rate=-0.2),
        lambda: clip_adaptively(quantile=1.5),
        lambda: zero_outliers(initial=-1.0),
    ],
)
def test_senseless_bounds_are_refused(build):
    positive = "(max_norm|max_value|threshold|initial|learning_rate) must be positive; got"
    with pytest.raises(ValueError, match=positive + r"|quantile must be in \[0, 1\]; got"):
        build()


# --- adaptive bounds ------------------------------------------------------------------------------


def closed_form(initial: float, norms: Any, num_rounds: int, *, quantile: float, learning_rate: float) -> list[float]:
    """The geometric update in float64."""
    clips = [initial]
    for _ in range(num_rounds - 1):
        below = np.mean(np.asarray(norms) <= clips[-1])
        clips.append(clips[-1] * np.exp(-learning_rate * (below - quantile)))
    return clips


@pytest.mark.parametrize(
    ("initial", "published"),
    [
        (0.1, {1: 0.110517, 5: 0.164872, 15: 0.448169, 23: 0.997418, 24: 1.102318, 25: 0.997418}),
        (10.0, {1: 9.048374, 5: 6.065307, 15: 2.231302, 23: 1.002588, 24: 0.907180, 25: 1.002588}),
    ],
)
def test_the_clip_moves_toward_the_quantile_from_both_sides(initial, published):
    """From 0.1 a reversed sign, as in Flower's, would give 0.0905, 0.0607, 0.0223: away from the norms, all 1."""
    got = bounds(clip_adaptively(initial=initial), [1.0] * 4, 26)
    np.testing.assert_allclose([got[r] for r in published], list(published.values()), rtol=1e-5)
    np.testing.assert_allclose(got, closed_form(initial, [1.0], 26, quantile=0.5, learning_rate=0.2), rtol=1e-5)
    reversed_sign = closed_form(initial, [1.0], 26, quantile=0.5, learning_rate=-0.2)
    assert abs(got[15] - 1) < abs(initial - 1) < abs(reversed_sign[15] - 1)


@pytest.mark.parametrize("initial", [0.02, 3.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_clip_arrives_at_the_quantile_of_unequal_norms(quantile, initial):
    norms = np.linspace(0.1, 1.0, 10)
    got = bounds(clip_adaptively(quantile=quantile, initial=initial, learning_rate=0.5), norms, 40)
    np.testing.assert_allclose(got, closed_form(initial, norms, 40, quantile=quantile, learning_rate=0.5), rtol=1e-4)
    assert quantile - 0.1 <= got[-1] <= quantile + 0.2  # the norms are as many tenths as clients are below them


def test_the_quantile_is_a_fixed_point():
    norms = np.arange(1, 101) / 100
    assert bounds(clip_adaptively(initial=0.505), norms, 3) == [np.float32(0.505)] * 3


def test_the_round_clips_by_the_bound_from_before_it():
    state, result, measured = one_round(clip_adaptively(initial=0.1), with_norms([1.0, 1.0]))
    np.testing.assert_allclose(result, with_norms([0.1])[0], rtol=1e-6)
    np.testing.assert_allclose([measured["clip"], measured["clipped_fraction"]], [0.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(state.estimate, 0.1 * np.exp(0.1), rtol=1e-6)


def test_clients_without_weight_or_finite_norm_have_no_say():
    value = np.concatenate([with_norms([1.0, 3.0, 0.1]), [[np.nan, 0.0]]])
    state, _, measured = one_round(clip_adaptively(initial=2.0), value, [1.0, 5.0, 0.0, 1.0])
    assert float(state.estimate) == 2.0  # half below, half above
    assert (float(measured["clipped_fraction"]), int(measured["num_non_finite"])) == (0.5, 1)
    state, _, _ = one_round(clip_adaptively(initial=2.0), value, [0.0] * 4)
    assert float(state.estimate) == 2.0


def test_updates_of_zero_do_not_take_the_clip_to_zero_for_good():
    low = jnp.float32(2e-38)
    for _ in range(10):
        low = follow_quantile(low, jnp.float32(1.0), quantile=0.5, learning_rate=0.2)
    assert follow_quantile(low, jnp.float32(0.0), quantile=0.5, learning_rate=0.2) > low > 0
    assert np.isfinite(follow_quantile(jnp.float32(3e38), jnp.float32(0.0), quantile=1.0, learning_rate=5.0))


def test_zeroing_follows_the_raw_quantile_with_the_constants_of_tff():
    """Start 10, quantile 0.98, rate ln 10; the threshold is twice the estimate plus 1."""
    norms = [1.0] * 4  # their largest element is 0.8
    estimates = closed_form(10.0, [0.8], 12, quantile=0.98, learning_rate=np.log(10))
    got = bounds(zero_outliers(), norms, 12, "zeroing_threshold")
    np.testing.assert_allclose(got, 2 * np.array(estimates) + 1, rtol=1e-5)
    assert got[0] == 21.0


def test_zeroing_is_between_estimate_and_threshold_generous():
    value = np.array([[20.0, 0.0], [-22.0, 0.0], [1.0, 1.0]], np.float32)
    state, result, measured = one_round(zero_outliers(inner=total()), value)
    np.testing.assert_array_equal(result, [21.0, 1.0])
    assert int(measured["num_zeroed"]) == 1
    np.testing.assert_allclose(state.estimate, 10 * 10 ** -(1 / 3 - 0.98), rtol=1e-5)  # two of three are above 10


def test_the_preset_zeroes_then_clips_then_averages():
    """A client that is zeroed counts as norm 0 for the clip."""
    value = np.array([[0.3, 0.4], [3.0, 4.0], [30.0, 0.0], [0.0, 0.9]], np.float32)
    state, result, measured = one_round(zeroed_and_clipped_mean(), value, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(result, (value[0] + 2 * value[1] / 5 + 4 * value[3]) / 10, rtol=1e-6)
    assert {k: float(v) for k, v in measured.items()} == {
        "zeroing_threshold": 21.0,
        "num_zeroed": 1.0,
        "clip": 1.0,
        "clipped_fraction": 0.25,
        "num_non_finite": 0.0,
    }
    np.testing.assert_allclose(state.inner.estimate, np.exp(-0.2 * (0.75 - 0.8)), rtol=1e-6)


def test_one_pass_and_what_travels():
    member = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(())}
    clients = Clients.of({"w": np.ones((2, 3, 4), np.float32), "b": np.ones(2, np.float32)})
    aggregator = zeroed_and_clipped_mean()
    args = (jax.random.key(0), aggregator.init(member), clients, Clients.of(np.ones(2, np.float32)))
    messages = aggregator.next.communication(*args)
    assert {m.round_trip for m in messages} == {0}
    assert sum(m.bits for m in messages if m.direction == "down") == 2 * 32  # the two estimates
    assert sum(m.bits for m in messages if m.direction == "up") == 13 * 32 + 32 + 2 * 4  # value, weight, votes


# --- weights and sums -----------------------------------------------------------------------------


def test_clipped_weights_bound_a_client_with_many_examples():
    weight = clip_weights(max_weight=100)(jnp.array([0, 7, 100, 1000]))
    np.testing.assert_array_equal(weight, [0.0, 7.0, 100.0, 100.0])
    assert weight.dtype == jnp.float32
    with pytest.raises(ValueError, match="max_weight must be positive; got max_weight=0"):
        clip_weights(max_weight=0)


def test_a_sum_counts_every_client_once_and_keeps_integers():
    value = {"n": np.array([2**24, 1, 5], np.int32), "x": np.array([0.5, 1.5, np.nan], np.float32)}
    _, result, measured = one_round(total(), value, [10.0, 0.1, 0.0])
    assert (int(result["n"]), float(result["x"]), measured) == (2**24 + 1, 2.0, {})
    _, result, _ = one_round(mean(), {"x": value["x"]}, [10.0, 0.1, 0.0])
    assert float(result["x"]) != 2.0


def test_an_infinite_bound_clips_nothing():
    value = with_norms([0, 1, 5])
    _, result, measured = one_round(clip_by_norm(max_norm=np.inf), value)
    np.testing.assert_allclose(result, value.mean(axis=0), rtol=1e-6)
    assert measured["clipped_fraction"] == 0


@pytest.mark.parametrize("aggregator", [total(), clip_by_norm(max_norm=2.0, inner=total())])
def test_only_a_positive_weight_takes_part(aggregator):
    _, result, measured = one_round(aggregator, with_norms([1, 5, 7]), [2, 0, -1])
    np.testing.assert_allclose(result, with_norms([1])[0], rtol=1e-6)
    assert float(measured.get("clipped_fraction", 0)) == 0
