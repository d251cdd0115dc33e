"""Shapes for data whose sizes change: few, since each is a program, and little larger than what they hold."""

from __future__ import annotations

# Pools of less are all of one shape, whatever the sizes of their clients; to place so much takes some 0.1 ms.
_LEAST_BYTES = 1 << 20
# A pool grows by no more than this at a time: twice the memory is too much for one that fills a quarter of a device.
_STEP_BYTES = 1 << 28
# Steps that no client of a chunk takes cost no more than to shuffle them.
_LEAST_STEPS = 16


def bucket(size: int) -> int:
    """Rounds up to a power of two or three times one: two shapes per doubling, at most 1.5 times as long.

    >>> [bucket(size) for size in range(1, 14)]
    [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    """
    power = 1 << (size - 1).bit_length()
    three_quarters = 3 * power // 4
    return three_quarters if power >= 4 and size <= three_quarters else power


def chunk_steps(needed: int, most: int) -> int:
    """Returns the capacity S of the sequences of a chunk of clients of which the longest has so many batches.

    It is the `bucket` of the most that any client has, and at least 16; or that divided by 4, 16, ... where it is above
    64 and far too large. Whoever is in a cohort, and however the data change, there are few capacities.

    >>> [chunk_steps(needed, most=1000) for needed in (1000, 300, 200, 10)]
    [1024, 1024, 256, 64]
    >>> chunk_steps(3, most=5)
    16
    """
    return _capacity(needed, max(bucket(most), _LEAST_STEPS), least=4 * _LEAST_STEPS)


def pool_rows(num_rows: int, row_bytes: int) -> int:
    """Returns how many rows a pool has that holds so many: one shape up to 1 MiB, then one a doubling.

    From 256 MiB it grows by so much at a time: a large pool takes little more memory than its examples.

    >>> [pool_rows(n, 1 << 20) for n in (1, 5, 9, 300, 700)]
    [1, 8, 16, 512, 768]
    """
    least, step = _rows_in(_LEAST_BYTES, row_bytes), _rows_in(_STEP_BYTES, row_bytes)
    return max(least, min(1 << (num_rows - 1).bit_length(), -(-num_rows // step) * step))


def part_rows(needed: int, most: int, row_bytes: int) -> int:
    """Returns how many rows one device's part of a chunk has: the most there can be, or that divided by 4, 16, ...

    >>> [part_rows(needed, 1000, 1 << 16) for needed in (1000, 300, 200, 3)]
    [1000, 1000, 250, 16]
    """
    least = _rows_in(_LEAST_BYTES, row_bytes)
    return max(least, _capacity(needed, most, least=least))


def _capacity(needed: int, most: int, *, least: int) -> int:
    while most > max(4 * needed, least):
        most = -(-most // 4)
    return most


def _rows_in(num_bytes: int, row_bytes: int) -> int:
    """Returns how many rows so many bytes hold, rounded down to a power of two; at least one."""
    return 1 << max(num_bytes // max(row_bytes, 1), 1).bit_length() - 1
