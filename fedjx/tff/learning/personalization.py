"""Evaluation of personalised models under TensorFlow Federated's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from fedjx.algorithms.personalization import Strategy, no_fine_tuning, personalization_evaluation
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Clients, Sequence
from fedjx.tff.learning.metrics import Metrics
from fedjx.tff.learning.process import ModelFn
from fedjx.tff.simulation.data import as_clients

Data = list[Mapping[str, Iterable[PyTree]]]


def build_personalization_eval_computation(
    model_fn: ModelFn,
    personalize_fn_dict: Mapping[str, Strategy],
    baseline_evaluate_fn: Strategy = no_fine_tuning,
    max_num_clients: int = 100,
    *,
    seed: int = 0,
) -> Callable[[PyTree, Data], Metrics]:
    """Builds ``(params, data) -> metrics`` of every client, before and after each strategy.

    Data is a list of the clients' ``{"train_data": batches, "test_data": batches}``, and a strategy a function
    ``(params, train_data, key) -> params``, such as `fedjx.algorithms.fine_tuning`: the evaluation is the model's own.

    Args:
      model_fn: Makes the model.
      personalize_fn_dict: The strategies by name.
      baseline_evaluate_fn: The strategy of the baseline; the server's parameters if not given.
      max_num_clients: The metrics of no more than so many clients are returned, the first ones.
      seed: Of the strategies' random keys.

    Returns:
      A function whose result has ``baseline_metrics`` and one entry a strategy: metrics by name, ``[clients]``.
    """

    def given(data: PyTree, key: jax.Array) -> tuple[Sequence, Sequence]:
        del key
        return data["train_data"], data["test_data"]

    evaluation = personalization_evaluation(
        model_fn(), personalize_fn_dict, split=given, baseline=baseline_evaluate_fn
    ).streamed()

    def evaluate(params: PyTree, data: Data) -> Metrics:
        parts = {name: as_clients([client[name] for client in data]).value for name in ("train_data", "test_data")}
        _, metrics = evaluation(params, Clients.of(parts), jax.random.key(seed))
        rows = np.flatnonzero(metrics.mask)[:max_num_clients]
        value = jax.tree.map(lambda x: np.asarray(x)[rows], metrics.value)
        named = {"baseline_metrics": value.pop("baseline"), **value}
        return Metrics({name: Metrics(entry) for name, entry in named.items()})

    return evaluate


build_personalization_eval = build_personalization_eval_computation  # as it was called for a while
