"""DrJAX: a round as one compiled map and weighted mean over the cohort, which is divided over the devices."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import sys
from typing import Any

import drjax  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
from jax_net import masked_loss
from protocol import Problem, Weights, conversation, load_problem, without_dropout


def plan(problem: Problem, ids: list[int]) -> np.ndarray:
    """Returns rows of examples ``[C, S, B]``, -1 for padding; S is one of few numbers, so that few shapes compile."""
    longest = max(-(-problem.size(k) // problem.batch_size) for k in ids)
    power = 1 << (longest - 1).bit_length()
    num_steps = 3 * power // 4 if power >= 4 and longest <= 3 * power // 4 else power
    position = np.arange(num_steps * problem.batch_size).reshape(num_steps, -1)
    rows = [np.where(position < problem.size(k), problem.offsets[k] + position, -1) for k in ids]
    return np.stack(rows).astype(np.int32)


def round_program(problem: Problem, net: Any, num_clients: int) -> Any:
    """Returns ``(params, pool, rows, keys) -> (params, mean loss)``, in DrJAX's operators."""

    def train(params: Any, pool: Any, rows: Any, key: Any) -> tuple[Any, Any]:
        def step(params: Any, batch: Any) -> tuple[Any, Any]:
            rows, t = batch
            mask, (x, y) = rows >= 0, jax.tree.map(lambda column: column[rows], pool)
            key_step = jax.random.fold_in(key, t)
            loss, grads = jax.value_and_grad(masked_loss)(params, x, y, mask, net, key_step)
            # The gradient of a batch without a real example is zero.
            return jax.tree.map(lambda p, g: p - problem.rate * g, params, grads), loss * mask.sum()

        params, losses = jax.lax.scan(step, params, (rows, jnp.arange(rows.shape[0])))
        return params, losses.sum() / jnp.maximum((rows >= 0).sum(), 1)

    @drjax.program(placements={"clients": num_clients})
    def run(params: Any, pool: Any, rows: Any, keys: Any) -> Any:
        def weighted(params: Any, rows: Any, key: Any) -> Any:
            weight = (rows >= 0).sum().astype(jnp.float32)
            return jax.tree.map(lambda x: x * weight, train(params, pool, rows, key)), weight

        # drjax.reduce_weighted_mean does not take a pytree with one weight.
        sums, weight = drjax.reduce_sum(drjax.map_fn(weighted, (drjax.broadcast(params), rows, keys)))
        return jax.tree.map(lambda x: x / weight, sums)

    return jax.jit(run)


def main() -> None:
    serve = conversation()
    problem = load_problem(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", problem.num_cores)
    # A cohort needs to be a multiple of the devices.
    num_devices = math.gcd(jax.device_count(), len(problem.cohorts[0]), 4)
    auto = (jax.sharding.AxisType.Auto,)
    jax.set_mesh(jax.make_mesh((num_devices,), ("clients",), axis_types=auto, devices=jax.devices()[:num_devices]))
    params, round_number = jax.device_put(problem.weights), 0
    pool = jax.device_put((np.array(problem.x), np.array(problem.y)))

    @functools.cache
    def compiled(num_clients: int, num_steps: int, is_check: bool) -> Any:
        net = without_dropout(problem.net) if is_check else problem.net
        rows = jnp.zeros((num_clients, num_steps, problem.batch_size), jnp.int32)
        keys = jax.random.split(jax.random.key(0), num_clients)
        return round_program(problem, net, num_clients).lower(problem.weights, pool, rows, keys).compile()

    def run(params: Any, ids: list[int], number: int, *, is_check: bool) -> Any:
        rows = plan(problem, ids)
        keys = jax.random.split(jax.random.key(number), len(ids))
        return jax.block_until_ready(compiled(len(ids), rows.shape[1], is_check)(params, pool, rows, keys))

    def run_round(ids: list[int]) -> float:
        nonlocal params, round_number
        round_number += 1
        params, loss = run(params, ids, round_number, is_check=False)
        return float(loss)

    def run_check(ids: list[int]) -> Weights:
        trained, _ = run(problem.weights, ids, 0, is_check=True)
        return {name: np.asarray(p) for name, p in trained.items()}

    for ids in problem.cohorts:
        compiled(len(ids), plan(problem, ids).shape[1], False)
    version = f"drjax {importlib.metadata.version('drjax')}, jax {jax.__version__}, {num_devices} devices"
    serve(version=version, run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
