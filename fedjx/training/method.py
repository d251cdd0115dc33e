"""What a method is: a small value of pure functions, and the state that its server has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import map_keeping, number_dtype
from fedjx.models.inputs import AnySpec
from fedjx.models.model import Model
from fedjx.training.client import (
    ClientUpdate,
    local_update,
)

Reported = ClientUpdate | tuple[ClientUpdate, PyTree]  # a client's update, and what it keeps, if it keeps anything


class ServerState(NamedTuple):
    """The server's state between rounds, of every method.

    Attributes:
      params: The model's parameters.
      optimizer: The server optimizer's state, and what else a method's server keeps.
      aggregator: The aggregator's state; a pair if there is a pass before the round.
      broadcaster: The broadcaster's state.
      key: The random key of the whole run; never changes.
      round: int32 ``[]``; how many rounds are done.
    """

    params: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


InitClient = Callable[[ServerState], PyTree]  # makes the state of a client that was never here

if TYPE_CHECKING:  # Python has defaults of type variables from 3.13 on.
    from typing_extensions import TypeVar

    Init = TypeVar("Init", bound=InitClient | None, default=None, covariant=True)
else:
    from typing import TypeVar

    Init = TypeVar("Init", covariant=True)


class Method(NamedTuple, Generic[Init]):
    """What a method is: pure functions of one client and of the server.

    To a type checker it is a ``Method[None]`` if clients keep no state, and then `compose` makes an `Algorithm` of it.

    Attributes:
      init: ``(key) -> params``, the first parameters.
      client_update: ``(params, data, key) -> ClientUpdate``, of one client. What else it takes, it takes by name, as
        keyword-only parameters: ``local``, a `Local`, how clients train in this run, or ``weight`` of it alone;
        ``id``, the client's, int32 ``[]``; ``context``, ``own`` and ``first``, see below. If clients keep a state it
        returns ``(ClientUpdate, own)``.
      server: ``(server_optimizer) -> optimizer``, what the server does around the run's server optimizer, as an optax
        transformation. It is applied to the aggregated delta as if it were a gradient, and gets the round's
        ``metrics``, its loss as ``value`` if there is one, and what comes of the pass before as ``first``.
      init_client: ``(state) -> own``, the state of a client that was never here, if clients keep one. A client keeps
        the one it came with if it has no examples, if its update weighs nothing, as one that is not finite does, or if
        its new state is not finite, which is counted. What an aggregator does with the update, or leaves out, does not
        matter to it.
      sent: ``(state) -> value``, what the broadcaster sends and the client update gets as ``params``; the parameters
        if not given.
      context: ``(state) -> context``, what the server tells the clients besides, as it is.
      first: A pass over the clients before the round, ``(params, data, key) -> ClientUpdate``, which takes by name
        what `client_update` does. It goes through the run's own aggregator, with a state apart, so clipping and robust
        rules hold for it too; its metrics are not reported. The client update gets, as ``first``, a `First`. Who is not
        finite in the first pass, or fails, is left out of the second; whom an aggregator leaves out is not.
      bounded_metrics: ``(ClientUpdate) -> metrics``, what the server takes of each client's update besides the mean of
        the deltas, as the aggregator lets it through (`Aggregator.bounded`); summed with the client's metrics, and over
        those of the same names. It is computed from the delta, not said by the client, so that no client moves the
        server further by it than the aggregator lets its delta. Aggregators that bound no client by itself are refused.
      delta: ``(params) -> value``, of the type of a client's delta; the parameters if not given.
      first_delta: The same of what clients send in the pass before.
      input_spec: The model's, if the cohort's examples are what the model is given: data that it cannot have are
        refused when they first come.

    >>> import optax
    >>> from fedjx.training import ClientUpdate, compose
    >>> def client_update(center, data, key):  # one step towards each of its numbers
    ...     moved = fedjx.sequence_reduce(lambda c, batch: c + 0.5 * (batch["x"].mean() - c), center, data)
    ...     return ClientUpdate(center - moved, jnp.float32(1), {})
    >>> algorithm = compose(Method(lambda key: jnp.float32(0), client_update), server_optimizer=optax.sgd(1.0))
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([4])}, {"x": np.float32([8, 4])}])
    >>> state = algorithm.init(jax.random.key(0))
    >>> state, _ = algorithm.next(state, fedjx.data.Cohort(data, [0, 1], batch_size=1))
    >>> float(state.params)  # the mean of 2 and 4
    3.0
    """

    init: Callable[[jax.Array], PyTree]
    client_update: Callable[..., Reported]
    server: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda optimizer: optimizer
    init_client: Init | None = None
    sent: Callable[[ServerState], PyTree] | None = None
    context: Callable[[ServerState], PyTree] | None = None
    first: Callable[..., ClientUpdate] | None = None
    bounded_metrics: Callable[[ClientUpdate], Metrics] | None = None
    delta: Callable[[PyTree], PyTree] | None = None
    first_delta: Callable[[PyTree], PyTree] | None = None
    input_spec: AnySpec | None = None


def averaging(model: Model) -> Method[None]:
    """Returns federated averaging of a model: what clients do is train it."""
    client_update = local_update(model)
    return Method(model.init, client_update, input_spec=model.input_spec)


class First(NamedTuple):
    """What a pass before the round tells a client: its own update there, and what came of all."""

    update: ClientUpdate
    result: PyTree


class Held(NamedTuple):
    """What a client keeps where both the method and the aggregator have something: its own state, and the memory."""

    own: PyTree
    memory: PyTree


class Scaled(NamedTuple):
    """The state of `scale_delta`: the last round's factor, ``[]`` of `number_dtype`, 1 at first."""

    scale: jax.Array


def scale_delta(scale: Callable[[PyTree, Metrics], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies the aggregated delta by ``(delta, metrics) -> scale``; to be chained before a server's optimizer."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, metrics: PyTree = None, **_: PyTree
    ) -> tuple[PyTree, Scaled]:
        del params
        factor = scale(updates, metrics)
        return map_keeping(lambda d: factor * d, updates), Scaled(factor.astype(state.scale.dtype))

    return optax.GradientTransformationExtraArgs(lambda params: Scaled(jnp.ones((), number_dtype(params))), update)
