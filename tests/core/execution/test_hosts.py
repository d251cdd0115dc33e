"""Tests of several processes that share a mesh: they compute what one process with as many devices computes."""

import contextlib
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjx.core.language.shares import Share
from fedjx.data import write_store
from tests.algorithms.problems import federated_data
from tests.core.execution import hosts_worker

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def together(commands, folder, timeout=200):
    """Runs commands beside the block and waits; if one fails or takes too long, ends all and shows what they wrote."""
    # The devices are the worker's own choice; the machine code is made as in this process, and by each for itself.
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    logs = [folder / f"log{rank}" for rank in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            processes.append(process)
        end = time.monotonic() + timeout
        yield processes
        while any(process.poll() is None for process in processes):
            if time.monotonic() > end or any(process.poll() for process in processes):
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
        if any(codes) or None in codes:
            written = "\n".join(f"--- process {rank} ---\n{log.read_text()}" for rank, log in enumerate(logs))
            pytest.fail(f"{codes=} (None: still running)\n{written}", pytrace=False)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process finds, and what each of two found."""
    folder, port = tmp_path_factory.mktemp("hosts"), free_port()
    store = folder / "store"
    write_store(store, federated_data(hosts_worker.SIZES), progress=False)
    outputs = [folder / f"results{rank}" for rank in range(hosts_worker.NUM_PROCESSES)]
    commands = [
        [sys.executable, "-m", "tests.core.execution.hosts_worker", str(rank), str(port), str(store), str(output)]
        for rank, output in enumerate(outputs)
    ]
    with together(commands, folder):
        alone = jax.device_get(hosts_worker.results(store))
    return alone, [pickle.loads(output.read_bytes()) for output in outputs]


def assert_equal(a, b, tolerance=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


TRAINED = ["lanes", "streamed pool", "ahead", "from disk", "auto", "chunks", "in graph", "two clients"]


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one_does(results, name):
    """Up to the order in which the devices' four numbers are summed; see the test of two clients."""
    alone, several = results
    for found in several:
        assert_equal(found[name], alone[name], tolerance=1e-6)
    with pytest.raises(AssertionError):
        assert_equal(several[0]["other data"], alone["lanes"], tolerance=1e-2)


def test_noise_is_bitwise_the_same_whoever_makes_it(results):
    alone, several = results
    for found in several:
        assert_equal(found["noise"], alone["noise"])
    assert all(np.std(noise) > 0.05 for noise in alone["noise"])


def test_sums_of_two_numbers_are_bitwise_equal(results):
    alone, several = results
    for name in ("two clients", "collected", "settled/lanes"):
        assert_equal(several[0][name], alone[name])
    assert [found["settled/lanes"] for found in (alone, *several)] == [[4, 4]] * 3


NAMED = {
    "sampler": {"data.ids"},
    "data": {"data.data"},
    "rate": {"the computation"},
    "key": {"state.key", "state.params"},
    "in graph": {"state.key", "state.params"},
    "scanned": {"the computation"},
}


def test_processes_that_disagree_are_refused_and_told_in_what(results):
    _, (first, second) = results
    assert first["own/refused"] == second["own/refused"]
    assert first["own/refused"].keys() == hosts_worker.CASES.keys() == NAMED.keys()
    for name, error in first["own/refused"].items():
        sentence = r"processes that share a mesh must run .*; \w+ got others than process 0 has: (.*)\. Give all .*"
        (listed,) = re.fullmatch(sentence, error).groups()
        parts = {part.removesuffix(" in process 1").partition(" (")[0] for part in listed.split("; ")}
        assert parts == NAMED[name], name


def test_all_processes_have_the_same_bits(results):
    _, (first, second) = results
    for name in first:
        if not name.startswith("own/"):
            assert_equal(first[name], second[name])


def test_each_process_plans_its_own_clients_only(results):
    alone, several = results
    planned = [found["own/planned"] for found in several]
    assert sorted(planned[0] + planned[1]) == alone["own/planned"]
    assert len(planned[0]) == len(planned[1]) == len(alone["own/planned"]) // 2
    assert sum(k >= 0 for k in alone["own/planned"]) == sum(map(len, hosts_worker.ROUNDS))
    assert all(sum(k >= 0 for k in own) > 10 for own in planned)


def test_each_process_reads_its_own_clients_only(results):
    alone, several = results
    own = [found["own/read"] for found in several]
    rounds = len(hosts_worker.ROUNDS)
    assert [len(read) for read in (alone["own/read"], *own)] == [4 * rounds, 2 * rounds, 2 * rounds]  # a read a device
    for number, ids in enumerate(hosts_worker.ROUNDS):
        parts = [[k for device in read[2 * number :][:2] for k in device] for read in own]
        assert not set(parts[0]) & set(parts[1])
        assert sorted(parts[0] + parts[1]) == sorted(ids)


@pytest.mark.parametrize("name", ["own/gathered", "own/sunk", "own/in graph"])
def test_results_at_the_clients_are_with_the_process_of_their_device(results, name):
    alone, (first, second) = results
    found = [one[name] for one in (first, second)]
    assert not found[0].keys() & found[1].keys()
    assert {**found[0], **found[1]} == alone[name]
    assert min(map(len, found)) >= 5


def test_a_mesh_that_is_not_of_all_processes(results):
    _, several = results
    for rank, found in enumerate(several):
        errors = found["own/errors"]
        assert set(errors) == {f"{whose} {how}" for whose in ("own", "others") for how in ("streamed", "in_graph")}
        for name, message in errors.items():
            other = rank if name.startswith("own") else 1 - rank
            expected = (
                f"devices of all 2 processes; process {rank} got one with those of [{other}]. Make it of jax.devices()"
            )
            assert expected in message


@pytest.mark.parametrize("shape", [(12,), (6, 5), (3, 2, 4)])
def test_a_share_is_of_the_rows_of_its_devices(shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    share = Share(3, np.array([0, 2]))
    rows = np.split(x, 3)
    np.testing.assert_array_equal(share.of(x), np.concatenate([rows[0], rows[2]]))
    assert Share(3).of(x) is x


# The workers are looked after.


SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_one_that_dies_ends_the_others_and_says_why(tmp_path):
    dies = [sys.executable, "-c", "import sys; sys.exit('lost my way')"]
    started = time.monotonic()
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)codes=\[None, 1\].*process 1 ---\nlost my way"),
        together([SLEEP, dies], tmp_path) as processes,
    ):
        pass
    assert time.monotonic() - started < 30
    assert all(process.returncode is not None for process in processes)


def test_those_that_hang_are_ended(tmp_path):
    with (
        pytest.raises(pytest.fail.Exception, match=r"codes=\[None, None\]"),
        together([SLEEP, SLEEP], tmp_path, timeout=0.5) as processes,
    ):
        pass
    assert all(process.returncode is not None for process in processes)
