"""The network and the training of one client in PyTorch, as one writes them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from protocol import Problem, Weights
from torch import nn  # pyright: ignore[reportMissingImports]
from torch_networks import NETWORKS
from torch_weights import views


def device() -> torch.device:
    """Returns the accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network(net: Mapping[str, Any]) -> nn.Module:
    """Builds the network, for images ``[B, channels, height, width]`` or whatever else its examples are."""
    if "name" not in net:
        return plain_network(net)
    made = NETWORKS[net["name"]]()
    for layer in made.modules():
        if isinstance(layer, nn.Dropout):
            (layer.p,) = net["dropout"]
    return made


def plain_network(net: Mapping[str, Any]) -> nn.Sequential:
    """Builds a network of convolutions and dense layers."""
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
    if net["convs"]:
        next(layer for layer in layers if isinstance(layer, nn.Linear)).image = (depth, height, width)
    return nn.Sequential(*layers)


def examples(problem: Problem, ids: Any, *, device: torch.device) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Returns clients' examples and labels as tensors, before any round is timed."""
    data = {}
    for k in ids:
        x, y = (torch.from_numpy(wide(column)) for column in problem.client(k))
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2).contiguous()
            x = x.flip(2, 3) if "name" in problem.net else x  # see `torch_weights`
        data[k] = (x.to(device), y.to(device))
    return data


def wide(column: np.ndarray) -> np.ndarray:
    """Copies a column, integers as those of 64 bits that PyTorch takes for classes."""
    return np.array(column, np.int64 if np.issubdtype(column.dtype, np.integer) else None)


def loss_of(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Averages the cross entropy of classes, or of words except padding, 0; or the square of the error of numbers."""
    if y.is_floating_point():
        return nn.functional.mse_loss(scores, y)
    if y.ndim == 1:
        return nn.functional.cross_entropy(scores, y)
    return nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=0)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, batch_size: int, rate: float) -> torch.Tensor:
    """Trains for one epoch in the order of the examples; returns the sum of their losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    total = torch.zeros((), device=x.device)
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        optimizer.zero_grad()
        loss = loss_of(model(inputs), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)
    return total


def load_weights(model: nn.Module, problem: Problem) -> None:
    """Copies a problem's weights into a model."""
    state = on_cpu(model)
    for name, view in views(model, state, problem.net).items():
        view[...] = problem.weights[name].reshape(view.shape)
    model.load_state_dict(state)


def set_parameters(model: nn.Module, vector: torch.Tensor) -> None:
    """Copies a vector into a model's parameters, which stay where they are, aligned."""
    parts = vector.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.data.copy_(part.view_as(p))


def weights_of(model: nn.Module, problem: Problem) -> Weights:
    """Returns a model's weights under the problem's names, in its layouts."""
    found = views(model, on_cpu(model), problem.net)
    return {name: found[name].reshape(weight.shape) for name, weight in problem.weights.items()}


def on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies what a model holds."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
