"""Per-FedAvg: federated averaging of models that are good after one gradient step on a client's own data.

Fallah et al., "Personalized Federated Learning: A Meta-Learning Approach" (arXiv 2002.07948, algorithm 1). On batches
D, D', D'' a client steps to ``w' = w - alpha grad f(w; D)`` and moves w against ``(I - alpha H) grad f(w'; D')``, with
the Hessian H of ``f(w; D'')``; its first-order variant leaves the Hessian out, and its Hessian-free variant takes the
product with it from the difference of two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.algorithms.fed_avg import fed_avg
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.process import Aggregator, Algorithm
from fedjx.models.model import Batch, Model, batch_loss
from fedjx.training.client import ClientOptimizer, LocalAmount, check_not_negative, check_positive
from fedjx.training.failures import Failures
from fedjx.training.surrogate import with_gradient

PyTree = Any

Variant = Literal["exact", "first_order", "hessian_free"]


def per_fed_avg(
    model: Model,
    *,
    client_optimizer: ClientOptimizer,
    inner_learning_rate: float,
    variant: Variant = "first_order",
    difference: float = 1e-2,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds Per-FedAvg.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      client_optimizer: Of the meta-gradient; ``optax.sgd(beta)`` in the paper.
      inner_learning_rate: alpha, of the one step that makes a personal model; 0 is federated averaging.
      variant: "first_order", "hessian_free", or "exact", which multiplies by the Hessian itself.
      difference: delta, how far either way the Hessian-free variant goes along the gradient.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`; `uniform` in the paper.
      metrics_sum: As for `fed_avg`.
      failures: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`. A batch is dealt out
        in turn to D', D and, if there is a Hessian, D'': one with a single example trains as in `fed_avg`.

    Returns:
      An `Algorithm`; a personal model is made by `fine_tuning` with ``optax.sgd(alpha)`` and one step. Its metrics are
      those of `fed_avg`, ``loss`` that after the inner step.

    Raises:
      ValueError: If there is no such variant, alpha is negative or delta not positive.
    """
    if variant not in (known := ("exact", "first_order", "hessian_free")):
        raise ValueError(f"a variant is one of {known}; got {variant=}. Choose one.")
    check_not_negative(inner_learning_rate=inner_learning_rate)
    check_positive(difference=difference)
    return fed_avg(
        meta_model(model, learning_rate=inner_learning_rate, variant=variant, difference=difference),
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        aggregator=aggregator,
        broadcaster=broadcaster,
        client_weight=client_weight,
        metrics_sum=metrics_sum,
        failures=failures,
        **amount,
    )


def meta_model(model: Model, *, learning_rate: float, variant: Variant, difference: float) -> Model:
    """Returns the model whose loss is that after one gradient step, and whose gradient is the variant's."""
    num_parts = 2 if variant == "first_order" else 3

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        def gradient(part: int, at: PyTree) -> PyTree:
            dealt = {name: x[part::num_parts] for name, x in batch.items()}
            return jax.grad(batch_loss(model), has_aux=True)(at, dealt, key)[0]

        personal = _moved(params, -learning_rate, gradient(1, params))
        meta = gradient(0, personal)
        if variant == "exact":
            product = jax.jvp(lambda w: gradient(2, w), (params,), (meta,))[1]
            meta = _moved(meta, -learning_rate, product)
        elif variant == "hessian_free":
            ahead, behind = (gradient(2, _moved(params, d, meta)) for d in (difference, -difference))
            meta = jax.tree.map(lambda g, a, b: g - learning_rate * (a - b) / (2 * difference), meta, ahead, behind)
        return with_gradient(model.loss(personal, batch, key), params, meta)

    return model._replace(loss=loss)


def _moved(params: PyTree, factor: float, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda w, d: w + jnp.asarray(factor, w.dtype) * d, params, direction)
