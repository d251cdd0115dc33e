"""Published numbers, of fedjx and of the libraries that it relies on: what they return is what it was built for."""

import math

import dp_accounting
import jax
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as distributions

from fedjx.data import cyclic_poisson_sampler, cyclic_sampler, poisson_sampler, uniform_sampler
from fedjx.privacy import Strategy, account, calibrate, dp_mean, laplace, matrix, tree
from fedjx.privacy.loss import Gaussian, Laplace, Poisson, Response, Truncated, epsilon

ADD, ZERO = "add_or_remove_one", "zero_out_one"
TABLE = [  # sampling probability, noise multiplier, rounds, delta; epsilon by RDP and by PLD
    (0.01, 1.0, 1000, 1e-5, 2.101367, 1.828244),
    (0.01, 1.1, 10000, 1e-5, 5.632011, 5.192620),
    (100 / 3400, 1.0, 1500, 3400**-1.1, 7.070588, 6.350059),
    (100 / 342477, 0.3, 1500, 342477**-1.1, 18.299122, 14.999280),
    (1000 / 342477, 1.0, 1600, 1e-6, 1.206058, 0.715803),
    (0.1, 3.0, 512, 1e-6, 4.050970, 3.769687),
    (256 / 60000, 1.1, 14040, 1e-5, 2.594363, 2.379643),
    (0.005, 0.6, 2000, 1e-6, 7.402305, 6.352577),
    (0.001, 1.0, 1500, 1e-6, 0.875810, 0.221348),
    (120 / 3383, 1.2, 100, 1e-5, 1.986115, 1.707471),
    (50 / 3383, 0.5, 100, 1e-5, 9.812283, 8.064620),
]


@pytest.mark.parametrize(("probability", "z", "rounds", "delta", "renyi", "tight"), TABLE)
def test_poisson_sampling_costs_what_is_published(probability, z, rounds, delta, renyi, tight):
    loss = Poisson(z, probability)
    assert epsilon(loss, rounds, delta, ADD, "rdp") == pytest.approx(renyi, abs=2e-6)
    assert epsilon(loss, rounds, delta, ADD) == pytest.approx(tight, abs=1e-3)


BRACKETS = [  # of the same rows, by prv-accountant 0.2.0; None if it was not run
    (1.81811, 1.83837),
    (5.18230, 5.20287),
    (6.33961, 6.36052),
    None,
    None,
    (3.75951, 3.77986),
    (2.36941, 2.38970),
    None,
    (0.21128, 0.23131),
    None,
    None,
]


@pytest.mark.parametrize(("row", "bracket"), [(r, b) for r, b in zip(TABLE, BRACKETS, strict=True) if b])
def test_another_accountant_brackets_them(row, bracket):
    probability, z, rounds, delta, _, _ = row
    assert bracket[0] <= epsilon(Poisson(z, probability), rounds, delta, ADD) <= bracket[1]


def test_without_sampling_rdp_is_looser():
    assert epsilon(Gaussian(1.0), 1, 1e-5, ADD, "rdp") == pytest.approx(4.728507, abs=1e-6)
    assert epsilon(Gaussian(10.0), 100, 1e-5, ADD, "rdp") == pytest.approx(4.728507, abs=1e-6)
    assert epsilon(Gaussian(2.0), 1, 1e-5, ADD) == pytest.approx(1.9930914, abs=1e-6)
    assert epsilon(Gaussian(5.0), 1, 1e-6, ADD) == pytest.approx(0.8341175, abs=1e-6)
    assert epsilon(Gaussian(3.7306316), 1, 1e-5, ADD) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("z", "rounds", "squared", "expected"),
    [(1, 1, 1, 5.221540), (1, 8, 4, 11.688627), (2.33, 2048, 12, 8.232165), (7, 1600, 11, 2.281145)],
)
def test_a_tree_with_one_participation_costs_what_is_published(z, rounds, squared, expected):
    assert rounds.bit_length() == squared
    assert epsilon(Gaussian(z / math.sqrt(squared)), 1, 1e-6, ZERO, "rdp") == pytest.approx(expected, abs=1e-5)


