"""Private means whose noise the clients make, under the laws."""

from __future__ import annotations

from fedjx.privacy import distributed_dp_mean
from tests.aggregation.case import Case

SOME = {"clip": 2.0, "expected_clients": 7, "num_elements": 32, "min_clients": 5, "max_clients": 8}

CASES = {"skellam": Case(distributed_dp_mean(noise_multiplier=0.3, **SOME), max_elements=32)}
