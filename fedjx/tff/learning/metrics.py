"""``tff.learning.metrics``: what a round measured, in TensorFlow Federated's structures."""

from __future__ import annotations

import jax
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Ratio, Sums, finalize_metrics


class Metrics(dict[str, PyTree]):
    """Metrics by name, that also print and are selected as TensorFlow Federated's structures.

    >>> metrics = Metrics(train=Metrics(loss=2.5))
    >>> print(metrics), metrics.train.loss
    <train=<loss=2.5>>
    (None, 2.5)
    """

    def __getattr__(self, name: str) -> PyTree:
        if name not in self:
            raise AttributeError(f"no metric {name!r} in {sorted(self)}")
        return self[name]

    def __repr__(self) -> str:
        return f"<{','.join(f'{name}={_shown(value)}' for name, value in self.items())}>"

    def _asdict(self) -> dict[str, PyTree]:
        return dict(self)


def _shown(value: PyTree) -> PyTree:
    """Shows a number with all of its digits."""
    is_number = isinstance(value, jax.Array | np.ndarray) and value.shape == ()
    return value.item() if is_number else value


def sum_then_finalize(metrics: PyTree) -> FederatedValue:
    """Sums the clients' metrics and divides the ratios at the server."""
    return federated_map(_finalized, federated_sum(metrics))


def measured_alone(metrics: FederatedValue) -> FederatedValue:
    """Selects what a model measures, without the counts that every round of fedjx has."""
    return federated_map(lambda sums: {name: x for name, x in sums.items() if isinstance(x, Ratio | Sums)}, metrics)


def averaging_metrics(metrics: dict[str, PyTree]) -> Metrics:
    """Names them as `build_federated_averaging_process` does."""
    aggregation, train, _ = _parts(metrics)
    return Metrics(broadcast=Metrics(), aggregation=aggregation, train=train)


def learning_metrics(metrics: dict[str, PyTree]) -> Metrics:
    """Names them as `build_weighted_fed_avg` does."""
    aggregation, train, stat = _parts(metrics)
    work = Metrics(train=Metrics(train, num_examples=stat.num_examples))
    finalizer = Metrics(update_non_finite=stat.num_non_finite_aggregates)
    return Metrics(distributor=Metrics(), client_work=work, aggregator=aggregation, finalizer=finalizer)


def _parts(metrics: dict[str, PyTree]) -> tuple[Metrics, Metrics, Metrics]:
    values = {name: x for name, x in metrics.items() if name != "aggregation"}
    stat = Metrics({name: x for name, x in values.items() if name.startswith("num_")})
    last = {name: x for name, x in values.items() if name == "loss"}
    train = {name: x for name, x in values.items() if name not in stat and name not in last}
    return Metrics(metrics["aggregation"]), Metrics(train | last), stat


def _finalized(sums: dict[str, PyTree]) -> dict[str, PyTree]:
    return {**sums, **finalize_metrics({name: x for name, x in sums.items() if isinstance(x, Ratio | Sums)})}
