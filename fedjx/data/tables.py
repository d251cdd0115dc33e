"""Tables as text, for what commands print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MAX_SHOWN = 10


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Returns rows of text, all of one length, with their columns aligned.

    >>> print(table([("feature", "size"), ("x", "1.5 kB")]))
    feature  size
    x        1.5 kB
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def bytes_text(num_bytes: int) -> str:
    """Says a number of bytes in the unit that suits it.

    >>> bytes_text(1_500), bytes_text(12)
    ('1.5 kB', '12 B')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def number_text(number: float) -> str:
    """Says a number in five digits, or up to a thousand million in all that stand before the point.

    >>> number_text(12_345), number_text(12_345.6), number_text(12.0), number_text(0.123456)
    ('12,345', '12,346', '12', '0.12346')
    """
    is_whole = abs(number) < 1e9 and (abs(number) >= 1e4 or number == int(number))
    return f"{round(number):,}" if is_whole else f"{number:,.5g}"


def counts_text(counts: Mapping) -> str:
    """Lists the first counts by value, and says how many more values there are.

    >>> counts_text({"train": 1_200, "test": 3})
    'train: 1,200, test: 3'
    """
    shown = ", ".join(f"{value}: {count:,}" for value, count in list(counts.items())[:_MAX_SHOWN])
    return shown if len(counts) <= _MAX_SHOWN else f"{shown}, and {len(counts) - _MAX_SHOWN:,} more"
