"""Distinct counts: the sketch against its definition, its errors against theory and beside Apache DataSketches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics import Question, Sketch, ask, by_group, distinct_count
from fedjx.analytics.distinct import _sigma, _tau
from fedjx.analytics.hashing import hashed
from fedjx.data import FederatedData

HASHED = jax.jit(jax.vmap(hashed))


def registers_of(values: np.ndarray, precision: int) -> np.ndarray:
    """Returns the registers from the definition: of words in bits, as text."""
    found = np.zeros(1 << precision, np.uint8)
    for first, second in np.asarray(HASHED(values)).tolist():
        bits = f"{second:032b}"
        register = int(f"{first:032b}"[:precision], 2)
        found[register] = max(found[register], len(bits) - len(bits.lstrip("0")) + 1)
    return found


def sketch_of(values: np.ndarray, precision: int) -> Sketch:
    """Returns the same, for many values."""
    words = np.asarray(HASHED(values))
    ranks = 33 - np.ceil(np.log2(words[:, 1].astype(np.float64) + 1)).astype(int)
    found = np.zeros(1 << precision, np.uint8)
    np.maximum.at(found, words[:, 0] >> np.uint32(32 - precision), ranks.astype(np.uint8))
    return Sketch(found)


def test_the_sketch_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 500, n) for n in (0, 1, 300, 50, 7)]
    data = FederatedData.from_clients([{"k": x} for x in rows])
    pooled = np.concatenate(rows).astype(np.int32)
    answers = [ask(distinct_count("k", precision=6), data, trust=trust) for trust in ("plain", "secure")]
    for answer in answers:
        np.testing.assert_array_equal(answer.value.registers, registers_of(pooled, 6))
        np.testing.assert_array_equal(answer.value.registers, sketch_of(np.unique(pooled), 6).registers)
        assert answer.stddev == pytest.approx(float(answer.value) * 1.04 / 8, rel=2e-3)
        assert answer.bits == 33 * 64 * 32 + 32
    other = FederatedData.from_clients([{"k": np.unique(pooled)}])
    assert float(ask(distinct_count("k", precision=6), other).value) == float(answers[0].value)


def test_the_union_is_that_of_all_values():
    may, june = np.arange(6000, dtype=np.int32), np.arange(4000, 9000, dtype=np.int32)
    both = sketch_of(may, 10).union(sketch_of(june, 10))
    np.testing.assert_array_equal(both.registers, sketch_of(np.arange(9000, dtype=np.int32), 10).registers)
    assert abs(float(both) / 9000 - 1) < 0.1
    with pytest.raises(ValueError, match="of one precision"):
        both.union(sketch_of(may, 11))


def test_strings_count_once_however_wide_the_column():
    words = [b"a", b"ab", b"ba", b"abcd", b"abcde", b"", b"a" * 9, b"ab"]

    def column(width: int) -> np.ndarray:
        return np.array([np.frombuffer(word.ljust(width, b"\0"), np.uint8) for word in words])

    sketches = [
        ask(distinct_count("text"), FederatedData.from_clients([{"text": column(width)}])).value for width in (9, 16)
    ]
    np.testing.assert_array_equal(sketches[0].registers, sketches[1].registers)
    assert round(float(sketches[0])) == 7


def test_reals_count_zero_once_and_no_number_never():
    data = FederatedData.from_clients([{"x": np.array([0.0, -0.0, 1.5, np.nan, 1.5, np.inf], np.float32)}])
    assert round(float(ask(distinct_count("x"), data).value)) == 3


@pytest.mark.parametrize(("precision", "number"), [(10, 3.25e-2), (12, 1.63e-2), (14, 0.81e-2)])
def test_errors_are_those_of_theory(precision: int, number: float):
    theory, values, repeats = 1.04 / 2 ** (precision / 2), 10 << precision, 60
    assert theory == pytest.approx(number, rel=5e-3)
    errors = []
    for repeat in range(repeats):
        errors.append(float(sketch_of(np.arange(values, dtype=np.int32) + repeat * values, precision)) / values - 1)
    assert abs(np.mean(errors)) < 3 * theory / repeats**0.5
    # Of so few, the standard deviation is known to a tenth: it is not that of one bit more or less.
    assert 0.75 * theory < np.std(errors) < 1.3 * theory


@pytest.mark.parametrize("values", [1, 10, 100, 400, 1000, 2500, 6000])
def test_small_numbers_have_smaller_errors(values: int):
    errors = [float(sketch_of(np.arange(values, dtype=np.int32) + k * values, 10)) / values - 1 for k in range(60)]
    assert abs(np.mean(errors)) < 3 * 0.0325 / 60**0.5
    assert np.std(errors) < 1.25 * 0.0325


def test_of_nothing_is_zero_and_of_full_registers_infinite():
    assert Sketch(np.zeros(64, np.uint8)).estimate == 0
    assert np.isinf(Sketch(np.full(64, 33, np.uint8)).estimate)


def test_the_sums_of_the_estimator():
    x = 0.7
    assert _sigma(x) == pytest.approx(x + sum(2 ** (k - 1) * x ** (2**k) for k in range(1, 40)), rel=1e-12)
    series = 1 - x - sum(2.0**-k * (1 - x ** (2.0**-k)) ** 2 for k in range(1, 60))
    assert _tau(x) == pytest.approx(series / 3, rel=1e-12)


def test_of_registers_that_are_nearly_full():
    registers = np.where(np.arange(64) < 32, 33, 32).astype(np.uint8)
    # Of ranks 32 and 33 alone the steps of the algorithm halve the same sum 32 times.
    expected = 64**2 / (2 * np.log(2)) * 2.0**32 / (64 * _tau(0.5) + 32)
    assert Sketch(registers).estimate == pytest.approx(expected, rel=1e-12)


def test_beside_datasketches():
    datasketches = pytest.importorskip("datasketches")
    parts = (range(50_000), range(40_000, 90_000))
    theirs = [datasketches.hll_sketch(12) for _ in parts]
    for sketch, part in zip(theirs, parts, strict=True):
        for value in part:
            sketch.update(value)
    union = datasketches.hll_union(12)
    for sketch in theirs:
        union.update(sketch)
    ours = [sketch_of(np.array(part, np.int32), 12) for part in parts]
    assert round(theirs[0].get_estimate()) == 51_674
    assert round(union.get_result().get_estimate()) == 92_148
    for truth, sketch, other in (
        (50_000, ours[0], theirs[0].get_estimate()),
        (90_000, ours[0].union(ours[1]), union.get_result().get_estimate()),
    ):
        assert abs(float(sketch) / truth - 1) < 3 * 0.0163
        assert abs(other / truth - 1) < 3 * 0.0163


def test_noise_is_refused():
    data = FederatedData.from_clients([{"k": [1, 2]}, {"k": [3]}])
    for trust in ("central_dp", "distributed_dp", "local_dp", "shuffled_dp"):
        with pytest.raises(ValueError, match="of a table with noise everything is"):
            ask(distinct_count("k"), data, trust=trust, epsilon=1.0, delta=1e-6, max_records=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="precision must be"):
        distinct_count("k", precision=20)


def test_by_group_each_has_a_sketch():
    data = FederatedData.from_clients([{"k": np.arange(40), "g": np.arange(40) % 3}, {"k": [0, 41], "g": [0, 0]}])
    question: Question = by_group(distinct_count("k", precision=8), "g", num_groups=3)
    value = ask(question, data).value
    np.testing.assert_array_equal(
        value[0].registers, sketch_of(np.array([*range(0, 40, 3), 41], np.int32), 8).registers
    )
    assert [round(float(sketch)) for sketch in value] == [15, 13, 13]
    hidden = ask(by_group(distinct_count("k", precision=8), "g", num_groups=3, shown=[False, True, True]), data)
    assert hidden.value[0] is None
    assert np.isnan(hidden.stddev[0])


# --- hashes ---------------------------------------------------------------------------------------


def test_hashes_stay_what_they_are():
    assert HASHED(np.array([7], np.int32))[0].tolist() == [2716826189, 292468403]
    assert hashed(jnp.array([*b"hello", 0, 0], jnp.uint8)).tolist() == [1411834786, 4013793989]


def test_the_hash_of_a_string_folds_its_words():
    key = jax.random.key(5, impl="threefry2x32")
    for word in (int.from_bytes(b"fede", "little"), int.from_bytes(b"r", "little"), 5):
        key = jax.random.fold_in(key, word)
    padded = jnp.array([*b"feder", *[0] * 20], jnp.uint8)
    np.testing.assert_array_equal(hashed(padded, seed=5), jax.random.key_data(key))
    assert hashed(padded, seed=6).tolist() != hashed(padded, seed=5).tolist()


def test_equal_numbers_have_equal_hashes_and_others_have_not():
    of_seven = [hashed(dtype(7)).tolist() for dtype in (jnp.int8, jnp.uint8, jnp.int32, jnp.uint32)]
    assert all(x == of_seven[0] for x in of_seven)
    assert hashed(jnp.float32(7)).tolist() == hashed(jnp.float16(7)).tolist() != of_seven[0]
    words = np.asarray(HASHED(np.arange(20_000, dtype=np.int32)))
    assert len(np.unique(words.astype(np.uint64) @ np.array([1 << 32, 1], np.uint64))) == 20_000
    # Each bit is 1 in half of them, and each two agree in half: within 5 standard deviations.
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint32) & 1).reshape(20_000, 64) * 2.0 - 1
    assert np.abs(bits.mean(axis=0)).max() < 5 / 20_000**0.5
    assert np.abs(bits.T @ bits / 20_000 - np.eye(64)).max() < 5 / 20_000**0.5
    with pytest.raises(TypeError, match="of a number, or of bytes"):
        hashed(jnp.zeros((2, 2)))
