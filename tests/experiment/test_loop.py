"""A run: it stops where a rule says, goes on where it was, and keeps what it promises."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import time
import warnings

import jax
import numpy as np
import optax
import pytest

from fedjx.aggregation import clip_by_norm
from fedjx.algorithms import distribution, fed_avg, federated_evaluation, personalization
from fedjx.algorithms.ditto import ditto
from fedjx.data import Cohort, digits, fixed_sampler, uniform_sampler
from fedjx.experiment import (
    Best,
    RunError,
    Sink,
    best_checkpoint,
    central_evaluation,
    client_evaluation,
    limit,
    personalised_evaluation,
    read_rows,
    run,
    target,
)
from fedjx.experiment.run_directory import checkpoints
from fedjx.models import linear
from fedjx.privacy import account, budget, dp_mean

TRAIN, TEST = digits(num_clients=10)
MODEL = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
ALGORITHM = fed_avg(MODEL, client_optimizer=optax.sgd(0.1), server_optimizer=optax.adam(0.03))
EVALUATION = central_evaluation(MODEL, TEST)
run_quietly = functools.partial(
    run, batch_size=20, key=jax.random.key(0), lanes=1, evaluate={"test": EVALUATION}, evaluate_every=2,
    checkpoint_every=2, progress=False,
)  # fmt: skip
SAMPLE = uniform_sampler(10, 3, seed=0)


def leaves(state):
    plain = [
        jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    return [np.asarray(x).tobytes() for x in plain]


def without_clocks(rows):
    return [{name: repr(x) for name, x in row.items() if name != "total/seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole():
    return run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=6)


def test_a_run_is_rounds_of_the_algorithm(whole):
    state, step = ALGORITHM.init(jax.random.key(0)), ALGORITHM.next.streamed()
    for number in range(1, 7):
        state, metrics = step(state, Cohort(TRAIN, SAMPLE(number), batch_size=20, lanes=1))
    assert leaves(whole.state) == leaves(state)
    assert [row["round"] for row in whole.rows] == list(range(7))
    assert whole.rows[6]["train/loss"] == float(metrics["loss"])
    assert [row["round"] for row in whole.rows if "test/accuracy" in row] == [0, 2, 4, 6]
    assert whole.rows[6]["test/accuracy"] == float(EVALUATION(state)["accuracy"])
    counted = {name: value for name, value in whole.rows[0].items() if name.startswith("total/")}
    assert counted.pop("total/seconds") > 0
    assert counted == dict.fromkeys((f"total/{name}" for name in ("clients", "examples", "bits_down", "bits_up")), 0)
    assert whole.rows[6]["total/clients"] == 18
    assert whole.rows[6]["total/examples"] == sum(TRAIN.sizes[SAMPLE(number)].sum() for number in range(1, 7))
    assert whole.reason == "all 6 rounds are done"


def test_it_goes_on_bitwise_and_returns_what_is_finished(whole, tmp_path):
    def going_on(num_rounds, start, **more):
        return run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=num_rounds, path=tmp_path / "run", start=start, **more)

    assert going_on(4, "auto").reason == "all 4 rounds are done"
    with pytest.raises(RunError, match="holds a run"):
        going_on(6, "new")
    resumed = going_on(6, "resume", best=Best("test/loss", 1, "min"))
    assert leaves(resumed.state) == leaves(whole.state)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows) == without_clocks(read_rows(tmp_path / "run"))
    again = going_on(3, "auto")
    assert leaves(again.state) == leaves(whole.state)
    assert again.rows == resumed.rows
    assert again.reason == "all 6 rounds are done"
    with pytest.raises(RunError, match=r"needs what it began with; got \{'rate': 1\}, was \{\}"):
        going_on(8, "resume", about={"rate": 1})
    with pytest.raises(RunError, match=r"got \{'sampler.seed': 1\}, was \{'sampler.seed': 0\}"):
        run_quietly(
            ALGORITHM, TRAIN, uniform_sampler(10, 3, seed=1), num_rounds=8, path=tmp_path / "run", start="resume"
        )

    # A function of one's own says nothing of itself: it is known by whom it draws first.
    run_quietly(ALGORITHM, TRAIN, lambda number: np.arange(5), num_rounds=1, path=tmp_path / "own")
    for start in ("resume", "auto"):
        with pytest.raises(RunError, match=r"got \{'sampler.first': '\w{16}'\}, was \{'sampler.first': '\w{16}'\}"):
            run_quietly(
                ALGORITHM, TRAIN, lambda number: np.arange(1, 6), num_rounds=2, path=tmp_path / "own", start=start
            )
    run_quietly(ALGORITHM, TRAIN, lambda number: list(range(5)), num_rounds=2, path=tmp_path / "own", start="resume")

    # A row beyond the checkpoint is damaged: it is run again.
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(rows + b"\x00\n")
    assert without_clocks(going_on(6, "resume").rows) == without_clocks(whole.rows)

    # The newest checkpoint is damaged: the one before serves, and the rounds since are done again.
    os.truncate(checkpoints(tmp_path / "run")[-1] / "about.json", 5)
    with pytest.warns(UserWarning, match="set aside"):
        mended = going_on(6, "resume")
    assert leaves(mended.state) == leaves(whole.state)
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(whole.rows)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="rows before round 6 are missing"):
        going_on(6, "resume")


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (
            r"need names of their own; got \['round', 'total'\]",
            {"evaluate": {"round": EVALUATION, "total": EVALUATION}},
        ),
        (
            r"best needs a metric of evaluate; got 'test/acuracy'. Choose among \['test/acc",
            {"best": Best("test/acuracy")},
        ),
        (r"says by itself what its algorithm, key is; got it in about=", {"about": {"algorithm": "mine", "key": 1}}),
        ("num_rounds must be an integer of at least 0", {"num_rounds": -1}),
        ("keep must be an integer of at least 1", {"keep": 0}),
        ("a directory is needed for start='new' and profile_round=1", {"profile_round": 1, "path": None}),
        ("a directory is needed for start='resume'", {"start": "resume", "path": None}),
        (r"profile_round must be an integer in \[1, 2\]; got profile_round=3", {"profile_round": 3}),
        ("start must be one of", {"start": "foo", "path": None}),
        ("got 'test/accuracy', and nothing to evaluate", {"best": Best("test/accuracy"), "evaluate": {}}),
        ("mode must be one of", {"best": Best("test/accuracy", 1, "maximum")}),
        ("number must be an integer of at least 1", {"best": Best("test/accuracy", 0)}),
        ("a metric needs to be measured; got 'test/acc'", {"stop": [target("test/acc", 0.9)], "evaluate_every": 2}),
    ],
)
def test_what_would_be_lost_is_refused(message, wrong, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_quietly(ALGORITHM, TRAIN, SAMPLE, **{"num_rounds": 2, "path": tmp_path / "run", **wrong})


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("data needs to be clients, .* got dict", {"data": {"x": np.zeros(3)}}),
        ("sampler needs to be a function of the round; got list", {"sampler": [0, 1]}),
        ("about needs to be a dict; got str: 'lr .1'", {"about": "lr .1"}),
        ("evaluate needs to be a dict of functions by name; got function", {"evaluate": EVALUATION}),
        (r"evaluate\['test'\] needs to be a function, .* got dict", {"evaluate": {"test": {}}}),
        ("stop needs to be a list of rules; got function", {"stop": limit("total/clients", 1)}),
        (r"sinks needs to be a list of Sink\(write\); got list: \[<built-in", {"sinks": [print]}),
        ("sinks needs to be a list of", {"sinks": Sink(print)}),
        ("budget needs to be a budget of fedjx.privacy; got float: 8.0", {"budget": 8.0}),
        ("simulated_seconds needs to be a function of the round; got float", {"simulated_seconds": 10.0}),
        (r"best needs to be a Best; got 'test/loss'. Say `Best\('test/loss'\)`", {"best": "test/loss"}),
    ],
)
def test_what_no_run_is_made_of_is_refused(message, wrong, tmp_path):
    given = {"data": TRAIN, "sampler": SAMPLE, "num_rounds": 2, "path": tmp_path / "run", **wrong}
    with pytest.raises(TypeError, match=message):
        run_quietly(ALGORITHM, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("places", [[0, 10], [-1], (0.5,), [[0, 1]], ["ann"], None])
def test_a_sampler_that_draws_nobody(places):
    with pytest.raises(ValueError, match=r"places in the data, integers from 0 to 9; got .* for round 1. Look at it"):
        run_quietly(ALGORITHM, TRAIN, lambda number: places, num_rounds=1)


def test_a_budget_pays_for_the_cohorts_of_its_sampler():
    private = dp_mean(clip=1.0, noise_multiplier=4.0, expected_clients=3)
    algorithm = fed_avg(MODEL, client_optimizer=optax.sgd(0.1), aggregator=private)
    paid = budget(account(private, uniform_sampler(10, 3, seed=1)), epsilon=20.0, delta=1e-2)
    assert run_quietly(algorithm, TRAIN, SAMPLE, num_rounds=1, budget=paid).rows[-1]["privacy/epsilon"] > 0
    for sampler, got in (
        (uniform_sampler(10, 4, seed=0), r"'cohort_size': 4}, accounted for {'cohort_size': 3}"),
        (lambda number: np.arange(10), r"'kind': None"),
    ):
        with pytest.raises(ValueError, match=rf"pays for the cohorts of its account's sampler; got .*{got}"):
            run_quietly(algorithm, TRAIN, sampler, num_rounds=1, budget=paid)


def test_rows_without_a_checkpoint_are_kept_aside(tmp_path):
    run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=3, path=tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.warns(UserWarning, match=r"run has rows and none. It begins anew; the rows are kept"):
        run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=1, path=tmp_path / "run", start="resume")
    (kept,) = (tmp_path / "run").glob("metrics.jsonl.before-*")
    assert kept.read_bytes() == rows
    assert [row["round"] for row in read_rows(tmp_path / "run")] == [0, 1]


def test_a_directory_that_goes_is_not_made_again(tmp_path):
    def moved(state):
        if int(state.round) == 4:  # all columns of the table are known, and the checkpoint before is whole
            while not (tmp_path / "run" / "checkpoints" / "00000002").exists():
                time.sleep(0.01)
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return {"x": 1}

    with pytest.raises(RunError, match=r"must stay where it is; .*run is gone"):
        run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=6, path=tmp_path / "run", evaluate={"own": moved})
    assert not (tmp_path / "run").exists()


def test_home_is_not_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    best = Best("test/accuracy")
    result = run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=2, path="~/run", best=best)
    assert read_rows("~/run") == read_rows(tmp_path / "run") == result.rows
    assert best_checkpoint("~/run", result.state, best).round == 2
    assert repr(result) == "Result(state=..., rows=[... 3 of them], reason='all 2 rounds are done')"


def test_the_best_checkpoint_stays(tmp_path, monkeypatch):
    metrics = iter([0.1, 0.5, 0.9, float("nan"), 0.2, 0.1])
    made_up = {"made_up": lambda _: {"x": next(metrics)}}
    result = run_quietly(
        ALGORITHM, TRAIN, SAMPLE, num_rounds=5, path=tmp_path / "run", evaluate=made_up,
        evaluate_every=1, checkpoint_every=100, keep=1, best=Best("made_up/x"),
    )  # fmt: skip
    assert [found.name for found in checkpoints(tmp_path / "run")] == ["00000002", "00000005"]
    found = best_checkpoint(tmp_path / "run", result.state, Best("made_up/x"))
    assert (found.round, found.metrics) == (2, {"made_up/x": 0.9})
    assert best_checkpoint(tmp_path / "run", result.state, Best("made_up/x", mode="min")).round == 5
    with pytest.raises(RunError, match=r"got none with made_up/y in .* of 2 checkpoints"):
        best_checkpoint(tmp_path / "run", result.state, Best("made_up/y"))
    monkeypatch.chdir(tmp_path)
    assert best_checkpoint("run", result.state, Best("made_up/x")).round == 2


def test_a_best_metric_that_nothing_measures_is_refused_before_the_first_round():
    made_up = {"made_up": lambda _: {"x": 0.5}}
    with pytest.raises(ValueError, match=r"best needs a metric of evaluate; got 'x'. Choose among \['made_up/x'\]"):
        run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=1, evaluate=made_up, best=Best("x"))


def test_it_stops_by_a_rule_and_stays_stopped(whole, tmp_path):
    rules = [target("test/accuracy", 0.0), limit("total/clients", 1)]
    result = run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=6, stop=rules)
    assert (result.reason, len(result.rows)) == ("test/accuracy 0 was reached at round 0", 1)
    few = functools.partial(run_quietly, ALGORITHM, TRAIN, SAMPLE, num_rounds=6, path=tmp_path / "run", start="auto")
    result = few(stop=rules[1:])
    assert (result.reason, result.rows[-1]["round"]) == ("total/clients is 6, of at most 1", 2)
    assert few(stop=rules[1:]).rows == result.rows
    assert json.loads((tmp_path / "run" / "ended.json").read_bytes()) == {"reason": result.reason, "error": ""}
    assert leaves(few().state) == leaves(whole.state)


def test_a_wish_to_end_is_granted_after_the_round(whole, tmp_path):
    def told(row):
        if row["round"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    heard, was = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before := lambda *_: heard.append("who runs several"))
    try:
        result = run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=2000, path=tmp_path / "run", sinks=[Sink(told)])
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, was)
    assert heard == ["who runs several"]
    assert result.reason == "it was told to end, by SIGTERM"
    assert 3 <= result.rows[-1]["round"] < 2000
    assert int(checkpoints(tmp_path / "run")[-1].name) == result.rows[-1]["round"]


def test_an_interrupt_waits_for_the_round_and_a_second_one_does_not(whole, tmp_path):
    def interrupted(times):
        def told(row):
            for _ in range(times if row["round"] == 3 else 0):
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=2000, path=tmp_path / str(times), sinks=[Sink(told)])
        assert json.loads((tmp_path / str(times) / "ended.json").read_bytes())["error"] == "KeyboardInterrupt"
        return int(checkpoints(tmp_path / str(times))[-1].name), read_rows(tmp_path / str(times))[-1]["round"]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        saved, last = interrupted(1)
        assert 3 <= saved == last < 2000
        interrupted(2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ignored = [Sink(lambda row: signal.raise_signal(signal.SIGINT))]
        assert run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=2, sinks=ignored).reason == "all 2 rounds are done"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_budget_ends_it():
    private = dp_mean(clip=1.0, noise_multiplier=4.0, expected_clients=10)
    sampler = fixed_sampler(10, [range(10)])
    paid = budget(account(private, sampler), epsilon=2.0, delta=1e-5)
    result = run_quietly(
        fed_avg(MODEL, client_optimizer=optax.sgd(0.1), aggregator=private), TRAIN, sampler, num_rounds=100, budget=paid
    )
    assert result.reason == f"the budget of epsilon 2 pays {paid.max_rounds} rounds"
    assert result.rows[-1]["round"] == paid.max_rounds
    assert 0 < result.rows[-1]["privacy/epsilon"] <= 2


def test_a_disk_that_is_full_is_said_and_nothing_is_lost(whole, tmp_path, monkeypatch):
    write, few = os.write, [8]

    def scarce(file, text):
        few[0] -= 1
        if few[0] == 0:
            raise OSError(28, "No space left on device")
        return write(file, text)

    monkeypatch.setattr("fedjx.experiment.sinks.os.write", scarce)
    with pytest.raises(RunError, match=r"needs room.*No space left"):
        run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=6, path=tmp_path / "run")
    monkeypatch.undo()
    with warnings.catch_warnings(action="ignore"):  # of rows beyond the checkpoint, if there was room for one
        mended = run_quietly(ALGORITHM, TRAIN, SAMPLE, num_rounds=6, path=tmp_path / "run", start="resume")
    assert leaves(mended.state) == leaves(whole.state)
    assert without_clocks(mended.rows) == without_clocks(whole.rows)


def test_evaluations_are_those_of_the_computations():
    state = ALGORITHM.init(jax.random.key(1))
    pooled, of_each = federated_evaluation(MODEL, per_client=True)(
        state.params, Cohort(TRAIN, range(10), batch_size=50)
    )
    found = client_evaluation(MODEL, TRAIN, batch_size=50)(state)
    accuracy = distribution(of_each)["accuracy"]
    assert float(found["accuracy"]) == float(pooled["accuracy"])
    assert float(found["accuracy_lowest_decile"]) == pytest.approx(float(accuracy.lowest_decile))
    assert float(found["accuracy_p25"]) == pytest.approx(float(accuracy.quantiles[0.25]))
    together = central_evaluation(MODEL, TRAIN)(state)
    assert float(together["accuracy"]) == float(pooled["accuracy"])
    assert float(together["loss"]) == pytest.approx(float(pooled["loss"]), rel=1e-5)

    tuned = personalization.personalization_evaluation(
        MODEL, {"tuned": personalization.fine_tuning(MODEL, optimizer=optax.sgd(0.1), num_epochs=2)}
    )
    found = personalised_evaluation(tuned, TRAIN, key=jax.random.key(0), batch_size=50)(state)
    assert set(found) == {"baseline", "tuned"}
    assert float(found["tuned"]["loss_mean"]) < float(found["baseline"]["loss_mean"])
    with pytest.raises(TypeError, match="need a key"):
        personalised_evaluation(tuned, TRAIN)(state)


def test_models_that_clients_keep_are_evaluated_in_the_run():
    algorithm = ditto(MODEL, client_optimizer=optax.sgd(0.1), proximal_strength=0.1)
    own = personalization.personal_evaluation(MODEL, lambda params, personal: personal)
    result = run_quietly(
        algorithm, TRAIN, fixed_sampler(10, [range(10)]), num_rounds=2,
        evaluate={"own": personalised_evaluation(own, TRAIN, lanes=1), "test": EVALUATION},
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"an evaluation takes `\(state, client_states\)`; got 'test'"):
        run_quietly(algorithm, TRAIN, SAMPLE, num_rounds=1, evaluate={"test": lambda state: {}})
    first, last = result.rows[0], result.rows[-1]
    assert last["own/personal/accuracy_mean"] > first["own/personal/accuracy_mean"]


def test_what_a_client_sends_is_counted(tmp_path):
    result = run_quietly(
        fed_avg(MODEL, client_optimizer=optax.sgd(0.1), aggregator=clip_by_norm(max_norm=1.0)), TRAIN, SAMPLE,
        num_rounds=2, evaluate={}, simulated_seconds=lambda number: 10.0 * number,
        path=tmp_path / "run", profile_round=2,
    )  # fmt: skip
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    assert result.rows[-1]["total/bits_down"] >= 32 * 650 * 6
    assert result.rows[-1]["total/simulated_seconds"] == 30.0
