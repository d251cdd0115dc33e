"""The network and the training of one client in PyTorch, as one writes them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from protocol import Problem, Weights, num_layers
from torch import nn  # pyright: ignore[reportMissingImports]


def device() -> torch.device:
    """Returns the accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network(net: Mapping[str, Any]) -> nn.Sequential:
    """Builds the network, for images ``[B, channels, height, width]``."""
    height, width, depth = net["shape"]
    layers: list[nn.Module] = []
    for channels in net["convs"]:
        layers += [nn.Conv2d(depth, channels, 3), nn.ReLU()]
        height, width, depth = height - 2, width - 2, channels
    if net["convs"]:
        layers += [nn.MaxPool2d(2), nn.Dropout(net["dropout"][0])]
        height, width = height // 2, width // 2
    layers.append(nn.Flatten())
    features = height * width * depth
    for hidden in net["hidden"]:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        layers += [nn.Dropout(net["dropout"][1])] if net["convs"] else []  # At rate 0 too, to keep the layers' names.
        features = hidden
    layers.append(nn.Linear(features, net["classes"]))
    return nn.Sequential(*layers)


def examples(problem: Problem, ids: Any, *, device: torch.device) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Returns clients' images and labels as tensors, before any round is timed."""
    data = {}
    for k in ids:
        x, y = problem.client(k)
        images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        data[k] = (torch.from_numpy(images).to(device), torch.from_numpy(np.array(y, np.int64)).to(device))
    return data


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, batch_size: int, rate: float) -> torch.Tensor:
    """Trains for one epoch in the order of the examples; returns the sum of their losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    total = torch.zeros((), device=x.device)
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)
    return total


def load_weights(model: nn.Module, weights: Weights, net: Mapping[str, Any]) -> None:
    """Copies a problem's weights into a model, in PyTorch's layouts."""
    with torch.no_grad():
        for i, layer in enumerate(_layers(model)):
            layer.weight.copy_(torch.from_numpy(_to_torch(weights[f"w{i}"], i, net)))
            layer.bias.copy_(torch.from_numpy(weights[f"b{i}"]))


def set_parameters(model: nn.Module, vector: torch.Tensor) -> None:
    """Copies a vector into a model's parameters, which stay where they are, aligned."""
    parts = vector.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.data.copy_(part.view_as(p))


def weights_of(model: nn.Module, net: Mapping[str, Any]) -> Weights:
    """Returns a model's weights in the problem's layouts."""
    weights: Weights = {}
    for i, layer in enumerate(_layers(model)):
        weights[f"w{i}"] = _from_torch(layer.weight.detach().cpu().numpy(), i, net)
        weights[f"b{i}"] = layer.bias.detach().cpu().numpy()
    assert len(weights) == 2 * num_layers(net)
    return weights


def _layers(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def _to_torch(w: np.ndarray, i: int, net: Mapping[str, Any]) -> np.ndarray:
    if w.ndim == 4:
        w = w.transpose(3, 2, 0, 1)
    elif net["convs"] and i == len(net["convs"]):  # The features come as [channels, height, width].
        w = w.reshape(*_flattened(net), -1).transpose(3, 2, 0, 1).reshape(w.shape[::-1])
    else:
        w = w.T
    return np.ascontiguousarray(w)


def _from_torch(w: np.ndarray, i: int, net: Mapping[str, Any]) -> np.ndarray:
    if w.ndim == 4:
        return w.transpose(2, 3, 1, 0)
    if net["convs"] and i == len(net["convs"]):
        height, width, depth = _flattened(net)
        return w.reshape(-1, depth, height, width).transpose(2, 3, 1, 0).reshape(w.shape[::-1])
    return w.T


def _flattened(net: Mapping[str, Any]) -> tuple[int, int, int]:
    height, width, _ = net["shape"]
    shrunk = 2 * len(net["convs"])
    return (height - shrunk) // 2, (width - shrunk) // 2, net["convs"][-1]
