"""``tff.simulation.datasets``: the published federated data sets, ``emnist.load_data(only_digits=True)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedjx.data import published
from fedjx.data.published.stores import DataSet
from fedjx.data.source import Source
from fedjx.tff.simulation.data import ClientData, Dataset

__all__ = ["ClientData", "celeba", "cifar100", "emnist", "gldv2", "inaturalist", "shakespeare", "stackoverflow"]


class PublishedData(NamedTuple):
    """A published data set under the names of TensorFlow Federated.

    Attributes:
      describe: From the options of `load_data` to what `fedjx.data.published` knows of it.
      twin: The name of its synthetic twin.
      twin_source: Makes that, with the features that `load_data` returns.
    """

    describe: Callable[..., DataSet]
    twin: str
    twin_source: Callable[..., Source] = published.twin_source

    def load_data(self, cache_dir: str | Path | None = None, **options: object) -> tuple[ClientData, ...]:
        """Opens the splits of the published files in a directory, in the order of `fedjx.data.published`.

        Args:
          cache_dir: Where the files are; see `fedjx.data.published.open`. They are not fetched.
          **options: Such as ``only_digits`` of EMNIST.
        """
        if cache_dir is None:
            raise ValueError(
                "load_data opens published files, and fetches none; got no cache_dir. Pass the directory that they "
                "are in, or take get_synthetic()."
            )
        return tuple(map(ClientData.of, published.open(self.describe(**options), cache_dir).values()))

    def get_synthetic(self, num_clients: int = 10, mean_examples: float = 20) -> ClientData:
        """Makes the first clients of a synthetic twin of the training split: of the same features, without meaning."""
        source = self.twin_source(self.twin, "train", num_clients=num_clients, mean_examples=mean_examples)
        examples = {str(client.id): client.examples for client in source.clients()}
        return ClientData(list(examples), lambda name: Dataset.from_tensor_slices(examples[name]))


def _emnist(only_digits: bool = True) -> DataSet:
    return published.emnist(digits_only=only_digits, dtype="float32")


celeba = PublishedData(published.celeba, "celeba_by_client")
cifar100 = PublishedData(published.cifar100, "cifar100")
emnist = PublishedData(_emnist, "emnist_digits", published.raw_twin_source)
gldv2 = PublishedData(published.landmarks, "landmarks_gld23k")
inaturalist = PublishedData(published.inaturalist, "inaturalist_user_120k")
shakespeare = PublishedData(published.shakespeare, "shakespeare")
stackoverflow = PublishedData(published.stack_overflow, "stack_overflow")
