"""Tests of preprocessing: lazily over memory, stores and sources, and baked."""

import numpy as np
import pytest

from fedjx.data import (
    Client,
    Cohort,
    FederatedData,
    Source,
    Step,
    filter_examples,
    map_examples,
    preprocess,
    select_features,
    split_clients,
    split_examples,
    tokenize,
    truncate,
    write_store,
)
from tests.data.stores import CLIENTS, MEMORY, SIZES, SPLITS, assert_equal, written

WIDER = Step(
    "wider",
    lambda columns, name: {"y": columns["y"].astype(np.float64 if name else np.float32)},
    num_examples=lambda sizes: sizes,
    takes_id=True,
)
TEXTS = Source(lambda: iter([Client("ada", {"text": np.array([b"a"], object)})]))


def odd(columns):
    kept = columns["y"] % 2 == 1
    return {"y": columns["y"][kept], "z": columns["x"][kept].sum(2)}


def expected(clients=CLIENTS):
    return [*map(odd, clients)]


def in_memory(clients, ids):
    """Clients under these numbers, some of them without examples."""
    data = FederatedData.from_clients(clients)
    return FederatedData(data.examples, data.offsets, ids)


@pytest.fixture(params=["memory", "store", "view of a store", "preprocessed"])
def data(request, tmp_path):
    """The ten clients, in every form that client data have."""
    if request.param == "memory":
        return MEMORY
    if request.param == "store":
        return written(tmp_path / "s")
    if request.param == "view of a store":
        ids = [f"client {k}" for k in (0, 1, 2, 99, 3, 4, 5, 6, 7, 98, 8, 9)]
        clients = [*CLIENTS[:3], CLIENTS[0], *CLIENTS[3:8], CLIENTS[0], *CLIENTS[8:]]
        store = written(tmp_path / "s", clients, ids=ids)
        return store.select_clients([0, 1, 2, 4, 5, 6, 7, 8, 10, 11])
    return preprocess(MEMORY, lambda columns: columns)


def test_functions_apply_to_each_client_when_it_is_read(data):
    result, clients = preprocess(data, odd), expected()
    numbers = np.asarray(data.ids[:])
    assert result.num_clients == len(clients)
    assert result.sizes.min() == 0  # One has nothing left.
    assert result.sizes.tolist() == [len(columns["y"]) for columns in clients]
    for k, columns in zip(numbers, clients, strict=True):
        assert_equal(result.client(k), columns)
    whole = in_memory(clients, numbers)
    ids = numbers[[4, 0, 4, 2, int(result.sizes.argmin())]]
    assert_equal(result.read(ids), whole.read(ids))
    assert (result.num_examples, result.largest, result.num_bytes) == (
        whole.num_examples,
        whole.largest,
        whole.num_bytes,
    )
    assert result.schema == whole.schema
    np.testing.assert_array_equal(result.offsets, whole.offsets)
    assert_equal(result.load().examples, whole.examples)
    assert repr(result) == repr(whole).replace("FederatedData", "Preprocessed")


def test_cohorts_take_it_like_any_client_data(data):
    numbers = np.asarray(data.ids[:])
    result, whole = preprocess(data, odd), in_memory(expected(), numbers)
    ids = numbers[[3, 1, 6, 9, 4]]
    for placement in ("resident", "streamed"):
        chunks = Cohort(result, ids, batch_size=2, lanes=2, placement=placement)
        others = Cohort(whole, ids, batch_size=2, lanes=2, placement=placement)
        for chunk, other in zip(chunks, others, strict=True):
            np.testing.assert_array_equal(chunk.id, other.id)
            np.testing.assert_array_equal(chunk.value.elements.index, other.value.elements.index)
            for name in ("y", "z"):
                np.testing.assert_array_equal(chunk.value.elements.pool[name], other.value.elements.pool[name])


def test_what_is_baked_is_what_is_lazy(tmp_path):
    store = written(tmp_path / "s", split=SPLITS)
    lazy = preprocess(store, odd, truncate(2))
    baked = write_store(tmp_path / "baked", lazy, progress=False)
    ids = np.arange(10)
    assert baked.num_clients == 10
    assert baked.sizes[:].tolist() == lazy.sizes.tolist()
    assert 0 in lazy.sizes
    assert_equal(baked.read(ids), lazy.read(ids))
    assert baked.client_ids(ids) == lazy.client_ids(ids)
    assert baked.metadata("split").tolist() == lazy.metadata("split").tolist()
    assert baked.manifest["provenance"] == {
        "store": "s",
        "fingerprint": store.fingerprint,
        "provenance": {"made": "here"},
        "preprocessed": [{"name": "odd"}, {"name": "truncate", "num_examples": 2, "seed": None}],
    }
    source = preprocess(Source(lambda: (Client(f"client {k}", c) for k, c in enumerate(CLIENTS))), odd, truncate(2))
    assert_equal(write_store(tmp_path / "t", source, progress=False).read(ids), baked.read(ids))


