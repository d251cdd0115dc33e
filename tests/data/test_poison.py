"""Poisoned data: which labels and pixels change, and whose."""

import numpy as np
import pytest

from fedjx.data import FederatedData, preprocess
from fedjx.data.poison import flip_labels, only_clients, pixel_trigger, relabel


def data():
    x = np.ones((6, 4, 4, 1), np.uint8)
    return FederatedData({"x": x, "y": np.array([0, 1, 2, 2, 1, 0], np.int32)}, offsets=np.array([0, 3, 6]))


@pytest.mark.parametrize(
    ("poison", "expected"),
    [
        (flip_labels(num_classes=10), [7, 8, 9]),
        (relabel(2, 5), [5, 1, 0]),
        (pixel_trigger(4, rows=slice(1), columns=slice(1), value=9), [4, 4, 4]),
    ],
)
def test_labels_of_the_malicious_client_change(poison, expected):
    poisoned = preprocess(data(), only_clients(lambda client: client == 1, poison))
    np.testing.assert_array_equal(poisoned.client(0)["y"], [0, 1, 2])
    np.testing.assert_array_equal(poisoned.client(1)["y"], expected)
    assert poisoned.client(1)["y"].dtype == np.int32
    np.testing.assert_array_equal(poisoned.sizes, [3, 3])


def test_a_trigger_is_a_patch_on_a_share_of_the_images():
    before = data().client(1)
    after = pixel_trigger(4, rows=slice(2, 4), columns=slice(0, 1), value=9, fraction=2 / 3)(before)
    x = np.asarray(after["x"])
    np.testing.assert_array_equal(after["y"], [4, 4, 0])
    np.testing.assert_array_equal(x[:2, 2:, 0, 0], np.full((2, 2), 9))
    assert (x == 9).sum() == 4
    np.testing.assert_array_equal(before["x"], np.ones((3, 4, 4, 1)))


def test_a_fraction_is_a_share():
    with pytest.raises(ValueError, match="fraction must be"):
        pixel_trigger(0, rows=slice(1), columns=slice(1), value=1, fraction=1.5)
