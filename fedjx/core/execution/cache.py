"""JAX's persistent compilation cache, used where the user has not decided about it: no program is compiled twice."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

VARIABLE = "FEDJX_COMPILATION_CACHE_DIR"
LOGGER = logging.getLogger("fedjx")
PATIENCE = 3.0  # seconds that somebody waits without being told what for
_DAYS = 30  # after which a program is compiled anew, so that what nobody runs any more goes away


def use_compilation_cache() -> None:
    """Lets JAX keep what it compiles in a directory, for the next start of the same script.

    It is the one that the variable ``FEDJX_COMPILATION_CACHE_DIR`` names, or ``fedjx/compiled`` in the user's directory
    for caches (``XDG_CACHE_HOME``, ``~/.cache``); with an empty variable none. Its programs older than 30 days are
    deleted. Nothing is done where the user has chosen a directory of JAX's own (``jax_compilation_cache_dir``), or
    turned its cache off (``jax_enable_compilation_cache``). A directory that cannot be written is a warning.

    >>> use_compilation_cache()  # the tests have a directory of their own
    >>> jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    True
    """
    if _option("jax_compilation_cache_dir") is not None or not _option("jax_enable_compilation_cache"):
        return
    named = os.environ.get(VARIABLE)
    if named == "":
        return
    try:
        directory = _caches() / "fedjx" / "compiled" if named is None else Path(named)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} cannot be written")
        _delete_old(directory)
    except (OSError, RuntimeError) as error:  # without a home there is no path
        warnings.warn(
            f"compiled programs should be kept in a directory that can be written, or each start compiles anew; got "
            f"{error}. Name another one in {VARIABLE}, or set it to nothing.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if _option("jax_persistent_cache_min_compile_time_secs") == 1.0:  # JAX's default: most programs are smaller
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Logs a warning when what a computation compiles in this context keeps its caller waiting, in one process."""
    directory = _option("jax_compilation_cache_dir")
    kept = f"is kept in {directory}" if directory else f"is not kept, as {VARIABLE} names no directory"
    text = f"fedjx is tracing and compiling {name!r} before its first round; what it compiles {kept}."
    timer = threading.Timer(PATIENCE, LOGGER.warning, [text])
    timer.daemon = True
    if jax.process_index() == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _option(name: str) -> object:
    return getattr(jax.config, name, None)  # which its type does not know, nor perhaps another JAX


def _caches() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path.home() / ".cache"


def _delete_old(directory: Path) -> None:
    for entry in directory.glob("*-cache"):
        try:
            if time.time() - entry.stat().st_mtime > _DAYS * 86_400:
                entry.unlink()
        except FileNotFoundError:  # another process has just done so
            continue