def test_trees_that_are_restarted_are_as_many_as_a_client_can_be_in():
    def of(warm_up, separation, rounds):
        noise = tree(8, warm_up=warm_up)
        private = dp_mean(clip=1.0, noise_multiplier=7.0, expected_clients=4, noise=noise)
        spent = account(private, cyclic_sampler(400, 10, seed=0, min_separation=separation))
        return [spent._count(number, 1e-6) for number in rounds], spent.loss

    assert of(None, 8, (0, 1, 8, 9, 17)) == ([0, 1, 1, 2, 3], Gaussian(7 / 2))
    assert of(3, 4, (0, 1, 3, 4, 11, 12)) == ([0, 1, 1, 2, 2, 3], Gaussian(7 / math.sqrt(10)))
    assert of(None, 40, (40, 41)) == ([1, 2], Gaussian(7 / 2))
    spent = account(
        dp_mean(clip=1.0, noise_multiplier=7.0, expected_clients=4, noise=tree(8, warm_up=3)),
        cyclic_sampler(40, 10, seed=0),
    )
    for count, most in ((1, 3), (2, 11), (5, 35)):
        assert spent.most_rounds(epsilon(spent.loss, count, 1e-6, ZERO) + 1e-9, 1e-6) == most


def test_trees_that_are_restarted_compose():
    four = epsilon(Gaussian(7 / math.sqrt(10)), 4, 1e-6, ZERO, "rdp")
    assert four == pytest.approx(4.657015, abs=1e-5)


@pytest.mark.parametrize(
    ("rho", "delta", "expected"), [(0.5, 1e-5, 4.728507), (0.1, 1e-6, 2.143044), (1, 1e-10, 10.034395)]
)
def test_gaussian_noise_is_within_what_concentrated_privacy_says(rho, delta, expected):
    accountant = dp_accounting.rdp.RdpAccountant().compose(dp_accounting.ZCDpEvent(rho))
    assert accountant.get_epsilon(delta) == pytest.approx(expected, abs=1e-6)
    assert epsilon(Gaussian(math.sqrt(1 / (2 * rho))), 1, delta, ADD) < expected


def test_laplace_noise_and_responses_cost_their_epsilon():
    assert epsilon(Laplace(1.0, 1.0), 1, 1e-9, ADD) == pytest.approx(1.0, abs=1e-3)
    assert epsilon(Laplace(1.0, 1.0), 1, 1e-9, "replace_one") == pytest.approx(2.0, abs=1e-3)
    sampled = math.log1p(0.1 * math.expm1(1.0))
    assert epsilon(Laplace(1.0, 0.1), 1, 1e-9, ADD) == pytest.approx(sampled, abs=1e-3)
    assert epsilon(Response(math.log(3)), 1, 1e-9, "replace_one") == pytest.approx(math.log(3), abs=1e-3)
    two = distributions.from_randomized_response(0.5, 2)
    assert two.get_epsilon_for_delta(1e-9) == pytest.approx(math.log(3), abs=1e-3)
    # Losses of several kinds are equal as tuples, and must not be taken for each other.
    assert epsilon(Poisson(1.0, 0.1), 1, 1e-9, ADD) != epsilon(Laplace(1.0, 0.1), 1, 1e-9, ADD)


@pytest.mark.parametrize(("sigma", "sensitivity", "expected"), [(1, 1, 4.430238), (4, 1, 0.927404), (10, 10, 4.377701)])
def test_discrete_gaussians_cost_what_continuous_ones_do(sigma, sensitivity, expected):
    found = distributions.from_discrete_gaussian_mechanism(sigma, sensitivity=sensitivity)
    assert found.get_epsilon_for_delta(1e-5) == pytest.approx(expected, abs=1e-3)


def test_truncated_poisson_cohorts_cost_a_little_more():
    sampler = poisson_sampler(3400, probability=100 / 3400, max_cohort_size=130, seed=0)
    spent = account(dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=100), sampler, relation=ZERO)
    assert spent.loss == Truncated(1.0, 100 / 3400, 3400, 130)
    found = spent.epsilon(100, 1e-5)
    assert found == pytest.approx(3.908680, abs=1e-3)
    assert found > epsilon(Poisson(1.0, 100 / 3400), 100, 1e-5, ZERO)
    assert max(len(sampler(round)) for round in range(2000)) == 130


