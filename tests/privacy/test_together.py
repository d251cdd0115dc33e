"""What composes in one budget: costs that theorems state, and losses without a distribution, against enumerations."""

import itertools
import json
import math

import pytest

from fedjx.data import check_description, cyclic_sampler, fixed_sampler, poisson_sampler, uniform_sampler
from fedjx.privacy import (
    Event,
    Stated,
    account,
    budget,
    distributed_dp_mean,
    local_mean,
    shuffled_epsilon,
    together,
    two_point_response,
)
from fedjx.privacy.loss import (
    FixedSize,
    Gaussian,
    Response,
    Shuffled,
    epsilon,
    epsilon_so_far,
    epsilon_together,
)

ADD, REPLACE, ZERO = "add_or_remove_one", "replace_one", "zero_out_one"
EVERYBODY = fixed_sampler(1000, [range(1000)])
SHUFFLED, FIXED = Shuffled(1.0, 10_000), FixedSize(4.0, 1000, 10)
SHARED = distributed_dp_mean(
    clip=1.0, noise_multiplier=4.0, expected_clients=1000, num_elements=8, min_clients=900, max_clients=1000
)
INTEGERS = account(SHARED, EVERYBODY).loss


def enumerated(pairs, delta):
    """Returns epsilon of mechanisms that fail with a delta and else are randomised responses, over all their answers.

    These are the least private ones of their epsilons and deltas (Kairouz, Oh & Viswanath, arXiv 1311.0776).
    """
    safe = math.prod(1 - d for _, d in pairs)
    answers = []
    for signs in itertools.product([1, -1], repeat=len(pairs)):
        likelihood = math.prod(1 / (1 + math.exp(-s * e)) for s, (e, _) in zip(signs, pairs, strict=True))
        answers.append((likelihood, sum(s * e for s, (e, _) in zip(signs, pairs, strict=True))))

    def of(e):
        return 1 - safe + safe * sum(p * max(0.0, -math.expm1(e - loss)) for p, loss in answers)

    low, high = 0.0, sum(e for e, _ in pairs)
    if 1 - safe > delta:
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if of(middle) <= delta else (middle, high)
    return high


@pytest.mark.parametrize(
    ("pairs", "delta"),
    [
        ([(0.3, 0.0), (0.7, 0.0)], 1e-9),
        ([(0.3, 0.0), (0.7, 0.0)], 0.05),
        ([(1.0, 1e-6), (0.5, 2e-6), (0.2, 0.0)], 1e-5),
        ([(0.1, 1e-7)] * 12, 1e-2),
        ([(1.0, 1e-6), (0.5, 2e-6)], 2.9e-6),
        ([(1.0, 4e-6)], 3e-6),
    ],
)
def test_stated_costs_compose_as_enumerated(pairs, delta):
    events = [(account(Event(0.0, Stated(*pair)), EVERYBODY), 1) for pair in pairs]
    found = together(events, delta)
    assert found == pytest.approx(enumerated(pairs, delta), abs=2e-4 * len(pairs))
    assert found == math.inf or found <= sum(e for e, _ in pairs) + 1e-4 * len(pairs)
    if len(set(pairs)) == 1:
        assert found == epsilon(Stated(*pairs[0]), len(pairs), delta, REPLACE)


def test_stated_costs_are_the_same_for_all_samplers_and_relations():
    event = Event(0.0, Stated(0.5, 1e-7))
    samplers = uniform_sampler(1000, 10, seed=0), poisson_sampler(1000, probability=0.01, seed=0), EVERYBODY
    made = [account(event, sampler, relation=which) for sampler in samplers for which in (None, ADD, REPLACE, ZERO)]
    assert {one.epsilon(7, 1e-6) for one in made} == {epsilon(Stated(0.5, 1e-7), 7, 1e-6, ADD)}
    assert [one.relation for one in made[:4]] == [ADD, ADD, REPLACE, ZERO]
    turns = account(event, cyclic_sampler(1000, 10, seed=0))
    assert turns.epsilon(100, 1e-6) == account(event, EVERYBODY).epsilon(1, 1e-6) == pytest.approx(0.5, abs=1e-3)
    assert not event.may_be_split
    for wrong, sentence in ((Stated(-1.0), "epsilon must be"), (Stated(1.0, 1.0), "delta must be")):
        with pytest.raises(ValueError, match=sentence):
            account(Event(0.0, wrong), EVERYBODY)
    with pytest.raises(ValueError, match="RDP is not known"):
        made[0].epsilon(1, 1e-6, accountant="rdp")
    with pytest.raises(ValueError, match="local reports of pure epsilon hide"):
        account(event, uniform_sampler(1000, 1000, seed=0), shuffled=True)


