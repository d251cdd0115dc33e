"""Parameters of other dtypes than float32, with and without `jax_enable_x64`: all methods and all aggregators.

A method computes in the dtype of its parameters, its accumulators in float32 at least, and keeps every type. That
float64 ones follow the papers to the last digits is tested where the loops in NumPy are (`tests/algorithms`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.core.language.types import type_of
from tests.worlds.programs import AGGREGATORS, METHODS, Program, equations, program, two_rounds

# What travels in float32, whatever the parameters are: the codes of compressors, and the grid of secure sums.
CODED = [
    name for name in AGGREGATORS if name.startswith(("compress-", "distributed-", "secure-")) or "compressed" in name
]
# How far results are off, relative to the largest number of a leaf: bfloat16 has 8 bits, float32 has 24, of which a
# variance of two numbers, by which one divides, loses some.
NARROW, WIDE = 0.05, {"fed_bn": 1e-2}


def traced(run: Program) -> Any:
    return jax.jit(run.step.in_graph()).trace(*run.arguments)


def dtypes_in(jaxpr: Any) -> set[Any]:
    """The dtypes of all arrays of a program but for weakly typed scalars, which take those of others."""
    found = [v.aval for eqn in equations(jaxpr) for v in (*eqn.invars, *eqn.outvars)]
    return {aval.dtype for aval in found if hasattr(aval, "dtype") and not getattr(aval, "weak_type", False)}


def narrowed(jaxpr: Any) -> list[str]:
    """The operations that make narrower floats of float64."""
    return [
        str(eqn)
        for eqn in equations(jaxpr)
        if eqn.primitive.name == "convert_element_type"
        and eqn.invars[0].aval.dtype == np.float64
        and not eqn.invars[0].aval.weak_type
        and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
        and eqn.outvars[0].aval.dtype != np.float64
    ]


def keeps_its_types(run: Program, result: Any) -> None:
    after = run.after(run.arguments, result)
    for before, new in zip(run.arguments, after, strict=True):
        assert jax.tree.structure(before) == jax.tree.structure(new)
        assert type_of(before) == type_of(new)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*METHODS, *AGGREGATORS])
def test_float64_and_what_is_beside_it(name):
    found = {}
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        run = program(name, dtype)
        trace = traced(run)
        jaxpr = trace.jaxpr.jaxpr
        if dtype == jnp.float64 and name not in CODED:
            assert not narrowed(jaxpr)
        elif dtype != jnp.float64 and name not in ("pca", "kmeans_start"):
            assert jnp.dtype(jnp.float64) not in dtypes_in(jaxpr)
        found[dtype] = two_rounds(run, trace.lower().compile())
        keeps_its_types(run, found[dtype][0])
    assert_near(found[jnp.float64], found[jnp.float32], WIDE.get(name, 1e-5))
    if name not in CODED and name not in WIDE:  # whose values jump, or that divide by a variance of two numbers
        assert_near(found[jnp.bfloat16], found[jnp.float32], NARROW)


def assert_near(got: Any, expected: Any, tolerance: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            scale = np.abs(b).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (scale + 1e-3), err_msg=str(path))


@pytest.mark.parametrize("name", [*METHODS, *AGGREGATORS])
def test_float16_keeps_its_types(name):
    run = program(name, jnp.float16)
    keeps_its_types(run, jax.eval_shape(run.step.in_graph(), *run.arguments))
