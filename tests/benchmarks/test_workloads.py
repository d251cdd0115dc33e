"""The benchmarks' workloads: networks of the published sizes, and the number of operations that they take."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from benchmarks.flops import Product, products, total_flops, training_products
from benchmarks.workloads import NUM_WORDS, WORKLOADS, Workload
from fedjx.models import Ratio, mean_loss

EMNIST_CNN = 3 * 2 * (26**2 * 9 * 32 + 24**2 * 9 * 32 * 64 + 9216 * 128 + 128 * 62) - 2 * 26**2 * 9 * 32
LSTM = 3 * 20 * 2 * (96 * 2680 + 670 * 2680 + 670 * 96 + 96 * NUM_WORDS)
TRANSFORMER_LAYER = 4 * 96 * 96 + 2 * 20 * 96 + 2 * 96 * 1536
SIZES = {  # by name: parameters, and operations of training on one example
    "emnist_cnn": (1_206_590, EMNIST_CNN),
    "emnist_cnn_flax": (1_206_590, EMNIST_CNN),
    "emnist_dense": (209_662, 2 * (2 * 784 * 200 + 3 * 200 * 200 + 3 * 200 * 62)),
    "logistic": (48_670, 2 * 2 * 784 * 62),
    "cifar10_cnn": (
        1_626_442,
        3 * 2 * (30**2 * 27 * 32 + 28**2 * 9 * 32 * 64 + 12_544 * 128 + 1280) - 2 * 30**2 * 27 * 32,
    ),
    "femnist_flute": (1_206_590, EMNIST_CNN),
    "stackoverflow_lstm": (4_050_748, LSTM),
    "transformer": (1_962_912, 3 * 20 * 2 * (3 * TRANSFORMER_LAYER + 96 * NUM_WORDS)),
}


@functools.cache
def workload(name: str) -> Workload:
    return WORKLOADS[name]()


def test_every_workload_has_its_size_here():
    assert set(SIZES) == set(WORKLOADS)
    assert [EMNIST_CNN, LSTM] == [71_605_248, 369_310_080]


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_published_size_and_take_known_operations(name):
    model, batch_size = workload(name).model, workload(name).batch_size
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    examples = workload(name).examples(np.random.default_rng(0), batch_size)
    assert workload(name).name == name
    counted = total_flops(training_products(model, examples, batch_size))
    assert (sum(x.size for x in shapes), counted) == (SIZES[name][0], batch_size * SIZES[name][1])


@pytest.mark.parametrize("name", SIZES)
def test_data_has_the_shapes_of_the_real_one_and_depends_on_the_seed_alone(name):
    data, again, other = (workload(name).data(30, seed) for seed in (0, 0, 1))
    for feature, column in data.examples.items():
        np.testing.assert_array_equal(column, again.examples[feature])
        assert column.dtype.itemsize <= 2 or feature == "y"
    assert any(
        column.shape != other.examples[feature].shape or (column != other.examples[feature]).any()
        for feature, column in data.examples.items()
    )
    largest = {"cifar10_cnn": 50, "stackoverflow_lstm": 128, "transformer": 128}.get(name, 418)
    smallest = {"cifar10_cnn": 50, "stackoverflow_lstm": 8, "transformer": 8}.get(name, 20)
    assert smallest <= data.sizes.min() <= data.sizes.max() <= largest
    assert (np.ptp(data.sizes) > 0) == (name != "cifar10_cnn")


def test_the_flax_network_computes_what_ours_does():
    ours, plain = workload("emnist_cnn").model, workload("emnist_cnn_flax").model
    params = ours.init(jax.random.key(0))
    batch = workload("emnist_cnn").examples(np.random.default_rng(0), 4)
    (loss, gradient), (expected, reference) = (trained_once(model, params, batch) for model in (ours, plain))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def trained_once(model, params, batch):
    """The loss of one batch, with dropout, and its gradient."""

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return mean_loss(model.loss(params, batch, jax.random.key(1)), jnp.ones(len(batch["y"]), bool))

    return loss(params)


def test_the_loss_of_sentences_is_a_mean_over_real_words():
    model = workload("transformer").model
    model = model._replace(metrics=jax.jit(model.metrics))
    examples = workload("transformer").examples(np.random.default_rng(0), 6)
    params = model.init(jax.random.key(0))
    real = examples["tokens"][:, 1:] > 0
    assert 4 * 6 <= real.sum() < real.size
    loss = model.metrics(params, examples)["loss"]
    assert isinstance(loss, Ratio)
    np.testing.assert_array_equal(loss.denominator, real.sum(axis=1))
    uniform = jax.tree.map(jnp.zeros_like, params)  # logits of 0: each word costs log(vocabulary)
    mean = mean_loss(model.metrics(uniform, examples)["loss"], np.ones(6, bool))
    np.testing.assert_allclose(mean, np.log(NUM_WORDS), rtol=1e-6)
    longer = {"tokens": np.where(examples["tokens"] > 0, examples["tokens"], 7).astype(np.uint16)}
    later = model.metrics(params, longer)["loss"]  # words after a sentence's end do not change what came before
    full = real.all(axis=1)
    np.testing.assert_allclose(later.numerator[full], loss.numerator[full], rtol=1e-5)
    assert (np.asarray(later.denominator) == 20).all()


# --- operations ---------------------------------------------------------------------------------


CONVOLUTIONS = {
    "valid": {"padding": "VALID"},
    "same": {"padding": "SAME"},
    "strided": {"padding": ((2, 0), (1, 3)), "window_strides": (2, 3)},
    "dilated": {"padding": ((1, 4), (-1, 2)), "lhs_dilation": (2, 3), "rhs_dilation": (2, 1)},
    "groups": {"padding": "SAME", "feature_group_count": 2},
    "batch groups": {"padding": "SAME", "batch_group_count": 2},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_counts_the_products_with_its_input(options):
    channels = 4 // options.get("feature_group_count", 1)
    x, kernel = jnp.ones((2, 7, 8, 4)), jnp.ones((3, 2, channels, 6))
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(
        lax.conv_general_dilated, dimension_numbers=numbers, **{"window_strides": (1, 1), **options}
    )
    # Of ones, each output is the number of products it is the sum of.
    assert total_flops(products(convolve, x, kernel)) == 2 * int(convolve(x, kernel).sum())


def test_products_are_counted_where_they_run():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))
    assert products(jnp.dot, a, b) == {Product(2, 3, 5, 60): 1}
    assert products(lambda a: jnp.einsum("bij,bjk->bik", a, a), jnp.ones((4, 6, 6))) == {Product(6, 6, 6, 432): 4}

    def looped(n):
        return lambda a, b: lax.scan(lambda x, _: (x + a @ b, None), jnp.zeros((2, 5)), None, length=n)

    assert products(jax.jit(looped(7)), a, b) == {Product(2, 3, 5, 60): 7}
    assert products(lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b + a @ b), a, b) == {
        Product(2, 3, 5, 60): 2
    }
    with pytest.raises(ValueError, match="got one inside a while loop"):
        products(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), jnp.ones((2, 2)))


def test_optimizers_are_those_of_the_settings():
    grads = {"w": jnp.ones(())}
    rates = {
        name: -float(workload(name).client_optimizer.update(grads, optax.sgd(1.0).init(grads))[0]["w"])
        for name in ("emnist_cnn", "cifar10_cnn", "femnist_flute")
    }
    assert rates == pytest.approx({"emnist_cnn": 0.05, "cifar10_cnn": 0.1, "femnist_flute": 0.1})
