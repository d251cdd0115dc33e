"""What debug mode watches: which client is at work, in which step, and what first becomes non-finite there."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from fedjx.core.language.names import PyTree
from fedjx.core.language.values import MASK

# Of the thread that runs a client in debug mode, for as long as it does.
_client: contextvars.ContextVar[int | None] = contextvars.ContextVar("client", default=None)


class NonFiniteError(FloatingPointError):
    """In debug mode, a number of a client that is not finite any more.

    Attributes:
      client: Its id.
      leaf: The path of the leaf of which it is an element, such as ``".params['head']['kernel']"``.
      step: Which step over the client's data, from 0; None if it did not happen in one.
      batch: What the step was given; None likewise.
    """

    def __init__(self, message: str, client: int, leaf: str, step: int | None = None, batch: PyTree = None):
        super().__init__(message)
        self.client, self.leaf, self.step, self.batch = client, leaf, step, batch


@contextlib.contextmanager
def watched(client: int) -> Iterator[None]:
    """Watches what runs inside as the work of a client; errors get its name."""
    token = _client.set(client)
    try:
        yield
    except NonFiniteError:
        raise
    except Exception as error:
        error.add_note(f"fedjx: raised in the work of client {client}.")
        raise
    finally:
        _client.reset(token)


def is_watched(value: PyTree) -> bool:
    """Tells whether a client is watched at work on values that are numbers, not traced ones."""
    return _client.get() is not None and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))


def watched_fold(
    step: Callable[[PyTree, PyTree], PyTree], zero: PyTree, length: int, element_at: Callable[[int], PyTree]
) -> PyTree:
    """Folds elements one after the other; the first that makes a number non-finite, or raises, is named."""
    total = zero
    for position in range(length):
        element = element_at(position)
        where = f"step {position} of {length}, given {_described(element)}"
        try:
            after = step(total, element)
        except NonFiniteError:
            raise
        except Exception as error:
            error.add_note(f"fedjx: raised in {where}.")
            raise
        check_finite(after, f"in {where}", before=total, step=position, batch=element)
        total = after
    return total


def check_finite(
    value: PyTree, where: str, *, before: PyTree = None, step: int | None = None, batch: PyTree = None
) -> None:
    """Names the first leaf that is not finite, while a client is watched; one that was not before may be so."""
    client = _client.get()
    if client is None or not is_watched(value):
        return
    leaves = jax.tree_util.tree_leaves_with_path(value)
    olds = jax.tree.leaves(before) if before is not None else [jnp.zeros(())] * len(leaves)
    for (path, leaf), old in zip(leaves, olds, strict=True):
        if _num_non_finite(leaf) and not _num_non_finite(old):
            name = keystr(path) or "it"
            raise NonFiniteError(
                f"in debug mode a client's numbers must stay finite; got {_num_non_finite(leaf)} of {np.size(leaf)} "
                f"elements of {name} that are not, of client {client}, {where}. Look at the error's batch, the rate "
                "and the loss.",
                client,
                name,
                step,
                batch,
            )


def _num_non_finite(leaf: PyTree) -> int:
    return int(jnp.sum(~jnp.isfinite(leaf))) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else 0


def _described(element: PyTree) -> str:
    """Describes what a step is given: the range of each of its arrays, of a batch over the real examples."""
    mask = element.get(MASK) if isinstance(element, Mapping) else None
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(element):
        x = np.asarray(leaf) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.zeros(0)
        if leaf is mask:
            parts.append(f"{int(x.sum())} real examples of {x.size}")
            continue
        shown = x[np.asarray(mask)] if mask is not None and x.shape[:1] == np.shape(mask) else x
        parts.append(f"{keystr(path)} {leaf.dtype}{list(x.shape)}{_span(shown)}")
    return ", ".join(parts) or "nothing"


def _span(x: np.ndarray) -> str:
    finite = x[np.isfinite(x)] if np.issubdtype(x.dtype, np.number) else x
    span = f" from {finite.min()} to {finite.max()}" if finite.size else ""
    return span + (f", {x.size - finite.size} not finite" if x.size > finite.size else "")
