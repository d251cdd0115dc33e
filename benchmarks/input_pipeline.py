"""Reads cohorts of EMNIST-like clients from disk to the device, with fedjx and other readers, and trains from disk.

Every reader is a process with files of its own, and all read the same cohorts, in turns. "Cold" is a fresh process
whose files are not in the page cache. Then the EMNIST CNN is trained from disk and from memory, in turns: what
waiting for data costs.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.input_files import clients_of, drop_from_cache, write_all
from benchmarks.measuring import client_mesh, environment, finish, flag_parser, quartiles, start_alone, table
from benchmarks.peers_engines import Engine, EngineError, Worker, engines, python_of
from benchmarks.workloads import emnist_cnn
from fedjx import fed_avg
from fedjx.core.execution.ahead import Ahead
from fedjx.data import Cohort, FederatedData, Store, uniform_sampler

HUGGING_FACE = ("flwr-datasets==0.6.1 jax==0.10.2 jaxlib==0.10.2",)
# Each reader's process, and what it reads in the folder of the data.
READERS = {
    "fedjx": (Engine("read_fedjx.py", arguments=("uint8",)), "uint8"),
    "fedjx_float32": (Engine("read_fedjx.py", arguments=("float32",)), "float32"),
    "fedjax": (engines(1)["fedjax"]._replace(script="read_fedjax.py"), "fedjax.sqlite"),
    "tff_sqlite": (Engine("read_tff_sqlite.py"), "tff.sqlite"),
    "h5py": (Engine("read_h5py.py"), "tff.h5"),
    "hugging_face": (Engine("read_hugging_face.py", "hugging_face", HUGGING_FACE), "hugging_face"),
}


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = flag_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/input_pipeline"), help="where the files are written")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"), help="where peers are installed")
    parser.add_argument("--population", type=int, default=3400, help="clients on disk")
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000], help="in a cohort")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--rounds", type=int, default=8, help="warm cohorts for each reader")
    parser.add_argument("--cold-rounds", type=int, default=3, help="cold cohorts for each reader")
    parser.add_argument("--training-clients", type=int, default=10, help="in a cohort that is trained; 0 for none")
    parser.add_argument("--turns", type=int, default=3, help="of training from disk and from memory")
    parser.add_argument("--limit", type=float, default=900, help="seconds for an answer")
    return parser.parse_args(arguments)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its report."""
    folder = flags.folder / f"{flags.population}-{flags.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = clients_of(flags.population, flags.seed)
    write_all(folder, data, {file for _, file in map(READERS.__getitem__, flags.readers)} | {"training"})
    report: dict[str, Any] = {"population": flags.population, "num_examples": data.num_examples}
    report["readers"] = [row for number in flags.clients for row in measure_readers(flags, data, folder, number)]
    print(show(report["readers"]), flush=True)
    if flags.training_clients:
        report["training"] = measure_training(flags, Store(folder / "training"))
    mesh = client_mesh(flags.devices)
    return finish({"benchmark": "input_pipeline", **report, **environment(mesh)}, flags.output)


# --- readers ------------------------------------------------------------------------------------


def measure_readers(
    flags: argparse.Namespace, data: FederatedData, folder: Path, num_clients: int
) -> list[dict[str, Any]]:
    """Times every reader on the same cohorts, in turns."""
    sample = uniform_sampler(data.num_clients, num_clients, seed=flags.seed)
    rounds = [sample(number).tolist() for number in range(flags.rounds + 1)]
    cold: dict[str, list[float]] = {name: [] for name in flags.readers}
    warm: dict[str, list[float]] = {name: [] for name in flags.readers}
    for ids in rounds[: flags.cold_rounds]:
        for name in flags.readers:
            with reader(name, flags, folder) as worker:
                checked_seconds(worker, rounds[-1], data, flags.limit)  # A first round takes longer than others.
                drop_from_cache(folder / READERS[name][1])
                cold[name].append(checked_seconds(worker, ids, data, flags.limit))
    with contextlib.ExitStack() as opened:
        workers = {name: opened.enter_context(reader(name, flags, folder)) for name in flags.readers}
        for worker in workers.values():
            for ids in rounds:  # All that will be read is read once.
                checked_seconds(worker, ids, data, flags.limit)
        for number, ids in enumerate(rounds):
            turn = number % len(flags.readers)  # so that nobody always comes after the same one
            for name in flags.readers[turn:] + flags.readers[:turn]:
                warm[name].append(checked_seconds(workers[name], ids, data, flags.limit))
    first = flags.readers[0]
    return [
        {
            "clients": num_clients,
            "reader": name,
            **{f"{when}_ms": 1000 * float(np.median(s[name])) for when, s in (("cold", cold), ("warm", warm))},
            **{f"{when}_ratio": ratio(s[name], s[first]) for when, s in (("cold", cold), ("warm", warm))},
        }
        for name in flags.readers
    ]


