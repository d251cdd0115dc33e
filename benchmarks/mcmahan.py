"""Rounds of federated averaging to a target accuracy, beside tables 1 and 2 of McMahan et al. (arXiv 1602.05629).

2NN and CNN on MNIST, of 100 clients that have images of all digits or two shards of one digit each, and the character
LSTM on the roles of Shakespeare; `make data` fetches both. For each cell of the tables learning rates are tried until
the best is between two others; a rate is given up when another has been faster. The curve is made monotone, and
crosses the target by linear interpolation, as in the paper. The cells that cost least come first.

Finished curves are kept beside `--output`, one line of JSON each, and runs that are not finished in a directory there:
what was stopped or killed goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.mcmahan_paper import CELLS, SPLITS, TARGETS, Cell, published
from benchmarks.mcmahan_report import Curve, best_curves, draw, quality, rounds_to_target, show
from benchmarks.measuring import client_mesh, environment, finish, flag_parser, start_alone
from fedjx.algorithms import fed_avg
from fedjx.data import FederatedData, central, iid_partition, shards_partition, uniform_sampler
from fedjx.data.published import mnist, open, shakespeare_plays
from fedjx.experiment import run, values
from fedjx.experiment.rows import Row
from fedjx.models import Model, cnn, finalize_metrics, lstm, mlp
from fedjx.training import local_evaluate

STEP = 10 ** (1 / 3)  # between the rates; the paper's was this or the root of it
# To order the cells: what an example costs beside one of the 2NN, and a test beside the training of so many examples.
COST = {"2nn": 1, "cnn": 60, "lstm": 700}
TEST_COST = 3000


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--data", type=Path, default=Path("data"), help="directory with what `make data` fetches")
    flag("--networks", nargs="+", default=["2nn", "cnn"], choices=list(TARGETS), help="which of them")
    flag("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="which of them")
    flag("--fractions", type=float, nargs="+", help="which C; all if not given")
    flag("--batch-sizes", type=int, nargs="+", help="which B, 0 for all examples; all if not given")
    flag("--epochs", type=int, nargs="+", help="which E; all if not given")
    flag("--cells", type=int, help="most cells, the cheapest; all if not given")
    flag("--hours", type=float, default=math.inf, help="after which no more is begun, and what is unfinished waits")
    flag("--variant", default="plain", choices=VARIANTS, help="of pixels or first weights of MNIST, see `varied`")
    flag("--first-rate", type=float, help="learning rate that is tried first; if not given, one that is often good")
    flag("--rates", type=float, nargs="+", help="learning rates to try, instead of those between which the best is")
    flag("--most-rounds", type=float, default=1.5, help="rounds that are tried, in those of the paper")
    flag("--test-sequences", type=int, default=2000, help="of Shakespeare, on which a round is tested")
    flag("--eval-every", type=int, default=1, help="rounds between two tests")
    flag("--report-only", action="store_true", help="train nothing: show and draw the curves that are there")
    flags = parser.parse_args(args)
    flags.output = flags.output or Path("runs/mcmahan/mcmahan.json")
    return flags


# --- problems -----------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A network, and the clients and the test set of a split."""

    model: Model
    data: FederatedData
    test: dict[str, np.ndarray]
    lanes: int


@functools.cache
def problem(network: str, split: str, directory: Path, seed: int, num_tested: int) -> Problem:
    """Reads and distributes the data; the networks have the paper's numbers of parameters, the LSTM nearly."""
    if network == "lstm":
        return _of_roles(split, directory, seed, num_tested)
    train, test = mnist(directory)
    shape = {"input_shape": (28, 28, 1), "scale": 1 / 255}
    partition = iid_partition(len(train["y"]), 100, seed=seed)
    if split == "non-iid":
        partition = shards_partition(train["y"], 100, shards_per_client=2, seed=seed)
    data = FederatedData.from_partition(train, partition)
    if network == "2nn":
        return Problem(mlp(10, hidden=(200, 200), **shape), data, test, lanes=5)
    return Problem(cnn(10, channels=(32, 64), kernel_size=5, hidden=(512,), **shape), data, test, lanes=1)


def _of_roles(split: str, directory: Path, seed: int, num_tested: int) -> Problem:
    """Reads the roles of Shakespeare; i.i.d. their sequences are dealt out to as many clients."""
    stores = open(shakespeare_plays(), directory)
    train, test = (_sequences(store.read(store.ids[:])["tokens"]) for store in stores.values())
    data = FederatedData(train, np.append(0, np.cumsum(stores["train"].sizes[:])))
    if split == "iid":
        data = FederatedData.from_partition(train, iid_partition(data.num_examples, data.num_clients, seed=seed))
    tested = np.random.default_rng(0).permutation(len(test["x"]))[:num_tested]
    return Problem(lstm(90, ignored=0), data, {name: column[tested] for name, column in test.items()}, lanes=4)


