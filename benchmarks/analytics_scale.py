"""Asks very many clients on disk questions in one pass each, beside NumPy on the same bytes, in turns.

The store has some two records of each client: a number, and a word of 20,000 by Zipf's law. Times are of one process,
the peak of memory of others, which ask many clients and few.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
from fedjx import analytics
from fedjx.data import Store, StoreWriter

NUM_WORDS, WORD_BYTES, BLOCK = 20_000, 10, 1 << 18
LOW, HIGH, NUM_BINS, SHARES, MIN_COUNT = 0.0, 110.0, 1100, (0.1, 0.5, 0.9), 1e-3
NAMES = ("mean", "histogram", "quantile", "heavy_hitters")


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = flag_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where stores are written, and kept; a temporary one if not given")
    parser.add_argument("--questions", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--clients", type=int, default=10_000_000, help="of the large store")
    parser.add_argument("--few", type=int, default=100_000, help="clients of the store that memory is compared with")
    parser.add_argument("--turns", type=int, default=3, help="passes of each, after one that is not counted")
    parser.add_argument("--step", choices=("write", "turns", "memory"), help="one step, as the benchmark calls it")
    return parser.parse_args(arguments)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, or the step of it that is asked for, and returns the report."""
    if flags.step:
        report = {"write": written, "turns": in_turns, "memory": remembered}[flags.step](flags)
        return finish({"benchmark": "analytics_scale", **report}, flags.output)
    with tempfile.TemporaryDirectory() as folder:
        report = measured(flags, flags.folder or Path(folder))
    columns = ("seconds", "numpy_seconds", "ratio")
    rows = [
        [name, *(row[c]["median"] for c in columns), row["clients_per_second"], row["peak_host_bytes"], row["of_few"]]
        for name, row in report["questions"].items()
    ]
    print(table(("question", "s", "NumPy s", "ratio", "clients/s", "peak bytes", "of that of few"), rows))
    return finish({"benchmark": "analytics_scale", **report, **environment(client_mesh(flags.devices))}, flags.output)


def measured(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes both stores, and asks each question in processes of their own."""

    def apart(step: str, num_clients: int, *names: str) -> dict[str, Any]:
        where = ["--step", step, "--folder", folder, "--clients", num_clients, "--seed", flags.seed]
        devices = ["--devices", flags.devices] if flags.devices else []
        return run_apart("analytics_scale", *where, "--turns", flags.turns, "--questions", *names or NAMES, *devices)

    stores = {number: apart("write", number) for number in (flags.few, flags.clients)}
    found = {}
    for name in flags.questions:
        many, few = (apart("memory", number, name)["peak_host_bytes"] for number in (flags.clients, flags.few))
        times = apart("turns", flags.clients, name)[name]
        found[name] = {**times, "peak_host_bytes": many, "few_peak_host_bytes": few, "of_few": many / few}
    of_store = {key: stores[flags.clients][key] for key in ("num_clients", "num_records", "disk_bytes")}
    return {**of_store, "few": flags.few, "questions": found}


# --- the stores -----------------------------------------------------------------------------------


def path_of(flags: argparse.Namespace) -> Path:
    """Returns where the store of so many clients is."""
    return flags.folder / f"clients-{flags.clients}-{flags.seed}"


def written(flags: argparse.Namespace) -> dict[str, Any]:
    """Writes a store, if it is not there."""
    path = path_of(flags)
    if not path.exists():
        random, words = np.random.default_rng(flags.seed), vocabulary()
        shares = 1 / np.arange(1, NUM_WORDS + 1) ** 1.1
        with StoreWriter(path) as writer:
            for start in range(0, flags.clients, BLOCK):
                ids = range(start, min(start + BLOCK, flags.clients))
                sizes = 1 + random.poisson(1.0, len(ids))
                number = int(sizes.sum())
                ages = random.normal(50, 15, number).clip(LOW, HIGH).astype(np.float32)
                words_of = words[random.choice(NUM_WORDS, number, p=shares / shares.sum())]
                writer.add_many(ids, {"age": ages, "word": words_of}, sizes)
    store = Store(path)
    disk = sum(file.stat().st_size for file in path.iterdir())
    return {"num_clients": store.num_clients, "num_records": store.num_examples, "disk_bytes": disk}


def vocabulary() -> np.ndarray:
    """Returns the words, uint8 ``[words, bytes]``, the most frequent first."""
    rows = np.array([f"word{k}".encode() for k in range(NUM_WORDS)], f"S{WORD_BYTES}")
    return np.frombuffer(rows.tobytes(), np.uint8).reshape(NUM_WORDS, WORD_BYTES)


# --- what is asked --------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A question in two ways.

    Attributes:
      question: For `fedjx.analytics.ask`.
      numpy_pass: ``(store) -> value``, in blocks of clients too.
      check: ``(answer, theirs) -> bool``, whether both have found the same.
    """

    question: analytics.Question
    numpy_pass: Callable[[Store], Any]
    check: Callable[[analytics.Answer, Any], bool]


def asked(name: str, num_clients: int) -> Asked:
    """Returns the question of a name; of words those are asked for of which there is one for a thousand clients."""
    edges = np.linspace(LOW, HIGH, NUM_BINS + 1)
    if name == "mean":
        question = analytics.mean("age", low=LOW, high=HIGH)
        return Asked(question, numpy_mean, lambda answer, theirs: abs(answer.value - theirs) < 1e-3)
    if name == "histogram":
        question = analytics.histogram("age", bins=edges)
        same = lambda answer, theirs: np.array_equal(answer.value, theirs)  # noqa: E731
        return Asked(question, lambda store: numpy_histogram(store, edges), same)
    if name == "quantile":
        question = analytics.quantile("age", SHARES, low=LOW, high=HIGH, num_bins=NUM_BINS)
        width = edges[1] - edges[0]

        def numpy_quantile(store: Store) -> np.ndarray:
            below = np.append(0, numpy_histogram(store, edges).cumsum())
            return np.interp(np.array(SHARES) * below[-1], below, edges)

        return Asked(
            question, numpy_quantile, lambda answer, theirs: bool(np.all(np.abs(answer.value - theirs) < width))
        )
    least = max(10, MIN_COUNT * num_clients)
    question = analytics.heavy_hitters("word", num_bytes=WORD_BYTES, min_count=least)
    return Asked(
        question, lambda store: numpy_words(store, least), lambda answer, theirs: same_words(answer, theirs, least)
    )


def blocks(store: Store, column: str) -> Iterator[np.ndarray]:
    """Yields a column of neighbouring clients, block by block."""
    for start in range(0, store.num_clients, BLOCK):
        stop = min(start + BLOCK, store.num_clients)
        of = store.schema[column]
        out = {column: np.empty((int(np.sum(store.sizes[start:stop])), *of.shape), of.dtype)}
        store.read(range(start, stop), out)
        yield out[column]


def numpy_mean(store: Store) -> float:
    """Returns the mean of the clipped numbers."""
    total, number = 0.0, 0
    for ages in blocks(store, "age"):
        total, number = total + float(np.clip(ages, LOW, HIGH).sum(dtype=np.float64)), number + len(ages)
    return total / number


def numpy_histogram(store: Store, edges: np.ndarray) -> np.ndarray:
    """Returns the numbers of records in bins."""
    return np.sum([np.histogram(ages, edges)[0] for ages in blocks(store, "age")], axis=0)


def numpy_words(store: Store, least: float) -> dict[str, int]:
    """Returns the frequent words with their counts."""
    words, counts = np.empty(0, f"S{WORD_BYTES}"), np.empty(0, np.int64)
    for rows in blocks(store, "word"):
        new, number = np.unique(rows.view(f"S{WORD_BYTES}")[:, 0], return_counts=True)
        words, places = np.unique(np.concatenate([words, new]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, number])).astype(np.int64)
    return {words[k].decode(): int(counts[k]) for k in np.flatnonzero(counts >= least)}


