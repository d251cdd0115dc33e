"""Small classifiers of images or feature vectors."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.flax_models import from_flax
from fedjx.models.model import Batch, Model

Layer = Callable[[jax.Array], jax.Array]


def linear(num_classes: int, *, input_shape: Sequence[int], scale: float = 1.0, compute_dtype: DType = None) -> Model:
    """Assembles a multinomial logistic regression.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: Shape of one example; ``batch["x"]`` is ``[B, *input_shape]``.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      compute_dtype: As in `from_flax`.

    >>> model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'head': {'bias': (10,), 'kernel': (64, 10)}}
    """
    return mlp(num_classes, input_shape=input_shape, hidden=(), scale=scale, compute_dtype=compute_dtype)


def mlp(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    hidden: Sequence[int] = (64,),
    dropout: float = 0.0,
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a fully connected network with ReLU.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: Shape of one example; ``batch["x"]`` is ``[B, *input_shape]``.
      hidden: Widths of the hidden layers.
      dropout: Probability with which a hidden unit is dropped in training.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      compute_dtype: As in `from_flax`.

    >>> params = jax.eval_shape(mlp(10, input_shape=(8, 8, 1), scale=1 / 16).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    4810
    """
    widths = (math.prod(input_shape), *hidden)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = [_flatten]
        for before, after in itertools.pairwise(widths):
            layers += [nnx.Linear(before, after, rngs=rngs), nnx.relu, nnx.Dropout(dropout, rngs=rngs)]
        return _Classifier(layers, widths[-1], num_classes, rngs=rngs)

    return from_flax(network, inputs=functools.partial(_scaled, scale=scale), compute_dtype=compute_dtype)


def cnn(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    channels: Sequence[int] = (16, 32),
    dropout: float = 0.0,
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a convolutional network: per layer 3 x 3 kernels, ReLU and 2 x 2 max-pooling.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: ``(height, width, channels)`` of one image; ``batch["x"]`` is ``[B, *input_shape]``.
      channels: Output channels of the convolutions.
      dropout: Probability with which a feature of the last layer is dropped in training.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If the images are too small to be halved once per layer.

    >>> params = jax.eval_shape(cnn(10, input_shape=(8, 8, 1), scale=1 / 16).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    6090
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 2 ** len(channels):
        raise ValueError(
            "images must be (height, width, channels) with sides of at least 2 ** len(channels); got "
            f"{input_shape=} and {channels=}. Use fewer layers, or add the channels axis."
        )
    height, width, depth = input_shape
    num_features = (height >> len(channels)) * (width >> len(channels)) * (depth, *channels)[-1]

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = []
        for before, after in itertools.pairwise((depth, *channels)):
            layers += [nnx.Conv(before, after, (3, 3), rngs=rngs), nnx.relu, _max_pool]
        layers += [_flatten, nnx.Dropout(dropout, rngs=rngs)]
        return _Classifier(layers, num_features, num_classes, rngs=rngs)

    return from_flax(network, inputs=functools.partial(_scaled, scale=scale), compute_dtype=compute_dtype)


class _Classifier(nnx.Module):
    """Layers that end in features ``[B, F]``, and a linear head on them.

    The head has a name of its own so that it can be told apart in the parameters, for
    instance to personalise it.
    """

    def __init__(self, layers: Sequence[Layer], num_features: int, num_classes: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(num_features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _scaled(batch: Batch, scale: float) -> jax.Array:
    return jnp.asarray(batch["x"], jnp.float32) * scale


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[B, H, W, C]``, dropping an odd last row or column.

    A reshape, because the gradient of `lax.reduce_window` is slow on CPUs.
    """
    batch, height, width, depth = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))
