"""Functions that make clients differ in their features or in what a label means, applied when a client is read.

Each is a `Step` for `preprocess`. What it does to a client is looked up in
`values`: an array whose first axis is the clients, where they are numbered from 0, or a dict by id. The dtype of a
column stays; integers are rounded and clipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice
from fedjx.data.client_ids import ClientId, encoded
from fedjx.data.partitions.allocation import generator
from fedjx.data.preprocess import Columns, Step

ClientValues = ArrayLike | Mapping[ClientId, Any]


def rotate_images(name: str, degrees: ClientValues) -> Step:
    """Turns the images of a client about their centre, counter-clockwise, by linear interpolation.

    What comes in from outside is zero. A square image is turned by multiples of 90 degrees exactly.

    Args:
      name: The feature with the images, ``[n, height, width]`` or ``[n, height, width, channels]``.
      degrees: Of each client.

    >>> x = np.array([[[1, 2], [3, 4]]], np.uint8)
    >>> rotate_images("x", [0, 90])({"x": x}, 1)["x"].tolist()
    [[[2, 4], [1, 3]]]
    """

    def rotated(images: np.ndarray, client_id: ClientId) -> np.ndarray:
        if images.ndim not in (3, 4):
            raise ValueError(
                f"images need to be [n, height, width] or [n, height, width, channels]; got {images.shape=} in "
                f"{name!r}. Reshape them."
            )
        return _rotated(images, float(_value(degrees, client_id)))

    return _of_column("rotate_images", name, rotated, degrees=degrees)


def add_noise(name: str, deviations: ClientValues, *, seed: int) -> Step:
    """Adds Gaussian noise, at another level to each client, as in NIID-Bench (Li et al. 2022, arXiv:2102.02079).

    The noise is a function of the seed, the client's id and the place of the example in the client, and of the
    version of NumPy.

    Args:
      name: The feature.
      deviations: Standard deviation of each client's noise; `noise_levels` are NIID-Bench's.
      seed: Non-negative integer.

    >>> add_noise("x", noise_levels(2, variance=0.1), seed=0)({"x": np.zeros((1, 2))}, 1)["x"].shape
    (1, 2)
    """
    generator(seed)  # Raises now, and not when the first client is read.

    def noisy(column: np.ndarray, client_id: ClientId) -> np.ndarray:
        deviation = float(_value(deviations, client_id))
        return column + deviation * _generator_of(seed, client_id).standard_normal(column.shape)

    return _of_column("add_noise", name, noisy, deviations=deviations, seed=seed)


def noise_levels(num_clients: int, *, variance: float) -> np.ndarray:
    """Returns standard deviations for `add_noise`: the variance of client i = 1, ..., K is ``variance * i / K``.

    >>> noise_levels(4, variance=1.0) ** 2
    array([0.25, 0.5 , 0.75, 1.  ])
    """
    return np.sqrt(variance * np.arange(1, num_clients + 1) / num_clients)


def scale_channels(name: str, gains: ClientValues, offsets: ClientValues | None = None) -> Step:
    """Multiplies a feature by a gain and adds an offset: brightness, contrast, or colour of a client's camera.

    Args:
      name: The feature, ``[n, ...]``.
      gains: Of each client, a number or, for colour, one for each channel, the last axis.
      offsets: Likewise; zero if not given.

    >>> x = np.full((1, 1, 1, 3), 100, np.uint8)
    >>> scale_channels("x", [[1, 1, 1], [0.5, 1, 3]])({"x": x}, 1)["x"].ravel()
    array([ 50, 100, 255], dtype=uint8)
    """

    def scaled(column: np.ndarray, client_id: ClientId) -> np.ndarray:
        # Ranks are not promoted silently elsewhere either: one gain, or one for each channel.
        gain, offset = (
            np.asarray(0.0 if values is None else _value(values, client_id), float) for values in (gains, offsets)
        )
        for factor in (gain, offset):
            if factor.shape not in ((), column.shape[-1:]):
                raise ValueError(
                    f"a client needs one gain, or one for each of {column.shape[-1:]} channels; got {factor.shape}. "
                    "Give [clients] or [clients, channels]."
                )
        return column * gain + offset

    return _of_column("scale_channels", name, scaled, gains=gains, offsets=offsets)


def permute_labels(name: str, permutations: ClientValues) -> Step:
    """Renames the labels of a client: concept shift, in which clients disagree on what a label means.

    Args:
      name: The feature with the labels, integers ``[n, ...]`` from 0.
      permutations: The new name of each class, ``[C]``, of each client; ``label_permutations(...)[groups]`` gives
        those of a group to all its clients.

    >>> groups = np.array([0, 1, 1])
    >>> concepts = np.array([[0, 1, 2], [2, 0, 1]])
    >>> permute_labels("y", concepts[groups])({"y": np.array([0, 1, 2, 2])}, 2)["y"]
    array([2, 0, 1, 1])
    """

    def permuted(labels: np.ndarray, client_id: ClientId) -> np.ndarray:
        new = np.asarray(_value(permutations, client_id))
        if (np.sort(new) != np.arange(len(new))).any():
            raise ValueError(
                f"a permutation needs to have every class once; got {new.tolist()}. Draw it with label_permutations."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < len(new):
            raise ValueError(
                f"labels need to be in [0, {len(new)}); got {labels.min()} to {labels.max()}. "
                "Give permutations of all classes."
            )
        return new[labels]

    return _of_column("permute_labels", name, permuted, permutations=permutations)


def label_permutations(num_groups: int, num_classes: int, *, seed: int) -> np.ndarray:
    """Draws a permutation of the classes for each group, int64 ``[groups, C]``; the first group keeps the labels.

    >>> label_permutations(3, 4, seed=0)[0]
    array([0, 1, 2, 3])
    """
    permutations = generator(seed).permuted(np.tile(np.arange(num_classes), (num_groups, 1)), axis=1)
    permutations[:1] = np.arange(num_classes)
    return permutations


def _of_column(kind: str, name: str, function: Callable[[np.ndarray, ClientId], np.ndarray], **parameters: Any) -> Step:
    """Makes a step of a function of one feature and the client's id; parameters are numbers or the clients' values."""

    def apply(columns: Columns, client_id: ClientId) -> dict[str, np.ndarray]:
        check_choice(sorted(columns), feature=name)
        column = np.asarray(columns[name])
        return {**columns, name: _as_type(column.dtype, function(column, client_id))}

    told = {key: value if isinstance(value, int) else _digest(value) for key, value in parameters.items()}
    return Step(kind, apply, {"feature": name, **told}, lambda sizes: sizes, takes_id=True)


def _digest(values: ClientValues | None) -> str | None:
    """Returns the SHA-256 of what is given for the clients: a manifest tells that it is the same, not what it is."""
    if values is None:
        return None
    held = sorted(values.items(), key=repr) if isinstance(values, Mapping) else np.asarray(values).tolist()
    return hashlib.sha256(repr(held).encode()).hexdigest()


def _as_type(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _value(values: ClientValues, client_id: ClientId) -> Any:
    if isinstance(values, Mapping):
        if client_id not in values:
            raise ValueError(f"every client needs a value; got none for {client_id!r}. Give a dict with all ids.")
        return values[client_id]
    array = np.asarray(values)
    if not isinstance(client_id, int | np.integer) or not 0 <= client_id < len(array):
        raise ValueError(
            f"an array has values for the clients 0 to {len(array) - 1}; got client {client_id!r}. Give a dict by id."
        )
    return array[client_id]


def _generator_of(seed: int, client_id: ClientId) -> np.random.Generator:
    digest = hashlib.blake2b(encoded(client_id).value, digest_size=16, key=str(seed).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


def _rotated(images: np.ndarray, degrees: float) -> np.ndarray:
    height, width = images.shape[1:3]
    if degrees % 90 == 0 and height == width:
        return np.rot90(images, int(degrees // 90), axes=(1, 2))
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # Where each pixel of the result comes from; the y axis points down.
    source_y = cosine * y + sine * x + (height - 1) / 2
    source_x = cosine * x - sine * y + (width - 1) / 2
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (images.ndim - 3)).astype(np.float64)
    # The frame of zeros is one pixel wide, and further out it is no different.
    source_y, source_x = np.clip(source_y + 1, 0, height + 1), np.clip(source_x + 1, 0, width + 1)
    top, left = np.minimum(source_y.astype(int), height), np.minimum(source_x.astype(int), width)
    result = np.zeros(images.shape)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - row - (source_y - top)) * np.abs(1 - column - (source_x - left))
        result += padded[:, top + row, left + column] * weight.reshape(height, width, *[1] * (images.ndim - 3))
    return result
