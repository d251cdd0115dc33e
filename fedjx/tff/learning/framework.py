"""``tff.learning.framework``: processes of encoders, which are chosen variable by variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import jax

from fedjx.aggregation.broadcast import Broadcaster, compressed_broadcast
from fedjx.aggregation.compress import Compressor, Leaf, compress
from fedjx.core.execution.process import Aggregator
from fedjx.tff.learning.process import ModelFn
from fedjx.tff.tensor_encoding.core import GatherEncoder, SimpleEncoder
from fedjx.tff.tensor_encoding.encoders import identity


class TensorShape(tuple[int, ...]):
    """The shape of a variable, as TensorFlow's tells its size.

    >>> TensorShape((5, 5, 32, 64)).num_elements()
    51200
    """

    def num_elements(self) -> int:
        """Returns the product of the dimensions."""
        return Leaf("", self, None).size


class Encoding(TypedDict):
    """What `compress` and `compressed_broadcast` take."""

    compressor: Compressor
    where: Callable[[Leaf], bool]


def build_encoded_broadcast_process_from_model(
    model_fn: ModelFn, encoder_fn: Callable[[Leaf], SimpleEncoder]
) -> Broadcaster:
    """Builds a broadcaster: `fedjx.aggregation.compressed_broadcast` of the variables that have an encoder.

    Args:
      model_fn: Makes the model.
      encoder_fn: From a variable, with ``name``, ``shape`` and ``dtype``, to its encoder, by
        `fedjx.tff.tensor_encoding.encoders.as_simple_encoder`.

    Raises:
      ValueError: If there are several encoders besides the identity.
    """
    return compressed_broadcast(**_encoding(model_fn, encoder_fn))


def build_encoded_mean_process_from_model(model_fn: ModelFn, encoder_fn: Callable[[Leaf], GatherEncoder]) -> Aggregator:
    """Builds a weighted mean: `fedjx.aggregation.compress` of the variables that have an encoder.

    Args:
      model_fn: Makes the model.
      encoder_fn: From a variable, with ``name``, ``shape`` and ``dtype``, to its encoder, by
        `fedjx.tff.tensor_encoding.encoders.as_gather_encoder`.

    Raises:
      ValueError: If there are several encoders besides the identity.
    """
    return compress(**_encoding(model_fn, encoder_fn))


build_encoded_broadcast_from_model = build_encoded_broadcast_process_from_model
build_encoded_mean_from_model = build_encoded_mean_process_from_model


def _encoding(model_fn: ModelFn, encoder_fn: Callable[[Leaf], SimpleEncoder | GatherEncoder]) -> Encoding:
    params = jax.eval_shape(model_fn().init, jax.random.key(0))
    chosen: dict[str, Compressor] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        chosen[name] = encoder_fn(Leaf(name, TensorShape(x.shape), x.dtype)).encoder
    used = {encoder for encoder in chosen.values() if encoder is not identity()}
    if len(used) > 1:
        raise ValueError(
            f"one encoder serves all variables that are encoded; got {len(used)}. Make it once, outside of encoder_fn."
        )
    compressor = used.pop() if used else identity()
    return Encoding(compressor=compressor, where=lambda leaf: chosen[leaf.name] is not identity())
