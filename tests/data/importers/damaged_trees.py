"""SQLite databases whose pages are as they were, but not their order."""

import sqlite3


def swap_pages(path, table):
    """Exchanges the first two leaves of a table in its tree, so that rows come in another order."""
    connection = sqlite3.connect(path)
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    start = (root - 1) * page_size
    assert data[start] == 5  # An inner page; the first four bytes of a cell are the number of a leaf.
    first, second = (start + int.from_bytes(data[start + k : start + k + 2], "big") for k in (12, 14))
    data[first : first + 4], data[second : second + 4] = data[second : second + 4], data[first : first + 4]
    path.write_bytes(data)
