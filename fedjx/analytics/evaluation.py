"""A model's metrics over the clients' records, as a question: of all, or of each group, on any terms of trust."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.analytics.question import Entry, Question, Total, of_values
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.values import MASK
from fedjx.models.model import Model, Ratio, sum_metrics


def evaluation(
    model: Model,
    params: PyTree,
    columns: Sequence[str],
    *,
    bounds: Mapping[str, float],
    most: float | None = None,
) -> Question:
    """Asks for a model's metrics: the mean of each over all records, or what it is a ratio of.

    With `fedjx.analytics.by_group` it is an evaluation by region or by device, and with `large_groups` one that shows
    no group of few clients. All clients are told the parameters.

    Args:
      model: What is evaluated.
      params: Its parameters, as its metrics take them.
      columns: The features that it reads, with the labels.
      bounds: The metrics to ask for, each with the largest magnitude that it has for a record, to which it is clipped:
        1 for an accuracy, infinity for what is not clipped, which only plain answers allow. A record of which one is
        not finite is left out.
      most: What a record counts for at most, of metrics that are a `Ratio`: of a sequence the most positions, infinity
        in plain answers. A record that counts for more keeps its mean. Metrics that are no ratios have 1.

    Returns:
      A `Question`; its answer is a dict by metric, NaN over no record.

    Raises:
      TypeError: If a metric is `fedjx.models.Sums`: these are for `fedjx.algorithms.federated_evaluation`.
      ValueError: If it is a `Ratio` and ``most`` is not given, or the model has no such metric.

    >>> from fedjx.analytics import ask, by_group, evaluation
    >>> model = fedjx.models.linear(2, input_shape=(3,))
    >>> records = [{"x": np.ones((2, 3)), "y": [0, 1], "city": [0, 1]}, {"x": np.ones((1, 3)), "y": [1], "city": [1]}]
    >>> question = evaluation(model, model.init(jax.random.key(0)), ["x", "y"], bounds={"accuracy": 1})
    >>> data = fedjx.data.FederatedData.from_clients(records)
    >>> sorted(ask(by_group(question, "city", num_groups=2), data, trust="secure").value["accuracy"].round(4).tolist())
    [0.0, 1.0]
    """
    check_number("(0, inf]", most=1.0 if most is None else most)
    if not bounds:
        raise ValueError('metrics are some of the model\'s; got none. Name them: bounds={"loss": 10, "accuracy": 1}.')
    check_number("(0, inf]", "Give the largest magnitude of each metric.", bounds=list(bounds.values()))
    names, limits = tuple(bounds), tuple(map(float, bounds.values()))

    def estimate(total: Total) -> tuple[dict[str, float], dict[str, float]]:
        values, errors = {}, {}
        for place, name in enumerate(names):
            numerator, denominator = total.table[0, [2 * place, 2 * place + 1]]
            value = numerator / denominator if denominator > 0 else math.nan
            gradient = np.zeros(total.table.shape[1])
            gradient[2 * place : 2 * place + 2] = (1, -value) / denominator if denominator > 0 else math.nan
            values[name], errors[name] = float(value), total.stddev(gradient)
        return values, errors

    entry = _Evaluated(model.metrics, tuple(columns), names, limits, most)
    count = 1.0 if most is None else float(most)
    both = tuple(bound for limit in limits for bound in (limit * count, count))
    return Question(entry.columns, entry, 1, estimate, of_values(len(both), counts=False), both, False, told=params)


class _Evaluated(NamedTuple):
    metrics: Callable[..., PyTree]
    columns: tuple[str, ...]
    names: tuple[str, ...]
    limits: tuple[float, ...]
    most: float | None

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        batch = {name: record[name][None] for name in self.columns}
        found = self.metrics(told, {**batch, MASK: jnp.ones(1, bool)})
        values = jnp.stack(
            [x for name, limit in zip(self.names, self.limits, strict=True) for x in self._sums(found, name, limit)]
        )
        return Entry(jnp.where(jnp.isfinite(values).all(), 0, -1).astype(jnp.int32), values)

    def _sums(self, found: Mapping[str, PyTree], name: str, limit: float) -> tuple[jax.Array, jax.Array]:
        """Returns what one record adds to a metric's numerator and denominator."""
        if name not in found:
            raise ValueError(f"metrics are some of the model's; got {name!r}. It has {sorted(found)}.")
        if isinstance(found[name], Ratio) and self.most is None:
            raise ValueError(
                f"what a record counts for is bounded if it may be more than 1; got {name!r} as Ratio, and no most. "
                "Pass most=80 for sequences of 80 positions, for example."
            )
        of_one = sum_metrics({name: found[name]}, np.ones(1, bool))[name]
        if not isinstance(of_one, Ratio):
            raise TypeError(
                f"a metric of a record is a number or a Ratio; got {name!r} as Sums. Take federated_evaluation."
            )
        numerator, count = (x.astype(jnp.float32) for x in of_one)
        counted = jnp.clip(count, 0, 1.0 if self.most is None else self.most)
        mean = numerator / jnp.where(count == 0, 1, count)
        return jnp.clip(mean, -limit, limit) * counted, counted
