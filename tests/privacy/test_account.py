"""Accounts: the published numbers, and every sampler with every mechanism, accounted for or refused."""

import math

import dp_accounting
import jax
import numpy as np
import pytest

import fedjx
from fedjx.aggregation import (
    clip_adaptively,
    clip_by_norm,
    coordinate_median,
    mean,
    power_sgd,
    power_sgd_with_memory,
    zero_outliers,
)
from fedjx.aggregation.per_cluster import per_cluster
from fedjx.data import (
    cyclic_poisson_sampler,
    cyclic_sampler,
    fixed_sampler,
    over_select,
    poisson_sampler,
    uniform_sampler,
    weighted_sampler,
)
from fedjx.privacy import (
    Event,
    Stated,
    Strategy,
    account,
    calibrate,
    category_response,
    distributed_dp_mean,
    dp_mean,
    dp_mean_adaptive,
    gaussian_response,
    laplace,
    local_mean,
    matrix,
    together,
    tree,
    values_multiplier,
)
from fedjx.privacy.loss import FixedSize, Gaussian, Laplace, Poisson, Response, Truncated, epsilon

ADD, REPLACE, ZERO = "add_or_remove_one", "replace_one", "zero_out_one"


@pytest.mark.parametrize(
    ("z", "delta", "expected"), [(1, 1e-5, 4.3771781), (0.5, 1e-5, 9.9972561), (4, 1e-6, 1.0607019)]
)
def test_without_sampling_it_is_analytic(z, delta, expected):
    assert epsilon(Gaussian(z), 1, delta, ADD) == pytest.approx(expected, abs=1e-6)
    assert epsilon(Gaussian(10 * z), 100, delta, ZERO) == pytest.approx(expected, abs=1e-6)
    assert epsilon(Gaussian(2 * z), 1, delta, REPLACE) == pytest.approx(expected, abs=1e-6)


def test_fixed_cohorts_are_replaced_by_two_sensitivities():
    delta = 3400**-1.1
    assert epsilon(FixedSize(1.0, 3400, 100), 1500, delta, REPLACE) == pytest.approx(142.950666, rel=1e-4)
    assert epsilon(FixedSize(2.0, 3400, 100), 1500, delta, REPLACE) == pytest.approx(14.596218, rel=1e-4)


def test_another_library_brackets_poisson_sampling():
    prv = pytest.importorskip("prv_accountant")
    mechanism = prv.PoissonSubsampledGaussianMechanism(sampling_probability=120 / 3383, noise_multiplier=1.2)
    other = prv.PRVAccountant(prvs=[mechanism], max_self_compositions=[100], eps_error=0.01, delta_error=1e-8)
    low, _, high = other.compute_epsilon(delta=1e-5, num_self_compositions=[100])
    assert low <= epsilon(Poisson(1.2, 120 / 3383), 100, 1e-5, ADD) <= high


def test_the_published_tree_of_gboard():
    """Xu et al., "Federated Learning of Gboard Language Models with Differential Privacy" (arXiv 2305.18465)."""
    rho = 79 / (2 * 7**2)
    assert rho == pytest.approx(0.806122, abs=1e-6)
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.ZCDpEvent(rho))
    published = accountant.get_epsilon(1e-10)
    assert published == pytest.approx(8.898605, abs=1e-5)
    sampler = cyclic_sampler(314 * 10, 10, seed=0)
    assert sampler.description["min_separation"] == 314
    spent = account(dp_mean(clip=1.0, noise_multiplier=7.0, expected_clients=10, noise=tree(1884)), sampler)
    assert spent.epsilon(1884, 1e-10) < published  # six rounds a client, by the tighter bound for Gaussians


