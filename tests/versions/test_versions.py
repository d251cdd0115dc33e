"""What the oldest supported JAX wrote: its results come out again, and its files are read.

``python -m tests.versions.test_versions`` under that JAX writes `WRITTEN` anew, which is only right after a change of
results that is meant.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import fedjx
from fedjx.aggregation import compress, rotated, uniform_quantizer
from fedjx.algorithms import fed_avg, scaffold
from fedjx.core.execution.export import _sealed
from fedjx.data import ClientStates, Cohort, FederatedData
from fedjx.models import linear
from fedjx.training import stateful_rounds

WRITTEN = Path(__file__).parent / "jax_0_10"
SIZES = (3, 7, 12, 5)


@functools.cache
def data() -> FederatedData:
    # Drawn by a formula: NumPy's generators may draw otherwise in another version.
    clients = []
    for k, size in enumerate(SIZES):
        x = np.sin(np.arange(size * 5, dtype=np.float64) * (k + 1.7)).reshape(size, 5)
        clients.append({"x": x.astype(np.float32), "y": (np.arange(size) * (k + 1) % 3).astype(np.int32)})
    return FederatedData.from_clients(clients)


MODEL = linear(3, input_shape=(5,))
PLAIN = fed_avg(MODEL, client_optimizer=optax.sgd(0.1, momentum=0.9), server_optimizer=optax.adam(0.1), num_epochs=2)
AGGREGATOR = compress(rotated(uniform_quantizer(6)), where=lambda leaf: True)
COMPRESSED = fed_avg(MODEL, client_optimizer=optax.sgd(0.1), aggregator=AGGREGATOR)
CONTROLLED = scaffold(MODEL, num_clients=len(SIZES), client_optimizer=optax.sgd(0.1), num_epochs=2)


def three_rounds(algorithm: Any, step: Any) -> Any:
    state = algorithm.init(jax.random.key(7))
    for _ in range(3):
        state, _ = step(state, Cohort(data(), range(len(SIZES)), batch_size=4, lanes=2))
    return state


def controlled(directory: Path) -> Any:
    first = CONTROLLED.init_client(CONTROLLED.init(jax.random.key(7)))
    with ClientStates(directory / "states", first, num_clients=len(SIZES)) as states:
        return three_rounds(CONTROLLED, stateful_rounds(CONTROLLED, states))


def results(directory: Path) -> dict[str, np.ndarray]:
    """Returns the parameters after three rounds of each method."""
    states = {
        "fed_avg": three_rounds(PLAIN, PLAIN.next),
        "compressed": three_rounds(COMPRESSED, COMPRESSED.next),
        "scaffold": controlled(directory),
    }
    named = {name: jax.tree_util.tree_leaves_with_path(state.params) for name, state in states.items()}
    return {f"{n}{jax.tree_util.keystr(path)}": np.asarray(x) for n, leaves in named.items() for path, x in leaves}


def checkpoints(directory: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(directory.absolute(), options=ocp.CheckpointManagerOptions(create=False))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return results(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("method", ["fed_avg", "compressed", "scaffold"])
def test_three_rounds_give_the_parameters_that_the_oldest_jax_gave(method, found):
    with np.load(WRITTEN / "results.npz") as written:
        names = [name for name in written if name.startswith(method)]
        assert len(names) == 2
        for name in names:
            np.testing.assert_allclose(found[name], written[name], rtol=1e-5, atol=1e-7)


def test_a_checkpoint_of_the_oldest_jax_is_resumed(found):
    state = PLAIN.init(jax.random.key(0))
    with checkpoints(WRITTEN / "checkpoints") as manager:
        restored = manager.restore(2, args=ocp.args.StandardRestore(state))
    assert int(restored.round) == 2
    state, _ = PLAIN.next(restored, Cohort(data(), range(len(SIZES)), batch_size=4, lanes=2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        np.testing.assert_allclose(leaf, found[f"fed_avg{jax.tree_util.keystr(path)}"], rtol=1e-5, atol=1e-7)


def test_a_computation_that_the_oldest_jax_exported_runs(found):
    computation = fedjx.load((WRITTEN / "round.fedjx").read_bytes())
    with checkpoints(WRITTEN / "checkpoints") as manager:
        state = manager.restore(2, args=ocp.args.StandardRestore(PLAIN.init(jax.random.key(0))))
    cohort = fedjx.data.Cohort(data(), range(len(SIZES)), batch_size=4).whole()
    after, _ = computation(state, cohort)
    np.testing.assert_allclose(after.params.head.kernel, found["fed_avg['head']['kernel']"], rtol=1e-5, atol=1e-7)


def test_an_artefact_that_this_jax_cannot_read_says_who_wrote_it():
    _, _, content = (WRITTEN / "round.fedjx").read_bytes().partition(b"\n")
    head, _, program = content.partition(b"\n")
    assert json.loads(head)["jax"].startswith("0.10.")
    with pytest.raises(ValueError, match=r"written by JAX 0\.10\.\d+, cannot be read by JAX .*Export it again"):
        fedjx.load(_sealed(head + b"\n" + program[: len(program) // 2]))


def write(directory: Path) -> None:
    """Writes what the tests compare with."""
    directory.mkdir()
    with tempfile.TemporaryDirectory() as states:
        np.savez(directory / "results.npz", **results(Path(states)))
    state = PLAIN.init(jax.random.key(7))
    cohort = Cohort(data(), range(len(SIZES)), batch_size=4, lanes=2)
    for _ in range(2):
        state, _ = PLAIN.next(state, cohort)
    with ocp.CheckpointManager(directory.absolute() / "checkpoints") as manager:
        manager.save(2, args=ocp.args.StandardSave(state))
    for success in directory.rglob("commit_success.txt"):
        success.write_text("Checkpoint commit was successful.")  # without the path of this machine
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    whole = fedjx.data.Cohort(data(), range(len(SIZES)), batch_size=4).whole()
    (directory / "round.fedjx").write_bytes(fedjx.export(PLAIN.next, state, whole))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else WRITTEN)
