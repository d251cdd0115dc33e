"""The command ``python -m fedjx.experiment``: reports of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fedjx.data.arguments import first_line
from fedjx.data.store import Store
from fedjx.experiment.report import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m fedjx.experiment", description="Runs and what came of them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("report", help="write a page about runs", description=first_line(report))
    flag = command.add_argument
    flag("paths", nargs="+", metavar="PATH", help="the directory of a run, or of a sweep")
    flag("--output", default="report.html", metavar="FILE", help="the page to write; by default report.html")
    flag("--metric", metavar="NAME", help="what runs are compared by; by default test/accuracy, or what is like it")
    flag("--mode", choices=["max", "min"], help="whether more or less is better; by default less of a loss")
    flag("--target", type=float, metavar="NUMBER", help="of the metric: when runs reached it")
    flag("--data", metavar="STORE", help="a store of the clients' examples, to draw sizes and labels")
    flag("--label", metavar="FEATURE", help="the feature with the labels; by default y, if there is one")
    flag("--title", metavar="TEXT", help="by default the names of the runs")
    options = vars(parser.parse_args(arguments))
    paths, data = options.pop("paths"), options.pop("data")
    try:
        report(paths, **options, data=None if data is None else Store(data))
    except (OSError, ValueError, TypeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(options["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
