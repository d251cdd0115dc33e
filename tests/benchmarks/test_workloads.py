"""The benchmarks' workloads: networks of the published sizes, and the number of operations that they take."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from benchmarks.flops import Product, products, total_flops, training_products
from benchmarks.networks import NUM_WORDS
from benchmarks.workloads import WORKLOADS, Workload
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort
from fedjx.models import Ratio, mean_loss

EMNIST_CNN = 3 * 2 * (26**2 * 9 * 32 + 24**2 * 9 * 32 * 64 + 9216 * 128 + 128 * 62) - 2 * 26**2 * 9 * 32
LSTM = 3 * 20 * 2 * (96 * 2680 + 670 * 2680 + 670 * 96 + 96 * NUM_WORDS)
TRANSFORMER_LAYER = 4 * 96 * 96 + 2 * 20 * 96 + 2 * 96 * 1536


def taps(side: int, kernel: int, stride: int = 1) -> int:
    """Counts the products of a convolution with SAME padding, those with padding left out: ``[side, side]``, square."""
    outputs = -(-side // stride)
    before = max((outputs - 1) * stride + kernel - side, 0) // 2
    starts = stride * np.arange(outputs) - before
    return int((np.minimum(starts + kernel, side) - np.maximum(starts, 0)).sum()) ** 2


def resnet(stem: int, side: int, num_classes: int) -> int:
    """Counts the operations of training ResNet-18 on an example whose first block sees ``[side, side]``."""
    total = first = taps(32, stem, 1 if stem == 3 else 2) * 3 * 64
    for inputs, width, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        total += taps(side, 3, stride) * inputs * width
        side //= stride
        total += taps(side, 3) * 3 * width**2 + (side**2 * inputs * width if stride == 2 else 0)
    return 3 * 2 * (total + 512 * num_classes) - 2 * first


def dense(*widths: int) -> int:
    """Counts the operations of training dense layers on an example."""
    products = [a * b for a, b in itertools.pairwise(widths)]
    return 3 * 2 * sum(products) - 2 * products[0]


def separable(side: int, *blocks: tuple[int, int, int]) -> int:
    """Counts the products of depthwise separable convolutions."""
    total = 0
    for inputs, outputs, stride in blocks:
        total += taps(side, 3, stride) * inputs
        side //= stride
        total += side**2 * inputs * outputs
    return total


MCMAHAN = 3 * 2 * (taps(28, 5) * 32 + taps(14, 5) * 32 * 64 + 3136 * 512 + 5120) - 2 * taps(28, 5) * 32
MOBILE_BLOCKS = separable(16, (32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
CHARACTER_LSTM = 3 * 80 * 2 * (8 * 1024 + 256 * 1024 + 2 * 256 * 1024 + 256 * 90)
CHARACTER_LAYER = 4 * 128 * 128 + 2 * 64 * 128 + 2 * 128 * 512
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
    "mcmahan_cnn": (1_663_370, MCMAHAN),
    "resnet18": (11_173_962, resnet(3, 32, 10)),
    "resnet18_cifar100": (11_227_812, resnet(7, 8, 100)),
    "mobilenet": (136_778, 3 * 2 * (taps(32, 3, 2) * 3 * 32 + MOBILE_BLOCKS + 2560) - 2 * taps(32, 3, 2) * 3 * 32),
    "char_lstm": (820_522, CHARACTER_LSTM),
    "char_transformer": (428_122, 3 * 64 * 2 * (2 * CHARACTER_LAYER + 128 * 90)),
    "autoencoder": (2_837_314, dense(784, 1000, 500, 250, 30, 250, 500, 1000, 784)),
    "wide_mlp": (9_707_850, dense(1000, 2400, 2400, 640, 10)),
}


@functools.cache
def workload(name: str) -> Workload:
    return WORKLOADS[name]()


CLIENTS = {  # by name, the fewest and the most examples of a client
    "cifar10_cnn": (50, 50),
    "stackoverflow_lstm": (8, 128),
    "transformer": (8, 128),
    "mcmahan_cnn": (60, 60),
    "resnet18": (40, 40),
    "resnet18_cifar100": (100, 100),
    "mobilenet": (60, 60),
    "char_lstm": (40, 40),
    "char_transformer": (32, 32),
    "autoencoder": (100, 100),
    "wide_mlp": (40, 40),
}


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
    smallest, largest = CLIENTS.get(name, (20, 418))
    assert smallest <= data.sizes.min() <= data.sizes.max() <= largest
    assert (np.ptp(data.sizes) > 0) == (smallest < largest)


NOT_HERE = ("cuda", "tpu")
HOW = {"in_graph": {}, "streamed": {"differentiable": False, "lanes": 1}}  # a stream trains client after client
PROGRAMS = [
    *((name, "in_graph") for name in SIZES if name != "femnist_flute"),  # which is emnist_cnn with more clients
    *((name, "streamed") for name in ("wide_mlp", "mobilenet", "char_lstm")),
]


@pytest.mark.parametrize(("name", "how"), PROGRAMS)
def test_a_round_lowers_for_accelerators_that_are_not_here(name, how):
    tiny = workload(name)._replace(sizes=lambda rng, clients: np.full(clients, 2))
    algorithm = fed_avg(tiny.model, client_optimizer=tiny.client_optimizer)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    cohort = Cohort(tiny.data(2, seed=0), [0, 1], batch_size=2).whole()
    exported = jax.export.export(jax.jit(algorithm.next.in_graph(**HOW[how])), platforms=NOT_HERE)(state, cohort)
    assert exported.platforms == NOT_HERE
    text = exported.mlir_module()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.custom_call" not in text  # nothing that only one machine has
    shapes = [x.shape for x in jax.tree.leaves(state)]
    assert [x.shape for x in exported.out_avals[: len(shapes)]] == shapes


def test_one_program_for_several_platforms_tells_what_only_one_of_them_has():
    exported = jax.export.export(jax.jit(jnp.linalg.cholesky), platforms=NOT_HERE)(np.eye(3, dtype=np.float32))
    assert "stablehlo.custom_call" in exported.mlir_module()  # CUDA's, where a TPU has an operation


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
