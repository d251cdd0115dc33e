"""FedExP: a server step as long as the clients' disagreement allows.

Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation" (arXiv 2301.09604, algorithm 1):

    step = max(1, sum_i ||delta_i||^2 / (2 M (||mean delta||^2 + epsilon)))
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import squared_norm
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, drop_non_finite, local_update
from fedjx.training.method import Method, ServerState, scale_delta
from fedjx.training.round import TrainingArguments, compose


def fed_exp(model: Model, *, epsilon: float = 1e-3, **arguments: Unpack[TrainingArguments]) -> Algorithm[ServerState]:
    """Builds FedExP, of the arguments of `fed_avg` and its own.

    The iterates oscillate; the paper evaluates the mean of the last two.

    Args:
      model: What is trained.
      epsilon: Keeps the step small when the mean change is; of the size of a squared norm.
      **arguments: As for `fed_avg`. The squared norms are averaged by the client weights too, equal ones in the paper.
        They are those of the changes as the aggregator lets them through, so that clipping bounds the step as well: a
        clip to c lets the server move at most ``max(c, c**2 / (4 sqrt(epsilon)))``.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``squared_norm``, the mean of ``||delta_i||^2``. The last
      round's step is ``state.optimizer[0].scale``.

    Raises:
      ValueError: If epsilon is not positive; if the aggregator is no mean of what single clients send, such as a robust
        rule, which would have no say in the step; when initialised, if the model has batch statistics.
    """
    check_number("(0, inf]", epsilon=epsilon)
    model = no_batch_stats(model, "fed_exp")
    train = local_update(model)

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        delta, weight, metrics = train(params, data, key, local=local)
        overflows = ~jnp.isfinite(squared_norm(delta))
        return drop_non_finite(ClientUpdate(delta, jnp.where(overflows, jnp.nan, weight), metrics))

    def bounded_metrics(update: ClientUpdate) -> Metrics:
        return {"squared_norm": Ratio(update.weight * squared_norm(update.delta), update.weight)}

    def step(delta: PyTree, metrics: Metrics) -> jax.Array:
        return jnp.fmax(1, metrics["squared_norm"] / (2 * (squared_norm(delta) + epsilon)))

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(scale_delta(step), optimizer)

    method = Method(model.init, client_update, server, bounded_metrics=bounded_metrics, input_spec=model.input_spec)
    return compose(method, **arguments)
