"""A backdoor in a federated model, and what bounds it: an attacker whose sevens are ones.

Sun et al., "Can You Really Backdoor Federated Learning?" (arXiv 1911.07963), with the flags and the settings of their
script. The attacker has the images of one client and the sevens of `task_num` others, labelled as ones. In a round of
attack it takes the place of one of the cohort, trains `client_round_num` times as long as the others within a ball of
radius `norm_bound` around the model it was sent, and sends its change times the size of the cohort, so that the mean
becomes its model. `--norm_bound inf` leaves out the ball: explicit boosting (Bhagoji et al., arXiv 1811.12470).

Trains without the attacker, with it, and with it where the server clips what clients send to `l2_norm_clip`; with
`mul_factor` also where it adds noise of so many clips to their sum. Unlike theirs the attacker mixes both tasks in its
batches, and is projected after every step; it makes its images itself; `drop_prob`, which they only log, is used; and
the network is a dense one, or with `--network cnn` one of two convolutions. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

from fedjx import Aggregator, Algorithm
from fedjx.aggregation import mean, uniform
from fedjx.algorithms.attacks import projected_boosting
from fedjx.data import Cohort, FederatedData, central, digits, iid_partition, published, relabel, uniform_sampler
from fedjx.models import Model, cnn, finalize_metrics, mlp
from fedjx.privacy import dp_mean
from fedjx.training import ClientUpdate, Local, Method, compose, local_evaluate, local_update

mpl.use("Agg")
from matplotlib import pyplot as plt

SOURCE, TARGET = 7, 1  # what the attacker's images show, and what it wants them to be taken for


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line: the published flags, and whose data."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--emnist", type=Path, help="directory with TFF's file of EMNIST, of writers")
    data.add_argument("--mnist", type=Path, help="MNIST's archive or files, such as data/; the digits if neither")
    flag("--num_clients", type=int, help="clients of MNIST (600) or of the digits (120); of EMNIST all writers")
    flag("--network", choices=["mlp", "cnn"], default="mlp", help="what is trained")
    flag("--root_output_dir", type=Path, default=Path("runs/targeted_attack"), help="directory for the results")
    flag("--random_seed", type=int, default=0, help="of the clients, the cohorts and the network")
    flag("--evaluate_per_rounds", type=int, default=1, help="rounds between evaluations")
    flag("--only_digits", action=argparse.BooleanOptionalAction, default=True, help="of EMNIST 10 classes, or 62")
    flag("--num_clients_per_round", type=int, default=5, help="size of the cohort, and the factor of the attacker")
    flag("--num_rounds", type=int, default=300, help="rounds of training")
    flag("--server_learning_rate", type=float, default=1.0, help="of the server's SGD")
    flag("--server_momentum", type=float, default=0.0, help="of the server's SGD")
    flag("--num_epochs", type=int, default=5, help="local epochs")
    flag("--batch_size", type=int, default=20, help="images in a local batch")
    flag("--client_learning_rate", type=float, default=0.1, help="of the clients' SGD")
    flag("--client_momentum", type=float, default=0.0, help="of the clients' SGD")
    flag("--attack_freq", type=int, default=1, help="rounds from one attack to the next")
    flag("--task_num", type=int, default=30, help="clients whose sevens the attacker has")
    flag("--client_round_num", type=int, default=5, help="how many times as long the attacker trains")
    flag("--drop_prob", type=float, default=0.5, help="dropout before the last layer")
    flag("--norm_bound", type=float, default=0.33, help="radius of the attacker's ball")
    flag("--l2_norm_clip", type=float, default=1.0, help="the most that a client's change may be, where it is clipped")
    flag("--mul_factor", type=float, default=0.0, help="noise on the clients' sum, in clips")
    return parser.parse_args(args)


# --- who has what -----------------------------------------------------------------------------------


def load(flags: argparse.Namespace) -> tuple[FederatedData, dict[str, np.ndarray], float]:
    """Returns the clients' images, the test set and the largest pixel."""
    if flags.emnist:
        stores = published.open(published.emnist(digits_only=flags.only_digits), flags.emnist)
        named = lambda columns: {"x": columns["pixels"][..., None], "y": columns["label"].astype(np.int32)}  # noqa: E731
        train, test = stores["train"], stores["test"]
        clients = FederatedData.from_clients([named(train.client(k)) for k in train.ids])
        return clients, named(test.read(test.ids)), 255.0
    if flags.mnist:
        train, test = published.mnist(flags.mnist)
    else:
        data, test = digits(1)
        train = data.client(0)
    num_clients = flags.num_clients or (600 if flags.mnist else 120)
    partition = iid_partition(len(train["y"]), num_clients, seed=flags.random_seed)
    return FederatedData.from_partition(train, partition), test, 255.0 if flags.mnist else 16.0


def with_attacker(data: FederatedData, task_num: int) -> tuple[FederatedData, dict[str, np.ndarray]]:
    """Takes the first clients away and adds the attacker, as the last; returns also the images of the backdoor."""
    own, tasks = data.client(0), data.read(np.arange(task_num))
    backdoor = {name: x[tasks["y"] == SOURCE] for name, x in relabel(SOURCE, TARGET)(tasks).items()}
    attacker = {name: np.concatenate([x[own["y"] != SOURCE], backdoor[name]]) for name, x in own.items()}
    honest = [data.client(k) for k in range(task_num, data.num_clients)]
    return FederatedData.from_clients([*honest, attacker]), backdoor


