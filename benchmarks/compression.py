"""Accuracy against what is sent: federated averaging with compressed broadcasts and updates.

The network of TensorFlow Federated's compression tutorial, for digits of 8 x 8 in place of 28 x 28 and with half its
channels, over several seeds: the same two of its eight variables have more than 10,000 elements, and are compressed.
The tutorial stops after ten rounds, before anything is learnt; this does not. ``--side 28 --channels 32`` trains the
tutorial's own network, of 1,663,370 parameters, on the digits enlarged.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, is_first, start, table
from fedjx import Traffic, traffic
from fedjx.aggregation import Compressor, compress, compressed_broadcast, eden, rotated, uniform_quantizer
from fedjx.algorithms import fed_avg
from fedjx.core.execution.process import Algorithm
from fedjx.data import Cohort, FederatedData, central, digits, uniform_sampler
from fedjx.models import Model, finalize_metrics, from_flax
from fedjx.training import local_evaluate

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

NUM_LATE = 5  # evaluations


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--num-clients", type=int, default=50, help="clients that share the training images")
    flag("--alpha", type=float, default=1.0, help="label skew: small is skewed, large is even")
    flag("--clients-per-round", type=int, default=10, help="size of the cohort")
    flag("--num-rounds", type=int, default=80, help="rounds of training")
    flag("--num-seeds", type=int, default=4, help="runs of each variant: models, cohorts and orders of the examples")
    flag("--batch-size", type=int, default=20, help="images in a local batch")
    flag("--client-rate", type=float, default=0.2, help="learning rate of the clients' SGD")
    flag("--eval-every", type=int, default=4, help="rounds between evaluations")
    flag(
        "--side",
        type=int,
        default=8,
        help="of the images in pixels, a multiple of 4; 28 and 32 channels: the tutorial's",
    )
    flag("--channels", type=int, default=16, help="of the first convolution; the second has twice as many")
    flag("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="what is compared")
    return parser.parse_args(args)


# --- what is compared ---------------------------------------------------------------------------


def both_ways(compressor: Compressor) -> dict[str, Any]:
    """Compresses what the server sends and what clients send, as options of `fed_avg`."""
    return {"broadcaster": compressed_broadcast(compressor), "aggregator": compress(compressor)}


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "float32": dict,
    "8 bits, as in the tutorial": lambda: both_ways(uniform_quantizer(8, word_bits=28)),
    "8 bits": lambda: both_ways(uniform_quantizer(8)),
    "4 bits, rotated": lambda: both_ways(rotated(uniform_quantizer(4))),
    "8 bits down, 1 up (EDEN)": lambda: both_ways(uniform_quantizer(8)) | {"aggregator": compress(eden(1))},
}


class Network(nnx.Module):
    """Two convolutions of 5 x 5, each with max-pooling, and two dense layers."""

    def __init__(self, side: int, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, channels, (5, 5), rngs=rngs)
        self.conv2 = nnx.Conv(channels, 2 * channels, (5, 5), rngs=rngs)
        self.dense1 = nnx.Linear((side // 4) ** 2 * 2 * channels, 512, rngs=rngs)
        self.dense2 = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in (self.conv1, self.conv2):
            batch, height, width, depth = (x := nnx.relu(conv(x))).shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))
        return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


def network(side: int, channels: int, *, scale: float = 1.0) -> Model:
    """Returns a model of images ``[side, side, 1]``; the tutorial's has a side of 28 and 32 channels."""
    return from_flax(
        functools.partial(Network, side, channels), inputs=lambda batch: jnp.asarray(batch["x"], jnp.float32) * scale
    )


def enlarged(examples: Mapping[str, np.ndarray], side: int) -> dict[str, np.ndarray]:
    """Returns images with another number of pixels, interpolated, as float32."""
    x = jnp.asarray(examples["x"], jnp.float32)
    return {**examples, "x": np.asarray(jax.image.resize(x, (len(x), side, side, 1), "linear"))}


