"""How many clients a device best runs at once: tried between rounds, compiled while they run."""

from __future__ import annotations

import threading
import time
import warnings
from typing import NamedTuple

import jax
import numpy as np

from fedjx.core.execution.chunks import Chunks, Level
from fedjx.core.execution.engine import PassStream
from fedjx.core.execution.hosts import agreed
from fedjx.core.language.program import Environment

_FASTER = 0.95  # of the seconds of fewer lanes: what more lanes have to stay under


class _Trial(NamedTuple):
    """A number of lanes whose programs a thread compiles."""

    lanes: int
    chunks: Chunks  # whose shapes the programs are for
    programs: list[jax.stages.Lowered]  # kept until they have run, or JAX forgets them
    errors: list[Exception]
    thread: threading.Thread


class Lanes:
    """The numbers of lanes that a computation runs with: one client alone at first, more once they are faster.

    The program of one lane is the smallest, and so the first one. Once rounds have gone on for as long as the first
    one took, those of 4, 16, ... lanes are compiled in a thread, one after the other: a script that has so long to run
    may gain by it. The thread runs nothing of the user's: their function is traced here. The next end of a round
    measures what is compiled, and the fastest so far, on copies of a middling client, when nothing else runs. Several
    processes do all this at the end of the same round.

    Attributes:
      levels: The fastest lanes and fewer, for the next round.
    """

    def __init__(self, passes: list[PassStream]):
        self.levels = [Level(1, 1.0)]
        self._passes = passes
        self._untried: list[int] | None = None  # None until somebody has run
        self._trial: _Trial | None = None
        self._began = self._first_end = time.monotonic()

    @property
    def is_settled(self) -> bool:
        """Whether `levels` will stay."""
        return self._untried == [] and self._trial is None

    def after_round(self, environments: list[Environment], chunks: Chunks) -> None:
        """Goes on with the search.

        Args:
          environments: What the server had for each pass of the round.
          chunks: The clients of the round.
        """
        if self.is_settled:
            return
        if self._untried is None:
            self._untried = chunks.lane_counts()[1:] if chunks.has_client else None
            self._first_end = time.monotonic()
        elif self._trial is None:
            if agreed(time.monotonic() - self._first_end >= self._first_end - self._began):
                self._trial = self._begun(self._untried.pop(0), environments, chunks)
        elif agreed(not self._trial.thread.is_alive()):
            self._end(self._trial, environments[0])
            self._trial = None

    def _begun(self, lanes: int, environments: list[Environment], chunks: Chunks) -> _Trial:
        sample, errors = chunks.sample(lanes, is_full=False), []
        pairs = zip(self._passes, environments, strict=True)
        programs = [run.lowered(environment, sample, lanes) for run, environment in pairs]

        def compile_all() -> None:
            try:
                for program in programs:
                    program.compile()
            except Exception as error:  # which `_end` raises
                errors.append(error)

        # No daemon, so Python waits for it in the end: XLA would be taken down while it compiles.
        thread = threading.Thread(target=compile_all, name="fedjx-lanes")
        thread.start()
        return _Trial(lanes, chunks, programs, errors, thread)

    def _end(self, trial: _Trial, environment: Environment) -> None:
        """Measures a trial whose programs are compiled: it is the fastest now, or the last."""
        fastest = self.levels[0]
        try:
            trial.thread.join()
            for error in trial.errors:
                raise error
            fewer = self._seconds_per_client(fastest.lanes, environment, trial.chunks)
            more = self._seconds_per_client(trial.lanes, environment, trial.chunks)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() > 1:
                raise  # the others cannot know
            warnings.warn(
                f"{trial.lanes} clients at once cannot run, so {fastest.lanes} will: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            fewer, more = 1.0, np.inf
        # Processes that went on with numbers of their own would each run another program.
        ratio = agreed(more / fewer)
        if ratio <= _FASTER:
            self.levels = [Level(trial.lanes, fastest.seconds * ratio), *self.levels]
        else:
            self._untried = []

    def _seconds_per_client(self, lanes: int, environment: Environment, chunks: Chunks) -> float:
        # What is quick is measured on a full chunk, or the cost of the dispatch would count for more than it does.
        for is_full in (False, True):
            sample = chunks.sample(lanes, is_full=is_full)
            seconds = self._passes[0].seconds(environment, sample, lanes)
            if agreed(seconds) > 0.05:
                break
        return seconds / int(np.sum(sample.mask))