SAMPLERS = {
    "poisson": poisson_sampler(1000, probability=0.01, seed=0),
    "truncated": poisson_sampler(1000, probability=0.01, max_cohort_size=20, seed=0),
    "turns": cyclic_poisson_sampler(1000, probability=0.5, num_groups=50, seed=0),
    "uniform": uniform_sampler(1000, 10, seed=0),
    "all": uniform_sampler(1000, 1000, seed=0),
    "cyclic": cyclic_sampler(1000, 10, seed=0),
    "cyclic_close": cyclic_sampler(1000, 10, seed=0, min_separation=8),
    "fixed": fixed_sampler(4, [[0, 1], [2, 3]]),
}
SOME = {"clip": 1.0, "noise_multiplier": 2.0, "expected_clients": 10}
MECHANISMS = {
    "independent": dp_mean(**SOME),
    "adaptive": dp_mean_adaptive(noise_multiplier=2.0, expected_clients=1000),
    "laplace": dp_mean(**SOME, noise=laplace()),
    "tree": dp_mean(**SOME, noise=tree(100)),
    "matrix": dp_mean(**SOME, noise=matrix(Strategy((1.0, 0.5)), 100, min_separation=50)),
    "reports": local_mean(category_response(epsilon=0.1, num_categories=3)),
    "noisy_reports": local_mean(gaussian_response(clip=1.0, noise_multiplier=2.0)),
    "stated": Event(0.0, Stated(0.1, 1e-9)),
}
SHARED = distributed_dp_mean(
    clip=1.0, noise_multiplier=2.0, expected_clients=10, num_elements=8, min_clients=2, max_clients=10
)
# How often a client may be there in 100 rounds.
TIMES = {"turns": 2, "cyclic": 1, "cyclic_close": 13, "fixed": 50}
# Epsilon after 100 rounds at 1e-6.
INDEPENDENT = {
    "poisson": epsilon(Poisson(2.0, 0.01), 100, 1e-6, ADD),
    "truncated": epsilon(Truncated(2.0, 0.01, 1000, 20), 100, 1e-6, ADD),
    "turns": epsilon(Poisson(2.0, 0.5), 2, 1e-6, ADD),
    "uniform": epsilon(FixedSize(2.0, 1000, 10), 100, 1e-6, REPLACE),
    "all": epsilon(Gaussian(0.2), 1, 1e-6, ZERO),
}
COSTS = {(which, sampler): cost for sampler, cost in INDEPENDENT.items() for which in ("independent", "adaptive")} | {
    ("laplace", "poisson"): epsilon(Laplace(2.0, 0.01), 100, 1e-6, ADD),
    ("laplace", "turns"): epsilon(Laplace(2.0, 0.5), 2, 1e-6, ADD),
    ("tree", "cyclic"): epsilon(Gaussian(2.0 / math.sqrt(7)), 1, 1e-6, ZERO),
    ("matrix", "cyclic"): epsilon(Gaussian(2.0), 1, 1e-6, ZERO),
    ("matrix", "turns"): epsilon(Poisson(2.0 * math.sqrt(2), 0.5), 2, 1e-6, ADD),
}
OF_TIMES = {
    "independent": lambda number: epsilon(Gaussian(2.0), number, 1e-6, ZERO),
    "adaptive": lambda number: epsilon(Gaussian(2.0), number, 1e-6, ZERO),
    "laplace": lambda number: epsilon(Laplace(2.0, 1.0), number, 1e-6, ADD),
    "reports": lambda number: epsilon(Response(0.1), number, 1e-6, REPLACE),
    "noisy_reports": lambda number: epsilon(Gaussian(2.0), number, 1e-6, REPLACE),
    "stated": lambda number: epsilon(Stated(0.1, 1e-9), number, 1e-6, ZERO),
}
REFUSED = {
    **{("matrix", name): "back after at least 50 rounds" for name in SAMPLERS if name not in ("cyclic", "turns")},
    **{("laplace", name): "Laplace noise is accounted for on schedules" for name in ("truncated", "uniform", "all")},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_sampler_with_every_mechanism(sampler, mechanism):
    pair = mechanism, sampler
    if pair in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[pair]):
            account(MECHANISMS[mechanism], SAMPLERS[sampler])
        return
    spent = account(MECHANISMS[mechanism], SAMPLERS[sampler])
    got = spent.epsilon(100, 1e-6)
    if pair in COSTS:
        assert got == pytest.approx(COSTS[pair])
    elif mechanism in OF_TIMES:
        assert got == pytest.approx(OF_TIMES[mechanism](TIMES.get(sampler, 100)))
    else:  # a tree in which clients are often
        assert got > epsilon(Gaussian(2.0 / math.sqrt(7)), 1, 1e-6, ZERO)
    assert spent.epsilon(0, 1e-6) == 0


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        (uniform_sampler(100, 10, seed=0, replacement=True), "may be in a cohort once"),
        (over_select(uniform_sampler(100, 13, seed=0), 10, seed=0)[0], "Account for the clients that are selected"),
        (weighted_sampler(np.arange(1, 101), 10, seed=0), "Use poisson_sampler with a probability for each client"),
        (fixed_sampler(4, [[0, 0], [2, 3]]), "may be in a cohort once"),
    ],
)
def test_what_no_theorem_covers_is_refused(sampler, sentence):
    with pytest.raises(ValueError, match=sentence):
        account(dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=10), sampler)


