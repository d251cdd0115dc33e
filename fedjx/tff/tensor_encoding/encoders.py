"""``te.encoders``. An encoder made twice is one, so that variables can be told to share it."""

from __future__ import annotations

import functools

from fedjx.aggregation.compress import Compressor
from fedjx.aggregation.compress import identity as as_it_is
from fedjx.aggregation.quantize import uniform_quantizer
from fedjx.core.language.names import PyTree
from fedjx.tff.tensor_encoding.core import GatherEncoder, SimpleEncoder


@functools.cache
def identity() -> Compressor:
    """Sends every element as it is."""
    return as_it_is()


@functools.cache
def uniform_quantization(bits: int) -> Compressor:
    """Rounds at random to ``2**bits`` levels, in 28 bits of each word: `fedjx.aggregation.uniform_quantizer`."""
    return uniform_quantizer(bits, word_bits=28)


def as_simple_encoder(encoder: Compressor, tensorspec: PyTree) -> SimpleEncoder:
    """Makes an encoder for what is sent to the clients."""
    return SimpleEncoder(encoder, tensorspec)


def as_gather_encoder(encoder: Compressor, tensorspec: PyTree) -> GatherEncoder:
    """Makes an encoder for what is sent to the server."""
    return GatherEncoder(encoder, tensorspec)
