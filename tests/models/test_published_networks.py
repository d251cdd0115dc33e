"""What the networks compute, against slow NumPy; how they begin; and a round of small ones of each kind."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData
from fedjx.models import autoencoder, batch_loss, lstm, mobilenet, published, resnet, transformer
from tests.models import numpy_networks as reference

KEY = jax.random.key(0)
RESNET = functools.partial(resnet, 3, input_shape=(13, 12, 2), channels=(4, 8), num_blocks=(1, 1), num_groups=2)
BLOCKS = ((1, 6, 1, 1), (3, 8, 2, 2))
MOBILENET = functools.partial(mobilenet, 3, input_shape=(9, 12, 2), blocks=BLOCKS, first=4, last=8, num_groups=2)
LSTM = functools.partial(lstm, 7, embedding=3, hidden=(5,), projection=4, ignored=0)
TRANSFORMER = functools.partial(transformer, 7, width=8, num_heads=2, feed_forward=12, num_layers=2, ignored=0)
SMALL = {
    "emnist_cnn": functools.partial(published.emnist_cnn, 3, input_shape=(6, 6, 1)),
    "autoencoder": functools.partial(autoencoder, 6, hidden=(4, 2)),
    "resnet": RESNET,
    "mobilenet": functools.partial(MOBILENET, blocks=((2, 4, 2, 2),)),
    "lstm": LSTM,
    "transformer": functools.partial(TRANSFORMER, dropout=0.0),
    "tagger": functools.partial(published.stack_overflow_tagger, 6, 8),
}


def types_of(model):
    """The types of an example, as the model says what it takes; sequences have a length of four."""
    spec = model.input_spec({})
    return {
        name: (tuple(n or 4 for n in feature.shape), feature.dtype is np.integer, feature.high)
        for name, feature in spec.items()
    }


def batch_of(model, size, seed=0):
    """Random examples of the kind that a model takes; token 0, padding, only at the end."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, (shape, integers, high) in types_of(model).items():
        if integers:
            batch[name] = rng.integers(1 if shape else 0, high + 1, (size, *shape)).astype(np.int32)
        else:
            batch[name] = rng.random((size, *shape)).astype(np.float32)
    if batch["x"].dtype == np.int32:
        batch["y"] = np.where(np.arange(4) < rng.integers(1, 5, (size, 1)), batch["y"], 0)
    return batch


