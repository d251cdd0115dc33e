"""DrJAX: a round as one compiled map and sum over the cohort, which is divided over the devices."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import drjax  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
from jax_net import masked_loss
from protocol import Problem, Weights, conversation, load_problem, without_dropout


def plan(problem: Problem, ids: list[int], num_clients: int) -> np.ndarray:
    """Returns rows of examples ``[C, S, B]``, -1 for padding; S is one of few numbers, so that few shapes compile."""
    longest = max(-(-problem.size(k) // problem.batch_size) for k in ids)
    power = 1 << (longest - 1).bit_length()
    num_steps = 3 * power // 4 if power >= 4 and longest <= 3 * power // 4 else power
    position = np.arange(num_steps * problem.batch_size).reshape(num_steps, -1)
    rows = [np.where(position < problem.size(k), problem.offsets[k] + position, -1) for k in ids]
    rows += [np.full_like(position, -1)] * (num_clients - len(ids))
    return np.stack(rows).astype(np.int32)


def round_program(problem: Problem, net: Any, num_clients: int) -> Any:
    """Returns ``(params, pool, rows, keys) -> sums over clients``, in DrJAX's operators."""

    def train(params: Any, pool: Any, rows: Any, key: Any) -> tuple[Any, Any]:
        def step(params: Any, batch: Any) -> tuple[Any, Any]:
            rows, t = batch
            mask, (x, y) = rows >= 0, jax.tree.map(lambda column: column[rows], pool)
            key_step = jax.random.fold_in(key, t)
            loss, grads = jax.value_and_grad(masked_loss)(params, x, y, mask, net, key_step)
            # The gradient of a batch without a real example is zero.
            return jax.tree.map(lambda p, g: p - problem.rate * g, params, grads), loss * mask.sum()

        steps = (rows, jnp.arange(rows.shape[0]))
        params, losses = jax.lax.scan(step, params, steps)
        return params, losses.sum()

    @drjax.program(placements={"clients": num_clients})
    def run(params: Any, pool: Any, rows: Any, keys: Any) -> Any:
        def weighted(params: Any, rows: Any, key: Any) -> Any:
            weight = (rows >= 0).sum().astype(jnp.float32)
            trained, loss = train(params, pool, rows, key)
            return jax.tree.map(lambda p: p * weight, trained), loss

        # drjax.reduce_weighted_mean does not take a pytree with one weight.
        return drjax.reduce_sum(drjax.map_fn(weighted, (drjax.broadcast(params), rows, keys)))

    return jax.jit(run)


class Rounds:
    """Rounds of cohorts of one size, padded to a multiple of the devices; compiles per number of steps."""

    def __init__(self, problem: Problem, net: Any, cohort_size: int):
        self.problem = problem
        self.num_clients = -(-cohort_size // jax.device_count()) * jax.device_count()
        self._pool = jax.device_put((np.array(problem.x), np.array(problem.y)))
        self._program = round_program(problem, net, self.num_clients)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def compile(self, ids: list[int]) -> np.ndarray:
        """Compiles what a cohort needs, and returns its plan."""
        rows = plan(self.problem, ids, self.num_clients)
        if rows.shape not in self._compiled:
            keys = jax.random.split(jax.random.key(0), self.num_clients)
            lowered = self._program.lower(self.problem.weights, self._pool, rows, keys)
            self._compiled[rows.shape] = lowered.compile()
        return rows

    def run(self, params: Any, ids: list[int], key: Any) -> tuple[Any, float]:
        """Runs a round; returns the mean of the clients' parameters, and of their losses."""
        rows = self.compile(ids)
        keys = jax.random.split(key, self.num_clients)
        sums = self._compiled[rows.shape](params, self._pool, rows, keys)
        params, loss = jax.tree.map(lambda x: x / sum(map(self.problem.size, ids)), sums)
        return jax.block_until_ready(params), float(loss)


def main() -> None:
    serve = conversation()
    problem = load_problem(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", problem.num_cores)
    auto = (jax.sharding.AxisType.Auto,)
    jax.set_mesh(jax.make_mesh((jax.device_count(),), ("clients",), axis_types=auto))
    params, round_number = jax.device_put(problem.weights), 0
    training = Rounds(problem, problem.net, len(problem.cohorts[0]))

    def run_round(ids: list[int]) -> float:
        nonlocal params, round_number
        round_number += 1
        params, loss = training.run(params, ids, jax.random.key(round_number))
        return loss

    def run_check(ids: list[int]) -> Weights:
        check = Rounds(problem, without_dropout(problem.net), len(ids))
        trained, _ = check.run(jax.device_put(problem.weights), ids, jax.random.key(0))
        return {name: np.asarray(p) for name, p in trained.items()}

    for ids in problem.cohorts:
        training.compile(ids)
    version = f"drjax {importlib.metadata.version('drjax')}, jax {jax.__version__}, {jax.device_count()} devices"
    serve(version=version, run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
