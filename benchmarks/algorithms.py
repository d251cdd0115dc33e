"""Methods of federated optimisation compared: tuned on one grid, several seeds, clients that differ strongly.

A small network on the handwritten digits, split by Dirichlet label skew. A method's whole grid of client and server
learning rates, times all seeds, is one vmapped program; the grids of those named by `--sequential` also run point by
point, in turns with the one program: as a loop over one compiled point, and as a plain script with an algorithm for
each point and a call for each round. Rates are chosen by the accuracy on one half of the test set; that on the other
half is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, quartiles, start, table
from benchmarks.methods import METHODS
from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data import Cohort, central, digits, uniform_sampler
from fedjx.models import finalize_metrics, mlp
from fedjx.training import local_evaluate

LAST = 10  # Rounds whose accuracies are averaged.


def parse_flags(args: list[str] | None = None) -> Any:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD", help="which to run")
    flag("--num-clients", type=int, default=30, help="clients")
    flag("--cohort", type=int, default=6, help="of them in a round")
    flag(
        "--alpha",
        type=float,
        default=0.1,
        help="concentration of the label skew; 0.1 gives a client one to three digits",
    )
    flag("--num-rounds", type=int, default=60, help="rounds of training")
    flag("--num-seeds", type=int, default=5, help="of initialisation, cohorts and orders; the partition is one")
    flag(
        "--client-rates", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0], help="the grid's client learning rates"
    )
    flag(
        "--server-rates", type=float, nargs="+", default=[0.1, 0.3, 1.0, 3.0], help="times the method's own server rate"
    )
    flag(
        "--sequential",
        nargs="*",
        default=[],
        choices=list(METHODS),
        metavar="METHOD",
        help="methods whose grid also runs point by point",
    )
    flag("--turns", type=int, default=3, help="how often each way is timed")
    return parser.parse_args(args)


class Problem:
    """The data of the comparison, and one run of a method as a traceable function."""

    def __init__(self, flags: Any):
        self.flags = flags
        self.mesh = client_mesh(flags.devices)
        self.data, test = digits(flags.num_clients, alpha=flags.alpha, seed=flags.seed)
        self.model = mlp(10, input_shape=(8, 8, 1), hidden=(32,), scale=1 / 16)
        halves = [{name: x[half::2] for name, x in test.items()} for half in (0, 1)]
        self.tests = [central(half, batch_size=len(half["y"])) for half in halves]
        self.plans = jax.tree.map(lambda *x: jnp.stack(x), *map(self._plans, range(flags.num_seeds)))

    def _plans(self, seed: int) -> Any:
        """The cohorts of a seed's rounds, stacked; their pool of examples is one and stays apart."""
        sample = uniform_sampler(self.flags.num_clients, self.flags.cohort, seed=1000 * self.flags.seed + seed)
        steps = -(-int(self.data.sizes.max()) // 20)
        rounds = [
            Cohort(self.data, sample(r), batch_size=20).whole(num_steps=steps) for r in range(self.flags.num_rounds)
        ]
        plans = [(c.value.elements.index, c.value.length, c.mask, c.id) for c in rounds]
        return jax.tree.map(lambda *x: jnp.stack(x), *plans)

    def run(self, method: Callable[..., Any], client_rate: Any, server_rate: Any, seed: Any, plans: Any) -> jax.Array:
        """Trains, and returns the accuracy on both halves of the test set, mean of the last rounds, ``[2]``."""
        algorithm = method(self.model, client_rate, server_rate, num_clients=self.flags.num_clients)
        state = algorithm.init(jax.random.key(seed))
        step = stateless(algorithm, self.flags.num_clients)
        pool = self.data.pool

        def round(carry: Any, plan: Any) -> Any:
            index, length, mask, ids = plan
            carry = step(carry, Clients(Sequence(Batches(pool, index), length), mask, ids))
            return carry, jnp.stack([self._accuracy(carry[0].params, half) for half in self.tests])

        _, accuracies = jax.lax.scan(round, (state, first_states(algorithm, state, self.flags.num_clients)), plans)
        return accuracies[-LAST:].mean(0)

    def _accuracy(self, params: Any, examples: Any) -> jax.Array:
        return finalize_metrics(local_evaluate(self.model, params, examples))["accuracy"]

    def grid(self) -> np.ndarray:
        """Returns every pair of a client and a server rate, ``[G, 2]``."""
        pairs = np.meshgrid(self.flags.client_rates, self.flags.server_rates, indexing="ij")
        return np.stack(pairs, -1).reshape(-1, 2).astype(np.float32)

    def vmapped(self, method: Callable[..., Any]) -> Callable[[], np.ndarray]:
        """Compiles the whole grid times all seeds as one program, ``-> [G, seeds, 2]``."""

        def all_runs(grid: jax.Array, seeds: jax.Array, plans: Any) -> jax.Array:
            one = lambda rates, seed, plan: self.run(method, rates[0], rates[1], seed, plan)  # noqa: E731
            return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(grid, seeds, plans)

        # Points need nothing of each other: each device has its share of them, and some come twice.
        num_points, split = len(self.grid()), NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        grid = np.resize(self.grid(), (num_points + -num_points % self.mesh.size, 2))
        arguments = jax.device_put(grid, split), np.arange(self.flags.num_seeds), jax.device_get(self.plans)
        # What comes out is on every device, so every process can read it.
        whole = NamedSharding(self.mesh, PartitionSpec())
        program = jax.jit(all_runs, out_shardings=whole).lower(*arguments).compile()
        return lambda: np.asarray(program(*arguments))[:num_points]

    def one_by_one(self, method: Callable[..., Any]) -> Callable[[], np.ndarray]:
        """Compiles one point, all rounds of it, to run the grid as a loop, ``-> [G, seeds, 2]``."""
        one = jax.jit(lambda rates, seed, plans: self.run(method, rates[0], rates[1], seed, plans))
        plans = [self._of_seed(seed) for seed in range(self.flags.num_seeds)]
        program = one.lower(jnp.asarray(self.grid()[0]), jnp.int32(0), plans[0]).compile()

        def loop() -> np.ndarray:
            points = [
                [program(jnp.asarray(p), jnp.int32(s), plan) for s, plan in enumerate(plans)] for p in self.grid()
            ]
            return np.asarray(jax.device_get(points))

        return loop

    def _of_seed(self, seed: int) -> Any:
        return jax.tree.map(lambda x: x[seed], self.plans)

    def script(self, method: Callable[..., Any]) -> np.ndarray:
        """Runs the grid as a plain script does: an algorithm for each point, round by round, ``-> [G, seeds, 2]``."""
        accuracy = jax.jit(lambda params: jnp.stack([self._accuracy(params, half) for half in self.tests]))
        points = []
        for client_rate, server_rate in self.grid().tolist():
            algorithm = method(self.model, client_rate, server_rate, num_clients=self.flags.num_clients)
            step = jax.jit(stateless(algorithm, self.flags.num_clients))
            points.append([self._script_run(algorithm, step, accuracy, s) for s in range(self.flags.num_seeds)])
        return np.asarray(points)

    def _script_run(self, algorithm: Any, step: Callable[..., Any], accuracy: Callable[..., Any], seed: int) -> Any:
        state, last = algorithm.init(jax.random.key(seed)), []
        carry = state, first_states(algorithm, state, self.flags.num_clients)
        index, length, mask, ids = jax.device_get(self._of_seed(seed))
        for r in range(self.flags.num_rounds):
            carry = step(carry, Clients(Sequence(Batches(self.data.pool, index[r]), length[r]), mask[r], ids[r]))
            if r >= self.flags.num_rounds - LAST:
                last.append(accuracy(carry[0].params))
        return np.mean(jax.device_get(last), axis=0)


def first_states(algorithm: Algorithm | StatefulAlgorithm, state: Any, num_clients: int) -> Any:
    """The states of all clients before the first round, in memory: ``[K, ...]``, or nothing."""
    if not isinstance(algorithm, StatefulAlgorithm):
        return ()
    one = algorithm.init_client(state)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *jnp.shape(x))), one)


