"""Where a model meets data: examples that it cannot have are refused, and rounds that leave most clients out warn."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.core
import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.names import PyTree
from fedjx.core.language.traced import Hooks
from fedjx.data.cohort import Cohort
from fedjx.data.federated_data import ClientData, FederatedData, notation
from fedjx.models.inputs import AnySpec, InputSpec, check_types, check_values


def data_hooks(spec: AnySpec | None) -> Hooks:
    """Returns what refuses the cohorts of a computation whose data a model cannot have, by its ``input_spec``.

    Features, shapes and dtypes are compared when a cohort is given, ranges as the examples are read: once for a data
    set that is resident, on the host, and chunk by chunk for one that is streamed.
    """
    return Hooks() if spec is None else Hooks(argument=_checking(spec))


def round_hooks(spec: AnySpec | None) -> Hooks:
    """Returns the same for an algorithm, with a warning when most of a cohort is left out."""
    return data_hooks(spec)._replace(result=LeftOut())


def _checking(spec: AnySpec) -> Callable[[PyTree], PyTree]:
    specs: dict[str, InputSpec] = {}
    seen: list[weakref.ref[ClientData]] = []

    def argument(value: PyTree) -> PyTree:
        if not isinstance(value, Cohort) or isinstance(value.data, _Checked):
            return value
        types = notation(value.data.schema)
        if types not in specs:
            found = spec(value.data.schema) if callable(spec) else spec
            check_types(found, value.data.schema)
            specs[types] = found
        ranged = {name: x for name, x in specs[types].items() if x.has_range}
        return (
            dataclasses.replace(value, data=cast(ClientData, _Checked(value.data, ranged, seen))) if ranged else value
        )

    return argument


class _Checked:
    """Client data whose values are looked at when they are read."""

    def __init__(self, data: ClientData, spec: InputSpec, seen: list[weakref.ref[ClientData]]):
        self._data, self._spec, self._seen = data, spec, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    @property
    def pool(self) -> Mapping[str, jax.Array]:
        pool = self._data.pool
        if not any(known() is self._data for known in self._seen):
            columns = self._data.examples if isinstance(self._data, FederatedData) else pool
            first = np.asarray(self._data.offsets[:])
            for name, feature in self._spec.items():
                check_values(
                    name,
                    feature,
                    np.asarray(columns[name])[: self._data.num_examples],
                    lambda row: self._owner(self._data.ids, first, row),
                )
            # Of data sets that are made anew each round only those that there are.
            self._seen[:] = [known for known in self._seen if known() is not None] + [weakref.ref(self._data)]
        return pool

    def read(self, ids: ArrayLike, out: Mapping[str, np.ndarray] | None = None) -> Mapping[str, np.ndarray]:
        examples = self._data.read(ids, out)
        for name, feature in self._spec.items():
            check_values(name, feature, examples[name], lambda row: self._owner(ids, self._first(ids), row))
        return examples

    def _first(self, ids: ArrayLike) -> np.ndarray:
        sizes = np.asarray(self._data.sizes[self._data.places(ids)])
        return sizes.cumsum() - sizes

    def _owner(self, ids: ArrayLike, first: np.ndarray, row: int) -> str:
        """Names the client of a row, where these clients' rows begin at `first`."""
        return f"at client {np.asarray(ids)[np.searchsorted(first, row, side='right') - 1]}"


class LeftOut:
    """Warns, once, when a round left out more than half of its cohort as not finite, or all that came of it.

    It looks at the counts of a round only when they are there, so that no loop waits for the device.
    """

    def __init__(self):
        self._waiting: tuple[jax.Array, ...] | None = None
        self._has_warned = False

    def __call__(self, result: PyTree) -> None:
        """Takes what a round returns."""
        metrics = result[1]
        names = ("num_non_finite_clients", "num_clients", "num_non_finite_aggregates")
        counts = tuple(metrics.get(name) for name in names)
        if self._has_warned or not all(map(_is_computed, counts)):
            return
        for waits in (self._waiting, counts):
            if waits is not None and all(map(_is_ready, waits)):
                self._look(*map(np.asarray, waits))
                self._waiting = None
            else:
                self._waiting = self._waiting or counts

    def _look(self, left_out: np.ndarray, taken: np.ndarray, rejected: np.ndarray) -> None:
        most = np.flatnonzero(left_out > taken)
        if len(most):
            number, rest = np.ravel(left_out)[most[0]], np.ravel(taken)[most[0]]
            problem = (
                f"most clients of a round should count; got {number} of {number + rest} left out, because what they "
                "sent is not finite. Their loss has overflowed or their examples hold NaN: lower the learning rate, "
                "look at the data, or let algorithm.next.streamed(debug=True) name the client and the step."
            )
        elif rejected.any():
            problem = (
                "what comes of all clients should be finite; got an aggregate that is not, so the server stays as it "
                "was. Look at what the aggregator measured, such as the overflow of a secure sum, and at the updates."
            )
        else:
            return
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(problem, RuntimeWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Returns the stack level, as `warnings.warn` counts from where this is called, of the line that called fedjx."""
    frame, level = inspect.currentframe(), 0
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] == "fedjx":
        frame, level = frame.f_back, level + 1
    return level


def _is_computed(count: object) -> bool:
    return isinstance(count, jax.Array) and not isinstance(count, jax.core.Tracer)


def _is_ready(count: Any) -> bool:  # a method that the stubs of jax.Array do not have
    return count.is_ready()
