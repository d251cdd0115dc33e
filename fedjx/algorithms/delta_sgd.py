"""Delta-SGD: a client step size that follows the smoothness the client sees, so that none is tuned.

Kim et al., "Adaptive Federated Learning with Auto-Tuned Clients" (arXiv 2306.11201, algorithm 1). With g_k a client's
mini-batch gradient at x_k,

    step_k = min(amplification ||x_k - x_(k-1)|| / (2 ||g_k - g_(k-1)||), sqrt(1 + growth theta_(k-1)) step_(k-1))
    theta_k = step_k / step_(k-1)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.norms import euclidean_norm
from fedjx.core.language.checks import check_number, check_params
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping, number_dtype


class DeltaSGDState(NamedTuple):
    """The state of `delta_sgd`: the last parameters and gradient, step size and its ratio to the one before."""

    params: PyTree
    gradient: PyTree
    step: jax.Array
    ratio: jax.Array
    is_first: jax.Array


def delta_sgd(
    *, initial_step: float = 0.2, amplification: float = 2.0, growth: float = 0.1
) -> optax.GradientTransformation:
    """Builds the optimizer, to be the ``client_optimizer`` of any algorithm.

    Args:
      initial_step: The step size eta_0 of every client's first step in a round.
      amplification: gamma, of the smoothness estimate.
      growth: delta; bounds how fast the step size grows.

    The paper leaves open what 0 / 0 is: where the parameters have not moved, or the gradient is exactly 0, the step
    size stays as it is.

    Raises:
      ValueError: If the step or gamma is not positive, or delta negative.
    """
    check_number("(0, inf]", initial_step=initial_step, amplification=amplification)
    check_number("[0, inf]", growth=growth)

    def init(params: PyTree) -> DeltaSGDState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        dtype = number_dtype(params)
        first = jnp.asarray(initial_step, dtype), jnp.ones((), dtype)
        return DeltaSGDState(params, zeros, *first, jnp.bool_(True))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, DeltaSGDState]:
        check_params("delta_sgd", params)
        moved = euclidean_norm(optax.tree.sub(params, state.params))
        turned = euclidean_norm(optax.tree.sub(updates, state.gradient))
        smooth = jnp.where(turned > 0, amplification * moved / (2 * jnp.where(turned > 0, turned, 1)), jnp.inf)
        grown = jnp.sqrt(1 + growth * state.ratio) * state.step
        # Where nothing moved, or there is nowhere to go, nothing is learnt of the smoothness.
        keeps = state.is_first | (moved == 0) | (euclidean_norm(updates) == 0)
        step = jnp.where(keeps, state.step, jnp.minimum(smooth, grown))
        after = DeltaSGDState(params, updates, step, step / state.step, jnp.bool_(False))
        return map_keeping(lambda g: -step * g, updates), after

    return optax.GradientTransformation(init, update)
