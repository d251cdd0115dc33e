"""What the networks of this folder are made of: layers, and the models that networks of arrays and of tokens become."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.flax_models import from_flax
from fedjx.models.inputs import Feature
from fedjx.models.losses import Loss, OutputMetric, softmax_cross_entropy
from fedjx.models.model import Batch, Model

Layer = Callable[[jax.Array], jax.Array]
Metrics = Mapping[str, OutputMetric] | None  # as in `from_flax`

# What Flax gives a kernel, and what Keras does; biases are zero in both.
LECUN_NORMAL = nnx.initializers.lecun_normal()
GLOROT_UNIFORM = nnx.initializers.glorot_uniform()


def uniform(bound: float) -> nnx.Initializer:
    """Makes an initializer that draws evenly from ``-bound`` to ``bound``."""

    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **sharding: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, **sharding)

    return draw


class Classifier(nnx.Module):
    """Layers that end in features ``[B, F]``, and a linear head on them.

    The head has a name of its own so that it can be told apart in the parameters, for
    instance to personalise it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        num_features: int,
        num_classes: int,
        *,
        head_init: nnx.Initializer = LECUN_NORMAL,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(num_features, num_classes, kernel_init=head_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes logits ``[B, num_classes]``."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Residual(nnx.Module):
    """Adds what some layers make of an input, and the input, or what other layers make of that."""

    def __init__(self, branch: Sequence[Layer], around: Sequence[Layer] = ()):
        self.branch = nnx.Sequential(*branch)
        self.around = nnx.Sequential(*around)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the sum, ``[B, ...]``."""
        return self.around(x) + self.branch(x)


class Recurrent(nnx.Module):
    """An LSTM that starts each sequence at zero, from ``[B, T, before]`` to ``[B, T, after]``.

    It begins as Keras's does: kernels Glorot uniform, of the state orthogonal, and gates that do not forget.
    """

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        cell = nnx.OptimizedLSTMCell(before, after, kernel_init=GLOROT_UNIFORM, bias_init=_remembering, rngs=rngs)
        self.rnn = nnx.RNN(cell, rngs=False)
        self.width = after

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the state after each position."""
        zeros = jnp.zeros((x.shape[0], self.width), x.dtype)
        outputs: Any = self.rnn(x, initial_carry=(zeros, zeros))
        return outputs


def of_arrays(
    network: Callable[[nnx.Rngs], nnx.Module],
    num_outputs: int,
    input_shape: Sequence[int],
    *,
    scale: float,
    loss: Loss,
    metrics: Metrics = None,
    compute_dtype: DType,
) -> Model:
    """Makes the model of a network from ``scale * x``, float32 ``[B, *input_shape]``, to ``[B, num_outputs]``."""
    spec = {"x": Feature(tuple(input_shape)), "y": loss.labels((num_outputs,))}
    inputs = functools.partial(_scaled, scale=scale)
    return from_flax(network, inputs=inputs, loss=loss, metrics=metrics, input_spec=spec, compute_dtype=compute_dtype)


def of_tokens(
    network: Callable[[nnx.Rngs], nnx.Module],
    num_tokens: int,
    *,
    ignored: int | None,
    metrics: Metrics,
    compute_dtype: DType,
) -> Model:
    """Makes the model of a network from tokens ``[B, T]`` to the logits ``[B, T, K]`` of those that follow."""
    loss = softmax_cross_entropy(ignored=ignored)
    spec = {
        "x": Feature((None,), np.integer, 0, num_tokens - 1, advice="Give the model more tokens."),
        "y": loss.labels((None, num_tokens)),
    }
    return from_flax(network, inputs=_tokens, loss=loss, metrics=metrics, input_spec=spec, compute_dtype=compute_dtype)


def token_vectors(num_tokens: int, width: int, compute_dtype: DType, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Makes a vector for each token, from -.05 to .05; Flax's would be widened again unless it is told the dtype."""
    return nnx.Embed(num_tokens, width, embedding_init=uniform(0.05), dtype=compute_dtype, rngs=rngs)


def group_norm(num_features: int, *, num_groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Makes a group normalisation that adds .001 to variances, as Keras does."""
    return nnx.GroupNorm(num_features, num_groups=num_groups, epsilon=1e-3, rngs=rngs)


def flatten(x: jax.Array) -> jax.Array:
    """Makes ``[B, F]`` of ``[B, ...]``."""
    return x.reshape(x.shape[0], -1)


def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[B, H, W, C]``, dropping an odd last row or column.

    A reshape, because the gradient of `lax.reduce_window` is slow on CPUs.
    """
    batch, height, width, depth = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))


def mean_pool(x: jax.Array) -> jax.Array:
    """Averages ``[B, H, W, C]`` over height and width."""
    return x.mean(axis=(1, 2))


def _remembering(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **sharding: Any) -> jax.Array:
    """Makes the biases of an LSTM's gates, input, forget, cell and output: 1 for the second, else 0."""
    del key, sharding
    gate = shape[0] // 4
    return jnp.zeros(shape, dtype).at[gate : 2 * gate].set(1)


def _tokens(batch: Batch) -> jax.Array:
    return jnp.asarray(batch["x"], jnp.int32)


def _scaled(batch: Batch, scale: float) -> jax.Array:
    return jnp.asarray(batch["x"], jnp.float32) * scale
