"""Accuracy of federated averaging under attack, for every attack and every robust rule.

A small network on the handwritten digits; a fifth of the clients is malicious, in every round. The backdoor's column
is its success: the share of stamped test images of other digits that are taken for the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, table
from fedjx.aggregation.attacks import (
    Attack,
    alie,
    attacked,
    gaussian,
    in_turn,
    inner_product_manipulation,
    model_replacement,
    projected,
    sign_flip,
)
from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.mean import mean
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.algorithms import local_evaluate, local_train
from fedjx.core.computation import federated_computation
from fedjx.core.operators import federated_broadcast, federated_keys
from fedjx.core.placed import federated_map
from fedjx.core.process import Aggregator
from fedjx.core.values import Clients
from fedjx.data import central, cohort, digits, preprocess
from fedjx.data.poison import flip_labels, only_clients, pixel_trigger
from fedjx.models import finalize_metrics, mlp

TARGET = 7  # of the backdoor
PATCH = {"rows": slice(0, 2), "columns": slice(0, 2), "value": 16}


def parse_flags(args: list[str] | None = None) -> Any:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--num-clients", type=int, default=15, help="clients, all of them in every round; client 0 is trusted")
    flag("--num-malicious", type=int, default=3, help="of them; the last ones")
    flag("--num-rounds", type=int, default=30, help="rounds of training")
    flag("--bound", type=float, default=0.5, help="of norm bounding and centred clipping")
    return parser.parse_args(args)


def rules(num_clients: int, num_malicious: int, bound: float) -> dict[str, Aggregator]:
    """Returns the aggregators that are compared, by name."""
    return {
        "mean": mean(),
        "coordinate median": coordinate_median(),
        "trimmed mean": trimmed_mean(fraction=num_malicious / num_clients),
        "geometric median": geometric_median(num_steps=4, from_mean=False),
        "Krum": krum(num_malicious=num_malicious),
        "multi-Krum": multi_krum(num_malicious=num_malicious, num_selected=num_clients - num_malicious),
        "Bulyan": bulyan(num_malicious=num_malicious),
        "centred clipping": centred_clipping(bound, num_steps=2),
        "norm bounding": norm_bounding(bound),
        "FLTrust": fl_trust(lambda client: client == 0),
    }


def attacks() -> dict[str, tuple[Attack | None, Callable | None]]:
    """Returns what malicious clients send and what they train on, by name."""
    trigger = pixel_trigger(TARGET, fraction=0.7, **PATCH)
    return {
        "none": (None, None),
        "label flip": (None, flip_labels(num_classes=10)),
        "sign flip": (sign_flip(scale=10.0), None),
        "Gaussian": (gaussian(stddev=1.0), None),
        "ALIE": (alie(num_stddevs=1.5), None),
        "inner product": (inner_product_manipulation(scale=10.0), None),
        "backdoor": (model_replacement(), trigger),
        "projected backdoor": (in_turn(projected(1.0), model_replacement()), trigger),
    }


def main(flags: Any) -> dict[str, Any]:
    """Trains under every attack with every rule, and reports."""
    started = time.perf_counter()
    data, test = digits(flags.num_clients, alpha=100.0, seed=flags.seed)
    first_malicious = flags.num_clients - flags.num_malicious
    model = mlp(10, input_shape=(8, 8, 1), hidden=(32,), scale=1 / 16)
    others = {name: column[test["y"] != TARGET] for name, column in test.items()}
    stamped = {k: np.asarray(v) for k, v in pixel_trigger(TARGET, **PATCH)(others).items()}
    sets = {"accuracy": central(test, batch_size=100), "backdoor": central(stamped, batch_size=100)}

    @jax.jit
    def evaluate(params: Any) -> dict[str, jax.Array]:
        return {k: finalize_metrics(local_evaluate(model, params, v))["accuracy"] for k, v in sets.items()}

    def is_malicious(client: Any) -> Any:
        return client >= first_malicious

    def client_update(params: Any, data: Any, key: jax.Array) -> Any:
        after = local_train(model, params, data, key, optimizer=optax.sgd(0.2), num_epochs=2).params
        return jax.tree.map(jnp.subtract, params, after)

    @federated_computation
    def updates(params: Any, data: Any, key: Any) -> Any:
        return federated_map(client_update, federated_broadcast(params), data, federated_keys(key))

    # Apart from the aggregation, so that training is compiled once, not for every pair of an attack and a rule.
    train = updates.in_graph(differentiable=False)
    weight = Clients.of(np.ones(flags.num_clients, np.float32))

    def trained(attack: Attack | None, poison: Callable | None, rule: Aggregator) -> dict[str, float]:
        aggregator = rule if attack is None else attacked(attack, is_malicious, inner=rule)
        poisoned = data if poison is None else preprocess(data, only_clients(is_malicious, poison))
        clients = cohort(poisoned, range(flags.num_clients), batch_size=20)
        key = jax.random.key(flags.seed)
        params = model.init(key)
        computation: Any = aggregator.next
        state, aggregate = aggregator.init(params), computation.in_graph()
        for number in range(flags.num_rounds):
            key_round = jax.random.fold_in(key, number)
            state, delta, _ = aggregate(key_round, state, train(params, clients, key_round), weight)
            params = jax.tree.map(jnp.subtract, params, delta)
        return {name: round(float(x), 4) for name, x in evaluate(params).items()}

    compared = rules(flags.num_clients, flags.num_malicious, flags.bound)
    results = {
        name: {rule: trained(attack, poison, aggregator) for rule, aggregator in compared.items()}
        for name, (attack, poison) in attacks().items()
    }
    show(results)
    settings = {k: v for k, v in vars(flags).items() if k not in ("output", "devices")}
    seconds = time.perf_counter() - started
    report = {**environment(client_mesh()), **settings, "seconds": seconds, "results": results}
    return finish(report, flags.output)


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints a row for each rule: its accuracy under each attack, and how often backdoors open."""
    names = list(results)
    backdoors = [name for name in names if "backdoor" in name]
    header = ["rule", *names, *(f"{name} opens" for name in backdoors)]
    rows = [
        [
            rule,
            *(results[name][rule]["accuracy"] for name in names),
            *(results[name][rule]["backdoor"] for name in backdoors),
        ]
        for rule in results["none"]
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main(parse_flags())
