"""What the laws of aggregators run over: `CASES: dict[str, Case]` in every `cases_*.py` beside this file."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import NamedTuple

from fedjx.core.execution.process import Aggregator


class Case(NamedTuple):
    aggregator: Aggregator
    rtol: float = 1e-5
    materialises: bool = False
    max_elements: int | None = None  # of a value, if there is a limit


@functools.cache
def law_cases() -> dict[str, Case]:
    """All of them, by the name of their file and their own."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    return {
        f"{module.removeprefix('cases_')}-{name}": case
        for module in modules
        for name, case in importlib.import_module(f"tests.aggregation.{module}").CASES.items()
    }
