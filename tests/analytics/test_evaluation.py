"""A model's metrics as a question: those of a federated evaluation, by group, clipped and under noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.algorithms import federated_evaluation
from fedjx.analytics import ask, by_group, evaluation, large_groups
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model, Ratio, Sums, linear

MODEL = linear(3, input_shape=(4,))
PARAMS = MODEL.init(jax.random.key(0))
METRICS = {"loss": 20.0, "accuracy": 1.0}


def rows(sizes: list[int]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.normal(size=(n, 4)).astype(np.float32),
            "y": rng.integers(0, 3, n),
            "g": np.minimum(rng.integers(0, 3, n), i),
        }
        for i, n in enumerate(sizes)
    ]


ROWS = rows([5, 1, 30, 17, 8])
DATA = FederatedData.from_clients(ROWS)


def per_example(metric: str) -> np.ndarray:
    batch = {name: np.concatenate([row[name] for row in ROWS]) for name in ("x", "y")}
    found = MODEL.metrics(PARAMS, {**batch, "mask": np.ones(len(batch["y"]), bool)})
    return np.asarray(found[metric], np.float64)


def test_is_that_of_a_federated_evaluation():
    params = jax.tree.map(lambda x: x + 1.0 * jnp.arange(x.size).reshape(x.shape) / x.size, PARAMS)
    expected = federated_evaluation(MODEL)(params, Cohort(DATA, range(5), batch_size=4))
    unbounded = dict.fromkeys(METRICS, np.inf)
    for trust, bounds in (("plain", unbounded), ("plain", METRICS), ("secure", METRICS)):
        answer = ask(evaluation(MODEL, params, ["x", "y"], bounds=bounds), DATA, trust=trust)
        assert sorted(answer.value) == ["accuracy", "loss"]
        for name, value in answer.value.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5 if trust == "plain" else 1e-3)


def test_of_groups_small_ones_are_hidden():
    groups = np.concatenate([row["g"] for row in ROWS])
    num_clients = np.array([sum((row["g"] == group).any() for row in ROWS) for group in range(3)])
    shown = ask(large_groups("g", num_groups=3, min_clients=4), DATA, trust="secure").value
    np.testing.assert_array_equal(shown, num_clients >= 4)
    assert 0 < shown.sum() < 3
    question = by_group(evaluation(MODEL, PARAMS, ["x", "y"], bounds=METRICS), "g", num_groups=3, shown=shown)
    answer = ask(question, DATA)
    for name in METRICS:
        expected = [per_example(name)[groups == group].mean() if shown[group] else np.nan for group in range(3)]
        np.testing.assert_allclose(answer.value[name], expected, rtol=1e-5)
        np.testing.assert_allclose(ask(question, DATA, trust="secure").value[name], expected, rtol=1e-2)


def test_metrics_are_clipped():
    answer = ask(evaluation(MODEL, PARAMS, ["x", "y"], bounds={"loss": 0.5}), DATA)
    np.testing.assert_allclose(answer.value["loss"], per_example("loss").clip(-0.5, 0.5).mean(), rtol=1e-6)
    assert answer.value["loss"] < per_example("loss").mean()


def words(params, batch) -> dict:
    count = batch["n"].astype(jnp.float32)
    return {"loss": Ratio(params * count * batch["v"], count), "table": Sums(batch["v"])}


def test_ratios_count_as_they_say():
    model = Model(lambda key: jnp.float32(1), lambda *_: None, words)
    n, v = np.array([1, 3, 0, 8]), np.array([2.0, -1.0, 9.0, 0.5], np.float32)
    data = FederatedData.from_clients([{"n": n[:1], "v": v[:1]}, {"n": n[1:], "v": v[1:]}])
    params = jnp.float32(2)
    for most, counted in ((np.inf, n), (4, n.clip(0, 4))):
        value = ask(evaluation(model, params, ["n", "v"], bounds={"loss": 100}, most=most), data).value["loss"]
        np.testing.assert_allclose(value, (2 * v * counted).sum() / counted.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="got 'loss' as Ratio, and no most"):
        ask(evaluation(model, params, ["n", "v"], bounds={"loss": 100}), data)
    with pytest.raises(TypeError, match="got 'table' as Sums"):
        ask(evaluation(model, params, ["n", "v"], bounds={"table": 1}), data)


def test_what_is_not_finite_is_left_out():
    spoilt = [{**row, "x": np.where(np.arange(len(row["y"]))[:, None] == 0, np.nan, row["x"])} for row in ROWS]
    rest = [{name: x[1:] for name, x in row.items()} for row in ROWS]
    question = evaluation(MODEL, PARAMS, ["x", "y"], bounds=METRICS)
    answers = [ask(question, FederatedData.from_clients(each)) for each in (spoilt, rest)]
    assert answers[0].value == pytest.approx(answers[1].value, rel=1e-6)
    assert answers[0].num_answered == 4


def test_noise_is_stated():
    number = 3000
    rng = np.random.default_rng(1)
    data = FederatedData.from_clients(
        [{"x": rng.normal(size=(1, 4)).astype(np.float32), "y": [k % 3]} for k in range(number)]
    )
    question = evaluation(MODEL, PARAMS, ["x", "y"], bounds={"accuracy": 1.0, "loss": 4.0})
    truth = ask(question, data).value
    how = dict(trust="central_dp", epsilon=2.0, delta=1e-6, max_records=1)
    answers = [ask(question, data, key=jax.random.key(k), **how) for k in range(60)]
    for name in truth:
        scores = np.array([(answer.value[name] - truth[name]) / answer.stddev[name] for answer in answers])
        assert 0.7 < scores.std() < 1.3
        assert abs(scores.mean()) < 0.5


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="metrics are some of the model's; got none"):
        evaluation(MODEL, PARAMS, ["x", "y"], bounds={})
    with pytest.raises(ValueError, match=r"got 'auc'. It has \['accuracy', 'loss'\]"):
        ask(evaluation(MODEL, PARAMS, ["x", "y"], bounds={"auc": 1}), DATA)
    with pytest.raises(ValueError, match="largest magnitude of each metric"):
        evaluation(MODEL, PARAMS, ["x", "y"], bounds={"loss": 0})
    with pytest.raises(ValueError, match="needs bounds"):
        ask(evaluation(MODEL, PARAMS, ["x", "y"], bounds={"loss": np.inf}), DATA, trust="secure")
