"""fedjx: FedAvg streamed over all devices, which on a CPU are its cores."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import flax_net
import jax
import jax_net
import optax
from protocol import Problem, Weights, conversation, load_problem, without_dropout

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model, Ratio, from_flax


def algorithm(problem: Problem, data: FederatedData, net: Any) -> tuple[Any, Any]:
    """Returns the initial state, and the round: ``(state, ids) -> (state, metrics)``.

    The first rounds are run again, and forgotten, until it is decided how many clients run at once.
    """
    fed: Any = fed_avg(model_of(problem, net), client_optimizer=optax.sgd(problem.rate), shuffle=False)
    round_fn = fed.next.streamed()

    def run(state: Any, ids: list[int]) -> tuple[Any, Any]:
        cohort = Cohort(data, ids, batch_size=problem.batch_size)
        result = round_fn(state, cohort)
        while not round_fn.is_settled:
            result = jax.block_until_ready(round_fn(state, cohort))
        return result

    return fed.init(jax.random.key(0)), run


def model_of(problem: Problem, net: Any) -> Model:
    """Returns the network, as a module of Flax or written by hand, with the weights of the problem."""
    if "name" in net:
        module, weights = flax_net.network(net), flax_net.nested(problem.weights)
        model = from_flax(module, loss=lambda scores, batch: Ratio(*flax_net.summed_losses(scores, batch["y"])))
        return model._replace(init=lambda key: jax.tree.map(jax.numpy.asarray, weights))
    return Model(
        init=lambda key: jax.tree.map(jax.numpy.asarray, problem.weights),
        loss=lambda params, batch, key: jax_net.losses(params, batch["x"], batch["y"], net, key),
        metrics=lambda params, batch: {},
    )


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
        return flax_net.flat(trained.params)

    devices = f"{jax.device_count()} {jax.default_backend()} devices"
    version = f"fedjx {importlib.metadata.version('fedjx')}, jax {jax.__version__}, {devices}"
    serve(version=version, run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