def test_sizes_that_functions_tell_need_no_reading():
    class Unread(FederatedData):
        def read(self, ids, out=None):
            raise AssertionError("read")

    data = Unread(MEMORY.examples, MEMORY.offsets)
    result = preprocess(data, truncate(4), map_examples(lambda columns: columns), select_features("y"))
    assert result.sizes.tolist() == np.minimum(SIZES, 4).tolist()
    with pytest.raises(AssertionError):  # The negative control: a plain function does not tell.
        _ = preprocess(data, odd).sizes


def test_truncate_keeps_the_first_or_a_random_subset():
    assert preprocess(MEMORY, truncate(3)).client(5)["y"].tolist() == [5, 6, 7]
    random = preprocess(MEMORY, truncate(3, seed=1))
    assert random.sizes.tolist() == np.minimum(SIZES, 3).tolist()
    drawn = [preprocess(MEMORY, truncate(3, seed=seed)).client(5)["y"] - 5 for seed in range(300)]
    assert all((np.diff(rows) > 0).all() for rows in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=9)
    assert abs(counts - 100).max() < 35  # Four standard deviations.
    assert abs(np.bincount([0, 1, 2] * 300, minlength=9) - 100).max() > 35
    # The client's id matters, not its place.
    assert_equal(preprocess(MEMORY, truncate(3, seed=1)).client(5), random.client(5))
    same = FederatedData.from_clients([CLIENTS[5]] * 10)
    assert len({tuple(preprocess(same, truncate(3, seed=1)).client(k)["y"].tolist()) for k in range(10)}) > 5


def test_views_select_clients():
    result = preprocess(MEMORY, odd)
    view = result.select_clients([5, 2])
    assert view.ids.tolist() == [2, 5]
    assert_equal(view.client(2), result.client(2))
    assert_equal(view.client(5), result.client(5))
    mask = np.arange(result.num_clients) == 3
    assert_equal(result.select_clients(mask).client(3), result.client(3))
    assert_equal(MEMORY.select_clients([7, 3]).client(7), CLIENTS[7])
    with pytest.raises(ValueError, match=r"clients of the data set, 2 from 2 to 5; got \[0\]"):
        view.client(0)


def test_split_examples_puts_every_example_in_one_part(tmp_path):
    store = written(tmp_path / "s")
    parts = split_examples(store, fractions={"a": 0.5, "b": 0.3, "c": 0.2}, seed=3)
    rows = {name: [] for name in store.client_ids(range(10))}
    for part in parts.values():
        for k, name in enumerate(part.client_ids(range(part.num_clients))):
            assert len(part.client(k)["x"]) == part.sizes[k]
            rows[name] += [(n, *x.ravel()) for n, x in enumerate(part.client(k)["x"])]
            assert (np.diff(part.client(k)["x"][:, 0, 0]) > 0).all()
    for name, client in zip(rows, CLIENTS, strict=True):
        assert sorted(x[1:] for x in rows[name]) == [tuple(x.ravel()) for x in client["x"]]
    assert parts["a"].num_examples == sum(round(0.5 * n) for n in SIZES)
    again = split_examples(store, fractions={"a": 0.5, "b": 0.3, "c": 0.2}, seed=3)
    assert_equal(again["b"].load().examples, parts["b"].load().examples)
    other = split_examples(store, fractions={"a": 0.5, "b": 0.3, "c": 0.2}, seed=4)
    assert (other["a"].load().examples["x"] != parts["a"].load().examples["x"]).any()
    # A client is split in the same way in whatever view it is.
    view = split_examples(store.select_clients([5]), fractions={"a": 0.5, "b": 0.3, "c": 0.2}, seed=3)
    assert_equal(view["a"].client(5), parts["a"].client(5))


def test_split_examples_without_a_seed_keeps_the_order_of_time(tmp_path):
    """Each client's first examples are in the first part and its last in the last, whatever its size."""
    sizes = [*range(0, 24), 1000]
    data = FederatedData({"x": np.arange(sum(sizes))}, np.cumsum([0, *sizes]))
    parts = split_examples(data, fractions={"past": 0.8, "now": 0.1, "future": 0.1}, seed=None)
    for k in range(len(sizes)):
        own = [part.client(k)["x"] for part in parts.values()]
        np.testing.assert_array_equal(np.concatenate(own), data.client(k)["x"])
        assert len(own[0]) == round(0.8 * sizes[k])
    assert [int(part.sizes[k]) for part in parts.values() for k in (-1,)] == [800, 100, 100]


def test_split_clients_puts_every_client_in_one_part(tmp_path):
    for data in (written(tmp_path / "s"), preprocess(written(tmp_path / "t"), truncate(2))):
        parts = split_clients(data, fractions={"train": 0.7, "validation": 0.1, "test": 0.2}, seed=0)
        assert [part.num_clients for part in parts.values()] == [7, 1, 2]
        ids = [part.client_ids(part.ids[:]) for part in parts.values()]
        assert sorted(name for part in ids for name in part) == [f"client {k}" for k in range(10)]
        other = split_clients(data, fractions={"train": 0.7, "validation": 0.1, "test": 0.2}, seed=1)
        assert other["train"].client_ids(other["train"].ids[:]) != ids[0]
    with pytest.raises(ValueError, match="every part of a split needs a client; got none in 'b' for 10 clients"):
        split_clients(MEMORY, fractions={"a": 0.99, "b": 0.01}, seed=0)


