"""SCAFFOLD: control variates against the drift of clients with different data.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (arXiv
1910.06378, algorithm 1, options I and II).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Unpack

import jax
import optax

from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import cast_like, map_keeping, number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.gradients import averaged, local_gradient, shift
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def scaffold(
    model: Model,
    *,
    num_clients: int,
    option: Literal["I", "II"] = "II",
    participation: float | None = None,
    **arguments: Unpack[TrainingArguments],
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds SCAFFOLD, of the arguments of `fed_avg` and its own.

    Server and clients send parameters and control together, through the broadcaster and the aggregator.

    Args:
      model: What is trained.
      num_clients: The paper's N: all clients there are, not those of a round.
      option: Which gradient becomes a client's control: "I", that of all its examples at the server's parameters, for
        one more pass over them; "II", the mean of those of its local steps, which costs nothing. With plain SGD of
        rate η and K steps that is the paper's ``c_i - c + (x - y) / (K η)``.
      participation: The part of all clients that is in a round, the paper's ``|S| / N``; what each round counts if not
        given. With a private aggregator it must be, such as the probability of `poisson_sampler`: nothing that the
        server does may depend on who is there.
      **arguments: As for `fed_avg`. The client optimizer gets the corrected gradients, g - c_i + c; as server optimizer
        ``optax.sgd(rate)`` is the paper's global step size. Clients weigh alike if no ``client_weight`` is given;
        weighted clients have weighted controls: c is then the weighted mean of them, in expectation.

    Returns:
      A `StatefulAlgorithm`; c is ``state.optimizer.control``, and a client's state is its control c_i, of the
      parameters' type.

    Guarantees: With uniform weights and the mean, c stays the mean of all N clients' controls.

    Raises:
      ValueError: If ``num_clients`` or ``participation`` is not positive, or the option another; when initialised, if
        the model has batch statistics.
    """
    check_integer("[1, inf)", num_clients=num_clients)
    check_choice(("I", "II"), option=option)
    if participation is not None:
        check_number("(0, 1]", participation=participation)
    model = no_batch_stats(model, "scaffold")

    def client_update(
        sent: tuple[PyTree, PyTree], data: Sequence, key: jax.Array, *, local: Local, own: PyTree
    ) -> tuple[ClientUpdate, PyTree]:
        params, control = sent
        corrected = optax.chain(averaged(), shift(optax.tree.sub(control, own)), local.optimizer)
        trained = local.train(model, params, data, key, optimizer=corrected)
        new = (
            cast_like(own, trained.optimizer[0].mean)
            if option == "II"
            else local_gradient(model, params, data, key).gradient
        )
        return local.report((params, own), trained._replace(params=(trained.params, new))), new

    method = Method(
        model.init,
        client_update,
        server=lambda optimizer: controlled(optimizer, num_clients, participation),
        init_client=lambda state: optax.tree.zeros_like(state.params),
        sent=lambda state: (state.params, state.optimizer.control),
        delta=lambda params: (params, params),
        input_spec=model.input_spec,
    )
    arguments.setdefault("client_weight", uniform)
    return compose(method, **arguments)


class Controlled(NamedTuple):
    """What the server of SCAFFOLD keeps: c, of the parameters' type, and the server optimizer's state."""

    control: PyTree
    inner: PyTree


def controlled(
    server_optimizer: optax.GradientTransformation, num_clients: int, participation: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Applies the aggregated change of controls to c, for the part of all clients that it is of."""
    inner = optax.with_extra_args_support(server_optimizer)

    def init(params: PyTree) -> Controlled:
        return Controlled(optax.tree.zeros_like(params), inner.init(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, metrics: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, Controlled]:
        share = participation
        if share is None:
            share = metrics["num_clients"].astype(number_dtype(params)) / num_clients
        control = map_keeping(lambda c, d: c - share * d, state.control, updates[1])
        steps, inner_state = inner.update(updates[0], state.inner, params, metrics=metrics, **extra)
        return steps, Controlled(control, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
