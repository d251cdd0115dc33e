"""Tests of reading LEAF's JSON, against reading it by hand."""

import json

import numpy as np
import pytest

from fedjx.data import write_store
from fedjx.data.importers import leaf
from tests.data.damage import check_damage


def written(path, data, *, users=None, num_samples=None, **more):
    users = list(data) if users is None else users
    sizes = [len(data[user]["y"]) for user in users] if num_samples is None else num_samples
    content = {"users": users, "num_samples": sizes, "user_data": data, **more}
    path.write_text(json.dumps(content))
    return path


def femnist(users, seed=0):
    random = np.random.default_rng(seed)
    sizes = {user: int(random.integers(1, 5)) for user in users}
    return {
        user: {"x": (random.integers(256, size=(n, 9)) / 255).tolist(), "y": random.integers(62, size=n).tolist()}
        for user, n in sizes.items()
    }


def test_files_arrive_in_order_with_their_users_in_order(tmp_path):
    directory = tmp_path / "train"
    directory.mkdir()
    parts = {"all_data_1.json": femnist(["f3", "f1"], 1), "all_data_0.json": femnist(["f2", "../f"], 2)}
    for name, data in parts.items():
        written(directory / name, data)
    store = write_store(tmp_path / "s", leaf(directory), progress=False)
    assert store.client_ids(range(4)) == ["f2", "../f", "f3", "f1"]
    for name in parts:
        content = json.loads((directory / name).read_text())
        for user in content["users"]:
            examples = store.client(store.find([user])[0])
            assert examples["x"].tolist() == content["user_data"][user]["x"]
            assert examples["y"].tolist() == content["user_data"][user]["y"]
    assert store.schema["x"].dtype == np.float64
    sizes = {name: (directory / name).stat().st_size for name in sorted(parts)}
    assert store.manifest["provenance"] == {"importer": "leaf", "files": sizes, "options": {"dtypes": {}}}


def test_numbers_become_narrower_where_they_fit(tmp_path):
    path = written(tmp_path / "a.json", {"u": {"x": [[0.1, 1], [0, 2]], "y": [0, 255]}})
    (client,) = leaf(path, dtypes={"x": np.float32, "y": np.uint8}).clients()
    assert client.examples["x"].dtype == np.float32
    assert client.examples["x"].tolist() == np.float32([[0.1, 1], [0, 2]]).tolist()
    assert client.examples["y"].tolist() == [0, 255]
    path = written(tmp_path / "b.json", {"u": {"x": [2.0, 3.0], "y": [-1, 2**24 + 1]}})
    (client,) = leaf(path, dtypes={"x": np.uint8, "y": np.float64}).clients()
    assert client.examples["x"].dtype == np.uint8
    assert client.examples["x"].tolist() == [2, 3]
    assert client.examples["y"].tolist() == [-1, 2**24 + 1]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 128], "int8"), ([0.1, 1.0], "int32"), ([-1, 0], "uint64"), ([1, 2**24 + 1], "float32"), ([1e300], "float32")],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, values, dtype):
    path = written(tmp_path / "a.json", {"u": {"x": values, "y": [0] * len(values)}})
    with pytest.raises(ValueError, match=rf"^user 'u' in .*a\.json: feature 'x' needs .*{dtype}"):
        list(leaf(path, dtypes={"x": dtype}).clients())


def test_dtypes_are_of_what_leaf_has(tmp_path):
    path = written(tmp_path / "a.json", {"u": {"x": [1], "y": [0]}})
    with pytest.raises(ValueError, match="no other features"):
        leaf(path, dtypes={"z": np.int8})


def test_text_is_an_object_array(tmp_path):
    tweets = [["1", "Mon", "q", "user", "hé\0llo"], ["2", "Tue", "q", "user", ""]]
    path = written(tmp_path / "a.json", {"u": {"x": tweets, "y": [0, 4]}, "v": {"x": [["a"] * 5], "y": [1]}})
    first, second = leaf(path).clients()
    assert first.examples["x"].dtype == object
    assert first.examples["x"].shape == (2, 5)
    assert first.examples["x"].tolist() == tweets
    assert second.examples["x"].tolist() == [["a"] * 5]
    path = written(path, {"u": {"x": ["abc", "bcd"], "y": ["d", "e"]}})
    assert next(leaf(path).clients()).examples["y"].tolist() == ["d", "e"]


