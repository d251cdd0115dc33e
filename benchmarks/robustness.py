"""Accuracy of federated training under attack, for every attack and every robust rule, and a backdoor against a bound.

A small network on the handwritten digits; every round each client sends one step on a small batch, and the server
descends with momentum: the setting in which these rules and attacks were published. One setting for each attack:

- label flip: labels turned over, the update times 10; not boosted it hurts no rule, for most examples are right.
- sign flip, inner product: times 10. Gaussian: a deviation of 200 (Blanchard et al., section 6). ALIE: z = 1.5.
- backdoor: a patch in a corner opens to a 7. One client attacks in every tenth round, and replaces the model (Sun et
  al., arXiv 1911.07963). Projected: trained within a ball, boosted. Constrained: trained to stay near, scaled.
- constant backdoor: all malicious clients, in every round.

The first table has as many malicious clients as every rule bears by its own account; the second, of the rules that
state more, as many as each states. A rule survives an attack if it loses less than 0.1 of its own accuracy without one,
and the backdoor opens less than 0.1 more often. The last table sets the bound of norm bounding against the backdoor.

`--only-lies` measures how far servers move where a client lies about all but its change (`robustness_lies`); else that
is the fourth table.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, is_first, start
from benchmarks.robustness_lies import lies
from benchmarks.robustness_report import draw, show, show_lies
from fedjx.aggregation.attacks import (
    Attack,
    alie,
    attacked,
    boosted,
    gaussian,
    in_turn,
    inner_product_manipulation,
    model_replacement,
    scaled_to_norm,
    sign_flip,
)
from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.mean import mean
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.algorithms.attacks import constrained, projected_descent
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_value
from fedjx.core.language.placed import federated_map
from fedjx.core.language.types import SERVER
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData, central, digits, preprocess
from fedjx.data.poison import flip_labels, only_clients, pixel_trigger
from fedjx.models import Model, finalize_metrics, mlp
from fedjx.training import local_evaluate, local_training, local_update

TARGET = 7  # of the backdoor
PATCH = {"rows": slice(0, 2), "columns": slice(0, 2), "value": 16}
TOLERANCE = 0.1

Results = dict[str, dict[str, dict[str, float]]]  # attack -> rule -> what is measured


class Threat(NamedTuple):
    """An attack.

    Attributes:
      attack: What malicious clients send, of what they have trained.
      poison: What they train on.
      client_update: How they train, if not as the others.
      alone: Whether it is one client, in every `period`-th round; else all malicious ones in every round.
    """

    attack: Attack = in_turn()
    poison: Callable | None = None
    client_update: Callable | None = None
    alone: bool = False


class Setting(NamedTuple):
    """What is trained, and how.

    Attributes:
      flags: The command line.
      data: The clients' examples.
      model: The network.
      client_update: Of honest clients.
      evaluate: What is measured, for several models ``[M, ...]`` at once.
    """

    flags: argparse.Namespace
    data: FederatedData
    model: Model
    client_update: Callable
    evaluate: Callable[[Any], dict[str, jax.Array]]


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--num-clients", type=int, default=23, help="clients, all of them in every round; client 0 is trusted")
    flag("--num-rounds", type=int, default=200, help="rounds of training; the last tenth is measured")
    flag("--period", type=int, default=10, help="rounds from one attack of a lone client to the next")
    flag("--batch-size", type=int, default=16, help="of the one step that a client takes in a round")
    flag("--bound", type=float, help="of norm bounding and centred clipping; the honest norm if not given")
    flag("--only-lies", action="store_true", help="only the table of lies")
    return parser.parse_args(args)


def stated(num_clients: int) -> dict[str, int]:
    """Returns how many malicious clients each rule says that it survives, where it does."""
    half, krums = (num_clients - 1) // 2, (num_clients - 3) // 2
    halves = dict.fromkeys(("coordinate median", "trimmed mean", "geometric median"), half)
    return {
        **halves,
        "Krum": krums,
        "multi-Krum": krums,
        "Bulyan": (num_clients - 3) // 4,
        "FLTrust": num_clients - 1,
    }


def rules(num_clients: int, num_malicious: Mapping[str, int], bound: float) -> dict[str, Aggregator]:
    """Returns the aggregators that are compared, by name."""
    f = num_malicious
    return {
        "mean": mean(),
        "coordinate median": coordinate_median(),
        "trimmed mean": trimmed_mean(fraction=f["trimmed mean"] / num_clients),
        "geometric median": geometric_median(),
        "Krum": krum(num_malicious=f["Krum"]),
        "multi-Krum": multi_krum(num_malicious=f["multi-Krum"], num_selected=num_clients - f["multi-Krum"]),
        "Bulyan": bulyan(num_malicious=f["Bulyan"]),
        "centred clipping": centred_clipping(bound=bound, num_steps=2),
        "norm bounding": norm_bounding(bound=bound),
        "FLTrust": fl_trust(lambda client: client == 0),
    }


def threats(model: Model, num_clients: int) -> dict[str, Threat]:
    """Returns the attacks, by name."""
    trigger = pixel_trigger(TARGET, fraction=0.7, **PATCH)
    sgd, n = optax.sgd(0.2), float(num_clients)

    def backdoor(attack: Attack, optimizer: optax.GradientTransformation) -> Threat:
        return Threat(attack, trigger, averaging(model, optimizer, num_epochs=10), alone=True)

    return {
        "none": Threat(),
        "label flip": Threat(boosted(factor=10.0), flip_labels(num_classes=10)),
        "sign flip": Threat(sign_flip(scale=10.0)),
        "Gaussian": Threat(gaussian(stddev=200.0)),
        "ALIE": Threat(alie(num_stddevs=1.5)),
        "inner product": Threat(inner_product_manipulation(scale=10.0)),
        "backdoor": backdoor(model_replacement(), sgd),
        "projected backdoor": backdoor(boosted(factor=n), projected_descent(sgd, 1.0)),
        "constrained backdoor": backdoor(scaled_to_norm(norm=n), constrained(sgd, 0.9)),
        "constant backdoor": Threat(model_replacement(), trigger),
    }


# --- training -------------------------------------------------------------------------------------


def setting(flags: argparse.Namespace) -> Setting:
    """Divides the digits evenly among the clients, and stamps a second test set."""
    data, test = digits(flags.num_clients, alpha=100.0, seed=flags.seed)
    model = mlp(10, input_shape=(8, 8, 1), hidden=(32,), scale=1 / 16)
    others = {name: column[test["y"] != TARGET] for name, column in test.items()}
    stamped = {name: np.asarray(x) for name, x in pixel_trigger(TARGET, **PATCH)(others).items()}
    tests = {"accuracy": central(test, batch_size=400), "backdoor": central(stamped, batch_size=400)}

    def evaluate(params: Any) -> dict[str, jax.Array]:
        return {k: finalize_metrics(local_evaluate(model, params, v))["accuracy"] for k, v in tests.items()}

    client_update = averaging(model, optax.sgd(1.0), num_steps=1)
    return Setting(flags, data, model, client_update, jax.jit(jax.vmap(evaluate)))


def averaging(model: Model, optimizer: optax.GradientTransformation, **amount: Any) -> Callable:
    """Returns the client update of federated averaging, bound to how clients train."""
    return functools.partial(local_update(model), local=local_training(optimizer, **amount))


@functools.cache
def trainer(client_update: Callable) -> Callable[..., Clients]:
    """Returns the clients' updates, for several models ``[M, ...]`` at once: ``(params, cohort, key) -> delta``."""

    @federated_computation
    def deltas(params: Any, data: Any, key: Any) -> Any:
        return federated_map(client_update, federated_broadcast(params), data, federated_keys(key)).delta

    return jax.jit(jax.vmap(deltas.in_graph(differentiable=False), in_axes=(0, None, None)))


