"""How a run ends before its last round: by a wish of the system or of the user, which all processes grant together."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


def of_first(reason: str | None) -> str | None:
    """Gives all processes what the first one has decided: its clock and its rows count."""
    if jax.process_count() == 1:
        return reason
    text = np.frombuffer((reason or "").encode()[:200].ljust(200), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes().decode(errors="replace").strip() or None


@contextlib.contextmanager
def told_to_end(*, is_kept: bool) -> Iterator[Callable[[bool], str | None]]:
    """Takes SIGTERM, as batch systems send it before they kill, and Ctrl-C for a wish to end after the round.

    Of a run that keeps nothing Ctrl-C is what it ever is.

    Who heard of these before is told when the run has ended: Ctrl-C is then a `KeyboardInterrupt` as ever, and so is a
    second one at once. Several processes need not have heard in the same round: they ask the first one where all do.
    """
    told: list[int] = []

    def is_told(is_asked: bool) -> str | None:
        reason = f"it was told to end, by {signal.Signals(told[0]).name}" if told else None
        if jax.process_count() == 1:
            return reason
        return of_first(reason) if is_asked else None

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and number in told:
            raise KeyboardInterrupt
        told.append(number)
        when = "after this round" if jax.process_count() == 1 else "where it is evaluated or saved next"
        print(f"\nfedjx: the run ends {when}{', with a checkpoint' if is_kept else ''}.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield is_told
        return
    wishes = (signal.SIGTERM, signal.SIGINT) if is_kept else (signal.SIGTERM,)
    heard = [number for number in wishes if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield is_told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in told:
        if callable(handler := before[signal.Signals(number)]):
            handler(number, None)