# --- training -----------------------------------------------------------------------------------


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains every variant with every seed, draws and reports."""
    started = time.perf_counter()
    data, test = digits(flags.num_clients, alpha=flags.alpha, seed=flags.seed)
    data = FederatedData(enlarged(data.examples, flags.side), offsets=data.offsets)
    test = enlarged(test, flags.side)
    model = network(flags.side, flags.channels, scale=1 / 16)
    test_batches = central(test, batch_size=100)
    evaluate = jax.jit(lambda params: finalize_metrics(local_evaluate(model, params, test_batches))["accuracy"])
    results = {}
    for name in flags.variants:
        algorithm = fed_avg(model, client_optimizer=optax.sgd(flags.client_rate), **VARIANTS[name]())
        runs = [train(flags, data, algorithm, evaluate, seed) for seed in range(flags.num_seeds)]
        results[name] = summary(runs)
        print(f"{name}: {results[name]['final_mean']:.4f} after {time.perf_counter() - started:.0f} s", flush=True)
    for row in results.values():
        row.update(beside(results[flags.variants[0]], row))
    show(results)
    if flags.output is not None and is_first():
        draw(flags.output.with_suffix(".png"), results)
    settings = {k: v for k, v in vars(flags).items() if k not in ("output", "devices", "variants")}
    seconds = time.perf_counter() - started
    return finish({**environment(client_mesh()), **settings, "seconds": seconds, "results": results}, flags.output)


def train(
    flags: argparse.Namespace, data: FederatedData, algorithm: Algorithm, evaluate: Any, seed: int
) -> list[dict[str, Any]]:
    """Runs the rounds; returns the accuracy and the bits sent so far, every few rounds."""
    state, of_a_round, history = algorithm.init(jax.random.key(seed)), Traffic(), []
    sample = uniform_sampler(data.num_clients, flags.clients_per_round, seed=seed)
    # Not "auto": two runs of one seed are then equal to the bit.
    lanes = -(-flags.clients_per_round // client_mesh().size)
    computation: Any = algorithm.next
    for number in range(flags.num_rounds + 1):
        if number % flags.eval_every == 0 or number == flags.num_rounds:
            history.append({"round": number, "accuracy": float(evaluate(state.params)), "sent": of_a_round * number})
        clients = Cohort(data, sample(number), batch_size=flags.batch_size, lanes=lanes)
        if number == 0:
            of_a_round = traffic(computation, state, clients) * flags.clients_per_round
        if number < flags.num_rounds:
            state, _ = computation(state, clients)
    return history


def summary(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Puts the runs of all seeds together: curves by seed, and the accuracy at the end."""
    last = runs[0][-1]
    row = {
        "rounds": [row["round"] for row in runs[0]],
        "Mibit_sent": [row["sent"].total / 2**20 for row in runs[0]],
        "bits_down_per_round": last["sent"].down // last["round"],
        "bits_up_per_round": last["sent"].up // last["round"],
        "accuracy": [[row["accuracy"] for row in run] for run in runs],
    }
    for when, accuracy in at_end(row).items():
        row |= {f"{when}_mean": accuracy.mean(), f"{when}_deviation": deviation(accuracy)}
    return row


def at_end(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the accuracy of every seed after the last round, and its mean over the last evaluations."""
    accuracy = np.array(row["accuracy"])
    # A round swings the accuracy by some hundredths, or more if its few clients lack a digit.
    return {"final": accuracy[:, -1], "late": accuracy[:, -NUM_LATE:].mean(axis=1)}


def beside(plain: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Compares with the plain runs of the same seeds: the mean difference, and its standard error."""
    found = {"ratio": plain["Mibit_sent"][-1] / row["Mibit_sent"][-1]}
    for when, accuracy in at_end(row).items():
        difference = accuracy - at_end(plain)[when]
        error = deviation(difference) / len(difference) ** 0.5
        found |= {f"{when}_difference": difference.mean(), f"{when}_difference_error": error}
    return found


def deviation(values: np.ndarray) -> float:
    """Returns the standard deviation, 0 of a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


# --- report -------------------------------------------------------------------------------------


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints a row for each variant."""
    header = ["sent as", "Mibit a round", "times less"]
    columns = ["ratio"]
    for when in ("final", "late"):
        header += [f"{when} accuracy", "deviation", "difference", "its error"]
        columns += [f"{when}_{name}" for name in ("mean", "deviation", "difference", "difference_error")]
    print(
        table(
            header,
            [
                [name, (row["bits_down_per_round"] + row["bits_up_per_round"]) / 2**20, *(row[c] for c in columns)]
                for name, row in results.items()
            ],
        )
    )


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draws the mean accuracy over the seeds, between the least and the greatest, by rounds and by what was sent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for panel, column, label in zip(
        panels, ("rounds", "Mibit_sent"), ("round", "Mibit sent, both directions"), strict=True
    ):
        for name, row in results.items():
            x, accuracy = row[column][1:], np.array(row["accuracy"])[:, 1:]
            (line,) = panel.plot(x, accuracy.mean(axis=0), label=name)
            panel.fill_between(x, accuracy.min(axis=0), accuracy.max(axis=0), color=line.get_color(), alpha=0.15)
        panel.set(xlabel=label, ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panels[1].xaxis.set_major_formatter("{x:,.0f}")
    panels[1].xaxis.set_minor_formatter(ticker.NullFormatter())
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    flags = parse_flags()
    start(flags.devices)
    main(flags)
