"""FedAvg with and without momentum, FedAdagrad, FedAdam and FedYogi on the roles of Shakespeare, at published rates.

The rates, and the numbers beside ours, are those of Reddi et al., "Adaptive Federated Optimization" (arXiv 2003.00295),
of another edition of the plays. Each method is a run of `benchmarks.tasks shakespeare_plays` in a directory below
`--runs`; what is there goes on. The last line that is printed is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, start_alone, table
from benchmarks.tasks import __main__ as tasks
from benchmarks.tasks.settings import setting_of
from fedjx.experiment import plot_curves, read_rows, rounds_to

METHODS = ("fed_adagrad", "fed_adam", "fed_yogi", "fed_avgm", "fed_avg")
ACCURACIES = (0.4, 0.45, 0.5)
METRIC = "test/accuracy"


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--data", type=Path, default=Path("data"), help="directory with what `make data` fetches")
    flag("--twin", action="store_true", help="train on a synthetic twin of the data, for trying it out")
    flag("--runs", type=Path, default=Path("runs/adaptive"), help="where the methods' directories are")
    flag("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="which of them")
    flag("--num-rounds", type=int, default=1200, help="rounds of each; the paper's are 1,200")
    flag("--evaluate-every", type=int, default=25, help="rounds between tests, and between checkpoints")
    return parser.parse_args(args)


def trained(method: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Trains with a method, or goes on, and returns what it came to beside what is published of it."""
    path = flags.runs / method
    asked = {"data": flags.data, "num-rounds": flags.num_rounds, "evaluate-every": flags.evaluate_every}
    asked |= {"algorithm": method, "output": path, "seed": flags.seed}
    switches = [*["--twin"] * flags.twin, *["--resume"] * path.exists()]
    given = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    found = tasks.main(tasks.parse_flags(["shakespeare_plays", *given, *switches]))
    rows, published = read_rows(path), setting_of("shakespeare", method, "reddi")
    return {
        **{name: getattr(published, name) for name in ("client_rate", "server_rate", "tau")},
        **{name: found[name] for name in ("rounds", "final", "mean_of_last_100_rounds", "num_tests")},
        "rounds_to": {f"{100 * a:g} %": rounds_to(rows, METRIC, a) for a in ACCURACIES},
        "published": published.expected,
        "curve": [[row["round"], row[METRIC]] for row in rows if METRIC in row],
    }


def show(found: dict[str, dict[str, Any]]) -> str:
    """Formats a row for each method."""
    header = ["% right", "rounds", "at the end", "mean of the last 100 rounds", "Reddi et al., 1,200 rounds"]
    rows = [
        [
            *(method, one["rounds"], one["final"], one["mean_of_last_100_rounds"], one["published"]),
            *one["rounds_to"].values(),
        ]
        for method, one in found.items()
    ]
    return table([*header, *(f"rounds to {100 * a:g} %" for a in ACCURACIES)], rows)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains with all methods, draws and reports."""
    found = {method: trained(method, flags) for method in flags.methods}
    print(show(found))
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        figure = plot_curves({method: flags.runs / method for method in found}, METRIC)
        figure.savefig(flags.output.with_suffix(".png"), dpi=110)
    about = {"benchmark": "adaptive", "is_twin": flags.twin, "seed": flags.seed, **environment(client_mesh())}
    return finish({**about, "methods": found}, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
