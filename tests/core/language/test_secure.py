"""The check that only secure sums touch the clients' values."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.aggregation.attacks import attacked, sign_flip
from fedjx.aggregation.mean import mean
from fedjx.aggregation.secure import secure_mean, secure_sum, secure_total
from fedjx.algorithms import fed_avg
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.operators import (
    federated_aggregate,
    federated_broadcast,
    federated_client_ids,
    federated_collect,
    federated_keys,
    federated_max,
    federated_mean,
    federated_min,
    federated_reduce,
    federated_secure_sum,
    federated_select,
    federated_sum,
    federated_value,
)
from fedjx.core.language.placed import federated_map
from fedjx.core.language.secure import check_secure
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType
from fedjx.core.language.values import Clients
from fedjx.data import Cohort
from fedjx.training.failures import Failures
from tests.algorithms.problems import federated_data, plain_model

X = FederatedType(jnp.float32, CLIENTS)
KEYS = FederatedType(jax.ShapeDtypeStruct((2,), jnp.int32), CLIENTS)
S = FederatedType(jnp.float32, SERVER)


def integers(x):
    return federated_map(lambda x: x.astype(jnp.int32), x)


EXPOSED = {
    "federated_sum": federated_sum,
    "federated_mean": federated_mean,
    "federated_max": federated_max,
    "federated_min": federated_min,
    "federated_collect": federated_collect,
    "federated_aggregate": lambda x: federated_aggregate(x, jnp.float32(0), jnp.add, jnp.add),
}


@pytest.mark.parametrize("name", EXPOSED)
def test_every_other_operator_is_named(name):
    pattern = re.escape(f"got {name} of {{float32}}@CLIENTS for result[1]['seen'] in f.")

    @federated_computation(X)
    def f(x):
        return federated_secure_sum(integers(x)), {"seen": EXPOSED[name](x)}

    with pytest.raises(ValueError, match=pattern):
        check_secure(f)


def test_a_reduce_and_a_weighted_mean_are_named():
    weighted = federated_computation(X, X)(lambda x, w: federated_mean(x, w))
    with pytest.raises(ValueError, match=r"got federated_mean of .* for result in"):
        check_secure(weighted)
    with pytest.raises(ValueError, match="got federated_aggregate of"):
        check_secure(federated_computation(X)(lambda x: federated_reduce(x, jnp.float32(0), jnp.add)))


def test_all_that_depends_on_clients_counts_however_far_away():
    @federated_computation(X, S)
    def f(x, s):
        total = federated_secure_sum(integers(x))
        moved = federated_map(jnp.multiply, x, federated_broadcast(federated_map(jnp.add, total, s)))
        again = federated_map(lambda m: m + 1, federated_mean(moved))
        ids = federated_sum(
            federated_map(lambda k: jax.random.uniform(k), federated_keys(federated_value(KEY, SERVER)))
        )
        return total, {"again": again, "count": federated_sum(federated_value(1, CLIENTS))}, (ids, again)

    with pytest.raises(ValueError, match="only secure sums") as error:
        check_secure(f)
    got = str(error.value).split("got ")[1].split(" in f.")[0].split("; ")
    assert got == [
        "federated_mean of {float32}@CLIENTS for result[1]['again'], result[2][1]",
        "federated_sum of {float32}@CLIENTS for result[2][0]",
    ]


KEY = np.array([0, 1], np.uint32)


def test_what_is_public_or_stays_with_its_client_is_allowed():
    @federated_computation(X, S)
    def f(x, s):
        total = federated_secure_sum(integers(x))
        own = federated_map(jnp.add, x, federated_broadcast(s))
        back = federated_sum(federated_broadcast(total))
        return total, own, federated_mean(federated_broadcast(s)), federated_sum(federated_value(1, CLIENTS)), back

    check_secure(f)


def test_what_is_computed_for_no_result_is_not_sent():
    @federated_computation(X)
    def f(x):
        federated_mean(x)
        return federated_secure_sum(integers(x))

    check_secure(f)


def test_a_selection_shows_its_keys_unless_they_are_public():
    def selected(keys):
        table = federated_value(np.arange(4.0, dtype=np.float32), SERVER)
        return federated_secure_sum(federated_map(lambda s: s.astype(jnp.int32), federated_select(keys, table, _row)))

    with pytest.raises(ValueError, match=re.escape("got federated_select of {int32[2]}@CLIENTS for result")):
        check_secure(federated_computation(KEYS)(selected))
    public = federated_value(np.array([1, 2], np.int32), CLIENTS)
    check_secure(federated_computation(KEYS)(lambda keys: selected(public)))


def _row(table, key):
    return table[key]


@pytest.mark.parametrize(
    "aggregator", [secure_sum(bound=1.0, max_clients=3), secure_mean(bound=1.0, max_weight=1.0, max_clients=3)]
)
def test_secure_aggregators_pass_with_their_measurements_and_the_mean_does_not(aggregator):
    arguments = jax.random.key(0), (), Clients.of(np.ones(3, np.float32)), Clients.of(np.ones(3, np.float32))
    check_secure(aggregator.next, *arguments)
    with pytest.raises(ValueError, match=re.escape("got federated_mean of {<float32,float32>}@CLIENTS for result[1]")):
        check_secure(mean().next, *arguments)


def test_federated_averaging_is_secure_with_its_metrics():
    """Nearly the plain run; with its own sum of the metrics, or the plain mean, it does not pass."""
    secure = {"aggregator": secure_mean(bound=1.0, max_weight=12.0, max_clients=5)}
    metrics = {"metrics_sum": secure_total(bound=100.0, max_clients=5)}
    clients = Cohort(federated_data(), (9, 0, 4, 5), batch_size=4).whole()
    rounds = []
    exposed = ["federated_mean", "federated_sum of {<loss", "federated_mean", None]
    for options, name in zip(({}, secure, metrics, {**secure, **metrics}), exposed, strict=True):
        algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1), **options)
        state = algorithm.init(jax.random.key(1))
        if name is None:
            check_secure(algorithm.next, state, clients)
        else:
            with pytest.raises(ValueError, match=re.escape(name)):
                check_secure(algorithm.next, state, clients)
        if options in ({}, {**secure, **metrics}):
            rounds.append(algorithm.next(state, clients))
    plain, both = rounds
    for a, b in zip(jax.tree.leaves(both[0].params), jax.tree.leaves(plain[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(both[1]["loss"], plain[1]["loss"], rtol=1e-5)
    for name in ("num_examples", "num_clients", "num_non_finite_clients"):
        assert int(both[1][name]) == int(plain[1][name])
        assert both[1][name].dtype == plain[1][name].dtype
    assert (int(both[1]["num_clients"]), int(both[1]["aggregation"]["num_clipped"])) == (4, 0)


def secure(fn, *also):
    """A secure sum of what a function makes of a client's value, its id and its key."""

    def f(x):
        key = federated_keys(federated_value(KEY, SERVER))
        total = federated_secure_sum(federated_map(fn, x, federated_client_ids(), key))
        return total, *(make(x) for make in also)

    return federated_computation(X)(f)