@pytest.mark.parametrize(
    "aggregator",
    [
        mean(),
        coordinate_median(),
        clip_by_norm(max_norm=1.0),
        zero_outliers(inner=dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=10)._replace(event=None)),
    ],
    ids=["mean", "median", "clip", "given_up"],
)
def test_what_gives_no_guarantee_has_no_account(aggregator):
    with pytest.raises(TypeError, match="an account needs an aggregator that makes noise"):
        account(aggregator, SAMPLERS["poisson"])


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (clip_adaptively, "the bound follows the other clients' norms, which no noise hides"),
        (zero_outliers, "the bound follows the other clients' norms, which no noise hides"),
        (lambda inner: power_sgd(2, inner=inner), "the factors of large leaves go past it"),
        (lambda inner: power_sgd_with_memory(2, inner=inner), "the factors of large leaves go past it"),
        (lambda inner: per_cluster(2, inner=inner, of_cohort=True), "a client counts in every cluster"),
    ],
    ids=["clip", "zeroing", "factors", "factors_with_memory", "clusters"],
)
def test_a_wrapper_that_loses_the_guarantee_is_refused_when_it_is_built(wrap, reason):
    private = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=10)
    with pytest.raises(ValueError, match=f"in a wrapper where {reason}"):
        wrap(inner=private)
    assert wrap(inner=private._replace(event=None)).event is None


def test_what_changes_each_value_by_itself_keeps_the_event():
    private = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=10)
    assert clip_by_norm(max_norm=3.0, inner=private).event == private.event == Event(1.0, clip=1.0)
    assert per_cluster(3, inner=private).event == private.event
    for counted in (local_mean(gaussian_response(clip=1.0, noise_multiplier=1.0)), SHARED):
        with pytest.raises(ValueError, match="it counts the clients of each cluster"):
            per_cluster(3, inner=counted)
    clipped = clip_by_norm(max_norm=3.0, inner=private).next.type_signature
    measured = clipped(
        jax.random.key(0), (), fedjx.Clients.of(np.ones((2, 3), np.float32)), fedjx.Clients.of(np.ones(2))
    )
    assert measured.result[2].member["not_private"].keys() == {"clip", "clipped_fraction", "num_non_finite"}


def test_what_is_no_event_or_no_sampler_is_refused():
    with pytest.raises(ValueError, match="noise_multiplier must be"):
        account(Event(math.nan), SAMPLERS["fixed"])
    with pytest.raises(TypeError, match=r"got the aggregator 'mean', without an event"):
        account(mean(), SAMPLERS["fixed"])
    with pytest.raises(TypeError, match=r"of over_select\(...\) the first"):
        account(MECHANISMS["independent"], over_select(uniform_sampler(100, 13, seed=0), 10, seed=0))
    with pytest.raises(ValueError, match="as private for any two values"):
        account(MECHANISMS["noisy_reports"], SAMPLERS["fixed"], relation=ADD)


def test_more_bands_than_groups_are_not_amplified():
    noise = matrix(Strategy((1.0, 0.5, 0.25)), 8, min_separation=2)
    private = dp_mean(**SOME, noise=noise)
    assert account(private, cyclic_poisson_sampler(100, probability=0.1, num_groups=2, seed=0)).loss == Gaussian(2.0)


def test_the_most_rounds_of_a_matrix_end_with_it():
    private = dp_mean(
        clip=1.0, noise_multiplier=3.0, expected_clients=5, noise=matrix(Strategy((1.0, 0.5)), 100, min_separation=2)
    )
    spent = account(private, cyclic_poisson_sampler(100, probability=0.1, num_groups=2, seed=0))
    assert spent.most_rounds(spent.epsilon(96, 1e-5) + 1e-9, 1e-5) == 96
    assert spent.most_rounds(spent.epsilon(100, 1e-5) + 1e-9, 1e-5) == 100


