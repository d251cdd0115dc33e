"""Where a model meets data: labels that it cannot have are refused by every method, however the data come."""

import importlib
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedjx import CLIENTS, FederatedType, algorithms
from fedjx.aggregation import secure_mean
from fedjx.algorithms import fed_avg, federated_evaluation
from fedjx.data import Cohort, FederatedData, Store, StoreWriter, preprocess
from fedjx.models import Model, batch_loss, from_flax, linear, matrix_factorization
from fedjx.models.losses import softmax_cross_entropy
from fedjx.training import Failures
from fedjx.training.splits import random_split

KEY, SGD = jax.random.key(0), optax.sgd(0.1)
MODEL = linear(3, input_shape=(2,))
SIZES = (4, 1, 0, 7)


def data(y=None, **columns):
    number = sum(SIZES)
    x = np.random.default_rng(0).normal(size=(number, 2)).astype(np.float32)
    y = np.arange(number, dtype=np.int32) % 3 if y is None else y
    return FederatedData({"x": x, "y": y, "domain": np.zeros(number, np.int32), **columns}, np.cumsum([0, *SIZES]))


def shifted(by, only_client=None):
    """Labels that are one of the model's and `by`, of one client or of all."""
    good = np.arange(sum(SIZES), dtype=np.int32) % 3
    client = np.repeat(np.arange(len(SIZES)), SIZES)
    return data(np.where((client == only_client) | (only_client is None), good + by, good))


# Modules, whose names the methods have in the package.
apfl, fed_nova, mime, p_fed_me, per_fed_avg = (
    importlib.import_module(f"fedjx.algorithms.{name}")
    for name in ("apfl", "fed_nova", "mime", "p_fed_me", "per_fed_avg")
)
TRAINING = {"client_optimizer": SGD}
FED_OPT = {**TRAINING, "learning_rate": 0.1}
HEAD = {"is_local": lambda name: name.startswith("head")}
# What each method and evaluation of a model needs besides it; one that is not here fails the test below.
ARGUMENTS = {
    "agnostic_fed_avg": {**TRAINING, "domain_weights": [1.0], "domain_learning_rate": 0.1},
    "apfl": TRAINING,
    "client_clusters": {},
    "ditto": {**TRAINING, "proximal_strength": 0.1},
    "fed_adagrad": FED_OPT,
    "fed_adam": FED_OPT,
    "fed_avg": TRAINING,
    "fed_avgm": FED_OPT,
    "fed_bn": None,  # of models with batch statistics; it is fed_per
    "fed_dyn": {**TRAINING, "proximal_strength": 0.1, "num_clients": 4},
    "fed_exp": TRAINING,
    "fed_lin": TRAINING,
    "fed_nova": TRAINING,
    "fed_per": {**TRAINING, **HEAD},
    "fed_prox": {**TRAINING, "proximal_strength": 0.1},
    "fed_rep": {**TRAINING, **HEAD, "num_local_steps": 1},
    "fed_sgd": {"learning_rate": 0.1},
    "fed_yogi": FED_OPT,
    "federated_evaluation": {},
    "ifca": {**TRAINING, "num_clusters": 2},
    "mime": {"base_optimizer": SGD},
    "p_fed_me": {**TRAINING, "proximal_strength": 1.0, "inner_optimizer": SGD, "num_inner_steps": 1},
    "per_fed_avg": {**TRAINING, "inner_learning_rate": 0.1},
    "personal_evaluation": {"combine": lambda params, own: own},
    "personalization_evaluation": {"strategies": {}},
    "q_fed_avg": {**TRAINING, "q": 1.0, "lipschitz": 1.0},
    "reconstruction": {**TRAINING, **HEAD, "reconstruction_optimizer": SGD, "split": random_split(0.5)},
    "reptile": TRAINING,
    "scaffold": {**TRAINING, "num_clients": 4},
}


def methods_of_a_model():
    for name in algorithms.__all__:
        function = getattr(algorithms, name)
        signature = inspect.signature(function) if inspect.isfunction(function) else None
        made = "" if signature is None else str(signature.return_annotation)
        if signature and "model" in signature.parameters and ("Algorithm" in made or "Computation" in made):
            yield name, function


