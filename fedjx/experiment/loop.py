"""A run: rounds of an algorithm, with all that a researcher wants around them. Copy it where it does not fit."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import Key, Metrics, PyTree
from fedjx.core.language.traffic import Traffic, traffic
from fedjx.core.language.values import Clients
from fedjx.data.client_states import ClientStates
from fedjx.data.cohort import Cohort
from fedjx.data.federated_data import ClientData
from fedjx.data.fingerprint import fingerprint
from fedjx.experiment.checkpointing import Checkpointer
from fedjx.experiment.checkpoints import Best, Checkpoint
from fedjx.experiment.evaluations import Evaluation
from fedjx.experiment.host_arrays import plain
from fedjx.experiment.log import Log
from fedjx.experiment.rows import Row, flat, kept_rows
from fedjx.experiment.run_directory import STATES, Run, Start, open_run
from fedjx.experiment.sinks import Sink, csv_table, json_lines, progress_bar, tensorboard
from fedjx.experiment.stop import StopRule, stopped
from fedjx.privacy.budget import Budget, within
from fedjx.training.stateful_rounds import stateful_rounds


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      state: The server's state after the last round.
      rows: What was measured, by round; see `read_rows`.
      reason: Why it ended.
    """

    state: Any
    rows: list[Row]
    reason: str


