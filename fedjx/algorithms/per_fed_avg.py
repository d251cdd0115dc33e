"""Per-FedAvg: federated averaging of models that are good after one gradient step on a client's own data.

Fallah et al., "Personalized Federated Learning: A Meta-Learning Approach" (arXiv 2002.07948, algorithm 1). On batches
D, D', D'' a client steps to ``w' = w - alpha grad f(w; D)`` and moves w against ``(I - alpha H) grad f(w'; D')``, with
the Hessian H of ``f(w; D'')``; its first-order variant leaves the Hessian out, and its Hessian-free variant takes the
product with it from the difference of two gradients.
"""

from __future__ import annotations

from typing import Literal, Unpack

import jax
import jax.numpy as jnp

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_choice, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping
from fedjx.models.model import Batch, Model, batch_loss, map_loss
from fedjx.training.method import ServerState, averaging
from fedjx.training.round import TrainingArguments, compose
from fedjx.training.surrogate import with_gradient

Variant = Literal["exact", "first_order", "hessian_free"]


def per_fed_avg(
    model: Model,
    *,
    inner_learning_rate: float,
    variant: Variant = "first_order",
    difference: float = 1e-2,
    **arguments: Unpack[TrainingArguments],
) -> Algorithm[ServerState]:
    """Builds Per-FedAvg, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      inner_learning_rate: alpha, of the one step that makes a personal model; 0 is federated averaging.
      variant: "first_order", "hessian_free", or "exact", which multiplies by the Hessian itself.
      difference: delta, how far either way the Hessian-free variant goes along the gradient.
      **arguments: As for `fed_avg`. The client optimizer is that of the meta-gradient, ``optax.sgd(beta)`` in the
        paper, whose client weight is `uniform`. A batch is dealt out in turn to D', D and, if there is a Hessian, D'':
        one with a single example trains as in `fed_avg`.

    Returns:
      An `Algorithm`; a personal model is made by `fine_tuning` with ``optax.sgd(alpha)`` and one step. Its metrics are
      those of `fed_avg`, ``loss`` that after the inner step.

    Raises:
      ValueError: If there is no such variant, alpha is negative or delta not positive.
    """
    check_choice(("exact", "first_order", "hessian_free"), variant=variant)
    check_number("[0, inf]", inner_learning_rate=inner_learning_rate)
    check_number("(0, inf]", difference=difference)
    meta = meta_model(model, learning_rate=inner_learning_rate, variant=variant, difference=difference)
    return compose(averaging(meta), **arguments)


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
            meta = map_keeping(lambda g, a, b: g - learning_rate * (a - b) / (2 * difference), meta, ahead, behind)
        return map_loss(lambda loss, count: with_gradient(loss, params, meta, count), model.loss(personal, batch, key))

    return model._replace(loss=loss)


def _moved(params: PyTree, factor: float, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda w, d: w + jnp.asarray(factor, w.dtype) * d, params, direction)
