"""Local reports of numbers: their likelihood ratios, means and variances, against what the papers say; their prices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx.privacy import (
    account,
    category_response,
    gaussian_response,
    laplace_response,
    local_mean,
    number_response,
    piecewise_response,
    sampled_response,
    shuffled_epsilon,
    two_point_response,
    unary_response,
)
from fedjx.privacy.loss import Gaussian, Response, epsilon

NUMBER = 400_000
OF_NUMBERS = {"laplace": laplace_response, "two_points": two_point_response, "piecewise": piecewise_response}


def reports(randomizer, value, number=NUMBER):
    """Returns what the server makes of so many messages of one value."""
    keys = jax.random.split(jax.random.key(3), number)
    estimate = jax.jit(jax.vmap(lambda key: randomizer.decode(randomizer.report(key, value))))
    return np.asarray(estimate(keys))


def largest_ratio(one, other, least=400):
    """Of how often reports fall into the same cells, of two values, where they do so often."""
    _, cells = np.unique(np.concatenate([one, other]), return_inverse=True)
    counts = [np.bincount(part, minlength=cells.max() + 1) for part in np.split(cells, 2)]
    often = np.minimum(*counts) >= least
    ratios = counts[0][often] / counts[1][often]
    return max(ratios.max(), 1 / ratios.min())


@pytest.mark.parametrize("which", OF_NUMBERS)
def test_reports_of_numbers_are_unbiased_as_private_and_as_variable_as_said(which):
    randomizer = OF_NUMBERS[which](epsilon=1.0, bound=2.0)
    found = {x: reports(randomizer, jnp.float32(x)) for x in (-2.0, 0.0, 0.7, 2.0)}
    for x, of in found.items():
        assert of.mean() == pytest.approx(x, abs=4 * math.sqrt(randomizer.variance / NUMBER))
    variances = {x: of.var() for x, of in found.items()}
    assert max(variances.values()) == pytest.approx(randomizer.variance, rel=0.02)
    # Cells of equal width, away from whose edges the densities of both are constant or fall alike.
    cells = [np.floor(found[x] / (0.25 if which == "laplace" else 0.1)).astype(int) for x in (-2.0, 2.0)]
    assert math.exp(0.93) < largest_ratio(*cells) < math.exp(1.12)


@pytest.mark.parametrize(("epsilon", "size", "kind"), [(0.5, 3, two_point_response), (3.0, 3, piecewise_response)])
def test_one_of_several_numbers_is_unbiased_as_private_and_at_most_as_variable_as_said(epsilon, size, kind):
    bounds = np.float32([1, 2, 5])
    randomizer = sampled_response(epsilon=epsilon, bounds=bounds)
    one = kind(epsilon=epsilon, bound=1.0).variance
    assert randomizer.variance == pytest.approx(
        25 * (size * one if kind is two_point_response else size * (one + 1) - 1)
    )
    found = {x: reports(randomizer, jnp.asarray(x * bounds), 200_000) / bounds for x in (-1.0, 0.0, 0.6, 1.0)}
    error = 4.5 * math.sqrt(randomizer.variance / 25 / 200_000)
    for x, of in found.items():
        np.testing.assert_allclose(of.mean(axis=0), x, atol=error)
        assert (np.count_nonzero(of, axis=1) == 1).all()
    variances = np.stack([of.var(axis=0) for of in found.values()])
    np.testing.assert_allclose(variances.max(axis=0), randomizer.variance / 25, rtol=0.03)
    with pytest.raises(AssertionError):  # of another coordinate's bound
        np.testing.assert_allclose((found[1.0] * bounds / bounds[::-1]).mean(axis=0), 1, atol=error)
    if kind is two_point_response:
        cells = [np.round(found[x], 2) @ [1, 10, 100] for x in (-1.0, 1.0)]
        assert math.exp(0.97 * epsilon) < largest_ratio(*cells) < math.exp(1.03 * epsilon)


def test_the_least_variance_is_chosen():
    for least, kind in ((0.5, two_point_response), (1.25, two_point_response), (1.35, piecewise_response)):
        made, of_kind = (make(epsilon=least, bound=3.0) for make in (number_response, kind))
        assert made.variance == of_kind.variance
        assert sampled_response(epsilon=least, bounds=[3.0]).variance == pytest.approx(of_kind.variance)
    # The square of two points is always the same, which counts where most clients say nothing of a number.
    many = sampled_response(epsilon=3.0, bounds=np.ones(10))
    assert many.variance == pytest.approx(10 * two_point_response(epsilon=3.0, bound=1.0).variance)
    for wrong in ([], 1.0, [[1.0]]):
        with pytest.raises(ValueError, match="bounds must be one number for each coordinate"):
            sampled_response(epsilon=1.0, bounds=wrong)
    with pytest.raises(ValueError, match="bounds must be positive"):
        sampled_response(epsilon=1.0, bounds=[1.0, 0.0])


def test_variances_are_published():
    """n times the variance of a mean of numbers up to 1."""
    for e, two_points, laplace in ((1, 4.682694, 8), (2, 1.724062, 2)):
        assert two_point_response(epsilon=e, bound=1.0).variance == pytest.approx(two_points, abs=1e-6)
        assert laplace_response(epsilon=e, bound=1.0).variance == pytest.approx(laplace)


def test_means_and_frequencies_are_of_those_who_report():
    ages, number = np.float32(np.linspace(-1, 0.5, 4000)), 4000
    weight = np.ones(number, np.float32)
    weight[3000:] = 0
    for randomizer, value, expected in (
        (piecewise_response(epsilon=4.0, bound=1.0), ages, ages[:3000].mean()),
        (unary_response(epsilon=4.0, num_categories=4), np.arange(number) // 1000, [1 / 3, 1 / 3, 1 / 3, 0]),
        (
            sampled_response(epsilon=4.0, bounds=[1.0, 4.0]),
            np.stack([ages, 4 * ages], axis=1),
            ages[:3000].mean() * np.float32([1, 4]),
        ),
    ):
        step = local_mean(randomizer).next
        _, result, measured = step(jax.random.key(0), (), fedjx.Clients.of(value), fedjx.Clients.of(weight))
        assert measured["num_clients"] == 3000
        np.testing.assert_allclose(result, expected, atol=4 * float(measured["noise_stddev"]) + 1e-3)


def test_local_reports_cost_the_same_however_clients_are_drawn():
    reports = local_mean(category_response(epsilon=1.0, num_categories=4))
    for sampler in (
        fedjx.data.uniform_sampler(1000, 10, seed=0),
        fedjx.data.poisson_sampler(9, probability=0.1, seed=0),
    ):
        spent = account(reports, sampler)
        assert spent.loss == Response(1.0)
        assert spent.epsilon(1, 1e-9) == pytest.approx(1.0, abs=1e-3)
        assert spent.epsilon(200, 1e-6) < 150
    cyclic = fedjx.data.cyclic_sampler(1000, 10, seed=0)
    assert account(reports, cyclic).epsilon(100, 1e-9) == pytest.approx(1.0, abs=1e-3)
    noisy = account(local_mean(gaussian_response(clip=1.0, noise_multiplier=4.0)), cyclic)
    assert noisy.epsilon(1, 1e-6) == epsilon(Gaussian(2.0), 1, 1e-6, "add_or_remove_one")  # a clip to a clip: two clips
    with pytest.raises(ValueError, match="as private for any two values"):
        account(reports, cyclic, relation="zero_out_one")


@pytest.mark.parametrize(
    ("of_each", "clients", "delta", "expected"),
    [
        (1, 10**4, 1e-6, 0.214026),
        (1, 10**6, 1e-8, 0.026775),
        (2, 10**5, 1e-6, 0.186189),
        (4, 10**6, 1e-8, 0.226368),
        (4, 100, 1e-6, 4),  # too few to hide among
    ],
)
def test_shuffled_reports_cost_what_is_published(of_each, clients, delta, expected):
    assert shuffled_epsilon(of_each, clients, delta) == pytest.approx(expected, abs=1e-6)


def test_shuffled_reports_are_accounted_for():
    reports, sampler = local_mean(two_point_response(epsilon=1.0, bound=1.0)), fedjx.data.uniform_sampler
    spent = account(reports, sampler(20_000, 10_000, seed=0), shuffled=True)
    assert spent.epsilon(1, 1e-6) == pytest.approx(shuffled_epsilon(1.0, 10_000, 5e-7), abs=2e-3)
    assert spent.epsilon(1, 1e-6) < spent.epsilon(10, 1e-6) < 10 * shuffled_epsilon(1.0, 10_000, 5e-8) + 1e-2
    few = account(reports, sampler(200, 10, seed=0), shuffled=True)
    assert few.epsilon(3, 1e-6) == account(reports, sampler(200, 10, seed=0)).epsilon(3, 1e-6)
    with pytest.raises(ValueError, match="hide among those of a known number of clients"):
        account(reports, fedjx.data.poisson_sampler(100, probability=0.5, seed=0), shuffled=True)


def test_epsilons_that_floats_cannot_draw_are_refused():
    for make in (*OF_NUMBERS.values(), number_response, sampled_response):
        own = {"bounds": [1.0]} if make is sampled_response else {"bound": 1.0}
        for wrong in (1e-20, 17.0, 800.0):
            with pytest.raises(ValueError, match="Chances are drawn in float32"):
                make(epsilon=wrong, **own)


@pytest.mark.parametrize(
    ("randomizer", "value", "bits"),
    [
        (two_point_response(epsilon=1.0, bound=1.0), np.float32(0), 1),
        (piecewise_response(epsilon=1.0, bound=1.0), np.float32(0), 32),
        (sampled_response(epsilon=1.0, bounds=np.ones(256)), np.zeros(256, np.float32), 8 + 1),
        (sampled_response(epsilon=4.0, bounds=np.ones(2)), np.zeros(2, np.float32), 8 + 32),
    ],
)
def test_a_client_sends_its_message_and_whether_it_reports(randomizer, value, bits):
    value, weight = fedjx.Clients.of(np.stack([value] * 2)), fedjx.Clients.of(np.ones(2))
    sent = local_mean(randomizer).next.communication(jax.random.key(0), (), value, weight)
    assert [message.bits for message in sent if message.direction == "up"] == [bits + 1]


@pytest.mark.parametrize(
    ("randomizer", "value", "sentence"),
    [
        (
            laplace_response(epsilon=1.0, bound=1.0),
            np.ones((2, 3), np.float32),
            r"one floating-point number; got float32\[3\]",
        ),
        (category_response(epsilon=1.0, num_categories=3), np.ones(2, np.float32), r"one integer, .* got float32\[\]"),
        (
            sampled_response(epsilon=1.0, bounds=[1.0, 2.0]),
            np.ones((2, 3), np.float32),
            "2 floating-point numbers; got",
        ),
        (gaussian_response(clip=1.0, noise_multiplier=1.0), np.ones(2, np.int32), "must be floating-point; got int32"),
    ],
)
def test_values_of_another_kind_are_refused(randomizer, value, sentence):
    with pytest.raises(TypeError, match=sentence):
        local_mean(randomizer).next(jax.random.key(0), (), fedjx.Clients.of(value), fedjx.Clients.of(np.ones(2)))
