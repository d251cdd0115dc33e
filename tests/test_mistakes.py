"""Mistakes that people make, and the sentence that each gets: what must hold, what came, what to do."""

import functools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjx
from fedjx.aggregation import clip_by_norm, compress, error_feedback, mean, quantize, top_k
from fedjx.algorithms import fed_avg, federated_evaluation, scaffold
from fedjx.data import Cohort, FederatedData, uniform_sampler
from fedjx.models import Model, from_flax, linear
from fedjx.training import ClientUpdate, Method, averaging, compose

KEY, SGD = jax.random.key(0), optax.sgd(0.1)
DATA = FederatedData({"x": np.ones((6, 4), np.float32), "y": np.zeros(6, np.int32)}, [0, 2, 5, 6])
MODEL = linear(3, input_shape=(4,))


@functools.cache
def algorithm(model: Model = MODEL) -> Any:
    return fed_avg(model, client_optimizer=SGD)


@functools.cache
def state() -> Any:
    return algorithm().init(KEY)


def cohort(ids: Any = (0, 1), data: Any = DATA, **how: Any) -> Cohort:
    return Cohort(data, ids, **{"batch_size": 2, "lanes": 1, **how})


def trained(model: Model) -> Any:
    """Begins a round of a model of the same parameters."""
    return algorithm(model).next(state(), cohort())


def with_loss(loss: Callable[[jax.Array], Any]) -> Model:
    return MODEL._replace(loss=lambda params, batch, key: loss(MODEL.loss(params, batch, key)))


