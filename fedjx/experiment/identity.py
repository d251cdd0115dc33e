"""What determines a run, by which it is known again when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Clients
from fedjx.data.cohort import Cohort
from fedjx.data.federated_data import ClientData
from fedjx.data.fingerprint import fingerprint
from fedjx.experiment.host_arrays import plain
from fedjx.privacy.budget import Budget


def example_of(algorithm: Any, state: PyTree, cohort: Cohort) -> list[PyTree]:
    """Returns arguments of a round, of one client."""
    if not isinstance(algorithm, StatefulAlgorithm):
        return [state, cohort.whole()]
    own = jax.tree.map(lambda x: jnp.asarray(x)[None], algorithm.init_client(state))
    return [state, cohort.whole(), Clients.of(own, ids=cohort.ids.astype(np.int32))]


def determined(
    about: Mapping[str, Any],
    algorithm: Any,
    example: Sequence[PyTree],
    data: ClientData,
    sampler: Any,
    cohort: Cohort,
    budget: Budget | None,
) -> dict[str, Any]:
    """Says what determines a run, which a resumed one must have too: what the user says of it, and the rest.

    Args:
      about: What the user says.
      algorithm: What a round is.
      example: Arguments of a round, of one client.
      data: The clients.
      sampler: By its description; without one, by whom it draws for the first round.
      cohort: That of the first round.
      budget: Of privacy.
    """
    drawn = {"function": getattr(sampler, "__qualname__", type(sampler).__qualname__), "first": _hash(cohort.ids)}
    own = {
        "algorithm": algorithm.next.program(*example).fingerprint(),
        "key": np.asarray(plain(example[0].key)).tolist() if hasattr(example[0], "key") else None,
        "data": fingerprint(data),
        "sampler": getattr(sampler, "description", drawn),
        "batch_size": cohort.batch_size,
        "lanes": cohort.lanes,
        "budget": None if budget is None else budget.description,
    }
    if taken := sorted(own.keys() & about.keys()):
        raise ValueError(f"a run says by itself what its {', '.join(taken)} is; got it in {about=}. Leave it out.")
    return {**about, **own}


def cohort_of(
    data: ClientData, sampler: Callable[[int], Any], number: int, *, batch_size: int, lanes: int | Literal["auto"]
) -> Cohort:
    """Returns the clients of a round, by the places in the data that the sampler draws.

    Raises:
      ValueError: If they are none.
    """
    places, num_clients = np.asarray(sampler(number)), len(data.ids)
    is_list = places.ndim == 1 and (places.dtype.kind in "iu" or not places.size)
    if not is_list or (places.size and not 0 <= places.min() <= places.max() < num_clients):
        raise ValueError(
            f"a sampler needs to return a list of places in the data, integers from 0 to {num_clients - 1}; got "
            f"{places.tolist()!r:.100} for round {number}. Look at it, and at how many clients it is for."
        )
    return Cohort(data, data.ids[places.astype(np.int64)], batch_size=batch_size, lanes=lanes)


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest()[:16]