def stateless(algorithm: Algorithm | StatefulAlgorithm, num_clients: int) -> Callable[..., Any]:
    """Returns a round as ``((state, client states [K, ...]), clients) -> (state, client states)``."""
    computation: Any = algorithm.next
    step = computation.in_graph(differentiable=False)
    if not isinstance(algorithm, StatefulAlgorithm):
        return lambda carry, clients: (step(carry[0], clients)[0], carry[1])

    def round(carry: Any, clients: Clients) -> Any:
        state, rows = carry
        own = jax.tree.map(lambda x: x[clients.id], rows)
        state, _, new = step(state, clients, Clients(own, clients.mask, clients.id))
        return state, jax.tree.map(lambda x, y: x.at[clients.id].set(y), rows, new.value)

    return round


def compared(problem: Problem, name: str, flags: Any) -> dict[str, Any]:
    """Runs one method's grid, in turns with the loops over its points if that is asked for."""
    started = time.perf_counter()
    vmapped = problem.vmapped(METHODS[name])
    compiled = time.perf_counter()
    accuracies = vmapped()
    result = {"compile_s": compiled - started, "grid_s": time.perf_counter() - compiled}
    if name in flags.sequential:
        result |= in_turns(problem, name, vmapped, accuracies)
    chosen = int(np.nan_to_num(accuracies[..., 0].mean(1)).argmax())
    final = accuracies[chosen, :, 1]
    client_rate, server_rate = problem.grid()[chosen]
    result |= {"client_rate": client_rate, "server_rate": server_rate, "accuracies": final.tolist()}
    return result | {"mean": final.mean(), "deviation": final.std(ddof=1) if len(final) > 1 else 0.0}


