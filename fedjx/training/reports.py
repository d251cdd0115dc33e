"""What single clients report of a round, for whoever samples the next one; the server then sees it of each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.norms import euclidean_norm
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_client_ids, federated_collect, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Ratio
from fedjx.training.client import ClientUpdate
from fedjx.training.round import round_metrics

_CLIENTS = "clients"


def sum_and_report(metrics: FederatedValue) -> FederatedValue:
    """Adds the clients' metrics up, and brings those of each client to the server: a ``metrics_sum`` of any method.

    The round's metrics then have ``clients`` too, which `client_reports` reads.
    """

    def finished(id: jax.Array, own: Metrics) -> PyTree:
        return id, round_metrics(own, {})

    def with_clients(sums: Metrics, reports: PyTree) -> Metrics:
        return {**sums, _CLIENTS: reports}

    reports = federated_collect(federated_map(finished, federated_client_ids(), metrics))
    return federated_map(with_clients, federated_sum(metrics), reports)


def client_reports(metrics: Metrics) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns who took part in a round, and what each reported.

    Args:
      metrics: Of a round whose ``metrics_sum`` is `sum_and_report`.

    Returns:
      The ids, int32 ``[C]``, in increasing order; and by name of the metric the clients' own, ``[C]``. The loss of a
      client without examples, or whose update was left out as not finite, is NaN.

    Raises:
      ValueError: If the metrics have no reports of single clients.

    >>> import optax
    >>> train, _ = fedjx.data.digits(num_clients=20)
    >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1))
    >>> algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.01), metrics_sum=sum_and_report)
    >>> cohort = fedjx.data.Cohort(train, [8, 3, 5], batch_size=20, lanes=1)
    >>> state, metrics = algorithm.next(algorithm.init(jax.random.key(0)), cohort)
    >>> ids, own = client_reports(metrics)
    >>> ids, own["num_examples"], own["loss"].shape
    (array([3, 5, 8], dtype=int32), array([81, 74, 63], dtype=int32), (3,))
    """
    if _CLIENTS not in metrics:
        raise ValueError(
            f"clients report where metrics_sum=sum_and_report; got metrics of {sorted(metrics)}. Pass it to the method."
        )
    is_real = np.asarray(metrics[_CLIENTS].mask)
    ids, own = jax.tree.map(lambda x: np.asarray(x)[is_real], metrics[_CLIENTS].elements)
    order = np.argsort(ids, kind="stable")
    return ids[order], {name: x[order] for name, x in own.items()}


def with_update_norm(client_update: Callable[..., ClientUpdate]) -> Callable[..., ClientUpdate]:
    """Reports the norm of what a client sends as the metric ``update_norm``; in the round's metrics it is their mean.

    It goes around a client update: ``Method(model.init, with_update_norm(local_update(model)))``.
    """

    @functools.wraps(client_update)
    def measured(*args: PyTree, **named: PyTree) -> ClientUpdate:
        update = client_update(*args, **named)
        norm = euclidean_norm(update.delta)
        count = jnp.asarray(update.weight > 0, jnp.int32)
        return update._replace(metrics={**update.metrics, "update_norm": Ratio(norm * count, count)})

    return measured