class TwoOutputs(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.head(x), self.head(x)


def update(params: Any, data: Any, key: jax.Array) -> ClientUpdate:
    return ClientUpdate(params, jnp.float32(1), {})


def declared(notation: str, fn: Callable[[Any], Any]) -> Any:
    return fedjx.federated_computation(fedjx.parse_type(notation))(fn)


def model_of(width: int) -> Any:
    return {"kernel": np.zeros((width, 2), np.float32)}


class Mistake(NamedTuple):
    """What is done, and the beginning and the advice of the sentence that it gets, as patterns."""

    do: Callable[[], Any]
    says: str
    error: type[Exception] = TypeError


MISTAKES = {
    # What a round is called with.
    "a data set for a cohort": Mistake(
        lambda: algorithm().next(state(), DATA), "takes arrays, Clients and cohorts; got .*Cohort"
    ),
    "ids for a cohort": Mistake(
        lambda: algorithm().next(state(), [0, 1]), "data at CLIENTS; got .*@SERVER. Pass a Cohort"
    ),
    "a sampler for a cohort": Mistake(
        lambda: algorithm().next(state(), uniform_sampler(3, 2, seed=0)),
        "cohorts; got <function uniform_sampler.*Cohort",
    ),
    "arguments in the wrong order": Mistake(lambda: algorithm().next(cohort(), state()), "state, then the cohort; got"),
    "parameters for the state": Mistake(
        lambda: algorithm().next(state().params, cohort()), "takes the server's state.*; got .*Pass the state"
    ),
    "state and metrics for the state": Mistake(
        lambda: algorithm().next((state(), {}), cohort()), "takes the server's state.*; got .*Pass the state"
    ),
    "the state for an evaluation": Mistake(
        lambda: federated_evaluation(MODEL)(state(), cohort()), "takes a model's parameters; got .* Pass state.params"
    ),
    "one cohort for several rounds": Mistake(
        lambda: algorithm().next.scanned()(state(), cohort()),
        r"take a list of cohorts; got a Cohort alone. Wrap it: \[...\]",
    ),
    "a cohort of ids and data": Mistake(lambda: Cohort([1], DATA, batch_size=1), "Pass the data, then the ids"),
    "a client that is not there": Mistake(
        lambda: cohort([7]), r"3 from 0 to 2; got \[7\] \(1 in all\). Choose among its ids", ValueError
    ),
    "ids that are floats": Mistake(lambda: cohort([0.5]), r"vector of integers; got float64\[1\]"),
    "a batch size without end": Mistake(
        lambda: cohort(batch_size=float("inf")), "integer of at least 1; got batch_size=inf. .*pass data.largest"
    ),
    "no client state": Mistake(
        lambda: scaffold(MODEL, num_clients=3, client_optimizer=SGD).next(state(), cohort()),
        r"takes \(state, data, states\); got .* missing .*'states'. Pass one",
    ),
    "a seed for a key": Mistake(
        lambda: algorithm().init(0), r"takes a random key; got int32. Pass jax.random.key\(0\)"
    ),
    # What an algorithm is built of.
    "a learning rate for an optimizer": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=0.1), r"client_optimizer must be .*; got 0.1. Pass optax.sgd\(0.1\)"
    ),
    "an optimizer that is not called": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=optax.sgd), "got .*Call it: optax.sgd"
    ),
    "a function of nothing for an optimizer": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=lambda: SGD),
        "function of the round .*; got .* Pass the optimizer itself",
    ),
    "a schedule of learning rates": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=lambda round: 0.1 / round).next(state(), cohort()),
        "makes an optimizer; got .* from it. Return optax.sgd",
    ),
    "the name of an aggregator": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=SGD, aggregator="mean"),
        "aggregator must be .*; got 'mean'. Pass one of",
    ),
    "an aggregator that is not called": Mistake(
        lambda: clip_by_norm(max_norm=1.0, inner=mean), "must be an Aggregator, .*; got function. Pass one"
    ),
    "a compressor of an aggregator": Mistake(
        lambda: compress(quantize(8)), "takes a Compressor, .*; got Aggregator. Pass what"
    ),
    "a memory inside a clip": Mistake(
        lambda: clip_by_norm(max_norm=1.0, inner=error_feedback(top_k(fraction=0.1))),
        "got StatefulAggregator.*goes outermost",
    ),
    "half an epoch": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=SGD, num_epochs=0.5), "got num_epochs=0.5. Pass 1"
    ),
    "epochs and steps": Mistake(
        lambda: fed_avg(MODEL, client_optimizer=SGD, num_epochs=1, num_steps=2),
        "got num_epochs=1, num_steps=2. Give one",
        ValueError,
    ),
    "a model that is not called": Mistake(
        lambda: fed_avg(linear, client_optimizer=SGD), "a model is a Model; got <function linear"
    ),
    "a model for a method": Mistake(lambda: compose(MODEL), r"takes a Method; got Model. .* averaging\(model\)"),
    "no client optimizer": Mistake(
        lambda: compose(averaging(MODEL)).next(state(), cohort()), "got no client_optimizer. Pass one"
    ),
    "a built module": Mistake(lambda: from_flax(TwoOutputs(rngs=nnx.Rngs(0))), "got .*pass the class"),
    # What a method is made of.
    "an array for the client's state": Mistake(
        lambda: compose(Method(MODEL.init, update, init_client=jnp.zeros(3))),
        r"Method\(init_client=...\) is a function of \(state\); got a .*Write lambda",
    ),
    "an array for the first delta": Mistake(
        lambda: compose(Method(MODEL.init, update, first=update, first_delta=np.zeros(3))),
        r"first_delta=...\) is a function .*; got a ndarray",
    ),
    "an optimizer for the server": Mistake(
        lambda: compose(Method(MODEL.init, update, optax.sgd(1.0))),
        r"server=...\) is a function of \(server_optimizer\); got a Grad",
    ),
    "an update without a key": Mistake(
        lambda: compose(Method(MODEL.init, lambda params, data: None)),
        r"of \(params, data, key\); got .*does not take 3",
    ),
    "an update that returns a pair": Mistake(
        lambda: compose(Method(MODEL.init, lambda params, data, key: (params, 1.0))).next(state(), cohort()),
        r"returns ClientUpdate\(delta, weight, metrics\); got .*Change what it returns",
    ),
    # What a model returns.
    "a mean for a loss": Mistake(
        lambda: trained(with_loss(jnp.mean)),
        r"one number per example.*got loss with value.shape=\(\).*without averaging",
        ValueError,
    ),
    "a dict for a loss": Mistake(
        lambda: trained(with_loss(lambda loss: {"loss": loss})), "must be one array .*; got loss as dict. Return"
    ),
    "whether it is wrong for a loss": Mistake(
        lambda: algorithm(MODEL._replace(loss=lambda p, batch, key: batch["y"] > 0)).next(state(), cohort()),
        "a floating-point number per example; got one that adds up to int32.*Return what is to be small",
    ),
    "two outputs for one loss": Mistake(
        lambda: algorithm(from_flax(TwoOutputs)).next(state(), cohort().whole()),
        r"takes one array of outputs; got \(.*from_flax\(loss=...\)",
    ),
    # What data are.
    "a wrong name": Mistake(
        lambda: trained_on(x=None, image=DATA.examples["x"]),
        r"takes the feature 'x'; got \['image', 'y'\]. Rename",
        ValueError,
    ),
    "a wrong shape": Mistake(
        lambda: trained_on(x=np.ones((6, 5))), r"'x' as numbers \[4\]; got float64\[5\] in each example.", ValueError
    ),
    "labels in a column": Mistake(
        lambda: trained_on(y=np.zeros((6, 1), int)), r"got int64\[1\] in each .*Drop the last axis", ValueError
    ),
    "labels from 1": Mistake(
        lambda: trained_on(y=np.arange(6) % 3 + 1),
        "'y' as integers from 0 to 2; got 1 to 3, 3 at client 1. Renumber",
        ValueError,
    ),
    "labels that are floats": Mistake(
        lambda: trained_on(y=np.zeros(6)), "'y' as integers from 0 to 2; got float64. Cast"
    ),
    "text": Mistake(
        lambda: trained_on(y=np.array(["cat"] * 6)), "need to be numeric; got 'y' of dtype <U3. .*tokenize"
    ),
    "a ragged feature": Mistake(
        lambda: FederatedData.from_clients([{"x": [[1, 2], [3]]}]),
        "rows of different length in 'x' of client 0. Pad them",
        ValueError,
    ),
    "features of different widths": Mistake(
        lambda: fedjx.Clients.of([np.zeros((3, 2)), np.zeros((3, 4))]),
        r"the same shapes; got \[3, 4\] for member 1 and \[3, 2\] for member 0. Pad",
        ValueError,
    ),
    "models of different widths": Mistake(
        lambda: fedjx.Clients.of([model_of(3), model_of(4)]),
        r"got \[4, 2\] for member 1 and \[3, 2\] for member 0\['kernel'\]. Pad",
        ValueError,
    ),
    "clients with different features": Mistake(
        lambda: fedjx.Clients.of([{"x": np.zeros(3)}, {"z": np.zeros(3)}]),
        "one structure; got .*'z'.* for member 1 and .*'x'.*same fields",
        ValueError,
    ),
    # What is declared.
    "names in another order": Mistake(
        lambda: declared("<b=float32,a=float32>@SERVER", lambda x: x)(OrderedDict(a=1.0, b=2.0)),
        "declares 'x' as .*; got .*OrderedDict",
    ),
    "a placed value as a condition": Mistake(
        lambda: declared("{float32}@CLIENTS", lambda x: fedjx.federated_sum(x) if x > 0 else x)([1.0]),
        "cannot be compared.*federated_map",
    ),
}


def trained_on(**columns: Any) -> Any:
    examples = {name: x for name, x in {**DATA.examples, **columns}.items() if x is not None}
    return algorithm().next(state(), cohort(data=FederatedData(examples, DATA.offsets)))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence(name):
    mistake = MISTAKES[name]
    with pytest.raises(mistake.error) as caught:
        mistake.do()
    assert re.search(mistake.says, str(caught.value), re.DOTALL), str(caught.value)
    assert "jax._src" not in str(caught.value)


def test_what_was_a_mistake_works():
    """Dicts for declared structures, whatever the order of their names, and an empty client among them."""
    total = declared("{<b=float32,a=float32>}@CLIENTS", fedjx.federated_sum)
    assert total([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]).b == 6
    assert declared("<a=float32,b=float32>", lambda x: x.a - x["b"])({"b": 1.0, "a": 5.0}) == 4
    sums = declared(
        "{<x=float32,y=int32>*}@CLIENTS", lambda x: fedjx.federated_sum(fedjx.federated_map(fedjx.sequence_sum, x))
    )
    for members in ([[{"y": 2, "x": 1.5}], []], [[], [{"x": 1.5, "y": 2}]]):
        assert tuple(sums(members)) == (1.5, 2)
