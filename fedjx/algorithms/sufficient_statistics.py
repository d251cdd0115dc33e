"""Estimation by sufficient statistics: clients add up what their examples say, the server estimates anew.

K-means, expectation maximisation and principal components are all of this form, which is that of Dempster, Laird and
Rubin's algorithm for exponential families ("Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977, §2):
the totals over all clients are those of the union of their examples, so the federated round is the central one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.total import total
from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.trees import number_dtype
from fedjx.core.language.values import MASK, Batches, Sequence
from fedjx.models.flax_models import feature_x
from fedjx.models.model import Batch, MetricSums, sum_metrics
from fedjx.training.client import ClientUpdate, as_batches, drop_non_finite
from fedjx.training.method import Method, ServerState
from fedjx.training.round import RoundArguments, compose


class StatisticsArguments(RoundArguments, total=False):
    """How a round of statistics is run, for methods to pass on to `sufficient_statistics`, which describes it."""

    inputs: Callable[[Batch], jax.Array]


def sufficient_statistics(
    statistics: Callable[[PyTree, jax.Array, jax.Array], tuple[PyTree, dict[str, jax.Array]]],
    estimate: Callable[[PyTree, PyTree], PyTree],
    *,
    init: Callable[[jax.Array], PyTree],
    inputs: Callable[[Batch], jax.Array] = feature_x,
    **arguments: Unpack[RoundArguments],
) -> Algorithm[ServerState]:
    """Makes an algorithm of the statistics of a batch and what the server estimates from their totals.

    Args:
      statistics: ``(params, x [B, d], mask [B]) -> (totals, metrics)``. The totals, of the type of the parameters,
        count what is masked 0 times (its x is 0); metrics are per example ``[B]``, by name.
      estimate: ``(params, totals) -> params``.
      init: ``(key) -> params``, the first ones.
      inputs: Selects an example's point ``[B, ...]`` from a batch; it is flattened, and cast to
        float32, or to float64 if the parameters are so.
      **arguments: As for `fed_avg`: how the round is run. The aggregator is that of the totals, in which a client with
        examples has weight 1; their `total` if not given. An estimate that does not depend on the scale of the totals
        may as well have the `mean`.

    Returns:
      An `Algorithm`. Its metrics are the means over the examples, of the parameters before the round, ``num_examples``,
      ``num_clients``, ``num_non_finite_clients`` and ``aggregation``.

    Guarantees: The result does not depend on how the examples are spread over batches and clients.
    """

    def client_update(params: PyTree, data: Sequence, key: jax.Array) -> ClientUpdate:
        del key

        def of_batch(batch: Batch) -> tuple[PyTree, dict[str, MetricSums]]:
            x, mask = points(inputs(batch), batch[MASK], number_dtype(params)), batch[MASK]
            totals, values = statistics(params, x, mask)
            return totals, sum_metrics(values, mask)

        batches = as_batches(data)
        one = Batches(batches.pool, batches.index[0]).gather()
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_batch, one))
        totals, metrics = sequence_reduce(
            lambda sums, batch: jax.tree.map(jnp.add, sums, of_batch(batch)), zero, Sequence(batches, data.length)
        )
        num_examples = jnp.sum(batches.index >= 0, dtype=jnp.int32)
        return drop_non_finite(ClientUpdate(totals, uniform(num_examples), {**metrics, "num_examples": num_examples}))

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        moved = optax.stateless(lambda totals, params: jax.tree.map(jnp.subtract, params, estimate(params, totals)))
        return optax.chain(moved, optimizer)

    arguments["aggregator"] = arguments.get("aggregator") or total()
    return compose(Method(init, client_update, server), **arguments)


def points(x: jax.Array, mask: jax.Array, dtype: DType) -> jax.Array:
    """Returns the inputs of a batch as floats ``[B, d]``, 0 where they are padding."""
    x = jnp.asarray(x, dtype)
    return jnp.where(mask[:, None], x.reshape(len(x), -1), 0)
