"""Which strings are frequent, by questions about longer and longer prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from fedjx.analytics.dialogue import Dialogue, State
from fedjx.analytics.heavy_hitters import ordered
from fedjx.analytics.question import Entry, Question, Total, once
from fedjx.analytics.text import fitted, hash_bytes, hash_coefficients
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.names import Array, PyTree

_FALSE = 0.05  # the probability that a round keeps a prefix which nobody has


def prefix_tree(
    column: str,
    *,
    num_bytes: int,
    max_candidates: int = 256,
    min_count: float = 10.0,
    num_stddevs: float | None = None,
    distinct: bool = False,
    bits: int = 8,
) -> Dialogue:
    """Asks for the frequent strings, in a round for each further ``bits`` of them.

    In a round the server tells the prefixes that it knows, and clients are counted by their prefix and what comes next.
    Those stay whose count is at least ``min_count`` and so many standard deviations of its noise, at most
    ``max_candidates`` of them. A string that ends is kept with the count of that round. Without noise nothing else is
    lost, and the counts are exact: a string is found if it is frequent enough, and so few prefixes are.

    Args:
      column: Of strings, uint8 ``[length]``; see `to_bytes`. The empty one is left out.
      num_bytes: How many bytes of a string count; strings of the same beginning are one.
      max_candidates: The most prefixes that go on from a round.
      min_count: The least estimated count of a prefix; of clients if ``distinct``, of records otherwise.
      num_stddevs: The least estimated count in standard deviations; by default so many that a round keeps a prefix of
        which there is nothing but noise with a probability of 5%.
      distinct: Whether a client counts once for a prefix, however many of its strings have it.
      bits: Of a round, 1, 2, 4 or 8: it has ``max_candidates * 2^bits`` bins, and one for all other strings.

    Returns:
      A `Dialogue` of ``8 * num_bytes / bits`` rounds; its answer is a dict of float by string, the most frequent first,
      and so is the stddev. What the server asks shows everybody the prefixes that it knows.

    Raises:
      ValueError: If a number is out of range.

    >>> from fedjx.analytics import ask, prefix_tree, to_bytes
    >>> words = [["tea", "milk"], ["tea"], ["coffee", "tea"], ["milk"]]
    >>> data = fedjx.data.FederatedData.from_clients([{"word": to_bytes(client, 6)} for client in words])
    >>> ask(prefix_tree("word", num_bytes=6, max_candidates=4, min_count=2), data, trust="secure").value
    {'tea': 3.0, 'milk': 2.0}
    """
    check_integer("[1, inf)", num_bytes=num_bytes, max_candidates=max_candidates)
    check_number("[0, inf)", min_count=min_count)
    check_choice((1, 2, 4, 8), bits=bits)
    if num_stddevs is None:
        num_stddevs = -float(ndtri(_FALSE / (max_candidates << bits)))
    check_number("[0, inf)", num_stddevs=num_stddevs)
    tree = Tree(column, num_bytes, max_candidates, bits)

    def update(state: State, round: int, total: Total) -> State:
        counts, stddevs = total.table[:, 0], np.sqrt(total.variance[:, 0])
        least = np.maximum(min_count, num_stddevs * stddevs)
        return {**state, **tree.grown(state, round, counts, stddevs, least)}

    def question(state: State, round: int) -> Question:
        return tree.question(state, round)._replace(distinct=distinct)

    first = {**tree.root(), "least": np.array([min_count, num_stddevs]), "distinct": np.array(distinct)}
    return Dialogue(tree.num_rounds, first, question, update, _found)


class Tree(NamedTuple):
    """Prefixes that grow: what a round asks, and what it makes of the counts.

    The state has ``prefixes``, uint8 ``[n, num_bytes]``, those that go on; ``strings``, those that have ended, with
    their ``counts`` and ``stddevs``.

    Attributes:
      column: See `prefix_tree`, as are the next ones.
      num_bytes: See there.
      max_candidates: See there.
      bits: See there.
    """

    column: str
    num_bytes: int
    max_candidates: int
    bits: int

    @property
    def num_rounds(self) -> int:
        """Until strings are whole."""
        return 8 * self.num_bytes // self.bits

    def root(self) -> State:
        """Returns the state before the first round: the prefix of all strings."""
        none = np.zeros((0, self.num_bytes), np.uint8)
        return {
            "prefixes": np.zeros((1, self.num_bytes), np.uint8),
            "strings": none,
            "counts": np.zeros(0),
            "stddevs": np.zeros(0),
        }

    def question(self, state: State, round: int) -> Question:
        """Returns the question about what comes after the prefixes."""
        prefixes = state["prefixes"]
        seed, hashes = _seeded(prefixes)
        order = np.argsort(hashes)
        room = [(0, self.max_candidates - len(prefixes)), (0, 0)]
        told = {
            "prefixes": np.pad(prefixes[order], room),
            "hashes": np.pad(hashes[order], room[0], constant_values=2**32 - 1),
            "number": np.int32(len(prefixes)),
            "coefficients": hash_coefficients(1, self.num_bytes, seed),
            "round": np.int32(round),
        }
        entry, others = _Next(self.column, self.num_bytes, self.bits), 1  # a bin for all other strings
        num_bins = (self.max_candidates << self.bits) + others
        return Question((self.column,), entry, num_bins, _counts, once, told=told)

    def grown(self, state: State, round: int, counts: np.ndarray, stddevs: np.ndarray, least: np.ndarray) -> State:
        """Returns the state after a round: of the prefixes and what comes next those with the least count or more."""
        prefixes = state["prefixes"][np.argsort(_seeded(state["prefixes"])[1])]
        counts, stddevs, least = (x[: len(prefixes) << self.bits] for x in (counts, stddevs, least))
        kept = np.flatnonzero((counts >= least) & (counts > 0))
        kept = kept[np.argsort(-counts[kept], kind="stable")]
        place, shift = divmod(round * self.bits, 8)
        longer = prefixes[kept >> self.bits]
        longer[:, place] |= ((kept & ((1 << self.bits) - 1)) << (8 - self.bits - shift)).astype(np.uint8)
        is_byte = shift + self.bits == 8
        ends = is_byte & ((longer[:, place] == 0) | (place == self.num_bytes - 1))
        is_string = ends & (longer[:, 0] > 0)
        return {
            "prefixes": longer[~ends][: self.max_candidates],
            "strings": np.concatenate([state["strings"], longer[is_string]]),
            "counts": np.concatenate([state["counts"], counts[kept][is_string]]),
            "stddevs": np.concatenate([state["stddevs"], stddevs[kept][is_string]]),
        }


def _seeded(prefixes: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns a seed with which no two prefixes have the same hash, and their hashes."""
    seed = 0
    while True:
        hashes = np.asarray(hash_bytes(prefixes, hash_coefficients(1, prefixes.shape[1], seed)))[:, 0]
        if len(np.unique(hashes)) == len(prefixes):
            return seed, hashes
        seed += 1