def test_budgets_of_stated_costs_end_with_epsilon_or_with_delta():
    spent = account(Event(0.0, Stated(0.5, 1e-7)), EVERYBODY)
    assert spent.epsilon(1, 0.9e-7) == spent.epsilon(11, 1e-6) == math.inf
    assert spent.most_rounds(100.0, 1e-6) == 10  # deltas add up
    assert spent.most_rounds(1.51, 1e-6) == 3  # and so do epsilons, where delta is small
    limit = budget(spent, epsilon=1.51, delta=1e-6)
    assert limit.report(2)["rounds_left"] == 1
    assert limit.report(2)["epsilon"] == pytest.approx(spent.epsilon(2, 1e-6), rel=1e-6)
    assert spent.epsilon(40, 1e-3) == pytest.approx(epsilon_so_far(spent.loss, 40, 1e-3, ADD), rel=1e-6)
    check_description(json.loads(json.dumps(limit.description)), limit, what="budget")
    other = budget(account(Event(0.0, Stated(0.5, 2e-7)), EVERYBODY), epsilon=1.51, delta=1e-6)
    with pytest.raises(ValueError, match="a resumed run needs the budget it began with"):
        check_description(limit.description, other, what="budget")
    with pytest.raises(ValueError, match="where the first one costs inf"):
        budget(spent, epsilon=10.0, delta=1e-8)


@pytest.mark.parametrize("loss", [SHUFFLED, FIXED, INTEGERS], ids=lambda loss: type(loss).__name__)
def test_losses_without_a_distribution_compose_by_a_share_of_delta(loss):
    delta, noise = 1e-5, Gaussian(4.0)

    def of(*losses, delta=delta):
        return epsilon_together(losses, delta, REPLACE)

    alone, other = epsilon(loss, 5, delta, REPLACE), epsilon(noise, 2, delta, REPLACE)
    both = of((loss, 5), (noise, 2))
    share = epsilon(loss, 5, delta / 2, REPLACE)
    assert max(alone, other) < both < share + epsilon(noise, 2, delta / 2, REPLACE) + 1e-3
    # By hand: the least private mechanism of the share's epsilon beside a mechanism whose loss is known.
    beside = enumerated([(share, delta / 2), (0.5, 0.0)], delta)
    assert of((loss, 5), (Response(0.5), 1)) == pytest.approx(beside, abs=1e-3)
    assert of((loss, 6), (noise, 2)) > both < of((loss, 5), (noise, 3))
    assert both < of((loss, 5), (noise, 2), delta=delta / 10)
    assert of((loss, 5)) == of((loss, 2), (noise, 0), (loss, 3)) == alone
    # What the share leaves is all that the others have.
    assert of((loss, 5), (Stated(0.1, 0.49 * delta), 1)) < math.inf
    assert of((loss, 5), (Stated(0.1, 0.51 * delta), 1)) == math.inf
    assert of((loss, 5), (Gaussian(0.0), 1)) == math.inf


def test_several_losses_without_a_distribution_share_half_of_delta():
    parts = [epsilon(loss, 2, 1e-5 / 4, REPLACE) for loss in (SHUFFLED, FIXED)]
    found = epsilon_together([(SHUFFLED, 2), (FIXED, 2)], 1e-5, REPLACE)
    assert found == pytest.approx(enumerated([(part, 1e-5 / 4) for part in parts], 1e-5), abs=1e-3)
    assert epsilon_together([(SHUFFLED, 2), (FixedSize(0.01, 1000, 900), 9)], 1e-5, REPLACE) == math.inf
    # Of equal numbers and of another kind is another loss.
    assert epsilon_together([(Response(1.0), 1), (Gaussian(1.0), 1)], 1e-5, REPLACE) > epsilon(
        Gaussian(1.0), 1, 1e-5, REPLACE
    )


def test_questions_of_all_kinds_share_a_budget():
    """The same clients are asked through a shuffler, a fixed-size cohort, a Gaussian sum and a pure mechanism."""
    reports = local_mean(two_point_response(epsilon=1.0, bound=1.0))
    crowd = uniform_sampler(20_000, 10_000, seed=0)
    asked = [
        (account(reports, crowd, shuffled=True), 1),
        (account(Event(8.0), crowd), 4),
        (account(Event(8.0), fixed_sampler(9, [range(9)]), relation=REPLACE), 1),
        (account(Event(0.0, Stated(0.2)), crowd, relation=REPLACE), 1),
    ]
    assert asked[0][0].epsilon(1, 1e-6) == pytest.approx(shuffled_epsilon(1.0, 10_000, 5e-7), abs=2e-3)
    alone = [one.epsilon(rounds, 1e-6 / 8) for one, rounds in asked]
    costs = [together(asked[:number], 1e-6) for number in range(5)]
    assert costs == sorted(costs)
    assert costs[0] == 0
    assert max(alone) < costs[4] < sum(alone)
