"""Models: pure functions of parameters and one batch, adapters from Flax, losses and metrics."""

from fedjx.models import losses, metrics, published
from fedjx.models.factorization import matrix_factorization
from fedjx.models.flax_models import from_flax
from fedjx.models.inputs import Feature
from fedjx.models.losses import Loss
from fedjx.models.mobilenet import mobilenet
from fedjx.models.model import (
    LossSums,
    LossWithStats,
    Model,
    Ratio,
    Sums,
    Variables,
    batch_loss,
    finalize_metrics,
    map_loss,
    mean_loss,
    sum_metrics,
    with_batch_stats,
)
from fedjx.models.networks import autoencoder, cnn, linear, lstm, mlp
from fedjx.models.residual import resnet
from fedjx.models.transformer import transformer

__all__ = [
    "Feature",
    "Loss",
    "LossSums",
    "LossWithStats",
    "Model",
    "Ratio",
    "Sums",
    "Variables",
    "autoencoder",
    "batch_loss",
    "cnn",
    "finalize_metrics",
    "from_flax",
    "linear",
    "losses",
    "lstm",
    "map_loss",
    "matrix_factorization",
    "mean_loss",
    "metrics",
    "mlp",
    "mobilenet",
    "published",
    "resnet",
    "sum_metrics",
    "transformer",
    "with_batch_stats",
]
