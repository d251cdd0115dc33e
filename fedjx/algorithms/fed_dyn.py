"""FedDyn: a regulariser that every client adapts, so that their optima become those of all.

Acar et al., "Federated Learning Based on Dynamic Regularization" (arXiv 2111.04263, algorithm 1).
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import optax

from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping, number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def fed_dyn(
    model: Model, *, num_clients: int, proximal_strength: float, **arguments: Unpack[TrainingArguments]
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds FedDyn, of the arguments of `fed_avg` and its own.

    A client descends its loss minus ``<g_k, y>`` plus ``α/2 |y - x|²``, and then takes α (y - x) off its g_k.

    Args:
      model: What is trained.
      num_clients: The paper's m: all clients there are, not those of a round.
      proximal_strength: The paper's α. It vanishes from the clients as it goes to zero, but not from the server, which
        adds all changes of earlier rounds again, each for the part of all clients that were in the round.
      **arguments: As for `fed_avg`. The client optimizer gets the gradients of the regularised loss, the server
        optimizer the mean of x - y, plus h / α. Clients weigh alike if no ``client_weight`` is given, also in h.

    Returns:
      A `StatefulAlgorithm`; the paper's h, the mean of all clients' g_k, is ``state.optimizer[0].gradient``, and a
      client's state is its g_k, of the parameters' type.

    Guarantees: With uniform weights and the mean, h stays the mean of all m clients' g_k.

    Raises:
      ValueError: If ``num_clients`` or ``proximal_strength`` is not positive; when initialised, if the model has batch
        statistics.
    """
    check_integer("[1, inf)", num_clients=num_clients)
    check_number("(0, inf]", proximal_strength=proximal_strength)
    model = no_batch_stats(model, "fed_dyn")

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, own: PyTree
    ) -> tuple[ClientUpdate, PyTree]:
        def regularised(gradient: PyTree, moved: PyTree) -> PyTree:
            return map_keeping(lambda g, h, y, x: g - h + proximal_strength * (y - x), gradient, own, moved, params)

        optimizer = optax.chain(optax.stateless(regularised), local.optimizer)
        update = local.report(params, local.train(model, params, data, key, optimizer=optimizer))
        return update, map_keeping(lambda h, d: h + proximal_strength * d, own, update.delta)

    method = Method(
        model.init,
        client_update,
        server=lambda optimizer: optax.chain(accumulated(proximal_strength, num_clients), optimizer),
        init_client=lambda state: optax.tree.zeros_like(state.params),
        input_spec=model.input_spec,
    )
    arguments.setdefault("client_weight", uniform)
    return compose(method, **arguments)


class Accumulated(NamedTuple):
    """What the server of FedDyn keeps: h, of the parameters' type."""

    gradient: PyTree


def accumulated(proximal_strength: float, num_clients: int) -> optax.GradientTransformationExtraArgs:
    """Adds to the aggregated delta ``h / α``, after h has grown by α times that for the part of all clients there."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, metrics: PyTree = None, **_: PyTree
    ) -> tuple[PyTree, Accumulated]:
        del params
        share = proximal_strength * metrics["num_clients"].astype(number_dtype(updates)) / num_clients
        gradient = map_keeping(lambda h, d: h + share * d, state.gradient, updates)
        direction = map_keeping(lambda d, h: d + h / proximal_strength, updates, gradient)
        return direction, Accumulated(gradient)

    return optax.GradientTransformationExtraArgs(lambda params: Accumulated(optax.tree.zeros_like(params)), update)
