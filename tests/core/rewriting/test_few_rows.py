"""Products of a few rows with a large matrix: the same numbers, in another form."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjx.core.rewriting import few_rows, jaxprs
from fedjx.core.rewriting.rewrite import mapped, rewritten

FORWARD, TRANSPOSED = (1, 0), (1, 1)


def product(contracted, **options):
    numbers = (((contracted[0],), (contracted[1],)), ((), ()))
    return lambda rows, matrix: lax.dot_general(rows, matrix, numbers, **options)


def is_turned(fn, *types) -> bool:
    program, _ = jaxprs.trace(fn, *types)
    return any(map(few_rows.is_turned, program.equations))


def all_in(program: jaxprs.Program) -> Iterator[jaxprs.Equation]:
    for eqn in program.equations:
        yield eqn
        for inner in jaxprs.inner(eqn):
            yield from all_in(inner)


def products_and_barriers(fn, *args) -> tuple[list[tuple[tuple[int, ...], ...]], int]:
    """Lists the shapes that products are of in a rewritten program, for every platform, and counts its barriers."""
    program, _ = jaxprs.trace(lambda *own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True), *args)
    products = [eqn for eqn in all_in(program) if jaxprs.name_of(eqn) == "dot_general"]
    num_barriers = sum(jaxprs.name_of(eqn) == "optimization_barrier" for eqn in all_in(program))
    return sorted(tuple(v.aval.shape for v in eqn.invars) for eqn in products), num_barriers


FILLED = {1: 1, 2: 8, 8: 8, 10: 16, 20: 32, 32: 32}  # a number of rows, and how many a product is of


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 10, 20, 32])
@pytest.mark.parametrize(("contracted", "shape"), [(FORWARD, (301, 800)), (TRANSPOSED, (501, 300))])
def test_the_numbers_are_those_of_the_product(num_rows, contracted, shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(num_rows, shape[contracted[1]])).astype(np.float32)
    matrix = rng.normal(size=shape).astype(np.float32)
    fn = product(contracted)
    turned = num_rows >= 8 or contracted == TRANSPOSED
    assert is_turned(fn, rows, matrix) == turned
    filled = (matrix.shape, (FILLED[num_rows], 300)) if contracted == TRANSPOSED else (rows.T.shape, matrix.shape)
    ways = [(rows.shape, matrix.shape), filled] if turned else [(rows.shape, matrix.shape)]
    assert products_and_barriers(fn, rows, matrix) == (sorted(ways), int(turned))
    exact = np.tensordot(rows.astype(np.float64), matrix, (contracted[:1], contracted[1:]))
    got = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))((rows, matrix))
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_rows_may_have_several_axes():
    rows = np.random.default_rng(0).normal(size=(2, 5, 300)).astype(np.float32)
    matrix = np.random.default_rng(1).normal(size=(500, 300)).astype(np.float32)
    fn = product((2, 1))
    assert is_turned(fn, rows, matrix)
    got = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))((rows, matrix))
    np.testing.assert_allclose(got, rows @ matrix.T, rtol=1e-4, atol=1e-4)


def test_clients_that_are_mapped_together_keep_an_ordinary_product():
    rng = np.random.default_rng(0)
    rows, matrices = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 8, 200), (3, 200, 800)))

    def both(rows, own):
        return jax.jit(lambda own: mapped(lambda _, own: product(FORWARD)(*own), (), own, stop_early=True))((rows, own))

    np.testing.assert_allclose(both(rows, matrices), rows @ matrices, rtol=1e-4, atol=1e-4)
    text = jax.jit(jax.vmap(lambda r, m: few_rows.turned_product(r, m, **OPTIONS))).lower(rows, matrices).as_text()
    assert text.count("dot_general") == 1
    assert "transpose" not in text


OPTIONS = {"dimension_numbers": (((1,), (0,)), ((), ())), "precision": None, "preferred_element_type": None}


@pytest.mark.parametrize(
    ("fn", "types"),
    [
        (product(FORWARD), (of(64, 400), of(400, 800))),  # many rows
        (product(FORWARD), (of(8, 20), of(20, 800))),  # a small matrix
        (product(FORWARD), (of(8, 2000), of(2000, 100))),  # with short rows
        (product(TRANSPOSED), (of(8, 100), of(4000, 100))),
        (product((0, 0)), (of(400, 8), of(400, 800))),  # columns as they are
        (product(FORWARD, precision="highest"), (of(8, 400), of(400, 800))),
        (product(FORWARD), (of(8, 400, dtype=jnp.bfloat16), of(400, 800, dtype=jnp.bfloat16))),
        (product(FORWARD, preferred_element_type=jnp.float64), (of(8, 400), of(400, 800))),
        (jax.vmap(product(FORWARD)), (of(2, 8, 400), of(2, 400, 800))),
    ],
)
def test_other_products_stay_as_they_are(fn, types):
    with jax.enable_x64(True):
        assert not is_turned(fn, *types)


def test_what_is_to_be_differentiated_stays_as_it_is():
    rows, matrix = np.ones((8, 400), np.float32), np.ones((400, 800), np.float32)
    fn = product(FORWARD)
    text = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own)).lower((rows, matrix)).as_text()
    assert "transpose" not in text
    total = jax.grad(lambda rows: jnp.sum(rewritten(lambda _, own: fn(*own), (), (rows, matrix))))
    np.testing.assert_allclose(jax.jit(total)(rows), np.full((8, 400), 800.0))
