"""The source text of Python's standard library as a federated data set that is always there."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.federated_data import FederatedData
from fedjx.data.published.text import windows

# Not everywhere installed with Python, or not part of it.
_LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "turtledemo", "ensurepip"}


def python_source(
    *, sequence_length: int = 128, test_fraction: float = 0.1
) -> tuple[FederatedData, dict[str, np.ndarray]]:
    """Reads the modules of Python's standard library, each of which is a client, as bytes to be predicted.

    Text by many hands in one language, of very different length; nothing is imported or downloaded. The same for
    the same installation of Python; other versions have other text.

    Feature: ``tokens`` uint8 ``[n, sequence_length + 1]``, bytes padded with zeros; the last one is the first of the
    next sequence. `next_token` makes batches of them.

    Args:
      sequence_length: Length of an input.
      test_fraction: Probability that a module is held out, in (0, 1); a hash of its name decides.

    Returns:
      The modules, sorted by name, and the sequences of those that are held out, by feature.

    Raises:
      ValueError: If the length is less than 1 or `test_fraction` is not in (0, 1).
      FileNotFoundError: If the standard library is not there as text.

    >>> train, test = python_source(sequence_length=64)
    >>> train.num_clients > 100, test["tokens"].shape[1]
    (True, 65)
    """
    check_integer("[1, inf)", sequence_length=sequence_length)
    check_number("(0, 1)", test_fraction=test_fraction)
    clients: list[dict[str, np.ndarray]] = []
    held_out: list[dict[str, np.ndarray]] = []
    for name, text in python_modules().items():
        tokens = {"tokens": windows(np.frombuffer(text, np.uint8), sequence_length)}
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        (held_out if int.from_bytes(digest, "little") < test_fraction * 2**56 else clients).append(tokens)
    if not clients or not held_out:
        raise ValueError(
            f"training and test need a module each; got {len(clients)} and {len(held_out)} with {test_fraction=}. "
            "Choose another fraction."
        )
    return FederatedData.from_clients(clients), {"tokens": np.concatenate([client["tokens"] for client in held_out])}


def python_modules() -> dict[str, bytes]:
    """Reads the source text of the standard library's modules by name, sorted; those of at least two bytes.

    Raises:
      FileNotFoundError: If the standard library is not there as text.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for path in (Path(directory, file) for file in files if file.endswith(".py")):
            if len(text := path.read_bytes()) >= 2:
                modules[".".join(path.relative_to(root).with_suffix("").parts)] = text
    if not modules:
        raise FileNotFoundError(
            f"the standard library needs to be there as text; got none in {root}. Use another installation of Python."
        )
    return dict(sorted(modules.items()))