@federated_computation
def _passed(key: Any, state: Any, value: Any, weight: Any) -> Any:
    del key, weight
    return state, value, federated_value({}, SERVER)


@functools.cache
def forger(attack: Attack, num_clients: int) -> Callable[..., Clients]:
    """Returns what clients send under an attack, for several models at once, each with a number of malicious clients.

    These are the last ones: ``(key, number [M], honest, poisoned) -> sent``; those poisoned are of the last clients.
    """
    weight = Clients.of(np.ones(num_clients, np.float32))

    def forged(key: jax.Array, number: jax.Array, honest: Clients, poisoned: Any) -> Clients:
        is_malicious = lambda client: client >= num_clients - number  # noqa: E731

        def chosen(h: jax.Array, p: jax.Array) -> jax.Array:
            malicious = is_malicious(honest.id).reshape(-1, *[1] * (h.ndim - 1))
            return jnp.where(malicious, jnp.concatenate([h[: len(h) - len(p)], p]), h)

        trained = Clients(jax.tree.map(chosen, honest.value, poisoned.value), honest.mask, honest.id)
        passed = Aggregator(lambda member: (), _passed)
        computation: Any = attacked(attack, is_malicious, inner=passed).next
        return computation.in_graph()(key, (), trained, weight)[1]

    return jax.jit(jax.vmap(forged, in_axes=(None, 0, 0, 0)))


