"""Aggregators: from the clients' values to the server's. Attacks to test them with are in `attacks`."""

from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.clipping import clip_adaptively, clip_by_norm, clip_by_value
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.mean import by_examples, clip_weights, mean, uniform
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.aggregation.norms import follow_quantile, joint_norm
from fedjx.aggregation.secure import secure_mean, secure_sum, secure_total
from fedjx.aggregation.secure_protocol import protocol_cost, run_secure_sum
from fedjx.aggregation.total import total
from fedjx.aggregation.zeroing import zero_above, zero_outliers, zeroed_and_clipped_mean

__all__ = [
    "bulyan",
    "by_examples",
    "centred_clipping",
    "clip_adaptively",
    "clip_by_norm",
    "clip_by_value",
    "clip_weights",
    "coordinate_median",
    "fl_trust",
    "follow_quantile",
    "geometric_median",
    "joint_norm",
    "krum",
    "mean",
    "multi_krum",
    "norm_bounding",
    "protocol_cost",
    "run_secure_sum",
    "secure_mean",
    "secure_sum",
    "secure_total",
    "total",
    "trimmed_mean",
    "uniform",
    "zero_above",
    "zero_outliers",
    "zeroed_and_clipped_mean",
]
