"""Models: pure functions of parameters and one batch, and adapters from Flax."""

from fedjx.models.factorization import matrix_factorization
from fedjx.models.flax_models import from_flax
from fedjx.models.model import (
    LossSums,
    LossWithStats,
    Model,
    Ratio,
    Variables,
    batch_loss,
    finalize_metrics,
    mean_loss,
    sum_metrics,
    with_batch_stats,
)
from fedjx.models.networks import cnn, linear, mlp

__all__ = [
    "LossSums",
    "LossWithStats",
    "Model",
    "Ratio",
    "Variables",
    "batch_loss",
    "cnn",
    "finalize_metrics",
    "from_flax",
    "linear",
    "matrix_factorization",
    "mean_loss",
    "mlp",
    "sum_metrics",
    "with_batch_stats",
]