def in_turns(problem: Problem, name: str, vmapped: Callable[[], Any], expected: np.ndarray) -> dict[str, Any]:
    """Times three ways of running a grid in turns, and compares what they find."""
    started = time.perf_counter()
    loop = problem.one_by_one(METHODS[name])
    compile_s = time.perf_counter() - started
    ways = {"vmapped": vmapped, "loop": loop, "script": lambda: problem.script(METHODS[name])}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    differences = {}
    for _ in range(problem.flags.turns):
        for way, run in ways.items():
            started = time.perf_counter()
            found = run()
            seconds[way].append(time.perf_counter() - started)
            differences[way] = float(np.abs(found - expected).mean())
    ratio = {
        way: quartiles(a / b for a, b in zip(seconds[way], seconds["vmapped"], strict=True))
        for way in ("loop", "script")
    }
    return {"turns": seconds, "loop_compile_s": compile_s, "ratio": ratio, "mean_differences": differences}


def main(flags: Any) -> dict[str, Any]:
    """Compares the methods, and reports."""
    problem = Problem(flags)
    results = {}
    for name in flags.methods:
        results[name] = compared(problem, name, flags)
        print(f"{name}: {results[name]['mean']:.4f} +- {results[name]['deviation']:.4f}", flush=True)
    show(results)
    settings = {k: v for k, v in vars(flags).items() if k not in ("output", "devices")}
    return finish({**environment(problem.mesh), **settings, "results": results}, flags.output)


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints a row for each method, the best first, and the times of those whose grid ran in several ways."""
    keys = ("mean", "deviation", "client_rate", "server_rate", "compile_s", "grid_s")
    ordered = sorted(results.items(), key=lambda item: -item[1]["mean"])
    header = ["method", "accuracy", "deviation", "client rate", "server rate", "compilation, s", "grid, s"]
    print(table(header, [[name, *(result[k] for k in keys)] for name, result in ordered]))
    timed = [(name, result) for name, result in ordered if "ratio" in result]
    rows = [
        [name, *(min(r["turns"][way]) for way in r["turns"]), *(r["ratio"][way]["median"] for way in r["ratio"])]
        for name, r in timed
    ]
    if not rows:
        return
    header = ["method", "one program, s", "loop of one compiled point, s", "script, s", "loop / one", "script / one"]
    print(table(header, rows))


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
