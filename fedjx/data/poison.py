"""Poisoned data, to test defences with: labels that are flipped, and backdoors.

The functions here return a `Step` for `preprocess`; `only_clients` limits one to the malicious.
Attacks on what clients send are in `fedjx.aggregation.attacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_number
from fedjx.data.client_ids import ClientId
from fedjx.data.preprocess import Columns, Function, Step, as_step, name_of


def only_clients(is_malicious: Callable[[Any], Any], poison: Function) -> Step:
    """Applies a function of columns to some clients.

    Args:
      is_malicious: From a client's id to whether it is.
      poison: Keeps the number of examples.

    >>> data = fedjx.data.FederatedData({"y": np.array([0, 1, 2, 3])}, offsets=np.array([0, 2, 4]))
    >>> poisoned = fedjx.data.preprocess(data, only_clients(lambda client: client == 1, flip_labels(num_classes=4)))
    >>> poisoned.client(0)["y"], poisoned.client(1)["y"]
    (array([0, 1]), array([1, 0]))
    """
    step = as_step(poison)

    def function(columns: Columns, client_id: ClientId) -> Mapping[str, ArrayLike]:
        return step(columns, client_id) if is_malicious(client_id) else columns

    parameters = {"is_malicious": name_of(is_malicious), "poison": {"name": step.name, **step.parameters}}
    return Step("only_clients", function, parameters, lambda sizes: sizes, takes_id=True)


def flip_labels(*, num_classes: int, label: str = "y") -> Step:
    """Turns the labels over: y becomes ``num_classes - 1 - y`` (Fung et al., arXiv 1808.04866)."""

    def poison(columns: Columns) -> Mapping[str, ArrayLike]:
        return {**columns, label: (num_classes - 1 - columns[label]).astype(columns[label].dtype)}

    return Step("flip_labels", poison, {"num_classes": num_classes, "label": label}, lambda sizes: sizes)


def relabel(source: int, target: int, *, label: str = "y") -> Step:
    """Gives the examples of one class the label of another."""

    def poison(columns: Columns) -> Mapping[str, ArrayLike]:
        y = columns[label]
        return {**columns, label: np.where(y == source, target, y).astype(y.dtype)}

    parameters = {"source": source, "target": target, "label": label}
    return Step("relabel", poison, parameters, lambda sizes: sizes)


def pixel_trigger(
    target: int,
    *,
    rows: slice,
    columns: slice,
    value: float,
    fraction: float = 1.0,
    feature: str = "x",
    label: str = "y",
) -> Step:
    """Stamps a patch on images and gives them the target's label (Gu et al., "BadNets", arXiv 1708.06733).

    Args:
      target: The label that the backdoor opens to.
      rows: Of the patch; images are ``[n, height, width, channels]``.
      columns: Of the patch.
      value: Of its pixels.
      fraction: Of the client's images, the first ones, in [0, 1]; the others keep the main task learnt. 1 also
        makes the test set of the backdoor.
      feature: The images' name.
      label: The labels' name.

    Raises:
      ValueError: If the fraction is none.
    """
    check_number("[0, 1]", "Pass the share of images to poison.", fraction=fraction)

    def poison(examples: Columns) -> Mapping[str, ArrayLike]:
        x, y = np.array(examples[feature]), np.array(examples[label])
        number = round(fraction * len(y))
        x[:number, rows, columns] = value
        y[:number] = target
        return {**examples, feature: x, label: y}

    patch = {"rows": str(rows), "columns": str(columns), "value": value}
    parameters = {"target": target, **patch, "fraction": fraction, "feature": feature, "label": label}
    return Step("pixel_trigger", poison, parameters, lambda sizes: sizes)
