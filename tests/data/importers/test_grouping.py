"""Tests of grouping rows by client, against a dict of lists."""

import gc
import os
import tempfile
import tracemalloc

import numpy as np
import pytest

from fedjx.data.importers import grouped


def rows(num_rows, key_fn, seed=0, order=None):
    """Rows in a random order, or another one, with features of every kind."""
    numbers = np.random.default_rng(seed).integers(12, size=num_rows)
    numbers = order(numbers) if order else numbers
    keys = np.array([key_fn(k) for k in numbers.tolist()] + [None], object)[:-1]
    k = np.arange(num_rows)
    text = np.array([f"té\0{n}" * (n % 3) for n in range(num_rows)] + [None], object)[:-1]
    pairs = np.array([[b"\xff" * (n % 4), b"%d" % n] for n in range(num_rows)], object).reshape(num_rows, 2)
    return keys, {"x": np.stack([k, -k], 1).astype(np.float32), "b": k % 2 == 0, "text": text, "pairs": pairs}


def cut(keys, columns, sizes):
    """The rows as blocks of these sizes, again and again."""
    start, k = 0, 0
    while start < len(keys):
        end = start + sizes[k % len(sizes)]
        yield keys[start:end], {name: column[start:end] for name, column in columns.items()}
        start, k = end, k + 1


def slowly(keys, columns):
    """What is expected."""
    clients = {}
    for row, key in enumerate(keys.tolist()):
        clients.setdefault(key, []).append(row)
    return [(key, {name: column[clients[key]] for name, column in columns.items()}) for key in sorted(clients)]


def check(found, expected):
    assert [client.id for client in found] == [key for key, _ in expected]
    assert [type(client.id) for client in found] == [type(key) for key, _ in expected]
    for client, (_, examples) in zip(found, expected, strict=True):
        assert list(client.examples) == list(examples)
        for name, column in examples.items():
            assert client.examples[name].dtype == column.dtype
            assert client.examples[name].shape == column.shape
            assert client.examples[name].tolist() == column.tolist()


@pytest.mark.parametrize("buffer_bytes", [1, 3000, 1 << 27])
@pytest.mark.parametrize("sizes", [[1], [7, 0, 30], [1000]])
@pytest.mark.parametrize("order", [None, np.sort, lambda x: np.sort(x)[::-1]])
def test_rows_in_any_order_and_in_any_blocks_are_grouped(buffer_bytes, sizes, order):
    keys, columns = rows(100, lambda k: f"client {k}", order=order)
    found = list(grouped(lambda: cut(keys, columns, sizes), buffer_bytes=buffer_bytes))
    check(found, slowly(keys, columns))


@pytest.mark.parametrize(
    "key_fn",
    [
        lambda k: k - 5,
        lambda k: 2**62 + k,
        lambda k: b"\0" * k,
        lambda k: "\0" * k,
        lambda k: "../" * k,
        lambda k: "é" * k,
    ],
)
def test_any_id_is_a_client(key_fn):
    keys, columns = rows(60, key_fn)
    check(list(grouped(lambda: cut(keys, columns, [9]), buffer_bytes=100)), slowly(keys, columns))


def test_integers_of_any_width_are_ids():
    for dtype in ("int8", "uint64", "int32"):
        keys = np.array([3, 1, 3], dtype)
        found = list(grouped(lambda keys=keys: [(keys, {"x": np.arange(3)})]))
        check(found, [(1, {"x": np.array([1])}), (3, {"x": np.array([0, 2])})])


def test_rows_that_are_sorted_are_handed_on_as_they_come():
    keys, columns = rows(100, int, order=np.sort)
    drawn = []

    def blocks():
        for block in cut(keys, columns, [10]):
            drawn.append(block)
            yield block

    clients = grouped(blocks, keys_fn=lambda: [keys])
    next(clients)
    assert len(drawn) <= 3
    drawn.clear()
    keys, columns = rows(100, int)  # Not sorted: all of them are needed first.
    next(grouped(blocks, keys_fn=lambda: [keys]))
    assert len(drawn) == 10


def test_nothing_gives_no_client():
    assert list(grouped(lambda: [])) == []
    assert list(grouped(lambda: [(np.empty(0, object), {"x": np.empty(0)})])) == []


def test_memory_does_not_grow_with_the_rows_and_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def peak(num_blocks):
        def blocks():
            random = np.random.default_rng(0)
            for _ in range(num_blocks):
                yield random.integers(50, size=1000), {"x": np.zeros((1000, 100))}

        tracemalloc.start()
        assert sum(len(client.examples["x"]) for client in grouped(blocks, buffer_bytes=1 << 22)) == 1000 * num_blocks
        assert not os.listdir(tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(10), peak(80)  # 8 and 64 MB.
    assert large < 1.3 * small + (1 << 20)
    assert small > 4 << 20


def test_an_abandoned_grouping_leaves_no_open_file():
    keys, columns = rows(100, int)
    before = len(os.listdir("/proc/self/fd"))
    clients = grouped(lambda: cut(keys, columns, [5]), buffer_bytes=10)
    next(clients)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del clients
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1.0, 2.0]),
        np.array([True, False]),
        [1, "a"],
        ["a", b"a"],
        [None, "a"],
        [1, True],
        [[1], [2]],
        [(1,), (2,)],
    ],
)
def test_what_is_no_id_is_refused(keys):
    column = keys if isinstance(keys, np.ndarray) else np.empty(2, object)
    column[:] = keys
    with pytest.raises(ValueError, match="client ids are all str, all bytes or all int"):
        list(grouped(lambda: [(column, {"x": np.arange(2)})]))


def test_blocks_need_to_agree():
    def group(*blocks):
        keys = np.array(["a", "b"], object)
        return list(grouped(lambda: [(keys, block) for block in blocks]))

    good = {"x": np.arange(2), "t": np.array(["u", "v"], object)}
    for bad in (
        {"x": np.arange(2)},
        {**good, "x": np.arange(2.0)},
        {**good, "x": np.zeros((2, 1), int)},
        {**good, "t": np.array([b"u", b"v"], object)},
    ):
        with pytest.raises(ValueError, match="all rows need the same features"):
            group(good, bad)
    with pytest.raises(ValueError, match="one row for each client id"):
        group({"x": np.arange(3)})
    with pytest.raises(ValueError, match="numeric, all str or all bytes"):
        group({"x": np.array(["a", None], object)})
    with pytest.raises(ValueError, match="all client ids need the same type"):
        list(grouped(lambda: [(np.array(["a"], object), {"x": np.arange(1)}), (np.array([1]), {"x": np.arange(1)})]))


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("second", [[0, 0, 1], [0, 0, 1, 1, 2], [0, 1, 1], [0, 0, 1, 1, 1], [5], [1, 0, 1, 0], []])
def test_rows_that_change_between_the_passes_are_refused(is_sorted, second):
    first = np.array([0, 0, 1, 1] if is_sorted else [0, 1, 0, 1])
    if not is_sorted and sorted(second) == [0, 0, 1, 1]:
        return  # Another order of the same rows is none of its business: it promises that of the second pass.
    blocks = [(np.array([key]), {"x": np.zeros(1)}) for key in second]
    with pytest.raises(ValueError, match="the same in every pass"):
        list(grouped(lambda: blocks, keys_fn=lambda: [first]))
