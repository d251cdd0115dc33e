"""A budget that stops before the round that would overspend, and is the same wherever a run begins."""

import json

import jax
import numpy as np
import optax
import pytest

import fedjx
from fedjx.data import check_description
from fedjx.models import linear
from fedjx.privacy import BudgetSpent, account, budget, calibrate, dp_mean, noise_within, together, within

DELTA = 1e-5


def account_of(z=2.0, clients=20, **others):
    private = dp_mean(clip=1.0, noise_multiplier=z, expected_clients=4, **others)
    return private, account(private, fedjx.data.poisson_sampler(clients, probability=4 / clients, seed=0))


def test_a_run_stops_before_the_round_that_would_overspend():
    private, spent = account_of()
    limit = budget(spent, epsilon=spent.epsilon(3, DELTA) + 1e-6, delta=DELTA)
    assert limit.max_rounds == 3
    assert spent.epsilon(4, DELTA) > limit.epsilon
    train, _ = fedjx.data.digits(num_clients=20)
    algorithm = fedjx.fed_avg(linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.1), aggregator=private)
    state, step = algorithm.init(jax.random.key(0)), within(limit, algorithm.next.streamed())
    sample = fedjx.data.poisson_sampler(20, probability=0.2, seed=0)
    paid = []
    for round in limit.rounds():
        state, metrics = step(state, fedjx.data.Cohort(train, sample(round), batch_size=20, lanes=2))
        paid.append(metrics["privacy"])
    assert [p["rounds_left"] for p in paid] == [2, 1, 0]
    np.testing.assert_allclose([p["epsilon"] for p in paid], [spent.epsilon(n, DELTA) for n in (1, 2, 3)], rtol=1e-6)
    assert paid[-1]["epsilon"] <= limit.epsilon
    assert {"clip", "noise_stddev", "not_private"} <= metrics["aggregation"].keys()
    assert {"loss", "num_clients"} <= set(paid[-1]["not_covered"])
    with pytest.raises(BudgetSpent, match=r"pays 3 rounds .* got round 3, counted from 0"):
        step(state, fedjx.data.Cohort(train, sample(3), batch_size=20, lanes=2))
    assert int(state.round) == 3


def test_what_is_spent_so_far_has_the_same_bits_wherever_a_run_begins():
    from fedjx.privacy import loss

    _, spent = account_of(z=16.0)
    whole = [spent.epsilon_so_far(n, DELTA) for n in range(1, 20)]
    for first in (5, 16, 18):
        loss._composed.cache_clear()
        assert [spent.epsilon_so_far(n, DELTA) for n in range(first, 20)] == whole[first - 1 :]
    np.testing.assert_allclose(whole, [spent.epsilon(n, DELTA) for n in range(1, 20)], rtol=1e-7)


def test_a_resumed_run_is_the_run_that_began():
    _, spent = account_of(z=16.0)
    limit = budget(spent, epsilon=0.2, delta=DELTA)
    saved = json.loads(json.dumps(limit.description))
    check_description(saved, limit, what="budget")
    for other in (
        account_of(z=16.1)[1],
        account_of(z=16.0, clients=30)[1],
        account_of(z=1600.0, noise=fedjx.privacy.tree(8))[1],
    ):
        with pytest.raises(ValueError, match="a resumed run needs the budget it began with"):
            check_description(saved, budget(other, epsilon=0.2, delta=DELTA), what="budget")


def test_other_noise_of_the_same_price_is_another_budget():
    from fedjx.privacy import Strategy, category_response, local_mean, matrix, tree

    def described(private, sampler=fedjx.data.cyclic_sampler(20, 2, seed=0), **others):
        return budget(account(private, sampler, **others), epsilon=5.0, delta=DELTA).description

    noises = [matrix(Strategy((1.0, x)), 8, min_separation=8) for x in (0.5, 0.9)]
    noises += [tree(8, efficient=efficient) for efficient in (False, True)]
    some = {"clip": 1.0, "noise_multiplier": 16.0, "expected_clients": 4}
    found = [described(dp_mean(**some, noise=noise)) for noise in noises]
    reports, everybody = (
        local_mean(category_response(epsilon=0.5, num_categories=3)),
        fedjx.data.uniform_sampler(2000, 2000, seed=0),
    )
    found += [described(reports, everybody, shuffled=shuffled) for shuffled in (False, True)]
    assert all(a != b for k, a in enumerate(found) for b in found[:k])


def test_a_client_twice_in_a_cohort_is_refused():
    private, spent = account_of(z=16.0)
    train, _ = fedjx.data.digits(num_clients=4)
    algorithm = fedjx.fed_avg(linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.1), aggregator=private)
    step = within(budget(spent, epsilon=0.1, delta=DELTA), algorithm.next)
    with pytest.raises(ValueError, match="may be in a private cohort once"):
        step(algorithm.init(jax.random.key(0)), fedjx.data.Cohort(train, [1, 1, 2], batch_size=20))
    scan = within(step.budget, algorithm.next.scanned())
    cohorts = [fedjx.data.Cohort(train, ids, batch_size=20) for ids in ([1, 2], [3, 3])]
    with pytest.raises(ValueError, match="may be in a private cohort once"):
        scan(algorithm.init(jax.random.key(0)), iter(cohorts))


