"""Differential privacy: means with noise that know what they cost, accounts tied to samplers, and budgets that stop."""

from fedjx.privacy.account import Account, account, tree_sensitivity_squared
from fedjx.privacy.audit import Audit, audit, coins
from fedjx.privacy.budget import Budget, BudgetSpent, budget, within
from fedjx.privacy.calibration import Calibrated, calibrate
from fedjx.privacy.canaries import canary_score, with_canaries
from fedjx.privacy.dp_mean import AdaptiveClip, dp_mean, dp_mean_adaptive, values_multiplier
from fedjx.privacy.events import Event, Independent, Matrix, Tree
from fedjx.privacy.noise import Noise, Strategy, independent, matrix, sensitivity, tree
from fedjx.privacy.query import Query, private_sum
from fedjx.privacy.strategies import banded_strategy, buffered_strategy

__all__ = [
    "Account",
    "AdaptiveClip",
    "Audit",
    "Budget",
    "BudgetSpent",
    "Calibrated",
    "Event",
    "Independent",
    "Matrix",
    "Noise",
    "Query",
    "Strategy",
    "Tree",
    "account",
    "audit",
    "banded_strategy",
    "budget",
    "buffered_strategy",
    "calibrate",
    "canary_score",
    "coins",
    "dp_mean",
    "dp_mean_adaptive",
    "independent",
    "matrix",
    "private_sum",
    "sensitivity",
    "tree",
    "tree_sensitivity_squared",
    "values_multiplier",
    "with_canaries",
    "within",
]