def test_hierarchies_are_metadata(tmp_path):
    path = written(tmp_path / "a.json", femnist(["a", "b"]), hierarchies=["HAMLET", "LEAR"])
    assert write_store(tmp_path / "s", leaf(path), progress=False).metadata("hierarchy").tolist() == ["HAMLET", "LEAR"]
    written(path, femnist(["a", "b"]), hierarchies=["HAMLET"])
    with pytest.raises(ValueError, match="one of hierarchies for each user"):
        list(leaf(path).clients())


def test_the_rows_count_where_num_samples_is_wrong(tmp_path):
    path = written(
        tmp_path / "a.json", {"a": {"x": [1, 2], "y": [0, 0]}, "b": {"x": [3], "y": [0]}}, num_samples=[9, 1]
    )
    with pytest.warns(UserWarning, match="for 1 of 2 users .* it says 9 and there are 2"):
        clients = list(leaf(path).clients())
    assert [client.examples["x"].tolist() for client in clients] == [[1, 2], [3]]


def test_users_in_user_data_alone_are_left_out_and_empty_ones_kept(tmp_path):
    data = {"a": {"x": [1], "y": [1]}, "few": {"x": [2], "y": [2]}, "none": {"x": [], "y": []}}
    path = written(tmp_path / "a.json", data, users=["a", "none"])
    store = write_store(tmp_path / "s", leaf(path), progress=False)
    assert store.client_ids([0, 1]) == ["a", "none"]
    assert store.sizes[:].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": ["a", "z"], "num_samples": [1, 1]}, "'z'"),
        ({"users": ["a", "a"], "num_samples": [1, 1]}, "one place; got 'a'"),
        ({"users": {"a": 1}}, "needs 'users', a list"),
        ({"user_data": []}, "needs 'user_data', a dict"),
        ({"num_samples": [1, 2, 3]}, "one of num_samples"),
        ({"users": [7]}, "got 7"),
        ({"user_data": {"a": [1]}}, "'a'"),
        ({"user_data": {"a": {"x": [1]}}}, "needs 'y'"),
        ({"user_data": {"a": {"x": [1, 2], "y": [1]}}}, "one row for each"),
        ({"user_data": {"a": {"x": [[1], [1, 2]], "y": [1, 2]}}}, "one shape"),
        ({"user_data": {"a": {"x": [["b"], ["b", "c"]], "y": [1, 2]}}}, "one shape"),
        ({"user_data": {"a": {"x": [None], "y": [1]}}}, "numbers"),
        ({"user_data": {"a": {"x": [1, "b"], "y": [1, 2]}}}, "numbers"),
        ({"user_data": {"a": {"x": ["b", 1], "y": [1, 2]}}}, "both"),
        ({"users": ["\ud800"], "user_data": {"\ud800": {"x": [1], "y": [1]}}}, "names that are text"),
    ],
)
def test_what_is_not_as_leaf_writes_it_is_refused(tmp_path, change, message):
    content = {"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [1], "y": [1]}}, **change}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        write_store(tmp_path / "s", leaf(tmp_path), progress=False)
    assert "a.json" in str(error.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"users": ["a"], "users": ["b"]}', "\xff"])
def test_what_is_no_leaf_file_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json"):
        list(leaf(tmp_path).clients())


def test_a_user_in_two_files_is_refused_and_a_directory_needs_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        leaf(tmp_path)
    with pytest.raises(FileNotFoundError):
        leaf(tmp_path / "nothing")
    for name in ("a.json", "b.json"):
        written(tmp_path / name, femnist(["u"]))
    with pytest.raises(ValueError, match=r"'u' in a\.json and in b\.json"):
        list(leaf(tmp_path).clients())


@pytest.mark.filterwarnings("ignore:num_samples is not")
def test_a_damaged_file_is_refused_or_whole(tmp_path):
    path = written(tmp_path / "a.json", femnist([f"u{k}" for k in range(4)]))
    assert check_damage(path, lambda: leaf(path), number=150) > 90


def test_reddit_is_refused_with_the_way_to_it(tmp_path):
    post = {"target_tokens": [["a", "b"]], "count_tokens": 2, "subreddit": "s", "created_utc": "1"}
    users = {"ada": {"x": [[["<BOS>", "a"]]], "y": [post]}}
    (tmp_path / "a.json").write_text(json.dumps({"users": ["ada"], "num_samples": [1], "user_data": users}))
    with pytest.raises(ValueError, match=r"as in LEAF's Reddit: see fedjx\.data\.published\.reddit"):
        list(leaf(tmp_path).clients())
