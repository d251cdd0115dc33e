"""What the laws of questions run over: `CASES: dict[str, Case]` in every `cases_*.py` beside this file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjx.analytics.dialogue import Dialogue
from fedjx.analytics.question import Question
from fedjx.data import FederatedData
from tests.analytics.laws.problem import people


class Case(NamedTuple):
    """A question under the laws.

    Attributes:
      question: Makes it, anew each time: the same question again must not compile again.
      how: It is asked.
      data: Whom; `problem.people` if not given. Few widths of clients make few programs.
      rtol: How far apart the ways to run it may be, in what are floats.
    """

    question: Callable[[], Question | Dialogue]
    how: Mapping[str, Any] = {}
    data: Callable[[], FederatedData] = people
    rtol: float = 1e-5


NOISE: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-3, "max_records": 2}
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "secure": {},
    "central_dp": NOISE,
    "distributed_dp": NOISE,
    "local_dp": {"epsilon": 2.0},
    "shuffled_dp": {"epsilon": 2.0, "delta": 1e-3, "min_clients": 20},
}


def by_every_trust(name: str, question: Callable[[], Question | Dialogue], *leave_out: str) -> dict[str, Case]:
    """Returns a case for each model of trust but some."""
    return {f"{name}-{t}": Case(question, {"trust": t, **how}) for t, how in TERMS.items() if t not in leave_out}


def law_cases() -> dict[str, Case]:
    """All of them, by the name of their file and their own."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    return {
        f"{module.removeprefix('cases_')}-{name}": case
        for module in modules
        for name, case in importlib.import_module(f"tests.analytics.laws.{module}").CASES.items()
    }
