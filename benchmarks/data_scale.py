"""Writes stores of very many clients, opens them, samples from them and trains on them, in memory that does not grow.

The stores are synthetic twins: Stack Overflow with all its clients, and ten million clients of a few bytes. Each
step is a process of its own; the same training runs on a store of few clients, to compare the memory.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measuring import (
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    quartiles,
    run_apart,
    start_alone,
    table,
)
from fedjx import fed_avg
from fedjx.data import Cohort, Store, uniform_sampler
from fedjx.data.published import synthetic_twin
from fedjx.models import Model

# Clients, and examples of a client in the mean.
TWINS = {"stack_overflow": (342_477, 10.0), "tiny": (10_000_000, 2.0)}
FEW = 3_400


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = flag_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/data_scale"), help="where the stores are written")
    parser.add_argument("--twins", nargs="+", choices=TWINS, default=list(TWINS))
    parser.add_argument("--share", type=float, default=1.0, help="of the clients of each twin")
    parser.add_argument("--clients", type=int, default=1000, help="in a cohort")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--step", choices=("write", "use"), help="one step, as the benchmark itself calls it")
    return parser.parse_args(arguments)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, or the step of it that is asked for, and returns the report."""
    if flags.step:
        report = {"write": written, "use": used}[flags.step](flags, *flags.twins)
        return finish({"benchmark": "data_scale", **report}, flags.output)
    report = {name: scale(flags, name) for name in flags.twins}
    columns = ("num_clients", "write_seconds", "disk_bytes", "open_ms", "sample_ms", "round_ms", "peak_host_bytes")
    rows = [[name, *(twin[column] for column in columns), twin["memory_ratio"]] for name, twin in report.items()]
    header = ("twin", "clients", "write s", "bytes", "open ms", "sample ms", "round ms", "peak bytes", "of that of few")
    print(table(header, rows))
    return finish({"benchmark": "data_scale", "twins": report, **environment(client_mesh(flags.devices))}, flags.output)


def scale(flags: argparse.Namespace, name: str) -> dict[str, Any]:
    """Writes and uses a twin with all its clients, and one with few."""
    steps = ["--folder", flags.folder, "--clients", flags.clients, "--rounds", flags.rounds, "--seed", flags.seed]
    few = FEW / TWINS[name][0]
    found = {
        (step, share): run_apart("data_scale", "--step", step, "--twins", name, "--share", share, *steps)
        for share in (flags.share, few)
        for step in ("write", "use")
    }
    many, of_few = found["use", flags.share], found["use", few]
    memory = {"few_peak_host_bytes": of_few["peak_host_bytes"]}
    ratio = many["peak_host_bytes"] / of_few["peak_host_bytes"]
    written_bytes = {f"write_{key}": value for key, value in found["write", flags.share].items() if "peak" in key}
    return {**found["write", flags.share], **many, **written_bytes, **memory, "memory_ratio": ratio}


def twin_folder(flags: argparse.Namespace, name: str) -> Path:
    """Returns where the stores of a twin of this share are."""
    return flags.folder / f"{name}-{flags.share:.6g}"


def written(flags: argparse.Namespace, name: str) -> dict[str, Any]:
    """Writes a twin."""
    folder = twin_folder(flags, name)
    shutil.rmtree(folder, ignore_errors=True)
    num_clients, mean_examples = TWINS[name]
    num_clients = round(num_clients * flags.share)
    start = time.perf_counter()
    synthetic_twin(name, folder, seed=flags.seed, num_clients=num_clients, mean_examples=mean_examples)
    seconds = time.perf_counter() - start
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"write_seconds": seconds, "disk_bytes": disk, **peak_memory(client_mesh(1))}


def used(flags: argparse.Namespace, name: str) -> dict[str, Any]:
    """Opens a twin, samples from it and trains on it."""
    (path,) = twin_folder(flags, name).glob("*-train")
    start = time.perf_counter()
    store = Store(path)
    opened = time.perf_counter() - start
    sample = uniform_sampler(store.num_clients, min(flags.clients, store.num_clients), seed=flags.seed)
    sampling, rounds, loss = [], [], 0.0
    for number in range(flags.rounds):
        start = time.perf_counter()
        sample(number)
        sampling.append(1000 * (time.perf_counter() - start))
    algorithm: Any = fed_avg(bag_of_tokens(store), client_optimizer=optax.sgd(0.1))
    step, state = algorithm.next.streamed(mesh=client_mesh(flags.devices)), algorithm.init(jax.random.key(flags.seed))
    cohorts = (Cohort(store, sample(number), batch_size=16, placement="streamed") for number in range(flags.rounds + 2))
    start = time.perf_counter()
    for number, cohort in enumerate(step.ahead(cohorts)):
        state, metrics = step(state, cohort)
        loss = float(metrics["loss"])
        if number >= 2:
            rounds.append(1000 * (time.perf_counter() - start))
        start = time.perf_counter()
    return {
        "num_clients": store.num_clients,
        "num_examples": store.num_examples,
        "largest": store.largest,
        "open_ms": 1000 * opened,
        "sample_ms": float(np.median(sampling)),
        "round_ms": float(np.median(rounds)),
        "rounds": quartiles(rounds),
        "last_loss": loss,
        **peak_memory(client_mesh(flags.devices)),
    }


def bag_of_tokens(store: Store, num_classes: int = 16) -> Model:
    """Returns a small model of any features: from all but the last value of an example it tells the last, modulo 16."""
    width = sum(int(np.prod(feature.shape)) for feature in store.schema.values())

    def split(batch: Any) -> tuple[jax.Array, jax.Array]:
        columns = [batch[name].reshape(len(batch[name]), -1) for name in store.schema]
        values = jnp.concatenate([column.astype(jnp.float32) for column in columns], axis=1)
        return values[:, :-1] / 256, values[:, -1].astype(jnp.int32) % num_classes

    def losses(params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
        inputs, labels = split(batch)
        return optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(inputs) @ params["w"], labels)

    return Model(
        init=lambda key: {"w": 0.01 * jax.random.normal(key, (width - 1, num_classes))},
        loss=losses,
        metrics=lambda params, batch: {"loss": losses(params, batch)},
    )


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