def place(x, id):
    return (jnp.arange(8) == id) * x.astype(jnp.int32)


def in_a_scan(x, id):
    return jax.lax.scan(lambda c, _: (c + (c[0] == id) * x.astype(jnp.int32), None), jnp.zeros(8, jnp.int32), None, 3)[
        0
    ]


def in_a_while(x, id):
    return jax.lax.while_loop(lambda c: c[0] < id, lambda c: (c[0] + 1, c[1] + 1), (jnp.int32(0), x.astype(jnp.int32)))[
        1
    ]


@jax.custom_jvp
def with_a_rule(x, id):
    return place(x, id)


@with_a_rule.defjvp
def _(primals, tangents):
    return with_a_rule(*primals), jnp.zeros(8)


def through_a_reference(x, id):
    held = jax.new_ref(jnp.zeros(8, jnp.int32))
    held[...] = place(x, id)
    return held[...]


BY_ID = {
    "one-hot": lambda x, id, key: place(x, id),
    "all others add 0": lambda x, id, key: jnp.where(id == 3, x, 0).astype(jnp.int32),
    "chosen": lambda x, id, key: jax.lax.cond(id == 3, lambda: x, lambda: 0.0).astype(jnp.int32),
    "jit": lambda x, id, key: jax.jit(place)(x, id),
    "remat": lambda x, id, key: jax.checkpoint(place)(x, id),
    "rule": lambda x, id, key: with_a_rule(x, id),
    "reference": lambda x, id, key: through_a_reference(x, id),
    "scan": lambda x, id, key: in_a_scan(x, id),
    "while": lambda x, id, key: in_a_while(x, id),
    "one field of two": lambda x, id, key: {"a": x.astype(jnp.int32), "b": place(x, id)},
    "seed": lambda x, id, key: jax.random.randint(jax.random.key(id), (), 0, 9),
    "the id itself": lambda x, id, key: id,
}
NOT_BY_ID = {
    "nothing": lambda x, id, key: x.astype(jnp.int32),
    "unused": lambda x, id, key: jax.jit(lambda x, id: (x.astype(jnp.int32), id))(x, id)[0],
    "key": lambda x, id, key: jax.random.randint(key, (), 0, 9) + x.astype(jnp.int32),
    "folded": lambda x, id, key: jax.random.randint(jax.random.fold_in(key, id), (), 0, 9) + x.astype(jnp.int32),
    "beside it in a scan": lambda x, id, key: jax.lax.scan(
        lambda c, _: ((c[0] + 1, c[1] + x.astype(jnp.int32)), c[0]), (id, jnp.int32(0)), None, 3
    )[0][1],
    "beside it in a branch": lambda x, id, key: jax.lax.cond(x > 0, lambda: (id, 1), lambda: (id + 1, 2))[1],
}


