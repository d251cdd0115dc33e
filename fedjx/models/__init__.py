"""Models: pure functions of parameters and one batch, and adapters from Flax."""

from fedjx.models.flax_models import from_flax
from fedjx.models.model import Model, Ratio, finalize_metrics, mean_loss, sum_metrics
from fedjx.models.networks import cnn, linear, mlp

__all__ = ["Model", "Ratio", "cnn", "finalize_metrics", "from_flax", "linear", "mean_loss", "mlp", "sum_metrics"]