def test_tokenize_cuts_pads_and_checks():
    def texts(*values):
        return Source(lambda: iter([Client("ada", {"text": np.array(values, object), "y": np.arange(len(values))})]))

    step = tokenize("text", lambda text: [1, *text, 2], length=4, padding=9, dtype=np.uint8)
    (client,) = preprocess(texts(b"", b"ab", b"abcd"), step).clients()
    assert_equal(
        client.examples,
        {
            "text": np.array([[1, 2, 9, 9], [1, 97, 98, 2], [1, 97, 98, 99]], np.uint8),
            "y": np.arange(3),
        },
    )
    narrow = tokenize("text", lambda text: [300], length=4, dtype=np.uint8)
    with pytest.raises(ValueError, match="of client 'ada': tokens need to fit in uint8; got 0 to 300 in 'text'"):
        next(preprocess(texts(b"a"), narrow).clients())


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        ([3], TypeError, "preprocess needs functions; got 3"),
        ([lambda columns: [1]], TypeError, "a client is a dict of arrays by name; got list"),
        ([lambda columns: {}], ValueError, "need at least one feature"),
        ([lambda columns: {"x": columns["x"], "y": columns["y"][:1]}], ValueError, "same number of examples"),
        ([lambda columns: {"y": columns["y"].astype(str)}], TypeError, "features .* need to be numeric"),
        ([filter_examples(lambda columns: columns["y"] > 1000)], ValueError, "got none after preprocessing"),
        (
            [filter_examples(lambda columns: columns["y"])],
            ValueError,
            r"filter_examples of client 0: a predicate needs to return bool\[3\]; got int",
        ),
        (
            [map_examples(odd)],
            ValueError,
            "examples of client 0: .* keeps the number of examples, here 3; got 1 in 'y'",
        ),
        (
            [select_features("y", z="w")],
            ValueError,
            r"features of client 0: .* exist; got \['w'\], and there are \['flag', 'x', 'y'\]",
        ),
        (
            [WIDER],
            ValueError,
            r"all clients need the same type, .*, here <y=float32> and 1; got <y=float64> and 1 for client 1",
        ),
        (
            [Step("same", lambda columns: columns, {}, lambda sizes: sizes + 1)],
            ValueError,
            "the sizes that were counted, here .* and 4; got .* and 3 for client 0",
        ),
    ],
)
def test_errors(functions, error, message):
    with pytest.raises(error, match=message):
        preprocess(MEMORY, *functions).load()


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_errors_of_fractions(fractions):
    with pytest.raises(ValueError, match="fractions need to be at least 0 and to add to 1; got"):
        split_examples(MEMORY, fractions=fractions, seed=0)


@pytest.mark.parametrize("fractions", [0.8, [0.8, 0.2]])
def test_fractions_have_names(fractions):
    with pytest.raises(TypeError, match="fractions need to be the parts' shares by name; got"):
        split_examples(MEMORY, fractions=fractions, seed=0)


def test_errors_of_truncate():
    with pytest.raises(ValueError, match="num_examples must be an integer of at least 1; got num_examples=0"):
        truncate(0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_errors_of_seeds(seed):
    for call in (lambda: truncate(1, seed=seed), lambda: split_examples(MEMORY, fractions={"a": 1.0}, seed=seed)):
        with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 2\^63\); got seed="):
            call()


def test_a_missing_text_is_named():
    with pytest.raises(ValueError, match=r"tokenize.*: feature must be one of 'text'; got feature='title'"):
        next(preprocess(TEXTS, tokenize("title", list, length=2)).clients())


def test_the_provenance_tells_every_step_and_its_parameters(tmp_path):
    once = preprocess(TEXTS, Step("times", lambda columns: columns, {"factor": 3}), lambda columns: columns)
    twice = preprocess(once, tokenize("text", list, length=2), odd)
    told = {"name": "tokenize", "feature": "text", "encode": "list", "length": 2, "padding": 0, "dtype": "int32"}
    name = "test_the_provenance_tells_every_step_and_its_parameters"
    assert twice.provenance["preprocessed"] == [{"name": "times", "factor": 3}, {"name": name}, told, {"name": "odd"}]
    lazy = preprocess(preprocess(MEMORY, truncate(8)), select_features(a="y"))
    baked = write_store(tmp_path / "s", lazy, progress=False)
    names = [step["name"] for step in baked.manifest["provenance"]["preprocessed"]]
    assert names == ["truncate", "select_features"]


def refused(columns):
    raise ValueError("no")


def test_an_error_of_a_plain_function_names_it_and_the_client():
    with pytest.raises(ValueError, match="refused of client 'ada': no"):
        next(preprocess(TEXTS, refused).clients())
