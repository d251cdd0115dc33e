"""A run: rounds of an algorithm, with all that a researcher wants around them. Copy it where it does not fit."""

from __future__ import annotations

import contextlib
import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.core.language.checks import check_choice, check_integer
from fedjx.core.language.names import Key, Metrics, PyTree
from fedjx.data.client_states import ClientStates
from fedjx.data.cohort import Cohort
from fedjx.data.federated_data import ClientData
from fedjx.experiment.arguments import check_arguments
from fedjx.experiment.checkpointing import Checkpointer
from fedjx.experiment.checkpoints import Best, Checkpoint, check_best
from fedjx.experiment.ending import of_first, told_to_end
from fedjx.experiment.evaluations import Evaluation
from fedjx.experiment.identity import cohort_of, determined, example_of
from fedjx.experiment.row_parts import grouped, log_of, totals_of
from fedjx.experiment.rows import Row, flat
from fedjx.experiment.run_directory import STATES, Run, Start, open_run, say_end
from fedjx.experiment.sinks import Sink
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

    def __repr__(self) -> str:
        return f"Result(state=..., rows=[... {len(self.rows)} of them], reason={self.reason!r})"


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
    wish to end, SIGTERM or Ctrl-C, is granted after the round, with a checkpoint; if several processes share the run,
    after the next one that is evaluated or saved anyway, where they ask the first of them.

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
      ValueError: If no evaluation measures the metric of `best`; if there is a round to profile and no directory.

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
    check_arguments(
        data=data, sampler=sampler, about=about, evaluate=evaluate, stop=stop, sinks=sinks, budget=budget,
        simulated_seconds=simulated_seconds,
    )  # fmt: skip
    _check_together(path, start, num_rounds, profile_round, evaluate, best)
    state, last = algorithm.init(key), num_rounds if budget is None else min(num_rounds, budget.max_rounds)
    example = example_of(algorithm, state, Cohort(data, data.ids[:1], batch_size=batch_size))

    def cohort(number: int) -> Cohort:
        return cohort_of(data, sampler, number, batch_size=batch_size, lanes=lanes)

    with contextlib.ExitStack() as stack:
        directory = None
        if path is not None:
            about = determined(about, algorithm, example, data, sampler, cohort(1), budget)
            directory = stack.enter_context(open_run(path, about, start=start, of_versions=["algorithm"]))
        step, states = _step(stack, directory, algorithm, state, data, budget)
        saved = stack.enter_context(Checkpointer(directory, keep=keep, best=best, client_states=states))
        done, state = (saved.restore(state) or Checkpoint(0, state))[:2]
        log = stack.enter_context(log_of(directory, done, num_rounds, sinks, progress))
        is_told = stack.enter_context(told_to_end(is_kept=directory is not None))
        tested = functools.partial(_tested, evaluate, states, best)
        totals = totals_of(algorithm, example, simulated_seconds)
        if done == 0 and evaluate:
            log.add(0, {**tested(state), "total": totals(0)})
        reason = of_first(stopped(stop, log.wait()))
        numbers = range(done + 1, last + 1) if reason is None else ()
        for number, clients in zip(numbers, step.ahead(map(cohort, numbers)), strict=False):
            with _profile(directory if number == profile_round else None):
                state, metrics = step(state, clients)
            is_due = number % evaluate_every == 0 or number == last
            found = tested(state) if is_due else {}
            log.add(number, {**grouped(metrics), **found, "total": totals(number, len(clients.ids), metrics)})
            reason = of_first(stopped(stop, log.wait())) if is_due and stop else None
            is_saved = number % checkpoint_every == 0 or number == last or bool(found and best)
            reason = reason or is_told(is_due or is_saved)
            if is_saved or reason:
                saved.save(Checkpoint(number, state, metrics=found), before=log.flush)
            if reason:
                break
        saved.wait()
        result = Result(state, log.wait(), reason or _at_the_end(num_rounds, max(last, done), budget))
        say_end(directory, result.reason)
        return result


def _check_together(
    path: object,
    start: Start,
    num_rounds: int,
    profile_round: int | None,
    evaluate: Mapping[str, Any],
    best: Best | None,
) -> None:
    """Refuses arguments of which one says what another cannot hold."""
    check_choice(("new", "resume", "auto", "overwrite"), start=start)
    check_best(best)
    if path is None and (start == "resume" or profile_round is not None):
        raise ValueError(f"a directory is needed for {start=} and {profile_round=}; got no path. Give one.")
    if profile_round is not None:
        check_integer(f"[1, {num_rounds}]", profile_round=profile_round)
    if best is not None and not evaluate:
        raise ValueError(f"best needs a metric of evaluate; got {best.metric!r}, and nothing to evaluate. Give it.")


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


def _tested(
    evaluate: Mapping[str, Evaluation], states: ClientStates | None, best: Best | None, state: PyTree
) -> dict[str, Metrics]:
    given = (state,) if states is None else (state, states)
    for name, evaluation in evaluate.items() if states is not None else ():
        if not _takes(evaluation, given):
            raise TypeError(f"where clients keep states an evaluation takes `(state, client_states)`; got {name!r}.")
    found = {name: evaluation(*given) for name, evaluation in evaluate.items()}
    names = flat(jax.tree.map(lambda _: 0, found))  # of numbers that need not be known yet
    if best is not None and best.metric not in names:
        raise ValueError(f"best needs a metric of evaluate; got {best.metric!r}. Choose among {sorted(names)}.")
    return found


def _takes(function: Callable[..., object], arguments: Sequence[object]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # of what has no signature nobody knows
        return True
    return True


def _at_the_end(num_rounds: int, last: int, budget: Budget | None) -> str:
    if budget is not None and last < num_rounds:
        return f"the budget of epsilon {budget.epsilon:g} pays {last} rounds"
    return f"all {max(num_rounds, last)} rounds are done"


@contextlib.contextmanager
def _profile(directory: Run | None) -> Iterator[None]:
    if directory is None:
        yield
        return
    with jax.profiler.trace(str(directory.path / "profile")):
        yield
        for array in jax.live_arrays():
            array.block_until_ready()
