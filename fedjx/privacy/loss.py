"""Epsilon of a mechanism, repeated: the adapter of `dp-accounting`, and the only file that knows it.

The distribution of the privacy loss (PLD; Doroshenko et al., arXiv 2207.04380) is tight. Rényi divergences (RDP;
Mironov, arXiv 1702.07476) are a bound, of which older papers report, and all that there is for cohorts of a fixed size
(Wang et al., arXiv 1808.00087) and for integer noise. ``pip install "fedjx[privacy]"`` brings it.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

from fedjx.privacy.events import Stated
from fedjx.privacy.integer_loss import ORDERS, IntegerSum, renyi

Relation = Literal["add_or_remove_one", "replace_one", "zero_out_one"]
RELATIONS: tuple[Relation, ...] = ("add_or_remove_one", "replace_one", "zero_out_one")
Accountant = Literal["pld", "rdp"]
# Every so many repetitions the composition is computed anew: whoever resumes there or between has the same bits.
_ANCHOR = 16
_DECIDING = 1e-3  # of delta: for rounds in which one client decides whether anything is shown
_STEP = 1e-4  # of the losses that a PLD tells apart
_MOST = 700.0  # of an epsilon that is told from infinity: its exponential is a float


class Gaussian(NamedTuple):
    """A sum with Gaussian noise, in which each client takes part.

    Attributes:
      noise_multiplier: Standard deviation, in the most that adding, removing or zeroing a client changes the sum.
    """

    noise_multiplier: float


class Poisson(NamedTuple):
    """A sum with Gaussian noise, in which each client takes part with a probability, by itself.

    Attributes:
      noise_multiplier: As for `Gaussian`.
      probability: Of the likeliest client.
    """

    noise_multiplier: float
    probability: float


class Truncated(NamedTuple):
    """The same, but of too many clients only so many take part.

    Attributes:
      noise_multiplier: As for `Gaussian`.
      probability: Of each client.
      num_clients: Of the population.
      max_cohort_size: The most that take part.
    """

    noise_multiplier: float
    probability: float
    num_clients: int
    max_cohort_size: int


class Laplace(NamedTuple):
    """A sum with Laplace noise, in which each client takes part with a probability, by itself.

    Attributes:
      noise_multiplier: Scale of the noise, in the most that one client changes the sum, in the L1 norm.
      probability: Of the likeliest client.
    """

    noise_multiplier: float
    probability: float


class FixedSize(NamedTuple):
    """A sum with Gaussian noise over so many of the clients, drawn without replacement.

    Attributes:
      noise_multiplier: As for `Gaussian`.
      num_clients: Of the population.
      cohort_size: How many are drawn.
    """

    noise_multiplier: float
    num_clients: int
    cohort_size: int


class Response(NamedTuple):
    """A report that is private by itself, whoever sees it.

    Attributes:
      epsilon: No answer is more than ``exp(epsilon)`` times as likely for one value as for another.
    """

    epsilon: float


class Shuffled(NamedTuple):
    """Such reports of many clients, of which nobody sees whose is whose.

    Attributes:
      epsilon: Of each.
      num_clients: How many there are.
    """

    epsilon: float
    num_clients: int


_Distributed = Poisson | Truncated | Laplace | Response | Stated  # of which a PLD is made
Loss = Gaussian | _Distributed | FixedSize | Shuffled | IntegerSum


# By type too: losses are tuples, and (1.0, 0.01) of one kind equals that of another.
@functools.lru_cache(maxsize=1024, typed=True)
def epsilon(loss: Loss, count: int, delta: float, relation: Relation, accountant: Accountant = "pld") -> float:
    """Returns epsilon at a delta, after so many independent repetitions: 0 of none, infinity without noise.

    Raises:
      ValueError: If the accountant knows nothing of such a loss.

    >>> two = [epsilon(Poisson(1.2, 120 / 3383), 100, 1e-5, "add_or_remove_one", which) for which in ("pld", "rdp")]
    >>> [round(x, 4) for x in two]
    [1.7075, 1.9861]
    """
    if count == 0 or getattr(loss, "noise_multiplier", 1) == 0:
        return math.inf if count else 0.0
    if isinstance(loss, IntegerSum):
        return _of_integers(loss, count, delta)
    if isinstance(loss, FixedSize) or accountant == "rdp":
        return _renyi(loss, count, delta, relation)
    if isinstance(loss, Gaussian):
        return float(_imported().get_epsilon_gaussian(_of_relation(loss, relation) / math.sqrt(count), delta))
    if isinstance(loss, Shuffled):
        return min(_shuffled(loss, count, delta), epsilon(Response(loss.epsilon), count, delta, relation))
    found = float(_single(loss, relation).self_compose(count).get_epsilon_for_delta(delta))
    return min(found, count * pure_epsilon(loss, relation))  # which a PLD rounds up


def pure_epsilon(loss: Loss, relation: Relation) -> float:
    """Returns what a loss costs without a delta; infinity of those that need one.

    >>> pure_epsilon(Laplace(2.0, 1.0), "add_or_remove_one"), pure_epsilon(Gaussian(2.0), "add_or_remove_one")
    (0.5, inf)
    """
    if isinstance(loss, Laplace):
        of_all = 1 / _of_relation(loss, relation)
        return of_all if loss.probability == 1 else math.log1p(loss.probability * math.expm1(of_all))
    return loss.epsilon if isinstance(loss, Response) else math.inf


def epsilon_so_far(loss: Loss, count: int, delta: float, relation: Relation) -> float:
    """Returns `epsilon` to seven digits, cheaply for one count after the other, and the same wherever one begins."""
    if count == 0 or not isinstance(loss, _Distributed) or loss[0] == 0:
        return epsilon(loss, count, delta, relation)
    return float(_composed(loss, relation, count).get_epsilon_for_delta(delta))


def epsilon_together(losses: Sequence[tuple[Loss, int]], delta: float, relation: Relation) -> float:
    """Returns epsilon of several losses, each repeated, in any order.

    Distributions of losses compose tightly. A loss that has none enters as the least private mechanism with its epsilon
    at a share of delta: half of delta is divided among such losses, and the rest is for all together. This holds also
    where questions to several mechanisms take turns (Vadhan & Zhang, arXiv 2207.08335).

    >>> drawn, whole = (FixedSize(4.0, 1000, 10), 100), (Gaussian(4.0), 1)
    >>> [round(epsilon_together(x, 1e-5, "replace_one"), 2) for x in ([drawn], [whole], [drawn, whole])]
    [0.43, 1.99, 2.47]
    """
    # By type too, as above.
    counts = Counter[tuple[type, Loss]]()
    for loss, count in losses:
        counts[type(loss), loss] += count
    kept = [(loss, count) for (_, loss), count in counts.items() if count]
    if len(kept) < 2:
        return epsilon(*kept[0], delta, relation) if kept else 0.0
    unknown = sum(not isinstance(loss, Gaussian | _Distributed) for loss, _ in kept)
    found = [_repeated(loss, count, delta / (2 * max(unknown, 1)), relation) for loss, count in kept]
    finite = [one for one in found if one is not None]
    if len(finite) < len(found):
        return math.inf
    made = float(functools.reduce(lambda one, other: one.compose(other), finite).get_epsilon_for_delta(delta))
    return min(made, sum(count * pure_epsilon(loss, relation) for loss, count in kept))


def _repeated(loss: Loss, count: int, share: float, relation: Relation) -> Any | None:
    """Returns the PLD of a loss, repeated, or of what its epsilon at a share of delta allows, if finite."""
    if getattr(loss, "noise_multiplier", 1) == 0:
        return None
    loss = Poisson(loss.noise_multiplier, 1.0) if isinstance(loss, Gaussian) else loss
    if isinstance(loss, _Distributed):
        return _single(loss, relation).self_compose(count)
    alone = epsilon(loss, count, share, relation)
    return _of_parameters(alone, share) if alone < _MOST else None


def shuffled_epsilon(epsilon: float, num_clients: int, delta: float) -> float:
    """Returns what one round of local reports costs if nobody sees whose is whose, and one client changes its value.

    Feldman, McMillan & Talwar, "Hiding Among the Clones" (arXiv 2012.12803, theorem 3.1); of too few clients, for
    which it says nothing, what a report costs.

    Args:
      epsilon: Of each client's report.
      num_clients: How many reports are shuffled.
      delta: In (0, 1).

    >>> round(shuffled_epsilon(1.0, 10_000, 1e-6), 6)
    0.214026
    """
    if epsilon > math.log(num_clients / (16 * math.log(2 / delta))):
        return epsilon
    grown = math.exp(epsilon)
    spread = 8 * math.sqrt(grown * math.log(4 / delta) / num_clients) + 8 * grown / num_clients
    return min(epsilon, math.log1p((grown - 1) / (grown + 1) * spread))


def of_round(noise_multiplier: float, relation: Relation | None, sampler: Mapping[str, Any]) -> tuple[Loss, Relation]:
    """Returns the loss of a round whose clients are drawn at random, and the relation that its theorem is about.

    Args:
      noise_multiplier: As for `Gaussian`.
      relation: As it is asked for, if it is.
      sampler: Its description, as `fedjx.data.poisson_sampler` or `uniform_sampler` has it.

    Raises:
      ValueError: If nothing is known for the relation.
    """
    z, num_clients = noise_multiplier, sampler["num_clients"]
    if "probability" in sampler:
        probability, most = sampler["probability"], sampler.get("max_cohort_size")
        if most is not None:
            return Truncated(z, probability, num_clients, most), relation or "add_or_remove_one"
        return (Poisson(z, probability) if probability < 1 else Gaussian(z)), relation or "add_or_remove_one"
    if sampler["cohort_size"] == num_clients:
        return Gaussian(z), relation or "zero_out_one"
    if relation not in (None, "replace_one"):
        raise ValueError(
            f"cohorts of a fixed size are accounted for by replacing a client; got {relation=}. Use Poisson sampling."
        )
    return FixedSize(z, num_clients, sampler["cohort_size"]), "replace_one"


def _of_relation(loss: Gaussian | FixedSize | Laplace, relation: Relation) -> float:
    """Returns the noise multiplier in what the relation changes: who is replaced changes a sum by two clips."""
    return loss.noise_multiplier / (2 if relation == "replace_one" else 1)


def _renyi(loss: Loss, count: int, delta: float, relation: Relation) -> float:
    accounting = _imported()
    if isinstance(loss, FixedSize):
        # Of two cohorts that differ in who one client is: its sum differs by two sensitivities, which RDP is not told.
        gaussian = accounting.GaussianDpEvent(_of_relation(loss, "replace_one"))
        event = accounting.SampledWithoutReplacementDpEvent(loss.num_clients, loss.cohort_size, gaussian)
        of = accounting.NeighboringRelation.REPLACE_ONE
    elif isinstance(loss, Gaussian):
        event, of = accounting.GaussianDpEvent(_of_relation(loss, relation)), _relation("add_or_remove_one")
    elif isinstance(loss, Poisson) and relation != "replace_one":
        gaussian = accounting.GaussianDpEvent(loss.noise_multiplier)
        event, of = accounting.PoissonSampledDpEvent(loss.probability, gaussian), _relation(relation)
    else:
        raise ValueError(f'RDP is not known of {loss} for {relation=}; got accountant="rdp". Take "pld".')
    return float(accounting.rdp.RdpAccountant(neighboring_relation=of).compose(event, count).get_epsilon(delta))


def _of_integers(loss: IntegerSum, count: int, delta: float) -> float:
    # Of delta a part is kept for rounds of which one client decides whether anything is shown.
    rest = delta * (1 - _DECIDING) if loss.deciding else delta
    found = float(_imported().rdp.compute_epsilon(ORDERS, count * renyi(loss), rest)[0])
    needed = loss.deciding * count * (1 + math.exp(min(found, 700)))
    if needed <= delta - rest:
        return found
    if loss.deciding * 2 > delta - rest:
        raise ValueError(
            f"one client must hardly ever decide whether a cohort is too small or too large; got {loss.deciding:.2g} "
            f"as likelihood for {delta=}. Lower min_clients or raise max_clients."
        )
    return math.inf


def _shuffled(loss: Shuffled, count: int, delta: float) -> float:
    # Half of delta is for the rounds, each of which may fail to hide a client, and half for what they make together.
    of_each = delta / (2 * count)
    parameters = shuffled_epsilon(loss.epsilon, loss.num_clients, of_each), of_each
    return float(_of_parameters(*parameters).self_compose(count).get_epsilon_for_delta(delta))


def _of_parameters(epsilon: float, delta: float) -> Any:
    pld = _imported().pld
    return pld.privacy_loss_distribution.from_privacy_parameters(
        pld.common.DifferentialPrivacyParameters(epsilon, delta), value_discretization_interval=_STEP
    )


@functools.lru_cache(maxsize=8, typed=True)
def _single(loss: _Distributed, relation: Relation) -> Any:
    if isinstance(loss, Response | Stated):
        return _of_parameters(loss.epsilon, loss.delta if isinstance(loss, Stated) else 0.0)
    distributions = _imported().pld.privacy_loss_distribution
    if isinstance(loss, Laplace):
        return distributions.from_laplace_mechanism(
            _of_relation(loss, relation), value_discretization_interval=_STEP, sampling_prob=loss.probability
        )
    options = {"value_discretization_interval": _STEP, "neighboring_relation": _relation(relation)}
    if isinstance(loss, Truncated):
        return distributions.from_truncated_subsampled_gaussian_mechanism(
            loss.num_clients, loss.probability, loss.max_cohort_size, loss.noise_multiplier, **options
        )
    return distributions.from_gaussian_mechanism(loss.noise_multiplier, sampling_prob=loss.probability, **options)


def _relation(relation: Relation) -> Any:
    relations = _imported().NeighboringRelation
    return {
        "add_or_remove_one": relations.ADD_OR_REMOVE_ONE,
        "replace_one": relations.REPLACE_ONE,  # PLD doubles the sensitivity by itself
        "zero_out_one": relations.REPLACE_SPECIAL,
    }[relation]


@functools.lru_cache(maxsize=2 * _ANCHOR, typed=True)
def _composed(loss: _Distributed, relation: Relation, count: int) -> Any:
    single = _single(loss, relation)
    is_anchor = count == 1 or count % _ANCHOR == 0
    return single.self_compose(count) if is_anchor else _composed(loss, relation, count - 1).compose(single)


@functools.cache
def _imported() -> ModuleType:
    try:
        import dp_accounting
        import dp_accounting.pld.common
        import dp_accounting.pld.privacy_loss_distribution
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            f"an account needs the package dp-accounting; got {error}. Install it: pip install 'fedjx[privacy]'. "
            "Mechanisms run without it."
        ) from error
    return dp_accounting
