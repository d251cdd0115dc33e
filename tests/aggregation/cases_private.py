"""Private means under the laws."""

from __future__ import annotations

import numpy as np

from fedjx.aggregation.clipping import clip_by_value
from fedjx.aggregation.compress import compress
from fedjx.aggregation.quantize import uniform_quantizer
from fedjx.privacy import (
    Strategy,
    dp_mean,
    dp_mean_adaptive,
    gaussian_response,
    laplace,
    local_mean,
    matrix,
    tree,
    with_canaries,
)
from tests.aggregation.case import Case

SOME = {"clip": 2.0, "noise_multiplier": 0.3, "expected_clients": 6}

CASES = {
    "dp_mean": Case(dp_mean(**SOME)),
    "dp_mean_without_noise": Case(dp_mean(clip=100.0, noise_multiplier=0, expected_clients=7)),
    "dp_mean_by_weight_for_more": Case(dp_mean(max_weight=3.0, noise_clients=60, **SOME)),
    "dp_mean_adaptive": Case(dp_mean_adaptive(noise_multiplier=0.3, expected_clients=6, initial_clip=2.0)),
    "laplace": Case(dp_mean(noise=laplace(), **SOME)),
    "local": Case(local_mean(gaussian_response(clip=2.0, noise_multiplier=0.3))),
    "tree": Case(dp_mean(noise=tree(2, efficient=False), **SOME)),
    "efficient_tree": Case(dp_mean(noise=tree(5), **SOME)),
    "bands": Case(dp_mean(noise=matrix(Strategy((1.0, 0.5, 0.375)), 8, min_separation=4), **SOME)),
    "buffers": Case(dp_mean(noise=matrix(Strategy((1.0,), (0.3, 0.1), (0.9, 0.5)), 8, min_separation=2), **SOME)),
    "canaries": Case(
        with_canaries([1, 9, 50], np.array([True, False, True]), norm=1.5, expected_clients=6, inner=dp_mean(**SOME))
    ),
    "clipped_before": Case(clip_by_value(max_value=0.5, inner=dp_mean(**SOME))),
    "compressed_before": Case(compress(uniform_quantizer(8), inner=dp_mean(**SOME), where=lambda leaf: True)),
}
