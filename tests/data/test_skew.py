"""Tests of what makes clients differ in features and concepts."""

import numpy as np
import pytest
from scipy.ndimage import rotate

from fedjx.data.skew import (
    add_noise,
    label_permutations,
    noise_levels,
    permute_labels,
    rotate_images,
    scale_channels,
)

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 12, 12))


@pytest.mark.parametrize("degrees", [30.0, -45.0, 200.5, 359.0])
def test_rotation_is_that_of_scipy(degrees):
    expected = rotate(IMAGES, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
    np.testing.assert_allclose(rotate_images("x", [0, degrees])({"x": IMAGES}, 1)["x"], expected, atol=1e-9)
    colour = np.repeat(IMAGES[:, :10, :, None], 3, axis=3)  # Not square.
    turned = rotate_images("x", [degrees])({"x": colour}, 0)["x"]
    expected = rotate(colour, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
    np.testing.assert_allclose(turned, expected, atol=1e-9)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(rotate_images("x", [-degrees])({"x": colour}, 0)["x"], expected, atol=1e-9)


@pytest.mark.parametrize("turns", range(-1, 5))
def test_right_angles_are_exact(turns):
    images = IMAGES.astype(np.uint8)
    columns = {"x": images, "y": np.arange(3)}
    turned = rotate_images("x", {"ada": 90 * turns})(columns, "ada")
    np.testing.assert_array_equal(turned["x"], np.rot90(images, turns, axes=(1, 2)))
    assert turned["x"].dtype == np.uint8
    assert turned["y"] is columns["y"]


def test_images_that_are_not_square_turn_by_180():
    images = IMAGES[:, :5]
    np.testing.assert_allclose(rotate_images("x", [180])({"x": images}, 0)["x"], images[:, ::-1, ::-1], atol=1e-9)


def test_noise_levels_grow_with_the_client():
    levels = noise_levels(10, variance=0.5)
    zeros = np.zeros((400, 100))
    noise = [add_noise("x", levels, seed=0)({"x": zeros}, k)["x"] for k in range(10)]
    np.testing.assert_allclose([part.var() for part in noise], 0.5 * np.arange(1, 11) / 10, rtol=0.05)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose([part.var() for part in noise], (0.5 * np.arange(1, 11) / 10) ** 2, rtol=0.05)
    assert max(abs(part.mean()) for part in noise) < 0.02


def test_noise_is_a_function_of_seed_client_and_place():
    x = np.zeros((5, 4), np.float32)
    noise = add_noise("x", np.ones(3), seed=0)
    one = noise({"x": x}, 1)["x"]
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, noise({"x": x}, 1)["x"])
    np.testing.assert_array_equal(one[:2], noise({"x": x[:2]}, np.int64(1))["x"])
    named = add_noise("x", {"a": 1.0, "b": 1.0}, seed=0)
    others = [
        noise({"x": x}, 2),
        add_noise("x", np.ones(3), seed=1)({"x": x}, 1),
        named({"x": x}, "a"),
        named({"x": x}, "b"),
    ]
    values = [one.tobytes(), *(other["x"].tobytes() for other in others)]
    assert len(set(values)) == 5
    assert not x.any()


def test_integers_are_rounded_and_clipped():
    x = np.array([[0, 10, 250]], np.uint8)
    assert scale_channels("x", [1.26], [-3.0])({"x": x}, 0)["x"].tolist() == [[0, 10, 255]]
    noisy = add_noise("x", [300.0], seed=0)({"x": np.full((1000,), 128, np.uint8)}, 0)["x"]
    assert (noisy.min(), noisy.max(), noisy.dtype) == (0, 255, np.uint8)


def test_gain_and_offset_of_channels():
    x = np.random.default_rng(0).normal(size=(4, 5, 5, 3))
    gains, offsets = np.array([[1, 1, 1], [0.5, 2, 3]]), np.array([0.0, 0.25])
    expected = x * np.array([0.5, 2, 3]) + 0.25
    np.testing.assert_allclose(scale_channels("x", gains, offsets)({"x": x}, 1)["x"], expected)
    np.testing.assert_array_equal(scale_channels("x", gains)({"x": x}, 0)["x"], x)


def test_groups_share_a_concept():
    concepts = label_permutations(4, 10, seed=0)
    assert concepts[0].tolist() == list(range(10))
    assert (np.sort(concepts, axis=1) == np.arange(10)).all()
    assert len(np.unique(concepts, axis=0)) == 4
    np.testing.assert_array_equal(concepts, label_permutations(4, 10, seed=0))
    assert (concepts != label_permutations(4, 10, seed=1)).any()
    groups = np.arange(8) % 4
    y = np.random.default_rng(0).integers(0, 10, 50).astype(np.int16)
    shift = permute_labels("y", concepts[groups])
    for k in range(8):
        new = shift({"y": y}, k)["y"]
        assert new.dtype == np.int16
        np.testing.assert_array_equal(np.argsort(concepts[groups[k]])[new], y)
    np.testing.assert_array_equal(shift({"y": y}, 1)["y"], shift({"y": y}, 5)["y"])
    assert (shift({"y": y}, 1)["y"] != shift({"y": y}, 2)["y"]).any()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: rotate_images("z", [0])({"x": IMAGES}, 0), "one of 'x'; got feature='z'"),
        (lambda: rotate_images("x", [0])({"x": IMAGES}, 1), "clients 0 to 0; got client 1"),
        (lambda: rotate_images("x", [0, 1])({"x": IMAGES}, -1), "clients 0 to 1; got client -1"),
        (lambda: rotate_images("x", [0])({"x": IMAGES}, "ada"), "Give a dict by id"),
        (lambda: rotate_images("x", {"bob": 0})({"x": IMAGES}, "ada"), "got none for 'ada'"),
        (lambda: rotate_images("x", [0])({"x": IMAGES[0]}, 0), r"images.shape=\(12, 12\)"),
        (lambda: scale_channels("x", [[1, 2]])({"x": IMAGES}, 0), r"each of \(12,\) channels; got \(2,\)"),
        (lambda: permute_labels("y", [[0, 0]])({"y": np.array([0])}, 0), r"every class once; got \[0, 0\]"),
        (lambda: permute_labels("y", [[1, 0]])({"y": np.array([2])}, 0), r"\[0, 2\); got 2 to 2"),
        (lambda: add_noise("x", [1.0], seed=-1), "seed=-1"),
    ],
)
def test_errors(function, message):
    with pytest.raises(ValueError, match=message):
        function()
