"""A computation on a cohort of arrays: pass by pass, whoever makes one."""

from __future__ import annotations

from collections.abc import Callable

from fedjx.core.language.names import PyTree
from fedjx.core.language.passes import Pass
from fedjx.core.language.program import Environment, Program
from fedjx.core.language.values import Clients, side_by_side

Sweep = Callable[[Pass, PyTree, Clients], tuple[tuple[PyTree, ...], PyTree]]  # such as `map_reduce`


def run_whole(program: Program, values: tuple[PyTree, ...], sweep: Sweep, *, differentiable: bool = True) -> PyTree:
    """Runs a program on its arguments, each of its passes by ``sweep``."""
    environment = program.server_stage(0, program.server_arguments(values))
    clients = _cohort([v for v in values if isinstance(v, Clients)]) if program.num_passes else None
    finished: Environment = {}
    for level in range(program.num_passes):
        assert clients is not None
        run = program.client_pass(level)._replace(differentiable=differentiable)
        reduced, (members, outputs) = sweep(run, environment, clients)
        results = [Clients(x, clients.mask, clients.id) for x in outputs]
        finished.update(zip(program.outputs(level), results, strict=True))
        environment = program.after_pass(level, environment, reduced, members, clients.mask)
    return program.assemble({**environment, **finished})


def _cohort(arguments: list[Clients]) -> Clients:
    if not arguments:
        raise ValueError("a cohort needs at least one client; got no argument at CLIENTS. Pass Clients.")
    return side_by_side(arguments)
