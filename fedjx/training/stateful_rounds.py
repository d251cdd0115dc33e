"""Rounds of an algorithm whose clients' states are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.execution.streaming import Stream
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.streams import AtClients, Planned, is_planned
from fedjx.core.language.values import Clients
from fedjx.data.client_states import ClientStates


class Counted(Protocol):
    """A server's state that counts the rounds that are done, int32 ``[]``."""

    @property
    def round(self) -> jax.Array: ...  # noqa: D102


State = TypeVar("State", bound=Counted)


class StatefulRounds(NamedTuple, Generic[State]):
    """A round as a function of the server's state and a cohort, as that of an algorithm without client states.

    Attributes:
      stream: The streamed computation, whose sink is that of the states.
      states: Those of all clients, in the round that the server's state is in.
      durable: Whether every round waits until its states are on disk.
    """

    stream: Stream[[State, AtClients, AtClients], tuple[State, Metrics, Clients]]
    states: ClientStates
    durable: bool

    def __call__(self, state: State, cohort: Planned) -> tuple[State, Metrics]:
        """Takes the cohort's states, runs the round, puts the new states and commits them.

        States that are ahead of the server's, since it comes from an earlier checkpoint, return to its round first.

        Returns:
          The server's new state, and the metrics.

        Raises:
          ValueError: If the states are not, and were not, in the round of the server's state.
        """
        if not is_planned(cohort):
            raise TypeError(f"rounds with states on disk take a Cohort; got {type(cohort).__name__}.")
        if len(np.unique(cohort.ids)) < len(cohort.ids):
            raise ValueError(
                "a client has one state, so it is in a cohort once; got an id twice. Sample without replacement."
            )
        round = int(state.round)
        self.states.rollback(round)
        state, metrics, _ = self.stream(state, cohort, self.states.cohort(cohort.ids))
        self.states.commit(round + 1, durable=self.durable)
        return state, metrics

    def ahead(self, cohorts: Iterable[Planned], **limits: int) -> Iterator[Planned]:
        """Yields cohorts whose chunks a background thread makes; see `fedjx.core.execution.streaming.Stream.ahead`."""
        return self.stream.ahead(cohorts, **limits)


def stateful_rounds(
    algorithm: StatefulAlgorithm[State, PyTree], states: ClientStates, *, mesh: Mesh | None = None, durable: bool = True
) -> StatefulRounds[State]:
    """Joins an algorithm and the states of its clients on disk.

    Args:
      algorithm: Its server's state has a field ``round``, how many rounds are done.
      states: Of all clients; new ones, or those of a run that goes on.
      mesh: The devices; all if not given.
      durable: Whether every round waits until its states are on disk. If not, call ``states.sync()`` before each
        checkpoint, for it is of use only with the states of its round.

    Guarantees: A run that resumes from a checkpoint of the server's state ends with the same bits as one that was not
    interrupted, wherever that was.

    >>> import tempfile, optax
    >>> from fedjx.algorithms.scaffold import scaffold
    >>> train, _ = fedjx.data.digits(num_clients=20)
    >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1))
    >>> algorithm = scaffold(model, num_clients=20, client_optimizer=optax.sgd(0.01))
    >>> state = algorithm.init(jax.random.key(0))
    >>> states = fedjx.data.ClientStates(tempfile.mkdtemp() + "/states", algorithm.init_client(state), num_clients=20)
    >>> step = stateful_rounds(algorithm, states)
    >>> for ids in ([3, 5, 8], [5, 9, 1]):
    ...     state, metrics = step(state, fedjx.data.Cohort(train, ids, batch_size=20, lanes=1))
    >>> int(state.round), states.round, states.num_touched
    (2, 2, 5)
    """
    if not isinstance(algorithm, StatefulAlgorithm) or not isinstance(states, ClientStates):
        raise TypeError(
            "stateful_rounds takes an algorithm whose clients keep a state, and their ClientStates; "
            f"got {type(algorithm).__name__} and {type(states).__name__}."
        )
    return StatefulRounds(algorithm.next.streamed(mesh=mesh, sink=states.sink), states, durable)
