"""No entry adds more than its question's bounds, whatever a question of somebody's own makes of a record."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics import Entry, Question, ask
from fedjx.analytics.question import of_values
from fedjx.data import FederatedData


def as_it_is(record, told):
    return Entry(jnp.int32(0), record["x"][None])


def summed(total):
    return total.table[0, 0], None


QUESTION = Question(("x",), as_it_is, 1, summed, of_values(1, counts=False), bounds=(2.0,), counts=False)
NOISY = {"epsilon": 1000.0, "delta": 1e-6, "max_records": 1, "key": jax.random.key(0)}


@pytest.mark.parametrize(("trust", "terms"), [("secure", {}), ("central_dp", NOISY)])
def test_an_entry_beyond_its_bounds_is_clipped(trust, terms):
    values = [0.5, -1.0, 1e9, -np.inf, np.nan, np.inf, 2.5]
    data = FederatedData.from_clients([{"x": np.float32([value])} for value in values])
    found = ask(QUESTION, data, trust=trust, **terms).value
    assert found == pytest.approx(0.5 - 1.0 + 2.0 - 2.0 + 0.0 + 2.0 + 2.0, abs=0.6)
    assert np.isnan(ask(QUESTION, data).value)  # plain answers are of what is there
