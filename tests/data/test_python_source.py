"""Tests of the standard library as client data."""

import ast
import sys

import numpy as np
import pytest

from fedjx.data.python_source import python_modules, python_source


def test_modules_are_text_and_are_not_imported():
    before = set(sys.modules)
    modules = python_modules()
    assert set(sys.modules) == before
    assert list(modules) == sorted(modules)
    assert {"ast", "json.decoder", "asyncio.__init__"} <= set(modules)
    assert not [name for name in modules if "test" in name.split(".")]
    with open(ast.__file__, "rb") as file:
        assert modules["ast"] == file.read()


def test_every_byte_is_a_target_once():
    train, test = python_source(sequence_length=50, test_fraction=0.3)
    num_tokens = sum(len(text) - 1 for text in python_modules().values())
    found = np.count_nonzero(train.examples["tokens"][:, 1:]) + np.count_nonzero(test["tokens"][:, 1:])
    zeros = sum(text[1:].count(0) for text in python_modules().values())
    assert found == num_tokens - zeros
    first = train.client(0)["tokens"]
    text = bytes(first[0, :1]) + first[:, 1:].tobytes().rstrip(b"\0")
    assert text in [module.rstrip(b"\0") for module in python_modules().values()]
    assert train.num_clients + 1 < len(python_modules())


def test_a_share_of_the_modules_is_held_out():
    num_modules = len(python_modules())
    for fraction in (0.1, 0.5):
        train, _ = python_source(test_fraction=fraction)
        deviation = np.sqrt(num_modules * fraction * (1 - fraction))
        assert abs(num_modules - train.num_clients - fraction * num_modules) < 4 * deviation


def test_arguments_out_of_range(tmp_path, monkeypatch):
    for change in ({"sequence_length": 0}, {"test_fraction": 0.0}, {"test_fraction": 1.0}):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=f"^{name} must be .*; got {name}={value}"):
            python_source(**change)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="the standard library needs to be there as text"):
        python_source()
