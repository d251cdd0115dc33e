"""Trains one of the published tasks as published, and says beside it what was published.

`--list` shows the tasks, with their settings and what is to be expected. The data are the published files in `--data`,
or with `--twin` a synthetic twin of them, for trying it out: then nothing is compared. The run's directory has its
curves and checkpoints; the last line that is printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks.measuring import start, table
from benchmarks.tasks import TASKS, Place, Setting
from benchmarks.tasks.methods import algorithm_of
from benchmarks.tasks.settings import SETTINGS, SOURCES, Measure, measure_of, setting_of
from fedjx.data import uniform_sampler
from fedjx.experiment import RunError, central_evaluation, run

LAST = 100  # rounds over which Reddi et al. average
PLAIN = ("sgd", "momentum")  # servers without a tau


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tasks", description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flag = parser.add_argument
    flag("task", nargs="?", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    flag("--list", action="store_true", help="show all tasks with their settings, and train nothing")
    flag("--algorithm", choices=sorted({x.algorithm for x in SETTINGS}), help="by default the first of the task")
    flag("--source", choices=list(SOURCES), help="whose settings; by default the first of the task and algorithm")
    flag("--data", type=Path, default=Path("data"), help="directory with the published files")
    flag("--twin", action="store_true", help="train on a synthetic twin of the data, made in the same directory")
    flag("--num-clients", type=int, default=100, help="of the twin")
    flag("--num-rounds", type=int, help="rounds in all, resumed ones included; by default as published")
    flag("--client-rate", type=float, help="another learning rate of the clients")
    flag("--server-rate", type=float, help="another learning rate of the server")
    flag("--evaluate-every", type=int, default=10, help="rounds between tests, and between checkpoints")
    flag(
        "--lanes", type=lanes, default="auto", help="clients that run at once on a device; auto does not resume bitwise"
    )
    flag("--seed", type=int, default=0, help="of the cohorts and the model")
    flag("--output", type=Path, help="the run's directory; by default runs/TASK-ALGORITHM-SOURCE, with the twin's name")
    flag("--resume", action="store_true", help="go on with the run in that directory")
    flag("--overwrite", action="store_true", help="delete the run in that directory, and begin anew")
    flags = parser.parse_args(args)
    if flags.task is None and not flags.list:
        parser.error("a task is needed; got none. Name one, or say --list.")
    if flags.task:
        try:
            flags.setting = setting_of(flags.task, flags.algorithm, flags.source)
        except ValueError as error:
            parser.error(str(error))
    return flags


def lanes(text: str) -> int | str:
    """Reads a number of lanes, or "auto"."""
    return text if text == "auto" else int(text)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains a task, and reports."""
    given = {"client_rate": flags.client_rate, "server_rate": flags.server_rate, "num_rounds": flags.num_rounds}
    published: Setting = flags.setting
    setting = published._replace(**{name: value for name, value in given.items() if value is not None})
    data = f"synthetic twin of {flags.num_clients} clients" if flags.twin else "published"
    path = flags.output or Path("runs") / "-".join([*setting[:3], *["twin"] * flags.twin])
    # Made-up data have nothing to be compared with, and neither have other rates.
    is_published = not flags.twin and setting._replace(num_rounds=published.num_rounds) == published
    report = {
        **{name: getattr(setting, name) for name in ("task", "algorithm", "source")},
        "data": data,
        "output": str(path),
        **measured(trained(flags, setting, data, path), measure_of(setting.task)),
        "published": published.expected if is_published else None,
        "published_rounds": published.num_rounds,
        "certainty": published.certainty if is_published else "none",
    }
    print(comparison(report))
    print(json.dumps(report, allow_nan=False))
    return report


def trained(flags: argparse.Namespace, setting: Setting, data: str, path: Path) -> list[dict[str, Any]]:
    """Trains as a setting says, and returns what was measured in the rounds."""
    task = TASKS[setting.task](Place(flags.data, flags.twin, flags.num_clients), setting)
    cohort_size = min(setting.cohort_size, task.train.num_clients)
    about = {
        name: value for name, value in setting._asdict().items() if name not in ("num_rounds", "expected", "certainty")
    }
    return run(
        algorithm_of(setting, task.model),
        task.train,
        uniform_sampler(task.train.num_clients, cohort_size, seed=flags.seed),
        batch_size=setting.batch_size,
        num_rounds=setting.num_rounds,
        key=jax.random.key(flags.seed),
        path=path,
        start="resume" if flags.resume else "overwrite" if flags.overwrite else "new",
        about={"data": data, **about},
        lanes=flags.lanes,
        evaluate={"test": central_evaluation(task.model, task.test, batch_size=100)},
        evaluate_every=flags.evaluate_every,
        checkpoint_every=flags.evaluate_every,
    ).rows


def comparison(report: dict[str, Any]) -> str:
    """Shows what was reached beside what was published."""
    mean = f"mean_of_last_{LAST}_rounds"
    found = [["here, at the end", report["rounds"], report["final"]]]
    found.append([f"here, mean of {report['num_tests']} in the last {LAST} rounds", report["rounds"], report[mean]])
    if report["published"] is not None:
        found.append([f"{report['source']}, {report['certainty']}", report["published_rounds"], report["published"]])
    return table([f"{report['task']}, {report['algorithm']}, {report['data']}", "rounds", report["unit"]], found)


def measured(rounds: list[dict[str, Any]], measure: Measure) -> dict[str, Any]:
    """Returns the last result of a run, and the mean of those of the last 100 rounds, in the unit of the task."""
    number, name = rounds[-1]["round"], f"test/{measure.metric}"
    tested = [(row["round"], measure.factor * row[name]) for row in rounds if name in row]
    last = [value for k, value in tested if k > max(number - LAST, 0)]
    return {
        "unit": measure.unit,
        "rounds": number,
        "final": _finite(tested[-1][1]),
        f"mean_of_last_{LAST}_rounds": _finite(sum(last) / len(last)) if last else None,
        "num_tests": len(last),
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def listing() -> str:
    """Returns a table of all settings, and where they are from."""
    header = ["task", "algorithm", "source", "client rate", "server rate", "tau", "clients", "batch", "rounds"]
    found = [
        [
            *(x.task, x.algorithm, x.source, x.client_rate, x.server_rate, x.tau if x.server not in PLAIN else None),
            *(x.cohort_size, x.batch_size, str(x.num_rounds), x.expected, measure_of(x.task).unit, x.certainty),
        ]
        for x in sorted(SETTINGS, key=lambda setting: list(TASKS).index(setting.task))
    ]
    sources = [f"{name:<16}{text}" for name, text in SOURCES.items()]
    return "\n".join([table([*header, "expected", "unit", "certainty"], found), "", *sources])


if __name__ == "__main__":
    parsed = parse_flags()
    if parsed.list:
        print(listing())
        sys.exit()
    start()
    try:
        main(parsed)
    except (FileNotFoundError, RunError) as error:
        if jax.process_count() > 1:
            raise  # an error that nobody catches ends the others too
        sys.exit(f"tasks: {error}")
