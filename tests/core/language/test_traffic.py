"""The communication bill added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation import protocol_traffic
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_collect,
    federated_mean,
    federated_secure_sum,
    federated_sum,
)
from fedjx.core.language.placed import federated_map
from fedjx.core.language.traffic import Traffic, traffic
from fedjx.core.language.types import SERVER, FederatedType, parse_type
from fedjx.core.language.values import Clients

SHAPES = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]


@federated_computation
def averaged(model, data):
    trained = federated_map(lambda p, x: jax.tree.map(lambda leaf: leaf - x, p), federated_broadcast(model), data)
    return federated_mean(trained)


def test_the_plain_bill_of_the_compression_tutorial_to_the_bit():
    """Ten clients and ten rounds of the CNN with 1,663,370 parameters; without running or holding it."""
    model = FederatedType(tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES), SERVER)
    client = traffic(averaged, model, parse_type("{float32}@CLIENTS"))
    assert client == Traffic(down=53_227_840, up=53_227_840)
    rounds = np.cumsum([(client * 10).down] * 10)
    assert rounds.tolist()[:2] == [532_278_400, 1_064_556_800]
    total = sum([client * 10] * 10, Traffic())
    assert (total.down, total.total) == (5_322_784_000, 10_645_568_000)  # more than 32 bits hold
    assert f"{(client * 10).metrics()['MiB_down']:.2f}" == "63.45"  # the tutorial prints 507.62: mebibits


def test_directions_passes_and_codes_are_told_apart():
    @federated_computation
    def coded(scale, x):
        codes = federated_map(lambda x, s: (x / s).astype(jnp.uint8), x, federated_broadcast(scale))
        first = federated_sum(codes, decode=lambda c: c.astype(jnp.float32))
        return federated_mean(federated_map(jnp.add, x, federated_broadcast(first)))

    args = jnp.float32(2.0), Clients.of(np.ones((3, 7), np.float32))
    assert traffic(coded, *args) == Traffic(down=32 + 7 * 32, up=7 * 8 + 7 * 32)


def test_the_protocol_of_secure_sums_is_billed_once_a_pass_if_asked_for():
    @federated_computation
    def centred(x):
        first = federated_secure_sum(x)
        moved = federated_map(jnp.subtract, x, federated_broadcast(first))
        return federated_secure_sum(moved), federated_secure_sum(federated_map(jnp.square, moved))

    x, n, key, share = Clients.of(np.ones((3, 7), np.int32)), 100, 256, 256
    plain, protected = traffic(centred, x), traffic(centred, x, protocol=protocol_traffic(n))
    assert plain == Traffic(down=7 * 32, up=3 * 7 * 32)
    # Bonawitz et al., table 1: 2 n keys and 5 n - 4 shares, here in each of two passes.
    assert protected.total - plain.total == 2 * (2 * n * key + (5 * n - 4) * share)
    assert protected.up - plain.up == 2 * (2 * key + 2 * (n - 1) * share + n * share)
    assert traffic(
        averaged, jnp.float32(1), Clients.of(np.ones(3, np.float32)), protocol=protocol_traffic(n)
    ) == Traffic(32, 32)


def test_metrics_are_in_bits_and_mebibytes():
    assert Traffic(down=8 * 2**20, up=2**22).metrics() == {
        "bits_down": 8388608,
        "bits_up": 4194304,
        "MiB_down": 1.0,
        "MiB_up": 0.5,
    }
    assert 3 * Traffic(1, 2) == Traffic(1, 2) * np.int32(3) == Traffic(3, 6)


def test_a_message_of_unknown_size_is_refused():
    gathered = federated_computation(lambda x: federated_collect(x))
    with pytest.raises(ValueError, match=r"every message needs a size known before the run; got \{float32\*\}@CLIENTS"):
        traffic(gathered, parse_type("{float32*}@CLIENTS"))
