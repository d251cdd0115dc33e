"""fedjx: federated learning, simulated in JAX.

Write pure functions of one client, put them together with federated operators on values placed
at `SERVER` and `CLIENTS`, and run the computation over any number of simulated clients.
"""

from fedjx import aggregation, algorithms, analytics, data, models, privacy, training
from fedjx.algorithms import fed_avg, federated_evaluation
from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.distributed import initialize_distributed
from fedjx.core.execution.export import LoadedComputation, export, load
from fedjx.core.execution.process import Aggregator, Algorithm, StatefulAlgorithm
from fedjx.core.language.debugging import NonFiniteError
from fedjx.core.language.operators import (
    federated_aggregate,
    federated_bin_sum,
    federated_broadcast,
    federated_client_ids,
    federated_collect,
    federated_decode,
    federated_eval,
    federated_keys,
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
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.secure import check_secure
from fedjx.core.language.sequence import sequence_map, sequence_reduce, sequence_sum
from fedjx.core.language.traffic import Traffic, traffic
from fedjx.core.language.types import CLIENTS, SERVER, ArrayType, FederatedType, FunctionType, parse_type
from fedjx.core.language.values import Batches, Clients, Sequence

__version__ = "0.1.0"

__all__ = [
    "CLIENTS",
    "SERVER",
    "Aggregator",
    "Algorithm",
    "ArrayType",
    "Batches",
    "Clients",
    "Computation",
    "FederatedType",
    "FederatedValue",
    "FunctionType",
    "LoadedComputation",
    "NonFiniteError",
    "Sequence",
    "StatefulAlgorithm",
    "Traffic",
    "aggregation",
    "algorithms",
    "analytics",
    "check_secure",
    "data",
    "export",
    "fed_avg",
    "federated_aggregate",
    "federated_bin_sum",
    "federated_broadcast",
    "federated_client_ids",
    "federated_collect",
    "federated_computation",
    "federated_decode",
    "federated_eval",
    "federated_evaluation",
    "federated_keys",
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
    "initialize_distributed",
    "load",
    "models",
    "parse_type",
    "privacy",
    "sequence_map",
    "sequence_reduce",
    "sequence_sum",
    "traffic",
    "training",
]
