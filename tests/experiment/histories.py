"""Rows of runs that nobody ran, and directories of them."""

import json
import math
from pathlib import Path

from fedjx.experiment.rows import line


def history(num_rounds=20, *, rate=0.1, seed=0, every=5, lost_from=None):
    """Makes rows as `run` does: measured every so many rounds, not finite from a round on."""
    rows = []
    for number in range(num_rounds + 1):
        row = {"round": number}
        if number:
            row |= {"train/loss": 2 / (1 + rate * number) + 0.01 * seed, "train/num_non_finite_clients": 0}
            row |= {"total/seconds": 0.5 * number, "total/bits_up": 1_000_000 * number, "total/examples": 180 * number}
        if number % every == 0:
            accuracy = 1 - 1 / (1 + rate * number) + 0.01 * seed
            row |= {"test/accuracy": accuracy, "clients/accuracy_p10": accuracy - 0.1}
            row |= {"clients/accuracy_p50": accuracy, "clients/accuracy_p90": accuracy + 0.1}
        if lost_from is not None and number >= lost_from:
            row |= {"train/loss": math.nan, "train/num_non_finite_clients": 3}
        rows.append(row)
    return rows


def write_run(path: Path, rows, about=None, ended=None):
    """Writes the files of a run that are read again; of none that has not begun, if the rows are None."""
    path.mkdir(parents=True)
    (path / "ended.json").write_text(json.dumps(ended or {"reason": "", "error": ""}))
    (path / "run.json").write_text(json.dumps({"format": "fedjx run", "about": about or {}}))
    if rows is not None:
        (path / "metrics.jsonl").write_bytes(b"".join(map(line, rows)))


def write_sweep(path: Path):
    """Writes a sweep of two rates and two seeds, of which one has not finished, and of a third one that failed."""
    for rate in (0.05, 0.1):
        for seed in (0, 1):
            write_run(path / f"rate={rate}" / f"seed-{seed}", history(rate=rate, seed=seed), {"data": "8f3b"})
            told = {"error": "", "arguments": {"rate": rate}}
            (path / f"rate={rate}" / f"seed-{seed}.json").write_text(json.dumps(told))
    (path / "rate=0.1" / "seed-1.json").unlink()
    (path / "rate=0.1" / "seed-1" / "ended.json").unlink()
    write_run(path / "rate=4.0" / "seed-0", history(2))
    told = {"error": "ValueError: rate must be <b>below</b> 2", "arguments": {"rate": 4.0}}
    (path / "rate=4.0" / "seed-0.json").write_text(json.dumps(told))
