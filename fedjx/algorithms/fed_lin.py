"""FedLin: local steps whose gradients are corrected by the global one, exact at the server's parameters.

Mitra et al., "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse
Gradients" (arXiv 2102.07053, algorithm 1; what it sparsifies is an aggregator's affair).
"""

from __future__ import annotations

from typing import Unpack

import jax
import optax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.gradients import gradient_update, shift
from fedjx.training.method import First, Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def fed_lin(model: Model, **arguments: Unpack[TrainingArguments]) -> Algorithm[ServerState]:
    """Builds FedLin, of the arguments of `fed_avg`.

    A round has two passes over the clients: they send their gradients at x, get the mean g of these back, and take
    local steps with ``∇f_i(y) - ∇f_i(x) + g``. Who is left out of the first pass is left out of the second.

    Args:
      model: What is trained.
      **arguments: As for `fed_avg`. The client optimizer gets the corrected gradients. Its rate is the same for all
        clients; the paper divides it by each one's number of steps, which makes a difference where ``num_epochs`` are
        given and sizes differ. The aggregator is that of the gradients in the first pass, and, with another state, of
        the changes in the second; g is sent as it is, without the broadcaster.

    Returns:
      An `Algorithm`. Metrics are those of `fed_avg`, and ``first_aggregation``, the aggregator's measurements of the
      first pass.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    model = no_batch_stats(model, "fed_lin")

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local, first: First) -> ClientUpdate:
        optimizer = optax.chain(shift(optax.tree.sub(first.result, first.update.delta)), local.optimizer)
        return local.report(params, local.train(model, params, data, key, optimizer=optimizer))

    return compose(
        Method(model.init, client_update, first=gradient_update(model), input_spec=model.input_spec), **arguments
    )
