"""Adapters from Flax Linen and NNX."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.measuring import Compilations
from fedjx.models import Ratio, finalize_metrics, from_flax, sum_metrics
from fedjx.models.flax_models import _built

KEY = jax.random.key(0)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(10)(x))


class LinenCache(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.variable("cache", "seen", jnp.zeros, (1, 1)).value


class NnxNorm(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(64, 10, rngs=rngs)
        self.norm = nnx.BatchNorm(10, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


class NnxConstant(nnx.Module):
    def __init__(self, *, rngs):
        self.table = jnp.ones((1, 10))

    def __call__(self, x):
        return self.table


class NnxOfNumbers(nnx.Module):
    """Two ways in which a module can hold numbers that are no variables."""

    def __init__(self, way, *, rngs):
        self.dense = nnx.Linear(64, 10, rngs=rngs)
        scale = jnp.arange(10.0)[None]
        if way == "closure":
            self.scale = lambda x: x * scale
        elif way == "number":
            self.factor = float(scale.sum())
            self.scale = lambda x: x * self.factor

    def __call__(self, x):
        return self.scale(self.dense(x))


Dense = functools.partial(nnx.Linear, 64, 10)


def digits(size: int = 12, seed: int = 0, shape=(8, 8, 1)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 17, (size, *shape), dtype=np.uint8)
    return {"x": x, "y": rng.integers(0, 10, size), "mask": np.ones(size, bool)}


def flat(batch):
    return batch["x"].reshape(batch["x"].shape[0], -1).astype(jnp.float32) / 16


linen = functools.partial(from_flax, sample_input=jax.ShapeDtypeStruct((1, 64), jnp.float32), inputs=flat)


def test_the_function_of_an_nnx_model_may_be_a_lambda():
    models = from_flax(Dense, inputs=flat), from_flax(lambda rngs: Dense(rngs=rngs), inputs=flat)
    chex.assert_trees_all_equal(*(model.init(KEY) for model in models))


def test_a_model_is_made_of_a_module_whose_parameters_nobody_computes():
    shape = iter(range(65, 1000))  # of a shape that is new, or the program would be there
    with Compilations() as of_model:
        from_flax(functools.partial(nnx.Linear, next(shape), 10))
    with Compilations() as of_module:
        nnx.Linear(next(shape), 10, rngs=nnx.Rngs(0))
    assert of_model.number == 0 < of_module.number


def test_the_random_state_of_a_module_is_computed_alone():
    module = functools.partial(nnx.Dropout, 0.5)
    built, expected = (nnx.state(m, nnx.RngState) for m in (_built(module), module(rngs=nnx.Rngs(0))))
    chex.assert_trees_all_equal(*(jax.tree.map(random_bits, nnx.to_pure_dict(state)) for state in (built, expected)))


def random_bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize(("way", "factor"), [("closure", np.arange(10.0)), ("number", 45.0)])
def test_a_module_may_keep_numbers_that_are_no_variables(way, factor):
    model, plain = from_flax(functools.partial(NnxOfNumbers, way), inputs=flat), from_flax(Dense, inputs=flat)
    params, batch = model.init(KEY), digits()
    np.testing.assert_allclose(
        model.apply(params, batch), factor * np.asarray(plain.apply(params["dense"], batch)), rtol=1e-6, atol=1e-6
    )


def test_linen_and_nnx_agree_on_a_dense_layer():
    linen_model = linen(nn.Dense(10))
    nnx_model = from_flax(Dense, inputs=flat)
    params, batch = nnx_model.init(KEY), digits()
    chex.assert_trees_all_equal_shapes(params, linen_model.init(KEY))
    chex.assert_trees_all_equal(linen_model.metrics(params, batch), nnx_model.metrics(params, batch))
    gradients = [jax.grad(lambda p, m=m: m.loss(p, batch, KEY).sum())(params) for m in (linen_model, nnx_model)]
    chex.assert_trees_all_equal(*gradients)


def test_each_dropout_layer_and_each_draw_has_its_own_mask():
    class Twice(nnx.Module):
        def __init__(self, *, rngs):
            self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

        def __call__(self, x):
            return jnp.stack([self.first(x), self.second(x), self.second(x)], axis=1)

    model = from_flax(Twice, loss=lambda outputs, batch: outputs, metrics={})
    batch = {"x": jnp.ones((200,))}
    outputs = np.asarray(model.loss({}, batch, KEY))
    assert set(np.unique(outputs)) == {0.0, 2.0}
    agreement = [np.mean(outputs[:, i] == outputs[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(agreement) < 0.65  # half by chance; 1 if a key were used twice
    np.testing.assert_array_equal(model.metrics({}, batch)["loss"], np.ones((200, 3)))


def test_user_loss_metrics_and_ratios():
    model = from_flax(
        functools.partial(nnx.Linear, 2, 1, use_bias=False),
        loss=lambda outputs, batch: (outputs[:, 0] - batch["target"]) ** 2,
        metrics={"error": lambda outputs, batch: Ratio(jnp.abs(outputs[:, 0] - batch["target"]), batch["weight"])},
    )
    batch = {"x": jnp.eye(2), "target": jnp.array([1.0, 5.0]), "weight": jnp.array([0.5, 1.5])}
    metrics = model.metrics({"kernel": jnp.array([[2.0], [3.0]])}, batch)
    np.testing.assert_allclose(metrics["loss"], [1.0, 4.0])
    values = finalize_metrics(sum_metrics(metrics, jnp.array([True, True])))
    assert values == {"loss": 2.5, "error": 1.5}
    with pytest.raises(ValueError, match="'loss' is the model's loss"):
        from_flax(Dense, metrics={"loss": lambda outputs, batch: outputs})


def test_from_flax_works_while_tracing():
    batch = digits()

    def losses(params):
        return [m.loss(params, batch, KEY) for m in (linen(nn.Dense(10)), from_flax(Dense, inputs=flat))]

    params = from_flax(Dense, inputs=flat).init(KEY)
    chex.assert_trees_all_close(jax.jit(losses)(params), losses(params), rtol=1e-5)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (lambda: linen(LinenNorm()), "got a __call__ that takes no mask.*or use GroupNorm or LayerNorm"),
        (lambda: from_flax(NnxNorm), "got a __call__ that takes no mask"),
        (lambda: from_flax(NnxConstant), r"got collections=\{'table': '.*Array.*'\}"),
        (lambda: linen(LinenCache()), r"got collections=\['cache'\]"),
    ],
)
def test_state_that_nobody_would_carry_is_refused_by_name(adapt, message):
    with pytest.raises(ValueError, match=message):
        adapt()
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: (adapt(), x)[1])(1.0)


def test_wrong_modules_are_refused():
    built = Dense(rngs=nnx.Rngs(0))
    for module in (built, nn.Dense, "mlp"):
        with pytest.raises(TypeError, match=r"not a built module, so that init\(key\) is a pure function"):
            from_flax(module)
    with pytest.raises(TypeError, match=r"must return an nnx\.Module; got .*dict"):
        from_flax(lambda rngs: {})
    with pytest.raises(ValueError, match="needs a sample_input"):
        from_flax(nn.Dense(3))
