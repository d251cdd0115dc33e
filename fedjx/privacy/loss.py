"""Epsilon of a mechanism, repeated: the adapter of `dp-accounting`, and the only file that knows it.

The distribution of the privacy loss (PLD; Doroshenko et al., arXiv 2207.04380) is tight. Cohorts of a fixed size have
only a bound by Rényi divergences (RDP; Mironov, arXiv 1702.07476, and Wang et al., arXiv 1808.00087).
``pip install "fedjx[privacy]"`` brings it.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any, Literal, NamedTuple

from fedjx.privacy.integer_loss import ORDERS, IntegerSum, renyi

Relation = Literal["add_or_remove_one", "replace_one", "zero_out_one"]
RELATIONS: tuple[Relation, ...] = ("add_or_remove_one", "replace_one", "zero_out_one")
# Every so many repetitions the composition is computed anew: whoever resumes there or between has the same bits.
_ANCHOR = 16
_DECIDING = 1e-3


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


Loss = Gaussian | Poisson | FixedSize | IntegerSum


@functools.lru_cache(maxsize=1024)
def epsilon(loss: Loss, count: int, delta: float, relation: Relation) -> float:
    """Returns epsilon at a delta, after so many independent repetitions: 0 of none, infinity without noise.

    >>> round(epsilon(Poisson(1.2, 120 / 3383), 100, 1e-5, "add_or_remove_one"), 4)
    1.7075
    """
    if count == 0 or loss.noise_multiplier == 0:
        return math.inf if count else 0.0
    accounting = _imported()
    if isinstance(loss, Gaussian):
        return float(accounting.get_epsilon_gaussian(_of_relation(loss, relation) / math.sqrt(count), delta))
    if isinstance(loss, Poisson):
        return float(_single(loss, relation).self_compose(count).get_epsilon_for_delta(delta))
    if isinstance(loss, IntegerSum):
        return _of_integers(loss, count, delta)
    # Of two cohorts that differ in who one client is: its sum differs by two sensitivities, which RDP is not told.
    event = accounting.SampledWithoutReplacementDpEvent(
        loss.num_clients, loss.cohort_size, accounting.GaussianDpEvent(_of_relation(loss, "replace_one"))
    )
    accountant = accounting.rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(event, count).get_epsilon(delta))


def epsilon_so_far(loss: Loss, count: int, delta: float, relation: Relation) -> float:
    """Returns `epsilon` to seven digits, cheaply for one count after the other, and the same wherever one begins."""
    if count == 0 or loss.noise_multiplier == 0 or not isinstance(loss, Poisson):
        return epsilon(loss, count, delta, relation)
    return float(_composed(loss, relation, count).get_epsilon_for_delta(delta))


def of_round(
    noise_multiplier: float,
    relation: Relation | None,
    *,
    probability: float | None = None,
    num_clients: int = 0,
    cohort_size: int = 0,
) -> tuple[Loss, Relation]:
    """Returns the loss of a round whose clients are drawn at random, and the relation that its theorem is about.

    Args:
      noise_multiplier: As for `Gaussian`.
      relation: As it is asked for, if it is.
      probability: Of Poisson sampling; otherwise the cohort is of a fixed size.
      num_clients: Of the population, with a fixed size.
      cohort_size: The size.

    Raises:
      ValueError: If nothing is known for the relation.
    """
    if probability is not None:
        is_drawn = probability < 1
        drawn = Poisson(noise_multiplier, probability) if is_drawn else Gaussian(noise_multiplier)
        return drawn, relation or "add_or_remove_one"
    if cohort_size == num_clients:
        return Gaussian(noise_multiplier), relation or "zero_out_one"
    if relation not in (None, "replace_one"):
        raise ValueError(
            f"cohorts of a fixed size are accounted for by replacing a client; got {relation=}. Use Poisson sampling."
        )
    return FixedSize(noise_multiplier, num_clients, cohort_size), "replace_one"


def _of_relation(loss: Loss, relation: Relation) -> float:
    """Returns the noise multiplier in what the relation changes: who is replaced changes a sum by two clips."""
    return loss.noise_multiplier / (2 if relation == "replace_one" else 1)


def _of_integers(loss: IntegerSum, count: int, delta: float) -> float:
    # A part of delta is for rounds in which one client decides whether anything is shown.
    rest = delta * (1 - _DECIDING) if loss.deciding else delta
    found = float(_imported().rdp.compute_epsilon(ORDERS, count * renyi(loss), rest)[0])
    is_rare = count * loss.deciding * (1 + math.exp(min(found, 700))) <= delta - rest
    return found if is_rare else math.inf


@functools.lru_cache(maxsize=8)
def _single(loss: Poisson, relation: Relation) -> Any:
    accounting = _imported()
    relations = {
        "add_or_remove_one": accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": accounting.NeighboringRelation.REPLACE_ONE,  # it doubles the sensitivity by itself
        "zero_out_one": accounting.NeighboringRelation.REPLACE_SPECIAL,
    }
    return accounting.pld.privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=loss.noise_multiplier,
        value_discretization_interval=1e-4,
        sampling_prob=loss.probability,
        neighboring_relation=relations[relation],
    )


@functools.lru_cache(maxsize=2 * _ANCHOR)
def _composed(loss: Poisson, relation: Relation, count: int) -> Any:
    single = _single(loss, relation)
    is_anchor = count == 1 or count % _ANCHOR == 0
    return single.self_compose(count) if is_anchor else _composed(loss, relation, count - 1).compose(single)


@functools.cache
def _imported() -> ModuleType:
    try:
        import dp_accounting
        import dp_accounting.pld.privacy_loss_distribution
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            f"an account needs the package dp-accounting; got {error}. Install it: pip install 'fedjx[privacy]'. "
            "Mechanisms run without it."
        ) from error
    return dp_accounting
