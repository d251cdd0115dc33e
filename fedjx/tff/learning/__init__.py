"""``tff.learning``: models, and processes that train, evaluate and personalise them."""

from fedjx.models.model import Model
from fedjx.tff.learning import framework, metrics
from fedjx.tff.learning.models import from_keras_model
from fedjx.tff.learning.personalization import build_personalization_eval, build_personalization_eval_computation
from fedjx.tff.learning.process import (
    build_federated_averaging_process,
    build_federated_evaluation,
    build_unweighted_fed_avg,
    build_weighted_fed_avg,
    dp_aggregator,
)

__all__ = [
    "Model",
    "build_federated_averaging_process",
    "build_federated_evaluation",
    "build_personalization_eval",
    "build_personalization_eval_computation",
    "build_unweighted_fed_avg",
    "build_weighted_fed_avg",
    "dp_aggregator",
    "framework",
    "from_keras_model",
    "metrics",
]
