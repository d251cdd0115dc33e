"""Cohorts that are no arrays: in chunks, or made chunk by chunk as the engine asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol, TypeGuard

import jax
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.shares import Share
from fedjx.core.language.types import FederatedType
from fedjx.core.language.values import Clients


class Planned(Protocol):
    """A cohort that makes chunks as the engine asks, such as `fedjx.data.Cohort`.

    A method ``whole() -> Clients`` may make all of it, in the order of the ids, in a better shape than that of a chunk.
    A method ``identity() -> dict[str, str]`` may say what else than its ids must be the same in all processes, by name.

    Attributes:
      ids: Integers ``[C]``; none for a cohort of nobody, which is one chunk of padding.
      sizes: How much work each client is, its number of batches, ``[C]``: similar ones run together. None if that is
        for other arguments to say.
      lanes: How many clients each device is to run at once, or "auto" for what is fastest.
    """

    @property
    def ids(self) -> np.ndarray: ...  # noqa: D102
    @property
    def sizes(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def lanes(self) -> int | Literal["auto"]: ...  # noqa: D102

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share) -> Clients:
        """Returns this process's share of a chunk, in arrays that nobody writes to any more: JAX may read them later.

        Args:
          ids: The clients of the whole chunk, in equal parts for the devices, or -1 for all if there is nobody: any
            client's shapes will do. The shapes of what is
            returned may depend on them all, and on nothing that differs between processes.
          mask: Where it is False the chunk is padding.
          share: Which of the devices are this process's.
        """
        ...


AtClients = Clients | Planned | Iterable[Clients]  # what an argument at CLIENTS may be


def is_planned(value: PyTree) -> TypeGuard[Planned]:
    """Tells whether an argument is `Planned`; asking a protocol takes a hundred times as long."""
    return all(hasattr(value, name) for name in ("members", "ids", "sizes", "lanes"))


def is_stream(value: PyTree) -> bool:
    """Tells whether an argument is a cohort in chunks: a list of `Clients`, or an iterable that is no pytree.

    Raises:
      TypeError: If it can be iterated over only once; every pass reads it again.
    """
    if is_planned(value):
        return True
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Clients)
    no_stream = isinstance(value, (FederatedValue, FederatedType, Mapping, str)) or hasattr(value, "shape")
    if no_stream or not isinstance(value, Iterable):
        return False
    if iter(value) is value:
        raise TypeError(
            f"a stream is read once per pass, so it must be iterable again; got {type(value).__name__}. "
            "Pass a list of chunks, or an object with __iter__."
        )
    return jax.tree_util.all_leaves([value])


def whole(value: PyTree) -> PyTree:
    """Returns a cohort that makes its chunks as one, and anything else as it is."""
    if not is_planned(value):
        return value
    of_its_own: Callable[[], Clients] | None = getattr(value, "whole", None)
    ids = ids_or_nobody(value)
    return of_its_own() if of_its_own else value.members(ids, ids >= 0, Share())


def ids_or_nobody(value: Planned) -> np.ndarray:
    """Returns the ids of a cohort, int64 ``[C]``; ``[-1]`` of nobody's."""
    ids = np.asarray(value.ids, np.int64)
    return ids if len(ids) else np.array([-1])


def first_chunk(value: PyTree) -> PyTree:
    """Returns the first chunk of a stream, or one as small, and anything else as it is.

    Raises:
      ValueError: If the stream has no chunk.
      TypeError: If it is no stream of `Clients`.
    """
    if not is_stream(value):
        return value
    if is_planned(value):
        ids = ids_or_nobody(value)[:1]
        return value.members(ids, ids >= 0, Share())
    first = next(iter(value), None)
    if first is None:
        raise ValueError("a cohort needs at least one client; got an empty stream. Sample again, or skip the round.")
    if not isinstance(first, Clients):
        raise TypeError(f"a stream yields Clients; got {type(first).__name__} from {type(value).__name__}. Wrap it.")
    return first
