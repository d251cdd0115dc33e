"""How far the server moves, under a clip, where a client lies about all but its change: a part of `robustness`.

One of the clients says a multiple of its weight, its loss, its steps and its counts, or has inputs times 200. What is
measured is the farthest that a round moves the parameters, in parts of the clip, and the accuracy in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjx.aggregation import clip_by_norm
from fedjx.algorithms import fed_avg, fed_exp, fed_nova, q_fed_avg
from fedjx.algorithms.attacks import lying
from fedjx.core.execution.process import Algorithm
from fedjx.data import Cohort, FederatedData, preprocess
from fedjx.data.poison import only_clients
from fedjx.models import Model
from fedjx.training import Failures
from fedjx.training.method import ServerState

CLIP = 0.05
LIES: dict[str, float | None] = {"none": None, "inputs x 200": None, "says x 1e6": 1e6, "says x 1e-6": 1e-6}
METHODS: dict[str, Callable[..., Algorithm[ServerState]]] = {
    "FedAvg": fed_avg,
    "FedExP": fed_exp,
    "FedNova": fed_nova,
    "q-FedAvg": lambda model, **own: q_fed_avg(model, q=1.0, lipschitz=1.0, **own),
}

Moves = dict[str, dict[str, dict[str, float]]]  # method -> lie -> what is measured


def lies(
    data: FederatedData,
    model: Model,
    evaluate: Callable[[Any], Mapping[str, jax.Array]],
    *,
    num_clients: int,
    num_rounds: int = 20,
    seed: int = 0,
) -> Moves:
    """Trains every method under every lie; ``evaluate`` measures several models ``[M, ...]`` at once."""

    def is_malicious(client: Any) -> Any:
        return client == num_clients - 1

    def times_200(client: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**client, "x": 200 * client["x"].astype(np.float32)}

    in_floats = preprocess(data, lambda client: {**client, "x": client["x"].astype(np.float32)})
    huge = preprocess(in_floats, only_clients(lambda client: client == num_clients - 1, times_200))

    def moved(method: str, lie: str) -> dict[str, float]:
        factor = LIES[lie]
        failures = None if factor is None else Failures(forged=lying(is_malicious, factor=factor))
        algorithm = METHODS[method](
            model, client_optimizer=optax.sgd(0.5), aggregator=clip_by_norm(max_norm=CLIP), failures=failures
        )
        step, state, farthest = algorithm.next.in_graph(), algorithm.init(jax.random.key(seed)), 0.0
        clients = Cohort(huge if lie == "inputs x 200" else in_floats, range(num_clients), batch_size=16).whole()
        for _ in range(num_rounds):
            after, _ = step(state, clients)
            distance = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
            state, farthest = after, max(farthest, float(distance))
        accuracy = evaluate(jax.tree.map(lambda x: x[None], state.params))["accuracy"]
        return {"moves": farthest / CLIP, "accuracy": float(accuracy[0])}

    return {method: {lie: moved(method, lie) for lie in LIES} for method in METHODS}
