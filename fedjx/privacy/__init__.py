"""Differential privacy: means with noise that know what they cost, accounts tied to samplers, and budgets that stop."""

from fedjx.privacy.account import Account, account, tree_sensitivity_squared
from fedjx.privacy.budget import Budget, BudgetSpent, budget, within
from fedjx.privacy.calibration import Calibrated, calibrate
from fedjx.privacy.distributed import distributed_dp_mean
from fedjx.privacy.dp_mean import AdaptiveClip, dp_mean, dp_mean_adaptive, values_multiplier
from fedjx.privacy.events import Event, Independent, Matrix, Shared, Tree
from fedjx.privacy.integer_noise import discrete_gaussian, skellam
from fedjx.privacy.noise import Noise, Strategy, independent, matrix, sensitivity, tree
from fedjx.privacy.query import Query, private_sum
from fedjx.privacy.strategies import banded_strategy, buffered_strategy

__all__ = [
    "Account",
    "AdaptiveClip",
    "Budget",
    "BudgetSpent",
    "Calibrated",
    "Event",
    "Independent",
    "Matrix",
    "Noise",
    "Query",
    "Shared",
    "Strategy",
    "Tree",
    "account",
    "banded_strategy",
    "budget",
    "buffered_strategy",
    "calibrate",
    "discrete_gaussian",
    "distributed_dp_mean",
    "dp_mean",
    "dp_mean_adaptive",
    "independent",
    "matrix",
    "private_sum",
    "sensitivity",
    "skellam",
    "tree",
    "tree_sensitivity_squared",
    "values_multiplier",
    "within",
]
