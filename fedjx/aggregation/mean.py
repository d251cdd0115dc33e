"""The weighted mean."""

from __future__ import annotations

from typing import Any

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_mean, federated_value
from fedjx.core.language.types import SERVER


def mean() -> Aggregator:
    """Averages the clients' values by their weights; 0 if no client has weight."""

    def init(member: Any) -> Any:
        del member
        return ()

    @federated_computation
    def next(key: Any, state: Any, value: Any, weight: Any) -> Any:
        del key
        return state, federated_mean(value, weight), federated_value({}, SERVER)

    return Aggregator(init, next)
