"""Photographs: landmarks by photographer, species by photographer, and portraits of who smiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task, at_most, opened, reading
from fedjx.data import published
from fedjx.models import cnn
from fedjx.models.published import mobilenet_v2

# Stored larger than the crops of 128 x 128, which then differ.
STORED = (160, 160, 3)
SMILING = published.CELEBA_ATTRIBUTES.index("smiling")


def landmarks(place: Place, setting: Setting) -> Task:
    """Recognises 203 landmarks on the photographs of 233 people, cropped at random and mirrored in training."""
    return _of_photographers(place, setting, published.landmarks(version="gld23k", image_shape=STORED), 203)


def inaturalist(place: Place, setting: Setting) -> Task:
    """Recognises 1,203 species on the photographs of some 9,000 people, cropped at random and mirrored in training."""
    return _of_photographers(place, setting, published.inaturalist(image_shape=STORED), 1203)


def _of_photographers(place: Place, setting: Setting, data_set: published.DataSet, num_classes: int) -> Task:
    data = opened(place, data_set)
    model = reading(mobilenet_v2(num_classes), published.photographs, is_distorted=True)
    return Task(at_most(data["train"], setting.max_examples), data["test"], model)


def celeba(place: Place, setting: Setting) -> Task:
    """Tells who smiles, by LEAF's network of four convolutions, which here has no batch normalisation."""
    data = opened(place, published.celeba())
    network = cnn(2, input_shape=(84, 84, 3), channels=(32, 32, 32, 32))
    return Task(data["train"], data["test"], reading(network, smiles))


def smiles(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Makes inputs ``x`` float32 ``[B, 84, 84, 3]`` from -1 to 1 and targets ``y`` int32 ``[B]``: who smiles."""
    rest = {name: column for name, column in batch.items() if name not in ("image", "attributes")}
    x = jnp.asarray(batch["image"]).astype(jnp.float32) * (2 / 255) - 1
    return {**rest, "x": x, "y": batch["attributes"][:, SMILING].astype(jnp.int32)}
