"""FedRep: the clients share a representation, and each fits a head of its own to it before improving it.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning" (arXiv 2102.07078, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import optax

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.client import OWN, ClientUpdate, Local, check_amount
from fedjx.training.method import Method, ServerState
from fedjx.training.parts import first_parts, with_fixed
from fedjx.training.round import TrainingArguments, compose


def fed_rep(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    local_optimizer: optax.GradientTransformation | None = None,
    num_local_epochs: int | None = None,
    num_local_steps: int | None = None,
    **arguments: Unpack[TrainingArguments],
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds FedRep, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      is_local: Which parameters are local, the head, by their names, as for `partition`.
      local_optimizer: Of the head; the client optimizer if not given.
      num_local_epochs: How long the head is trained, while the representation stands; one epoch if not given; or
      num_local_steps: the number of steps.
      **arguments: As for `fed_avg`. The client optimizer is that of the shared parameters, the representation, and the
        amount of training how long they are trained, while the head stands.

    Returns:
      A `StatefulAlgorithm`; parameters, states and metrics as for `fed_per`.
    """
    amount = {"num_epochs": num_local_epochs, "num_steps": num_local_steps}
    check_amount(**amount)

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, own: PyTree
    ) -> tuple[ClientUpdate, PyTree]:
        key_own, optimizer = jax.random.fold_in(key, OWN), local_optimizer or local.optimizer
        own = local.train(with_fixed(model, params), own, data, key_own, optimizer=optimizer, **amount).params
        trained = local.train(with_fixed(model, own), params, data, key, optimizer=local.optimizer)
        return local.report(params, trained), own

    init, init_client = first_parts(model, is_local)
    return compose(Method(init, client_update, init_client=init_client, input_spec=model.input_spec), **arguments)
