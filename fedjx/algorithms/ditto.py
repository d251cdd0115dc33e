"""Ditto: beside the shared model, every client trains one of its own that is held near the shared one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization" (arXiv 2012.04221, algorithm 1). The
shared model is that of federated averaging, whatever the personal ones do.
"""

from __future__ import annotations

from typing import Unpack

import jax
import optax

from fedjx.algorithms.fed_prox import proximal
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.client import OWN, ClientUpdate, Local, no_schedule
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def ditto(
    model: Model,
    *,
    proximal_strength: float,
    personal_optimizer: optax.GradientTransformation | None = None,
    **arguments: Unpack[TrainingArguments],
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds Ditto, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      proximal_strength: lambda, with which a personal model is drawn to the shared one that the round begins with; 0
        is local training, infinity no personalisation.
      personal_optimizer: Of the personal models; the client optimizer if not given.
      **arguments: As for `fed_avg`, of the shared model; either model is trained by the same amount.

    Returns:
      A `StatefulAlgorithm`; a client's state is its own model's parameters, at first the server's. Its metrics are the
      shared model's, as for `fed_avg`, and ``num_non_finite_states``.

    Raises:
      ValueError: If the proximal strength is negative.
    """
    check_number("[0, inf]", "Pass 0 for local training.", proximal_strength=proximal_strength)
    personal = personal_optimizer and no_schedule(personal_optimizer)

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, own: PyTree
    ) -> tuple[ClientUpdate, PyTree]:
        trained = local.train(model, params, data, key, optimizer=local.optimizer)
        drawn = optax.chain(proximal(proximal_strength, params), personal or local.optimizer)
        own = local.train(model, own, data, jax.random.fold_in(key, OWN), optimizer=drawn).params
        return local.report(params, trained), own

    return compose(
        Method(model.init, client_update, init_client=lambda state: state.params, input_spec=model.input_spec),
        **arguments,
    )
