"""FedPer: the clients share the body of the model, and each has a head of its own.

Arivazhagan et al., "Federated Learning with Personalization Layers" (arXiv 1912.00818, algorithms 1 and 2): both are
trained together, and only the body is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.method import Method, ServerState
from fedjx.training.parts import combine, first_parts, partition
from fedjx.training.round import TrainingArguments, compose


def fed_per(
    model: Model, *, is_local: Callable[[str], bool], **arguments: Unpack[TrainingArguments]
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds FedPer, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      is_local: Which parameters are local, by their names, as for `partition`.
      **arguments: As for `fed_avg`. The client optimizer is that of shared and local parameters together.

    Returns:
      A `StatefulAlgorithm`; the server's parameters are the shared part, a client's state the local one, and `combine`
      puts them together. All clients begin with one local part, drawn from the key of the run. Its metrics are those of
      `fed_avg` and ``num_non_finite_states``.
    """

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, own: PyTree
    ) -> tuple[ClientUpdate, PyTree]:
        trained = local.train(model, combine(params, own), data, key, optimizer=local.optimizer)
        parts = partition(trained.params, is_local)
        return local.report(params, trained._replace(params=parts.shared)), parts.local

    init, init_client = first_parts(model, is_local)
    return compose(Method(init, client_update, init_client=init_client, input_spec=model.input_spec), **arguments)
