"""Evaluations for a run: from the server's state to metrics; of central data, of clients, of their own models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from fedjx.algorithms.distribution import distribution
from fedjx.algorithms.evaluation import federated_evaluation
from fedjx.core.execution.computation import Computation
from fedjx.core.language.names import Key, Metrics
from fedjx.core.language.shares import own_rows
from fedjx.core.language.values import Clients
from fedjx.data.client_states import ClientStates
from fedjx.data.cohort import Cohort
from fedjx.data.federated_data import ClientData, FederatedData
from fedjx.models.model import Model

Evaluation = Callable[..., Metrics]  # of the server's state, and of the clients' if they keep some
Lanes = int | Literal["auto"]


def central_evaluation(
    model: Model, data: Mapping[str, ArrayLike] | ClientData, *, batch_size: int = 100
) -> Evaluation:
    """Evaluates on all examples together, in equal parts on all devices.

    Args:
      model: What is evaluated.
      data: Features by name, each ``[N, ...]``, or clients' data, whose clients do not matter.
      batch_size: Examples that a device takes at once.

    >>> _, test = fedjx.data.digits(num_clients=5)
    >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> state = fedjx.algorithms.fed_sgd(model, learning_rate=0.1).init(jax.random.key(0))
    >>> sorted(central_evaluation(model, test)(state))
    ['accuracy', 'loss', 'num_examples']
    """
    columns: Any = data if isinstance(data, Mapping) else data.read(data.ids[:])
    number = len(next(iter(columns.values())))
    cuts = np.linspace(0, number, jax.device_count() + 1).astype(np.int64)
    parts = FederatedData(columns, np.unique(cuts))
    step, cohort = federated_evaluation(model).streamed(), Cohort(parts, parts.ids[:], batch_size=batch_size, lanes=1)
    return lambda state, states=None: step(state.params, cohort)


def client_evaluation(
    model: Model, data: ClientData, *, ids: ArrayLike | None = None, batch_size: int = 100, lanes: Lanes = "auto"
) -> Evaluation:
    """Evaluates on clients' own data: of all examples together, and how each metric is distributed over clients.

    Besides ``accuracy`` there is ``accuracy_mean`` of clients that count once each, ``accuracy_lowest_decile`` and
    ``accuracy_highest_decile``, and quantiles ``accuracy_p10`` to ``accuracy_p90``, as `distribution` makes them.

    Args:
      model: What is evaluated.
      data: The clients' examples.
      ids: Which clients, each once; all if not given.
      batch_size: Examples that a client takes at once.
      lanes: As for `Cohort`.

    Raises:
      ValueError: If `ids` names nobody, or somebody twice.
    """
    step = federated_evaluation(model, per_client=True).streamed()
    cohort = _each_once(data, ids, batch_size, lanes)

    def evaluation(state: Any, states: ClientStates | None = None) -> Metrics:
        metrics, of_each = step(state.params, cohort)
        return {**metrics, **_described(_of_all(of_each, cohort.ids))}

    return evaluation


def personalised_evaluation(
    computation: Computation[..., tuple[Metrics, Clients]],
    data: ClientData,
    *,
    key: Key | None = None,
    ids: ArrayLike | None = None,
    batch_size: int = 100,
    lanes: Lanes = "auto",
) -> Evaluation:
    """Evaluates each client's own model: by strategy, how each metric is distributed over clients.

    Args:
      computation: A `personalization_evaluation`, whose models are made anew from the server's; or a
        `personal_evaluation`, whose models are the clients' states in the run.
      data: The clients' examples.
      key: For the first kind, and only that.
      ids: Which clients, each once; all if not given.
      batch_size: Examples that a client takes at once.
      lanes: As for `Cohort`.

    Raises:
      ValueError: If `ids` names nobody, or somebody twice.
      TypeError: If `computation` is none, such as the model itself.
    """
    if not isinstance(computation, Computation):
        raise TypeError(
            "what evaluates must be a computation, as personalization_evaluation and personal_evaluation return; got a "
            f"{type(computation).__name__}. Make one of the model first."
        )
    step = computation.streamed()
    cohort = _each_once(data, ids, batch_size, lanes)

    def evaluation(state: Any, states: ClientStates | None = None) -> Metrics:
        if (key is None) == (states is None):
            raise TypeError(
                "models that are made anew need a key, and those that clients keep an algorithm with client states; "
                f"got {key=} and {type(states).__name__}. Pass one of them."
            )
        _, own = step(state.params, cohort, key if states is None else states.cohort(cohort.ids))
        of_each = _of_all(own, cohort.ids)
        return {
            strategy: _described(dataclasses.replace(of_each, value=metrics))
            for strategy, metrics in of_each.value.items()
        }

    return evaluation


def _each_once(data: ClientData, ids: ArrayLike | None, batch_size: int, lanes: Lanes) -> Cohort:
    cohort = Cohort(data, data.ids[:] if ids is None else ids, batch_size=batch_size, lanes=lanes)
    if not 0 < len(np.unique(cohort.ids)) == cohort.ids.size:
        raise ValueError(f"ids must be clients that differ, one at least; got {ids=!r:.80}. Leave it out for all.")
    return cohort


def _of_all(own: Clients, ids: np.ndarray) -> Clients:
    """Gathers what each of several processes has of its own clients."""
    if jax.process_count() == 1:
        return own
    value, mask, found = jax.device_get(own_rows((own.value, own.mask, own.id)))
    rows, order = np.flatnonzero(mask), np.argsort(ids)
    places = order[np.searchsorted(ids, found[rows], sorter=order)]

    def spread(x: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(ids), *x.shape[1:]), x.dtype)
        whole[places] = x[rows]
        return multihost_utils.process_allgather(whole).sum(axis=0, dtype=x.dtype)  # each client is in one process

    return Clients.of(jax.tree.map(spread, value), ids=ids.astype(np.int32))


def _described(of_each: Clients) -> Metrics:
    found: Metrics = {}
    for name, over in distribution(of_each).items():
        found |= {f"{name}_mean": over.mean, f"{name}_lowest_decile": over.lowest_decile}
        found |= {f"{name}_highest_decile": over.highest_decile}
        found |= {f"{name}_p{100 * part:.0f}": value for part, value in over.quantiles.items()}
    return found
