"""Matrix factorisation: a rating is the product of a user's and an item's factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.models.inputs import Feature, check_batch
from fedjx.models.model import Batch, Model


def matrix_factorization(num_items: int, *, num_factors: int, scale: float | None = None) -> Model:
    """Assembles the factorisation of one client's row of a matrix of ratings, with squared errors.

    The client is the user: its factors are meant to be local, those of the items to be shared
    (``is_local=lambda name: name == "user"``).

    Args:
      num_items: Number of items N; ``batch["x"]`` is int ``[B]`` in ``0 .. N - 1``.
      num_factors: Number of factors F; ``batch["y"]`` is float ``[B]``, the ratings.
      scale: Standard deviation of the initial factors; ``num_factors ** -0.5`` if not given.

    Returns:
      A model with the metrics ``loss``, the squared error, and ``accuracy``, whether the error is at most one half.

    >>> model = matrix_factorization(3706, num_factors=50)
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'items': (3706, 50), 'user': (50,)}
    """
    deviation = num_factors**-0.5 if scale is None else scale

    def init(key: jax.Array) -> dict[str, jax.Array]:
        key_items, key_user = jax.random.split(key)
        return {
            "items": deviation * jax.random.normal(key_items, (num_items, num_factors)),
            "user": deviation * jax.random.normal(key_user, (num_factors,)),
        }

    spec = {
        "x": Feature((), np.integer, 0, num_items - 1, advice="Number the items from 0, or give the model more."),
        "y": Feature(()),
    }

    def rating(params: dict[str, jax.Array], batch: Batch) -> jax.Array:
        return jnp.take(params["items"], batch["x"], axis=0, mode="clip") @ params["user"]

    def error(params: dict[str, jax.Array], batch: Batch) -> jax.Array:
        check_batch(spec, batch)
        found = rating(params, batch)
        return found - batch["y"].astype(found.dtype)

    def loss(params: dict[str, jax.Array], batch: Batch, key: jax.Array) -> jax.Array:
        del key
        return error(params, batch) ** 2

    def metrics(params: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        wrong = error(params, batch)
        return {"loss": wrong**2, "accuracy": jnp.abs(wrong) <= 0.5}

    return Model(init, loss, metrics, rating, lambda schema: spec)
