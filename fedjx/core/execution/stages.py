"""Stages of the server, which run before, between and after passes over the clients."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.language.names import PyTree
from fedjx.core.language.program import Environment, Program
from fedjx.core.language.shares import AXIS


class Stage:
    """A compiled stage: from what the server has, and more, to what it has then.

    What a later stage needs stays where it is: parameters are not copied. Results are never the caller's own arrays.

    Args:
      program: Whose stage it is.
      level: Which one.
      fn: What it computes.
      mesh: Where.
    """

    def __init__(self, program: Program, level: int, fn: Callable[..., Environment], mesh: Mesh):
        is_last = level == program.num_passes
        self._kept = set() if is_last else program.needed_after(level)

        def added(environment: Environment, *rest: PyTree) -> Environment:
            return {i: value for i, value in fn(environment, *rest).items() if is_last or i not in environment}

        # What users have spread over further axes of the mesh stays so.
        whole = NamedSharding(mesh, PartitionSpec()) if mesh.size == mesh.shape[AXIS] else None
        self._compiled = jax.jit(added, out_shardings=whole)
        self._has_begun = False
        # JAX forgets what is compiled unless it has run, or the lowered program is kept.
        self._begun: tuple[jax.stages.Lowered, Future[jax.stages.Compiled]] | None = None

    def begin(self, environment: Environment, *rest: PyTree) -> None:
        """Compiles the stage in a thread, while the caller compiles what runs before it; a call waits for that."""
        if not self._has_begun:
            self._has_begun = True
            lowered, executor = self._compiled.lower(environment, *rest), ThreadPoolExecutor(1, "fedjx-stage")
            self._begun = lowered, executor.submit(lowered.compile)
            executor.shutdown(wait=False)

    def __call__(self, environment: Environment, *rest: PyTree) -> Environment:
        """Runs the stage."""
        if self._begun is not None:
            self._begun[1].result()
        kept = {i: value for i, value in environment.items() if i in self._kept}
        result = {**kept, **self._compiled(environment, *rest)}
        self._begun = None
        return result
