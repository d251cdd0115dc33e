"""Compressing aggregators under the laws."""

from __future__ import annotations

from fedjx.aggregation.compress import compress
from fedjx.aggregation.eden import drive, eden, lloyd_quantizer
from fedjx.aggregation.entropy import elias_gamma_bits
from fedjx.aggregation.power_sgd import power_sgd
from fedjx.aggregation.quantize import qsgd, quantize, scaled_sign, terngrad
from fedjx.aggregation.rotate import fourier, rotated
from fedjx.aggregation.sparsify import random_k, top_k
from tests.aggregation.case import Case


def always(_):
    return True


CASES: dict[str, Case] = {
    "quantize": Case(quantize(8, where=always, measure=elias_gamma_bits)),
    "terngrad": Case(compress(terngrad(), where=always)),
    "scaled_sign": Case(compress(scaled_sign(), where=always)),
    "qsgd": Case(compress(qsgd(4), where=always)),
    "eden": Case(compress(eden(2), where=always)),
    "drive": Case(compress(drive(), where=always)),
    "fourier": Case(compress(rotated(top_k(fraction=0.5), fourier()), where=always)),
    "lloyd": Case(compress(lloyd_quantizer(2), where=always)),
    "random_k": Case(compress(random_k(fraction=0.5), where=always)),
    "power_sgd": Case(power_sgd(1, where=always), rtol=1e-4),
}
