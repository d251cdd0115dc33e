"""The rows of a run: what it says of each round, a flat dict by name, and the file that has them line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.core.language.names import PyTree
from fedjx.data.manifest import replace_file
from fedjx.experiment.host_arrays import on_host
from fedjx.experiment.run_directory import ROWS, RunError

Row: TypeAlias = dict[str, Any]
Mode = Literal["max", "min"]


def flat(groups: Mapping[str, PyTree], prefix: str = "") -> Row:
    """Names the numbers in nested metrics, ``group/name``; waits for those that a device still computes.

    An array ``[]`` becomes a number, a larger one a list; text stays, and what is neither is left out.

    >>> flat({"test": {"accuracy": jnp.float32(0.5), "of_class": np.array([1, 2])}})
    {'test/accuracy': 0.5, 'test/of_class': [1, 2]}
    """
    found: Row = {}
    for name, value in groups.items():
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, str):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, (bool, int, float, np.ndarray, np.generic, jax.Array)):
            found[f"{prefix}{name}"] = on_host(value).tolist()
    return found


def line(row: Row) -> bytes:
    """Returns a row as a line of strict JSON: NaN is null, and infinity a number that every reader takes for it."""
    return f"{_json(row)}\n".encode()


def _json(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)}: {_json(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    return json.dumps(value)


def read_rows(path: str | Path) -> list[Row]:
    """Reads what a run has said of its rounds, also while it goes on.

    Args:
      path: The run's directory.

    Returns:
      A dict for each round, from 0, before the first, on: ``round``, and numbers by ``group/name``.

    Raises:
      RunError: If the directory has none.
    """
    return list(_rows(Path(path) / ROWS))


def _rows(file: Path) -> Iterator[Row]:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise RunError(f"a run's rounds are in {file}; got {error.strerror}. Give the run's directory.") from None
    whole = text[: text.rfind(b"\n") + 1]  # a last line without an end is being written, or was when it was killed
    try:
        for row in whole.splitlines():
            yield _with_nan(json.loads(row))
    except ValueError:
        raise RunError(f"a run's rounds are lines of JSON; {file} is damaged. Take a copy of it.") from None


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return math.nan if value is None else value


def kept_rows(path: Path, after: int) -> list[Row]:
    """Reads the rows until the round that a run goes on from, and takes what is beyond it out of the file."""
    rows: list[Row] = []
    for row in _rows(path / ROWS) if after >= 0 and (path / ROWS).exists() else ():
        if row["round"] <= after:
            rows.append(row)
        if row["round"] >= after:
            break
    replace_file(path / ROWS, b"".join(map(line, rows)))
    return rows


def values(rows: Iterable[Row], metric: str, x: str = "round") -> tuple[np.ndarray, np.ndarray]:
    """Returns where a metric was measured, and what it was: float64 ``[n]`` each, of the rows that have it.

    >>> values([{"round": 0, "test/loss": 2.0}, {"round": 1}, {"round": 2, "test/loss": 1.0}], "test/loss")
    (array([0., 2.]), array([2., 1.]))
    """
    found = [(row[x], row[metric]) for row in rows if metric in row and x in row]
    at, value = np.array(found, np.float64).reshape(-1, 2).T
    return at, value


def rounds_to(rows: Iterable[Row], metric: str, target: float, *, mode: Mode = "max", x: str = "round") -> float | None:
    """Returns after how many rounds a metric first was as good as its target; None if it never was.

    As in McMahan et al. (arXiv 1602.05629, section 3): the curve of the best value so far, linear between rounds.

    Args:
      rows: Of one run.
      metric: A name in them.
      target: To be reached.
      mode: Whether more or less is better.
      x: What is counted in place of rounds, such as ``"total/bits_up"`` or ``"total/seconds"``.

    >>> curve = [{"round": 0, "test/accuracy": 0.0}, {"round": 10, "test/accuracy": 0.5}]
    >>> rounds_to(curve, "test/accuracy", 0.375)
    7.5
    """
    check_choice(("max", "min"), mode=mode)
    sign = 1 if mode == "max" else -1
    at, value = values(rows, metric, x)
    best = np.fmax.accumulate(sign * value) if len(value) else value
    (reached,) = np.nonzero(best >= sign * target)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0 or not np.isfinite(best[after - 1]):
        return float(at[after])
    share = (sign * target - best[after - 1]) / (best[after] - best[after - 1])
    return float(at[after - 1] + share * (at[after] - at[after - 1]))