def _sequences(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": tokens[:, :-1], "y": tokens[:, 1:]}


def varied(model: Model, variant: str) -> Model:
    """Changes what the paper leaves open, to see what it makes of the number of rounds.

    Args:
      model: A model of images.
      variant: "plain": as it is, pixels from 0 to 1 and weights that are normal with the variance of 1 / inputs;
        "centred": pixels from -0.5 to 0.5; "standardised": with MNIST's mean and deviation; "fan_in": weights and
        biases uniform between plus and minus the root of 1 / inputs, as in PyTorch; "normal": weights truncated normal
        with a deviation of 0.1, biases of 0.1, as in the tutorials of TensorFlow in 2016.
    """
    if variant == "plain":
        return model
    if variant in LAWS:
        return model._replace(init=functools.partial(_initial, model, LAWS[variant]))
    shift, scale = PIXELS[variant]

    def changed(batch: Any) -> Any:
        return {**batch, "x": (batch["x"].astype(np.float32) - shift) * scale}

    return model._replace(
        loss=lambda params, batch, key: model.loss(params, changed(batch), key),
        metrics=lambda params, batch: model.metrics(params, changed(batch)),
    )


def _initial(model: Model, law: Callable[..., jax.Array], key: jax.Array) -> Any:
    shapes, treedef = jax.tree.flatten(jax.eval_shape(model.init, key))
    fan_in = [math.prod(shape.shape[:-1]) for shape in shapes]
    # A layer's bias is before its kernel, whose inputs it shares.
    shared = [
        own if len(s.shape) > 1 else after for own, s, after in zip(fan_in, shapes, [*fan_in[1:], 1], strict=True)
    ]
    keys = jax.random.split(key, len(shapes))
    return jax.tree.unflatten(treedef, [law(*given) for given in zip(keys, shapes, shared, strict=True)])


def _fan_in(key: jax.Array, shape: jax.ShapeDtypeStruct, fan_in: int) -> jax.Array:
    return jax.random.uniform(key, shape.shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def _normal(key: jax.Array, shape: jax.ShapeDtypeStruct, fan_in: int) -> jax.Array:
    is_bias = len(shape.shape) == 1
    return jnp.full(shape.shape, 0.1) if is_bias else 0.1 * jax.random.truncated_normal(key, -2, 2, shape.shape)


LAWS = {"fan_in": _fan_in, "normal": _normal}
PIXELS = {"centred": (127.5, 1.0), "standardised": (0.1307 * 255, 1 / 0.3081)}
VARIANTS = ("plain", *PIXELS, *LAWS)


# --- training -----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def accuracy(model: Model, params: Any, batches: Any) -> jax.Array:
    """Tests a model; data are an argument, as constants they would be compiled."""
    return finalize_metrics(local_evaluate(model, params, batches))["accuracy"]


def train(cell: Cell, rate: float, most_rounds: int, flags: argparse.Namespace, deadline: float) -> Curve | None:
    """Trains until the target is reached or the rounds are over; what was stopped before that goes on where it was.

    Args:
      cell: What is trained.
      rate: Learning rate of the clients.
      most_rounds: When to give up.
      flags: The command line.
      deadline: As of `time.monotonic`.

    Returns:
      Nothing if there was no time.
    """
    model, data, test, lanes = problem(cell.network, cell.split, flags.data, flags.seed, flags.test_sequences)
    model = varied(model, flags.variant)
    tested = central(test, batch_size=1000)
    algorithm = fed_avg(model, client_optimizer=optax.sgd(rate), num_epochs=cell.num_epochs)
    cohort_size = max(1, round(cell.fraction * data.num_clients))
    about = {"cell": str(cell), "rate": rate, "seed": flags.seed, "variant": flags.variant}
    directory = flags.output.with_suffix("") / " ".join(map(str, about.values()))

    def is_over(rows: Sequence[Row]) -> str | None:
        reached = rows[-1].get("test/accuracy", 0.0) >= TARGETS[cell.network]
        return "enough" if reached or not math.isfinite(rows[-1].get("train/loss", 0.0)) else None

    def is_late(rows: Sequence[Row]) -> str | None:
        return "no time" if time.monotonic() > deadline else None

    rows = run(
        algorithm,
        data,
        uniform_sampler(data.num_clients, cohort_size, seed=flags.seed),
        batch_size=cell.batch_size or data.largest,
        num_rounds=most_rounds,
        key=jax.random.key(flags.seed),
        path=directory,
        start="auto",
        about=about,
        lanes=lanes,
        evaluate={"test": lambda state: {"accuracy": accuracy(model, state.params, tested)}},
        evaluate_every=flags.eval_every,
        stop=[is_over, is_late],
        progress=False,
    ).rows
    if rows[-1]["round"] < most_rounds and not is_over(rows):
        return None
    shutil.rmtree(directory)
    rounds, accuracies = values(rows, "test/accuracy")
    seconds = rows[-1]["total/seconds"] / rows[-1]["round"]
    found = [round(float(value), 5) for value in accuracies]
    return Curve(cell, rate, flags.seed, flags.variant, rounds.astype(int).tolist(), found, round(seconds, 4))


def tried(cell: Cell, curves: list[Curve], flags: argparse.Namespace) -> Iterator[float]:
    """Yields the rates that are to be tried still, of which the best so far is always looked at from both sides."""
    if flags.rates:
        done = {curve.rate for curve in curves}
        yield from (rate for rate in flags.rates if rate not in done)
        return
    first = flags.first_rate or 0.1 * (STEP if cell.batch_size else STEP**2)
    done = {round(math.log(curve.rate / first, STEP)): curve for curve in curves}
    best = max(done, key=lambda k: quality(done[k]), default=0)
    yield from (float(f"{first * STEP**k:.3g}") for k in (best, best + 1, best - 1) if k not in done)


def search(cell: Cell, curves: list[Curve], flags: argparse.Namespace, deadline: float) -> bool:
    """Trains with one rate after another until the best is found, keeping each curve; tells if there was time."""
    while True:
        mine = [c for c in curves if (c.cell, c.seed, c.variant) == (cell, flags.seed, flags.variant)]
        rate = next(tried(cell, mine, flags), None)
        if rate is None:
            return True
        if time.monotonic() > deadline:
            return False
        reached = [rounds for curve in mine if (rounds := rounds_to_target(curve)) is not None]
        longest = flags.most_rounds * max((rounds or 0 for rounds in published(cell)), default=0)
        curve = train(cell, rate, math.ceil(min(reached, default=longest or 1000)), flags, deadline)
        if curve is None:
            return False
        curves.append(curve)
        keep(flags.output.with_suffix(".jsonl"), curve)
        found = rounds_to_target(curve)
        told = f"{max(curve.accuracies):.4f} in {curve.rounds[-1]}" if found is None else f"{found:.1f}"
        print(f"{cell} rate {rate:g}: {told} rounds, {curve.seconds_per_round:.3g} s each", flush=True)


def keep(path: Path, curve: Curve) -> None:
    """Adds a curve to a file in one write, which a kill leaves whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({**curve._asdict(), "cell": curve.cell._asdict()}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)


def kept(path: Path) -> list[Curve]:
    """Reads the curves of a file; a last line that was cut is dropped, from the file too."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    found = [json.loads(line) for line in whole.splitlines()]
    return [Curve(**{**curve, "cell": Cell(**curve["cell"])}) for curve in found]


def chosen(flags: argparse.Namespace) -> list[Cell]:
    """Returns the cells that the command line names, by what they cost."""

    def cost(cell: Cell) -> float:
        clients, rounds = max(1, 100 * cell.fraction), max(published(cell), key=lambda rounds: rounds or 0) or 5000
        return COST[cell.network] * rounds * (600 * clients * cell.num_epochs + TEST_COST)

    wanted = [
        cell
        for cell in CELLS
        if cell.network in flags.networks
        and cell.split in flags.splits
        and (flags.fractions is None or cell.fraction in flags.fractions)
        and (flags.batch_sizes is None or (cell.batch_size or 0) in flags.batch_sizes)
        and (flags.epochs is None or cell.num_epochs in flags.epochs)
    ]
    return sorted(wanted, key=cost)[: flags.cells]


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Searches the cells that there is time for, draws and reports."""
    deadline = time.monotonic() + 3600 * flags.hours
    curves = kept(flags.output.with_suffix(".jsonl"))
    for cell in [] if flags.report_only else chosen(flags):
        if not search(cell, curves, flags, deadline):
            print(f"No time is left for {cell}; start again to go on.", flush=True)
            break
    print(show(curves))
    if curves:
        draw(flags.output.with_suffix(".png"), curves)
    return finish(
        {**environment(client_mesh()), "best": [summary(curve) for curve in best_curves(curves)]}, flags.output
    )


def summary(curve: Curve) -> dict[str, Any]:
    """Returns what is reported of the best curve of a cell; all curves are in the file beside the report."""
    kept = {name: getattr(curve, name) for name in ("seed", "variant", "rate", "seconds_per_round")}
    return {**curve.cell._asdict(), **kept, "rounds": rounds_to_target(curve), "published": published(curve.cell)}


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
