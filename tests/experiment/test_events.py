"""Tests of what TensorBoard is given."""

import math
from types import SimpleNamespace

import numpy as np

from fedjx.experiment import EventWriter


def test_what_is_not_finite_is_written_without_a_word(caplog):
    events = []
    writer = EventWriter(SimpleNamespace(write_event=events.append))
    for value in (0.5, math.nan, -math.inf):
        writer.add_scalar("test/my loss", value, 3)
    (values,) = zip(*(event.summary.value for event in events), strict=True)
    np.testing.assert_array_equal([value.simple_value for value in values], [0.5, math.nan, -math.inf])
    assert {(event.step, value.tag) for event, value in zip(events, values, strict=True)} == {(3, "test/my_loss")}
    assert not caplog.records