def run(
    algorithm: Algorithm[Any] | StatefulAlgorithm[Any, Any],
    data: ClientData,
    sampler: Callable[[int], np.ndarray],
    *,
    batch_size: int,
    num_rounds: int,
    key: Key,
    path: str | Path | None = None,
    start: Start = "new",
    about: Mapping[str, Any] = {},
    lanes: int | Literal["auto"] = "auto",
    evaluate: Mapping[str, Evaluation] = {},
    evaluate_every: int = 10,
    checkpoint_every: int = 10,
    keep: int = 3,
    best: Best | None = None,
    stop: Sequence[StopRule] = (),
    budget: Budget | None = None,
    simulated_seconds: Callable[[int], float] | None = None,
    sinks: Sequence[Sink] = (),
    progress: bool = True,
    profile_round: int | None = None,
) -> Result:
    """Trains until the last round, or until a rule says to stop, and leaves in a directory all that it needs to go on.

    Killed at any moment and started again, it ends with the bits of a run that was not, if `lanes` is a number. A
    wish to end, SIGTERM or Ctrl-C, is granted after the round, with a checkpoint.

    Args:
      algorithm: What a round is. States of its clients, if they keep some, are on disk in the run's directory.
      data: The clients' examples.
      sampler: From the round, 1 or more, to the places in `data` of its clients.
      batch_size: Examples in a local batch.
      num_rounds: Of the whole run; a finished one may go on with more.
      key: Of the algorithm's state.
      path: The run's directory; nothing is written if not given.
      start: As for `open_run`.
      about: What else determines the run, as JSON holds it, such as a learning rate by name: for the error if it is
        resumed with another, and for the report.
      lanes: As for `Cohort`.
      evaluate: By name, functions of the server's state, and of the `ClientStates` if clients keep some: asked before
        the first round, every so many and after the last.
      evaluate_every: How many rounds.
      checkpoint_every: How many rounds.
      keep: As for `Checkpointer`.
      best: As for `Checkpointer`; a metric of `evaluate`. Then each evaluated round has a checkpoint.
      stop: When it has done enough, see `target`, `patience` and `limit`; asked where it is evaluated.
      budget: Of privacy; rounds that it does not pay are not run.
      simulated_seconds: How long a round takes in the world that is simulated, such as the time of `over_select`.
      sinks: Where rows go besides the directory's ``metrics.jsonl``, ``metrics.csv`` and TensorBoard's events.
      progress: Whether the terminal has a bar.
      profile_round: A round of which `jax.profiler` writes a trace into the directory, ``profile``.

    Raises:
      RunError: As `open_run` and `last_checkpoint`; and if the disk is full, which loses no more than the rounds since
        the last checkpoint.
      ValueError: If no evaluation measures the metric of `best`.

    >>> import optax
    >>> train, test = fedjx.data.digits(num_clients=20)
    >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> algorithm = fedjx.algorithms.fed_avg(model, client_optimizer=optax.sgd(0.1))
    >>> sample = fedjx.data.uniform_sampler(20, 5, seed=0)
    >>> done = run(algorithm, train, sample, batch_size=20, num_rounds=2, key=jax.random.key(0))
    >>> [(row["round"], row["total/clients"]) for row in done.rows], done.reason
    ([(1, 5), (2, 10)], 'all 2 rounds are done')
    """
    check_integer("[0, inf)", num_rounds=num_rounds)
    check_integer("[1, inf)", evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    check_names(evaluate)
    state, last = algorithm.init(key), num_rounds if budget is None else min(num_rounds, budget.max_rounds)
    example = example_of(algorithm, state, Cohort(data, data.ids[:1], batch_size=batch_size))

    def cohort(number: int) -> Cohort:
        return Cohort(data, data.ids[sampler(number)], batch_size=batch_size, lanes=lanes)

    with contextlib.ExitStack() as stack:
        directory = None
        if path is not None:
            about = determined(about, algorithm, example, data, sampler, cohort(1), budget)
            directory = stack.enter_context(open_run(path, about, start=start, of_versions=["algorithm"]))
        step, states = _step(stack, directory, algorithm, state, data, budget)
        saved = stack.enter_context(Checkpointer(directory, keep=keep, best=best, client_states=states))
        done, state = (saved.restore(state) or Checkpoint(0, state))[:2]
        log = stack.enter_context(log_of(directory, done, num_rounds, sinks, progress))
        is_told = stack.enter_context(told_to_end())
        tested = functools.partial(_tested, evaluate, states, best)
        totals = totals_of(sent_by(algorithm, example), simulated_seconds)
        if done == 0 and evaluate:
            log.add(0, tested(state))
        reason = _of_first(stopped(stop, log.wait()))
        numbers = range(done + 1, last + 1) if reason is None else ()
        for number, clients in zip(numbers, step.ahead(map(cohort, numbers)), strict=False):
            with _profile(directory if number == profile_round else None):
                state, metrics = step(state, clients)
            is_due = number % evaluate_every == 0 or number == last
            found = tested(state) if is_due else {}
            log.add(number, {**grouped(metrics), **found, "total": totals(number, clients, metrics)})
            reason = _of_first(stopped(stop, log.wait())) if is_due and stop else None
            reason = reason or is_told(is_due)
            if number % checkpoint_every == 0 or number == last or reason or (found and best):
                saved.save(Checkpoint(number, state, metrics=found), before=log.flush)
            if reason:
                break
        saved.wait()
        return Result(state, log.wait(), reason or _at_the_end(num_rounds, max(last, done), budget))


def example_of(algorithm: Any, state: PyTree, cohort: Cohort) -> list[PyTree]:
    """Returns arguments of a round, of one client."""
    if not isinstance(algorithm, StatefulAlgorithm):
        return [state, cohort.whole()]
    own = jax.tree.map(lambda x: jnp.asarray(x)[None], algorithm.init_client(state))
    return [state, cohort.whole(), Clients.of(own, ids=cohort.ids.astype(np.int32))]


def check_names(evaluate: Mapping[str, Evaluation]) -> None:
    """Refuses evaluations whose numbers would have the names of others in the rows."""
    if taken := sorted({"round", "train", "privacy", "total"} & evaluate.keys()):
        raise ValueError(f"evaluations need names of their own; got {taken}, as a run names its own. Rename them.")


def determined(
    about: Mapping[str, Any],
    algorithm: Any,
    example: Sequence[PyTree],
    data: ClientData,
    sampler: Any,
    cohort: Cohort,
    budget: Budget | None,
) -> dict[str, Any]:
    """Says what determines a run, which a resumed one must have too: what the user says of it, and the rest."""
    own = {
        "algorithm": algorithm.next.program(*example).fingerprint(),
        "key": np.asarray(plain(example[0].key)).tolist() if hasattr(example[0], "key") else None,
        "data": fingerprint(data),
        "sampler": getattr(sampler, "description", getattr(sampler, "__qualname__", None)),
        "batch_size": cohort.batch_size,
        "lanes": cohort.lanes,
        "budget": None if budget is None else budget.description,
    }
    if taken := sorted(own.keys() & about.keys()):
        raise ValueError(f"a run says by itself what its {', '.join(taken)} is; got it in {about=}. Leave it out.")
    return {**about, **own}


def _step(
    stack: contextlib.ExitStack, directory: Run | None, algorithm: Any, state: PyTree, data: Any, budget: Budget | None
) -> tuple[Any, ClientStates | None]:
    """Returns a round as a function of the state and a cohort, and the states of the clients, if they keep some."""
    states = None
    if isinstance(algorithm, StatefulAlgorithm):
        place = stack.enter_context(tempfile.TemporaryDirectory()) if directory is None else directory.path
        number = int(data.ids[-1]) + 1
        states = ClientStates(Path(place) / STATES, algorithm.init_client(state), num_clients=number)
        stack.enter_context(states)
        step = stateful_rounds(algorithm, states, durable=False)
    else:
        step = algorithm.next.streamed()
    return step if budget is None else within(budget, step), states


def log_of(directory: Run | None, done: int, num_rounds: int, sinks: Sequence[Sink], progress: bool) -> Log:
    """Returns the log of a run, with its files in the directory, and the rows that they have until round `done`."""
    if jax.process_index() != 0:
        return Log([])
    bar = functools.partial(progress_bar, num_rounds)
    if directory is None:
        return Log([*([bar()] if progress else []), *sinks])
    rows = kept_rows(directory.path, done or -1)  # what begins again has measured nothing
    if done and (not rows or rows[-1]["round"] != done):
        warnings.warn(
            f"rows before round {done} are missing in {directory.path}; totals count without them.", stacklevel=3
        )
    files = [json_lines(directory), csv_table(directory, rows), tensorboard(directory, done)]
    return Log([*files, *([bar(rows)] if progress else []), *sinks], rows)


def sent_by(algorithm: Any, example: Sequence[PyTree]) -> Traffic | None:
    """Returns what a client receives and sends in a round, if that is known before."""
    with contextlib.suppress(ValueError):
        return traffic(algorithm.next, *example)


def _tested(
    evaluate: Mapping[str, Evaluation], states: ClientStates | None, best: Best | None, state: PyTree
) -> dict[str, Metrics]:
    found = {name: fn(state) if states is None else fn(state, states) for name, fn in evaluate.items()}
    names = flat(jax.tree.map(lambda _: 0, found))  # of numbers that need not be known yet
    if best is not None and best.metric not in names:
        raise ValueError(f"best needs a metric of evaluate; got {best.metric!r}. Choose among {sorted(names)}.")
    return found


def totals_of(sent: Traffic | None, simulated_seconds: Callable[[int], float] | None) -> Callable[..., Metrics]:
    """Returns the function that says what a round adds to what has been done."""

    def totals(number: int, clients: Cohort, metrics: Metrics) -> Metrics:
        counted: Metrics = {"clients": len(clients.ids), "examples": metrics.get("num_examples", 0)}
        if sent is not None:
            everyone = sent * len(clients.ids)
            counted |= {"bits_down": everyone.down, "bits_up": everyone.up}
        return counted if simulated_seconds is None else {**counted, "simulated_seconds": simulated_seconds(number)}

    return totals


def grouped(metrics: Metrics) -> Metrics:
    """Puts what a round's privacy has cost beside its metrics."""
    own = {name: value for name, value in metrics.items() if name != "privacy"}
    return {"train": own, "privacy": metrics.get("privacy", {})}


def _at_the_end(num_rounds: int, last: int, budget: Budget | None) -> str:
    if budget is not None and last < num_rounds:
        return f"the budget of epsilon {budget.epsilon:g} pays {last} rounds"
    return f"all {max(num_rounds, last)} rounds are done"


def _of_first(reason: str | None) -> str | None:
    """Gives all processes what the first one has decided: its clock and its rows count."""
    if jax.process_count() == 1:
        return reason
    text = np.frombuffer((reason or "").encode()[:200].ljust(200), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes().decode(errors="replace").strip() or None


@contextlib.contextmanager
def told_to_end() -> Iterator[Callable[[bool], str | None]]:
    """Takes SIGTERM, as batch systems send it before they kill, and Ctrl-C for a wish to end after the round.

    Who heard of these before is told when the run has ended: Ctrl-C is then a `KeyboardInterrupt` as ever, and so is a
    second one at once. Several processes need not have heard in the same round: they ask the first one where all do.
    """
    told: list[int] = []

    def is_told(is_due: bool) -> str | None:
        reason = f"it was told to end, by {signal.Signals(told[0]).name}" if told else None
        if jax.process_count() == 1:
            return reason
        return _of_first(reason) if is_due else None

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and number in told:
            raise KeyboardInterrupt
        told.append(number)
        print("\nfedjx: the run ends after this round, with a checkpoint.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield is_told
        return
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield is_told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in told:
        if callable(handler := before[signal.Signals(number)]):
            handler(number, None)


@contextlib.contextmanager
def _profile(directory: Run | None) -> Iterator[None]:
    if directory is None:
        yield
        return
    with jax.profiler.trace(str(directory.path / "profile")):
        yield
        for array in jax.live_arrays():
            array.block_until_ready()
