"""Aggregators: from the clients' values to the server's. Attacks to test them with are in `attacks`."""

from fedjx.aggregation.broadcast import Broadcaster, broadcast, compressed_broadcast
from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.clipping import clip_adaptively, clip_by_norm, clip_by_value
from fedjx.aggregation.compress import Compressor, compress, identity, is_large
from fedjx.aggregation.eden import drive, eden, lloyd_quantizer
from fedjx.aggregation.entropy import (
    ans_decode,
    ans_encode,
    elias_gamma_bits,
    elias_gamma_decode,
    elias_gamma_encode,
    entropy_bits,
)
from fedjx.aggregation.error_feedback import StatefulAggregator, ef21, error_feedback
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.mean import mean
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.aggregation.norms import follow_quantile, joint_norm
from fedjx.aggregation.per_cluster import Assigned, per_cluster
from fedjx.aggregation.power_sgd import power_sgd, power_sgd_with_memory
from fedjx.aggregation.quantize import qsgd, quantize, scaled_sign, terngrad, uniform_quantizer
from fedjx.aggregation.rotate import fourier, hadamard, rotated
from fedjx.aggregation.secure import secure_mean, secure_sum, secure_total
from fedjx.aggregation.secure_preset import secure_mean_of_estimated_bound, zeroed_and_clipped_secure_mean
from fedjx.aggregation.secure_protocol import protocol_cost, protocol_traffic, run_secure_sum
from fedjx.aggregation.sparsify import random_k, top_k
from fedjx.aggregation.total import total
from fedjx.aggregation.weights import by_examples, clip_weights, uniform
from fedjx.aggregation.zeroing import zero_above, zero_outliers, zeroed_and_clipped_mean

__all__ = [
    "Assigned",
    "Broadcaster",
    "Compressor",
    "StatefulAggregator",
    "ans_decode",
    "ans_encode",
    "broadcast",
    "bulyan",
    "by_examples",
    "centred_clipping",
    "clip_adaptively",
    "clip_by_norm",
    "clip_by_value",
    "clip_weights",
    "compress",
    "compressed_broadcast",
    "coordinate_median",
    "drive",
    "eden",
    "ef21",
    "elias_gamma_bits",
    "elias_gamma_decode",
    "elias_gamma_encode",
    "entropy_bits",
    "error_feedback",
    "fl_trust",
    "follow_quantile",
    "fourier",
    "geometric_median",
    "hadamard",
    "identity",
    "is_large",
    "joint_norm",
    "krum",
    "lloyd_quantizer",
    "mean",
    "multi_krum",
    "norm_bounding",
    "per_cluster",
    "power_sgd",
    "power_sgd_with_memory",
    "protocol_cost",
    "protocol_traffic",
    "qsgd",
    "quantize",
    "random_k",
    "rotated",
    "run_secure_sum",
    "scaled_sign",
    "secure_mean",
    "secure_mean_of_estimated_bound",
    "secure_sum",
    "secure_total",
    "terngrad",
    "top_k",
    "total",
    "trimmed_mean",
    "uniform",
    "uniform_quantizer",
    "zero_above",
    "zero_outliers",
    "zeroed_and_clipped_mean",
    "zeroed_and_clipped_secure_mean",
]
