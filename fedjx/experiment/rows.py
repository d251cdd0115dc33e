"""The rows of a run: what it says of each round, a flat dict by name, and the file that has them line by line."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    An array ``[]`` becomes a number, a larger one a list, as does a tuple; text stays, None is left out.

    Raises:
      TypeError: If there is anything else.
      ValueError: If two have one name.

    >>> flat({"test": {"accuracy": jnp.float32(0.5), "of_class": np.array([1, 2])}})
    {'test/accuracy': 0.5, 'test/of_class': [1, 2]}
    """
    found: Row = {}
    for name, value in groups.items():
        if hasattr(value, "_asdict"):
            value = value._asdict()
        own = flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else _named(f"{prefix}{name}", value)
        if twice := sorted(own.keys() & found.keys()):
            raise ValueError(f"metrics need names of their own; got {twice} twice. Rename one of them.")
        found |= own
    return found


def _named(name: str, value: object) -> Row:
    if value is None or isinstance(value, str):
        return {} if value is None else {name: value}
    if isinstance(value, (list, tuple)):
        with contextlib.suppress(ValueError):
            value = np.array(value)
    if isinstance(value, (bool, int, float, np.ndarray, np.generic, jax.Array)):
        array = on_host(value)
        if array.dtype.kind in "biufUV":  # V: of floats narrower than NumPy's
            return {name: array.tolist()}
    raise TypeError(
        "a metric needs to be a number, text, an array or a list of such, or a dict of them; got "
        f"{type(value).__name__} for {name}. Convert it, or leave it out."
    )


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
    return list(_rows(Path(path).expanduser() / ROWS))


def _rows(file: Path) -> Iterator[Row]:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise RunError(f"a run's rounds are in {file}; got {error.strerror}. Give the run's directory.") from None
    whole = text[: text.rfind(b"\n") + 1]  # a last line without an end is being written, or was when it was killed
    for number, text in enumerate(whole.splitlines(), 1):
        row = None
        with contextlib.suppress(ValueError):
            row = _with_nan(json.loads(text))
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            raise RunError(
                f"a run's rounds are lines of JSON; line {number} of {file} is damaged. Take a copy of the file, or "
                "cut it before that line, and resume."
            )
        yield row


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
    found = [(row[x], row[metric]) for row in _checked(rows) if metric in row and x in row]
    try:
        at, value = np.array(found, np.float64).reshape(-1, 2).T
    except ValueError:
        wrong = next(pair for pair in found if not all(isinstance(part, (int, float)) for part in pair))
        raise ValueError(f"{metric} by {x} needs to be numbers; got {wrong}. Choose another metric.") from None
    return at, value


def _checked(rows: Iterable[Row]) -> Iterable[Row]:
    """Refuses the path of rows in their place, which is a sequence too."""
    if isinstance(rows, (str, Path)):
        raise TypeError(f"rows are a list of dicts; got {str(rows)!r}. Read them: `read_rows(path)`.")
    return rows


def better(metric: str) -> Mode:
    """Guesses whether more or less of a metric is better: less, if its name has loss, error, perplexity or epsilon.

    >>> better("test/accuracy"), better("test/loss")
    ('max', 'min')
    """
    return "min" if any(word in metric.lower() for word in ("loss", "error", "perplexity", "epsilon")) else "max"


def check_measured(rows: Sequence[Row], metric: str) -> None:
    """Refuses a name that no row has, once there is a row that should have it.

    Rows of rounds should have all of them; that before the first round those of the evaluations.
    """
    if not rows or any(metric in row for row in rows):
        return
    names = sorted({name for row in rows for name in row} - {"round"})
    group = f"{metric.partition('/')[0]}/"
    if rows[-1]["round"] > 0 or any(name.startswith(group) for name in names):
        raise ValueError(f"a metric needs to be measured; got {metric!r}. Choose among {names}.")


def rounds_to(
    rows: Iterable[Row], metric: str, target: float, *, mode: Mode | None = None, x: str = "round"
) -> float | None:
    """Returns after how many rounds a metric first was as good as its target; None if it never was.

    As in McMahan et al. (arXiv 1602.05629, section 3): the curve of the best value so far, linear between rounds.

    Args:
      rows: Of one run.
      metric: A name in them.
      target: To be reached.
      mode: Whether more or less is better; by default less of what is called a loss, an error or so, see `better`.
      x: What is counted in place of rounds, such as ``"total/bits_up"`` or ``"total/seconds"``.

    Raises:
      ValueError: If rounds were run and none has the metric, or none of those that have it has what is counted.

    >>> curve = [{"round": 0, "test/accuracy": 0.0}, {"round": 10, "test/accuracy": 0.5}]
    >>> rounds_to(curve, "test/accuracy", 0.375)
    7.5
    """
    mode = better(metric) if mode is None else mode
    check_choice(("max", "min"), mode=mode)
    rows, sign = list(_checked(rows)), 1 if mode == "max" else -1
    check_measured(rows, metric)
    check_measured([row for row in rows if metric in row], x)
    at, value = values(rows, metric, x)
    best = np.fmax.accumulate(np.where(np.isfinite(value), sign * value, np.nan)) if len(value) else value
    (reached,) = np.nonzero(best >= sign * target)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0 or not np.isfinite(best[after - 1]):
        return float(at[after])
    share = (sign * target - best[after - 1]) / (best[after] - best[after - 1])
    return float(at[after - 1] + share * (at[after] - at[after - 1]))
