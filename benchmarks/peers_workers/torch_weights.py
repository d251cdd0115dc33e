"""Where a problem's weights are in a model of PyTorch: the same numbers, seen in the problem's layouts.

With a stride of 2, ``padding=1`` begins before the image here, and ``SAME`` ends behind it in JAX. Mirrored images and
kernels make the one the other, and each network is written as its users write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

Views = dict[str, np.ndarray]


def views(model: nn.Module, state: Mapping[str, torch.Tensor], net: Mapping[str, Any]) -> Views:
    """Finds all weights.

    Args:
      model: For its structure.
      state: Its state on the CPU, whose memory the results share.
      net: As in `Problem`.

    Returns:
      By names as in `Problem.weights`, of the same axes but for some that are divided there, or here.
    """
    layers = [(path, layer_views(path, layer, state, mirrored="name" in net)) for path, layer in model.named_modules()]
    if "name" in net:
        names = {path: path.replace(".", "/").replace("out_proj", "out") for path, _ in layers}
        return {f"{names[path]}{name}": view for path, found in layers for name, view in found.items()}
    plain = enumerate(found for _, found in layers if found)
    return {f"{part}{i}": found[name] for i, found in plain for part, name in (("w", "/kernel"), ("b", "/bias"))}


def layer_views(path: str, layer: nn.Module, state: Mapping[str, torch.Tensor], *, mirrored: bool) -> Views:
    """Returns what belongs to a layer itself, by what is behind its path in Flax's names."""

    def own(name: str) -> np.ndarray:
        return state[f"{path}.{name}"].numpy()

    match layer:
        case nn.Conv2d():
            found = {"/kernel": turned(own("weight"), mirrored)}
        case nn.Linear():
            image = getattr(layer, "image", None)  # that was flattened before it
            found = {"/kernel": turned(own("weight").reshape(-1, *image), mirrored) if image else own("weight").T}
        case nn.GroupNorm() | nn.LayerNorm():
            found = {"/scale": own("weight")}
        case nn.Embedding():
            found = {"/embedding": own("weight")}
        case nn.LSTM():
            return lstm_views(layer.num_layers, own)
        case nn.MultiheadAttention():
            return attention_views(own)
        case _:
            return {}
    return found | ({"/bias": own("bias")} if getattr(layer, "bias", None) is not None else {})


def turned(weight: np.ndarray, mirrored: bool) -> np.ndarray:
    """Turns ``[out, in, height, width]`` into ``[height, width, in, out]``."""
    turn = slice(None, None, -1 if mirrored else None)
    return weight.transpose(2, 3, 1, 0)[turn, turn]


def lstm_views(num_layers: int, own: Callable[[str], np.ndarray]) -> Views:
    """Returns the weights of layers that are cells of their own in Flax; the gates have the same order."""
    found = {}
    for i in range(num_layers):
        cell = f"{i + 1 if num_layers > 1 else ''}/cell"
        found[f"{cell}/dense_i/kernel"] = own(f"weight_ih_l{i}").T
        found[f"{cell}/dense_h/kernel"] = own(f"weight_hh_l{i}").T
        found[f"{cell}/dense_h/bias"] = own(f"bias_hh_l{i}")
    return found


def attention_views(own: Callable[[str], np.ndarray]) -> Views:
    """Returns the three projections that are one here; that of the results is a layer by itself."""
    weights, biases = (np.split(own(name), 3) for name in ("in_proj_weight", "in_proj_bias"))
    found = {}
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        found |= {f"/{name}/kernel": weight.T, f"/{name}/bias": bias}
    return found
