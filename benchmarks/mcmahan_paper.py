"""The tables of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data".

arXiv 1602.05629, version 4; table 1 is the effect of how many clients are in a round, table 2 of how much each of them
computes. `None` is a run that did not reach its target "in the allowed time".
"""

from __future__ import annotations

from typing import NamedTuple

TARGETS = {"2nn": 0.97, "cnn": 0.99, "lstm": 0.54}
SPLITS = ("iid", "non-iid")


class Cell(NamedTuple):
    """What a number of rounds in the tables is of.

    Attributes:
      network: One of `TARGETS`.
      split: One of `SPLITS`: of MNIST two shards of one digit, of Shakespeare the roles.
      fraction: C, which share of the clients is in a round; 0 is one client.
      batch_size: B; None is all examples of the client.
      num_epochs: E.
    """

    network: str
    split: str
    fraction: float
    batch_size: int | None
    num_epochs: int

    def __str__(self) -> str:
        batch = "inf" if self.batch_size is None else self.batch_size
        return f"{self.network} {self.split} C={self.fraction:g} B={batch} E={self.num_epochs}"


Rounds = dict[Cell, int | None]


def _table_1(network: str, num_epochs: int, rows: dict[float, tuple[int | None, ...]]) -> Rounds:
    """Takes rows of the first table: for each split, all examples in a batch and then ten."""
    columns = [(split, batch_size) for split in SPLITS for batch_size in (None, 10)]
    return {
        Cell(network, split, fraction, batch_size, num_epochs): rounds
        for fraction, row in rows.items()
        for (split, batch_size), rounds in zip(columns, row, strict=True)
    }


def _table_2(network: str, rows: dict[tuple[int, int | None], tuple[int, int]]) -> Rounds:
    """Takes rows of the second table, for both splits."""
    return {
        Cell(network, split, 0.1, batch_size, num_epochs): rounds
        for (num_epochs, batch_size), row in rows.items()
        for split, rounds in zip(SPLITS, row, strict=True)
    }


TABLE_1 = {
    **_table_1(
        "2nn",
        1,
        {
            0.0: (1455, 316, 4278, 3275),
            0.1: (1474, 87, 1796, 664),
            0.2: (1658, 77, 1528, 619),
            0.5: (None, 75, None, 443),
            1.0: (None, 70, None, 380),
        },
    ),
    **_table_1(
        "cnn",
        5,
        {
            0.0: (387, 50, 1181, 956),
            0.1: (339, 18, 1100, 206),
            0.2: (337, 18, 978, 200),
            0.5: (164, 18, 1067, 261),
            1.0: (246, 16, None, 97),
        },
    ),
}
# Two of its rows are in table 1 too, with other numbers: of other runs.
TABLE_2 = {
    **_table_2(
        "cnn",
        {
            (1, None): (626, 483),
            (5, None): (179, 1000),
            (1, 50): (65, 600),
            (20, None): (234, 672),
            (1, 10): (34, 350),
            (5, 50): (29, 334),
            (20, 50): (32, 426),
            (5, 10): (20, 229),
            (20, 10): (18, 173),
        },
    ),
    **_table_2(
        "lstm",
        {
            (1, None): (2488, 3906),
            (1, 50): (1635, 549),
            (5, None): (613, 597),
            (1, 10): (460, 164),
            (5, 50): (401, 152),
            (5, 10): (192, 41),
        },
    ),
}
CELLS = tuple(dict.fromkeys((*TABLE_1, *TABLE_2)))


def published(cell: Cell) -> list[int | None]:
    """Returns the numbers of rounds that the paper has for a cell, of one or both tables."""
    return [table[cell] for table in (TABLE_1, TABLE_2) if cell in table]
