"""Client data under the names of TensorFlow Federated, and its way into a cohort."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.values import MASK, Clients, Sequence
from fedjx.data import federated_data, source


class Dataset:
    """One client's data set: its elements in order, made anew whenever it is iterated over.

    An element is an array, or a dict or tuple of arrays.

    >>> data = Dataset.from_tensor_slices({"x": np.arange(5), "y": np.arange(5)})
    >>> [y.tolist() for _, y in data.batch(2).map(lambda batch: (batch["x"] / 255, batch["y"]))]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, elements: Callable[[], Iterable[PyTree]]):
        self._elements = elements

    def __iter__(self) -> Iterator[PyTree]:
        return iter(self._elements())

    @classmethod
    def from_tensor_slices(cls, tensors: PyTree) -> Dataset:
        """Makes one element of each row of some arrays."""
        leaves, treedef = jax.tree.flatten(tensors)
        return cls(lambda: (treedef.unflatten(row) for row in zip(*leaves, strict=True)))

    @property
    def element_spec(self) -> PyTree:
        """Returns shapes and dtypes of the first element."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), next(iter(self)))

    def map(self, fn: Callable[..., PyTree]) -> Dataset:
        """Applies a function to every element; a tuple is given as so many arguments."""
        return Dataset(lambda: (fn(*x) if type(x) is tuple else fn(x) for x in self))

    def take(self, count: int) -> Dataset:
        """Keeps the first elements."""
        return Dataset(lambda: itertools.islice(self, count))

    def repeat(self, count: int = 1) -> Dataset:
        """Goes through the elements so many times."""
        return Dataset(lambda: itertools.chain.from_iterable(self for _ in range(count)))

    def shuffle(self, buffer_size: int, seed: int | None = None) -> Dataset:
        """Reorders all elements at every iteration, in one chain of orders that the seed begins, or at random."""
        del buffer_size  # The data set of a client fits in memory.
        random = np.random.default_rng(seed)

        def elements() -> Iterator[PyTree]:
            items = list(self)
            return (items[i] for i in random.permutation(len(items)))

        return Dataset(elements)

    def batch(self, batch_size: int, drop_remainder: bool = False) -> Dataset:
        """Stacks consecutive elements; the last batch may be short, or is dropped."""

        def batches() -> Iterator[PyTree]:
            elements = iter(self)
            while items := list(itertools.islice(elements, batch_size)):
                if len(items) == batch_size or not drop_remainder:
                    yield jax.tree.map(lambda *rows: np.stack(rows), *items)

        return Dataset(batches)


@dataclasses.dataclass(frozen=True)
class ClientData:
    """The clients of a simulation by name, and the data set of each.

    Attributes:
      client_ids: Their names.
      create_tf_dataset_for_client: From a name to the client's `Dataset`, made when it is asked for.

    >>> federated = fedjx.data.FederatedData.from_clients([{"x": np.ones(2)}, {"x": np.zeros(3)}])
    >>> clients = ClientData.of(federated).preprocess(lambda dataset: dataset.batch(2))
    >>> [batch["x"].tolist() for batch in clients.create_tf_dataset_for_client(clients.client_ids[1])]
    [[0.0, 0.0], [0.0]]
    """

    client_ids: list[str]
    create_tf_dataset_for_client: Callable[[str], Dataset]

    @classmethod
    def of(cls, data: federated_data.ClientData) -> ClientData:
        """Names the clients of fedjx's client data, in memory or on disk, by their ids."""
        ids = np.asarray(data.ids[:])
        names = [str(name) for name in source.client_ids(data, ids)]
        numbers = dict(zip(names, ids, strict=True))
        return cls(names, lambda name: Dataset.from_tensor_slices(data.read([numbers[name]])))

    @classmethod
    def from_clients_and_fn(cls, client_ids: Iterable[str], dataset_fn: Callable[[str], Dataset]) -> ClientData:
        """Makes client data of names and a function from a name to a data set."""
        return cls(list(client_ids), dataset_fn)

    @property
    def create_dataset_for_client(self) -> Callable[[str], Dataset]:
        """Returns the same by a name without TensorFlow in it."""
        return self.create_tf_dataset_for_client

    @property
    def element_type_structure(self) -> PyTree:
        """Returns shapes and dtypes of the first client's first element."""
        return self.create_tf_dataset_for_client(self.client_ids[0]).element_spec

    def preprocess(self, preprocess_fn: Callable[[Dataset], Dataset]) -> ClientData:
        """Applies a function to every client's data set, when it is asked for."""
        return ClientData(self.client_ids, lambda name: preprocess_fn(self.create_tf_dataset_for_client(name)))

    def datasets(self, limit_count: int | None = None, seed: int | None = None) -> Iterator[Dataset]:
        """Yields the data sets of clients in a random order, so many at most."""
        names = np.random.default_rng(seed).permutation(np.asarray(self.client_ids))
        return (self.create_tf_dataset_for_client(str(name)) for name in names[:limit_count])

    def train_test_client_split(self, num_test_clients: int, seed: int | None = None) -> tuple[ClientData, ClientData]:
        """Divides the clients at random into those to train and those to test with."""
        if not 0 < num_test_clients < len(self.client_ids):
            raise ValueError(
                f"a split leaves clients on both sides; got {num_test_clients=} of {len(self.client_ids)}. Take fewer."
            )
        order = np.random.default_rng(seed).permutation(len(self.client_ids))
        test = set(order[:num_test_clients].tolist())
        sides = [[n for k, n in enumerate(self.client_ids) if (k in test) == side] for side in (False, True)]
        train, held_out = (ClientData(side, self.create_tf_dataset_for_client) for side in sides)
        return train, held_out


