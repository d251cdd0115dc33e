"""The settings of every test and doctest: four simulated devices, strict ranks, one namespace for doctests.

This file is at the root, and not in `tests/`, because the doctests of `fedjx/` need it too.
"""

import ctypes
import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# JAX reads these when it is first used. The flags are appended, so what the user has set stays; the last one counts.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the tests' time, so the machine code is left as it comes; the XLA program is the same.
flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # A quarter less to compile, each. Later versions may not know a flag, and stop at what they do not know.
    flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
# What one process of a run has compiled, no other one compiles: neither a worker nor what a test starts. An entry is
# found by its whole program, the flags and the version of XLA; JAX counts what it finds like what it compiles.
is_worker = "PYTEST_XDIST_WORKER" in os.environ
if not is_worker:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fedjx-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Nobody reads in a compiled program which line of Python an operation comes from: an eighth of the time to make one.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["MPLBACKEND"] = "Agg"
if is_worker:  # Workers share the cores: thread pools of NumPy and scikit-learn get in the way.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx

# Only ranks are strict: optax.adam, for one, relies on promotion of dtypes.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stops at once where another plugin has initialised JAX with other devices."""
    del session
    if jax.device_count() != 4 or jax.default_backend() != "cpu":
        pytest.exit(f"the tests need 4 simulated CPU devices; got {jax.devices()}.", returncode=3)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Lets the collector of garbage leave out what was imported, and look seldom: it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure() -> None:
    """Throws away what was compiled."""
    if not is_worker:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets, between two files, the programs of those before, where they take much memory."""
    if nextitem is not None and nextitem.path != item.path and _resident_bytes() > 1.5e9:
        jax.clear_caches()
        gc.collect()
        # glibc keeps what is free, in many small pieces: without this every file from here on would begin anew.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)


def _resident_bytes() -> int:
    """Returns the memory of this process, or nothing where the system does not say it in a file."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Gives doctests these four names, and no others, without an import."""
    doctest_namespace.update(np=np, jnp=jnp, jax=jax, fedjx=fedjx)


@pytest.fixture(scope="module")
def x64() -> Iterator[None]:
    """Runs a module's tests with 64-bit numbers."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