def random_params(model, seed=1):
    """Parameters of which none is a zero or a one, as biases and scales begin."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / 2 + (x.ndim == 1), jnp.float32),
        jax.eval_shape(model.init, KEY),
    )


@pytest.mark.parametrize("stage_stride", [1, 2])
def test_resnet_is_that_of_numpy(stage_stride):
    model = RESNET(stage_stride=stage_stride)
    params, batch = random_params(model), batch_of(model, 2)
    expected = reference.resnet(params, batch["x"].astype(np.float64), 2, stage_stride)
    np.testing.assert_allclose(jax.jit(model.apply)(params, batch), expected, rtol=1e-3, atol=1e-4)


def test_mobilenet_is_that_of_numpy():
    model = MOBILENET()
    params, batch = jax.tree.map(lambda x: 3 * x, random_params(model)), batch_of(model, 2)  # beyond 6 somewhere
    expected = reference.mobilenet(params, batch["x"].astype(np.float64), 2)
    np.testing.assert_allclose(jax.jit(model.apply)(params, batch), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_networks_of_tokens_are_those_of_numpy(name):
    model = SMALL[name]()
    params, batch = random_params(model), batch_of(model, 3)
    logits = getattr(reference, name)(params, batch["x"])
    np.testing.assert_allclose(jax.jit(model.apply)(params, batch), logits, rtol=1e-4, atol=1e-4)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(logs, batch["y"][..., None], axis=-1)[..., 0] * (batch["y"] > 0)
    found = model.metrics(params, batch)["loss"]
    np.testing.assert_allclose(found.numerator, losses.sum(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(found.denominator, (batch["y"] > 0).sum(axis=1))


def test_the_autoencoder_is_that_of_numpy():
    model = SMALL["autoencoder"]()
    params, batch = random_params(model), batch_of(model, 3)
    first, narrowest, second, last = (params["layers"][i] for i in (0, 2, 3, 5))
    x = reference.dense(reference.sigmoid(reference.dense(batch["x"].astype(np.float64), first)), narrowest)
    x = reference.sigmoid(reference.dense(reference.sigmoid(reference.dense(x, second)), last))
    np.testing.assert_allclose(model.apply(params, batch), x, rtol=1e-5)
    np.testing.assert_allclose(model.loss(params, batch, KEY), ((x - batch["y"]) ** 2).mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_round_of_two_clients_is_a_step_of_each(name):
    model = SMALL[name]()
    batches = [batch_of(model, size, seed=size) for size in (2, 3)]
    padded = {key: np.concatenate([x, np.full_like(x[:1], 1)]) for key, x in batches[0].items()}
    params = random_params(model)  # which no program need be compiled for
    algorithm = fed_avg(model._replace(init=lambda key: params), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(KEY)
    mesh = jax.make_mesh((1,), ("clients",), devices=jax.devices()[:1])
    clients = Cohort(FederatedData.from_clients(batches), range(2), batch_size=3).whole()
    after, _ = algorithm.next.in_graph(mesh=mesh, lanes=2)(state, clients)
    moved = jax.tree.map(jnp.subtract, after.params, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(moved))
    if name == "emnist_cnn":  # dropout: which units is not told
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(moved))
        return
    gradient = jax.jit(jax.grad(batch_loss(model), has_aux=True))
    masks = np.array([True, True, False]), np.ones(3, bool)
    steps = [gradient(params, {**b, "mask": m}, KEY)[0] for b, m in zip([padded, batches[1]], masks, strict=True)]
    expected = jax.tree.map(lambda a, b: -0.1 * (2 * a + 3 * b) / 5, *steps)
    chex.assert_trees_all_close(moved, expected, rtol=1e-3, atol=2e-6)


def test_recurrent_networks_begin_as_in_keras():
    params = jax.jit(lstm(40, embedding=6, hidden=(16,)).init)(KEY)
    embed, recurrent = params["layers"][0], params["layers"][1]["rnn"]["cell"]
    assert_even(embed["embedding"], 0.05)
    assert_even(recurrent["dense_i"]["kernel"], np.sqrt(6 / (6 + 4 * 16)))
    assert_even(params["head"]["kernel"], np.sqrt(6 / (16 + 40)))
    of_state = np.asarray(recurrent["dense_h"]["kernel"])
    np.testing.assert_allclose(of_state @ of_state.T, np.eye(16), atol=1e-5)
    np.testing.assert_array_equal(recurrent["dense_h"]["bias"], np.repeat([0, 1, 0, 0], 16))


def test_networks_of_images_begin_as_in_keras():
    networks = published.fedavg_2nn(9, input_shape=(4, 4, 1)), published.fedavg_cnn(9, input_shape=(4, 4, 1))
    models = *networks, SMALL["emnist_cnn"](), published.stack_overflow_tagger(9, 40)
    dense, cnn, dropout, tagger = jax.jit(lambda key: [model.init(key) for model in models])(KEY)
    assert_even(dense["layers"][1]["kernel"], np.sqrt(6 / (16 + 200)))
    assert_even(dense["head"]["kernel"], np.sqrt(6 / (200 + 9)))
    assert_even(cnn["layers"][3]["kernel"], np.sqrt(6 / (25 * 32 + 25 * 64)))
    assert_even(cnn["layers"][7]["kernel"], np.sqrt(6 / (64 + 512)))
    assert_even(dropout["layers"][2]["kernel"], np.sqrt(6 / (9 * 32 + 9 * 64)))
    assert_even(dropout["layers"][7]["kernel"], np.sqrt(6 / (64 + 128)))
    assert_even(tagger["head"]["kernel"], np.sqrt(6 / (9 + 40)))


def test_transformers_begin_as_in_pytorch():
    params = jax.jit(transformer(40, width=16, num_heads=2, feed_forward=25, num_layers=1).init)(KEY)
    block = params["blocks"][0]
    assert_even(params["embed"]["embedding"], 0.05)
    for name in ("query", "key", "value"):
        assert_even(block["attention"][name]["kernel"], np.sqrt(6 / (16 + 3 * 16)))
    assert_even(block["attention"]["out"]["kernel"], 1 / 4)
    assert not np.any([block["attention"][name]["bias"] for name in ("query", "key", "value")])
    for name, root in (("wide", 4), ("narrow", 5)):
        assert_even(block[name]["kernel"], 1 / root)
        assert np.abs(block[name]["bias"]).max() <= 1 / root


def test_convolutions_begin_he_normal_or_glorot_uniform():
    params = jax.jit(resnet(60, input_shape=(8, 8, 3), channels=(16,), num_blocks=(1,), num_groups=4).init)(KEY)
    kernels = params["layers"][0]["kernel"], params["layers"][4]["branch"]["layers"][3]["kernel"]
    for kernel, inputs in zip(kernels, (49 * 3, 9 * 16), strict=True):
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / inputs), rel=0.08)
        assert np.abs(kernel).max() > 1.8 * np.sqrt(2 / inputs)  # no uniform one
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    layers = jax.jit(MOBILENET(first=8).init)(KEY)["layers"]
    assert_even(layers[0]["kernel"], np.sqrt(6 / (9 * 2 + 9 * 8)))
    assert_even(layers[4]["layers"][3]["kernel"], np.sqrt(6 / (9 + 9 * 18)))


def assert_even(values, bound):
    """Holds values to be spread evenly over an interval; a normal distribution of as wide a range would be narrower."""
    values = np.abs(values)
    assert 0.9 * bound < values.max() <= bound * (1 + 1e-6)
    assert values.mean() == pytest.approx(bound / 2, rel=0.2)


@pytest.mark.parametrize("network", [SMALL["emnist_cnn"], functools.partial(TRANSFORMER, num_layers=1, dropout=0.5)])
def test_dropout_is_drawn_from_the_key_and_off_in_metrics(network):
    model = network()
    params, batch = random_params(model), batch_of(model, 4)

    @jax.jit
    def losses(key):
        values = model.loss(params, batch, key), model.metrics(params, batch)["loss"]
        return [getattr(value, "numerator", value) for value in values]

    (one, off), (again, still_off), (other, _) = (losses(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(off, still_off)
    assert np.abs(one - other).min() > 1e-4
    assert np.abs(one - off).min() > 1e-4


@pytest.mark.parametrize("network", [RESNET, MOBILENET, LSTM, TRANSFORMER, SMALL["autoencoder"]])
def test_narrow_arithmetic_reaches_every_product(network):
    model = network(compute_dtype=jnp.bfloat16)
    traced = jax.make_jaxpr(model.metrics)(random_params(model), batch_of(model, 2))
    products = [eqn for eqn in equations(traced.jaxpr) if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
    assert products
    assert {v.aval.dtype for eqn in products for v in eqn.invars} == {np.dtype(jnp.bfloat16)}
    assert {v.aval.dtype for v in traced.jaxpr.outvars} <= {np.dtype(kind) for kind in ("float32", "int32", "bool")}


def equations(jaxpr):
    """Yields the operations of a traced function, those inside of loops and calls too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inside in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inside, "eqns"):
                yield from equations(getattr(inside, "jaxpr", inside))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RESNET(num_groups=3), r"channels that num_groups divides; got channels=\(4, 8\)"),
        (lambda: RESNET(num_blocks=(1,)), r"each stage needs a number of blocks .* num_blocks=\(1,\)"),
        (lambda: RESNET(stage_stride=0), "stage_stride must be an integer of at least 1; got stage_stride=0"),
        (lambda: MOBILENET(num_groups=4), r"num_groups must divide all channels; got num_groups=4"),
        (
            lambda: TRANSFORMER(num_heads=3),
            "width must be even and a multiple of num_heads; got width=8 and num_heads=3",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
