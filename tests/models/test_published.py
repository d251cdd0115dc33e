"""The published networks: the published numbers of parameters, how they begin, and the metrics of words and tags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.data.published import token_ids
from fedjx.models import finalize_metrics, linear, matrix_factorization, published, sum_metrics
from fedjx.models.mobilenet import MOBILENET_V2

KEY = jax.random.key(0)
IMAGES = {"input_shape": (28, 28, 1)}
PUBLISHED = [
    (published.fedavg_2nn, 10, 199_210),
    (published.fedavg_2nn, 62, 209_662),
    (published.fedavg_cnn, 10, 1_663_370),
    (published.fedavg_cnn, 62, 1_690_046),
    (published.emnist_cnn, 10, 1_199_882),
    (published.emnist_cnn, 62, 1_206_590),
    (published.cifar_cnn, 10, 1_626_442),
    (published.resnet18, 100, 11_227_812),
    (published.resnet18, 10, 11_181_642),
    (published.mobilenet_v2, 2028, 4_821_740),
    (published.shakespeare_lstm, 90, 820_522),
    (published.stack_overflow_lstm, 10_004, 4_050_748),
    (published.stack_overflow_transformer, 10_000, 1_962_528),
    (published.stack_overflow_transformer, 10_004, 1_962_528 + 4 * 96),
    (published.stack_overflow_tagger, 10_000, 5_000_500),
    (lambda _: published.emnist_autoencoder(), 784, 2_837_314),
    (lambda number: linear(number, **IMAGES), 10, 7_850),
    (lambda number: linear(number, **IMAGES), 62, 48_670),
    (lambda number: matrix_factorization(number, num_factors=50), 3_706, 185_300 + 50),
]


def num_parameters(model) -> int:
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, KEY)))


@pytest.mark.parametrize(("network", "number", "expected"), PUBLISHED)
def test_the_number_of_parameters_is_the_published_one(network, number, expected):
    assert num_parameters(network(number)) == expected


def test_mobilenet_has_the_parameters_of_its_table():
    total, before = 3 * 9 * 32 + 2 * 32, 32
    for expansion, channels, number, _ in MOBILENET_V2:
        for _ in range(number):
            inside = expansion * before
            total += before * inside + 2 * inside if expansion > 1 else 0
            total += 9 * inside + 2 * inside + inside * channels + 2 * channels
            before = channels
    total += before * 1280 + 2 * 1280
    # ImageNet, as with batches normalised; Landmarks, all and 23k; iNaturalist.
    published_numbers = {1000: 3_504_872, 2028: 4_821_740, 203: 2_483_915, 1203: 3_764_915}
    assert {n: total + (1280 + 1) * n for n in published_numbers} == published_numbers


def test_what_is_said_by_default_is_what_is_published():
    numbers = {f: n for f, _, n in PUBLISHED}
    networks = (published.stack_overflow_lstm, published.shakespeare_lstm, published.stack_overflow_tagger)
    assert [num_parameters(f()) for f in networks] == [numbers[f] for f in networks]


def test_words_are_counted_without_special_tokens():
    ids = token_ids(6)
    targets = np.array([[1, ids.oov, 2, ids.eos, 0, 0], [3, 3, ids.oov, 4, 5, 6]])
    said = np.array([[1, ids.oov, 1, ids.eos, 0, 0], [3, 1, 1, 1, 5, 1]])
    batch = {"y": jnp.asarray(targets)}
    logits = 9 * jax.nn.one_hot(said, 10)
    sums = {name: metric(logits, batch) for name, metric in published.word_metrics(10).items()}
    found = finalize_metrics(sum_metrics(sums, jnp.array([True, True])))
    assert found["accuracy"] == pytest.approx(5 / 10)
    assert found["accuracy_in_vocabulary"] == pytest.approx(4 / 8)
    assert found["accuracy_without_special_tokens"] == pytest.approx(3 / 7)
    normaliser = np.log(np.exp(9) + 9)
    assert found["perplexity"] == pytest.approx(np.exp(normaliser - 9 / 2), rel=1e-5)
    alone = finalize_metrics(sum_metrics(sums, jnp.array([True, False])))
    assert alone["accuracy_without_special_tokens"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("convention", ["tff", "fedjax", "pfl"])
def test_special_tokens_are_those_of_the_convention(convention):
    ids = token_ids(10_000, convention)
    given = {} if convention != "fedjax" else {"out_of_vocabulary": ids.oov, "end_of_sentence": ids.eos}
    metric = published.word_metrics(10_004, **given)["accuracy_without_special_tokens"]
    y = jnp.array([[0, ids.oov, ids.eos, ids.first, ids.first + 9_999]])
    assert metric(jnp.zeros((1, 5, 2)), {"y": y}).denominator.tolist() == [2]


def test_special_tokens_must_be_tokens():
    with pytest.raises(ValueError, match=r"end_of_sentence must be an integer in \[1, 9\]; got end_of_sentence=10"):
        published.stack_overflow_lstm(10, end_of_sentence=10)
    with pytest.raises(ValueError, match=r"out_of_vocabulary must be an integer in \[1, 9\]; got out_of_vocabulary=0"):
        published.stack_overflow_transformer(10, out_of_vocabulary=0)


def test_tags_are_found_among_the_five_largest():
    rng = np.random.default_rng(0)
    x, y = rng.random((7, 20), np.float32), rng.random((7, 9)) < 0.3
    y[3] = False  # a post without known tags
    model = published.stack_overflow_tagger(20, 9)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), jax.eval_shape(model.init, KEY))
    batch, mask = {"x": x, "y": y.astype(np.float32)}, np.arange(7) != 5
    found = finalize_metrics(sum_metrics(model.metrics(params, batch), mask))
    logits = x @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"])
    hits = said = 0
    for scores, tags in zip(logits[mask], y[mask], strict=True):
        hits += tags[np.argsort(-scores)[:5]].sum()
        said += (scores > 0).sum()
    assert found["recall_at_5"] == pytest.approx(hits / y[mask].sum())
    assert found["precision"] == pytest.approx((y & (logits > 0))[mask].sum() / said)
    losses = np.log1p(np.exp(-np.where(y, logits, -logits))).mean(axis=1)
    np.testing.assert_allclose(model.loss(params, batch, KEY), losses, rtol=1e-4)


def test_images_that_are_too_small_are_refused():
    for shape in ((28, 28), (5, 28, 1)):
        with pytest.raises(ValueError, match=r"images must be .* with sides of at least 6; got input_shape="):
            published.emnist_cnn(input_shape=shape)
