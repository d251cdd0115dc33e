"""Counts, sums, means and histograms under the laws. Other questions have a file like this one."""

from __future__ import annotations

from fedjx.analytics.count import count
from fedjx.analytics.histogram import histogram, histogram_2d
from fedjx.analytics.mean import mean
from fedjx.analytics.total import total
from tests.analytics.laws.case import Case, by_every_trust


def is_old(record):
    return record["age"] >= 50


CASES = {
    **by_every_trust("mean", lambda: mean("score", low=-1, high=1)),
    **by_every_trust("histogram", lambda: histogram("age", bins=[0, 25, 50, 100])),
    **by_every_trust(
        "clients", lambda: count("age", where=is_old, clients=True), "distributed_dp", "local_dp", "shuffled_dp"
    ),
    "total-plain": Case(lambda: total("age")),
    "total-two": Case(lambda: total("age", low=0, high=90), {"max_records": 2}),
    "total-secure": Case(lambda: total("time", low=1.6e9, high=1.7e9), {"trust": "secure", "max_records": 2}),
    "mean-two": Case(lambda: mean("time"), {"max_records": 2}),
    "count": Case(lambda: count("age", where=is_old), {"max_records": 3}),
    "table": Case(lambda: histogram_2d(("age", "city"), bins=([0, 30, 70], 5))),
    "table-secure": Case(
        lambda: histogram_2d(("age", "city"), bins=([0, 30, 70], 5), distinct=True),
        {"trust": "secure", "max_records": 2},
    ),
}
