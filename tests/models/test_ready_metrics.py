"""Ready metrics beside scikit-learn, and summed over clients beside all examples taken together."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as reference
from flax import nnx

from fedjx.algorithms import distribution, federated_evaluation
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import Sums, finalize_metrics, from_flax, metrics, sum_metrics
from fedjx.models.losses import cross_entropy, softmax_cross_entropy

RANDOM = np.random.default_rng(0)
NUM_CLASSES, SIZES = 4, (3, 0, 11, 1, 40, 9)
LOGITS = (2 * RANDOM.normal(size=(sum(SIZES), NUM_CLASSES))).astype(np.float32)
Y = RANDOM.integers(0, 3, sum(SIZES)).astype(np.int32)  # the last class has no example
PREDICTED = LOGITS.argmax(axis=1)
EXPONENTIALS = np.exp(LOGITS.astype(np.float64))
PROBABILITIES = EXPONENTIALS / EXPONENTIALS.sum(axis=1, keepdims=True)
MATRIX = reference.confusion_matrix(Y, PREDICTED, labels=range(NUM_CLASSES))
NATS = reference.log_loss(Y, PROBABILITIES, labels=range(NUM_CLASSES))
NAMED = {
    "accuracy": metrics.accuracy,
    "top_2": metrics.top_k(2),
    "confusion": metrics.confusion_matrix,
    "precision": metrics.of_confusion(metrics.precision),
    "recall": metrics.of_confusion(metrics.recall),
    "f1": metrics.of_confusion(metrics.f1),
    "balanced": metrics.of_confusion(metrics.balanced_accuracy),
    "perplexity": metrics.perplexity(cross_entropy),
    "bits": metrics.bits_per_character(cross_entropy),
    "calibration": metrics.calibration_error(num_bins=10),
    "seen": lambda logits, batch: Sums(jnp.ones(len(logits), jnp.int32)),  # a count without a denominator
}


def calibration_error(num_bins: int) -> float:
    confidence, right = PROBABILITIES.max(axis=1), PREDICTED == Y
    edges, found = np.linspace(0, 1, num_bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        found += abs(confidence[inside].sum() - right[inside].sum())
    return found / len(Y)


def each_class(score):
    return score(Y, PREDICTED, labels=range(NUM_CLASSES), average=None, zero_division=0)


EXPECTED = {
    "loss": NATS,
    "accuracy": reference.accuracy_score(Y, PREDICTED),
    "top_2": reference.top_k_accuracy_score(Y, LOGITS, k=2, labels=range(NUM_CLASSES)),
    "confusion": MATRIX,
    "precision": each_class(reference.precision_score),
    "recall": each_class(reference.recall_score),
    "f1": each_class(reference.f1_score),
    "balanced": reference.balanced_accuracy_score(Y, np.where(np.isin(PREDICTED, Y), PREDICTED, 0)),
    "perplexity": np.exp(NATS),
    "bits": NATS / np.log(2),
    "calibration": calibration_error(10),
    "seen": len(Y),
    "num_examples": len(Y),
}
# A class that is predicted and not there is a warning of scikit-learn; its recall counts in neither mean.
EXPECTED["balanced"] = np.mean([MATRIX[k, k] / MATRIX[k].sum() for k in range(NUM_CLASSES) if MATRIX[k].sum()])


class Given(nnx.Module):
    """The features are the logits."""

    def __init__(self, *, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return x * self.scale


@pytest.fixture(scope="module")
def found():
    """All of it in one evaluation of clients of different sizes, whole and streamed, by client too."""
    model = from_flax(Given, metrics=NAMED)
    data = FederatedData({"x": LOGITS, "y": Y}, np.cumsum([0, *SIZES]))
    evaluation, params = federated_evaluation(model, per_client=True), model.init(jax.random.key(0))
    cohort = Cohort(data, range(len(SIZES)), batch_size=4, lanes=2)
    return evaluation(params, cohort.whole()), evaluation(params, cohort)


@pytest.mark.parametrize("name", EXPECTED)
def test_federated_is_central_and_as_in_scikit_learn(found, name):
    (whole, _), (streamed, _) = found
    np.testing.assert_allclose(whole[name], EXPECTED[name], rtol=2e-5, atol=1e-6)
    exact = np.issubdtype(whole[name].dtype, np.integer) or name in ("accuracy", "top_2", "precision", "recall", "f1")
    np.testing.assert_allclose(streamed[name], whole[name], rtol=0 if exact else 1e-5)


def test_metrics_of_each_client_and_their_distribution(found):
    (_, whole), (_, streamed) = found
    by_client = np.split(PREDICTED == Y, np.cumsum(SIZES)[:-1])
    has = [k for k, size in enumerate(SIZES) if size]
    accuracies = np.array([by_client[k].mean() for k in has])
    for of_each in (whole, streamed):
        assert np.asarray(of_each.value["num_examples"]).tolist() == list(SIZES)
        np.testing.assert_allclose(np.asarray(of_each.value["accuracy"])[has], accuracies, rtol=1e-6)
        assert np.isnan(np.asarray(of_each.value["loss"])[1])  # nobody's loss
        assert of_each.value["confusion"].shape == (len(SIZES), NUM_CLASSES, NUM_CLASSES)
        described = distribution(of_each, quantiles=(0.0, 0.3, 0.5, 1.0))
        np.testing.assert_allclose(described["accuracy"].mean, accuracies.mean(), rtol=1e-6)
        for part, value in described["accuracy"].quantiles.items():
            np.testing.assert_allclose(value, np.quantile(accuracies, part), rtol=1e-5)
        assert described["confusion"].mean.shape == (NUM_CLASSES, NUM_CLASSES)


def test_deciles_and_quantiles_beside_numpy_with_padding_and_garbage():
    values, counts = RANDOM.normal(size=(40, 2)).astype(np.float32), RANDOM.integers(0, 2, 40) * 7
    mask = RANDOM.uniform(size=40) < 0.8
    real = mask & (counts > 0)
    given = np.where(real[:, None], values, np.nan)
    clients = Clients.of({"a": given, "num_examples": counts}, mask=mask)
    found = jax.jit(lambda clients: distribution(clients, quantiles=(0.1, 0.62))["a"])(clients)
    ordered, tenth = np.sort(values[real], axis=0), -(-real.sum() // 10)
    np.testing.assert_allclose(found.mean, ordered.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.lowest_decile, ordered[:tenth].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.highest_decile, ordered[-tenth:].mean(axis=0), rtol=1e-4)
    for part, value in found.quantiles.items():
        np.testing.assert_allclose(value, np.quantile(values[real], part, axis=0), rtol=1e-4)
    one = distribution(Clients.of({"a": jnp.array([3.0, np.nan, 1.0, 5.0]), "num_examples": jnp.array([5, 5, 5, 0])}))[
        "a"
    ]
    assert np.isnan([one.mean, one.highest_decile, one.quantiles[0.9]]).all()  # of who counts, not of who does not
    assert (one.lowest_decile, one.quantiles[0.5]) == (1, 3)
    nobody = distribution(Clients.of({"a": values, "num_examples": 0 * counts}))["a"]
    assert np.isnan(jax.tree.leaves(nobody)).all()
    with pytest.raises(ValueError, match=r"quantile_0 must be in \[0, 1\]; got"):
        distribution(clients, quantiles=(90,))


def test_the_area_under_the_curve_is_within_its_error():
    scores = RANDOM.normal(size=500).astype(np.float32)
    y = (scores + RANDOM.normal(size=500) > 0).astype(np.int32)
    exact = reference.roc_auc_score(y, scores)
    for num_bins, most in ((3, 0.5), (50, 0.02), (2000, 0.001)):
        logits = jnp.asarray(scores)
        for outputs in (logits, logits[:, None], jnp.stack([-logits / 2, logits / 2], axis=1)):
            area = metrics.auc(num_bins=num_bins)(outputs, {"y": y})
            area = finalize_metrics(sum_metrics({"auc": area}, np.ones(500, bool)))["auc"]
            assert abs(area.value - exact) <= area.error + 1e-6 < most
    with pytest.raises(ValueError, match="area under the curve is of two classes"):
        metrics.auc()(LOGITS, {"y": Y})


def test_a_confusion_matrix_needs_two_classes():
    for metric in (metrics.confusion_matrix, metrics.of_confusion(metrics.f1)):
        with pytest.raises(ValueError, match=r"of two classes or more; got outputs \[4, 1\]"):
            metric(jnp.ones((4, 1)), {"y": jnp.array([0, 1, 1, 0])})


def test_a_distribution_is_over_clients():
    with pytest.raises(TypeError, match=r"a distribution is over clients; got dict\. Pass the second of"):
        distribution({"accuracy": 0.5, "num_examples": 3})


def test_metrics_of_positions_and_of_what_is_ignored():
    logits, y = LOGITS[:60].reshape(10, 6, NUM_CLASSES), Y[:60].reshape(10, 6).copy()
    y[:, 4:] = 3  # padding
    loss = softmax_cross_entropy(ignored=3)
    named = {"loss": loss, "perplexity": metrics.perplexity(loss), "accuracy": loss.metrics["accuracy"]}
    mask = np.arange(10) < 7
    found = finalize_metrics(sum_metrics({name: fn(logits, {"y": y}) for name, fn in named.items()}, mask))
    first = logits[:7, :4].reshape(-1, NUM_CLASSES)
    log = first - np.log(np.exp(first).sum(axis=1, keepdims=True))
    nats = -log[np.arange(28), y[:7, :4].reshape(-1)].mean()
    np.testing.assert_allclose([found["loss"], found["perplexity"]], [nats, np.exp(nats)], rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (first.argmax(1) == y[:7, :4].reshape(-1)).mean(), rtol=1e-6)
    top = sum_metrics({"top": metrics.top_k(2)(logits, {"y": y})}, mask)["top"]
    assert top.denominator == 42


def test_of_nobody_what_is_best_at_zero_is_no_number():
    nobody, batch = np.zeros(5, bool), {"y": Y[:5]}
    errors = {"mse": metrics.squared_error(LOGITS[:5, 0], batch), "mae": metrics.absolute_error(LOGITS[:5, 0], batch)}
    values = {
        "loss": cross_entropy(LOGITS[:5], batch),
        **{n: fn(LOGITS[:5], batch) for n, fn in NAMED.items()},
        **errors,
    }
    found = finalize_metrics(sum_metrics(values, nobody))
    assert all(np.isnan(found[name]) for name in ("loss", "perplexity", "calibration", "balanced", "mse", "mae"))
    assert all((np.asarray(found[name]) == 0).all() for name in ("accuracy", "confusion", "seen", "f1"))
