"""What methods are made of: local training, one round, and parts of models and data."""

from fedjx.training.batch_stats import in_batch_norm, is_batch_stat, trained_alone
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    Local,
    LocalAmount,
    LocalResult,
    as_batches,
    drop_non_finite,
    local_evaluate,
    local_train,
    local_training,
    local_update,
    report_update,
)
from fedjx.training.each_client import told_to
from fedjx.training.failures import Failures
from fedjx.training.gradients import gradient_update, local_gradient, shift
from fedjx.training.method import First, Held, Method, ServerState, averaging, scale_delta
from fedjx.training.parts import Parts, combine, partition, with_fixed
from fedjx.training.reports import client_reports, sum_and_report, with_update_norm
from fedjx.training.round import LocalArguments, RoundArguments, TrainingArguments, compose
from fedjx.training.splits import alternate_split, feature_split, no_split, random_split, split_where
from fedjx.training.stateful_rounds import StatefulRounds, stateful_rounds
from fedjx.training.surrogate import with_gradient

__all__ = [
    "ClientOptimizer",
    "ClientUpdate",
    "Failures",
    "First",
    "Held",
    "Local",
    "LocalAmount",
    "LocalArguments",
    "LocalResult",
    "Method",
    "Parts",
    "RoundArguments",
    "ServerState",
    "StatefulRounds",
    "TrainingArguments",
    "alternate_split",
    "as_batches",
    "averaging",
    "client_reports",
    "combine",
    "compose",
    "drop_non_finite",
    "feature_split",
    "gradient_update",
    "in_batch_norm",
    "is_batch_stat",
    "local_evaluate",
    "local_gradient",
    "local_train",
    "local_training",
    "local_update",
    "no_split",
    "partition",
    "random_split",
    "report_update",
    "scale_delta",
    "shift",
    "split_where",
    "stateful_rounds",
    "sum_and_report",
    "told_to",
    "trained_alone",
    "with_fixed",
    "with_gradient",
    "with_update_norm",
]
