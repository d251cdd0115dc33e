"""Models with batch statistics, from Linen and from NNX."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjx.models import from_flax
from fedjx.models.losses import cross_entropy
from fedjx.models.model import LossWithStats, Variables

KEY = jax.random.key(0)
BATCH = {
    "x": np.random.default_rng(0).normal(1, 2, size=(4, 5)).astype(np.float32),
    "y": np.arange(4) % 3,
    "mask": np.array([True, True, True, False]),
}


class LinenNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x, mask=mask[:, None])
        return nn.Dense(3, name="out")(nn.Dropout(0.5, deterministic=not train)(x))


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, mask):
        return self.out(self.dropout(self.norm(x, mask=mask[:, None])))


class LinenWithoutDropout(LinenNormed):
    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x, mask=mask[:, None])
        return nn.Dense(3, name="out")(x)


def linen(module=None, **options):
    return from_flax(module or LinenWithoutDropout(), sample_input=jax.ShapeDtypeStruct((1, 5), jnp.float32), **options)


@pytest.fixture(scope="module")
def variables():
    """Parameters, and statistics of which each number is its own."""
    stats = {"norm": {"mean": jnp.arange(5) / 5, "var": 1 + jnp.arange(5) / 3}}
    return Variables(from_flax(Normed).init(KEY).params, stats)


def both(model, variables, batch):
    return jax.jit(lambda v, b: (model.loss(v, b, KEY), model.metrics(v, b)))(variables, batch)


def test_linen_and_nnx_agree_and_follow_the_formulas(variables):
    results = [both(model, variables, BATCH) for model in (linen(), from_flax(Normed))]
    chex.assert_trees_all_close(*results, rtol=1e-6)
    chex.assert_trees_all_equal_shapes(variables, linen().init(KEY))
    (training, evaluated), x = results[1], BATCH["x"][:3].astype(np.float64)
    assert isinstance(training, LossWithStats)
    outputs = from_flax(Normed).apply(variables, BATCH)  # with the running statistics, as metrics are
    np.testing.assert_allclose(cross_entropy(outputs, BATCH), evaluated["loss"], rtol=1e-5)
    stats, new = variables.batch_stats["norm"], training.batch_stats["norm"]
    np.testing.assert_allclose(new["mean"], 0.99 * stats["mean"] + 0.01 * x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.99 * stats["var"] + 0.01 * x.var(axis=0), rtol=1e-5)
    for (mean, var), losses in (((x.mean(0), x.var(0)), training.loss), (stats.values(), evaluated["loss"])):
        hidden = (x - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-5)
        logits = hidden @ np.asarray(variables.params["out"]["kernel"], np.float64)
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3), BATCH["y"][:3]]
        np.testing.assert_allclose(losses[:3], expected, rtol=1e-4)


def test_frozen_statistics_are_constants_and_parameters_are_plain(variables):
    for adapt in (linen, lambda **options: from_flax(Normed, **options)):
        model = adapt(frozen_batch_stats=variables.batch_stats)
        chex.assert_trees_all_equal_shapes(model.init(KEY), variables.params)
        losses, evaluated = both(model, variables.params, BATCH)
        np.testing.assert_allclose(losses, both(adapt(), variables, BATCH)[1]["loss"], rtol=1e-6)
        np.testing.assert_array_equal(losses, evaluated["loss"])


def test_batch_statistics_and_dropout_together(variables):
    loss = jax.jit(lambda v, key: linen(LinenNormed()).loss(v, BATCH, key))
    one, other = (loss(variables, jax.random.key(seed)) for seed in (0, 1))
    assert (one.loss != other.loss).any()
    chex.assert_trees_all_equal(one.batch_stats, other.batch_stats)


def test_running_statistics_keep_their_precision(variables):
    model = from_flax(Normed, compute_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="running statistics need their precision; got compute_dtype"):
        jax.eval_shape(model.metrics, variables, BATCH)
    # Frozen ones are constants, and rounding them is no drift.
    frozen = from_flax(Normed, compute_dtype=jnp.bfloat16, frozen_batch_stats=variables.batch_stats)
    assert jax.eval_shape(frozen.metrics, variables.params, BATCH)["loss"].dtype == jnp.float32
