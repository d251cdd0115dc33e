"""What the laws of aggregators run over: `CASES: dict[str, Case]` in every `cases_*.py` beside this file."""

from __future__ import annotations

from typing import NamedTuple

from fedjx.core.process import Aggregator


class Case(NamedTuple):
    aggregator: Aggregator
    rtol: float = 1e-5
    materialises: bool = False
