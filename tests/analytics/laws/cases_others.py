"""All other questions under the laws: of each what it adds, by the trust in which it is at its most involved."""

from __future__ import annotations

from fedjx.analytics.by_group import by_group, large_groups
from fedjx.analytics.correlation import covariance
from fedjx.analytics.distinct import distinct_count
from fedjx.analytics.extremes import maximum
from fedjx.analytics.heavy_hitters import heavy_hitters
from fedjx.analytics.hierarchy import hierarchical_histogram
from fedjx.analytics.histogram import histogram
from fedjx.analytics.lookup_table import lookup_table
from fedjx.analytics.mean import mean
from fedjx.analytics.prefix_tree import prefix_tree
from fedjx.analytics.quantile import quantile, quantile_by_bisection
from fedjx.analytics.regression import linear_regression
from fedjx.analytics.variance import variance
from tests.analytics.laws.case import NOISE, Case

SECURE, TWO = {"trust": "secure"}, {"trust": "secure", "max_records": 2}
NOISY, LOCAL = {"trust": "central_dp", **NOISE}, {"trust": "local_dp", "epsilon": 2.0}
BOUNDS = {"score": (-1, 1), "age": (0, 100)}

CASES = {
    "variance": Case(lambda: variance("score", low=-1, high=1), TWO),
    "variance-local": Case(lambda: variance("score", low=-1, high=1), LOCAL),
    "covariance": Case(lambda: covariance(["score", "age"], bounds=BOUNDS), NOISY),
    "regression": Case(lambda: linear_regression(["age"], "score", bounds=BOUNDS)),
    "maximum": Case(lambda: maximum("age", low=0, high=100, num_bins=11), {"trust": "secure", "max_records": 1}),
    "distinct": Case(lambda: distinct_count("age", precision=6), SECURE),
    "hierarchy": Case(lambda: hierarchical_histogram("age", bins=[0, 20, 40, 60, 100], distinct=True), NOISY),
    "quantile": Case(lambda: quantile("score", 0.5, low=-1, high=1, num_bins=32), TWO),
    "bisection": Case(lambda: quantile_by_bisection("score", [0.2, 0.5], low=-1, high=1, num_rounds=3), NOISY),
    "group-mean": Case(lambda: by_group(mean("score", low=-1, high=1), "city", num_groups=5), NOISY),
    "group-histogram": Case(lambda: by_group(histogram("age", bins=[0, 50, 100]), "city", num_groups=5), LOCAL),
    "large-groups": Case(lambda: large_groups("city", num_groups=5, min_clients=3), SECURE),
    "words": Case(lambda: heavy_hitters("word", num_bytes=4, width=64, max_hitters=8, distinct=True), TWO),
    "words-tree": Case(lambda: prefix_tree("word", num_bytes=2, max_candidates=4), NOISY),
    "words-table": Case(lambda: lookup_table("word", num_bytes=4, capacity=20), TWO),
}
