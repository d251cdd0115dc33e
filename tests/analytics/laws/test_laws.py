"""The laws of every question, over few compiled programs: cases are the lines of the `cases_*.py` beside.

Each is asked of a stream, in chunks, and in one program on four devices, of the clients in reverse, with garbage as
padding and one more client that has no record: all must agree.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics.ask import _asked
from fedjx.analytics.dialogue import Dialogue
from fedjx.analytics.question import Question
from fedjx.analytics.records import Records
from fedjx.analytics.trust import Prepared, prepared
from fedjx.core.language.secure import check_secure
from fedjx.core.language.values import Clients, Sequence
from tests.algorithms.test_laws import Compilations, mesh
from tests.analytics.laws.case import Case, law_cases

CASES = law_cases()
KEY = jax.random.key(3)


class Asked:
    """A question that is asked: how, and with which arguments before the clients."""

    def __init__(self, case: Case, **others: Any):
        made = case.question()
        self.question: Question = made.question(made.first, 0) if isinstance(made, Dialogue) else made
        rounds = made.num_rounds if isinstance(made, Dialogue) else 1
        how: Any = {"key": KEY, **case.how, **others}
        self.asked = _asked(self.question, case.data(), how, num_rounds=rounds)
        self.way: Prepared = prepared(self.question, self.asked.terms)
        self.arguments = (self.asked.key, self.question.told, *self.way.extra)

    def streamed(self) -> Any:
        return jax.tree.map(np.asarray, self.way.computation(*self.arguments, self.asked.records))

    def in_one_program(self, clients: Clients) -> Any:
        return jax.tree.map(np.asarray, jax.jit(self.way.computation.in_graph(mesh=mesh(4)))(*self.arguments, clients))


def garbage(x: np.ndarray) -> Any:
    return np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).max if x.dtype.kind in "iu" else True


def disordered(records: Records, *, one_more: bool) -> Clients:
    """Returns the clients in reverse, garbage past their ends and in two places that nobody is in."""
    clients = records.whole()
    elements, length = clients.value.elements, clients.value.length
    width = jax.tree.leaves(elements)[0].shape[1]
    past_the_end = np.arange(width)[None] >= length[:, None]

    def rearranged(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[past_the_end] = garbage(x)
        return np.concatenate([np.full_like(x[:2], garbage(x)), x[::-1], np.full_like(x[:1], garbage(x))])

    mask = np.concatenate([[False, False], clients.mask, [one_more]])
    ids = np.concatenate([[7, 8], clients.id[::-1], [999]]).astype(np.int32)
    length = np.concatenate([[3, 3], length[::-1], [0]]).astype(np.int32)
    return Clients(Sequence(jax.tree.map(rearranged, elements), length), mask, np.where(mask, ids, -1).astype(np.int32))


def assert_agree(case: Case, a: Any, b: Any, scale: float = 1.0) -> None:
    """Integers and secure sums to the bit, floats up to rounding."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if x.dtype.kind in "iu":
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=case.rtol, atol=case.rtol * max(float(np.abs(x).max()), scale))


@pytest.mark.parametrize("name", CASES)
def test_laws(name: str, monkeypatch: pytest.MonkeyPatch):
    case = CASES[name]
    for constant, value in (("_CLIENTS", 7), ("_ROWS", 20), ("_CELLS", 64)):
        monkeypatch.setattr(f"fedjx.analytics.records.{constant}", value)
    once = Asked(case)
    found = once.streamed()
    trust = once.asked.terms.trust

    # Who has no record changes nothing; but he makes a share of noise or reports that he is in no bin, and he makes
    # room on the grid of a secure sum.
    shares = trust == "distributed_dp" or (trust in ("local_dp", "shuffled_dp") and not once.question.bounds)
    clients = disordered(once.asked.records, one_more=not shares)
    assert_agree(case, found, once.in_one_program(clients))
    if not shares:
        has_records = np.flatnonzero(case.data().sizes)
        without = Asked(case, clients=has_records).streamed()
        assert_agree(case._replace(rtol=1e-4) if trust == "secure" else case, found, without)

    with Compilations() as compilations:
        assert_agree(case._replace(rtol=0), found, Asked(case).streamed())
    assert compilations.number == 0, "the same question again is compiled again"

    if trust in ("secure", "distributed_dp"):
        check_secure(once.way.computation, *once.arguments, once.asked.records)
    else:
        with pytest.raises(ValueError, match="only secure sums"):
            check_secure(once.way.computation, *once.arguments, once.asked.records)

    # The negative control: of other clients the answer is another one.
    other = Asked(case, clients=np.arange(len(case.data().sizes) // 2, len(case.data().sizes)), min_clients=1)
    with pytest.raises(AssertionError):
        assert_agree(case, found, other.streamed())
