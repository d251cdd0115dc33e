"""The names of TensorFlow Model Optimization's ``tensor_encoding``, usually called ``te``."""

from fedjx.tff.tensor_encoding import core, encoders

__all__ = ["core", "encoders"]