def same_words(answer: analytics.Answer, theirs: dict[str, int], least: float) -> bool:
    """Tells whether the words of both are the same, but for those about as frequent as the least, and their counts."""
    ours, reach = answer.value, 6 * max(answer.stddev.values(), default=0.0)
    alone = [{**ours, **theirs}[word] for word in ours.keys() ^ theirs.keys()]
    near = [abs(ours[word] - theirs[word]) <= reach + 1e-6 * theirs[word] for word in ours.keys() & theirs.keys()]
    return all(near) and all(count < least + reach for count in alone) and len(near) > 0


# --- what is measured -----------------------------------------------------------------------------


def in_turns(flags: argparse.Namespace) -> dict[str, Any]:
    """Times passes of both in turns, after a first one of each, which compiles and warms the disk's cache."""
    store, found = Store(path_of(flags)), {}
    for name in flags.questions:
        one = asked(name, store.num_clients)
        ways: dict[str, Callable[[], Any]] = {
            "seconds": lambda one=one: analytics.ask(one.question, store),
            "numpy_seconds": lambda one=one: one.numpy_pass(store),
        }
        answer, theirs = (way() for way in ways.values())
        if not one.check(answer, theirs):
            raise SystemExit(f"{name} is not what NumPy finds; got {answer.value}, NumPy {theirs}.")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(flags.turns):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - start)
        ratio = np.median(seconds["seconds"]) / np.median(seconds["numpy_seconds"])
        pairs = quartiles(a / b for a, b in zip(*seconds.values(), strict=True))
        found[name] = {way: quartiles(values) for way, values in seconds.items()}
        rate = store.num_clients / np.median(seconds["seconds"])
        found[name] |= {"ratio": {**pairs, "median": ratio}, "clients_per_second": rate}
    return found


def remembered(flags: argparse.Namespace) -> dict[str, Any]:
    """Asks each question once, and reads the peak of memory."""
    store = Store(path_of(flags))
    for name in flags.questions:
        analytics.ask(asked(name, store.num_clients).question, store)
    return peak_memory(client_mesh(1))


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