def test_every_method_and_evaluation_refuses_labels_that_its_model_cannot_have():
    bad, good = (Cohort(of, [0, 1, 3], batch_size=2) for of in (shifted(1, only_client=3), data()))
    seen = set()
    for name, function in methods_of_a_model():
        seen.add(name)
        if ARGUMENTS[name] is None:
            continue
        made = function(MODEL, **ARGUMENTS[name])
        run = getattr(made, "next", made)
        others = [None] * (len(inspect.signature(run).parameters) - 2)  # the data come first
        with pytest.raises(ValueError, match=r"'y' as integers from 0 to 2; got 0 to 3, 3 at client 3"):
            run(None, bad, *others)
        with pytest.raises(Exception, match=r"^(?!.*from 0 to 2; got)"):  # what is good is not refused for its labels
            run(None, good, *others)
    assert seen == set(ARGUMENTS)


def test_every_method_takes_losses_of_examples_that_count_differently():
    """A round is traced of each, with weights of classes; agnostic averaging has weights of its own, and says so."""
    model = linear(3, input_shape=(2,), loss=softmax_cross_entropy(class_weights=[1.0, 0.5, 3.0]))
    cohort = Cohort(data(), [0, 1, 3], batch_size=2)
    for name, function in methods_of_a_model():
        made = function(model, **ARGUMENTS[name]) if ARGUMENTS[name] is not None else None
        if made is None or not hasattr(made, "next"):
            continue
        state = jax.eval_shape(made.init, KEY)
        states = []
        if hasattr(made, "init_client"):
            states = [FederatedType(jax.eval_shape(made.init_client, state), CLIENTS)]
        if name == "agnostic_fed_avg":
            with pytest.raises(TypeError, match="by their domains; got a loss as Ratio"):
                made.next.type_signature(state, cohort)
        else:
            assert made.next.type_signature(state, cohort, *states).result[1].member["num_examples"].dtype == np.int32


def test_weights_that_are_equal_change_no_gradient_of_any_client_rule():
    """Of methods that change the model's loss: whatever each example counts, the mean is the same."""
    plain, doubled = (
        linear(3, input_shape=(2,), loss=softmax_cross_entropy(**w)) for w in ({}, {"class_weights": [2.0] * 3})
    )
    params, other = (plain.init(jax.random.key(seed)) for seed in (0, 1))
    batch = {
        "x": np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32),
        "y": np.arange(6) % 3,
        "mask": np.arange(6) < 5,
    }
    envelope = {"strength": 0.5, "optimizer": SGD, "num_steps": 1}
    meta = {"learning_rate": 0.1, "variant": "exact", "difference": 0.1}
    pair = apfl._Pair(params, apfl.Personal(other, jnp.float32(0.3)))
    rules = {
        "nova": (fed_nova._probed, (params, jnp.float32(2))),
        "envelope": (lambda model: p_fed_me.moreau_envelope(model, **envelope), params),
        "meta": (lambda model: per_fed_avg.meta_model(model, **meta), params),
        "centred": (lambda model: mime.centred(model, other), params),
        "mixture": (apfl.mixture, pair),
    }
    for name, (rule, at) in rules.items():
        (one, sums), (two, _) = (
            jax.jit(jax.grad(batch_loss(rule(model)), has_aux=True))(at, batch, KEY) for model in (plain, doubled)
        )
        assert sums.sums["loss"].denominator == 5
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


ALGORITHM = fed_avg(MODEL, client_optimizer=SGD)


