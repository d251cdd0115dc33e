"""Questions of which each is made of the answers before, which go on where they were interrupted."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjx.analytics.question import Question, Total
from fedjx.data.manifest import replace_file

State = Mapping[str, np.ndarray]


class Dialogue(NamedTuple):
    """Several questions, one after the other.

    Attributes:
      num_rounds: How many.
      first: The state before the first, arrays by name; what it has goes on from a file only where it began the same,
        so that all that the questions depend on is in it.
      question: ``(state, round) -> Question``, from round 0 on. What changes is `Question.told`, so that nothing is
        compiled again.
      update: ``(state, round, total) -> state``, from the sums over the clients.
      estimate: ``(state) -> (value, stddev)``, from the last state.
      refuses: As for `Question`.
    """

    num_rounds: int
    first: State
    question: Callable[[State, int], Question]
    update: Callable[[State, int, Total], State]
    estimate: Callable[[State], tuple[Any, Any]]
    refuses: Mapping[str, str] = {}


class Progress(NamedTuple):
    """How far a dialogue has come.

    Attributes:
      round: How many questions have been answered.
      state: After them.
      num_answered: The most clients that have answered one; None where that is private.
      token: Names it for the ledger.
    """

    round: int
    state: State
    num_answered: int | None
    token: str


def begun(dialogue: Dialogue, identity: dict[str, Any], path: Path | None) -> Progress:
    """Returns how far a dialogue has come, in the file if there is one; begins one otherwise, in the file too.

    Raises:
      ValueError: If the file is of another dialogue, or of this one on other terms.
    """
    if path is None or not path.exists():
        progress = Progress(0, dict(dialogue.first), None, secrets.token_hex(8))
        save(progress, identity, path)
        return progress
    with np.load(io.BytesIO(path.read_bytes())) as saved:
        arrays = {name: saved[name] for name in saved.files}
    head = json.loads(arrays.pop("dialogue").item())
    differ = [name for name in identity if head["identity"].get(name) != identity[name]]
    if differ:
        was, got = ({name: d.get(name) for name in differ} for d in (head["identity"], identity))
        raise ValueError(
            f"a dialogue goes on as it began; {path} has {was}, got {got}. Repeat what it was, or take another file."
        )
    return Progress(head["round"], arrays, head["num_answered"], head["token"])


def save(progress: Progress, identity: dict[str, Any], path: Path | None) -> None:
    """Writes how far a dialogue has come, whole or not at all; nothing without a file."""
    if path is None:
        return
    head = {name: value for name, value in progress._asdict().items() if name != "state"}
    buffer = io.BytesIO()
    arrays = {**progress.state, "dialogue": np.array(json.dumps({**head, "identity": identity}))}
    np.savez(buffer, allow_pickle=False, **arrays)
    replace_file(path, buffer.getvalue())
