"""The networks of `benchmarks.networks` with a problem's weights, for workers that run JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.networks import NETWORKS


def network(net: Mapping[str, Any]) -> Callable[..., nnx.Module]:
    """Returns what makes the network of ``rngs``, with the rate of dropout of the problem."""

    def make(*, rngs: nnx.Rngs) -> nnx.Module:
        made = NETWORKS[net["name"]](rngs=rngs)
        for _, layer in nnx.iter_graph(made):
            if isinstance(layer, nnx.Dropout):
                (layer.rate,) = net["dropout"]
        return made

    return make


def initial_weights(net: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws the network's own initial parameters."""
    params = nnx.state(network(net)(rngs=nnx.Rngs(0)), nnx.Param)
    return flat(nnx.to_pure_dict(params))


def flat(params: Any) -> dict[str, np.ndarray]:
    """Names parameters by their paths."""
    leaves, _ = jax.tree.flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def nested(weights: Mapping[str, Any]) -> dict[Any, Any]:
    """Undoes `flat`."""
    params: dict[Any, Any] = {}
    for name, weight in weights.items():
        *path, last = [int(part) if part.isdigit() else part for part in name.split("/")]
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, params)[last] = weight
    return params


def summed_losses(scores: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of each example's losses and of how many, ``[B]``.

    Labels ``[B]`` are classes, ``[B, T]`` words except padding, 0, and numbers ``[B, K]`` what the scores should be.
    """
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.square(scores - y).sum(axis=1), jnp.full(len(y), y.shape[1])
    losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], axis=-1)[..., 0]
    if y.ndim == 1:
        return losses, jnp.ones(len(y), jnp.int32)
    return jnp.where(y > 0, losses, 0).sum(axis=1), (y > 0).sum(axis=1)


def masked_loss(params: Any, x: Any, y: Any, mask: Any, net: Mapping[str, Any], key: jax.Array) -> jax.Array:
    """Averages the losses of the real examples of a batch; the parameters are flat."""
    graph, streams = structure(net["name"], net["dropout"])
    module = nnx.merge(graph, nested(params), streams)
    nnx.reseed(module, default=key)
    sums, counts = summed_losses(module(x), y)
    return jnp.sum(sums * mask) / jnp.maximum(jnp.sum(counts * mask), 1)


@functools.cache
def structure(name: str, dropout: Any) -> tuple[Any, Any]:
    """Returns a network without its parameters."""
    with jax.ensure_compile_time_eval():
        made = network({"name": name, "dropout": dropout})(rngs=nnx.Rngs(0))
    graph, _, streams = nnx.split(made, nnx.Param, ...)
    return graph, streams
