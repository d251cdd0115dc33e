"""Federated analytics: questions without a model, over any number of clients, answered without seeing anyone."""

from fedjx.analytics.answer import Answer
from fedjx.analytics.ask import AskArguments, TooFewAnswers, ask
from fedjx.analytics.by_group import by_group, large_groups
from fedjx.analytics.correlation import correlation, covariance
from fedjx.analytics.count import count
from fedjx.analytics.dialogue import Dialogue
from fedjx.analytics.distinct import Sketch, distinct_count
from fedjx.analytics.evaluation import evaluation
from fedjx.analytics.extremes import maximum, minimum
from fedjx.analytics.heavy_hitters import heavy_hitters
from fedjx.analytics.hierarchy import Estimate, Hierarchy, hierarchical_histogram
from fedjx.analytics.histogram import histogram, histogram_2d
from fedjx.analytics.ledger import Ledger, Payment
from fedjx.analytics.lookup_table import Decoded, lookup_table
from fedjx.analytics.mean import mean
from fedjx.analytics.prefix_tree import prefix_tree
from fedjx.analytics.quantile import median, quantile, quantile_by_bisection, quantile_online
from fedjx.analytics.question import Entry, Question, Sensitivity, Total
from fedjx.analytics.records import Records
from fedjx.analytics.regression import Regression, linear_regression
from fedjx.analytics.text import from_bytes, is_text, to_bytes
from fedjx.analytics.top_k import top_k
from fedjx.analytics.total import total
from fedjx.analytics.trie_hh import trie_hh
from fedjx.analytics.trust import SEES, TRUSTS, Trust
from fedjx.analytics.variance import variance

__all__ = [
    "SEES",
    "TRUSTS",
    "Answer",
    "AskArguments",
    "Decoded",
    "Dialogue",
    "Entry",
    "Estimate",
    "Hierarchy",
    "Ledger",
    "Payment",
    "Question",
    "Records",
    "Regression",
    "Sensitivity",
    "Sketch",
    "TooFewAnswers",
    "Total",
    "Trust",
    "ask",
    "by_group",
    "correlation",
    "count",
    "covariance",
    "distinct_count",
    "evaluation",
    "from_bytes",
    "heavy_hitters",
    "hierarchical_histogram",
    "histogram",
    "histogram_2d",
    "is_text",
    "large_groups",
    "linear_regression",
    "lookup_table",
    "maximum",
    "mean",
    "median",
    "minimum",
    "prefix_tree",
    "quantile",
    "quantile_by_bisection",
    "quantile_online",
    "to_bytes",
    "top_k",
    "total",
    "trie_hh",
    "variance",
]
