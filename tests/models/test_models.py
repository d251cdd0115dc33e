"""Laws that every model keeps, whichever library or network it comes from."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedjx.models import Ratio, cnn, finalize_metrics, from_flax, linear, mean_loss, mlp, sum_metrics
from fedjx.models.losses import cross_entropy

KEY = jax.random.key(0)
DIGITS = {"input_shape": (8, 8, 1), "scale": 1 / 16}


def digits(size: int = 12, seed: int = 0, shape=(8, 8, 1)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 17, (size, *shape), dtype=np.uint8)
    return {"x": x, "y": rng.integers(0, 10, size), "mask": np.ones(size, bool)}


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(10)(x)


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return nn.Dense(10)(nn.Dropout(0.5)(nn.Dense(32)(x), deterministic=deterministic))


class NnxMLP(nnx.Module):
    def __init__(self, width, *, rngs):
        self.rngs = rngs  # a stream shared with the layers, as in much user code
        self.body = nnx.List([nnx.Linear(64, width, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs)])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.body:
            x = layer(x)
        return self.head(x)


class NnxCallRngs(nnx.Module):
    """Dropout told by the arguments of the call, as in the Flax tutorial."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        return self.dropout(self.dense(x), deterministic=not train, rngs=rngs)


def flat(batch):
    return batch["x"].reshape(batch["x"].shape[0], -1).astype(jnp.float32) / 16


SAMPLE = jax.ShapeDtypeStruct((1, 64), jnp.float32)
linen = functools.partial(from_flax, sample_input=SAMPLE, inputs=flat)
MODELS = {
    "linen": lambda: linen(LinenMLP()),
    "nnx": lambda: from_flax(functools.partial(NnxMLP, 32), inputs=flat),
    "linear": lambda: linear(10, **DIGITS),
    "mlp": lambda: mlp(10, hidden=(32,), dropout=0.5, **DIGITS),
    "cnn": lambda: cnn(10, channels=(4, 8), dropout=0.5, **DIGITS),
    "linen deterministic": lambda: linen(LinenDeterministic()),
    "nnx call": lambda: from_flax(NnxCallRngs, inputs=flat),
}
every_model = pytest.mark.parametrize("name", list(MODELS)[:5])
every_dropout_model = pytest.mark.parametrize("name", [name for name in MODELS if name != "linear"])


@functools.cache
def model_and_params(name: str):
    model = MODELS[name]()
    return model, jax.jit(model.init)(KEY)


@every_model
def test_params_are_plain_dicts_of_float_arrays(name):
    def check(node):
        if type(node) is dict:
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    _, params = model_and_params(name)
    assert type(params) is dict
    check(params)


@every_model
def test_init_is_a_pure_function_of_the_key(name):
    model, params = model_and_params(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, jax.eval_shape(model.init, KEY))
    several = jax.jit(jax.vmap(model.init))(jnp.stack([jax.random.key(1), KEY]))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], several), params, atol=1e-6)
    kernels = [x for x in jax.tree.leaves(several) if x.ndim > 2]
    assert kernels
    assert all(np.abs(x[0] - x[1]).max() > 0.01 for x in kernels)


@every_model
def test_loss_and_metrics_are_per_example_and_survive_jit(name):
    (model, params), batch = model_and_params(name), digits()
    loss, metrics = model.loss(params, batch, KEY), model.metrics(params, batch)
    assert loss.shape == (12,)
    assert metrics.keys() == {"loss", "accuracy"}
    assert metrics["accuracy"].dtype == bool
    outputs = model.apply(params, {"x": batch["x"]})  # labels are not read
    np.testing.assert_array_equal(cross_entropy(outputs, batch), metrics["loss"])
    chex.assert_trees_all_close(loss, jax.jit(model.loss)(params, batch, KEY), rtol=1e-5)
    chex.assert_trees_all_close(metrics, jax.jit(model.metrics)(params, batch), rtol=1e-5)


@every_model
def test_vmap_over_clients_equals_a_loop(name):
    model, params = model_and_params(name)
    batches, keys = [digits(seed=seed) for seed in range(3)], jax.random.split(KEY, 3)
    params = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, -x]), params)

    @jax.jit
    def update(params, batch, key):
        return jax.value_and_grad(lambda p: mean_loss(model.loss(p, batch, key), batch["mask"]))(params)

    vmapped = jax.vmap(update)(params, jax.tree.map(lambda *xs: np.stack(xs), *batches), keys)
    loop = [update(jax.tree.map(lambda x, c=c: x[c], params), batches[c], keys[c]) for c in range(3)]
    chex.assert_trees_all_close(vmapped, jax.tree.map(lambda *xs: jnp.stack(xs), *loop), rtol=1e-4, atol=1e-6)


@every_model
def test_training_in_a_scan_decreases_the_loss(name):
    (model, params), batch, optimizer = model_and_params(name), digits(), optax.sgd(0.1)

    def step(carry, key):
        params, state = carry
        grads = jax.grad(lambda p: mean_loss(model.loss(p, batch, key), batch["mask"]))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(KEY, 60)
    (trained, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys))(params)
    before, after = (jax.jit(model.metrics)(p, batch)["loss"].mean() for p in (params, trained))
    assert after < before - 0.3


@every_model
def test_metrics_do_not_depend_on_the_split_into_batches(name):
    (model, params), batch = model_and_params(name), digits()
    metrics = jax.jit(model.metrics)
    whole = sum_metrics(metrics(params, batch), batch["mask"])
    parts = [jax.tree.map(lambda x, r=rows: x[r], batch) for rows in (slice(0, 5), slice(5, 6), slice(6, 12))]
    padded = {**jax.tree.map(lambda x: np.concatenate([x, x[:1]]), parts[2]), "mask": np.arange(7) < 6}
    sums = [sum_metrics(metrics(params, part), part["mask"]) for part in (*parts[:2], padded)]
    total = jax.tree.map(lambda *xs: sum(xs), *sums)
    assert total["accuracy"] == whole["accuracy"] == Ratio(int(whole["accuracy"].numerator), 12)
    chex.assert_trees_all_close(finalize_metrics(total), finalize_metrics(whole), rtol=1e-6)
    chex.assert_trees_all_close(finalize_metrics(whole)["loss"], metrics(params, batch)["loss"].mean(), rtol=1e-6)


@every_dropout_model
def test_dropout_follows_the_key_and_is_off_in_metrics(name):
    (model, params), batch = model_and_params(name), digits()
    loss = jax.jit(functools.partial(model.loss, params, batch))
    np.testing.assert_array_equal(loss(KEY), loss(KEY))
    assert np.abs(loss(KEY) - loss(jax.random.key(1))).max() > 1e-3
    evaluated = model.metrics(params, batch)["loss"]
    np.testing.assert_array_equal(evaluated, model.metrics(params, batch)["loss"])
    assert np.abs(evaluated - loss(KEY)).max() > 1e-3
    # Clients with the same params and data but other keys drop other units.
    by_client = jax.vmap(model.loss, (None, None, 0))(params, batch, jax.random.split(KEY, 4))
    assert len(np.unique(by_client[:, 0])) == 4