@pytest.mark.parametrize("name", BY_ID)
def test_a_secure_sum_of_what_the_id_decides_is_named(name):
    with pytest.raises(
        ValueError, match=r"got federated_secure_sum of .*@CLIENTS, which depends on the client's id, for"
    ):
        check_secure(secure(BY_ID[name]))


@pytest.mark.parametrize("name", NOT_BY_ID)
def test_keys_and_ids_that_do_not_reach_the_sum_are_allowed(name):
    check_secure(secure(NOT_BY_ID[name]))


def test_a_one_hot_vector_by_id_shows_every_value():
    """What the check is for: the secure total is the list of the clients' values."""
    f = secure(BY_ID["one-hot"])
    total, *_ = f(Clients.of(np.array([5.0, 7.0, 9.0], np.float32), ids=[4, 0, 6]))
    assert total.tolist() == [7, 0, 0, 0, 5, 0, 9, 0]


def test_results_of_ids_that_stay_at_their_clients_are_allowed():
    check_secure(secure(NOT_BY_ID["key"], lambda x: federated_map(place, x, federated_client_ids())))


def show(x):
    pass


EFFECTS = {
    "debug_callback": lambda x: jax.debug.callback(show, x),
    "debug_print|debug_callback": lambda x: jax.debug.print("{}", x),
    "io_callback": lambda x: jax.experimental.io_callback(show, None, x),
    "io_callback ": lambda x: jax.experimental.io_callback(show, None, x, ordered=True),
    "pure_callback": lambda x: jax.pure_callback(np.sin, x, x),
    "debug_callback ": lambda x: jax.lax.scan(lambda c, _: (jax.debug.callback(show, x), (c, None))[1], x, None, 2),
    "debug_callback  ": lambda x: jax.jit(
        lambda x: jax.lax.cond(x > 0, lambda: jax.debug.callback(show, x), lambda: None)
    )(x),
}


@pytest.mark.parametrize("names", EFFECTS)
def test_effects_in_client_functions_are_named(names):
    def watched(x, id, key):
        EFFECTS[names](x)
        return x.astype(jnp.int32)

    pattern = rf"got ({names.strip()}) in .*watched, a function of clients in f\."
    with pytest.raises(ValueError, match=pattern):
        check_secure(secure(watched))
    # Also where the value that is looked at stays with its client; at the server it sees totals alone.
    with pytest.raises(ValueError, match="a function of clients"):
        check_secure(secure(NOT_BY_ID["nothing"], lambda x: federated_map(lambda x: watched(x, 0, 0), x)))
    of_total = federated_computation(X)(
        lambda x: federated_map(lambda t: watched(t, 0, 0), federated_secure_sum(integers(x)))
    )
    check_secure(of_total)


def test_arrays_that_a_client_writes_to_are_no_effect():
    def summed(x):
        total = jax.new_ref(jnp.int32(0))
        total[...] += x.astype(jnp.int32)
        return total[...]

    check_secure(federated_computation(X)(lambda x: federated_secure_sum(federated_map(summed, x))))


SECURE = {
    "aggregator": secure_mean(bound=1.0, max_weight=12.0, max_clients=5),
    "metrics_sum": secure_total(bound=100.0, max_clients=5),
}


def checked(**arguments):
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1), **{**SECURE, **arguments})
    cohort = Cohort(federated_data(), (9, 0, 4, 5), batch_size=4).whole()
    check_secure(algorithm.next, algorithm.init(jax.random.key(1)), cohort)


def test_rounds_with_random_failures_and_epochs_are_secure():
    checked(num_epochs=2, failures=Failures(dropped=0.1, non_finite=0.1, partial=0.5))


def test_clients_that_are_malicious_by_their_ids_do_not_compute_alike():
    aggregator = attacked(sign_flip(), lambda id: id < 3, inner=SECURE["aggregator"])
    with pytest.raises(ValueError, match="which depends on the client's id, for"):
        checked(aggregator=aggregator)
