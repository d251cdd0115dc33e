"""The checksum of TFRecord files, CRC-32C, in NumPy.

No package that fedjx needs has it: zlib has another polynomial, tensorboardX loops over the bytes in Python, and
google_crc32c comes with none of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

_POLYNOMIAL = 0x82F63B78
_BLOCK = 1024
_PIECE = 256 * _BLOCK


@functools.cache
def checksum_fn() -> Callable[[bytes], int]:
    """Returns a function for the CRC-32C of bytes: that of google_crc32c where it imports, otherwise `crc32c`."""
    try:
        import google_crc32c  # pyright: ignore[reportMissingImports]
    except ImportError:
        return crc32c
    return google_crc32c.value


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of bytes.

    The code is linear over the field of two elements: without the inversions at both ends, it is the exclusive or
    of what each byte contributes, which depends on its distance from the end alone. So a block is one lookup of its
    bytes; the code so far is added to the next block's first four.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, first = _contributions()
    places = np.arange(0, 256 * _BLOCK, 256, dtype=np.int32)
    code, whole = 0xFFFFFFFF, len(data) // _BLOCK * _BLOCK
    for start in range(0, whole, _PIECE):
        blocks = np.frombuffer(data, np.uint8, min(_PIECE, whole - start), start).reshape(-1, _BLOCK)
        for block in np.bitwise_xor.reduce(table[blocks + places], axis=1).tolist():
            for place in range(4):
                block ^= first[place][code >> 8 * place & 255]
            code = block
    rest = np.frombuffer(data, np.uint8, offset=whole).copy()
    rest[:4] ^= np.frombuffer(code.to_bytes(4, "little"), np.uint8)[: len(rest)]
    code >>= 8 * min(len(rest), 4)  # What is beyond the end of fewer bytes is left.
    return code ^ int(np.bitwise_xor.reduce(table[rest + places[_BLOCK - len(rest) :]])) ^ 0xFFFFFFFF


@functools.cache
def _contributions() -> tuple[np.ndarray, list[list[int]]]:
    """Returns what the bytes of a block contribute, uint32 ``[1024 * 256]``, and of its first four also as lists."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> 1) ^ (last & 1) * np.uint32(_POLYNOMIAL)
    table = np.empty((_BLOCK, 256), np.uint32)
    table[-1] = last
    for place in range(_BLOCK - 2, -1, -1):
        table[place] = (table[place + 1] >> 8) ^ last[table[place + 1] & 255]
    return table.reshape(-1), table[:4].tolist()
