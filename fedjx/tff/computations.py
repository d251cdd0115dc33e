"""The decorators of TensorFlow Federated."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjx.core.execution import computation
from fedjx.core.execution.computation import Computation
from fedjx.core.language.names import PyTree, Type
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.values import Sequence


class Text(NamedTuple):
    """A computation whose result is a text, of which JAX has no arrays: a constant of the program.

    >>> hello_world = federated_computation(lambda: "Hello, World!")
    >>> hello_world(), hello_world.type_signature
    (b'Hello, World!', '( -> str)')
    """

    text: str
    type_signature: str = "( -> str)"

    def __call__(self) -> bytes:
        """Returns the text as bytes, as TensorFlow has them."""
        return self.text.encode()


def federated_computation(*types: Any) -> Any:
    """Makes a federated computation: `fedjx.federated_computation`, which says more, and `Text` of a constant text."""
    if len(types) == 1 and inspect.isfunction(types[0]) and not inspect.signature(types[0]).parameters:
        result = types[0]()
        if isinstance(result, str):
            return Text(result)
    return computation.federated_computation(*types)


class Elements(NamedTuple):
    """A client's data set inside of a `tf_computation`.

    Attributes:
      sequence: The data set.
    """

    sequence: Sequence

    def reduce(self, initial_state: PyTree, reduce_func: Callable[[PyTree, PyTree], PyTree]) -> PyTree:
        """Folds the elements in order: `fedjx.sequence_reduce`."""
        return sequence_reduce(reduce_func, initial_state, self.sequence)


def tf_computation(*types: Type) -> Callable[[Callable[..., PyTree]], Computation[..., Any]]:
    """Makes a local computation of a JAX function; data sets among its arguments are `Elements`.

    >>> @tf_computation("int32*")
    ... def add_up_integers(x):
    ...     return x.reduce(np.int32(0), lambda x, y: x + y)
    >>> print(add_up_integers.type_signature, add_up_integers([1, 2, 3]), add_up_integers([]))
    (int32* -> int32) 6 0
    """

    def decorated(fn: Callable[..., PyTree]) -> Computation[..., Any]:
        @functools.wraps(fn)
        def local(*args: PyTree) -> PyTree:
            return fn(*jax.tree.map(_elements, args, is_leaf=_is_sequence))

        return computation.federated_computation(*types)(local)

    return decorated


def _is_sequence(x: PyTree) -> bool:
    return isinstance(x, Sequence)


def _elements(x: PyTree) -> PyTree:
    return Elements(x) if _is_sequence(x) else x
