"""Robust rules where members lie at the start, at the result, all together, or all at zero, and at any scale."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, multi_krum
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.aggregation.zeroing import zero_above
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.values import Clients

NUM_CLIENTS = 11
COMMON = np.array([0.6, 0.0, -0.8, 0.0])

# Rules of members of a size, and how many may lie anywhere.
RULES: dict[str, tuple[Callable[[float], Aggregator], int]] = {
    "median": (lambda size: coordinate_median(), 5),
    "trimmed mean": (lambda size: trimmed_mean(fraction=5 / 11), 5),
    "krum": (lambda size: krum(num_malicious=4), 4),
    "multi-krum": (lambda size: multi_krum(num_malicious=4, num_selected=7), 4),
    "bulyan": (lambda size: bulyan(num_malicious=2), 2),
    "geometric median": (lambda size: geometric_median(), 5),
    "geometric median of zeroed": (lambda size: zero_above(threshold=10 * size, inner=geometric_median()), 5),
    "geometric median from the mean": (lambda size: geometric_median(from_mean=True), 5),
    "weighted geometric median": (lambda size: geometric_median(weighted=True), 5),
    "centred clipping": (lambda size: centred_clipping(bound=size, num_steps=3), 5),
    "norm bounding": (lambda size: norm_bounding(bound=1.1 * size), 5),
    "fl_trust": (lambda size: fl_trust(lambda client: client == 0), 9),
}
BOUNDED = ("centred clipping", "norm bounding", "geometric median of zeroed")
SCALES = (1e-12, 1.0, 1e12)
rules = pytest.mark.parametrize("name", RULES)


def honest() -> np.ndarray:
    """Members of norm about 1 that nearly agree."""
    return (COMMON + 0.02 * np.random.default_rng(0).normal(size=(NUM_CLIENTS, 4))).astype(np.float32)


@functools.cache
def compiled(name: str, size: float) -> Any:
    aggregator = RULES[name][0](size)
    return aggregator.init, aggregator.next.in_graph()


class Run:
    """A rule at a scale; compiled once, but for those that have a bound."""

    def __init__(self, name: str, scale: float = 1.0):
        self.scale = scale
        self.init, self.step = compiled(name, scale if name in BOUNDED else 1.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = (self.scale * x).astype(np.float32)
        value, weight = Clients.of(x), Clients.of(np.ones(len(x), np.float32))
        result = self.step(jax.random.key(0), self.init(x[0]), value, weight)[1]
        return np.asarray(result, np.float64) / self.scale


def moved_to(point: np.ndarray, number: int) -> np.ndarray:
    """The honest members, but for the last ones, which lie at a point."""
    x = honest()
    x[NUM_CLIENTS - number :] = point
    return x


@pytest.mark.parametrize("scale", SCALES)
@rules
def test_members_at_zero_at_the_result_and_all_together(name, scale):
    run, most = Run(name, scale), RULES[name][1]
    alone = run(honest())
    assert np.linalg.norm(alone - COMMON) < 0.1
    for number in (1, 2):  # a rule is as near as the share of those that lie elsewhere allows
        for size in (0.0, 1e-20, 1e-6, 1e-3):
            found = run(moved_to(size * COMMON, number))
            assert np.linalg.norm(found - COMMON) < 0.1 + number / (NUM_CLIENTS - number), (number, size)
    for number in (1, most):
        found = run(moved_to(alone, number))
        assert np.linalg.norm(found - COMMON) < 0.1, number
        found = run(moved_to(alone + 1e-7, number))
        assert np.linalg.norm(found - COMMON) < 0.1, number
    np.testing.assert_allclose(run(np.tile(COMMON, (NUM_CLIENTS, 1))), COMMON, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(np.zeros((NUM_CLIENTS, 4))), np.zeros(4))


@rules
def test_a_rule_knows_no_unit(name):
    """The result of members c times as large is c times the result."""
    x = honest()
    x[8:] = 0.0, 0.5, 0.3, 3.0  # one coordinate each, the same for three
    expected = Run(name)(x)
    for scale in SCALES:
        np.testing.assert_allclose(Run(name, scale)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["geometric median", "geometric median from the mean"])
def test_free_riders_hold_back_the_geometric_median_by_less_than_the_mean(name):
    """The mean would be 2/11 away."""
    for number in (1, 2):
        found = Run(name)(moved_to(np.zeros(4), number))
        assert np.linalg.norm(found) > 0.95


def test_a_rule_of_an_absolute_smallest_distance_is_found():
    """The negative control: Weiszfeld's steps with a distance of at least 1e-6, from 0."""
    z = np.zeros(4)
    x = moved_to(np.zeros(4), 1).astype(np.float64)
    for _ in range(5):
        w = 1 / np.maximum(1e-6, np.linalg.norm(x - z, axis=1))
        z = w @ x / w.sum()
    assert np.linalg.norm(z - COMMON) > 0.9
