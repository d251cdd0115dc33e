"""Tests of the parser of tf.train.Example, against golden bytes and another schema of protobuf."""

import struct

import jax
import numpy as np
import pytest
from google.protobuf.message import DecodeError

from fedjx import ArrayType
from fedjx.data.importers.features import cast
from fedjx.data.importers.tf_example import example_reader, parse_example, parse_sequence
from tests.data.importers.protos import parsed, sequence, serialised

KINDS = {"int64_list": np.int64, "float_list": np.float32, "bytes_list": object, None: bool}
EXAMPLES = [
    serialised(pixels=np.linspace(0, 1, 40), label=3),
    serialised(image=np.arange(60) * 5, label=np.int64(-1), big=np.array([2**63 - 1, -(2**63), 0, 127, 128, 16384])),
    serialised(text=[b"", b"\xff\x00", b"words " * 30], score=-4, x=np.array([np.nan, np.inf, -0.0, 1e-40])),
    serialised(**{"": 1, "ü" * 70: [b"a"]}),
]


def field(number, value, kind=2):
    """Returns a field of fewer than 128 bytes."""
    return bytes([number << 3 | kind]) + (bytes([len(value)]) if kind == 2 else b"") + value


def example(*features):
    """Returns an example of entries of a name and a serialised Feature."""
    return field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in features))


def assert_values(found, expected):
    assert found.keys() == expected.keys()
    for name, (kind, values) in expected.items():
        assert found[name].dtype == KINDS[kind]
        np.testing.assert_array_equal(found[name], np.array(values, KINDS[kind]))


@pytest.mark.parametrize("data", EXAMPLES)
def test_values_are_those_of_another_reader(data):
    expected = parsed(data)
    assert_values(parse_example(data), expected)
    assert parse_example(data, {"label", "absent"}).keys() == expected.keys() & {"label"}


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (field(3, field(1, b"\x96\x01\x05")), np.array([150, 5])),  # Packed.
        (field(3, field(1, b"\x96\x01", 0) + field(1, b"\x05", 0)), np.array([150, 5])),  # Not packed.
        (field(3, field(1, b"\x07") + field(1, b"\xff" * 9 + b"\x01", 0)), np.array([7, -1])),  # Both.
        (field(3, field(1, b"\x07")) + field(3, field(1, b"\x08")), np.array([7, 8])),  # A message in two pieces.
        (field(3, field(1, b"\x07")) + field(2, field(1, b"\0\0\x80?")), np.array([1], np.float32)),  # The last kind.
        (field(2, field(1, b"\0\0\x80?") + field(1, b"\0\0\0@", 5)), np.array([1, 2], np.float32)),
        (field(2, field(1, b"")), np.empty(0, np.float32)),
        (field(3, b""), np.empty(0, np.int64)),
        (b"", np.empty(0, bool)),
        (field(9, b"unknown") + field(8, b"\x80\x01", 0) + field(3, field(2, b"x") + field(1, b"\x07")), np.array([7])),
        (field(3, field(1, b"8 bytes!", 1) + field(1, b"\x07")), np.array([7])),  # Of another wire type: unknown.
    ],
)
def test_golden_bytes(feature, expected):
    found = parse_example(example((b"a", b""), (b"x", field(1, field(1, b"replaced"))), (b"x", feature)))
    assert found["x"].dtype == expected.dtype
    np.testing.assert_array_equal(found["x"], expected)
    assert found["a"].shape == (0,)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x05abc",  # A length beyond the buffer,
        b"\x0a\xff\xff\xff\xff\x0f",  # of 4 GiB,
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # of 2^64 - 1.
        b"\x80" * 11 + b"\x01",  # Varints that are too long
        example((b"x", field(3, field(1, b"\x80" * 10 + b"\x01")))),
        example((b"x", field(3, field(1, b"\x80" * 10 + b"\x01", 0)))),
        example((b"x", field(3, field(1, b"\x07\x80")))),  # or have no end.
        example((b"x", field(2, field(1, b"\0\0\x80")))),  # Three quarters of a float.
        example((b"x", field(2, field(1, b"\0\0\x80", 5)))),
        example((b"\xff", b"")),  # A name that is not UTF-8.
        b"\x0b",  # A group that does not end,
        b"\x0c",  # or begin.
        b"\x0e\x00",  # No wire type.
        b"\x02\x00",  # No field number.
        b"\x09abc",
    ],
)
def test_malformed_examples_give_one_error(data):
    with pytest.raises(ValueError, match=r"^a serialised example needs to be well-formed; got .*\. Fetch"):
        parse_example(data)


