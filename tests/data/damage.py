"""Files that are cut or have flipped bits, and what an importer may do with them."""

import contextlib
import os
import shutil

import numpy as np

from fedjx.data import Store, write_store


def damaged(data, number, seed=0):
    """Yields names and contents of damaged copies of a file: half of them cut, half with one to eight flipped bits."""
    random = np.random.default_rng(seed)
    for k in range(number):
        if k % 2:
            yield f"cut at byte {(length := int(random.integers(len(data))))}", data[:length]
            continue
        array = np.frombuffer(data, np.uint8).copy()
        places = random.integers(len(array), size=random.integers(1, 9))
        array[places] ^= np.uint8(1) << random.integers(8, size=len(places)).astype(np.uint8)
        yield f"flipped bits at {places.tolist()}", array.tobytes()


def check_damage(path, source_fn, *, number=200, seed=0, is_checked=False):
    """Imports damaged copies of a file: each gives a clear error and no store, or a whole store.

    Args:
      path: The undamaged file, or, for a source of several files, one of them; it is damaged in place and mended.
      source_fn: From nothing to the `Source` that reads the file.
      number: How many copies.
      seed: Of the damage.
      is_checked: Whether the format has checksums of all its data, so that what is imported must be what was written.

    Returns:
      How many copies were refused.
    """
    data, parent = path.read_bytes(), path.parent / "damage"
    parent.mkdir()
    expected = contents(write_store(parent / "whole", source_fn(), progress=False))
    num_refused = 0
    try:
        for name, copy in damaged(data, number, seed):
            path.write_bytes(copy)
            try:
                store = write_store(parent / "store", source_fn(), progress=False)
            except (ValueError, OSError) as error:
                problem = error
            else:
                problem = None
            if problem is not None:
                assert type(problem) is not UnicodeDecodeError, (name, problem)
                assert len(str(problem)) > 20, (name, problem)
                assert os.listdir(parent) == ["whole"], name
                num_refused += 1
                continue
            store.verify()
            found = contents(store)
            if is_checked or copy == data:
                assert repr(found) == repr(expected), name
            assert list(found[1]) == list(expected[1]), name  # The same features.
            shutil.rmtree(parent / "store")
    finally:
        path.write_bytes(data)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(parent)
    return num_refused


def contents(store: Store):
    """Returns all that is in a small store: the ids and the examples by feature, in bytes."""
    ids = store.client_ids(np.arange(store.num_clients))
    examples = store.read(np.arange(store.num_clients))
    return ids, {name: (column.dtype.str, column.shape, column.tobytes()) for name, column in examples.items()}
