"""Agnostic federated averaging: the worst mixture of domains counts.

Mohri et al., "Agnostic Federated Learning" (arXiv 1902.00146): minimise over w the maximum over l in the simplex of
``sum_i l_i L_i(w)``. In the form of Ro et al., "Communication-Efficient Agnostic Federated Averaging" (arXiv
2104.02748, algorithm 1), where a client may have examples of several domains and takes many local steps:

    alpha_i = l_i / N_i                      N_i: examples of domain i in a round, averaged over the last ones
    beta_k = sum_i alpha_i N_ki              N_ki: examples of domain i that client k has
    client k trains on  sum_j alpha_(domain of j) loss_j / beta_k,  summed over a batch, and weighs beta_k
    l_i <- l_i exp(rate L_i) / Z             L_i: mean loss of domain i of the model that was sent
"""

from __future__ import annotations

from collections import abc
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import MASK, Sequence
from fedjx.models.model import Batch, Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, as_batches, report_update
from fedjx.training.domains import domain_losses, one_each, worst_domains
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def agnostic_fed_avg(
    model: Model,
    *,
    domain_weights: abc.Sequence[float],
    domain_learning_rate: float,
    domain_feature: str = "domain",
    window: int = 1,
    **arguments: Unpack[TrainingArguments],
) -> Algorithm[ServerState]:
    """Builds agnostic federated averaging, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained; its metric ``loss`` is one number per example.
      domain_weights: The first weights l of the D domains, non-negative, of sum 1.
      domain_learning_rate: rate, of the exponentiated gradient; 0 leaves the weights as they are.
      domain_feature: The examples' feature that numbers their domain, an integer from 0 to D - 1. A domain without
        examples in a round counts as one without loss. A client with an example of another number is left out, and
        counted as not finite.
      window: Over how many rounds N_i is averaged; 1 in all of them before the first.
      **arguments: As for `fed_avg`, without a client weight: the weights are beta_k. The server learns the domains'
        losses from the metrics.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`, ``loss`` that of the model that was sent, ``domain_loss`` and
      ``domain_examples`` ``[D]``. The weights are ``state.optimizer.domain_weights``.

    Raises:
      ValueError: If the domain weights are no distribution, their learning rate is negative or the window empty;
        when initialised, if the model has batch statistics.
      TypeError: If a client weight is given.
    """
    model = no_batch_stats(model, "agnostic_fed_avg")
    check_integer("[1, inf)", window=window)
    check_number("[0, inf]", domain_learning_rate=domain_learning_rate)
    initial = np.asarray(domain_weights)
    if initial.ndim != 1 or not (np.all(initial >= 0) and abs(initial.sum() - 1) < 1e-5):
        raise ValueError(f"domain weights are non-negative and sum to 1; got {domain_weights=}. Divide by their sum.")
    if "client_weight" in arguments:
        raise TypeError("agnostic averaging weights clients by their domains; got client_weight. Leave it out.")

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, context: jax.Array
    ) -> ClientUpdate:
        losses = domain_losses(model, params, data, domain_feature, len(initial))
        of_a_domain = jnp.sum(losses.denominator) == jnp.sum(as_batches(data).index >= 0)
        beta = jnp.where(of_a_domain, jnp.sum(context * losses.denominator), jnp.nan)

        def weighted_loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
            share = context[batch[domain_feature]] * jnp.sum(batch[MASK]) / jnp.where(beta == 0, 1, beta)
            return share * one_each(model.loss(params, batch, key))  # `local_train` divides by the size of the batch

        weighted = model._replace(loss=weighted_loss)
        trained = local.train(weighted, params, data, key, optimizer=local.optimizer)
        sums = {"loss": jax.tree.map(jnp.sum, losses), "domain_loss": losses, "domain_examples": losses.denominator}
        return report_update(params, trained._replace(metrics=sums), lambda n: jnp.where(n > 0, beta, 0))

    def context(state: ServerState) -> jax.Array:
        num_examples = jnp.mean(state.optimizer.num_examples, axis=0)
        return state.optimizer.domain_weights / jnp.where(num_examples == 0, 1, num_examples)

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return worst_domains(optimizer, initial, domain_learning_rate, window)

    return compose(Method(model.init, client_update, server, context=context, input_spec=model.input_spec), **arguments)
