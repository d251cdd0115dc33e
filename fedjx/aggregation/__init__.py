"""Aggregators: from the clients' values to the server's."""

from fedjx.aggregation.mean import by_examples, mean, uniform

__all__ = ["by_examples", "mean", "uniform"]
