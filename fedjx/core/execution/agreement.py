"""Whether the processes that share a mesh run the same computation on the same arguments, asked in the first round."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from fedjx.core.execution.hosts import differences
from fedjx.core.language.fingerprint import of_texts, of_values
from fedjx.core.language.names import PyTree
from fedjx.core.language.program import Program
from fedjx.core.language.streams import Planned, first_chunk, is_planned


def check_agreement(name: str, program: Program, arguments: Mapping[str, PyTree], mesh: Mesh) -> None:
    """Compares one hash of everything between all processes, and names what differs.

    Args:
      name: Of the computation.
      program: What is computed.
      arguments: Its arguments, by the names of the parameters.
      mesh: The devices; if they are of one process, nothing is done.

    Raises:
      ValueError: In every process, if one has something else. Without this all would go on, with wrong numbers.
    """
    if not mesh.is_multi_process:
        return
    parts = described(program, arguments)
    parts["the mesh"] = f"{dict(mesh.shape)} {[device.id for device in mesh.devices.flat]}"
    if found := differences(parts):
        listed = "; ".join(f"{part} in process {', '.join(map(str, ranks))}" for part, ranks in found.items())
        raise ValueError(
            f"processes that share a mesh must run one computation on the same arguments; {name} got others than "
            f"process 0 has: {listed}. Give all processes the same code, data, settings and seeds."
        )


def described(program: Program, arguments: Mapping[str, PyTree]) -> dict[str, str]:
    """Returns a hash of each part that must be the same in all processes, by what a message calls it."""
    parts = {"the computation (a function, or a number in one, such as a rate)": program.fingerprint()}
    for argument, value in arguments.items():
        parts |= _planned(argument, value) if is_planned(value) else _arrays(argument, first_chunk(value))
    return parts


def _planned(name: str, cohort: Planned) -> dict[str, str]:
    identity = getattr(cohort, "identity", dict)
    own = {"ids": of_values(np.asarray(cohort.ids)), "lanes": str(cohort.lanes), **identity()}
    return {f"{name}.{part}": text for part, text in own.items()}


def _arrays(name: str, value: PyTree) -> dict[str, str]:
    """Describes the fields of a structure one by one: a state's key, its parameters as a whole."""
    fields: dict[str, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        field = fields.setdefault(name + jax.tree_util.keystr(path[:1]), [])
        field += [jax.tree_util.keystr(path), of_values(leaf)]
    return {field: of_texts(found) for field, found in fields.items()}
