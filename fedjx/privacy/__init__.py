"""Differential privacy: means with noise that know what they cost, accounts tied to samplers, and budgets that stop."""

from fedjx.privacy.account import Account, account, together, tree_sensitivity_squared
from fedjx.privacy.audit import Audit, audit, coins
from fedjx.privacy.budget import Budget, BudgetSpent, Paid, budget, within
from fedjx.privacy.calibration import Calibrated, calibrate, noise_within
from fedjx.privacy.canaries import canary_score, with_canaries
from fedjx.privacy.distributed import distributed_dp_mean
from fedjx.privacy.dp_mean import AdaptiveClip, dp_mean, dp_mean_adaptive, values_multiplier
from fedjx.privacy.events import Event, Independent, Laplacian, Local, Matrix, Shared, Stated, Tree
from fedjx.privacy.integer_noise import discrete_gaussian, skellam
from fedjx.privacy.local import (
    Randomizer,
    gaussian_response,
    laplace_response,
    local_mean,
    number_response,
    piecewise_response,
    sampled_response,
    two_point_response,
)
from fedjx.privacy.local_frequency import (
    category_response,
    frequency_response,
    hadamard_response,
    hash_response,
    unary_response,
)
from fedjx.privacy.loss import shuffled_epsilon
from fedjx.privacy.noise import Noise, Strategy, independent, laplace, matrix, sensitivity, tree
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
    "Laplacian",
    "Local",
    "Matrix",
    "Noise",
    "Paid",
    "Query",
    "Randomizer",
    "Shared",
    "Stated",
    "Strategy",
    "Tree",
    "account",
    "audit",
    "banded_strategy",
    "budget",
    "buffered_strategy",
    "calibrate",
    "canary_score",
    "category_response",
    "coins",
    "discrete_gaussian",
    "distributed_dp_mean",
    "dp_mean",
    "dp_mean_adaptive",
    "frequency_response",
    "gaussian_response",
    "hadamard_response",
    "hash_response",
    "independent",
    "laplace",
    "laplace_response",
    "local_mean",
    "matrix",
    "noise_within",
    "number_response",
    "piecewise_response",
    "private_sum",
    "sampled_response",
    "sensitivity",
    "shuffled_epsilon",
    "skellam",
    "together",
    "tree",
    "tree_sensitivity_squared",
    "two_point_response",
    "unary_response",
    "values_multiplier",
    "with_canaries",
    "within",
]
