"""Good matrices for correlated noise: the adapter of `jax-privacy`, and the only file that knows it.

They are optimised on the host before a run, in seconds; a run needs only the `Strategy`, a few numbers, which can be
written down. ``pip install "fedjx[privacy]"`` brings the library.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.privacy.noise import Strategy


def banded_strategy(num_rounds: int, bands: int) -> Strategy:
    """Returns the Toeplitz matrix of so many bands whose noise on the sums of the first rounds is least on average.

    For clients that are back after at least ``bands`` rounds: Choquette-Choo et al., "(Amplified) Banded Matrix
    Factorization" (arXiv 2306.08153). A `matrix` of it holds ``bands - 1`` times the parameters.

    Args:
      num_rounds: Rounds of the run.
      bands: How many.

    Raises:
      ImportError: Without ``jax-privacy``.

    >>> [round(c, 2) for c in banded_strategy(8, 2).coefficients]
    [0.89, 0.46]
    """
    check_integer("[1, inf)", num_rounds=num_rounds)
    check_integer(f"[1, {num_rounds}]", bands=bands)
    found = _quietly("toeplitz", lambda module: module.optimize_banded_toeplitz(num_rounds, bands))
    return Strategy(tuple(float(c) for c in np.asarray(found)))


def buffered_strategy(
    num_rounds: int, *, min_separation: int, max_participations: int | None = None, max_buffers: int = 3
) -> Strategy:
    """Returns a matrix of decaying buffers (BLT), for clients that are back after a number of rounds.

    Dvijotham et al., "Efficient and Near-Optimal Noise Generation for Streaming Differential Privacy" (arXiv
    2404.16706). A `matrix` of it holds the parameters once for each buffer, however many rounds there are.

    Args:
      num_rounds: Rounds of the run.
      min_separation: The least number of rounds from one participation of a client to its next.
      max_participations: The most rounds with one client; by default as many as that separation lets it have.
      max_buffers: The most buffers; each takes longer to find.

    Raises:
      ImportError: Without ``jax-privacy``.
    """
    check_integer("[1, inf)", num_rounds=num_rounds, min_separation=min_separation, max_buffers=max_buffers)
    most = -(-num_rounds // min_separation) if max_participations is None else max_participations
    options = {"n": num_rounds, "min_sep": min_separation, "max_participations": most, "max_buffers": max_buffers}
    with jax.enable_x64(True):
        found = _quietly("buffered_toeplitz", lambda module: module.optimize(**options))
        decays, scales = np.asarray(found.buf_decay, np.float64), np.asarray(found.output_scale, np.float64)
    return Strategy((1.0,), tuple(scales.tolist()), tuple(decays.tolist()))


def _quietly(name: str, call: Callable[[ModuleType], Any]) -> Any:
    try:
        module = importlib.import_module(f"jax_privacy.matrix_factorization.{name}")
    except ImportError as error:
        raise ImportError(
            f"a strategy is optimised by the package jax-privacy; got {error}. Install it: pip install "
            "'fedjx[privacy]', or write the numbers of a Strategy down."
        ) from error
    # It warns of what it deprecates itself, and relies on promotion of ranks.
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        return call(module)
