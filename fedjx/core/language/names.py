"""What annotations call the things that are passed around, where Python's types cannot say more."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjx.core.rewriting.jaxprs import PyTree as PyTree

Array = jax.Array | np.ndarray  # on a device, or on the host
Key = jax.Array  # a random key of `jax.random.key`
DType = Any  # of NumPy, of JAX, or of random keys, for which NumPy has no class
Type = Any  # a `FederatedType`, a `FunctionType` or a member type: a pytree of what has a shape and a dtype
Metrics = dict[str, Any]  # by name, numbers at the server, or dicts of them
