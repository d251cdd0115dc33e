"""Federated algorithms, one method a file."""

from fedjx.algorithms.client import ClientUpdate, LocalResult, checked, local_evaluate, local_train
from fedjx.algorithms.evaluation import federated_evaluation
from fedjx.algorithms.fed_avg import FedAvgState, fed_avg

__all__ = [
    "ClientUpdate",
    "FedAvgState",
    "LocalResult",
    "checked",
    "fed_avg",
    "federated_evaluation",
    "local_evaluate",
    "local_train",
]
