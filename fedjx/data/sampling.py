"""Sampling the clients of a round: uniformly, with or without replacement, and for differential privacy.

A sampler is a pure function of (seed, round): a run can be resumed at any round, every host finds the same
cohort by itself, and nothing depends on the version of NumPy. It describes itself, for a checkpoint and
for a privacy accountant. Clients are the numbers ``0 .. num_clients - 1``; to sample out of a subset,
`select_clients` it, and sample places in the view: ``view.ids[sample(round)]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer
from fedjx.data.random_words import below, binomial_table, checked_word, digest, words

# Streams of words of one (seed, round).
_IDS, _COUNT, _KEEP = range(3)


class Sampler(NamedTuple):
    """A function from the round to the ids of its cohort, and what is to be known of it.

    Any function of the round will do as a sampler; wrap your own to have it in checkpoints too.

    Attributes:
      draw: The function; returns int32 ``[C]``.
      description: What makes two samplers the same, as JSON holds it: ``kind`` and ``version`` of the
        method, ``num_clients``, ``seed``, what the kind takes, such as ``cohort_size`` or
        ``probability``, and what it promises: ``replacement``, whether a client may be in a cohort more
        than once, and ``min_separation``, the least number of rounds from one participation of a client to
        its next (0 with replacement, 1 if only cohorts are without repetition).

    >>> sample = uniform_sampler(1000, 3, seed=0)
    >>> sample(7), sample.description["kind"]
    (array([420, 664, 734], dtype=int32), 'uniform')
    """

    draw: Callable[[int], np.ndarray]
    description: dict[str, Any]

    def __call__(self, round: int) -> np.ndarray:
        """Returns the ids of the round's cohort in increasing order, int32 ``[C]``."""
        return self.draw(round)


class Described(Protocol):
    """A sampler of any kind, which says what makes two of them the same."""

    @property
    def description(self) -> dict[str, Any]: ...  # noqa: D102


def check_description(saved: Mapping[str, Any], sampler: Described, *, what: str = "sampler") -> None:
    """Refuses to go on with another sampler, or another of what describes itself, than a run began with.

    Args:
      saved: The description in the run's checkpoint.
      sampler: The sampler to go on with.
      what: What it is called, such as a "budget".

    Raises:
      ValueError: If they differ, naming what in.
    """
    now = sampler.description
    differ = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if differ:
        got, was = ({name: d[name] for name in differ if name in d} for d in (now, saved))
        raise ValueError(
            f"a resumed run needs the {what} it began with; got {got}, saved was {was}. "
            "Repeat it, or begin another run."
        )


def described(kind: str, num_clients: int | None, *, seed: int | None, **others: Any) -> dict[str, Any]:
    """Returns a description. Another version of a method, with other cohorts, needs another number."""
    entries = {"kind": kind, "version": 1, "num_clients": num_clients, "seed": seed, **others}
    return {name: entry.item() if isinstance(entry, np.generic) else entry for name, entry in entries.items()}


def uniform_sampler(num_clients: int, cohort_size: int, *, seed: int, replacement: bool = False) -> Sampler:
    """Samples cohorts uniformly.

    Guarantees: the cohort is a function of (seed, round) and of the other arguments alone, so a run can be
    resumed at any round; it takes O(cohort) time and memory, whatever the population; it does not depend
    on the version of NumPy (only raw Philox words are used).

    Args:
      num_clients: Size of the population, less than 2^31.
      cohort_size: Number of clients in a cohort.
      seed: Integer in ``[0, 2^64)``.
      replacement: Whether a client may be in a cohort more than once.

    Returns:
      A `Sampler`: ``sample(round)`` is the ids of the round's cohort in increasing order, int32 ``[cohort_size]``.

    Raises:
      ValueError: If a number is out of range, or the cohort is larger than the population it is drawn
        from without replacement.

    >>> sample = uniform_sampler(1_000_000_000, 4, seed=0)
    >>> sample(7)
    array([360494930, 394775290, 572473439, 971728203], dtype=int32)
    """
    check_population(num_clients)
    check_cohort_size(cohort_size, None if replacement else num_clients)
    seed = checked_word("seed", seed)

    def draw(round: int) -> np.ndarray:
        if not replacement:
            return _subset(num_clients, cohort_size, seed, round)
        return sorted_ids(words(cohort_size, seed, round, _IDS) % np.uint64(num_clients))

    promises = {"replacement": replacement, "min_separation": 0 if replacement else 1}
    return Sampler(draw, described("uniform", num_clients, seed=seed, cohort_size=cohort_size, **promises))