# --- training -----------------------------------------------------------------------------------------


def attacked_averaging(model: Model, flags: argparse.Namespace, attacker: int, aggregator: Aggregator) -> Algorithm:
    """Returns federated averaging in which one client, where it is in the cohort, trains longer and boosts."""
    is_malicious = lambda client: client == attacker  # noqa: E731
    boost = float(flags.num_clients_per_round)
    boosting = projected_boosting(local_update(model), is_malicious, radius=flags.norm_bound, boost=boost)

    def client_update(params: Any, data: Any, key: jax.Array, *, local: Local, id: jax.Array) -> ClientUpdate:
        share = jnp.where(is_malicious(id), 1.0, 1 / flags.client_round_num)
        paced = local._replace(train=functools.partial(local.train, completed=share))
        return boosting(params, data, key, local=paced, id=id)

    return compose(
        Method(model.init, client_update, input_spec=model.input_spec),
        client_optimizer=optax.sgd(flags.client_learning_rate, momentum=flags.client_momentum or None),
        server_optimizer=optax.sgd(flags.server_learning_rate, momentum=flags.server_momentum or None, nesterov=True),
        aggregator=aggregator,
        client_weight=uniform,
        num_epochs=flags.num_epochs * flags.client_round_num,
    )


def train(
    algorithm: Algorithm, evaluate: Callable, data: FederatedData, flags: argparse.Namespace, *, is_attacked: bool
) -> dict[str, list[float]]:
    """Trains for all rounds; returns by name what every evaluation found."""
    attacker, size = data.num_clients - 1, flags.num_clients_per_round
    sample = uniform_sampler(attacker, size, seed=flags.random_seed)
    state, curves = algorithm.init(jax.random.key(flags.random_seed)), []
    for number in range(flags.num_rounds):
        ids = sample(number + 1)
        if is_attacked and number % flags.attack_freq == flags.attack_freq // 2:
            ids = np.where(np.arange(size) == number % size, attacker, ids)
        state, _ = algorithm.next(state, Cohort(data, ids, batch_size=flags.batch_size, lanes=1))
        if (number + 1) % flags.evaluate_per_rounds == 0:
            measured = {name: round(float(x), 4) for name, x in evaluate(state.params).items()}
            curves.append({"round": number + 1, **measured})
    return {name: [row[name] for row in curves] for name in curves[0]}


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains without and with the attacker, without and with defences; draws and reports."""
    clients, test, largest = load(flags)
    data, backdoor = with_attacker(clients, flags.task_num)
    shape, num_classes = data.schema["x"].shape, 10 if flags.only_digits else 62
    network = functools.partial({"mlp": mlp, "cnn": cnn}[flags.network], num_classes, input_shape=shape)
    model = network(hidden=(128,), dropout=flags.drop_prob, scale=1 / largest)
    sets = {"main": central(test, batch_size=500), "backdoor": central(backdoor, batch_size=500)}

    @jax.jit
    def evaluate(params: Any) -> dict[str, jax.Array]:
        return {k: finalize_metrics(local_evaluate(model, params, x))["accuracy"] for k, x in sets.items()}

    clipped = functools.partial(dp_mean, clip=flags.l2_norm_clip, expected_clients=flags.num_clients_per_round)
    servers = {"attack": mean(), "attack, clipped": clipped(noise_multiplier=0.0)}
    if flags.mul_factor:
        servers["attack, clipped, noise"] = clipped(noise_multiplier=flags.mul_factor)
    algorithms = {k: attacked_averaging(model, flags, data.num_clients - 1, rule) for k, rule in servers.items()}
    algorithms = {"no attack": algorithms["attack"], **algorithms}
    curves = {k: train(x, evaluate, data, flags, is_attacked=k != "no attack") for k, x in algorithms.items()}
    for name, curve in curves.items():
        print(f"{name:<24} main accuracy {curve['main'][-1]:.3f}, backdoor {curve['backdoor'][-1]:.3f}")
    settings = {k: v for k, v in vars(flags).items() if k not in ("emnist", "mnist", "root_output_dir")}
    name = "EMNIST" if flags.emnist else "MNIST" if flags.mnist else "digits"
    sizes = {"num_clients": data.num_clients - 1, "num_backdoor_images": len(backdoor["y"])}
    report = {"data": name, "jax": jax.__version__, **settings, **sizes, "curves": curves}
    flags.root_output_dir.mkdir(parents=True, exist_ok=True)
    draw(flags.root_output_dir / "targeted_attack.png", curves)
    (flags.root_output_dir / "targeted_attack.json").write_text(f"{json.dumps(report)}\n", encoding="utf-8")
    print(json.dumps(report))
    return report


def draw(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """Draws both accuracies over the rounds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    titles = {"main": "Main task: the test set", "backdoor": "Backdoor: sevens of the attacker taken for ones"}
    for axis, (which, title) in zip(axes, titles.items(), strict=True):
        for (name, curve), color in zip(curves.items(), ("gray", "tab:red", "tab:blue", "tab:green"), strict=False):
            axis.plot(curve["round"], curve[which], label=name, color=color, linewidth=1.2)
        axis.set(xlabel="round", ylabel="accuracy", ylim=(-0.03, 1.03), title=title)
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(parse_flags())
