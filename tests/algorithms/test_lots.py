"""The lots of the start of k-means++ among many million points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from fedjx.algorithms.kmeans_start import draw_lots

NUM_CHUNKS, CHUNK = 16, 2**20  # with 100 chunks, 10^8 points, it takes as much longer


def highest_of_all(gumbel, num_best: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns the highest lots of all points of weight 1, and where in the list they are, in [0, 1)."""

    @jax.jit
    def all_of_them(key):
        def one(carry, i):
            lots, places = carry
            new = gumbel(jax.random.fold_in(key, i), jnp.ones(CHUNK))
            best, where = jax.lax.top_k(new, num_best)
            lots, places = jnp.append(lots, best), jnp.append(places, (i + where / CHUNK) / NUM_CHUNKS)
            best, kept = jax.lax.top_k(lots, num_best)
            return (best, places[kept]), None

        start = jnp.full(num_best, -jnp.inf), jnp.zeros(num_best)
        return jax.lax.scan(one, start, jnp.arange(NUM_CHUNKS, dtype=jnp.float32).astype(jnp.int32))[0]

    return tuple(np.asarray(x, np.float64) for x in all_of_them(jax.random.key(0)))


def assert_exact(lots: np.ndarray, places: np.ndarray) -> None:
    """The highest are distinct, lie anywhere, and are as high as the highest of so many exponential waits are short."""
    assert len(np.unique(lots)) == len(lots)
    assert kstest(places, "uniform").pvalue > 1e-3
    waits = np.exp(-lots) * NUM_CHUNKS * CHUNK  # the first points of a Poisson process of rate 1
    gaps = np.diff(waits, prepend=0.0)
    assert kstest(gaps, "expon").pvalue > 1e-3


def test_among_many_million_points_nobody_is_drawn_more_often():
    assert_exact(*highest_of_all(draw_lots))


def test_lots_of_one_float_are_found_out():
    """The negative control."""
    with pytest.raises(AssertionError):
        assert_exact(*highest_of_all(lambda key, weights: jnp.log(weights) + jax.random.gumbel(key, weights.shape)))