@contextlib.contextmanager
def reader(name: str, flags: argparse.Namespace, folder: Path) -> Iterator[Worker]:
    """Starts a reader's process, and ends it."""
    engine, _ = READERS[name]
    python = python_of(engine, flags.environments)
    worker = Worker(name, python, engine, str(folder), flags.environments / f"read_{name}.log")
    try:
        worker.receive(flags.limit)
        yield worker
    except EngineError as error:
        raise SystemExit(str(error)) from error
    finally:
        worker.close()


def checked_seconds(worker: Worker, ids: list[int], data: FederatedData, limit: float) -> float:
    """Returns the seconds of a round, in which the reader must have found the labels that are there."""
    answer = worker.round(ids, limit)
    expected = sum(int(data.client(k)["label"].sum()) for k in ids)
    if answer["loss"] != expected:
        raise SystemExit(f"{worker.name} read labels that sum to {answer['loss']}, not to {expected}.")
    return answer["seconds"]


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Returns how many times as long as the first reader this one takes, in the median of the rounds."""
    return float(np.median(np.divide(theirs, ours)))


def show(rows: list[dict[str, Any]]) -> str:
    """Formats the readers' times."""
    columns = ("clients", "reader", "cold_ms", "cold_ratio", "warm_ms", "warm_ratio")
    return table(
        ("reader", "clients", "cold ms", "x fedjx", "warm ms", "x fedjx"),
        [[row[name] for name in ("reader", "clients", *columns[2:])] for row in rows],
    )


# --- training -----------------------------------------------------------------------------------


def measure_training(flags: argparse.Namespace, store: Store) -> dict[str, Any]:
    """Trains the EMNIST CNN in turns of some rounds, from disk and from memory, and times the waits for chunks."""
    mesh, workload = client_mesh(flags.devices), emnist_cnn()
    algorithm: Any = fed_avg(workload.model, client_optimizer=workload.client_optimizer)
    sample = uniform_sampler(store.num_clients, flags.training_clients, seed=flags.seed)
    places = {"disk": (store, "streamed"), "memory": (store.load(), "resident")}
    steps = {name: algorithm.next.streamed(mesh=mesh) for name in places}
    seconds: dict[str, list[float]] = {name: [] for name in places}
    waits: list[float] = []

    def train(place: str) -> None:
        data, placement = places[place]
        state, step = algorithm.init(jax.random.key(0)), steps[place]
        numbers = range(flags.rounds + 2)
        cohorts = (Cohort(data, sample(k), batch_size=workload.batch_size, placement=placement) for k in numbers)
        with timed_waits() as waited:
            start, before = time.perf_counter(), waited()
            for number, cohort in enumerate(step.ahead(cohorts)):
                state, _ = step(state, cohort)
                jax.block_until_ready(state.params)
                now, after = time.perf_counter(), waited()
                if number >= 2:  # The first chooses lanes, and at the second nothing has been read ahead.
                    seconds[place].append(now - start)
                    waits.extend([after - before] if place == "disk" else [])
                start, before = now, after

    for _ in range(flags.turns):
        for place in places:
            train(place)
    return {
        "clients": flags.training_clients,
        "seconds": {place: quartiles(values) for place, values in seconds.items()},
        "waiting_share": sum(waits) / sum(seconds["disk"]),
        "waiting_share_of_a_round": quartiles(np.divide(waits, seconds["disk"])),
        "disk_over_memory": float(np.median(seconds["disk"]) / np.median(seconds["memory"])),
    }


@contextlib.contextmanager
def timed_waits() -> Iterator[Callable[[], float]]:
    """Adds up the seconds for which rounds wait for a chunk to be made."""
    members, total = Ahead.members, 0.0
    patched: Any = Ahead

    def timed(*args: Any) -> Any:
        nonlocal total
        start = time.perf_counter()
        try:
            return members(*args)
        finally:
            total += time.perf_counter() - start

    patched.members = timed
    try:
        yield lambda: total
    finally:
        patched.members = members


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
