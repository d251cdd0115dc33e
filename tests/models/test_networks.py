"""The small networks: their sizes, and their values against references."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.models import Model, batch_loss, cnn, linear, lstm, mlp

KEY = jax.random.key(0)
DIGITS = {"input_shape": (8, 8, 1), "scale": 1 / 16}


def digits(size: int = 12, seed: int = 0, shape=(8, 8, 1)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 17, (size, *shape), dtype=np.uint8)
    return {"x": x, "y": rng.integers(0, 10, size), "mask": np.ones(size, bool)}


def num_parameters(model: Model) -> int:
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, KEY)))


def test_the_linear_model_is_the_softmax_regression_of_numpy():
    model, batch = linear(10, **DIGITS), digits()
    params = model.init(KEY)
    kernel, bias = (np.asarray(params["head"][name], np.float64) for name in ("kernel", "bias"))
    logits = batch["x"].reshape(12, 64) / 16 @ kernel + bias
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), batch["y"]]
    metrics = model.metrics(params, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(model.loss(params, batch, KEY), expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(-1) == batch["y"])


def test_parameter_counts():
    assert num_parameters(linear(10, **DIGITS)) == 64 * 10 + 10
    assert num_parameters(mlp(10, hidden=(20, 30), **DIGITS)) == 64 * 20 + 20 + 20 * 30 + 30 + 30 * 10 + 10
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32)
    assert num_parameters(cnn(10, **DIGITS)) == convolutions + 2 * 2 * 32 * 10 + 10
    assert num_parameters(cnn(62, input_shape=(28, 28, 1))) == convolutions + 7 * 7 * 32 * 62 + 62
    of_mcmahan = {"input_shape": (28, 28, 1), "channels": (32, 64), "kernel_size": 5, "hidden": (512,)}
    assert num_parameters(cnn(10, **of_mcmahan)) == 1_663_370
    assert num_parameters(cnn(62, **of_mcmahan)) == 1_690_046
    assert num_parameters(mlp(10, input_shape=(28, 28, 1), hidden=(200, 200))) == 199_210
    assert num_parameters(lstm(90)) == 820_522


def test_the_recurrent_model_reads_forwards_learns_and_leaves_padding_out():
    model = lstm(5, embedding=3, hidden=(8,), ignored=0)
    x = np.tile(np.array([1, 2, 3, 4], np.uint8), (6, 3))
    y = np.roll(x, -1, axis=1)
    y[:, 9:] = 0
    batch, params = {"x": x, "y": y, "mask": np.arange(6) < 5}, jax.jit(model.init)(KEY)
    other = x.copy()
    other[:, 6:] = 1
    before, after = (model.apply(params, {"x": tokens}) for tokens in (x, other))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])  # what follows has no influence
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-3
    optimizer = optax.adam(0.05)

    def step(carry, _):
        params, state = carry
        gradient, (sums, _) = jax.grad(batch_loss(model), has_aux=True)(params, batch, KEY)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), sums["loss"]

    (trained, _), losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=60))(params)
    assert losses.denominator[0] == 5 * 9
    assert losses.numerator[-1] < 0.1 * losses.numerator[0]
    accuracy = model.metrics(trained, batch)["accuracy"]
    assert accuracy.numerator.tolist() == accuracy.denominator.tolist() == [9] * 6
    with pytest.raises(TypeError, match=r"'x' as integers \[\?\] from 0 to 4; got float32\[12\]"):
        model.apply(params, {"x": x.astype(np.float32)})


def test_cnn_pools_like_the_reference_and_takes_odd_images():
    model, batch = cnn(10, input_shape=(7, 9, 1), channels=(3,)), digits(shape=(7, 9, 1))
    params = jax.jit(model.init)(KEY)
    conv, head = params["layers"][0], params["head"]
    x = jnp.asarray(batch["x"], jnp.float32)
    x = jax.lax.conv_general_dilated(x, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = nn.max_pool(nn.relu(x + conv["bias"][None, None, None]), (2, 2), (2, 2))
    logits = x.reshape(12, -1) @ head["kernel"] + head["bias"][None]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    np.testing.assert_allclose(model.metrics(params, batch)["loss"], expected, rtol=1e-4)
    for shape in ((8, 8), (3, 8, 1)):
        with pytest.raises(ValueError, match=r"images must be \(height, width, channels\)"):
            cnn(10, input_shape=shape)


def test_scale_is_applied_after_the_cast():
    batch = digits()
    model = linear(10, **DIGITS)
    params = model.init(KEY)
    scaled = {**batch, "x": batch["x"].astype(np.float32) / 16}
    expected = linear(10, input_shape=(8, 8, 1)).metrics(params, scaled)
    chex.assert_trees_all_close(model.metrics(params, batch), expected, rtol=1e-6)


@pytest.mark.parametrize("network", [linear, mlp, cnn])
def test_narrow_arithmetic_keeps_wide_parameters(network):
    wide, narrow = (network(10, input_shape=(8, 8, 1), compute_dtype=d) for d in (None, jnp.bfloat16))
    params = wide.init(jax.random.key(0))
    batch = {"x": np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32), "y": np.arange(5)}

    def gradient(model):
        return jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(1)).mean())(params)

    (loss, grads), (narrow_loss, narrow_grads) = gradient(wide), gradient(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves((narrow_loss, narrow_grads))} == {np.dtype(np.float32)}
    products = [eqn for eqn in jax.make_jaxpr(gradient, static_argnums=0)(narrow).eqns if "dot" in str(eqn.primitive)]
    assert products
    assert all(v.aval.dtype == jnp.bfloat16 for eqn in products for v in eqn.invars)
    np.testing.assert_allclose(narrow_loss, loss, rtol=0.02)
    for exact, rounded in zip(jax.tree.leaves(grads), jax.tree.leaves(narrow_grads), strict=True):
        assert 0 < np.linalg.norm(exact - rounded) < 0.1 * np.linalg.norm(exact)


def test_arithmetic_in_integers_is_refused():
    with pytest.raises(TypeError, match="a module computes in a floating dtype; got compute_dtype="):
        linear(2, input_shape=(3,), compute_dtype=jnp.int8)
