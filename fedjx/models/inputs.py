"""What a model takes: features by name, their shapes, dtypes and ranges; data that are something else are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import Array, DType
from fedjx.core.language.types import ArrayType
from fedjx.core.language.values import MASK

_KINDS = {np.number: "numbers", np.integer: "integers", np.floating: "floats"}
_Type = ArrayType | jax.ShapeDtypeStruct  # shape and dtype


class Feature(NamedTuple):
    """What a model takes as one feature of an example.

    Attributes:
      shape: The shape in an example, with None for an axis of any length; None for any shape at all.
      dtype: The kind, `np.integer`, `np.floating` or `np.number`; bools are numbers and integers, 0 and 1.
      low: The least value; None if there is none.
      high: The greatest value; None if there is none.
      also: A value beside these that it takes, such as the label that says to leave an example out.
      only: The only values that it takes.
      advice: What to do with other values, in a sentence.

    >>> str(Feature((), np.integer, 0, 9))
    'integers from 0 to 9'
    >>> str(Feature((28, 28, 1))), str(Feature((), only=(-1, 1)))
    ('numbers [28,28,1]', 'numbers, -1 or 1')
    """

    shape: tuple[int | None, ...] | None = ()
    dtype: type[np.generic] = np.number
    low: float | None = None
    high: float | None = None
    also: float | None = None
    only: tuple[float, ...] | None = None
    advice: str = "Scale or renumber it."

    @property
    def has_range(self) -> bool:
        """Tells whether there are values that the model does not take."""
        return (self.low, self.high, self.only) != (None, None, None)

    def __str__(self) -> str:
        axes = "[...]" if self.shape is None else ",".join("?" if n is None else str(n) for n in self.shape)
        shape = f" [{axes}]" if self.shape else " of any shape" if self.shape is None else ""
        low = "" if self.low is None else f" from {self.low:g}"
        high = "" if self.high is None else f" to {self.high:g}"
        only = "" if self.only is None else ", " + " or ".join(f"{x:g}" for x in self.only)
        return f"{_KINDS[self.dtype]}{shape}{low}{high}{only}" + ("" if self.also is None else f", or {self.also:g}")


InputSpec = Mapping[str, Feature]
# What a model has: a spec, or a function that makes it of the types of one example, for what depends on the network.
AnySpec = InputSpec | Callable[[Mapping[str, ArrayType]], InputSpec]


def check_types(spec: InputSpec, schema: Mapping[str, _Type]) -> None:
    """Refuses examples that lack a feature of a model, or have it in another shape or dtype.

    Args:
      spec: What the model takes; other features are not its affair.
      schema: The type of one example by name of the feature.

    Raises:
      ValueError: If a feature is not there, or has another shape.
      TypeError: If one has another dtype.

    >>> check_types({"y": Feature((), np.integer)}, {"label": ArrayType((), np.dtype("int32"))})
    Traceback (most recent call last):
    ValueError: the model takes the feature 'y'; got ['label']. Rename one of these, for example with preprocess.
    """
    for name, feature in spec.items():
        if name not in schema:
            got = sorted(schema.keys() - {MASK})
            raise ValueError(
                f"the model takes the feature {name!r}; got {got}. Rename one of these, for example with preprocess."
            )
        shape, dtype = tuple(schema[name].shape), schema[name].dtype
        got = f"{dtype}{str(list(shape)).replace(' ', '') if shape else ''}"
        if not _has_shape(shape, feature.shape):
            raise ValueError(
                f"the model takes {name!r} as {feature}; got {got} in each example. "
                f"{_shape_advice(shape, feature.shape or ())}"
            )
        if not _is_kind(dtype, feature.dtype):
            raise TypeError(f"the model takes {name!r} as {feature}; got {got}. {_dtype_advice(feature)}")


def check_batch(spec: InputSpec, batch: Mapping[str, Array]) -> None:
    """Refuses a batch, features ``[B, ...]``, as `check_types` does; of the values nothing is known while tracing."""
    check_types(spec, {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch.items() if name in spec})


def outside(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Tells which values ``[...]`` a model does not take, bool ``[...]``; NaN is for the model to deal with.

    >>> outside(Feature((), np.integer, 0, 9), np.array([0, 10, -1, 9])).tolist()
    [False, True, True, False]
    """
    wrong = np.zeros(values.shape, bool)
    if feature.low is not None:
        wrong |= values < feature.low
    if feature.high is not None:
        wrong |= values > feature.high
    if feature.only is not None:
        wrong |= ~np.isin(values, feature.only) & ~np.isnan(values)
    return wrong if feature.also is None else wrong & (values != feature.also)


def check_values(name: str, feature: Feature, values: np.ndarray, owner: Callable[[int], str]) -> None:
    """Refuses values that a model cannot have.

    Args:
      name: Of the feature.
      feature: What the model takes.
      values: The feature of some examples, ``[N, ...]``.
      owner: Names whose the example of a row is, for the error.

    Raises:
      ValueError: If one is not in the range, with the range that is there and the one that must be.
    """
    if not feature.has_range or not values.size:
        return
    if feature.only is None and not outside(feature, np.array([values.min(), values.max()])).any():
        return  # without an array of them all
    wrong = outside(feature, values)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(values), -1).any(axis=1)))
        first = values[row][wrong[row]].reshape(-1)[0] if wrong[row].ndim else values[row]
        raise ValueError(
            f"the model takes {name!r} as {feature}; got {_shown(values.min())} to {_shown(values.max())}, "
            f"{_shown(first)} {owner(row)}. {feature.advice}"
        )


def _shown(value: np.generic) -> str:
    return f"{value.item():g}" if isinstance(value, np.floating) else str(value)


def _has_shape(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(n in (None, m) for m, n in zip(shape, wanted, strict=True))


def _is_kind(dtype: DType, kind: type[np.generic]) -> bool:
    return jnp.issubdtype(dtype, kind) or (np.dtype(dtype).kind == "b" and kind is not np.floating)


def _shape_advice(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    if shape == (*wanted, 1):
        return "Drop the last axis: x[..., 0]."
    if (*shape, 1) == wanted:
        return "Add the last axis: x[..., None]."
    if not wanted and len(shape) == 1:
        return "If they are one-hot, take the largest: argmax(axis=-1)."
    return "Reshape it, or give the model this shape."


def _dtype_advice(feature: Feature) -> str:
    if feature.dtype is np.integer:
        return "Cast class labels to int32; for numbers to be predicted take a loss such as squared_error."
    return "Cast it."
