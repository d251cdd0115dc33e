"""fedjx: FedAvg streamed over all devices, which on a CPU are its cores."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax_net import losses
from protocol import Problem, Weights, conversation, load_problem, without_dropout

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model


def algorithm(problem: Problem, data: FederatedData, net: Any) -> tuple[Any, Any]:
    """Returns the initial state, and the round: ``(state, ids) -> (state, metrics)``."""
    model = Model(
        init=lambda key: jax.tree.map(jax.numpy.asarray, problem.weights),
        loss=lambda params, batch, key: losses(params, batch["x"], batch["y"], net, key),
        metrics=lambda params, batch: {},
    )
    fed: Any = fed_avg(model, client_optimizer=optax.sgd(problem.rate), shuffle=False)
    round_fn = fed.next.streamed()

    def run(state: Any, ids: list[int]) -> tuple[Any, Any]:
        return round_fn(state, Cohort(data, ids, batch_size=problem.batch_size))

    return fed.init(jax.random.key(0)), run


def main() -> None:
    serve = conversation()
    problem = load_problem(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", problem.num_cores)
    data = FederatedData({"x": problem.x, "y": problem.y}, problem.offsets)
    state, run = algorithm(problem, data, problem.net)
    start, run_without_dropout = algorithm(problem, data, without_dropout(problem.net))

    def run_round(ids: list[int]) -> float:
        nonlocal state
        state, metrics = run(state, ids)
        jax.block_until_ready(state.params)
        return float(metrics["loss"])

    def run_check(ids: list[int]) -> Weights:
        trained, _ = run_without_dropout(start, ids)
        return {name: np.asarray(p) for name, p in trained.params.items()}

    devices = f"{jax.device_count()} {jax.default_backend()} devices"
    version = f"fedjx {importlib.metadata.version('fedjx')}, jax {jax.__version__}, {devices}"
    serve(version=version, run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
