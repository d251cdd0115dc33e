"""K-means, mixtures, components and clusters of models against NumPy, scikit-learn and their identities."""

from __future__ import annotations

import warnings
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from fedjx.aggregation import mean, secure_sum, uniform
from fedjx.algorithms import fed_avg
from fedjx.algorithms.gaussian_mixture import Mixture, gaussian_mixture, mixture_around
from fedjx.algorithms.ifca import client_clusters, ifca
from fedjx.algorithms.kmeans import kmeans
from fedjx.algorithms.kmeans_start import kmeans_start
from fedjx.algorithms.pca import pca
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from tests.algorithms.test_laws import mesh

EVERYBODY = range(6)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    """Three clouds far from the origin, elongated, unequally spread over six clients."""
    random = np.random.default_rng(0)
    clients = []
    for size, cloud in ((9, 0), (12, 1), (7, 2), (11, 0), (4, 1), (8, 2)):
        which = np.where(random.random(size) < 0.7, cloud, random.integers(3, size=size))
        middle = np.array([[10, 20, 30], [13, 18, 30], [10, 18, 34]])[which]
        clients.append({"x": (middle + random.normal(size=(size, 3)) * [1.0, 0.6, 0.3]).astype(np.float32)})
    return FederatedData.from_clients(clients)


@pytest.fixture(scope="module")
def everybody(data) -> Any:
    return Cohort(data, EVERYBODY, batch_size=4).whole()


def rounds(algorithm: Any, clients: Any, num_rounds: int) -> tuple[Any, list[Any]]:
    state, metrics = algorithm.init(jax.random.key(0)), []
    for _ in range(num_rounds):
        state, measured = algorithm.next(state, clients)
        metrics.append(jax.device_get(measured))
    return state.params, metrics


# --- k-means --------------------------------------------------------------------------------------


