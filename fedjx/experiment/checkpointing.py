"""Checkpoints that are written while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import jax

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.data.client_states import ClientStates
from fedjx.experiment.checkpoints import Best, Checkpoint, check_best, last_checkpoint, save_checkpoint
from fedjx.experiment.host_arrays import own_copy
from fedjx.experiment.rows import flat
from fedjx.experiment.run_directory import Run, RunError, checkpoints, is_full


class Checkpointer:
    """Saves a run's checkpoints in a background thread, one at a time, together with the states of its clients.

    `save` copies the state on its device and returns; what it cannot write, as on a full disk, is an error of the next
    call. A process that is killed at any moment goes on from the last checkpoint that is whole.

    Args:
      run: The open run; None keeps nothing.
      keep: How many of the newest checkpoints stay; the run can go on from each of them.
      best: Which others do, to be evaluated: `best_checkpoint` reads them.
      client_states: Those of all clients, if they keep some; each checkpoint names their round.
    """

    def __init__(
        self, run: Run | None, *, keep: int = 3, best: Best | None = None, client_states: ClientStates | None = None
    ):
        check_integer("[1, inf)", keep=keep)
        check_best(best)
        self._run, self._keep, self._best, self._states = run, keep, best, client_states
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_kept(self) -> bool:
        """Whether what is saved is kept."""
        return self._run is not None

    def restore(self, like: PyTree) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole, as `last_checkpoint` does, and takes the clients' states back."""
        found = None if self._run is None else last_checkpoint(self._run, like)
        if self._states is not None:
            round, fingerprint = (0, None) if found is None else (found.round, found.client_states)
            if round not in self._states.rounds:
                raise RunError(
                    f"a run goes on with the clients' states of its round; got round {round}, and {self._states.path} "
                    f"has {self._states.rounds}. Begin anew, in another directory or with `overwrite`."
                )
            self._states.rollback(round, fingerprint=fingerprint)
        return found

    def save(self, checkpoint: Checkpoint, *, before: Callable[[], object] = lambda: None) -> None:
        """Saves a checkpoint when the one before is saved.

        Args:
          checkpoint: As for `save_checkpoint`; numbers in its metrics may be on the device, nested as they come.
          before: What is called in the thread first, such as `Log.flush`: what a run goes on from has all rows then.
        """
        self.wait()
        if self._run is None:
            return
        if self._states is not None:
            self._states.sync()
            self._pin(self._run)
            checkpoint = checkpoint._replace(client_states=self._states.fingerprint)
        copied = checkpoint._replace(state=jax.tree.map(own_copy, checkpoint.state))
        self._thread = threading.Thread(
            target=self._work, args=(self._run, copied, before), name="fedjx checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if is_full(error):
            raise RunError(
                f"a checkpoint needs room; got {error}. Make some, and resume from the one before."
            ) from error
        if error is not None:
            raise error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def _work(self, run: Run, checkpoint: Checkpoint, before: Callable[[], object]) -> None:
        try:
            before()
            measured = checkpoint._replace(metrics=flat(checkpoint.metrics))
            save_checkpoint(run, measured, keep=self._keep, best=self._best)
        except BaseException as error:
            self._error = error

    def _pin(self, run: Run) -> None:
        """Gives up the clients' states of rounds before the oldest checkpoint from which the run can go on."""
        assert self._states is not None
        kept = {int(path.name) for path in checkpoints(run.path)[-self._keep :]} & set(self._states.rounds)
        if kept:
            self._states.pin(min(kept))