class _Next(NamedTuple):
    """What comes in a string after the prefix that it has, of those that are told."""

    column: str
    num_bytes: int
    bits: int

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        string = fitted(record[self.column], self.num_bytes)
        start = told["round"] * self.bits
        known = jnp.clip(start - 8 * jnp.arange(self.num_bytes), 0, 8)  # bits of each byte
        prefix = string & (0xFF00 >> known).astype(jnp.uint8)
        found = jnp.searchsorted(told["hashes"], hash_bytes(prefix, told["coefficients"])[0])
        is_known = (found < told["number"]) & jnp.all(told["prefixes"][found] == prefix)
        following = string[start // 8].astype(jnp.int32) >> (8 - self.bits - start % 8)
        following = following & ((1 << self.bits) - 1)
        others = len(told["hashes"]) << self.bits
        bins = jnp.where(is_known, (found.astype(jnp.int32) << self.bits) + following, others)
        return Entry(jnp.where(string[0] > 0, bins, -1))


def _counts(total: Total) -> tuple[np.ndarray, np.ndarray]:
    return total.table[:, 0], np.sqrt(total.variance[:, 0])


def _found(state: State) -> tuple[dict[str, float], dict[str, float]]:
    return ordered(state["strings"], state["counts"], state["stddevs"])
