"""Federated averaging on real handwriting, from non-IID clients. Copy this file and change it.

Shows progress while it trains, compares with training on the pooled images, and leaves in the
output directory, which is its own, TensorBoard events, `curves.png` and Orbax checkpoints. The
last line it prints is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import optax
from tqdm import tqdm

from fedjx import initialize_distributed, traffic
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, central, digits, label_counts, uniform_sampler
from fedjx.data.fingerprint import fingerprint
from fedjx.experiment import Checkpoint, RunError, event_writer, last_checkpoint, open_run, save_checkpoint
from fedjx.models import cnn, finalize_metrics, mlp
from fedjx.training import local_evaluate, local_train

mpl.use("Agg")
from matplotlib import pyplot as plt


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
    test_batches = central(test, batch_size=100)

    @jax.jit
    def evaluate(params: Any) -> dict[str, jax.Array]:
        return finalize_metrics(local_evaluate(model, params, test_batches))

    @jax.jit
    def train_centrally(key: jax.Array) -> Any:
        epochs = round(flags.num_epochs * flags.num_rounds * flags.clients_per_round / flags.num_clients)
        batches = central(data, batch_size=flags.batch_size)
        optimizer = optax.sgd(flags.client_rate)
        return local_train(model, model.init(key), batches, key, optimizer=optimizer, num_epochs=max(epochs, 1)).params

    history, timing = train(flags, data, algorithm, evaluate)
    centralised = float(evaluate(train_centrally(jax.random.key(flags.seed)))["accuracy"])
    accuracy = history[-1]["test_accuracy"]
    report = {
        "test_accuracy": round(accuracy, 4),
        "centralised_accuracy": round(centralised, 4),
        "rounds": history[-1]["round"],
        "num_clients": data.num_clients,
        **timing,
    }
    if jax.process_index() == 0:
        draw(flags.output / "curves.png", history, centralised, label_counts(data, num_classes=10))
        print(f"\n{'':<14}test accuracy\nfederated     {accuracy:.4f}         {data.num_clients} clients")
        print(f"centralised   {centralised:.4f}         the same images, pooled\n\nResults are in {flags.output}.")
        print(json.dumps(report))
    return report


def train(flags: argparse.Namespace, data: Any, algorithm: Any, evaluate: Any) -> tuple[list[dict], dict[str, float]]:
    """Runs the rounds that are left to do; returns the history of evaluations, and the speed."""
    sample = uniform_sampler(data.num_clients, flags.clients_per_round, seed=flags.seed)
    state, is_first = algorithm.init(jax.random.key(flags.seed)), jax.process_index() == 0
    first = Cohort(data, sample(1), batch_size=flags.batch_size)
    about = {
        "flags": {k: v for k, v in vars(flags).items() if k not in ("num_rounds", "output", "resume", "overwrite")},
        "sampler": sample.description,
        "data": fingerprint(data),
        "algorithm": algorithm.next.program(state, first).fingerprint(),
    }
    with open_run(flags.output, about, resume=flags.resume, overwrite=flags.overwrite) as run:
        last = last_checkpoint(run, state) if flags.resume else None
        if flags.resume and is_first:
            print(f"Resuming after round {last.round if last else 0}.")
        history = [{"round": 0, "test_accuracy": float(evaluate(state.params)["accuracy"])}]
        done, state, history = last or Checkpoint(0, state, history)
        # What one client receives and sends in a round; the bill needs types alone.
        sent = traffic(algorithm.next, state, first.whole())
        num_examples, started, rounds = 0, time.perf_counter(), range(done + 1, flags.num_rounds + 1)
        progress = tqdm(rounds, "training", unit=" rounds", smoothing=0, disable=not is_first)
        progress.set_postfix_str("compiling, the first time")
        events = event_writer(run, after=done)
        for number in progress:
            ids = sample(number)
            clients = Cohort(data, ids, batch_size=flags.batch_size, lanes=flags.lanes)
            state, metrics = algorithm.next(state, clients)
            loss = float(metrics["loss"])
            num_examples += flags.num_epochs * int(metrics["num_examples"])
            seconds = time.perf_counter() - started
            events.add_scalar("train/loss", loss, number)
            for name, value in (sent * len(ids) * number).metrics().items():
                events.add_scalar(f"sent/{name}", value, number)
            if number % flags.eval_every == 0 or number == flags.num_rounds:
                tested = {f"test_{name}": float(value) for name, value in evaluate(state.params).items()}
                history.append({"round": number, "train_loss": loss} | tested)
                events.add_scalar("test/accuracy", tested["test_accuracy"], number)
                events.flush()  # before the checkpoint: a run that goes on from it has all curves until then
                save_checkpoint(run, Checkpoint(number, state, history))
            progress.set_postfix_str(
                f"{(number - done) * len(ids) / seconds:.0f} clients/s, {num_examples / seconds:.0f} examples/s, "
                f"loss {loss:.3f}, test accuracy {history[-1]['test_accuracy']:.3f}"
            )
        events.close()
    seconds = time.perf_counter() - started
    return history, {"train_seconds": round(seconds, 2), "examples_per_second": round(num_examples / seconds, 1)}


# --- picture ------------------------------------------------------------------------------------


def draw(path: Path, history: list[dict], centralised: float, counts: np.ndarray) -> None:
    """Draws the learning curves, and how many images of each digit every client holds."""
    figure, (curve, clients) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rounds = [row["round"] for row in history]
    curve.plot(rounds, [row["test_accuracy"] for row in history], color="tab:blue", label="federated")
    curve.axhline(centralised, color="black", linestyle="--", linewidth=1, label="centralised")
    curve.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="Learning")
    trained = [row for row in history if "train_loss" in row]
    loss = curve.twinx()
    loss.plot([r["round"] for r in trained], [r["train_loss"] for r in trained], color="tab:orange", label="loss")
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
