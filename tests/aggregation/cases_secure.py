"""Aggregators that sum securely, under the laws."""

from fedjx.aggregation.secure import secure_mean, secure_sum
from fedjx.aggregation.secure_preset import secure_mean_of_estimated_bound
from tests.aggregation.case import Case

CASES = {
    "secure_sum": Case(secure_sum(bound=8.0, max_clients=16, num_bits=24)),
    "secure_mean": Case(secure_mean(bound=8.0, max_weight=16.0, max_clients=16)),
    "secure_mean_stochastic": Case(
        secure_mean(bound=8.0, max_weight=16.0, max_clients=16, num_bits=20, stochastic=True)
    ),
    "secure_mean_of_estimated_bound": Case(
        secure_mean_of_estimated_bound(max_clients=16, max_weight=16.0, initial=1.0), rtol=1e-4
    ),
}
