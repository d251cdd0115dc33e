"""Who is asked: all, or a sample, as accounts and estimates want to know it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjx.data.federated_data import ClientData
from fedjx.data.sampling import Described, Sampler, described


class Everybody(NamedTuple):
    """Describes that all clients are asked."""

    num_clients: int

    @property
    def description(self) -> dict[str, Any]:
        """As a sampler's."""
        others = {"cohort_size": self.num_clients, "replacement": False, "min_separation": 1}
        return described("fixed", self.num_clients, seed=None, **others)


class Reports(NamedTuple):
    """Describes that so many of the clients report at least."""

    of: Described
    fewest: int

    @property
    def description(self) -> dict[str, Any]:
        """As a sampler's."""
        if self.of.description["kind"] == "poisson":
            return self.of.description  # of which no account knows what shuffling does
        return {**self.of.description, "kind": "uniform", "cohort_size": self.fewest}


def drawn(sampler: Sampler, data: ClientData, round: int) -> np.ndarray:
    """Returns the ids of the clients that a sampler draws.

    Raises:
      ValueError: If nothing is known of what such a sample says of all clients, or it is one of others.
    """
    kind = sampler.description.get("kind")
    others = [name for name in ("probabilities", "max_cohort_size") if sampler.description.get(name) is not None]
    if kind not in ("uniform", "poisson") or others:
        raise ValueError(
            f"what a sample says of all clients is known of uniform and Poisson samples; got {kind!r} {others or ''}. "
            "Use uniform_sampler, or poisson_sampler with one probability and no largest size."
        )
    if sampler.description["num_clients"] != data.num_clients:
        raise ValueError(
            f"the sampler is one of {sampler.description['num_clients']} clients; got data of {data.num_clients}. "
            "Make it for these."
        )
    return np.asarray(data.ids[np.asarray(sampler(round), np.int64)])
