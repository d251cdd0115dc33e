"""The network and its loss in plain JAX, as one writes them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from protocol import num_layers


def logits(params: Mapping[str, Any], x: jax.Array, net: Mapping[str, Any], key: jax.Array) -> jax.Array:
    """Applies the network to ``[B, height, width, channels]`` in training mode."""
    key_image, key_hidden = jax.random.split(key)
    last = num_layers(net) - 1
    for i in range(len(net["convs"])):
        x = lax.conv_general_dilated(x, params[f"w{i}"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + params[f"b{i}"][None, None, None])
    if net["convs"]:
        x = dropout(max_pool(x), net["dropout"][0], key_image)
    x = x.reshape(x.shape[0], -1)
    for i in range(len(net["convs"]), last):
        x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"][None])
        x = dropout(x, net["dropout"][1], jax.random.fold_in(key_hidden, i))
    return x @ params[f"w{last}"] + params[f"b{last}"][None]


def losses(params: Mapping[str, Any], x: Any, y: Any, net: Mapping[str, Any], key: jax.Array) -> jax.Array:
    """Returns the cross entropy of each example, ``[B]``."""
    scores = jax.nn.log_softmax(logits(params, x, net, key))
    return -jnp.take_along_axis(scores, y[:, None], axis=-1)[:, 0]


def masked_loss(params: Any, x: Any, y: Any, mask: Any, net: Mapping[str, Any], key: jax.Array) -> jax.Array:
    """Averages the losses of the real examples of a batch."""
    weight = mask.astype(jnp.float32)
    return jnp.sum(losses(params, x, y, net, key) * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[B, H, W, C]``; by a reshape, since `reduce_window` has a slow gradient on CPUs."""
    batch, height, width, depth = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops entries with probability `rate` and scales up the others."""
    if rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
