"""Images as published: transforms that keep them as bytes in a store, and functions of a batch for the jitted step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.data.preprocess import Columns, Step

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_DEVIATION = (0.2023, 0.1994, 0.2010)


def as_bytes(name: str = "pixels", *, shape: tuple[int, ...] = (28, 28)) -> Step:
    """Stores grey values k / 255 as k, uint8 ``[n, *shape]``, which is a quarter of the bytes and loses nothing.

    Args:
      name: The feature, floats ``[n, ...]``.
      shape: Shape of an image.

    Raises:
      ValueError: When applied, if a value is not k / 255 in float32.

    >>> as_bytes("x", shape=(2,))({"x": np.array([[0.0, 51 / 255]], np.float32)})
    {'x': array([[ 0, 51]], dtype=uint8)}
    """

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        pixels = columns[name].astype(np.float32)
        with np.errstate(invalid="ignore"):  # NaN becomes some byte, and differs from it.
            values = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
        if not np.array_equal(values.astype(np.float32) / np.float32(255), pixels):
            raise ValueError(
                f"grey values need to be 0/255 to 255/255, to be kept as bytes; got others in {name!r}. Import them as "
                "they are, with dtype='float32'."
            )
        return {**columns, name: values.reshape(-1, *shape)}

    return Step("as_bytes", fn, {"feature": name})


def narrowed(**dtypes: Any) -> Step:
    """Casts integers to narrower types after a check of their range.

    Args:
      **dtypes: The type of each feature that is cast.

    Raises:
      ValueError: When applied, if a value is not in the range of its new type.

    >>> narrowed(y="uint8")({"y": np.array([3, 255])})
    {'y': array([  3, 255], dtype=uint8)}
    """

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        result = dict(columns)
        for name, dtype in dtypes.items():
            column = result[name]
            low, high = (0, 1) if np.dtype(dtype) == bool else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            if column.size and not low <= column.min() <= column.max() <= high:
                raise ValueError(
                    f"{name!r} needs values from {low} to {high}; got {column.min()} to {column.max()}. "
                    "Is it the published file?"
                )
            result[name] = column.astype(dtype)
        return result

    return Step("narrowed", fn, {name: np.dtype(dtype).name for name, dtype in dtypes.items()})


def stacked(name: str, parts: tuple[str, ...]) -> Step:
    """Makes one feature, bool ``[n, len(parts)]``, of many, so that reading a client is not a read for each.

    >>> columns = {"young": np.array([1, 0]), "smiling": np.array([0, 0])}
    >>> stacked("attributes", ("smiling", "young"))(columns)["attributes"].tolist()
    [[False, True], [False, False]]
    """

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        rest = {key: column for key, column in columns.items() if key not in parts}
        missing = [part for part in parts if part not in columns]
        if missing:
            raise ValueError(f"{name!r} needs all its parts; got none of {missing}. Is it the published file?")
        return {**rest, name: np.stack([columns[part].astype(bool) for part in parts], axis=1)}

    return Step("stacked", fn, {"feature": name, "parts": list(parts)})


def emnist_domain(client_id: str | bytes) -> int:
    """Returns FedJAX's ``domain_id`` of a writer: 0 for those at the high school, 1 for those of the census.

    Raises:
      ValueError: If the id is not that of a writer of EMNIST.

    >>> emnist_domain("f2103_09"), emnist_domain("0123456789abcdef:f3821_37")
    (0, 1)
    """
    text = client_id.decode() if isinstance(client_id, bytes) else str(client_id)
    match = re.fullmatch(r"(?:[0-9a-f]{16}:)?f(\d{4})_\d{2}", text)
    if not match:
        raise ValueError(f"a writer of EMNIST has an id as 'f3821_37'; got {client_id!r}. Is it the published file?")
    return 0 if 2100 <= int(match[1]) <= 2599 else 1


def emnist_recognition(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Makes TFF's inputs ``x`` float32 ``[B, 28, 28, 1]``, 1 is the background, and targets ``y`` int32 ``[B]``."""
    return _replaced(batch, "pixels", _unit(batch["pixels"])[..., None])


