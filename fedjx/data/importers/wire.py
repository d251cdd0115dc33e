"""A parser of serialised `tf.train.Example` and `tf.train.SequenceExample` in NumPy alone.

It follows the protocol buffers' encoding: entries come in any order, of duplicates the last counts, messages
that come in pieces are merged, and unknown fields are skipped. What no writer of examples makes, groups and
unknown fields in the entries of a map, is refused, where protobuf skips it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NoReturn

import numpy as np

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3

Span = tuple[int, int]


def parse_example(data: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the values of an example's features by name.

    Args:
      data: The serialised example.
      names: Of the features to return; by default all.

    Returns:
      Vectors: int64, float32, object for bytes, or an empty one of dtype bool where a feature holds no list.

    Raises:
      ValueError: If the example is not well-formed, saying where.

    >>> parse_example(bytes.fromhex("0a0c0a0a0a017912051a030a0107"))
    {'y': array([7])}
    """
    entries = (entry for features in _messages(data, (0, len(data)), 1) for entry in _entries(data, features, 1))
    return {name: _feature(data, parts) for name, parts in entries if names is None or name in names}


def parse_sequence(data: bytes, name: str) -> list[np.ndarray] | None:
    """Returns the values of each step of a feature list of a `SequenceExample`, or None if there is no such list.

    Raises:
      ValueError: If it is not well-formed, saying where.
    """
    steps = None
    for lists in _messages(data, (0, len(data)), 2):
        for key, parts in _entries(data, lists, 1):
            if key == name:
                steps = [feature for part in parts for feature in _messages(data, part, 1)]
    return None if steps is None else [_feature(data, [step]) for step in steps]


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, int, Span]]:
    """Yields the number, wire type and value's place of each field of a message."""
    position, end = span
    while position < end:
        start = position
        tag, first = _varint(data, position, end, 5)
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH:
            length, first = _varint(data, first, end, 5)
            position = first + length
        elif kind == _VARINT:
            _, position = _varint(data, first, end, 10)
        elif kind in (_FIXED64, _FIXED32):
            position = first + (8 if kind == _FIXED64 else 4)
        else:
            _fail(f"the wire type {kind}", start)
        if not 0 < number < 1 << 29:
            _fail(f"the field number {number}", start)
        if position > end:
            _fail(f"a field of {position - first} bytes where {end - first} are left", start)
        yield number, kind, (first, position)


def _messages(data: bytes, span: Span, number: int) -> Iterator[Span]:
    """Yields the places of a message's fields of this number that are messages themselves."""
    for found, kind, value in _fields(data, span):
        if found == number and kind == _LENGTH:
            yield value


def _entries(data: bytes, span: Span, number: int) -> Iterator[tuple[str, list[Span]]]:
    """Yields the key of each entry of a map, and the places of its value's pieces."""
    for entry in _messages(data, span, number):
        key, values = "", []
        for found, kind, (first, end) in _fields(data, entry):
            if found == 1 and kind == _LENGTH:
                try:
                    key = data[first:end].decode()
                except UnicodeDecodeError:
                    _fail("a name that is not UTF-8", first)
            elif found == 2 and kind == _LENGTH:
                values.append((first, end))
            else:
                _fail(f"the field number {found} in an entry", first)
        yield key, values


def _feature(data: bytes, spans: list[Span]) -> np.ndarray:
    """Returns the values of a feature; of lists of different kinds the last counts."""
    kind, lists = 0, []
    for span in spans:
        for number, wire, value in _fields(data, span):
            if wire == _LENGTH and number in (_BYTES, _FLOATS, _INTEGERS):
                if number != kind:
                    kind, lists = number, []
                lists.append(value)
    if kind == _BYTES:
        values = [data[first:end] for part in lists for first, end in _messages(data, part, 1)]
        column = np.empty(len(values), object)
        column[:] = values
        return column
    if kind == _FLOATS:
        return _joined([_floats(data, *value) for part in lists for value in _values(data, part, _FIXED32)], "<f4")
    if kind == _INTEGERS:
        return _joined([_integers(data, value[1]) for part in lists for value in _values(data, part, _VARINT)], "<i8")
    return np.empty(0, bool)


def _values(data: bytes, span: Span, unpacked: int) -> Iterator[tuple[int, Span]]:
    """Yields the wire type and place of a list's values, packed together or each on its own."""
    for number, kind, value in _fields(data, span):
        if number == 1 and kind in (_LENGTH, unpacked):
            yield kind, value


def _floats(data: bytes, kind: int, span: Span) -> np.ndarray:
    first, end = span
    if kind == _LENGTH and (end - first) % 4:
        _fail(f"floats of 4 bytes in {end - first}", first)
    return np.frombuffer(data, "<f4", (end - first) // 4, first)


def _integers(data: bytes, span: Span) -> np.ndarray:
    """Decodes varints, one after the other."""
    first, end = span
    octets = np.frombuffer(data, np.uint8, end - first, first)
    last = np.flatnonzero(octets < 128)
    if len(last) == len(octets):
        return octets.astype(np.int64)
    if not len(last) or last[-1] != len(octets) - 1:
        _fail("a number without its end", end)
    begins = np.append(0, last[:-1] + 1)
    lengths = last - begins + 1
    if lengths.max() > 10:
        _fail(f"a varint of {lengths.max()} bytes", first + int(begins[lengths.argmax()]))
    shifts = np.arange(len(octets)) - np.repeat(begins, lengths)
    parts = (octets & 127).astype(np.uint64) << (7 * shifts).astype(np.uint64)
    return np.bitwise_or.reduceat(parts, begins).view(np.int64)


def _joined(parts: list[np.ndarray], dtype: str) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def _varint(data: bytes, position: int, end: int, longest: int) -> tuple[int, int]:
    """Returns a number of up to so many bytes, and where it ends."""
    value = shift = 0
    for place in range(position, min(position + longest, end)):
        octet = data[place]
        value |= (octet & 127) << shift
        if octet < 128:
            return value, place + 1
        shift += 7
    _fail(f"a varint of more than {min(longest, end - position)} bytes", position)


def _fail(what: str, position: int) -> NoReturn:
    raise ValueError(
        f"a serialised example needs to be well-formed; got {what} at byte {position}. Fetch the file again, it is "
        "corrupt or another format."
    )