def test_relations_are_those_of_the_theorems():
    private = dp_mean(clip=1.0, noise_multiplier=2.0, expected_clients=10)
    poisson = {r: account(private, SAMPLERS["poisson"], relation=r).epsilon(10, 1e-6) for r in (ADD, ZERO, REPLACE)}
    assert poisson[ADD] == pytest.approx(poisson[ZERO])
    assert poisson[REPLACE] > 1.3 * poisson[ADD]
    with pytest.raises(ValueError, match="by replacing a client"):
        account(private, SAMPLERS["uniform"], relation=ADD)


def test_noise_of_larger_cohorts_is_accounted_for_in_their_population():
    """The norm of the field: 50 clients are simulated, of cohorts of 1,000 out of a million."""
    few = dp_mean(clip=0.4, noise_multiplier=0.61615, expected_clients=50, noise_clients=1000)
    with pytest.raises(ValueError, match="Give both, or neither"):
        account(few, poisson_sampler(500, probability=0.1, seed=0))
    spent = account(few, poisson_sampler(500, probability=0.1, seed=0), noise_population=1_000_000)
    assert spent.loss == Poisson(0.61615, 1e-3)
    assert spent.sampler["num_clients"] == 1_000_000
    for sampler in (
        poisson_sampler(500, probability=0.1, max_cohort_size=60, seed=0),
        poisson_sampler(500, probability=np.linspace(0.05, 1, 500), seed=0),
    ):
        with pytest.raises(ValueError, match="Leave these out"):
            account(few, sampler, noise_population=1_000_000)
    real = account(dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=9), SAMPLERS["poisson"])
    with pytest.raises(ValueError, match="Account for each alone"):
        together([(spent, 1), (real, 1)], 1e-6)
    with pytest.raises(ValueError, match="Simulate it whole"):
        account(few, cyclic_sampler(500, 50, seed=0), noise_population=1_000_000)


def test_an_adaptive_clip_has_the_noise_that_composes():
    """Andrew et al. (arXiv 1905.03871, theorem 1)."""
    expected = {(1, 100): 1.005038, (1, 50): 1.020621, (0.5, 100): 0.500626, (0.5, 50): 0.502519, (2, 100): 2.041241}
    for (z, clients), of_values in expected.items():
        assert values_multiplier(z, clients / 20) == pytest.approx(of_values, abs=1e-6)
    assert dp_mean_adaptive(noise_multiplier=1.0, expected_clients=100).event.noise_multiplier == 1.0
    with pytest.raises(ValueError, match="needs noise_multiplier < 2"):
        dp_mean_adaptive(noise_multiplier=1.0, expected_clients=10)


def test_calibration_finds_any_of_four():
    assert epsilon(Poisson(0.959103, 0.01), 1000, 1e-5, ADD) == pytest.approx(2.0, abs=2e-3)  # published
    known = {"num_clients": 1000, "delta": 1e-5}
    found = calibrate(epsilon=0.5, cohort_size=50, rounds=10, **known)
    assert 0.498 < found.epsilon <= 0.5
    given = {"noise_multiplier": found.noise_multiplier, "cohort_size": 50, "rounds": 10, "epsilon": 0.5}
    for name in ("epsilon", "cohort_size", "rounds"):
        again = calibrate(**{k: v for k, v in given.items() if k != name}, **known)
        assert getattr(again, name) == pytest.approx(given[name], rel=0.04)
    with pytest.raises(ValueError, match="by replacing a client"):
        calibrate(noise_multiplier=1.0, cohort_size=10, rounds=10, sampling="fixed_size", relation=ADD, **known)
    with pytest.raises(ValueError, match=r"one of .* is found from the others"):
        calibrate(rounds=10, **known)


def test_calibration_without_sampling_is_analytic():
    found = calibrate(num_clients=100, delta=1e-6, epsilon=8.0, rounds=1, sampling="all")
    assert found.noise_multiplier == pytest.approx(0.6529354, rel=2e-4)