def test_forgetful_rounds_of_everybody_are_those_of_lloyd_though_the_server_sees_only_sums_of_integers(data, everybody):
    start = data.examples["x"][[0, 15, 30]]
    secure = secure_sum(bound=1000.0, max_clients=6)
    clusters, metrics = rounds(kmeans(init=lambda key: start, memory=0, aggregator=secure), everybody, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says that it has not converged.
        lloyd = KMeans(3, init=start, n_init=1, max_iter=4, tol=0).fit(data.examples["x"])
    np.testing.assert_allclose(clusters.centers, lloyd.cluster_centers_, rtol=1e-5)
    np.testing.assert_allclose(clusters.weights.sum(), data.num_examples, rtol=1e-5)
    losses = np.array([m["loss"] for m in metrics])
    assert (np.diff(losses) < 1e-6).all()
    assert losses[-1] < losses[0]


def test_a_round_is_the_weighted_running_mean_and_an_empty_cluster_stays(data, everybody):
    start = np.append(data.examples["x"][[0, 15]], np.float32([[-90, 0, 0]]), axis=0)
    some = Cohort(data, [5, 0, 2], batch_size=4).whole(num_steps=3, num_places=6)
    algorithm = kmeans(init=lambda key: start)
    state = algorithm.init(jax.random.key(0))
    centers, weights = start.astype(np.float64), np.ones(3)
    for clients, ids in ((everybody, EVERYBODY), (some, (0, 2, 5))):
        state, _ = algorithm.next(state, clients)
        x = np.concatenate([data.client(k)["x"] for k in ids]).astype(np.float64)
        nearest = ((x[:, None] - centers) ** 2).sum(-1).argmin(1)
        for j in range(3):
            own = x[nearest == j]
            centers[j] = (weights[j] * centers[j] + own.sum(0)) / (weights[j] + len(own))
            weights[j] += len(own)
    np.testing.assert_allclose(state.params.centers, centers, rtol=1e-5)
    np.testing.assert_array_equal(state.params.weights, weights)
    np.testing.assert_array_equal(state.params.centers[2], start[2])


def test_later_centers_are_drawn_by_squared_distance():
    """The distribution of the second centre given the first, over clients of different sizes."""
    x = np.float32([0, 1, 2, 4, 8])[:, None]
    clients = Cohort(FederatedData({"x": x}, np.array([0, 1, 4, 5])), [0, 1, 2], batch_size=2).whole()
    start = kmeans_start(2, num_features=1)

    def two(key: Any) -> Any:
        state, _ = start.next(start.init(key), clients)
        return start.next(state, clients)[0].params

    drawn = np.asarray(jax.jit(jax.vmap(two))(jax.random.split(jax.random.key(0), 4000)))[..., 0]
    counts = np.array([[(np.all(drawn == [a, b], axis=1)).sum() for b in x[:, 0]] for a in x[:, 0]])
    squares = (x - x.T) ** 2
    expected = 800 * squares / squares.sum(1, keepdims=True)
    assert (np.diag(counts) == 0).all()
    assert (
        ((counts - expected) ** 2) / np.where(expected, expected, 1)
    ).sum() < 43.8  # 19 degrees of freedom, p = 0.001
    by_distance = 800 * np.sqrt(squares) / np.sqrt(squares).sum(1, keepdims=True)  # what other weights would give
    assert (((counts - by_distance) ** 2) / np.where(expected, expected, 1)).sum() > 43.8


def test_the_start_does_not_depend_on_how_it_runs(data, everybody):
    start = kmeans_start(3, num_features=3)
    one, many = start.next, start.next.streamed(mesh=mesh(4), lanes=1)
    states = [start.init(jax.random.key(3))] * 2
    for _ in range(3):
        states = [run(state, everybody)[0] for run, state in zip((one, many), states, strict=True)]
    np.testing.assert_array_equal(states[0].params, states[1].params)
    assert all((data.examples["x"] == center).all(1).any() for center in np.asarray(states[0].params))
    assert len(np.unique(states[0].params, axis=0)) == 3


def test_points_that_are_not_finite_are_no_centers_and_nobody_adds_none():
    """Whatever the order: NaN and infinity are left out, and counted; points far beyond overflow are drawn."""
    bad = [np.nan, np.inf, -np.inf]
    data = FederatedData.from_clients([{"x": np.float32(x)[:, None]} for x in ([1, bad[0], 3e38], bad, [-3e38])])
    start = kmeans_start(3, num_features=1)
    run = jax.jit(start.next.in_graph())
    for ids in ([0, 1, 2], [2, 1, 0]):
        state = start.init(jax.random.key(3))
        for number in range(3):
            nobody, metrics = run(state, Cohort(data, [1], batch_size=2).whole(num_steps=2, num_places=3))
            jax.tree.map(np.testing.assert_array_equal, nobody[::2], state[::2])
            assert (int(nobody.round), int(metrics["num_non_finite_points"])) == (number, 3)
            state, metrics = run(state, Cohort(data, ids, batch_size=2).whole(num_steps=2, num_places=3))
            assert (int(state.round), int(metrics["num_non_finite_points"])) == (number + 1, 4)
        assert sorted(np.asarray(state.params)[:, 0].tolist()) == np.float32([-3e38, 1, 3e38]).tolist()


# --- mixtures -------------------------------------------------------------------------------------


def one_step_of_scikit_learn(x: np.ndarray, start: Mixture) -> Any:
    covariances = np.asarray(start.covariances, np.float64)
    diagonal = covariances.ndim == 2
    em = GaussianMixture(
        len(start.weights),
        covariance_type="diag" if diagonal else "full",
        max_iter=1,
        init_params="random",
        weights_init=np.full(len(covariances), 1 / len(covariances)),
        means_init=np.asarray(start.means, np.float64),
        precisions_init=1 / covariances if diagonal else np.linalg.inv(covariances),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says that it has not converged.
        em.fit(x.astype(np.float64))
    return Mixture(em.weights_, em.means_, em.covariances_)


@pytest.mark.parametrize("full", [False, True])
def test_a_round_is_a_step_of_expectation_maximisation_and_the_likelihood_never_falls(data, everybody, full):
    far = np.float32([[1e6, 0, 0]])  # A component without points, which stays as it is.
    start = mixture_around(np.append(data.examples["x"][[0, 15, 30]], far, axis=0), variance=4.0, full=full)
    algorithm = gaussian_mixture(init=lambda key: start, aggregator=mean() if full else None)
    state, mixtures, metrics = algorithm.init(jax.random.key(0)), [], []
    for _ in range(12):
        state, measured = algorithm.next(state, everybody)
        mixtures.append(jax.device_get(state.params))
        metrics.append(measured)
    expected = one_step_of_scikit_learn(data.examples["x"], start)
    for found, step, before in zip(mixtures[0], expected, start, strict=True):
        np.testing.assert_allclose(found[:3], step[:3], rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(found[3], np.zeros(()) if found.ndim == 1 else before[3])
    likelihoods = np.array([float(m["log_likelihood"]) for m in metrics])
    assert (np.diff(likelihoods) > -1e-5).all()
    assert likelihoods[-1] > likelihoods[0] + 1
    assert int(metrics[0]["num_examples"]) == data.num_examples


# --- components -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_components", "num_rounds"), [(3, 2), (2, 12)])
def test_components_are_those_of_the_union(data, everybody, num_components, num_rounds):
    """All of them in the round after the mean is known, some in a few more."""
    found, metrics = jax.device_get(rounds(pca(num_components, num_features=3), everybody, num_rounds))
    x = data.examples["x"].astype(np.float64)
    _, scales, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    signs = np.sign(np.sum(rows.T[:, :num_components] * found.basis, axis=0))
    np.testing.assert_allclose(found.basis * signs, rows.T[:, :num_components], atol=2e-4)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variances, (scales**2 / len(x))[:num_components], rtol=1e-3)
    left_out = (scales[num_components:] ** 2).sum() / len(x)
    np.testing.assert_allclose(metrics[-1]["reconstruction_error"], left_out, rtol=1e-3, atol=1e-4)


# --- clusters of models ---------------------------------------------------------------------------


def regression() -> Model:
    """Least squares without an intercept, from a random start."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return (batch["x"] @ params - batch["y"]) ** 2

    return Model(
        lambda key: jax.random.normal(key, (2,)), loss, lambda params, batch: {"loss": loss(params, batch, None)}
    )


TRUE = np.float32([[2, 1], [-1, 3]])
GROUPS = (0, 1, 1, 0, 1)


@pytest.fixture(scope="module")
def groups() -> FederatedData:
    """Clients of two kinds, with opposite linear models."""
    random = np.random.default_rng(0)
    clients = []
    for size, group in zip((6, 9, 4, 8, 7), GROUPS, strict=True):
        x = random.normal(size=(size, 2)).astype(np.float32)
        clients.append({"x": x, "y": x @ TRUE[group] + np.float32(0.1) * random.normal(size=size).astype(np.float32)})
    return FederatedData.from_clients(clients)


def ifca_in_numpy(models: Any, data: FederatedData, *, average: str, rate: float, server_rate: float) -> Any:
    """Ghosh et al., algorithm 1, a round; local updates are two steps over all examples, clients weigh alike."""
    sums, counts = np.zeros_like(models), np.zeros(len(models))
    for k in range(data.num_clients):
        x, y = (np.asarray(data.client(k)[name], np.float64) for name in ("x", "y"))
        losses = [np.mean((x @ w - y) ** 2) for w in models]
        j = int(np.argmin(losses))
        w = models[j].copy()
        gradient = 2 * x.T @ (x @ w - y) / len(y)
        for _ in range(2):
            w -= rate * 2 * x.T @ (x @ w - y) / len(y)
        sums[j] += models[j] - w if average == "models" else gradient
        counts[j] += 1
    if average == "models":
        return np.where(counts[:, None] > 0, models - sums / np.maximum(counts, 1)[:, None], models), counts
    return models - server_rate * sums / data.num_clients, counts


@pytest.mark.parametrize("average", ["models", "gradients"])
def test_ifca_is_the_papers_and_clients_find_their_cluster(groups, average):
    options: Any = {"average": average, "client_weight": uniform}
    if average == "models":
        options |= {"client_optimizer": optax.sgd(0.1), "num_epochs": 2}
    else:
        options |= {"server_optimizer": optax.sgd(0.3)}
    algorithm = ifca(regression(), 3, **options)  # One more model than there are kinds of clients.
    clients = Cohort(groups, range(5), batch_size=9).whole()
    state = algorithm.init(jax.random.key(1))
    expected = np.asarray(state.params, np.float64)
    for _ in range(12):
        state, metrics = algorithm.next(state, clients)
        expected, sizes = ifca_in_numpy(expected, groups, average=average, rate=0.1, server_rate=0.3)
        np.testing.assert_allclose(state.params, expected, rtol=1e-4)
        np.testing.assert_array_equal(metrics["cluster_sizes"], sizes)
        assert int(metrics["num_clients"]) == 5
    if average == "models":
        picked = np.asarray(client_clusters(regression())(state.params, clients).value)
        order = [picked[GROUPS.index(0)], picked[GROUPS.index(1)]]
        assert order[0] != order[1]
        np.testing.assert_array_equal(picked, np.array(order)[list(GROUPS)])
        np.testing.assert_allclose(np.asarray(state.params)[order], TRUE, atol=0.2)


def test_one_cluster_is_federated_averaging(groups):
    options: Any = {"client_optimizer": optax.sgd(0.1, momentum=0.9)}
    clients = Cohort(groups, range(5), batch_size=4).whole()
    start = jnp.float32([0.3, -0.2])
    one = ifca(regression(), 1, init=lambda key: start[None], **options)
    plain = fed_avg(regression()._replace(init=lambda key: start), **options)
    (params, metrics), (expected, own) = (rounds(a, clients, 2) for a in (one, plain))
    np.testing.assert_allclose(params[0], expected, rtol=1e-6)
    assert float(metrics[-1]["loss"]) == pytest.approx(float(own[-1]["loss"]), rel=1e-5)


# --- arguments ------------------------------------------------------------------------------------


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"memory must be in \[0, 1\]; got memory=1.5"):
        kmeans(init=lambda key: jnp.zeros((2, 1)), memory=1.5)
    with pytest.raises(ValueError, match=r"has a centre; got centers.shape=\(0, 1\)"):
        kmeans(init=lambda key: jnp.zeros((0, 1))).init(jax.random.key(0))
    with pytest.raises(ValueError, match="got num_clusters=0"):
        kmeans_start(0, num_features=1)
    with pytest.raises(ValueError, match="got num_clusters=0"):
        ifca(regression(), 0, client_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="got average='model'"):
        ifca(regression(), 2, average=cast(Any, "model"), client_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="min_variance must be at least 0; got"):
        gaussian_mixture(init=lambda key: mixture_around(np.zeros((2, 1))), min_variance=-1.0)
    with pytest.raises(ValueError, match=r"num_components must be an integer in \[1, 3\]; got num_components=4"):
        pca(4, num_features=3)
    with pytest.raises(ValueError, match="given to average models only"):
        ifca(regression(), 2)
    with pytest.raises(ValueError, match="given to average models only"):
        ifca(regression(), 2, average="gradients", client_optimizer=optax.sgd(0.1))
