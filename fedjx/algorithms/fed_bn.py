"""FedBN: the clients share the model but for its batch normalisation, which each keeps for itself.

Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization" (arXiv 2102.07623,
algorithm 1). Where only the statistics are local, and scale and bias are shared, it is SiloBN (Andreux et al., arXiv
2008.07424).
"""

from __future__ import annotations

from typing import Literal, Unpack

from fedjx.algorithms.fed_per import fed_per
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.names import PyTree
from fedjx.models.model import Model
from fedjx.training.batch_stats import in_batch_norm, is_batch_stat
from fedjx.training.method import ServerState
from fedjx.training.round import TrainingArguments


def fed_bn(
    model: Model, *, local: Literal["layers", "statistics"] = "layers", **others: Unpack[TrainingArguments]
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds FedBN: `fed_per`, whose local part are the layers that have batch statistics.

    Args:
      model: One with batch statistics.
      local: Which part the clients keep: the layers with their scale and bias, or the ``"statistics"`` alone.
      **others: As for `fed_per`.

    Returns:
      What `fed_per` does; a client's own model is ``combine(state.params, client state)``.

    Raises:
      ValueError: If the model has no batch statistics.
    """
    in_layer = in_batch_norm(model)
    return fed_per(model, is_local=in_layer if local == "layers" else is_batch_stat, **others)
