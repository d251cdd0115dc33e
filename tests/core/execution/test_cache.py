"""Compiled programs on disk: that a second start finds them, where they are, and who decides."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fedjx
from fedjx.core.execution import cache
from fedjx.core.execution.cache import VARIABLE, use_compilation_cache

SCRIPT = """
import jax, numpy, optax, fedjx
jax.config.update("jax_num_cpu_devices", 2)
counts = {"hits": 0, "misses": 0}
def count(event, **_):
    name = event.removeprefix("/jax/compilation_cache/cache_")
    counts[name] = counts.get(name, 0) + 1
jax.monitoring.register_event_listener(count)
train, _ = fedjx.data.digits(num_clients=6)
algorithm = fedjx.fed_avg(fedjx.models.linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.01))
state, step = algorithm.init(jax.random.key(0)), algorithm.next.streamed()
for lanes in (1, 3):  # donated accumulators, two devices, loops that end early, lanes with one condition
    state, metrics = step(state, fedjx.data.Cohort(train, range(6), batch_size=20, lanes=lanes))
bits = b"".join(numpy.asarray(x).tobytes() for x in jax.tree.leaves(state.params)).hex()
print(counts["hits"], counts["misses"], bits)
"""


def started(caches: Path) -> tuple[int, int, str]:
    """What a process has found, what it has compiled, and what it computed."""
    kept = {k: v for k, v in os.environ.items() if "CACHE" not in k and k not in ("XLA_FLAGS", VARIABLE)}
    environment = {**kept, "XDG_CACHE_HOME": str(caches)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert {line.partition(" before")[0] for line in done.stderr.splitlines()} <= {
        "fedjx is tracing and compiling 'next'"
    }
    hits, misses, bits = done.stdout.split()
    return int(hits), int(misses), bits


def test_the_second_start_of_a_script_compiles_nothing_and_computes_the_same_bits(tmp_path):
    hits, misses, bits = started(tmp_path)
    assert misses > 10
    assert started(tmp_path) == (hits + misses, 0, bits)
    assert len(list((tmp_path / "fedjx" / "compiled").iterdir())) == misses


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """A process in which nobody has said anything of a cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    jax.config.update(names[1], 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_directory_for_caches_or_in_one_that_is_named(undecided, monkeypatch):
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(undecided / "fedjx" / "compiled")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv(VARIABLE, str(undecided / "moved"))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(undecided / "moved")
    assert (undecided / "moved").stat().st_mode & 0o077 == 0  # who can write there can run code here


@pytest.mark.parametrize("by", ["a directory", "JAX", "an empty variable"])
def test_what_the_user_has_decided_stays(undecided, monkeypatch, by):
    chosen = str(undecided / "mine") if by == "a directory" else None
    jax.config.update("jax_compilation_cache_dir", chosen)
    jax.config.update("jax_enable_compilation_cache", by != "JAX")
    if by == "an empty variable":
        monkeypatch.setenv(VARIABLE, "")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1
    assert not list(undecided.iterdir())


def test_a_threshold_of_the_users_stays(undecided):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    use_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 5


def test_a_directory_that_cannot_be_written_is_a_warning(undecided, monkeypatch):
    (undecided / "file").write_text("in the way")
    monkeypatch.setenv(VARIABLE, str(undecided / "file" / "compiled"))
    with pytest.warns(
        RuntimeWarning, match=rf"kept in a directory that can be written.*Name another one in {VARIABLE}"
    ):
        use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_old_programs_are_deleted_and_nothing_else(undecided):
    directory = undecided / "fedjx" / "compiled"
    directory.mkdir(parents=True)
    for name, days in [("jit_a-0-cache", 31), ("jit_b-1-cache", 29), ("notes.txt", 400)]:
        (directory / name).touch()
        age = directory.stat().st_mtime - days * 86_400
        os.utime(directory / name, (age, age))
    use_compilation_cache()
    assert sorted(path.name for path in directory.iterdir()) == ["jit_b-1-cache", "notes.txt"]


def test_who_waits_for_a_compilation_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(cache, "PATIENCE", 0.01)
    train, _ = fedjx.data.digits(num_clients=4)

    @fedjx.federated_computation
    def slow(clients):
        def one(client):
            time.sleep(0.2)  # as a network that is large to trace
            return client.length.astype(jnp.float32)

        return fedjx.federated_mean(fedjx.federated_map(one, clients))

    step = slow.streamed()
    for _ in range(2):
        step(fedjx.data.Cohort(train, range(4), batch_size=20))
    (record,) = [r for r in caplog.records if r.name == "fedjx"]
    assert "compiling 'slow' before its first round" in record.message
    assert str(jax.config.jax_compilation_cache_dir) in record.message


def test_what_compiles_in_no_time_is_quiet(caplog):
    with cache.compiling("step"):
        pass
    assert not caplog.records
