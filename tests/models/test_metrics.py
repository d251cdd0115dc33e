"""Sums of per-example metrics, and the values they become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.models import Ratio, finalize_metrics, mean_loss, sum_metrics


def test_garbage_under_the_mask_does_not_leak():
    mask = jnp.array([True, False, True, False])
    values = {
        "float": jnp.array([1.0, jnp.nan, 2.0, jnp.inf]),
        "int": jnp.array([1, 2**31 - 1, 2, -(2**31)]),
        "ratio": Ratio(jnp.array([1.0, jnp.nan, 2.0, 9.0]), jnp.array([2, 77, 4, 77])),
    }
    sums = sum_metrics(values, mask)
    assert sums == {"float": Ratio(3.0, 2), "int": Ratio(3, 2), "ratio": Ratio(3.0, 6)}
    assert finalize_metrics(sums) == {"float": 1.5, "int": 1.5, "ratio": 0.5}
    assert mean_loss(values["float"], mask) == 1.5
    gradient = jax.grad(mean_loss)(values["float"], mask)
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5, 0.0])


def test_integers_are_exact_and_low_precision_is_summed_in_float32():
    big = 2**24
    sums = sum_metrics({"n": jnp.array([big, 1, 1, 1]), "ok": jnp.ones(4, bool)}, jnp.ones(4, bool))
    assert sums["n"].numerator == big + 3  # in float32 this is big or big + 4
    assert sums["n"].numerator.dtype == sums["ok"].numerator.dtype == sums["ok"].denominator.dtype == jnp.int32
    for dtype in (jnp.bfloat16, jnp.float16):
        ones = jnp.ones(4099, dtype)
        total = sum_metrics({"x": ones}, jnp.ones(4099, bool))["x"].numerator
        assert total == 4099
        assert total.dtype == jnp.float32
    small = sum_metrics({"x": jnp.full(300, 255, jnp.uint8)}, jnp.ones(300, bool))["x"].numerator
    assert small == 300 * 255


def test_means_of_nothing_are_zero_with_zero_gradient():
    nothing = jnp.zeros(3, bool)
    values = finalize_metrics(sum_metrics({"x": jnp.ones(3), "r": Ratio(jnp.ones(3), jnp.ones(3))}, nothing))
    assert values == {"x": 0.0, "r": 0.0}
    assert all(x.dtype == jnp.float32 and x.shape == () for x in values.values())
    loss, gradient = jax.value_and_grad(mean_loss)(jnp.ones(3), nothing)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros(3))
    # A denominator may be 0 by its weights too, with the numerator not masked.
    assert jax.grad(lambda n: finalize_metrics({"r": Ratio(n, 0.0)})["r"])(1.0) == 0


def test_sums_over_clients_are_the_centralised_sums():
    rng = np.random.default_rng(0)
    hits, mask = jnp.asarray(rng.integers(0, 2, (5, 7)) > 0), jnp.asarray(rng.integers(0, 2, (5, 7)) > 0)
    by_client = jax.vmap(lambda h, m: sum_metrics({"accuracy": h}, m))(hits, mask)
    federated = jax.tree.map(lambda x: x.sum(0), by_client)
    central = sum_metrics({"accuracy": hits.reshape(-1)}, mask.reshape(-1))
    assert federated == central == {"accuracy": Ratio(int((hits & mask).sum()), int(mask.sum()))}


@pytest.mark.parametrize("shape", [(), (1,), (4, 10), (4, 1)])
def test_a_loss_that_is_not_per_example_is_refused_while_tracing(shape):
    mask = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"one number per example.*got loss with value\.shape=.*without averaging"):
        jax.eval_shape(mean_loss, jnp.zeros(shape), mask)
    with pytest.raises(ValueError, match=r"got top5 with"):
        sum_metrics({"top5": jnp.zeros(shape)}, mask)
    with pytest.raises(ValueError, match=r"got perplexity\.denominator with"):
        sum_metrics({"perplexity": Ratio(jnp.zeros(4), jnp.zeros(shape))}, mask)