def test_bands_are_amplified_by_groups_that_take_turns():
    """Choquette-Choo et al. (arXiv 2306.08153, theorem 4): the turns of a group are Poisson samples of Gaussians."""
    noise = matrix(Strategy((0.8, 0.6)), 40, min_separation=4)
    private = dp_mean(clip=1.0, noise_multiplier=3.0, expected_clients=10, noise=noise)
    turns = cyclic_poisson_sampler(400, probability=0.1, num_groups=4, seed=0)
    spent = account(private, turns)
    # Columns have norm 1 and ten participations are apart: noise 3 sqrt(10) on each.
    assert spent.loss == pytest.approx(Poisson(3 * math.sqrt(10), 0.1))
    assert spent.epsilon(40, 1e-6) == pytest.approx(epsilon(Poisson(3 * math.sqrt(10), 0.1), 10, 1e-6, ADD))
    whole = account(private, cyclic_sampler(400, 100, seed=0)).epsilon(40, 1e-6)
    assert spent.epsilon(40, 1e-6) < whole / 3
    alone = account(dp_mean(clip=1.0, noise_multiplier=3.0, expected_clients=10), turns)
    assert alone.loss == Poisson(3.0, 0.1)
    assert alone.epsilon(8, 1e-6) == epsilon(Poisson(3.0, 0.1), 2, 1e-6, ADD)
    everybody = matrix(Strategy((1.0,), (0.3,), (0.9,)), 40, min_separation=4)  # buffers have no bands
    assert account(private.event._replace(noise=everybody.kind), turns).loss == Gaussian(3.0)


def test_calibrated_noise_is_published():
    assert calibrate(
        num_clients=10, delta=1e-6, epsilon=1.0, cohort_size=1, rounds=512
    ).noise_multiplier == pytest.approx(9.661830, rel=3e-4)


@pytest.mark.parametrize(
    ("probability", "rounds", "expected"),
    [(1e-3, 1500, 0.61615), (1e-3, 3000, 0.63288), (5e-3, 2000, 0.86399), (5e-3, 5000, 1.05492), (5e-3, 1000, 0.80059)],
)
def test_calibrated_noise_of_pfl_research(probability, rounds, expected):
    """Granqvist et al., "pfl-research" (arXiv 2404.06430): epsilon 2 at delta 1e-6."""
    assert epsilon(Poisson(expected, probability), rounds, 1e-6, ADD) == pytest.approx(2.0, abs=2e-3)


def test_the_smallest_cohort_of_the_tutorial():
    """TFF's tutorial: noise of a hundredth of a clip for each expected client, epsilon at most 2."""
    tight, renyi = (
        {n: epsilon(Poisson(0.01 * n, n / 3383), 100, 1e-5, ADD, which) for n in ns}
        for which, ns in (("pld", (103, 104)), ("rdp", (119, 120)))
    )
    assert tight[104] == pytest.approx(1.9846, abs=1e-3)
    assert tight[103] > 2
    assert renyi[120] == pytest.approx(1.9861, abs=1e-4)
    assert renyi[119] == pytest.approx(2.0043, abs=1e-4)


def test_rdp_says_what_it_does_not_know():
    with pytest.raises(ValueError, match='Take "pld"'):
        epsilon(Laplace(1.0, 1.0), 1, 1e-6, ADD, "rdp")
    with pytest.raises(ValueError, match="Laplace noise is accounted for on schedules"):
        account(
            dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=9, noise=laplace()), uniform_sampler(9, 3, seed=0)
        )


def test_laplace_noise_clips_the_sum_of_magnitudes():
    import fedjx

    private = dp_mean(clip=1.0, noise_multiplier=2.0, expected_clients=4, noise=laplace())
    value = np.zeros((2, 20_000), np.float32)
    value[0, :4] = 1.0  # of L1 norm 4
    value = fedjx.Clients.of(value)
    _, result, measured = private.next(jax.random.key(0), (), value, fedjx.Clients.of(np.ones(2)))
    assert measured["not_private"]["clipped_fraction"] == 0.5
    np.testing.assert_allclose(measured["noise_stddev"], math.sqrt(2) * 2 / 4, rtol=1e-6)
    assert np.std(result) == pytest.approx(math.sqrt(2) * 2 / 4, rel=0.03)
    assert np.mean(np.abs(result)) == pytest.approx(2 / 4, rel=0.03)  # of a normal distribution it is .8 deviations
    exact = dp_mean(clip=1.0, noise_multiplier=0, expected_clients=4, noise=laplace())
    _, result, _ = exact.next(jax.random.key(0), (), value, fedjx.Clients.of(np.ones(2)))
    np.testing.assert_allclose(result[:5], [1 / 16] * 4 + [0])
