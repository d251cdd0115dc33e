"""pFedMe: federated averaging of the clients' Moreau envelopes.

T. Dinh et al., "Personalized Federated Learning with Moreau Envelopes" (arXiv 2006.08848, algorithm 1). A client's
personal model is ``theta(w) = argmin f(theta) + lambda/2 |theta - w|^2``, and that minimum, as a function of w, is what
is trained: its gradient is ``lambda (w - theta(w))``. The server's ``(1 - beta) w + beta mean(w_i)`` is
``server_optimizer=optax.sgd(beta)``.
"""

from __future__ import annotations

from typing import Unpack

import jax
import optax
from jax import lax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import squared_norm
from fedjx.models.model import Batch, Model, batch_loss, map_loss
from fedjx.training.method import ServerState, averaging
from fedjx.training.round import TrainingArguments, compose


def p_fed_me(
    model: Model,
    *,
    proximal_strength: float,
    inner_optimizer: optax.GradientTransformation,
    num_inner_steps: int = 5,
    **arguments: Unpack[TrainingArguments],
) -> Algorithm[ServerState]:
    """Builds pFedMe, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      proximal_strength: lambda.
      inner_optimizer: Of theta, from w on each batch.
      num_inner_steps: K, how many steps of it approximate the minimum.
      **arguments: As for `fed_avg`. The client optimizer is that of a client's copy of w, one step a batch, in the
        paper ``optax.sgd(eta)``, whose client weight is `uniform`.

    Returns:
      An `Algorithm`, without client states, as a personal model is a function of w: the strategy `fine_tuning` with
      ``optax.chain(proximal(lambda), inner_optimizer)``, `proximal` being that of `fed_prox`. Its metrics are those of
      `fed_avg`, ``loss`` the envelope's.

    Raises:
      ValueError: If the proximal strength or the number of inner steps is not positive.
    """
    check_number("(0, inf]", "Use fed_avg without.", proximal_strength=proximal_strength)
    check_integer("[1, inf)", num_inner_steps=num_inner_steps)
    envelope = moreau_envelope(model, strength=proximal_strength, optimizer=inner_optimizer, num_steps=num_inner_steps)
    return compose(averaging(envelope), **arguments)


def moreau_envelope(model: Model, *, strength: float, optimizer: optax.GradientTransformation, num_steps: int) -> Model:
    """Returns the model whose loss on a batch is ``min_theta f(theta) + strength/2 |theta - params|^2``.

    The minimum is approximated by steps of the optimizer from the parameters, and not differentiated through.
    """

    def personal(params: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        def objective(theta: PyTree) -> jax.Array:
            mean, _ = batch_loss(model)(theta, batch, key)
            return mean + _distance(theta, params, strength)

        def step(_: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            theta, state = carry
            updates, state = optimizer.update(jax.grad(objective)(theta), state, theta)
            return optax.apply_updates(theta, updates), state

        return lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        theta = lax.stop_gradient(personal(lax.stop_gradient(params), batch, key))
        away = _distance(theta, params, strength)
        return map_loss(lambda loss, count: loss + count * away, model.loss(theta, batch, key))

    return model._replace(loss=loss)


def _distance(theta: PyTree, params: PyTree, strength: float) -> jax.Array:
    return strength / 2 * squared_norm(optax.tree.sub(theta, params))
