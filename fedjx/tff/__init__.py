"""The names of TensorFlow Federated, for scripts that use them: a thin layer, everything in it is fedjx's own.

``from fedjx import tff`` runs a script's loop as it is, ``from fedjx.tff import tensor_encoding as te`` its encoders. A
model is made of a Flax module, optimizers come from optax, dtypes from NumPy or JAX, and federated data is what it
is there: a list of the clients' data sets, each an iterable of batches. These are used as they are given, so
shuffling, repeating and batching are the affair of the input pipeline.
"""

from fedjx.core.execution.computation import Computation
from fedjx.core.language.operators import (
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_eval,
    federated_max,
    federated_mean,
    federated_min,
    federated_reduce,
    federated_secure_sum,
    federated_select,
    federated_sum,
    federated_value,
    federated_zip,
)
from fedjx.core.language.placed import federated_map
from fedjx.core.language.sequence import sequence_map, sequence_reduce, sequence_sum
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType
from fedjx.tff import aggregators, framework, learning, simulation, templates, tensor_encoding
from fedjx.tff.computations import federated_computation, tf_computation
from fedjx.tff.simulation.data import Dataset, as_clients
from fedjx.tff.types import FunctionType, SequenceType, StructType, TensorType

__all__ = [
    "CLIENTS",
    "SERVER",
    "Computation",
    "Dataset",
    "FederatedType",
    "FunctionType",
    "SequenceType",
    "StructType",
    "TensorType",
    "aggregators",
    "as_clients",
    "federated_aggregate",
    "federated_broadcast",
    "federated_collect",
    "federated_computation",
    "federated_eval",
    "federated_map",
    "federated_max",
    "federated_mean",
    "federated_min",
    "federated_reduce",
    "federated_secure_sum",
    "federated_select",
    "federated_sum",
    "federated_value",
    "federated_zip",
    "framework",
    "learning",
    "sequence_map",
    "sequence_reduce",
    "sequence_sum",
    "simulation",
    "templates",
    "tensor_encoding",
    "tf_computation",
]
