"""Decodes images to one shape."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

import numpy as np

# What a decoder may be made to allocate by one image: 256 MB in RGB.
_MAX_PIXELS = 1 << 26


def decoded(image: bytes, image_shape: tuple[int, int, int] | None, where: str) -> np.ndarray:
    """Decodes a JPEG, PNG or other image of 8 bits a channel.

    The image is scaled, where its size differs, until it covers height and width, bilinearly, and its centre is cut
    out. Palette and CMYK images become RGB; transparency is dropped and a rotation in EXIF is not applied.

    Args:
      image: The file's content.
      image_shape: Height, width and channels (3, or 1 for grey); by default its own height and width, and one channel
        if it is grey, else RGB.
      where: The image, for the error.

    Returns:
      uint8 ``[height, width, channels]``.

    Raises:
      ValueError: If it is no image, corrupt, of more than 8 bits a channel or of more than 67 million pixels.
    """
    image_module, fit = _pillow()
    height, width, channels = image_shape or (None, None, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what is harmless; what is not is an exception.
            with image_module.open(io.BytesIO(image)) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels")
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits a channel (mode {picture.mode})")
                picture.load()
                is_grey = picture.mode in ("1", "L", "LA", "La") if channels is None else channels == 1
                flat = picture.convert("L" if is_grey else "RGB")
    except Exception as error:  # Decoders raise anything over a corrupt image, SyntaxError and struct.error too.
        reason = str(error) or type(error).__name__
        raise ValueError(f"an image needs to be whole; {where} is not: {reason}. Mend it, or leave it out.") from error
    if height and width and flat.size != (width, height):
        flat = fit(flat, (width, height), image_module.Resampling.BILINEAR)
    array = np.asarray(flat)
    return array[..., None] if is_grey else array


def stacked(images: Iterable[bytes], image_shape: tuple[int, int, int] | None, where: str) -> np.ndarray:
    """Decodes the images of a client, uint8 ``[n, height, width, channels]``."""
    return of_one_shape(
        [decoded(image, image_shape, f"image {row} of {where}") for row, image in enumerate(images)], where
    )


def of_one_shape(arrays: list[np.ndarray], where: str) -> np.ndarray:
    """Stacks images that have one shape."""
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"images need one shape; got {sorted(shapes)[:5]} in {where}. Give image_shape.")
    return np.stack(arrays)


def check_image_shape(image_shape: tuple[int, int, int] | None) -> None:
    """Raises ValueError where it is not (height, width, 1 or 3)."""
    if image_shape is not None and not (len(image_shape) == 3 and min(image_shape) >= 1 and image_shape[2] in (1, 3)):
        raise ValueError(f"image_shape needs to be (height, width, 3), or 1 for grey; got {image_shape=}. Mend it.")


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("images are decoded with Pillow; got no such package. pip install pillow.") from error
    return Image, ImageOps.fit