def test_a_report_says_whose_noise_is_simulated():
    few = dp_mean(clip=1.0, noise_multiplier=16.0, expected_clients=4, noise_clients=100)
    sampler = fedjx.data.poisson_sampler(20, probability=0.2, seed=0)
    spent = account(few, sampler, noise_population=10_000)
    assert budget(spent, epsilon=0.1, delta=DELTA).report(1)["noise_clients"] == 100
    assert "noise_clients" not in budget(account_of(z=16.0)[1], epsilon=0.1, delta=DELTA).report(1)


def test_what_is_done_with_the_same_clients_composes():
    (_, train), (_, test) = account_of(2.0), account_of(4.0)
    alone = train.epsilon(10, DELTA), test.epsilon(3, DELTA)
    assert max(alone) < together([(train, 10), (test, 3)], DELTA) < sum(alone)
    assert together([(train, 7), (train, 3)], DELTA) == pytest.approx(train.epsilon(10, DELTA), abs=2e-4)
    assert together([], DELTA) == together([(train, 0)], DELTA) == 0
    assert together([(account_of(0.0)[1], 1)], DELTA) == np.inf
    other = account(
        dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=4), fedjx.data.uniform_sampler(9, 4, seed=0)
    )
    with pytest.raises(ValueError, match="Make all accounts with one"):
        together([(train, 1), (other, 1)], DELTA)
    assert together([(other, 1)], DELTA) == other.epsilon(1, DELTA)


def test_calibration_is_remembered(monkeypatch):
    from fedjx.privacy import loss

    asked = {"num_clients": 500, "delta": DELTA, "epsilon": 2.0, "rounds": 3, "sampling": "all"}
    found = calibrate(**asked)
    monkeypatch.setattr(loss, "_imported", lambda: pytest.fail("computed again"))
    assert calibrate(**asked) == found


def test_a_budget_that_pays_no_round_is_refused():
    with pytest.raises(ValueError, match="where the first one costs inf"):
        budget(account_of(z=0.0)[1], epsilon=10.0, delta=DELTA)


def test_a_scan_is_paid_whole_or_not_at_all():
    """With other ways to run, the cost of a round is that of the first that cannot be paid."""
    private, spent = account_of(z=16.0)
    limit = budget(spent, epsilon=spent.epsilon(3, DELTA) + 1e-6, delta=DELTA)
    train, _ = fedjx.data.digits(num_clients=20)
    algorithm = fedjx.fed_avg(linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.1), aggregator=private)
    cohorts, start = [fedjx.data.Cohort(train, [1, 2], batch_size=20)] * 4, algorithm.init(jax.random.key(0))
    rounds = within(limit, algorithm.next.scanned())
    with pytest.raises(BudgetSpent, match="got round 3"):
        rounds(start, iter(cohorts))
    state, metrics = rounds(start, iter(cohorts[:3]))
    assert metrics["privacy"]["rounds_left"] == 0
    assert "aggregation.not_private" in metrics["privacy"]["not_covered"]
    assert limit.report(state.round) == limit.report(3)
    assert within(limit, algorithm.next.streamed()).ahead(cohorts)  # what else it does, it does


def test_a_budget_is_of_the_algorithms_own_aggregator():
    limit = budget(account_of(z=16.0)[1], epsilon=0.1, delta=DELTA)
    model, sgd = linear(10, input_shape=(8, 8, 1)), optax.sgd(0.1)
    for other, got in ((None, "no noise"), (account_of(z=15.0)[0], r"noise_multiplier=15\.0")):
        algorithm = fedjx.fed_avg(model, client_optimizer=sgd, aggregator=other)
        ways = algorithm.next, algorithm.next.streamed(), algorithm.next.in_graph(), algorithm.next.scanned()
        for step in ways:
            with pytest.raises(ValueError, match=f"whose aggregator has .*{got}.*Pass the aggregator"):
                within(limit, step)
    with pytest.raises(TypeError, match=r"Write within\(limit, algorithm.next\)"):
        within(algorithm.next, limit)


def test_noise_is_found_for_any_aggregator_and_sampler():
    sampler = fedjx.data.cyclic_sampler(200, 20, seed=0)

    def private(z):
        return dp_mean(clip=1.0, noise_multiplier=z, expected_clients=20, noise=fedjx.privacy.tree(40))

    z = noise_within(private, sampler, epsilon=2.0, rounds=40, delta=DELTA)
    assert 1.999 < account(private(z), sampler).epsilon(40, DELTA) <= 2
    with pytest.raises(ValueError, match="some noise should cost at most"):
        noise_within(lambda z: private(1.0), sampler, epsilon=2.0, rounds=40, delta=DELTA)
    with pytest.raises(ValueError, match="of all clients the cohort is all"):
        calibrate(num_clients=9, delta=DELTA, epsilon=1.0, cohort_size=3, rounds=1, sampling="all")
    with pytest.raises(ValueError, match="accountant must be"):
        account(private(z), sampler).epsilon(1, DELTA, accountant="moments")