def emnist_autoencoder(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Makes TFF's ``x`` and ``y``, both float32 ``[B, 784]``, 0 is the background."""
    pixels = 1.0 - _unit(batch["pixels"])
    flat = pixels.reshape(*pixels.shape[:-2], -1)
    return {**_replaced(batch, "pixels", flat), "y": flat}


def emnist_inverted(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Makes FedJAX's inputs ``x`` float32 ``[B, 28, 28, 1]``, 0 is the background, and targets ``y`` int32 ``[B]``."""
    return _replaced(batch, "pixels", 1.0 - _unit(batch["pixels"])[..., None])


def cifar_standardised(batch: Mapping[str, Any], key: jax.Array | None = None, *, size: int = 24) -> dict[str, Any]:
    """Makes TFF's inputs of CIFAR: crops, and standardises each image.

    The published task does not distort training images, with which FedAdam reaches about 45 %; the 52.5 % of
    the paper need the distortion.

    Args:
      batch: Has ``image``, ``[B, H, W, 3]``, and ``label``.
      key: Where given, each image is cropped at random and flipped with probability 1/2; else the centre is taken.
      size: Height and width of the crop.

    Returns:
      The batch with ``x`` float32 ``[B, size, size, 3]`` and ``y`` int32 ``[B]`` in their place.
    """
    images = jnp.asarray(batch["image"]).astype(jnp.float32)
    return _replaced(batch, "image", standardised(_distorted(images, key, size)))


def cifar_normalised(batch: Mapping[str, Any], key: jax.Array | None = None) -> dict[str, Any]:
    """Makes FedJAX's inputs of CIFAR: each channel less its mean, over its deviation.

    Args:
      batch: Has ``image``, ``[B, H, W, 3]``, and ``label``.
      key: Where given, each image is padded by 4 zeros, cropped at random and flipped with probability 1/2.

    Returns:
      The batch with ``x`` float32 ``[B, H, W, 3]`` and ``y`` int32 ``[B]`` in their place.
    """
    images = _unit(batch["image"])
    if key is not None:
        padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
        images = _distorted(padded, key, images.shape[1])
    mean, deviation = (jnp.reshape(jnp.array(x, jnp.float32), (1, 1, 1, 3)) for x in (CIFAR_MEAN, CIFAR_DEVIATION))
    return _replaced(batch, "image", (images - mean) / deviation)


def photographs(batch: Mapping[str, Any], key: jax.Array | None = None, *, size: int = 128) -> dict[str, Any]:
    """Makes TFF's inputs of Landmarks and iNaturalist: crops, and scales to -1 to 1.

    Args:
      batch: Has ``image``, ``[B, H, W, 3]``, and ``label``.
      key: Where given, each image is cropped at random and flipped with probability 1/2; else the centre is taken.
      size: Height and width of the crop.

    Returns:
      The batch with ``x`` float32 ``[B, size, size, 3]`` and ``y`` int32 ``[B]`` in their place.
    """
    images = _distorted(jnp.asarray(batch["image"]).astype(jnp.float32), key, size)
    return _replaced(batch, "image", images * (2 / 255) - 1)


def standardised(images: jax.Array) -> jax.Array:
    """Subtracts the mean of each image and divides by its deviation, or by 1/sqrt(N) where that is larger.

    Args:
      images: Floats ``[B, H, W, C]``; N is H W C.

    >>> round(float(standardised(jnp.arange(12.0).reshape(1, 2, 2, 3)).std()), 6)
    1.0
    """
    axes, num_values = (1, 2, 3), images[0].size
    mean, deviation = images.mean(axes, keepdims=True), images.std(axes, keepdims=True)
    return (images - mean) / jnp.maximum(deviation, num_values**-0.5)


def random_crop(images: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Crops each image of ``[B, H, W, C]`` to ``[size, size, C]`` at a place of its own, all equally likely."""
    _check_crop(images, size)
    room = jnp.array([images.shape[1] - size + 1, images.shape[2] - size + 1])
    places = jax.random.randint(key, (len(images), 2), 0, room[None])
    return jax.vmap(lambda image, place: jax.lax.dynamic_slice(image, (*place, 0), (size, size, image.shape[-1])))(
        images, places
    )


def central_crop(images: jax.Array, size: int) -> jax.Array:
    """Crops images ``[B, H, W, C]`` to their centre, ``[B, size, size, C]``."""
    _check_crop(images, size)
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def random_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors each image of ``[B, H, W, C]`` with probability 1/2, left to right."""
    is_flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1], images)


def _distorted(images: jax.Array, key: jax.Array | None, size: int) -> jax.Array:
    if key is None:
        return central_crop(images, size)
    key_crop, key_flip = jax.random.split(key)
    return random_flip(random_crop(images, key_crop, size), key_flip)


def _check_crop(images: jax.Array, size: int) -> None:
    if not 1 <= size <= min(images.shape[1:3]):
        raise ValueError(f"a crop needs to fit in the images; got {size=} and {images.shape=}. Choose a smaller one.")


def _unit(pixels: Any) -> jax.Array:
    """Scales bytes to 0 to 1; floats are so already."""
    pixels = jnp.asarray(pixels)
    return pixels.astype(jnp.float32) / 255 if pixels.dtype == jnp.uint8 else pixels


def _replaced(batch: Mapping[str, Any], name: str, x: jax.Array) -> dict[str, Any]:
    """Returns the batch with x and y instead of the image and its label."""
    rest = {key: column for key, column in batch.items() if key not in (name, "label")}
    return {**rest, "x": x, **({"y": jnp.asarray(batch["label"]).astype(jnp.int32)} if "label" in batch else {})}