def mutated(data, random):
    octets = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(octets)))
        operation = random.integers(5)
        if operation < 2:
            octets[place] ^= 1 << int(random.integers(8))
        elif operation == 2:
            del octets[place : place + int(random.integers(1, 9))]
        elif operation == 3:
            octets[place:place] = random.bytes(int(random.integers(1, 12)))
        else:
            octets += octets[place:]
        octets = octets or bytearray(1)
    return bytes(octets)


def test_mutations_are_read_as_by_another_reader_or_refused_with_one_error():
    random = np.random.default_rng(0)
    refused, messages = 0, set()
    for k in range(2_000):
        data = mutated(EXAMPLES[k % len(EXAMPLES)], random)
        try:
            found = parse_example(data)
        except ValueError as error:
            messages.add(str(error).split(";")[0])
            refused += 1
            with pytest.raises(DecodeError):
                parsed(data)
            continue
        assert_values(found, parsed(data))
    assert messages == {"a serialised example needs to be well-formed"}
    assert 200 < refused < 1800


def test_sequences():
    steps = parse_sequence(sequence(EXAMPLES), "serialized_bytes")
    assert [step.tolist() for step in steps] == [[data] for data in EXAMPLES]
    assert parse_sequence(sequence(EXAMPLES), "other") is None
    random, refused = np.random.default_rng(1), 0
    for _ in range(1000):
        try:
            parse_sequence(mutated(sequence(EXAMPLES), random), "serialized_bytes")
        except ValueError:
            refused += 1
    assert 100 < refused < 1000


# Columns.


def test_columns_have_the_types_that_are_asked_for():
    rows = [serialised(x=np.arange(6) + k, y=k, w=np.array([k + 0.5]), t=[b"a", b"b"], s=[b"%d" % k]) for k in range(3)]
    asked = {
        "x": ArrayType((2, 3), np.uint8),
        "y": ArrayType((), np.float32),
        "w": ArrayType((1,), np.float64),
        "t": ArrayType((2,), object),
    }
    columns = example_reader(asked)(rows)
    assert {name: (c.dtype, c.shape) for name, c in columns.items()} == {
        "x": (np.uint8, (3, 2, 3)),
        "y": (np.float32, (3,)),
        "w": (np.float64, (3, 1)),
        "t": (object, (3, 2)),
    }
    np.testing.assert_array_equal(columns["x"], np.arange(6).reshape(2, 3) + np.arange(3)[:, None, None])
    assert columns["t"].tolist() == [[b"a", b"b"]] * 3
    columns = example_reader()(rows)
    assert {name: (c.dtype, c.shape) for name, c in columns.items()} == {
        "s": (object, (3,)),
        "t": (object, (3, 2)),
        "w": (np.float32, (3,)),
        "x": (np.int64, (3, 6)),
        "y": (np.int64, (3,)),
    }
    assert columns["s"].tolist() == [b"0", b"1", b"2"]


def test_lists_of_any_length():
    rows = [serialised(x=np.arange(k), t=[b"t"] * k) for k in (2, 0, 1)]
    asked = {"x": ArrayType((None,), np.uint8), "t": ArrayType((None,), object)}
    columns = example_reader(asked)(rows)
    assert [x.tolist() for x in columns["x"]] == [[0, 1], [], [0]]
    assert {x.dtype for x in columns["x"]} == {np.dtype(np.uint8)}
    assert [t.tolist() for t in columns["t"]] == [[b"t"] * 2, [], [b"t"]]
    with pytest.raises(ValueError, match=r"feature 'x' needs 2 values in every example, for \[2\]; got 0 in example 1"):
        example_reader({"x": ArrayType((2,), np.uint8)})(rows)


def test_no_examples():
    asked = {"x": ArrayType((2, 3), np.uint8), "t": ArrayType((), object)}
    columns = example_reader(asked)([])
    assert [(name, c.shape, c.dtype) for name, c in columns.items()] == [
        ("x", (0, 2, 3), np.uint8),
        ("t", (0,), object),
    ]