def as_clients(datasets: Iterable[Iterable[PyTree]]) -> Clients:
    """Stacks a list of the clients' data sets, each an iterable of batches, into a cohort.

    A batch is a dict of features, or a pair: its parts are called "x" and "y". There are as many steps as the longest
    client has batches, rounded up to a power of two, which costs nothing; the numbers of clients and of examples in a
    batch are rounded up to four sizes an octave. So few shapes are compiled, whatever the list.

    Raises:
      ValueError: If there is no batch, or two batches have different features.
    """
    clients = [[features(batch) for batch in dataset] for dataset in datasets]
    batches = [batch for client in clients for batch in client]
    if not batches or any(batch.keys() != batches[0].keys() for batch in batches):
        names = sorted({str(sorted(batch)) for batch in batches})
        raise ValueError(f"federated data is a list of data sets with batches of the same features; got {names}.")
    sizes = [[len(next(iter(batch.values()))) for batch in client] for client in clients]
    num_clients = few_sizes(len(clients))
    lengths = np.array([len(client) for client in clients] + [0] * (num_clients - len(clients)), np.int32)
    num_steps = 1 << (int(lengths.max()) - 1).bit_length()
    index = np.full((num_clients, num_steps, few_sizes(max(map(max, filter(None, sizes))))), -1)
    rows = iter(np.split(np.arange(sum(map(sum, sizes))), np.cumsum([n for client in sizes for n in client])))
    for c, client in enumerate(sizes):
        for s, size in enumerate(client):
            index[c, s, :size] = next(rows)
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    elements = {name: column[np.maximum(index, 0)] for name, column in columns.items()}
    ids = np.arange(num_clients, dtype=np.int32)
    is_real = ids < len(clients)
    return Clients(Sequence({**elements, MASK: index >= 0}, lengths), is_real, np.where(is_real, ids, -1))


def few_sizes(number: int) -> int:
    """Rounds up to four sizes an octave, by less than a quarter.

    >>> [few_sizes(number) for number in (1, 5, 8, 9, 11, 17, 20, 100)]
    [1, 5, 8, 10, 12, 20, 20, 112]
    """
    step = 1 << max(0, (number - 1).bit_length() - 3)
    return -(-number // step) * step


def features(batch: PyTree) -> dict[str, np.ndarray]:
    """Names the features of a batch, of their values or of their types."""
    named = batch if isinstance(batch, Mapping) else dict(zip(("x", "y"), batch, strict=True))
    return {name: x if hasattr(x, "dtype") else np.asarray(x) for name, x in named.items()}
