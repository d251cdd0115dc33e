"""Federated analytics: questions without a model, over any number of clients, answered without seeing anyone."""

from fedjx.analytics.answer import Answer
from fedjx.analytics.ask import AskArguments, TooFewAnswers, ask
from fedjx.analytics.count import count
from fedjx.analytics.dialogue import Dialogue
from fedjx.analytics.hierarchy import Estimate, Hierarchy, hierarchical_histogram
from fedjx.analytics.histogram import histogram, histogram_2d
from fedjx.analytics.ledger import Ledger, Payment
from fedjx.analytics.mean import mean
from fedjx.analytics.quantile import median, quantile, quantile_by_bisection, quantile_online
from fedjx.analytics.question import Entry, Question, Sensitivity, Total
from fedjx.analytics.records import Records
from fedjx.analytics.total import total
from fedjx.analytics.trust import SEES, TRUSTS, Trust

__all__ = [
    "SEES",
    "TRUSTS",
    "Answer",
    "AskArguments",
    "Dialogue",
    "Entry",
    "Estimate",
    "Hierarchy",
    "Ledger",
    "Payment",
    "Question",
    "Records",
    "Sensitivity",
    "TooFewAnswers",
    "Total",
    "Trust",
    "ask",
    "count",
    "hierarchical_histogram",
    "histogram",
    "histogram_2d",
    "mean",
    "median",
    "quantile",
    "quantile_by_bisection",
    "quantile_online",
    "total",
]
