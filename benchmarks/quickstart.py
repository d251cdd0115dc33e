"""Federated averaging on real handwriting, from non-IID clients. Copy this file and change it.

Shows progress while it trains, compares with training on the pooled images, and leaves in the
output directory, which is its own, TensorBoard events, `curves.png` and Orbax checkpoints. The
last line it prints is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import optax

from fedjx import initialize_distributed
from fedjx.algorithms import fed_avg
from fedjx.data import FederatedData, central, digits, label_counts, uniform_sampler
from fedjx.experiment import Best, RunError, central_evaluation, run, values
from fedjx.models import Model, cnn, finalize_metrics, mlp
from fedjx.training import local_evaluate, local_train

mpl.use("Agg")
from matplotlib import pyplot as plt

FREE = ("num_rounds", "output", "resume", "overwrite")  # flags that may change when a run goes on


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--model", choices=["mlp", "cnn"], default="cnn", help="small network to train")
    flag("--num-clients", type=int, default=50, help="clients that share the training images")
    flag("--alpha", type=float, default=0.5, help="label skew: small is skewed, large is even")
    flag("--clients-per-round", type=int, default=10, help="size of the cohort")
    flag("--lanes", type=lanes, default=1, help="clients that run at once on a device; auto does not resume bitwise")
    flag("--num-rounds", type=int, default=150, help="rounds in all, resumed ones included")
    flag("--num-epochs", type=int, default=1, help="local epochs")
    flag("--batch-size", type=int, default=10, help="images in a local batch")
    flag("--client-rate", type=float, default=0.1, help="learning rate of the clients' SGD")
    flag("--server-rate", type=float, default=1.0, help="learning rate of the server's SGD")
    flag("--server-momentum", type=float, default=0.9, help="momentum of the server's SGD")
    flag("--eval-every", type=int, default=10, help="rounds between evaluations and checkpoints")
    flag("--seed", type=int, default=0, help="of the partition, the cohorts and the model")
    flag("--output", type=Path, default=Path("runs/quickstart"), help="directory for the results")
    flag("--resume", action="store_true", help="go on from the last checkpoint in the output directory")
    flag("--overwrite", action="store_true", help="delete the run in the output directory, and begin anew")
    return parser.parse_args(args)


def lanes(text: str) -> int | str:
    """Reads a number of lanes, or "auto"."""
    return text if text == "auto" else int(text)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains, compares, draws and reports."""
    data, test = digits(flags.num_clients, alpha=flags.alpha, seed=flags.seed)
    network = {"mlp": mlp, "cnn": cnn}[flags.model]
    model = network(10, input_shape=(8, 8, 1), scale=1 / 16)
    algorithm = fed_avg(
        model,
        client_optimizer=optax.sgd(flags.client_rate),
        server_optimizer=optax.sgd(flags.server_rate, momentum=flags.server_momentum),
        num_epochs=flags.num_epochs,
    )
    result = run(
        algorithm,
        data,
        uniform_sampler(data.num_clients, flags.clients_per_round, seed=flags.seed),
        batch_size=flags.batch_size,
        num_rounds=flags.num_rounds,
        key=jax.random.key(flags.seed),
        path=flags.output,
        start="resume" if flags.resume else "overwrite" if flags.overwrite else "new",
        about={"flags": {name: value for name, value in vars(flags).items() if name not in FREE}},
        lanes=flags.lanes,
        evaluate={"test": central_evaluation(model, test)},
        evaluate_every=flags.eval_every,
        checkpoint_every=flags.eval_every,
        best=Best("test/accuracy"),
    )
    if jax.process_index() != 0:
        return {}
    centralised = train_centrally(flags, model, data, test)
    last = result.rows[-1]
    report = {
        "test_accuracy": round(last["test/accuracy"], 4),
        "centralised_accuracy": round(centralised, 4),
        "rounds": last["round"],
        "num_clients": data.num_clients,
        "train_seconds": round(last["total/seconds"], 2),
        "examples_per_second": round(flags.num_epochs * last["total/examples"] / last["total/seconds"], 1),
    }
    draw(flags.output / "curves.png", result.rows, centralised, label_counts(data, num_classes=10))
    print(f"\n{'':<14}test accuracy\nfederated     {last['test/accuracy']:.4f}         {data.num_clients} clients")
    print(f"centralised   {centralised:.4f}         the same images, pooled\n\nResults are in {flags.output}.")
    print(json.dumps(report))
    return report


def train_centrally(flags: argparse.Namespace, model: Model, data: FederatedData, test: Mapping[str, Any]) -> float:
    """Trains on the clients' images, pooled, for as many epochs; returns the test accuracy."""
    epochs = round(flags.num_epochs * flags.num_rounds * flags.clients_per_round / flags.num_clients)

    @jax.jit
    def accuracy(key: jax.Array, batches: Any, test_batches: Any) -> jax.Array:
        optimizer = optax.sgd(flags.client_rate)
        params = local_train(
            model, model.init(key), batches, key, optimizer=optimizer, num_epochs=max(epochs, 1)
        ).params
        return finalize_metrics(local_evaluate(model, params, test_batches))["accuracy"]

    batches = central(data, batch_size=flags.batch_size)
    return float(accuracy(jax.random.key(flags.seed), batches, central(test, batch_size=100)))


# --- picture ------------------------------------------------------------------------------------


def draw(path: Path, rows: list[dict[str, Any]], centralised: float, counts: np.ndarray) -> None:
    """Draws the learning curves, and how many images of each digit every client holds."""
    figure, (curve, clients) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curve.plot(*values(rows, "test/accuracy"), color="tab:blue", label="federated")
    curve.axhline(centralised, color="black", linestyle="--", linewidth=1, label="centralised")
    curve.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="Learning")
    loss = curve.twinx()
    loss.plot(*values(rows, "train/loss"), color="tab:orange", linewidth=0.8, label="loss")
    loss.set_ylabel("clients' training loss", color="tab:orange")
    loss.set_ylim(bottom=0)
    curve.legend(loc="center right")

    order = np.argsort(-counts.sum(axis=1))
    bottom = np.zeros(len(counts))
    for digit in range(counts.shape[1]):
        clients.bar(np.arange(len(counts)), counts[order, digit], 1.0, bottom=bottom, color=f"C{digit}", label=digit)
        bottom += counts[order, digit]
    clients.set(xlabel="client, largest first", ylabel="training images", title="What the clients hold")
    clients.legend(title="digit", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    several = initialize_distributed()  # where it was started several times, as one program
    try:
        main(parse_flags())
    except RunError as error:
        if several:
            raise  # an error that nobody catches ends the others too
        sys.exit(f"quickstart: {error} (--resume, --overwrite, --output)")