def poisson_sampler(
    num_clients: int, *, probability: float | ArrayLike, seed: int, max_cohort_size: int | None = None
) -> Sampler:
    """Samples every client by itself with a probability, as the accountants of differential privacy assume.

    The number of clients is drawn from the binomial distribution, exactly up to 2^-63 for each number
    (`fedjx.data.random_words.binomial_table`), then so many clients without replacement. Where clients have
    probabilities of their own, all are drawn with the largest one and each is kept in proportion.

    Cohorts differ in size and may be empty. Do not draw another one and do not leave the round out: an
    accountant assumes neither. Run the round on its `Cohort`, as any other: nobody contributes, and the aggregator adds
    what it adds, such as noise. `Cohort` takes all sizes; none is cut off, but by ``max_cohort_size``.

    Guarantees: those of `uniform_sampler`; O(cohort) time and memory, with probabilities of their own
    O(num_clients * largest probability).

    Args:
      num_clients: Size of the population, less than 2^31.
      probability: In (0, 1]; or one for each client, in [0, 1], ``[num_clients]``.
      seed: Integer in ``[0, 2^64)``.
      max_cohort_size: Of larger cohorts so many clients stay, each as likely: truncated Poisson sampling (Ganesh et
        al., arXiv 2410.22673), which accountants know as well. Not with probabilities of their own.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[C]``. Its description has the largest ``probability``
      and, if they differ, the SHA-256 of all.

    Raises:
      ValueError: If a number is out of range, or cohorts of unequal clients are to be truncated.

    >>> sample = poisson_sampler(10_000_000, probability=5e-7, seed=0)
    >>> [sample(round).tolist() for round in range(2)]
    [[1662002, 1728264, 1822466, 2031109, 3861725, 9246268], [293093, 950048, 5980626]]
    """
    check_population(num_clients)
    seed = checked_word("seed", seed)
    own = np.array(probability, np.float64)
    if own.shape not in ((), (num_clients,)) or not ((own >= 0) & (own <= 1)).all() or not own.any():
        raise ValueError(
            f"probability needs to be in (0, 1], or one in [0, 1] for each client; got float64{list(own.shape)} "
            f"from {own.min(initial=np.inf)} to {own.max(initial=-np.inf)} for {num_clients=}. "
            "Divide the expected size of a cohort by num_clients."
        )
    if max_cohort_size is not None:
        check_integer("[1, inf)", max_cohort_size=max_cohort_size)
        if own.ndim:
            raise ValueError(
                "no theorem covers cohorts that are truncated if clients have probabilities of their own; got "
                f"{max_cohort_size=} and {num_clients} probabilities. Give one for all, or no largest size."
            )
    most = float(own.max())
    subset = poisson_subset(num_clients, most, max_cohort_size)

    def draw(round: int) -> np.ndarray:
        ids = subset(seed, round)
        return ids[below(words(len(ids), seed, round, _KEEP), own[ids] / most)] if own.ndim else ids

    others = {"probability": most, "probabilities": digest(own) if own.ndim else None}
    others |= {} if max_cohort_size is None else {"max_cohort_size": max_cohort_size}
    promises = {"replacement": False, "min_separation": 1}
    return Sampler(draw, described("poisson", num_clients, seed=seed, **others, **promises))


def poisson_subset(size: int, probability: float, most: int | None = None) -> Callable[[int, int], np.ndarray]:
    """Returns ``(seed, round) -> numbers below size``, each there with a probability by itself, int32, increasing."""
    least, ends = binomial_table(size, probability)

    def draw(seed: int, round: int) -> np.ndarray:
        count = least + int(np.searchsorted(ends, words(1, seed, round, _COUNT), side="right")[0])
        return _subset(size, count if most is None else min(count, most), seed, round)

    return draw


def sorted_ids(ids: ArrayLike) -> np.ndarray:
    """Returns ids in increasing order, int32 ``[C]``."""
    return np.sort(np.asarray(ids)).astype(np.int32)


def check_population(num_clients: int) -> None:
    """Refuses a population whose ids are not int32."""
    check_integer("[1, 2^31)", "Ids are int32.", num_clients=num_clients)


def check_cohort_size(cohort_size: int, num_clients: int | None) -> None:
    """Refuses a cohort of nobody, or without replacement of more than there are clients to draw."""
    check_integer("[1, inf)", cohort_size=cohort_size)
    if num_clients is not None and cohort_size > num_clients:
        raise ValueError(
            f"cohort_size must be at most num_clients; got {cohort_size=} and {num_clients=}. "
            "Clients are drawn without replacement: choose a smaller cohort."
        )


def _subset(num_clients: int, size: int, seed: int, round: int) -> np.ndarray:
    """Draws a subset, all of one size being equally likely; O(size)."""
    last = np.arange(num_clients - size, num_clients, dtype=np.uint64)
    # The modulo favours small ids by less than 2^31 / 2^64.
    drawn = words(size, seed, round, _IDS) % (last + np.uint64(1))
    # Floyd's algorithm (Bentley & Floyd 1987): every set is equally likely; the order is not, hence sorted.
    chosen: set[int] = set()
    for new, pick in zip(last.tolist(), drawn.tolist(), strict=True):
        chosen.add(new if pick in chosen else pick)
    return np.array(sorted(chosen), np.int32)
