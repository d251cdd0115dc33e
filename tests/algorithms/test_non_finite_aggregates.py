"""An aggregate that is not finite leaves the server as it was, and is counted; the next round goes on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx import algorithms as methods
from fedjx.aggregation import clip_adaptively, compressed_broadcast, secure_mean, uniform_quantizer
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.placed import federated_map
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import assert_trees_equal
from tests.algorithms.test_every_combination import DATA, everything, toy
from tests.algorithms.test_fed_opt import constant_change

SGD = optax.sgd(0.1, momentum=0.5)


def nan_for(number: int, inner: Aggregator) -> Aggregator:
    """Makes one element of the result NaN in the first rounds; the rounds are counted by a state of its own."""

    def init(member: Any) -> Any:
        return jnp.int32(0), inner.init(member)

    def spoiled(round: Any, result: Any) -> Any:
        leaves, treedef = jax.tree.flatten(result)
        first = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
        return treedef.unflatten([jnp.where(round < number, first, leaves[0]), *leaves[1:]])

    @federated_computation
    def next(key: Any, state: Any, value: Any, weight: Any) -> Any:
        round, inner_state = state[0], state[1]
        inner_state, result, measured = inner.next(key, inner_state, value, weight)
        counted = federated_map(lambda round: round + 1, round)
        return (counted, inner_state), federated_map(spoiled, round, result), measured

    return Aggregator(init, next)


class OneRound:
    """Rounds of up to three clients."""

    def __init__(self, algorithm: Any):
        self.algorithm, self.step = algorithm, algorithm.next.in_graph()
        self.state = algorithm.init(jax.random.key(0))

    def __call__(self, number: int = 3) -> dict[str, Any]:
        clients = Cohort(DATA, range(number), batch_size=2).whole(num_steps=1, num_places=3)
        if not isinstance(self.algorithm, StatefulAlgorithm):
            self.state, metrics = self.step(self.state, clients)
            return metrics
        states = jax.tree.map(lambda x: jnp.stack([x] * 3), self.algorithm.init_client(self.state))
        states = Clients.of(states, ids=clients.id, mask=clients.mask)
        self.state, metrics, after = self.step(self.state, clients, states)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.value))
        return metrics


NAN = nan_for(10, clip_adaptively(initial=0.01))
BROADCASTER = compressed_broadcast(uniform_quantizer(4, stochastic=False), error_feedback=True, where=everything)
SPOILED = {
    "states everywhere": methods.fed_adam(toy(), client_optimizer=SGD, aggregator=NAN, broadcaster=BROADCASTER),
    "a pass before": methods.mime(toy(), base_optimizer=SGD, aggregator=NAN),
    "client states": methods.scaffold(toy(), num_clients=3, client_optimizer=SGD, aggregator=NAN),
    "an adaptive server": methods.fed_prox(
        toy(), proximal_strength=0.1, adaptive=True, client_optimizer=SGD, aggregator=NAN
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_nothing_of_the_server_moves_but_the_round(name):
    run = OneRound(SPOILED[name])
    before = run.state
    metrics = run()
    assert int(metrics["num_non_finite_aggregates"]) == 1
    assert int(metrics["num_clients"]) == 3 or name == "a pass before"
    assert int(run.state.round) == int(before.round) + 1
    assert_trees_equal(run.state._replace(round=before.round), before)


def test_a_secure_sum_of_too_many_clients_loses_a_round_and_no_more():
    aggregator = secure_mean(bound=10.0, max_weight=4.0, max_clients=2)
    run = OneRound(methods.fed_avg(toy(), client_optimizer=SGD, server_optimizer=SGD, aggregator=aggregator))
    for number, lost in ((2, 0), (3, 1), (2, 0)):
        before, metrics = run.state, run(number=number)
        assert int(metrics["num_non_finite_aggregates"]) == lost
        assert int(metrics["num_non_finite_clients"]) == 0
        moved = not np.array_equal(run.state.params["head"], before.params["head"])
        assert moved == (lost == 0)


def test_deltas_whose_sum_overflows_lose_a_round_and_no_more():
    """Each is finite."""
    algorithm = methods.fed_avg(constant_change(), client_optimizer=optax.sgd(1.0))
    state = algorithm.init(jax.random.key(0))
    for change, lost, reached in ((1.0, 0, 1.0), (2e38, 1, 1.0), (3.0, 0, 4.0)):
        data = FederatedData.from_clients([{"y": np.float32([change])}] * 3)
        state, metrics = algorithm.next(state, Cohort(data, range(3), batch_size=1).whole())
        assert (int(metrics["num_non_finite_aggregates"]), int(metrics["num_non_finite_clients"])) == (lost, 0)
        assert abs(float(state.params)) == reached