def ways_of_feeding(of, directory):
    """Every way in which client data come to an algorithm, as functions of nothing."""
    with StoreWriter(directory) as writer:
        for k in of.ids:
            writer.add(int(k), of.client(k))
    store = Store(directory)
    lazy = preprocess(store, lambda client: {**client, "y": client["y"] + 0})

    def of_data(given, **how):
        return Cohort(given, [3, 0, 1], batch_size=2, **how)

    step = ALGORITHM.next.streamed(lanes=1)

    def ahead(given):
        for cohort in step.ahead([of_data(data(), placement="streamed"), of_data(given, placement="streamed")]):
            step(ALGORITHM.init(KEY), cohort)

    yield "resident", lambda: ALGORITHM.next(None, of_data(of))
    yield "streamed", lambda: ALGORITHM.next(None, of_data(of, placement="streamed"))
    yield "one program", lambda: ALGORITHM.next.in_graph()(None, of_data(of))
    yield "many rounds", lambda: ALGORITHM.next.scanned()(None, [of_data(of)])
    yield "under jit", lambda: jax.jit(lambda x: ALGORITHM.next((x, None), of_data(of)))(1.0)
    for name, given in (("store", store), ("preprocessed", lazy)):
        yield f"{name}, resident", lambda given=given: ALGORITHM.next(None, of_data(given, placement="resident"))
        yield f"{name}, streamed", lambda given=given: ALGORITHM.next(None, of_data(given, placement="streamed"))
    yield "ahead", lambda: ahead(store)


@pytest.mark.parametrize(("by", "client", "got"), [(1, None, "1 to 3"), (-1, None, "-1 to 1"), (-100, 3, "-100 to ")])
def test_every_way_of_feeding_refuses_them_and_names_the_range_and_a_client(by, client, got, tmp_path):
    for name, run in ways_of_feeding(shifted(by, client), tmp_path / "store"):
        message = rf"'y' as integers from 0 to 2; got {got}.*, -?\d+ at client {3 if client else '[013]'}\. Renumber"
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            run()
        assert re.search(message, str(caught.value)), name


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (data(np.zeros(12, np.float32)), TypeError, "'y' as integers from 0 to 2; got float32. Cast class labels"),
        (data(np.zeros((12, 1), np.int32)), ValueError, r"got int32\[1\] in each example. Drop the last axis"),
        (data(np.eye(3, dtype=np.uint8)[np.zeros(12, int)]), ValueError, r"got uint8\[3\].*take the largest: argmax"),
        (data(x=np.zeros((12, 3), np.float32)), ValueError, r"'x' as numbers \[2\]; got float32\[3\] in each"),
        (
            FederatedData({"image": np.zeros((2, 2)), "label": np.zeros(2, int)}, [0, 2]),
            ValueError,
            r"takes the feature 'x'; got \['image', 'label'\]. Rename",
        ),
    ],
)
def test_other_types_are_refused_before_anything_is_compiled(given, error, message):
    with pytest.raises(error, match=message):
        ALGORITHM.next(None, Cohort(given, [0], batch_size=2))


def test_arrays_and_networks_of_ones_own_are_checked_as_far_as_they_can_be():
    state = ALGORITHM.init(KEY)
    clients = Cohort(data(np.zeros(12, np.float32)), [0], batch_size=2).whole()
    # A ValueError, which quotes it, if rounds of other data have run before.
    with pytest.raises((TypeError, ValueError), match="'y' as integers from 0 to 2; got float32"):
        ALGORITHM.next(state, clients)
    # From the network's outputs for these examples, when data come: nothing was said of them before.
    own = fed_avg(from_flax(lambda rngs: nnx.Linear(2, 3, rngs=rngs)), client_optimizer=SGD)
    with pytest.raises(ValueError, match="'y' as integers from 0 to 2; got 1 to 3"):
        own.next(None, Cohort(shifted(1), [0], batch_size=2))
    with pytest.raises(TypeError, match=r"must take the features of the data; got examples of .*x: float32\[5\]"):
        own.next(None, Cohort(data(x=np.zeros((12, 5), np.float32)), [0], batch_size=2))
    ratings = fed_avg(matrix_factorization(5, num_factors=2), client_optimizer=SGD)
    given = FederatedData({"x": np.array([0, 4, 5]), "y": np.ones(3)}, [0, 2, 3])
    with pytest.raises(ValueError, match=r"'x' as integers from 0 to 4; got 0 to 5, 5 at client 1\. Number the items"):
        ratings.next(None, Cohort(given, [0], batch_size=2))


