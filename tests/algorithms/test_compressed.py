"""The compressed broadcast inside an algorithm: what the clients got, and what the server still owes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation import compressed_broadcast, uniform_quantizer
from fedjx.core.language.values import Clients
from fedjx.training import ClientUpdate, Method, compose

CENTRES = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)


def test_what_was_sent_and_what_is_owed_sum_up_to_the_parameters_of_all_rounds():
    def towards(params, centre, key):
        del key
        return ClientUpdate(0.1 * (params - centre), jnp.float32(1), {"got": params})

    to_the_nearest = uniform_quantizer(2, stochastic=False)
    broadcaster = compressed_broadcast(to_the_nearest, error_feedback=True, where=lambda leaf: True)
    algorithm = compose(Method(lambda key: jax.random.normal(key, (20,)), towards), broadcaster=broadcaster)
    state, meant, got, error = algorithm.init(jax.random.key(0)), 0, 0, 0
    for _ in range(8):
        meant, total = meant + state.params, state.params + state.broadcaster
        state, metrics = algorithm.next(state, Clients.of(CENTRES))
        got, error = got + metrics["got"] / len(CENTRES), total - metrics["got"] / len(CENTRES)
        np.testing.assert_allclose(got + state.broadcaster, meant, atol=1e-5)
        assert np.abs(error).max() <= np.ptp(total) / 3 / 2 + 1e-5
    assert np.abs(state.broadcaster).max() > 0.1
