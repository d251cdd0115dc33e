"""How a metric is distributed over clients: the mean of all says nothing of who is served worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Clients


class Distribution(NamedTuple):
    """How a metric is distributed over clients, each of which counts once.

    Attributes:
      mean: Of the clients.
      lowest_decile: The mean of the tenth of the clients with the lowest values, at least of one: the worst ones'
        accuracy.
      highest_decile: Likewise of the highest: the worst ones' loss.
      quantiles: By the number that was asked for, linearly interpolated.
    """

    mean: jax.Array
    lowest_decile: jax.Array
    highest_decile: jax.Array
    quantiles: dict[float, jax.Array]


def distribution(per_client: Clients, *, quantiles: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)) -> dict[str, PyTree]:
    """Describes how metrics are distributed over the clients that have examples.

    Args:
      per_client: What `federated_evaluation` returned of each: metrics by name, arrays ``[C, ...]``.
      quantiles: Numbers from 0 to 1.

    Returns:
      By name, a `Distribution` of each array ``[...]``; NaN if no client has an example. Not of ``num_examples``. A
      client's NaN counts, as the highest value.

    >>> metrics = {"accuracy": jnp.arange(4.0), "num_examples": jnp.array([5, 5, 5, 0])}
    >>> found = distribution(Clients.of(metrics), quantiles=(0.5,))["accuracy"]
    >>> float(found.mean), float(found.lowest_decile), float(found.highest_decile), float(found.quantiles[0.5])
    (1.0, 0.0, 2.0, 1.0)
    """
    if not isinstance(per_client, Clients):
        raise TypeError(
            f"a distribution is over clients; got {type(per_client).__name__}. Pass the second of what "
            "federated_evaluation(model, per_client=True) returns."
        )
    check_number("[0, 1]", **{f"quantile_{k}": x for k, x in enumerate(quantiles)})
    counts = jnp.asarray(per_client.mask) & (jnp.asarray(per_client.value["num_examples"]) > 0)

    def described(values: jax.Array) -> Distribution:
        values = jnp.asarray(values, jnp.float32)
        number, rows = jnp.sum(counts), _like(jnp.arange(len(values)), values)
        # Who does not count comes last, after what is NaN.
        places = jnp.lexsort((values, jnp.broadcast_to(_like(~counts, values), values.shape)), axis=0)
        ordered = jnp.take_along_axis(values, places, axis=0)
        tenth = (number + 9) // 10

        def mean(first: PyTree, last: PyTree) -> jax.Array:
            return jnp.sum(jnp.where((rows >= first) & (rows < last), ordered, 0), axis=0) / (last - first)

        def quantile(part: float) -> jax.Array:
            place = jnp.maximum(part * (number - 1), 0)
            below, above = (ordered[x.astype(jnp.int32)] for x in (jnp.floor(place), jnp.ceil(place)))
            found = jnp.where(above == below, below, below + (place - jnp.floor(place)) * (above - below))
            return jnp.where(number > 0, found, jnp.nan)

        deciles = mean(0, tenth), mean(number - tenth, number)
        return Distribution(mean(0, number), *deciles, {float(part): quantile(part) for part in quantiles})

    named = {name: x for name, x in per_client.value.items() if name != "num_examples"}
    return jax.tree.map(described, named)


def _like(x: jax.Array | np.ndarray, values: jax.Array) -> jax.Array:
    return jnp.asarray(x).reshape(-1, *[1] * (values.ndim - 1))