def test_a_model_of_three_functions_and_one_that_is_told_what_to_ignore_take_such_labels():
    three = Model(MODEL.init, lambda params, batch, key: 0.0 * batch["y"] + params["head"]["bias"].sum(), MODEL.metrics)
    ignoring = data(np.where(np.arange(sum(SIZES)) == 4, -100, 1))  # all that client 1 has
    for model in (three, linear(3, input_shape=(2,), loss=softmax_cross_entropy(ignored=-100))):
        algorithm = fed_avg(model, client_optimizer=SGD)
        _state, metrics = algorithm.next(algorithm.init(KEY), Cohort(ignoring, [0, 1, 3], batch_size=4))
        assert metrics["num_non_finite_clients"] == 0
        assert np.isfinite(metrics["loss"])


def test_a_loss_over_nobody_is_no_number_and_leaves_the_model():
    state = ALGORITHM.init(KEY)
    for ids in ([], [2]):  # nobody, and who has no example
        after, metrics = ALGORITHM.next(state, Cohort(data(), ids, batch_size=2, lanes=1))
        assert np.isnan(metrics["loss"])
        assert metrics["num_examples"] == metrics["num_clients"] == metrics["num_non_finite_clients"] == 0
        jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
        evaluated = federated_evaluation(MODEL)(state.params, Cohort(data(), ids, batch_size=2, lanes=1))
        assert np.isnan(evaluated["loss"])
        assert evaluated["accuracy"] == evaluated["num_examples"] == 0
    gradient = jax.grad(lambda params: batch_loss(MODEL)(params, {**BATCH, "mask": np.zeros(4, bool)}, KEY)[0])
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient(state.params)))


BATCH = {"x": np.ones((4, 2), np.float32), "y": np.zeros(4, np.int32)}


def rounds(algorithm, given, number=3, ids=(0, 1, 3)):
    """Runs some rounds, waits for them, and returns what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = algorithm.init(KEY)
        for _ in range(number):
            state, metrics = jax.block_until_ready(algorithm.next(state, Cohort(given, ids, batch_size=4, lanes=1)))
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)], metrics


def test_a_round_that_leaves_out_most_of_its_cohort_warns_once_and_says_why():
    x = data().examples["x"].copy()
    x[: SIZES[0] + 1] = np.nan  # clients 0 and 1
    algorithm = fed_avg(MODEL, client_optimizer=SGD)
    told, metrics = rounds(algorithm, data(x=x))
    assert metrics["num_non_finite_clients"] == 2
    assert len(told) == 1
    assert re.search("got 2 of 3 left out, because what they sent is not finite.*debug=True", told[0])
    assert rounds(algorithm, data(x=x))[0] == []  # once
    x[: SIZES[0]] = 1.0  # one of three is not most
    for quiet, given in ((fed_avg(MODEL, client_optimizer=SGD), data(x=x)), (ALGORITHM, data())):
        assert rounds(quiet, given)[0] == []
    asked = fed_avg(MODEL, client_optimizer=SGD, failures=Failures(non_finite=1.0))
    assert rounds(asked, data())[0] == []


def test_a_round_of_which_nothing_comes_warns_once_and_says_why():
    algorithm = fed_avg(MODEL, client_optimizer=SGD, aggregator=secure_mean(bound=1.0, max_weight=10, max_clients=2))
    told, metrics = rounds(algorithm, data())
    assert metrics["num_non_finite_aggregates"] == 1
    assert len(told) == 1
    assert re.search("an aggregate that is not, so the server stays as it was.*overflow of a secure sum", told[0])


@pytest.mark.parametrize("way", ["next", "streamed", "in_graph", "whole"])
def test_the_warning_is_at_the_line_that_called_the_round(way):
    next = fed_avg(MODEL, client_optimizer=SGD).next
    mesh = jax.make_mesh((1,), ("clients",), devices=jax.devices()[:1])
    step = {"streamed": next.streamed, "in_graph": lambda: next.in_graph(mesh=mesh)}.get(way, lambda: next)()
    given = Cohort(data(x=np.full_like(data().examples["x"], np.nan)), (0, 1, 3), batch_size=4, lanes=1)
    given = given.whole() if way == "whole" else given

    def three(state):
        for _ in range(3):
            state, _ = jax.block_until_ready(step(state, given))

    with pytest.warns(RuntimeWarning, match="most clients of a round should count") as caught:
        three(ALGORITHM.init(KEY))
    assert {warning.filename for warning in caught} == {__file__}
