"""Checks of arguments, one line each: an error says what must hold, what came and what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sized
from typing import SupportsIndex, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import PyTree


def check_integer(interval: str, advice: str = "", /, **values: object) -> None:
    """Refuses values that are not integers of an interval; NumPy's integers are some, and bools are none.

    Args:
      interval: For example ``"[1, inf)"`` or ``"[0, 2^64)"``.
      advice: Tells what to do, in a sentence; if it is left out, the error gives an example.
      **values: The values, by the names of the arguments.

    Raises:
      TypeError: If a value is no integer.
      ValueError: If one is not in the interval.

    >>> check_integer("[1, 32]", "A 32-bit ring is the widest.", num_bits=40)
    Traceback (most recent call last):
    ValueError: num_bits must be an integer in [1, 32]; got num_bits=40. A 32-bit ring is the widest.
    >>> check_integer("[1, inf)", num_epochs=1.5)
    Traceback (most recent call last):
    TypeError: num_epochs must be an integer of at least 1; got num_epochs=1.5. Pass 1, for example.
    """
    low, high = _ends(interval)
    what = f"an integer of at least {low:g}" if high == math.inf else f"an integer in {interval}"
    advice = advice or f"Pass {max(1, low):g}, for example."
    for name, value in values.items():
        if isinstance(value, bool | np.bool_) or not _is_index(value):
            raise TypeError(f"{name} must be {what}; got {name}={value!r}. {advice}")
        if not _is_within(interval, operator.index(cast(SupportsIndex, value))):
            raise ValueError(f"{name} must be {what}; got {name}={value!r}. {advice}")


def check_number(interval: str, advice: str = "", /, **values: object) -> None:
    """Refuses values that are not real numbers of an interval, or arrays of such; NaN is in none.

    A value that JAX traces, such as one of a grid of hyper-parameters, is not looked at.

    Args:
      interval: For example ``"[0, 1)"``, or ``"(0, inf]"``, which has infinity.
      advice: Tells what to do, in a sentence; if it is left out, the error gives an example.
      **values: The values, by the names of the arguments.

    Raises:
      TypeError: If a value is no real number; bools are none.
      ValueError: If one is not in the interval.

    >>> check_number("[0, 1)", decay=1.0)
    Traceback (most recent call last):
    ValueError: decay must be in [0, 1); got decay=1.0. Pass 0.5, for example.
    """
    low, high = _ends(interval)
    least = "positive" if interval.startswith("(0,") else f"at least {low:g}"
    what = f"in {interval}" if high < math.inf else least if interval.endswith("]") else f"{least} and finite"
    advice = advice or f"Pass {(low + high) / 2 if high < math.inf else low + 1:g}, for example."
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "iu" and not jnp.issubdtype(array.dtype, np.floating):
            raise TypeError(f"{name} must be a number, {what}; got {name}={value!r}. {advice}")
        if not _is_within(interval, array):
            raise ValueError(f"{name} must be {what}; got {name}={value!r}. {advice}")


def check_params(name: str, params: object) -> None:
    """Refuses to update without the current parameters, which optax lets a caller leave out."""
    if params is None:
        raise ValueError(f"{name} needs the current params; got params=None. Call update(updates, state, params).")


def check_choice(choices: Collection[object], /, **values: object) -> None:
    """Refuses values that are not one of some.

    Raises:
      ValueError: If a value is none of them.

    >>> check_choice(("client", "example"), turns="both")
    Traceback (most recent call last):
    ValueError: turns must be one of 'client', 'example'; got turns='both'. Choose one of these.
    """
    for name, value in values.items():
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"{name} must be one of {known}; got {name}={value!r}. Choose one of these.")


def check_same_length(advice: str = "Give one element for each.", /, **columns: Sized) -> None:
    """Refuses columns that are not of one length.

    Raises:
      ValueError: If two lengths differ.

    >>> check_same_length(coarse=[0, 1], fine=[3])
    Traceback (most recent call last):
    ValueError: coarse and fine must have the same length; got 2 and 1. Give one element for each.
    """
    lengths = [len(column) for column in columns.values()]
    if len(set(lengths)) > 1:
        got = " and ".join(map(str, lengths))
        raise ValueError(f"{' and '.join(columns)} must have the same length; got {got}. {advice}")


def check_alike(first: PyTree, rest: list[PyTree], *, is_leaf: Callable[[object], bool] | None = None) -> None:
    """Refuses members of a cohort that are not of one structure and of the same shapes.

    Args:
      first: The member with which the others are compared.
      rest: The others.
      is_leaf: Tells what is looked at no further, such as sequences, whose lengths may differ.

    Raises:
      ValueError: If a member differs.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(first, is_leaf=is_leaf)
    for k, member in enumerate(rest, 1):
        leaves, other = jax.tree.flatten(member, is_leaf=is_leaf)
        if other != treedef:
            raise ValueError(
                f"the members of a cohort need one structure; got {other} for member {k} and {treedef} for member 0. "
                "Give all the same fields."
            )
        for (path, mine), leaf in zip(paths, leaves, strict=True):
            if not (is_leaf and is_leaf(mine)) and np.shape(leaf) != np.shape(mine):
                raise ValueError(
                    f"the members of a cohort need the same shapes; got {list(np.shape(leaf))} for member {k} and "
                    f"{list(np.shape(mine))} for member 0{jax.tree_util.keystr(path)}. Pad them to one shape, or run "
                    "those of each shape by themselves: clients whose models or features differ are no one cohort."
                )


def _ends(interval: str) -> tuple[float, float]:
    low, high = (end.partition("^") for end in interval[1:-1].split(","))
    return float(low[0]) ** float(low[2] or 1), float(high[0]) ** float(high[2] or 1)


def _is_within(interval: str, value: int | np.ndarray) -> bool:
    low, high = _ends(interval)
    above = value >= low if interval.startswith("[") else value > low
    below = value <= high if interval.endswith("]") else value < high
    return bool(np.all(above & below))


def _is_index(value: object) -> bool:
    try:
        operator.index(cast(SupportsIndex, value))
    except TypeError:
        return False
    return True
