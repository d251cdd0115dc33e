"""Frequent strings by samples and a threshold: private without any noise."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import numpy as np

from fedjx.analytics.answer import Answer
from fedjx.analytics.ask import TooFewAnswers, ask, digest
from fedjx.analytics.ledger import Ledger
from fedjx.analytics.prefix_tree import Tree
from fedjx.analytics.text import from_bytes
from fedjx.analytics.trust import SEES
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.names import Key
from fedjx.data.federated_data import ClientData
from fedjx.data.sampling import uniform_sampler
from fedjx.privacy.account import account
from fedjx.privacy.events import Event, Stated


class Votes(NamedTuple):
    """How many vote in a round, and how many votes a prefix needs; `votes` has the theorem.

    Attributes:
      threshold: The fewest votes of a prefix that stays.
      sample: Clients that are drawn in a round.
    """

    threshold: int
    sample: int


def votes(*, num_clients: int, num_rounds: int, epsilon: float, delta: float) -> Votes:
    """Returns the numbers for which TrieHH is ``(epsilon, delta)``-private.

    With g = e^(epsilon / L) for L rounds, the threshold t is the smallest integer of at least 5 with
    ``t! (t - 3) / (t - 2) >= 1 / delta`` and ``t >= g - 1``; the sample is ``N (g - 1) / (t g)`` of N clients, rounded
    down (Zhu et al. 2020, "Federated Heavy Hitters Discovery with Differential Privacy", corollary of theorem 1).

    Raises:
      ValueError: If a number is out of range, or the sample is less than the threshold.

    >>> votes(num_clients=100_000, num_rounds=10, epsilon=4, delta=1 / 3e5)
    Votes(threshold=9, sample=3663)
    """
    check_integer("[1, inf)", num_clients=num_clients, num_rounds=num_rounds)
    check_number("(0, inf)", epsilon=epsilon)
    check_number("(0, 1)", "Take less than one over the number of clients.", delta=delta)
    growth = math.expm1(epsilon / num_rounds)
    threshold = 5
    while math.factorial(threshold) * (threshold - 3) / (threshold - 2) < 1 / delta or threshold < growth:
        threshold += 1
    sample = int(num_clients * growth / (threshold * (growth + 1)))
    if sample < threshold:
        raise ValueError(
            f"a prefix needs {threshold} votes for this epsilon and delta; got {num_clients} clients, of whom {sample} "
            "vote. Take a larger epsilon, fewer bytes or more clients."
        )
    return Votes(threshold, sample)


def trie_hh(
    data: ClientData,
    column: str,
    *,
    num_bytes: int,
    epsilon: float,
    delta: float,
    key: Key,
    trust: Literal["plain", "secure"] = "secure",
    ledger: Ledger | None = None,
) -> Answer:
    """Finds frequent strings by votes (TrieHH, Zhu et al. 2020, arXiv:1902.08534, algorithms 1 and 2).

    In each of ``num_bytes`` rounds a sample of clients is drawn. Each of it draws one of its strings and votes for one
    more byte of it, if all before are known; what has as many votes as `votes` says stays. There is no noise: nobody
    knows who is in a sample, and what few clients have does not stay.

    The guarantee is about what is found, in all rounds, of clients of which one has its strings or none; it is not one
    of differential privacy against the server, which has the exact votes of each round, of a sample that it has drawn:
    their sums with ``trust="secure"``, each client's with "plain".

    Args:
      data: The clients' records.
      column: Of strings, uint8 ``[length]``; see `to_bytes`. The empty one is left out.
      num_bytes: How many bytes of a string count; strings of the same beginning are one.
      epsilon: Of all rounds.
      delta: Of all rounds.
      key: A `jax.random.key` that nobody else knows: it draws the samples.
      trust: "plain" or "secure".
      ledger: Pays, or refuses.

    Returns:
      An `Answer` whose value is a list of strings in the order of their bytes; how frequent they are is not said. Its
      account is one of all rounds together.

    Raises:
      ValueError: If a number is out of range, or there are too few clients.
      BudgetSpent: If the ledger does not pay.

    >>> from fedjx.analytics import to_bytes, trie_hh
    >>> words = np.repeat(to_bytes(["tea", "milk"], 4), [1900, 100], axis=0)
    >>> data = fedjx.data.FederatedData.from_clients([{"word": word[None]} for word in words])
    >>> answer = trie_hh(data, "word", num_bytes=4, epsilon=2, delta=1e-4, key=jax.random.key(0))
    >>> answer.value, round(answer.epsilon(1e-4), 6)
    (['tea'], 2.0)
    """
    check_choice(("plain", "secure"), trust=trust)
    number = data.num_clients
    threshold, sample = votes(num_clients=number, num_rounds=num_bytes, epsilon=epsilon, delta=delta)
    seed = int.from_bytes(np.asarray(jax.random.bits(key, (2,))).tobytes(), "little")
    sampler = uniform_sampler(number, sample, seed=seed)
    spent = account(Event(0.0, Stated(float(epsilon), float(delta))), sampler, relation="zero_out_one")
    if ledger is not None:
        ledger.pay(f"votes about {column}", spent, 1, drawn=digest(key))
    tree = Tree(column, num_bytes, max_candidates=sample // threshold, bits=8)
    state, bits = tree.root(), 0
    for round in range(num_bytes):
        if not len(state["prefixes"]):
            break
        voters, key_round = np.asarray(data.ids[sampler(round).astype(np.int64)]), jax.random.fold_in(key, round)
        question = tree.question(state, round)
        try:
            answer = ask(question, data, clients=voters, max_records=1, trust=trust, min_clients=1, key=key_round)
        except TooFewAnswers:  # nobody has a string
            break
        counts, bits = answer.value, bits + answer.bits
        state = tree.grown(state, round, counts, np.zeros(len(counts)), np.full(len(counts), threshold))
    found = state["strings"]
    strings = from_bytes(found[np.lexsort(found.T[::-1])])
    return Answer(strings, None, number, None, bits, SEES[trust], trust, spent)
