"""Tests of states that clients keep on disk: what is taken, put, committed, returned to, freed and refused."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.core.language.shares import Share
from fedjx.core.language.values import Clients
from fedjx.data import state_journal
from fedjx.data.client_states import ClientStates
from tests.data.states import INITIAL, InMemory, assert_same, contents, opened, operate
from tests.data.stores import ROOT


def some(number, value=1.0):
    return {"control": np.full((number, 3), value, np.float32), "visits": np.full(number, 7, np.int32)}


def test_what_is_put_is_taken(tmp_path):
    initial = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": jnp.full((3,), 1.5, jnp.bfloat16),
        "key": jax.random.key_data(jax.random.key(1)),
        "flags": (np.array([True, False, True]), np.int8(-3)),
        "wide": np.float64(0.1),
        "complex": np.complex64(1 + 2j),
        "nothing": np.zeros((0, 4), np.float16),
        "zeros": jax.ShapeDtypeStruct((2,), jnp.uint16),
        "number": 5,
        "swapped": np.array([1, 2], ">i4"),
    }
    states = ClientStates(tmp_path / "s", initial, num_clients=9)
    expected = {**initial, "zeros": np.zeros(2, np.uint16), "number": np.int32(5), "swapped": np.array([1, 2], "=i4")}
    for either in (states, ClientStates(tmp_path / "s", initial, num_clients=9, writable=False)):
        taken = either.take([2, 8, 2])
        assert jax.tree.structure(taken) == jax.tree.structure(initial)
        for found, leaf in zip(jax.tree.leaves(taken), jax.tree.leaves(expected), strict=True):
            assert isinstance(found, np.ndarray)
            assert found.dtype == leaf.dtype
            assert found.dtype.isnative
            np.testing.assert_array_equal(found, np.stack([leaf] * 3))
            assert jnp.array_equal(jnp.asarray(found), jnp.asarray(np.stack([leaf] * 3)))
    random = np.random.default_rng(0)
    new = jax.tree.map(lambda x: random.integers(0, 2, (4, *x.shape)).astype(x.dtype), expected)
    states.put([4, 0, 8, 2], new)
    states.commit(1)
    for found, leaf in zip(jax.tree.leaves(states.take([2, 4])), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(found, leaf[[3, 0]])
        assert found.dtype == leaf.dtype


def test_states_count_when_they_are_committed(tmp_path):
    states = opened(tmp_path / "s")
    states.put([3, 1], some(2))
    assert states.take([3])["control"].tolist() == [[0, 1, 2]]
    states.commit(4)
    assert states.take([3])["control"].tolist() == [[1, 1, 1]]
    states.put([3], some(1, 2.0))
    states.discard()
    states.put([3, 2], some(2, 5.0))  # It may be put again, and the slot of what was given up be used again.
    states.commit(5)
    assert states.take([3, 1, 2, 0])["control"][:, 1].tolist() == [5, 1, 5, 1]
    assert (states.round, states.rounds, states.num_touched) == (5, [0, 4, 5], 3)
    states.verify()
    states.close()
    assert contents(opened(tmp_path / "s")) == contents(opened(tmp_path / "s", writable=False))


def test_what_was_not_committed_is_gone(tmp_path):
    with opened(tmp_path / "s") as states:
        states.put([3], some(1))
        states.commit(1)
        states.put([3, 4], some(2, 9.0))
    states = opened(tmp_path / "s")
    assert states.take([3, 4])["control"].tolist() == [[1, 1, 1], [0, 1, 2]]
    states.put([5], some(1, 3.0))
    states.commit(2)
    assert states.take([3, 4, 5])["control"][:, 0].tolist() == [1, 0, 3]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("worth", [0, 1 << 16])
def test_random_operations_agree_with_dicts(tmp_path, monkeypatch, seed, worth):
    monkeypatch.setattr(state_journal, "_WORTH", worth)
    random = np.random.default_rng(seed)
    states, expected = opened(tmp_path / "s"), InMemory()
    journals = set()
    for step in random.integers(0, 1 << 30, size=40).tolist():
        operate(states, step, waits=False)
        operate(expected, step, waits=False)
        assert contents(states) == contents(expected)
        (journal,) = (tmp_path / "s").glob("journal-*")
        journals.add(journal.name)
        if random.random() < 0.3:
            if random.random() < 0.5:
                states.put([0], some(1))
            states.close()
            states = opened(tmp_path / "s")
    assert (len(journals) > 1) == (worth == 0)
    states.verify()
    assert_same(states, expected)


def test_one_round_is_pinned_and_what_is_before_it_is_given_up(tmp_path):
    states = opened(tmp_path / "s")
    fingerprints = {0: states.fingerprint}
    for round in range(1, 7):
        states.put([0, round], some(2, round))
        states.commit(round)
        fingerprints[round] = states.fingerprint
    assert len(set(fingerprints.values())) == 7
    size = (tmp_path / "s/rows.npy").stat().st_size
    states.pin(3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got round 2, and .* is pinned at 3 and ends with 6"):
            states.rollback(2)
        with pytest.raises(ValueError, match=r"got round 9, and"):
            states.pin(9)
        states.close()
        states = opened(tmp_path / "s")
    with pytest.raises(ValueError, match="a run resumes with its own states"):
        states.rollback(4, fingerprint=fingerprints[5])
    states.rollback(4, fingerprint=fingerprints[4])
    assert (states.round, states.fingerprint) == (4, fingerprints[4])
    assert states.take([0, 4, 5])["control"][:, 0].tolist() == [4, 4, 0]
    # Client 0's states of rounds 1 and 2, and those of rounds 5 and 6, made room for six.
    states.put(np.arange(10, 16), some(6))
    states.commit(5)
    assert (tmp_path / "s/rows.npy").stat().st_size == size
    states.put([1], some(1))
    states.commit(6)
    assert (tmp_path / "s/rows.npy").stat().st_size > size
    states.verify()


def test_fingerprints_are_of_the_states_and_not_of_their_places(tmp_path):
    one, two = opened(tmp_path / "1"), opened(tmp_path / "2")
    one.put([3, 1, 2], some(3))
    two.put([2], some(1))
    two.discard()
    two.put([1], some(1))
    two.put([2, 3], some(2))
    for states in (one, two):
        states.commit(1)
    assert one.fingerprint == two.fingerprint
    one.put([5], some(1))
    two.put([6], some(1))
    for states in (one, two):
        states.commit(2)
    assert one.fingerprint != two.fingerprint


def test_what_does_not_fit_is_refused(tmp_path):
    states = opened(tmp_path / "s")
    states.put([3], some(1))
    before = contents(states)
    cases = [
        ([4, 4], some(2), ValueError, "once a round; got one twice again"),
        ([5, 3], some(2), ValueError, r"once a round; got \[3\] again"),
        ([30], some(1), ValueError, "clients of the data set"),
        ([], some(0), ValueError, "at least one client"),
        ([4], some(2), ValueError, r"float32\[2, 3\] for 'control', expected float32\[1, 3\]"),
        ([4], {**some(1), "visits": np.zeros(1)}, TypeError, r"float64\[1\] for 'visits'"),
        ([4], {"control": some(1)["control"]}, ValueError, "structure"),
    ]
    for ids, value, error, message in cases:
        with pytest.raises(error, match=message):
            states.put(ids, value)
    with pytest.raises(ValueError, match="between rounds; got 1 states"):
        states.pin(0)
    states.commit(2)
    for round in (2, 1):
        with pytest.raises(ValueError, match="rounds need to increase"):
            states.commit(round)
    with pytest.raises(ValueError, match="clients of the data set"):
        states.take([-1])
    states.rollback(0)
    assert contents(states) == before


def test_states_are_opened_as_they_were_created(tmp_path):
    path = tmp_path / "s"
    opened(path).close()
    other = {**INITIAL, "visits": np.int32(1)}
    wide = {**INITIAL, "control": np.zeros(4, np.float32)}
    for initial, number, message in [
        (INITIAL, 31, "num_clients=31, and 30 are in"),
        (wide, 30, r"states <control=float32\[4\],visits=int32>, and <control=float32\[3\],visits=int32> are in"),
        (other, 30, "an initial state, and one of other values is in"),
        ({"c": INITIAL["control"], "visits": np.int32(0)}, 30, "opened as they were created"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClientStates(path, initial, num_clients=number)
    for initial, error, message in [
        ({}, ValueError, "at least one number"),
        ({"x": np.zeros(0)}, ValueError, "at least one number"),
        ({"x": jax.random.key(0)}, TypeError, r"jax\.random\.key_data"),
        ({"x": np.array("a")}, TypeError, "a state is numeric; got 'x'"),
    ]:
        with pytest.raises(error, match=message):
            ClientStates(tmp_path / "t", initial, num_clients=3)
    with pytest.raises(ValueError, match=r"num_clients must be an integer in \[1, 2\^31\); got num_clients=0"):
        ClientStates(tmp_path / "t", INITIAL, num_clients=0)
    with pytest.raises(FileNotFoundError, match=r"a directory with a head\.json"):
        opened(tmp_path / "t", writable=False)
    (tmp_path / "t").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a directory with a head\.json"):
        opened(tmp_path / "t")
    assert not os.listdir(tmp_path / "t")
    head = json.loads((path / "head.json").read_text())
    (path / "head.json").write_text(json.dumps({**head, "version": 2}))
    with pytest.raises(ValueError, match="of version 1; got version 2"):
        opened(path)


def test_the_directory_that_they_are_to_be_in_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a directory to be in; got \S+/missing\. Create it first"):
        opened(tmp_path / "missing" / "s")


def test_there_is_one_writer(tmp_path):
    states = opened(tmp_path / "s")
    with pytest.raises(BlockingIOError, match="client states have one writer; got a second one"):
        opened(tmp_path / "s")
    code = "from tests.data.states import opened; from pathlib import Path; opened(Path('s'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BlockingIOError: client states have one writer" in found.stderr
    reader = opened(tmp_path / "s", writable=False)
    for change in (lambda: reader.put([0], some(1)), lambda: reader.commit(1), lambda: reader.pin(0), reader.discard):
        with pytest.raises(ValueError, match="only the process that opened client states to write"):
            change()
    with pytest.raises(TypeError, match="client states have one writer"):
        reader.__reduce__()
    states.close()
    with pytest.raises(ValueError, match="are closed"):
        states.take([0])
    with opened(tmp_path / "s") as states:
        states.put([0], some(1))
        states._process += 1  # As after a fork.
        with pytest.raises(ValueError, match="before a fork"):
            states.commit(1)
    assert opened(tmp_path / "s").round == 0


def test_readers_see_the_round_in_which_they_opened(tmp_path):
    states = opened(tmp_path / "s")
    states.put([1, 2], some(2))
    states.commit(1)
    reader = opened(tmp_path / "s", writable=False)
    for round in range(2, 5):
        states.put([1], some(1, round))
        states.commit(round)
    assert (reader.round, reader.take([1, 2])["control"][:, 0].tolist()) == (1, [1, 1])
    states.pin(4)
    states.put([3, 4, 5], some(3, 9.0))
    states.commit(5)
    assert reader.take([2, 0])["control"][:, 0].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"round 1 of .* is given up\. Open them again"):
        reader.take([1])
    reader = opened(tmp_path / "s", writable=False)
    states.rollback(4)
    states.put([6, 7, 8], some(3, 8.0))
    states.commit(5)  # Another round 5.
    with pytest.raises(ValueError, match=r"round 5 of .* is given up\. Open them again"):
        reader.take([3])


def test_untouched_clients_take_nothing_on_disk_and_four_bytes_in_memory(tmp_path):
    initial = {"w": np.ones(256, np.float32)}
    states = ClientStates(tmp_path / "s", initial, num_clients=1_000_000)
    ids = np.random.default_rng(0).choice(1_000_000, 1000, replace=False)
    states.put(ids, {"w": np.zeros((1000, 256), np.float32)})
    states.commit(1)
    states.close()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "s").iterdir()}
    assert sizes.pop("head.json") < 600
    assert sizes == {"rows.npy": 128 + 1001 * 1024, "journal-00000.bin": 2 * 52 + 1000 * 12, "lock": 0}
    tracemalloc.start()
    try:
        states = ClientStates(tmp_path / "s", initial, num_clients=1_000_000)
        held = tracemalloc.get_traced_memory()[0]
        for chunk in np.split(ids, 10):
            states.put(chunk, states.take(chunk))
        states.commit(2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4_000_000 < held < 4_200_000
    assert peak < held + 1_200_000  # Chunks of 100 KB, taken and put, and the round's list.


def test_memory_does_not_grow_with_the_states_on_disk(tmp_path):
    initial = {"w": np.zeros(1 << 16, np.float32)}
    states = ClientStates(tmp_path / "s", initial, num_clients=1000)
    tracemalloc.start()
    try:
        for start in range(0, 160, 4):
            states.put(np.arange(start, start + 4), {"w": np.ones((4, 1 << 16), np.float32)})
        states.commit(1)
        states.verify()
        assert tracemalloc.get_traced_memory()[1] < 12_000_000  # 42 MB are on disk.
    finally:
        tracemalloc.stop()


def test_a_commit_that_fails_closes_the_states(tmp_path, monkeypatch):
    states = opened(tmp_path / "s")
    states.put([1], some(1))
    states.commit(1)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as context:
            context.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError("no space left")))
            states.put([1], some(1, 5.0))
            with pytest.raises(OSError, match="no space left"):
                states.commit(2)
        with pytest.raises(ValueError, match="are closed"):
            states.take([1])
        states = opened(tmp_path / "s")
        assert (states.round, states.take([1])["control"].tolist()) == (1, [[1, 1, 1]])


def test_chunks_of_a_computation_are_taken_and_put(tmp_path):
    states = opened(tmp_path / "s")
    cohort = states.cohort([4, 2, 9])
    assert cohort.sizes is None
    chunk = cohort.members(np.array([9, 2, 2]), np.array([True, True, False]))
    assert chunk.id.tolist() == [9, 2, -1]
    assert chunk.value["control"].tolist() == [[0, 1, 2]] * 3
    states.sink(Clients((some(3),), chunk.mask, jnp.asarray(chunk.id)))
    states.sink(Clients((some(1),), np.array([False]), np.array([4])))
    states.commit(1)
    assert states.take([9, 2, 4])["visits"].tolist() == [7, 7, 0]
    with pytest.raises(ValueError, match="client states are written by one process"):
        cohort.members(np.array([9, 2]), np.ones(2, bool), Share(2, np.array([0])))


# The format. A change here needs another version in the head, and a reader of the old one.


def test_the_format_does_not_change(tmp_path):
    states = ClientStates(tmp_path / "s", {"a": np.int16(3), "b": np.float32([1, 2])}, num_clients=5)
    states.put([4, 1], {"a": np.array([5, 6], np.int16), "b": np.array([[3, 4], [5, 6]], np.float32)})
    states.commit(7)
    rows = (tmp_path / "s/rows.npy").read_bytes()
    assert np.load(tmp_path / "s/rows.npy").tolist() == [list(rows[128:140])]
    assert rows[128:].hex() == (
        "03000000 0000803f 00000040  05000000 00004040 00008040  06000000 0000a040 0000c040".replace(" ", "")
    )
    leaves = [{"name": "a", "dtype": "int16", "shape": []}, {"name": "b", "dtype": "float32", "shape": [2]}]
    schema = {"num_clients": 5, "leaves": leaves, "initial_crc32": zlib.crc32(rows[128:140])}
    first = hashlib.sha256(json.dumps(schema).encode()).digest()
    crc32 = zlib.crc32(rows[152:]), zlib.crc32(rows[140:152])  # Of clients 1 and 4.
    last = hashlib.sha256(first + struct.pack("<q2i2I", 7, 1, 4, *crc32)).digest()
    journal = b""
    for record in (
        struct.pack("<qq32s", 0, 0, first),
        struct.pack("<qq32s", 7, 2, last) + struct.pack("<iiIiiI", 1, 2, crc32[0], 4, 1, crc32[1]),
    ):
        journal += record[:48] + struct.pack("<I", zlib.crc32(record)) + record[48:]
    assert (tmp_path / "s/journal-00000.bin").read_bytes() == journal
    head = {"format": "fedjx client states", "version": 1, **schema, "journal": "journal-00000.bin"}
    head |= {"journal_bytes": 128, "round": 7, "pinned": 0, "fingerprint": last.hex()}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (tmp_path / "s/head.json").read_text().split("\n") == [
        "{",
        *(f"{line}," for line in lines),
        f'"sha256": "{digest}"',
        "}",
        "",
    ]
    assert digest == "25b335439f32715aef2a1ba9149bab141a64935e96626b7b28193c395c0938e6"


def test_rounds_that_are_not_waited_for_count_on_disk_with_the_next_that_is(tmp_path, monkeypatch):
    def committed(states, round, **options):
        states.put([0, round], some(2, round))
        states.commit(round, **options)
        return states.fingerprint

    with opened(tmp_path / "whole") as states:
        fingerprints = [committed(states, round) for round in range(1, 6)]
    states = opened(tmp_path / "s")
    committed(states, 1)
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", lambda *_: pytest.fail("waited"))
        assert [committed(states, round, durable=False) for round in (2, 3)] == fingerprints[1:3]
        assert states.take([0, 1, 2, 3, 4])["control"][:, 0].tolist() == [3, 1, 2, 3, 0]
    assert states.rounds == [0, 1, 2, 3]
    assert opened(tmp_path / "s", writable=False).round == 1
    states._close()  # As when the process is killed.
    states = opened(tmp_path / "s")
    assert (states.round, states.take([0, 2])["control"][:, 0].tolist()) == (1, [1, 0])
    for round in (2, 3, 4):
        committed(states, round, durable=False)
    states.rollback(3)
    assert (states.round, states.take([0, 3, 4])["control"][:, 0].tolist()) == (3, [3, 3, 0])
    committed(states, 4, durable=False)
    assert committed(states, 5) == fingerprints[4]
    assert opened(tmp_path / "s", writable=False).fingerprint == fingerprints[4]
    committed(states, 6, durable=False)
    states.close()  # In order, so nothing that was committed is lost.
    states = opened(tmp_path / "s")
    assert (states.round, states.take([0, 6])["control"][:, 0].tolist()) == (6, [6, 6])
    states.verify()
    committed(states, 7, durable=False)
    states.pin(7)
    states.close()
    assert opened(tmp_path / "s").rounds == [7]
