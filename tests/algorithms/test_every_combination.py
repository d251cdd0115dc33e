"""Every method with every way to run its rounds: one round each, or a refusal that says why, when it is built.

The table of `docs/algorithms.md` is made of this list; `python -m tests.algorithms.test_every_combination` prints it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjx
from fedjx import algorithms as methods
from fedjx.aggregation import (
    clip_by_norm,
    compressed_broadcast,
    coordinate_median,
    error_feedback,
    quantize,
    secure_mean,
    secure_total,
    top_k,
    uniform_quantizer,
)
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.values import Clients
from fedjx.data import uniform_sampler
from fedjx.data.sampling_reports import over_select
from fedjx.models import Model
from fedjx.training import Failures
from tests.algorithms.problems import NUM_FEATURES, federated_data, normed_model, with_domains

SGD = optax.sgd(0.1, momentum=0.5)
DOCUMENT = Path(__file__).parents[2] / "docs" / "algorithms.md"


def toy() -> Model:
    """A point that is to be near the examples, in two parts."""

    def loss(params: Any, batch: Any, key: Any = None) -> Any:
        del key
        return jnp.sum((batch["x"] @ params["body"] + params["head"] - 1) ** 2, axis=1)

    def init(key: Any) -> Any:
        body = 0.1 * jax.random.normal(key, (NUM_FEATURES, 2), jnp.float32)
        return {"body": body, "head": jnp.zeros((1, 2), jnp.float32)}

    return Model(init, loss, lambda params, batch: {"loss": loss(params, batch)})


def is_head(name: str) -> bool:
    return name == "head"


def methods_of(model: Model, normed: Model) -> dict[str, Callable[..., Any]]:
    """Returns all methods of a model, by name, as functions of how their rounds are run.

    Args:
      model: Such as `toy`.
      normed: One with batch statistics.
    """

    def trained(method: Callable[..., Any], of: Model = model, **own: Any) -> Callable[..., Any]:
        # A method of local training: it takes a client optimizer, which may be a schedule.
        return lambda **run: method(of, **{"client_optimizer": SGD, **own, **run})

    return {
        "fed_avg": trained(methods.fed_avg),
        "fed_sgd": functools.partial(methods.fed_sgd, model, learning_rate=0.1),
        "fed_avgm": trained(methods.fed_avgm),
        "fed_adagrad": trained(methods.fed_adagrad),
        "fed_adam": trained(methods.fed_adam),
        "fed_yogi": trained(methods.fed_yogi),
        "fed_prox": trained(methods.fed_prox, proximal_strength=0.1, adaptive=True),
        "fed_nova": trained(methods.fed_nova),
        "fed_exp": trained(methods.fed_exp),
        "q_fed_avg": trained(methods.q_fed_avg, q=1.0, lipschitz=5.0),
        "agnostic_fed_avg": trained(methods.agnostic_fed_avg, domain_weights=[0.5, 0.2, 0.3], domain_learning_rate=0.1),
        "scaffold": trained(methods.scaffold, num_clients=3),
        "fed_dyn": trained(methods.fed_dyn, num_clients=3, proximal_strength=0.1),
        "mime": functools.partial(methods.mime, model, base_optimizer=SGD),
        "fed_lin": trained(methods.fed_lin),
        "per_fed_avg": trained(methods.per_fed_avg, inner_learning_rate=0.1),
        "reptile": trained(methods.reptile),
        "p_fed_me": trained(methods.p_fed_me, proximal_strength=1.0, inner_optimizer=optax.sgd(0.1), num_inner_steps=1),
        "apfl": trained(methods.apfl),
        "ditto": trained(methods.ditto, proximal_strength=0.1),
        "fed_per": trained(methods.fed_per, is_local=is_head),
        "fed_rep": trained(methods.fed_rep, is_local=is_head),
        "fed_bn": trained(methods.fed_bn, of=normed),
        "reconstruction": trained(methods.reconstruction, is_local=is_head, reconstruction_optimizer=optax.sgd(0.1)),
        "ifca": trained(functools.partial(methods.ifca, num_clusters=2)),
    }


METHODS = methods_of(toy(), normed_model())


def everything(leaf: Any) -> bool:
    del leaf
    return True


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a robust rule": {"aggregator": coordinate_median()},
    "clipping": {"aggregator": clip_by_norm(max_norm=1.0)},
    "quantisation": {"aggregator": quantize(8, where=everything)},
    "error feedback": {"aggregator": error_feedback(top_k(fraction=0.5), where=everything)},
    "secure sums": {
        "aggregator": secure_mean(bound=100.0, max_weight=4, max_clients=3),
        "metrics_sum": secure_total(bound=1e3, max_clients=3),
    },
    "failures": {"failures": Failures(dropped=0.2, non_finite=0.1, partial=0.3)},
    "over-selection": {},
    "a schedule over rounds": {"client_optimizer": lambda round: optax.sgd(0.1 / (1 + round))},
    "a compressed broadcast": {"broadcaster": compressed_broadcast(uniform_quantizer(8), where=everything)},
}

# What does not go together, and the sentence that says so when the algorithm is built.
REFUSED: dict[tuple[str, str], str] = {
    ("fed_sgd", "failures"): r"a client update that is left incomplete trains with local\.train; got Failures",
    (
        "fed_sgd",
        "a schedule over rounds",
    ): r"this method does not train as .* got \['client_optimizer'\]",
    ("mime", "a schedule over rounds"): r"clients of Mime step by the base optimizer",
    ("fed_exp", "a robust rule"): "takes a number of each client's change besides their mean",
    ("fed_exp", "error feedback"): "takes a number of each client's change besides their mean",
    ("ifca", "error feedback"): r"who is in a cluster changes from round to round, so clients keep no memory for it",
}


DATA = with_domains(federated_data((2, 1, 2)))
IDS = range(DATA.num_clients)


def run_one_round(algorithm: Any, ids: Any, data: Any = DATA) -> Any:
    """Runs a round of a cohort of three places, operation by operation, which compiles next to nothing."""
    with jax.disable_jit():
        state = algorithm.init(jax.random.key(0))
        clients = fedjx.data.Cohort(data, ids, batch_size=2).whole(num_steps=1, num_places=3)
        if not isinstance(algorithm, StatefulAlgorithm):
            return state, algorithm.next(state, clients)
        first = algorithm.init_client(state)
        states = jax.tree.map(lambda x: jnp.stack([x] * 3), first)
        return state, algorithm.next(state, clients, Clients.of(states, ids=clients.id, mask=clients.mask))


def outcome(method: str, way: str) -> str:
    """Runs a cell; returns what came: "yes", or why it is refused."""
    try:
        algorithm = METHODS[method](**WAYS[way])
    except (TypeError, ValueError) as error:
        return str(error)
    ids = over_select(uniform_sampler(3, 3, seed=0), 2, seed=0, dropped=0.1)[0](1) if way == "over-selection" else IDS
    before, (after, metrics, *states) = run_one_round(algorithm, ids)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before.params)
    assert any(jax.tree.leaves(moved))
    finite = [x for x in jax.tree.leaves((after.params, metrics, states)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(bool(jnp.isfinite(x).all()) for x in finite)
    assert int(after.round) == 1
    assert int(metrics["num_non_finite_clients"]) == 0 or way == "failures"
    return "yes"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_in_every_way_or_says_why_not(method):
    found = {way: outcome(method, way) for way in WAYS}
    for way, came in found.items():
        reason = REFUSED.get((method, way))
        assert re.search(reason, came) if reason else came == "yes", (way, came)


def test_every_method_is_in_the_list():
    """What `fedjx.algorithms` exports and returns an algorithm of a model, but for evaluations and wrappers."""
    others = {"kmeans", "kmeans_start", "gaussian_mixture", "pca", "sufficient_statistics", "ema"}
    made = {
        name
        for name in methods.__all__
        if "Algorithm" in str(getattr(getattr(methods, name), "__annotations__", {}).get("return", ""))
        or name == "fed_avg"
    }
    assert made - others == set(METHODS)


def table() -> str:
    """Writes the table of the documents."""
    rows = [f"| | {' | '.join(list(WAYS)[1:])} |", f"|---|{'---|' * (len(WAYS) - 1)}"]
    for method in METHODS:
        cells = ("refused" if (method, way) in REFUSED else "yes" for way in list(WAYS)[1:])
        rows.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_documents_show_this_table():
    assert table() in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
