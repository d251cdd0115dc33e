"""An aggregator under the laws."""

from typing import NamedTuple

from fedjx.core.process import Aggregator


class Case(NamedTuple):
    """An aggregator, how closely its results must agree, and whether it collects its members."""

    aggregator: Aggregator
    rtol: float = 1e-5
    materialises: bool = False
