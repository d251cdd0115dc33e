"""Transformers of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.layers import Metrics, of_tokens, token_vectors, uniform
from fedjx.models.model import Model


def transformer(
    num_tokens: int,
    *,
    width: int = 96,
    num_heads: int = 8,
    feed_forward: int = 1536,
    num_layers: int = 3,
    dropout: float = 0.1,
    ignored: int | None = None,
    metrics: Metrics = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a Transformer that predicts the next token: Vaswani et al., "Attention Is All You Need" (1706.03762).

    A token attends to itself and to earlier ones. After attention and after the two dense layers with ReLU the
    input is added, then each token normalised. Sines and cosines tell positions, so sequences may have any length; the
    embedding, times the root of its width, is that of inputs and, transposed, of outputs. It begins as in PyTorch,
    with embeddings from -.05 to .05.

    Args:
      num_tokens: Number of tokens K; ``batch["x"]`` and ``batch["y"]``, the tokens that follow, are int ``[B, T]``
        in ``0 .. K - 1``.
      width: Length of a token's vector, an even number.
      num_heads: Of attention; a divisor of the width.
      feed_forward: Width between the two dense layers.
      num_layers: How often attention and the dense layers follow each other.
      dropout: Probability with which an attention, a unit between the dense layers and a number before each addition
        are dropped in training.
      ignored: The token that stands for padding in ``batch["y"]``; it counts in no loss and no metric of those that
        fit the loss. Padding follows what it pads, so it has no influence on the outputs that count.
      metrics: As in `from_flax`.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If the width is odd, or the heads do not divide it.

    >>> params = jax.eval_shape(transformer(10_000).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    1962528
    """
    if width % 2 or width % num_heads:
        raise ValueError(f"width must be even and a multiple of num_heads; got {width=} and {num_heads=}. Change one.")

    def network(rngs: nnx.Rngs) -> nnx.Module:
        blocks = [_Block(width, num_heads, feed_forward, dropout, rngs=rngs) for _ in range(num_layers)]
        return _Transformer(token_vectors(num_tokens, width, compute_dtype, rngs=rngs), blocks)

    return of_tokens(network, num_tokens, ignored=ignored, metrics=metrics, compute_dtype=compute_dtype)


class _Transformer(nnx.Module):
    def __init__(self, embed: nnx.Embed, blocks: Sequence[_Block]):
        self.embed, self.blocks = embed, nnx.List(blocks)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        width = x.shape[-1]
        x = x * math.sqrt(width) + positions(tokens.shape[1], width).astype(x.dtype)[None]
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(x)


class _Block(nnx.Module):
    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float, *, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(
            num_heads,
            width,
            dropout_rate=dropout,
            broadcast_dropout=False,
            decode=False,
            # PyTorch draws the three projections as one matrix, [3 * width, width].
            kernel_init=nnx.initializers.variance_scaling(0.5, "fan_in", "uniform"),
            out_kernel_init=uniform(width**-0.5),
            rngs=rngs,
        )
        self.wide = _dense(width, feed_forward, rngs=rngs)
        self.narrow = _dense(feed_forward, width, rngs=rngs)
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.dropout1, self.dropout2, self.dropout3 = (nnx.Dropout(dropout, rngs=rngs) for _ in range(3))

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.norm1(x + self.dropout1(self.attention(x, mask=mask)))
        inside = self.dropout2(nnx.relu(self.wide(x)))
        return self.norm2(x + self.dropout3(self.narrow(inside)))


def positions(length: int, width: int) -> np.ndarray:
    """Computes the positions of Vaswani et al., section 3.5, float32 ``[length, width]``: sines and cosines in turn.

    >>> print(positions(2, 4).round(3))
    [[0.    1.    0.    1.   ]
     [0.841 0.54  0.01  1.   ]]
    """
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2)[None] / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width).astype(np.float32)


def _dense(before: int, after: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    init = uniform(before**-0.5)
    return nnx.Linear(before, after, kernel_init=init, bias_init=init, rngs=rngs)