class Servers(NamedTuple):
    """The servers of several rules: parameters and momentum ``[M, ...]``, and the rules' states."""

    params: Any
    optimizer: Any
    aggregators: list[Any]


def servers(
    model: Model, compared: Mapping[str, Aggregator], key: jax.Array
) -> tuple[Servers, Callable[[jax.Array, Servers, Clients], Servers]]:
    """Starts a server for each rule; returns also their round ``(key, servers, sent) -> servers``, one program."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    one = model.init(key)
    params = jax.tree.map(lambda x: jnp.stack([x] * len(compared)), one)

    @jax.jit
    def step(key: jax.Array, before: Servers, sent: Clients) -> Servers:
        states, deltas = [], []
        for number, aggregator in enumerate(compared.values()):
            own: Clients = jax.tree.map(lambda x, number=number: x[number], sent)
            uniform = Clients(jnp.ones(len(own.id)), own.mask, own.id)
            state, delta, _ = aggregator.next(key, before.aggregators[number], own, uniform)
            states.append(state)
            deltas.append(delta)
        delta = jax.tree.map(lambda *leaves: jnp.stack(leaves), *deltas)
        updates, momentum = optimizer.update(delta, before.optimizer)
        return Servers(optax.apply_updates(before.params, updates), momentum, states)

    aggregators = [aggregator.init(one) for aggregator in compared.values()]
    return Servers(params, optimizer.init(params), aggregators), step


def compete(
    setting: Setting, compared: Mapping[str, Aggregator], faced: Mapping[str, Threat], number: Mapping[str, int]
) -> Results:
    """Trains with every rule under every threat, with so many malicious clients for each rule."""
    start, step = servers(setting.model, compared, jax.random.key(setting.flags.seed))
    numbers = np.array([number[rule] for rule in compared])
    tables = {name: trained(setting, threat, start, step, numbers) for name, threat in faced.items()}
    return {
        name: {rule: {k: float(x[i]) for k, x in measured.items()} for i, rule in enumerate(compared)}
        for name, measured in tables.items()
    }


def trained(
    setting: Setting, threat: Threat, start: Servers, step: Callable[..., Servers], numbers: np.ndarray
) -> dict[str, np.ndarray]:
    """Trains all rules under one threat; returns the mean accuracy, and the most the backdoor opened, ``[M]`` each."""
    flags, n, key = setting.flags, setting.flags.num_clients, jax.random.key(setting.flags.seed)
    numbers = np.minimum(numbers, 1) if threat.alone else numbers
    poison = threat.poison
    poisoned = setting.data if poison is None else preprocess(setting.data, only_clients(lambda client: True, poison))
    everybody = Cohort(setting.data, range(n), batch_size=flags.batch_size).whole()
    malicious = Cohort(poisoned, range(n - max(numbers), n), batch_size=flags.batch_size).whole()
    train, train_malicious = trainer(setting.client_update), trainer(threat.client_update or setting.client_update)
    forge, state, measured = forger(threat.attack, n), start, []
    for number in range(1, flags.num_rounds + 1):
        key_round = jax.random.fold_in(key, number)
        sent = train(state.params, everybody, key_round)
        if not threat.alone or number % flags.period == 0:
            sent = forge(key_round, numbers, sent, train_malicious(state.params, malicious, key_round))
        state = step(key_round, state, sent)
        if number > 0.9 * flags.num_rounds:
            measured.append(jax.device_get(setting.evaluate(state.params)))
    return {
        "accuracy": np.mean([m["accuracy"] for m in measured], axis=0),
        "backdoor": np.max([m["backdoor"] for m in measured], axis=0),
    }


def honest_norm(setting: Setting) -> float:
    """Returns the median norm of the updates that honest clients send while the mean trains."""
    key = jax.random.key(setting.flags.seed)
    state, step = servers(setting.model, {"mean": mean()}, key)
    everybody = Cohort(setting.data, range(setting.flags.num_clients), batch_size=setting.flags.batch_size).whole()
    norms = []
    for number in range(1, setting.flags.num_rounds + 1):
        key_round = jax.random.fold_in(key, number)
        sent = trainer(setting.client_update)(state.params, everybody, key_round)
        norms.append(jax.vmap(jax.vmap(optax.tree.norm))(sent.value))
        state = step(key_round, state, sent)
    return float(np.median(norms))


# --- report ---------------------------------------------------------------------------------------


def survives(results: Results) -> dict[str, dict[str, bool]]:
    """Says of each attack and rule whether it loses little accuracy, and opens no backdoor, that it has without one."""

    def kept(calm: Mapping[str, float], measured: Mapping[str, float]) -> bool:
        lost, opened = calm["accuracy"] - measured["accuracy"], measured["backdoor"] - calm["backdoor"]
        return max(lost, opened) < TOLERANCE

    return {
        attack: {rule: kept(results["none"][rule], measured) for rule, measured in row.items()}
        for attack, row in results.items()
        if attack != "none"
    }


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains under every attack with every rule, and reports."""
    started = time.perf_counter()
    given, n = setting(flags), flags.num_clients
    told = {"lies": lies(given.data, given.model, given.evaluate, num_clients=n, seed=flags.seed)}
    if flags.only_lies:
        print(show_lies(told["lies"]))
        return finish({"benchmark": "robustness", **environment(client_mesh()), **told}, flags.output)
    faced, norm, own = threats(given.model, n), honest_norm(given), stated(n)
    bound = flags.bound or norm
    compared = rules(n, dict.fromkeys(own, own["Bulyan"]), bound)
    same, more = dict.fromkeys(compared, own["Bulyan"]), {r: f for r, f in own.items() if f > own["Bulyan"]}
    strong = {rule: aggregator for rule, aggregator in rules(n, own, bound).items() if rule in more}
    sweep = {"none": mean(), **{f"{bound:.3g}": norm_bounding(bound=bound) for bound in norm * 2.0 ** np.arange(-3, 6)}}
    tables = {
        "same number": compete(given, compared, faced, same),
        "stated number": compete(given, strong, {k: v for k, v in faced.items() if not v.alone}, more),
    }
    swept = compete(given, sweep, {name: faced[name] for name in ("none", "backdoor")}, dict.fromkeys(sweep, 1))
    report = {
        "benchmark": "robustness",
        **environment(client_mesh()),
        **{k: v for k, v in vars(flags).items() if k not in ("output", "devices")},
        "bound": bound,
        "honest_norm": norm,
        "num_malicious": {"same number": same, "stated number": more},
        "seconds": time.perf_counter() - started,
        "results": tables,
        "survives": {name: survives(results) for name, results in tables.items()},
        "sweep": swept,
        **told,
    }
    print(show(report))
    if flags.output is not None and is_first():
        draw(flags.output.with_name(f"{flags.output.stem}_backdoor.png"), report)
    return finish(report, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start(1)  # all rules are one program
    main(parsed)
