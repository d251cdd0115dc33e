"""Small networks: of images, feature vectors and sequences of characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.layers import (
    GLOROT_UNIFORM,
    LECUN_NORMAL,
    Classifier,
    Layer,
    Metrics,
    Recurrent,
    flatten,
    max_pool,
    of_arrays,
    of_tokens,
    token_vectors,
)
from fedjx.models.losses import Loss, cross_entropy, squared_error
from fedjx.models.model import Model


def linear(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    metrics: Metrics = None,
    kernel_init: nnx.Initializer = LECUN_NORMAL,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a linear model: a multinomial logistic regression, or another one by its loss.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``. The number of outputs
        for another loss, as 1 for `squared_error`.
      input_shape: Shape of one example; ``batch["x"]`` is ``[B, *input_shape]``.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: One of `fedjx.models.losses`, which says what the labels are.
      metrics: As in `from_flax`.
      kernel_init: Initializer of the kernels, as ``nnx.initializers.glorot_uniform()``; biases begin at zero.
      compute_dtype: As in `from_flax`.

    >>> model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'head': {'bias': (10,), 'kernel': (64, 10)}}
    """
    return mlp(
        num_classes,
        input_shape=input_shape,
        hidden=(),
        scale=scale,
        loss=loss,
        metrics=metrics,
        kernel_init=kernel_init,
        compute_dtype=compute_dtype,
    )


def mlp(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    hidden: Sequence[int] = (64,),
    dropout: float = 0.0,
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    metrics: Metrics = None,
    kernel_init: nnx.Initializer = LECUN_NORMAL,
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
      metrics: As in `from_flax`.
      kernel_init: As in `linear`.
      compute_dtype: As in `from_flax`.

    >>> params = jax.eval_shape(mlp(10, input_shape=(8, 8, 1), scale=1 / 16).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    4810
    """
    widths = (math.prod(input_shape), *hidden)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = [flatten]
        for before, after in itertools.pairwise(widths):
            dense = nnx.Linear(before, after, kernel_init=kernel_init, rngs=rngs)
            layers += [dense, nnx.relu, nnx.Dropout(dropout, rngs=rngs)]
        return Classifier(layers, widths[-1], num_classes, head_init=kernel_init, rngs=rngs)

    return of_arrays(
        network, num_classes, input_shape, scale=scale, loss=loss, metrics=metrics, compute_dtype=compute_dtype
    )


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
    metrics: Metrics = None,
    kernel_init: nnx.Initializer = LECUN_NORMAL,
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
      metrics: As in `from_flax`.
      kernel_init: As in `linear`.
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
            conv = nnx.Conv(before, after, (kernel_size, kernel_size), kernel_init=kernel_init, rngs=rngs)
            layers += [conv, nnx.relu, max_pool]
        layers.append(flatten)
        for before, after in itertools.pairwise(widths):
            layers += [nnx.Linear(before, after, kernel_init=kernel_init, rngs=rngs), nnx.relu]
        layers.append(nnx.Dropout(dropout, rngs=rngs))
        return Classifier(layers, widths[-1], num_classes, head_init=kernel_init, rngs=rngs)

    return of_arrays(
        network, num_classes, input_shape, scale=scale, loss=loss, metrics=metrics, compute_dtype=compute_dtype
    )


def autoencoder(
    num_features: int,
    *,
    hidden: Sequence[int] = (1000, 500, 250, 30),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a network that gives back what it is given, through a narrow layer, with the squared error.

    Layers become narrower, and wider again in the reverse order. All have a sigmoid but the narrowest, which is linear.

    Args:
      num_features: Length F of an example; ``batch["x"]`` and ``batch["y"]``, numbers from 0 to 1 to be given back,
        are ``[B, F]``.
      hidden: Widths of the layers down to the narrowest.
      scale: Factor on ``batch["x"]`` after its cast to float32; not on ``batch["y"]``.
      compute_dtype: As in `from_flax`.

    Returns:
      A model with the metrics ``mean_squared_error`` and ``mean_absolute_error``, over examples and features.

    >>> params = jax.eval_shape(autoencoder(784).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    2837314
    """
    widths = (num_features, *hidden, *reversed(hidden[:-1]), num_features)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = []
        for depth, (before, after) in enumerate(itertools.pairwise(widths), 1):
            layers.append(nnx.Linear(before, after, kernel_init=GLOROT_UNIFORM, rngs=rngs))
            layers += [nnx.sigmoid] if depth != len(hidden) else []
        return nnx.Sequential(*layers)

    return of_arrays(
        network, num_features, (num_features,), scale=scale, loss=squared_error, compute_dtype=compute_dtype
    )


def lstm(
    num_tokens: int,
    *,
    embedding: int = 8,
    hidden: Sequence[int] = (256, 256),
    projection: int | None = None,
    ignored: int | None = None,
    metrics: Metrics = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a recurrent model of the next token, with the cross entropy and accuracy of all positions.

    With ``num_tokens=90`` it is the character model of Reddi et al., "Adaptive Federated Optimization" (arXiv
    2003.00295), after McMahan et al. (arXiv 1602.05629). It begins as in Keras: kernels Glorot uniform, of the states
    orthogonal; embeddings from -.05 to .05; the biases of the gates that forget 1, all others 0.

    Args:
      num_tokens: Number of tokens K; ``batch["x"]`` and ``batch["y"]``, the tokens that follow, are int ``[B, T]``
        in ``0 .. K - 1``.
      embedding: Length of a token's vector.
      hidden: Widths of the recurrent layers.
      projection: Width of a linear layer between the last recurrent one and the logits; none if not given.
      ignored: The token that stands for padding in ``batch["y"]``; it counts in no loss and no metric of those that
        fit the loss. Padding follows what it pads, so it has no influence on the outputs that count.
      metrics: As in `from_flax`.
      compute_dtype: As in `from_flax`.

    >>> params = jax.eval_shape(lstm(90).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    820522
    """

    def network(rngs: nnx.Rngs) -> nnx.Module:
        layers: list[Layer] = [token_vectors(num_tokens, embedding, compute_dtype, rngs=rngs)]
        layers += [Recurrent(*pair, rngs=rngs) for pair in itertools.pairwise((embedding, *hidden))]
        if projection is not None:
            layers.append(nnx.Linear(hidden[-1], projection, kernel_init=GLOROT_UNIFORM, rngs=rngs))
        return Classifier(layers, projection or hidden[-1], num_tokens, head_init=GLOROT_UNIFORM, rngs=rngs)

    return of_tokens(network, num_tokens, ignored=ignored, metrics=metrics, compute_dtype=compute_dtype)
