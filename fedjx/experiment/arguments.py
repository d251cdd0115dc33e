"""Checks of what a run is given, before anything of it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjx.experiment.sinks import Sink
from fedjx.privacy.budget import Budget

_OF_A_RUN = {"round", "train", "privacy", "total"}


def check_arguments(
    *,
    data: Any,
    sampler: Any,
    about: Any,
    evaluate: Any,
    stop: Any = (),
    sinks: Any = (),
    budget: Any = None,
    simulated_seconds: Any = None,
) -> None:
    """Refuses what no run can be made of; see `fedjx.experiment.run` for what each is.

    Raises:
      TypeError: If one is of another kind.
      ValueError: If evaluations have names that a run gives, or the budget is of another sampler.
    """
    _check("data", "clients, such as a FederatedData or a Store", data, hasattr(data, "ids") and hasattr(data, "sizes"))
    _check("sampler", "a function of the round", sampler, callable(sampler))
    _check("about", "a dict", about, isinstance(about, Mapping))
    _check("evaluate", "a dict of functions by name", evaluate, isinstance(evaluate, Mapping))
    for name, evaluation in evaluate.items():
        _check(f"evaluate[{name!r}]", "a function, such as central_evaluation makes", evaluation, callable(evaluation))
    _check("stop", "a list of rules", stop, _is_list_of(stop, callable))
    _check("sinks", "a list of Sink(write)", sinks, _is_list_of(sinks, lambda sink: isinstance(sink, Sink)))
    _check("budget", "a budget of fedjx.privacy", budget, budget is None or isinstance(budget, Budget))
    is_clock = simulated_seconds is None or callable(simulated_seconds)
    _check("simulated_seconds", "a function of the round", simulated_seconds, is_clock)
    if taken := sorted(_OF_A_RUN & evaluate.keys()):
        raise ValueError(f"evaluations need names of their own; got {taken}, as a run names its own. Rename them.")
    if budget is not None:
        _check_paid(sampler, budget)


def _check(name: str, what: str, value: object, is_right: bool) -> None:
    if not is_right:
        raise TypeError(f"{name} needs to be {what}; got {type(value).__name__}: {value!r:.80}.")


def _is_list_of(values: object, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, Sink)) and all(map(is_one, values))


def _check_paid(sampler: Any, budget: Budget) -> None:
    """Refuses cohorts that the budget does not know the cost of; any seed of theirs costs the same."""
    now, paid = getattr(sampler, "description", {}), budget.account.sampler
    names = {"kind"} if budget.account.event.noise_clients else {*now, *paid} - {"seed"}
    differ = sorted(name for name in names if now.get(name) != paid.get(name))
    if differ:
        got, was = ({name: found.get(name) for name in differ} for found in (now, paid))
        raise ValueError(
            f"a budget pays for the cohorts of its account's sampler; got {got}, accounted for {was}. Make the account "
            "with the sampler of the run."
        )
