"""The comparison with other engines: its table and figures, and that no failure is hidden.

Only engines that need no environment of their own are run here.
"""

from __future__ import annotations

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import peers, peers_engines, peers_problem, peers_report
from benchmarks.networks import NETWORKS
from benchmarks.peers_engines import Engine
from benchmarks.peers_workers import flax_net
from benchmarks.workloads import WORKLOADS


def run(tmp_path, *flags):
    places = ["--environments", str(tmp_path / "environments"), "--output", str(tmp_path / "report.json")]
    return peers.main(peers.parse_flags(["--workload", "tiny_cnn", "--clients", "3", "--rounds", "2", *places, *flags]))


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Adds engines that fail in three ways, and one that trains something else."""
    body = """
    import sys, time
    sys.path.insert(0, {workers!r})
    from protocol import conversation, load_problem
    serve, problem = conversation(), load_problem(sys.argv[1])
    print("a print that is no answer")
    kind, rounds = sys.argv[2], []
    def run_round(ids):
        rounds.append(ids)
        if len(rounds) > 3 and kind == "raises":
            raise ValueError("no more rounds")
        if len(rounds) > 2 and kind == "hangs":
            time.sleep(1000)
        return 1.0
    serve(version=kind, run_round=run_round, run_check=lambda ids: {{k: w + 1 for k, w in problem.weights.items()}})
    """
    script = tmp_path / "strange_worker.py"
    script.write_text(textwrap.dedent(body.format(workers=str(peers_engines.WORKERS))))
    added = {kind: Engine(str(script), arguments=(kind,)) for kind in ("raises", "hangs", "other")}
    added["missing"] = Engine("jax_worker.py", "missing", ("no-such-package==0 --no-index",))
    known = peers_engines.engines(2)
    for module in (peers, peers_engines):
        monkeypatch.setattr(module, "engines", lambda num_cores: {**known, **added})


@pytest.mark.usefixtures("strange")
def test_engines_run_in_turns_and_agree(tmp_path, capsys):
    report = run(tmp_path, "--engines", "fedjx,jax,other")
    lines = capsys.readouterr().out.strip().splitlines()
    assert json.loads(lines[-1]) == report == json.loads((tmp_path / "report.json").read_text())
    assert report["parameters"] == 144
    assert report["examples"] == [36, 36]
    for name in ("fedjx", "jax"):
        engine = report["engines"][name]
        speeds = [n / s for n, s in zip(report["examples"], engine["seconds"], strict=True)]
        assert engine["error"] == ""
        assert engine["examples_per_second"] == {
            "median": pytest.approx(np.mean(speeds)),
            "min": pytest.approx(min(speeds)),
            "max": pytest.approx(max(speeds)),
        }
        assert 0 < engine["last_loss"] < 3
        assert any(line.startswith(f"{name:<11}") and engine["version"] in line for line in lines)
    assert report["engines"]["fedjx"]["fedjx_times_as_fast"] == {"median": 1, "min": 1, "max": 1}
    ours, theirs = (report["engines"][name] for name in ("fedjx", "jax"))
    ratios = np.array(theirs["seconds"]) / ours["seconds"]
    assert theirs["fedjx_times_as_fast"]["median"] == pytest.approx(np.median(ratios))
    for kind in ("whole", "short"):
        assert 0 < theirs[f"difference_{kind}_batches"] < 1e-3
        assert report["engines"]["other"][f"difference_{kind}_batches"] > 1
    assert "!" in next(line for line in lines if line.startswith("other"))


@pytest.mark.usefixtures("strange")
def test_what_fails_is_in_the_table_with_the_reason(tmp_path, capsys):
    report = run(tmp_path, "--engines", "other,raises,hangs,missing", "--round-limit", "2")
    shown = capsys.readouterr().out
    engines = report["engines"]
    assert len(engines["raises"]["seconds"]) == 1  # What it did before is kept.
    assert "raises: a round failed: ValueError: no more rounds" in engines["raises"]["error"]
    assert engines["hangs"]["seconds"] == []
    assert engines["hangs"]["error"] == "hangs: a round took more than 2 seconds"
    assert "the installation failed: ERROR: " in engines["missing"]["error"]
    for name in ("raises", "hangs", "missing"):
        assert f"FAILED: {engines[name]['error']}" in shown
    assert len(engines["other"]["seconds"]) == 2
    assert engines["other"]["fedjx_times_as_fast"] is None


def test_workloads_are_what_they_are_called():
    sizes = {
        "emnist_cnn": 1_206_590, "emnist_dense": 209_662, "logistic": 48_670, "cifar10_cnn": 1_626_442, "tiny_cnn": 144,
    }  # fmt: skip
    assert set(peers.WORKLOADS) == {*sizes, *NETWORKS}
    for name, size in sizes.items():
        weights = peers_problem.initial_weights(peers.WORKLOADS[name]().net, np.random.default_rng(0))
        assert sum(w.size for w in weights.values()) == size
    problem, checks = peers.problem_of(peers.WORKLOADS["logistic"](), 10, 4, num_cores=2)
    assert [len(ids) for ids in problem.cohorts] == [10] * 6
    assert all(len(set(ids)) == 10 and max(ids) < 300 for ids in problem.cohorts)
    sizes = [problem.size(k) for k in range(300)]
    assert min(sizes) >= 20
    assert max(sizes) <= 418
    assert 170 <= np.median(sizes) <= 190
    assert {min(sizes), max(sizes)} <= {problem.size(k) for k in problem.cohorts[0]}
    assert [[problem.size(k) for k in ids] for ids in checks] == [[40, 20, 60], [25, 10, 45]]
    assert 0.7 < (problem.x == 0).mean() < 0.8
    assert problem.x.max() < 1


def test_several_workloads_end_with_one_table():
    def engine(median, ratio=None, error=""):
        speed = {"median": median, "min": 0, "max": 2 * median} if median else None
        times = {"median": ratio, "min": 0, "max": 0} if ratio else None
        return {
            "examples_per_second": speed,
            "fedjx_times_as_fast": times,
            "error": error,
            "first_round_seconds": 3.14,
        }

    both = {"torch_2x1": engine(1500.0, 1.5), "torch_1x2": engine(1000.0, 2.2), "jax": engine(None, error="no memory")}
    reports = [{"workload": "first", "parameters": 1234, "engines": {"fedjx": engine(2000.0, 1.0), **both}}]
    assert peers_report.markdown(reports).splitlines() == [
        "| workload | parameters | fedjx | PyTorch loop | JAX loop | first round, s |",
        "|---|---|---|---|---|---|",
        "| first | 1,234 | **2,000 / 4,000** | 1,500 / 3,000 (1.50) | failed | 3.1 |",
        "",
        "* first, jax: no memory",
    ]


def test_networks_by_name_are_those_of_the_workloads():
    assert peers.parse_flags(["--workload", "logistic", "networks"]).workload == ["logistic", *NETWORKS]
    workload, ours = peers.WORKLOADS["char_transformer"](), WORKLOADS["char_transformer"]()
    problem, _ = peers.problem_of(workload, 2, 1, num_cores=2)
    assert (problem.batch_size, problem.num_clients - 6) == (ours.batch_size, ours.num_clients)
    np.testing.assert_array_equal(problem.x[:, 1:], problem.y[:, :-1])
    nested = flax_net.nested(problem.weights)
    expected = jax.eval_shape(ours.model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, nested) == jax.tree.map(jnp.shape, expected)
    batch = {"tokens": np.concatenate([problem.x[:2], problem.y[:2, -1:]], axis=1)}
    losses = jax.jit(ours.model.loss)(nested, batch, jax.random.key(0))
    mask, net = np.array([True, False]), problem.net
    loss = jax.jit(lambda p: flax_net.masked_loss(p, problem.x[:2], problem.y[:2], mask, net, jax.random.key(0)))
    np.testing.assert_allclose(loss(problem.weights), losses.numerator[0] / losses.denominator[0], rtol=1e-5)


def test_losses_follow_from_what_a_network_should_give():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 3, 5)).astype(np.float32)
    logs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    y = np.array([[1, 4, 0], [2, 0, 0]])
    sums, counts = flax_net.summed_losses(jnp.asarray(scores), jnp.asarray(y))
    np.testing.assert_allclose(sums, [-logs[0, 0, 1] - logs[0, 1, 4], -logs[1, 0, 2]], rtol=1e-5)
    np.testing.assert_array_equal(counts, [2, 1])
    sums, counts = flax_net.summed_losses(jnp.asarray(scores[:, 0]), jnp.asarray([0, 3]))
    np.testing.assert_allclose(sums, [-logs[0, 0, 0], -logs[1, 0, 3]], rtol=1e-5)
    np.testing.assert_array_equal(counts, [1, 1])
    sums, counts = flax_net.summed_losses(jnp.asarray(scores[:, 0]), jnp.asarray(scores[:, 1]))
    np.testing.assert_allclose(sums / counts, np.square(scores[:, 0] - scores[:, 1]).mean(axis=1), rtol=1e-5)


def test_an_unknown_engine_is_refused(capsys):
    with pytest.raises(SystemExit):
        peers.parse_flags(["--engines", "fedjx,tensorflow"])
    assert "engines need to be among ['fedjx', 'fedjax'," in capsys.readouterr().err