@pytest.mark.parametrize(
    ("rows", "dtype", "message"),
    [
        ([serialised(y=1)], np.uint8, r"example 0: features need to be in the file; got \['x'\], and it has \['y'\]"),
        ([serialised(x=1), serialised(x=256)], np.uint8, r"needs values from 0 to 255 to be uint8; got 1 to 256"),
        ([serialised(x=-1)], np.uint64, "needs values from 0 to 18446744073709551615 to be uint64; got -1"),
        ([serialised(x=2)], bool, "needs values from 0 to 1 to be bool"),
        ([serialised(x=2**24 + 1)], np.float32, "needs integers that are exact in float32"),
        ([serialised(x=1.0)], np.uint8, "needs to hold integers to be uint8; got floats"),
        ([serialised(x=[b"1"])], np.uint8, "needs to hold integers to be uint8; got bytes"),
        ([serialised(x=1)], object, "needs to hold bytes to be object; got integers"),
        ([serialised(x=1), serialised(x=1.0)], np.float32, r"the same kind in every example; got \['floats', 'int"),
        ([example((b"x", b""))], np.float32, "needs 1 values in every example, for .*; got 0"),
        ([serialised(x=1), b"\x0a\x09"], np.float32, "example 1: a serialised example needs to be well-formed"),
        (["text"], np.float32, "example 0: a serialised example is bytes; got str"),
    ],
)
def test_what_is_not_as_asked_is_refused(rows, dtype, message):
    with pytest.raises(ValueError, match=message):
        example_reader({"x": ArrayType((), dtype)})(rows)


def test_examples_unlike_the_first_are_refused():
    read = example_reader()
    read([serialised(x=1)])
    for row, message in [
        (serialised(x=1, y=2), r"need the same features; got \['x', 'y'\], and \['x'\] in the first"),
        (serialised(x=np.arange(2)), "needs 1 values in every example"),
        (serialised(x=0.5), "needs to hold integers to be int64; got floats"),
    ]:
        with pytest.raises(ValueError, match=message):
            read([row])
    with pytest.raises(ValueError, match="features without values have no type; got 'x'"):
        example_reader()([example((b"x", b""))])


def test_casts_keep_values():
    column = np.array([0, 1, 255])
    for dtype in (np.uint8, np.int16, np.uint64, np.float16, np.float64, jax.numpy.bfloat16):
        assert cast("x", column, dtype).dtype == dtype
        np.testing.assert_array_equal(cast("x", column, dtype).astype(np.int64), column)
    assert cast("x", np.array([1.5]), np.float16).dtype == np.float16
    assert cast("x", np.array([0, 1]), bool).tolist() == [False, True]
    assert cast("x", np.array([], np.int64), np.uint8).dtype == np.uint8


def test_floats_arrive_bit_for_bit():
    bits = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
    body = bits.tobytes()
    feature = b"\x12" + wire_length(len(body) + 3) + b"\x0a" + wire_length(len(body)) + body
    entry = b"\x0a\x01x\x12" + wire_length(len(feature)) + feature
    data = b"\x0a" + wire_length(len(entry) + 3) + b"\x0a" + wire_length(len(entry)) + entry
    assert len(struct.pack("<500I", *bits)) == len(body)
    np.testing.assert_array_equal(parse_example(data)["x"].view(np.uint32), bits)


def wire_length(n):
    return bytes([n & 127 | 128, n >> 7])


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (2**53 + 1, np.int64, np.float64),
        (-(2**53) - 1, np.int64, np.float64),
        (2**63 - 1, np.int64, np.float64),
        (2**64 - 1, np.uint64, np.float64),
        (2**24 + 1, np.int32, np.float32),
        (2**17, np.int64, np.float16),
        (1e300, np.float64, np.float32),
        (-70_000.0, np.float32, np.float16),
    ],
)
def test_numbers_that_do_not_fit_are_refused(value, source, target):
    with pytest.raises(ValueError, match=f"exact in {np.dtype(target)}|within the range of {np.dtype(target)}"):
        cast("x", np.array([0, value], source), target)


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (2**53, np.int64, np.float64),
        (2**60, np.int64, np.float32),
        (2**63, np.uint64, np.float64),
        (-(2**63), np.int64, np.float64),
        (np.inf, np.float64, np.float32),
        (-np.inf, np.float32, np.float16),
    ],
)
def test_numbers_that_fit_are_converted_exactly(value, source, target):
    found = cast("x", np.array([0, value], source), target)
    assert found.dtype == target
    assert found.tolist() == [0, value]
