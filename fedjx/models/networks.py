"""Small networks: of images, feature vectors and sequences of characters."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.flax_models import from_flax
from fedjx.models.inputs import Feature
from fedjx.models.losses import Loss, cross_entropy, softmax_cross_entropy
from fedjx.models.model import Batch, Model

Layer = Callable[[jax.Array], jax.Array]


def linear(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a linear model: a multinomial logistic regression, or another one by its loss.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``. The number of outputs
        for another loss, as 1 for `squared_error`.
      input_shape: Shape of one example; ``batch["x"]`` is ``[B, *input_shape]``.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: One of `fedjx.models.losses`, which says what the labels are.
      compute_dtype: As in `from_flax`.

    >>> model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'head': {'bias': (10,), 'kernel': (64, 10)}}
    """
    return mlp(num_classes, input_shape=input_shape, hidden=(), scale=scale, loss=loss, compute_dtype=compute_dtype)


def mlp(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    hidden: Sequence[int] = (64,),
    dropout: float = 0.0,
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a fully connected network with ReLU.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: Shape of one example; ``batch["x"]`` is ``[B, *input_shape]``.
      hidden: Widths of the hidden layers.
      dropout: Probability with which a hidden unit is dropped in training.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: As in `linear`.
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

    return _of_arrays(network, num_classes, input_shape, scale, loss, compute_dtype)


def cnn(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    channels: Sequence[int] = (16, 32),
    kernel_size: int = 3,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a convolutional network: per layer square kernels, ReLU and 2 x 2 max-pooling; then dense layers.

    ``cnn(10, input_shape=(28, 28, 1), channels=(32, 64), kernel_size=5, hidden=(512,))`` is the network of McMahan et
    al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629).

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: ``(height, width, channels)`` of one image; ``batch["x"]`` is ``[B, *input_shape]``.
      channels: Output channels of the convolutions.
      kernel_size: Height and width of the kernels; the images are padded with zeros to keep their size.
      hidden: Widths of the dense layers with ReLU behind the convolutions.
      dropout: Probability with which a feature of the last layer is dropped in training.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: As in `linear`.
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
    widths = ((height >> len(channels)) * (width >> len(channels)) * (depth, *channels)[-1], *hidden)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = []
        for before, after in itertools.pairwise((depth, *channels)):
            layers += [nnx.Conv(before, after, (kernel_size, kernel_size), rngs=rngs), nnx.relu, _max_pool]
        layers.append(_flatten)
        for before, after in itertools.pairwise(widths):
            layers += [nnx.Linear(before, after, rngs=rngs), nnx.relu]
        return _Classifier([*layers, nnx.Dropout(dropout, rngs=rngs)], widths[-1], num_classes, rngs=rngs)

    return _of_arrays(network, num_classes, input_shape, scale, loss, compute_dtype)


def lstm(
    num_tokens: int, *, embedding: int = 8, hidden: Sequence[int] = (256, 256), ignored: int | None = None
) -> Model:
    """Assembles a recurrent model of the next token, with the cross entropy and accuracy of all positions.

    With ``num_tokens=90`` it is the character model of Reddi et al., "Adaptive Federated Optimization" (arXiv
    2003.00295), after McMahan et al. (arXiv 1602.05629).

    Args:
      num_tokens: Number of tokens K; ``batch["x"]`` and ``batch["y"]``, the tokens that follow, are int ``[B, T]``
        in ``0 .. K - 1``.
      embedding: Length of a token's vector.
      hidden: Widths of the recurrent layers.
      ignored: The token that stands for padding in ``batch["y"]``; it counts in no loss and no metric.

    >>> params = jax.eval_shape(lstm(90).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    820522
    """
    loss = softmax_cross_entropy(ignored=ignored)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        embed = nnx.Embed(num_tokens, embedding, rngs=rngs)
        pairs = itertools.pairwise((embedding, *hidden))
        return _Classifier(
            [embed, *(_Recurrent(*pair, rngs=rngs) for pair in pairs)], hidden[-1], num_tokens, rngs=rngs
        )

    spec = {
        "x": Feature((None,), np.integer, 0, num_tokens - 1, advice="Give the model more tokens."),
        "y": loss.labels((None, num_tokens)),
    }
    return from_flax(network, inputs=_tokens, loss=loss, input_spec=spec)


class _Recurrent(nnx.Module):
    """An LSTM that starts each sequence at zero, from ``[B, T, before]`` to ``[B, T, after]``."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(before, after, rngs=rngs), rngs=False)
        self.width = after

    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = jnp.zeros((x.shape[0], self.width), x.dtype)
        outputs: Any = self.rnn(x, initial_carry=(zeros, zeros))
        return outputs


def _of_arrays(
    network: Callable[[nnx.Rngs], nnx.Module],
    num_outputs: int,
    input_shape: Sequence[int],
    scale: float,
    loss: Loss,
    compute_dtype: DType,
) -> Model:
    spec = {"x": Feature(tuple(input_shape)), "y": loss.labels((num_outputs,))}
    inputs = functools.partial(_scaled, scale=scale)
    return from_flax(network, inputs=inputs, loss=loss, input_spec=spec, compute_dtype=compute_dtype)


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


def _tokens(batch: Batch) -> jax.Array:
    return jnp.asarray(batch["x"], jnp.int32)


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
