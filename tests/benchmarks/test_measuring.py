"""What the benchmarks share: counts of compilations, tables, and the final line."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import measuring


def test_compilations_are_counted_and_timed():
    add = jax.jit(lambda x: x + 1)
    vectors = [jnp.zeros(3), jnp.ones(3), jnp.zeros(4)]
    counts = []
    for x in vectors:
        with measuring.Compilations() as compiled:
            add(x).block_until_ready()
        counts.append(compiled.number)
        assert (compiled.seconds > 0) == (compiled.number > 0)
    assert counts == [1, 0, 1]
    jax.jit(lambda x: x - 1)(vectors[0]).block_until_ready()
    assert compiled.number == 1  # it no longer listens


def test_a_report_is_one_line_and_is_written_whole(tmp_path, capsys):
    path = tmp_path / "new" / "report.json"
    values = {"rate": np.float32(1 / 3), "shape": (1, 2), "number": np.int64(7), "none": None, "big": 71_605_248}
    report = measuring.finish(values, path)
    assert report == {"rate": 0.333333, "shape": [1, 2], "number": 7, "none": None, "big": 71_605_248}
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(path.read_text()) == report
    with pytest.raises(ValueError, match="JSON"):
        measuring.finish({"rate": float("nan")}, path)
    assert json.loads(path.read_text()) == report
    assert list(path.parent.iterdir()) == [path]


def test_a_table_is_aligned():
    rows = [("dense", 12_345.6, None), ("logistic", 0.012345, 1234)]
    assert measuring.table(["network", "rate", "n"], rows).splitlines() == [
        "network      rate      n",
        "------------------------",
        "dense      12,346      -",
        "logistic  0.01235  1,234",
    ]


def test_quartiles():
    expected = {"min": 1.0, "lower_quartile": 2.0, "median": 3.0, "upper_quartile": 4.0, "max": 5.0}
    assert measuring.quartiles([3, 1, 2, 5, 4]) == expected


def test_the_environment_and_the_devices():
    mesh = measuring.client_mesh(2)
    about = measuring.environment(mesh)
    assert (about["num_devices"], about["platform"], about["jax"]) == (2, "cpu", jax.__version__)
    assert about["device"] not in ("", "cpu")
    assert measuring.client_mesh().size == 4
    with pytest.raises(SystemExit, match="from 1 to 4 here; got 5"):
        measuring.client_mesh(5)
    held = np.ones(2**23)
    peak = measuring.peak_memory(mesh)
    assert held.nbytes < peak["peak_host_bytes"] < 2**36
    assert peak["peak_device_bytes"] is None


def test_a_process_that_fails_is_reported():
    with pytest.raises(SystemExit, match=r"benchmarks.round_time --rounds 0' ended with 2"):
        measuring.run_apart("round_time", "--rounds", 0)
