"""The most frequent categories and strings."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from fedjx.analytics import ask, top_k
from fedjx.data import FederatedData
from tests.analytics.strings import NUM_BYTES, zipf_words

LABELS = np.random.default_rng(0).geometric(0.3, 3000).clip(0, 19).reshape(1000, 3)


def test_of_categories_are_the_most_frequent():
    data, counts = FederatedData.from_clients([{"label": row} for row in LABELS]), Counter(LABELS.ravel().tolist())
    answer = ask(top_k("label", 4, num_categories=20), data, trust="secure")
    assert answer.value == dict(counts.most_common(4))
    assert answer.stddev == dict.fromkeys(answer.value, 0.0)
    assert set(ask(top_k("label", 20, num_categories=20, min_count=50), data).value) == {
        label for label, count in counts.items() if count >= 50
    }
    how = {"trust": "central_dp", "epsilon": 5.0, "delta": 1e-5, "max_records": 3, "key": jax.random.key(0)}
    assert list(ask(top_k("label", 3, num_categories=20), data, **how).value) == [1, 2, 3]


def test_of_strings_are_the_most_frequent():
    data, counts = zipf_words(2000)
    answer = ask(top_k("word", 5, num_bytes=NUM_BYTES, max_hitters=300, width=1 << 12), data, trust="secure")
    assert list(answer.value) == [word for word, _ in counts.most_common(5)]
    for word, count in answer.value.items():
        assert abs(count - counts[word]) <= 4 * answer.stddev[word]


def test_refuses_what_is_not_clear():
    for arguments in ({}, {"num_bytes": 3, "num_categories": 3}, {"num_categories": 3, "width": 64}):
        with pytest.raises(ValueError, match="categories or of strings"):
            top_k("word", 3, **arguments)
