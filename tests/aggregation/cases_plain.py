"""Means, sums, clipping and zeroing under the laws."""

from __future__ import annotations

import numpy as np

from fedjx.aggregation.clipping import clip_adaptively, clip_by_norm, clip_by_value
from fedjx.aggregation.mean import mean
from fedjx.aggregation.total import total
from fedjx.aggregation.zeroing import zero_above, zero_outliers, zeroed_and_clipped_mean
from tests.aggregation.case import Case

CASES = {
    "mean": Case(mean()),
    "total": Case(total()),
    "clip_by_norm": Case(clip_by_norm(max_norm=1.0, inner=mean())),
    "clip_by_value": Case(clip_by_value(max_value=0.5, inner=total())),
    "clip_adaptively": Case(clip_adaptively(inner=mean(), initial=2.0)),
    "zero_above": Case(zero_above(threshold=2.0, inner=clip_by_norm(max_norm=1.0, order=1))),
    "zero_outliers": Case(
        zero_outliers(initial=1.0, quantile=0.5, learning_rate=1.0, multiplier=1.5, increment=0.1, order=2)
    ),
    "zeroed_and_clipped_mean": Case(zeroed_and_clipped_mean()),
    "clip_twice": Case(clip_by_norm(max_norm=3.0, inner=clip_by_norm(max_norm=1.0, order=np.inf))),
}
