"""Tests of what is done with published images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.data.published import (
    as_bytes,
    cifar_normalised,
    cifar_standardised,
    emnist_autoencoder,
    emnist_domain,
    emnist_inverted,
    emnist_recognition,
    photographs,
    random_crop,
    random_flip,
    standardised,
)
from fedjx.data.published.images import narrowed, stacked

BYTES = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_bytes_are_kept(dtype):
    grey = np.arange(256).astype(dtype).reshape(2, 128) / dtype(255)
    columns = as_bytes("x", shape=(128,))({"x": grey, "label": np.arange(2)})
    np.testing.assert_array_equal(columns["x"], np.arange(256).reshape(2, 128))
    assert columns["label"].tolist() == [0, 1]
    for wrong in (grey + dtype(1e-4), grey - 1, grey * np.nan):
        with pytest.raises(ValueError, match="to be kept as bytes; got others in 'x'"):
            as_bytes("x", shape=(128,))({"x": wrong})


@pytest.mark.parametrize("pixels", [BYTES, BYTES.astype(np.float32) / 255])
def test_emnist(pixels):
    batch = {"pixels": pixels, "label": np.arange(4, dtype=np.uint8), "mask": np.ones(4, bool)}
    grey = BYTES / 255
    recognition, inverted, auto = (
        jax.jit(fn)(batch) for fn in (emnist_recognition, emnist_inverted, emnist_autoencoder)
    )
    np.testing.assert_allclose(recognition["x"], grey[..., None], atol=1e-6)
    np.testing.assert_allclose(inverted["x"], 1 - grey[..., None], atol=1e-6)
    np.testing.assert_allclose(auto["x"], 1 - grey.reshape(4, 784), atol=1e-6)
    np.testing.assert_array_equal(auto["x"], auto["y"])
    for result in (recognition, inverted):
        assert result["y"].tolist() == [0, 1, 2, 3]
        assert set(result) == {"x", "y", "mask"}


@pytest.mark.parametrize(
    ("client_id", "domain"),
    [("f2099_00", 1), ("f2100_00", 0), ("f2599_99", 0), ("f2600_00", 1), (b"00aa11bb22cc33dd:f2500_01", 0)],
)
def test_domains_of_emnist(client_id, domain):
    assert emnist_domain(client_id) == domain


@pytest.mark.parametrize("client_id", ["2100_00", "f21000_00", "xf2100_00", ""])
def test_an_id_that_is_no_writers(client_id):
    with pytest.raises(ValueError, match="a writer of EMNIST has an id"):
        emnist_domain(client_id)


def test_standardising_divides_by_the_deviation():
    random = np.random.default_rng(1)
    images = random.normal(100, 7, (3, 24, 24, 3))
    images[1] = 5.0  # Flat: divided by 1 / sqrt(N), and not by 0.
    images[2] = 5.0 + 1e-3 * random.normal(size=(24, 24, 3))
    expected = [(x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size)) for x in images]
    found = np.asarray(standardised(jnp.asarray(images, jnp.float32)))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # With sqrt(N) in place of 1 / sqrt(N), as others have it, an image of deviation 7 would have another.
    assert found[0].std() == pytest.approx(1, abs=1e-4)
    assert 7 / np.sqrt(images[0].size) < 0.2


def test_cifar_by_tff():
    image = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    batch = {"image": image, "label": np.array([3, 4], np.uint8), "coarse_label": np.array([0, 1], np.uint8)}
    found = cifar_standardised(batch)
    x = image[:, 4:28, 4:28].astype(np.float64)
    mean, deviation = x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found["x"], (x - mean) / deviation, atol=1e-4)
    assert found["y"].tolist() == [3, 4]
    assert set(found) == {"x", "y", "coarse_label"}
    assert cifar_standardised(batch, jax.random.key(0))["x"].shape == (2, 24, 24, 3)


def test_cifar_by_fedjax():
    image = np.full((1, 32, 32, 3), 51, np.uint8)
    found = cifar_normalised({"image": image, "label": np.array([1])})["x"]
    expected = [(0.2 - 0.4914) / 0.2023, (0.2 - 0.4822) / 0.1994, (0.2 - 0.4465) / 0.2010]
    np.testing.assert_allclose(found[0, 5, 5], expected, atol=1e-5)
    distorted = cifar_normalised({"image": image, "label": np.array([1])}, jax.random.key(1))["x"]
    assert distorted.shape == (1, 32, 32, 3)


def test_photographs_are_scaled():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 1:3, 1:3] = 255
    assert photographs({"image": image, "label": np.array([7], np.uint16)}, size=2)["x"].tolist() == [
        [[[1.0] * 3] * 2] * 2
    ]
    with pytest.raises(ValueError, match="a crop needs to fit in the images; got size=128"):
        photographs({"image": image, "label": np.array([7])})


def test_each_image_is_cropped_and_flipped_for_itself():
    size, num = 4, 3000
    image = jnp.arange(36.0).reshape(1, 6, 6, 1)
    images = jnp.tile(image, (num, 1, 1, 1))
    corners = np.asarray(random_crop(images, jax.random.key(0), size))[:, 0, 0, 0].astype(int)
    rows, columns = corners // 6, corners % 6
    counts = np.bincount(rows * 3 + columns, minlength=9)
    assert len(counts) == 9  # The last place too.
    expected = num / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom, 0.999
    flipped = np.asarray(random_flip(images, jax.random.key(1)))
    is_flipped = flipped[:, 0, 0, 0] == 5
    assert 0.45 < is_flipped.mean() < 0.55
    np.testing.assert_array_equal(flipped[is_flipped][0, :, :, 0], np.asarray(image)[0, :, ::-1, 0])
    np.testing.assert_array_equal(flipped[~is_flipped][0], np.asarray(image)[0])


def test_narrowing_checks_the_range():
    assert narrowed(y="uint8")({"y": np.array([0, 255])})["y"].dtype == np.uint8
    for values in ([0, 256], [-1, 3]):
        with pytest.raises(ValueError, match="'y' needs values from 0 to 255"):
            narrowed(y="uint8")({"y": np.array(values)})
    with pytest.raises(ValueError, match=r"needs all its parts; got none of \['b'\]"):
        stacked("all", ("a", "b"))({"a": np.zeros(2)})
