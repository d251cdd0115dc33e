"""What a task is, and what the tasks have in common: where data are, and models of batches as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.values import MASK
from fedjx.data import ClientData, FederatedData, preprocess, published, truncate
from fedjx.data.published import DataSet
from fedjx.models import Model, Ratio


class Task(NamedTuple):
    """What is learnt, and of whom; how, and what is reported of it, is in `benchmarks.tasks.settings`.

    Attributes:
      train: The clients.
      test: The central test set: all examples of these clients.
      model: A model of the batches as they are stored: preprocessing is its own.
    """

    train: ClientData
    test: ClientData
    model: Model


class Place(NamedTuple):
    """Where the data of a task are.

    Attributes:
      directory: Has the published files; stores are made there.
      is_twin: Whether the synthetic twins of the data sets are taken in their place.
      num_clients: Of a twin.
      mean_examples: Of a twin, as published if not given.
    """

    directory: Path
    is_twin: bool = False
    num_clients: int = 100
    mean_examples: float | None = None


def opened(place: Place, data_set: DataSet, twin: str | None = None) -> Mapping[str, ClientData]:
    """Opens the stores of a published data set, or of its twin, which may have another name.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names what is needed, and the twin.
    """
    if not place.is_twin:
        try:
            return published.open(data_set, place.directory)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Or train on its synthetic twin: --twin.") from None
    size = "" if place.mean_examples is None else f"x{place.mean_examples:g}"
    return published.synthetic_twin(
        twin or data_set.name,
        place.directory / "twins" / f"{place.num_clients}{size}",
        num_clients=place.num_clients,
        mean_examples=place.mean_examples,
        progress=False,
    )


def at_most(data: ClientData, max_examples: int | None) -> ClientData:
    """Keeps the first examples of each client, if there is a limit."""
    return data if max_examples is None else preprocess(data, truncate(max_examples))


def sampled(data: ClientData, num_examples: int, *, seed: int = 0) -> ClientData:
    """Draws examples out of all, each as likely, without reading more than their clients; all where there are no more.

    >>> from fedjx.data import FederatedData
    >>> data = FederatedData({"x": np.arange(100)}, np.array([0, 30, 30, 100]))
    >>> sampled(data, 3).client(0)["x"]
    array([51, 63, 85])
    """
    if data.num_examples <= num_examples:
        return data
    rows = np.sort(np.random.default_rng(seed).choice(data.num_examples, num_examples, replace=False))
    ends = np.cumsum(data.sizes[:])
    owners = np.searchsorted(ends, rows, side="right")
    parts = []
    for owner in np.unique(owners):
        begin = ends[owner] - data.sizes[owner]
        client = data.read(data.ids[[owner]])
        parts.append({name: column[rows[owners == owner] - begin] for name, column in client.items()})
    examples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return FederatedData(examples, np.array([0, num_examples]))


def reading(model: Model, batch_of: Callable[..., Mapping[str, Any]], *, is_distorted: bool = False) -> Model:
    """Makes a model of stored batches out of one of what they are turned into, inside the jitted step.

    Args:
      model: Takes what `batch_of` returns.
      batch_of: From a stored batch, and where distorted a random key, to a batch.
      is_distorted: Whether training batches are distorted, each example by its own draw from the client's key.
        Evaluation never distorts.
    """

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        if not is_distorted:
            return model.loss(params, batch_of(batch), key)
        key_batch, key_model = jax.random.split(key)
        return model.loss(params, batch_of(batch, key_batch), key_model)

    def metrics(params: Any, batch: Any) -> dict[str, Any]:
        return model.metrics(params, batch_of(batch))

    def apply(params: Any, batch: Any) -> Any:
        assert model.apply is not None
        return model.apply(params, batch_of(batch))

    return model._replace(loss=loss, metrics=metrics, apply=apply, input_spec=None)


def summed(model: Model) -> Model:
    """Adds the losses of a batch up instead of averaging them: some published rates are of that gradient."""

    def loss(params: Any, batch: Any, key: jax.Array) -> Ratio:
        share = 1 / jnp.maximum(jnp.sum(batch[MASK]), 1)
        losses = model.loss(params, batch, key)
        return Ratio(losses, jnp.full(losses.shape, share))

    return model._replace(loss=loss)
