"""The checks of arguments: what each takes, what it refuses, and what the error says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.core.language.checks import check_choice, check_integer, check_number, check_same_length


@pytest.mark.parametrize("value", [1, 2**70, np.int8(3), np.uint64(2**64 - 1), np.array(2), jnp.int32(4)])
def test_integers_of_any_kind_are_counts(value):
    check_integer("[1, inf)", n=value)


@pytest.mark.parametrize("value", [1.0, 1.5, np.float32(2), True, np.True_, "3", None, [1], np.array([1, 2])])
def test_what_is_no_integer_is_no_count(value):
    with pytest.raises(TypeError, match=r"^n must be an integer of at least 1; got n=.*\. Pass 1, for example\."):
        check_integer("[1, inf)", n=value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 2^64)", [0, 2**64 - 1], [-1, 2**64]),
        ("[2, 5]", [2, 5], [1, 6]),
        ("[1, 2^31)", [1, np.int64(2**31 - 1)], [0, np.int64(2**31)]),
    ],
)
def test_the_ends_of_integers_are_exact(interval, inside, outside):
    for value in inside:
        check_integer(interval, n=value)
    for value in outside:
        with pytest.raises(ValueError, match=r"n must be an integer in [\[(].*; got n=.*\. Give another\."):
            check_integer(interval, "Give another.", n=value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "said"),
    [
        ("[0, 1)", [0, 0.999, np.float32(0)], [1, -1e-9, np.inf, np.nan], r"in \[0, 1\)"),
        ("(0, 1]", [1e-9, 1, [0.5, 1.0]], [0, 1.1, [0.5, 0.0], np.nan], r"in \(0, 1\]"),
        ("(0, inf)", [1e-30, 3], [0, np.inf, -1, np.nan], "positive and finite"),
        ("(0, inf]", [1e-30, np.inf], [0, np.nan], "positive"),
        ("[0, inf]", [0, np.inf, jnp.bfloat16(2)], [-1, np.nan], "at least 0"),
        ("[1, inf)", [1, 2.5], [0.5, np.inf], "at least 1 and finite"),
    ],
)
def test_numbers_of_an_interval(interval, inside, outside, said):
    for value in inside:
        check_number(interval, x=value)
    for value in outside:
        with pytest.raises(ValueError, match=rf"^x must be {said}; got x=.*\. Pass (0\.5|1|2), for example\."):
            check_number(interval, x=value)


@pytest.mark.parametrize("value", [True, "1", None, 1j, [True]])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^x must be a number, in \[0, 1\]; got x="):
        check_number("[0, 1]", x=value)


def test_a_number_that_is_traced_is_not_looked_at():
    def scaled(x):
        check_number("[0, 1]", x=x)
        return 2 * x

    assert jax.vmap(scaled)(jnp.array([0.5, 7.0])).tolist() == [1.0, 14.0]
    with pytest.raises(ValueError, match="x must be"):
        scaled(jnp.float32(7.0))


def test_the_one_that_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"^b must be an integer"):
        check_integer("[1, inf)", a=1, b=0)
    with pytest.raises(ValueError, match=r"^b must be in \[0, 1\]; got b=2"):
        check_number("[0, 1]", a=1, b=2)
    with pytest.raises(ValueError, match=r"^kind must be one of 'a', 'b'; got kind='c'\. Choose one of these\."):
        check_choice({"a": 0, "b": 1}, other="a", kind="c")


def test_columns_of_one_length():
    check_same_length(x=[1, 2], y=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"^x and y must have the same length; got 1 and 2\. Pad x\."):
        check_same_length("Pad x.", x=[1], y=[1, 2])
