"""A loop in plain JAX: one compiled step for each batch, one process."""

from __future__ import annotations

import functools
import sys
from typing import Any

import flax_net
import jax
import jax_net
import numpy as np
from protocol import Problem, Weights, conversation, load_problem, without_dropout


@functools.partial(jax.jit, static_argnames=("net", "rate"), donate_argnums=0)
def step(params: Any, x: Any, y: Any, mask: Any, key: Any, *, net: Any, rate: float) -> tuple[Any, Any]:
    """Takes one step of gradient descent on a batch."""
    masked_loss = (flax_net if "name" in dict(net) else jax_net).masked_loss
    loss, grads = jax.value_and_grad(masked_loss)(params, x, y, mask, dict(net), key)
    return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cuts a client's examples into batches, the last filled up with its first example and masked."""
    rows = np.arange(-(-len(y) // size) * size).reshape(-1, size)
    real = rows < len(y)
    rows = np.where(real, rows, 0)
    return [(x[r], y[r], m) for r, m in zip(rows, real, strict=True)]


def train(problem: Problem, data: Any, params: Any, ids: list[int], key: Any, net: Any) -> tuple[Any, float]:
    """Runs one round; returns the mean of the clients' parameters, and of their losses."""
    total, num_examples, sums = None, sum(problem.size(k) for k in ids), []
    for k in ids:
        own = jax.tree.map(lambda p: p.copy(), params)
        for t, (x, y, mask) in enumerate(data[k]):
            key_step = jax.random.fold_in(jax.random.fold_in(key, k), t)
            own, loss = step(own, x, y, mask, key_step, net=net, rate=problem.rate)
            sums.append((loss, mask.sum()))
        weight = problem.size(k) / num_examples
        total = add(total, own, weight) if total is not None else scale(own, weight)
    loss = sum(float(loss) * int(n) for loss, n in sums) / num_examples
    return jax.block_until_ready(total), loss


@jax.jit
def scale(params: Any, weight: float) -> Any:
    """Multiplies parameters by a number."""
    return jax.tree.map(lambda p: p * weight, params)


@functools.partial(jax.jit, donate_argnums=0)
def add(total: Any, params: Any, weight: float) -> Any:
    """Adds weighted parameters to a sum."""
    return jax.tree.map(lambda a, p: a + p * weight, total, params)


def main() -> None:
    serve = conversation()
    problem = load_problem(sys.argv[1])
    data = {k: batches(*problem.client(k), problem.batch_size) for k in range(problem.num_clients)}
    params, round_number = jax.device_put(problem.weights), 0

    def frozen(net: Any) -> Any:
        return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in net.items())

    def run_round(ids: list[int]) -> float:
        nonlocal params, round_number
        round_number += 1
        key = jax.random.fold_in(jax.random.key(0), round_number)
        params, loss = train(problem, data, params, ids, key, frozen(problem.net))
        return loss

    def run_check(ids: list[int]) -> Weights:
        start = jax.device_put(problem.weights)
        trained, _ = train(problem, data, start, ids, jax.random.key(0), frozen(without_dropout(problem.net)))
        return {name: np.asarray(p) for name, p in trained.items()}

    serve(version=f"jax {jax.__version__}", run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
