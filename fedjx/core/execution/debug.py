"""Debug mode: a pass over the cohort one client after the other, operation by operation, watched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.execution.engine import trace_one
from fedjx.core.language.debugging import check_finite, watched
from fedjx.core.language.names import PyTree
from fedjx.core.language.padding import own_padding
from fedjx.core.language.passes import Pass
from fedjx.core.language.values import Clients, map_own


def one_by_one(run: Pass, server: PyTree, clients: Clients) -> tuple[tuple[PyTree, ...], PyTree]:
    """Runs a pass as `map_reduce` does, with numbers in the place of traced arrays.

    Raises:
      NonFiniteError: In the place where a client's numbers stop being finite, or the sum to which they are added.
    """
    values, outputs = trace_one(run, server, clients).result
    accumulators = tuple(r.zero(value) for r, value in zip(run.reductions, values, strict=True))
    kept = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)] * clients.num_clients
    for row in np.flatnonzero(np.asarray(clients.mask)):
        member = own_padding(map_own(lambda x, row=row: jnp.asarray(x)[row], clients.value))
        with watched(int(clients.id[row])), jax.disable_jit():
            values, kept[row] = run.fn(server, member, jnp.asarray(clients.id)[row])
            accumulators = _added(run, accumulators, values)
    results = tuple(r.report(x) for r, x in zip(run.reductions, accumulators, strict=True))
    return results, jax.tree.map(lambda *xs: jnp.stack(xs), *kept)


def _added(run: Pass, accumulators: tuple[PyTree, ...], values: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """Adds one client's values to what came of those before."""
    one = jnp.ones(1, bool)
    pairs = zip(run.reductions, accumulators, values, strict=True)
    added = tuple(
        r.update(total, jax.tree.map(lambda x: jnp.asarray(x)[None], value), one) for r, total, value in pairs
    )
    for reduction, before, after in zip(run.reductions, accumulators, added, strict=True):
        if reduction.across == "sum":
            check_finite(after, "in what it adds to a sum over the clients", before=before)
    return added
