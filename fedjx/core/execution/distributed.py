"""Several processes as one program: how they find each other, and what becomes of the others when one of them ends."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from types import TracebackType

import jax

HEARTBEAT_SECONDS = 12  # after which JAX takes a silent process for dead; the others end within 20

_PLAIN = ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID")
_LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes these say they have started


def initialize_distributed() -> bool:
    """Joins the processes that were started together as one program; call it before anything else uses JAX.

    A process that was started alone stays alone, so a script may call it in any case. The others are found

    - by three variables of the environment: ``NUM_PROCESSES``, ``PROCESS_ID``, from 0, and ``COORDINATOR``,
      the ``host:port`` at which process 0 is to be found;
    - without them as `jax.distributed.initialize` finds them: under Slurm, Open MPI and on a TPU pod.

    A process has all devices that it sees. Of several that Slurm or Open MPI has started on one machine each has the
    GPU of its number there, unless Slurm was told ``--gpus-per-task``; ``JAX_LOCAL_DEVICE_IDS`` names others.

    When a process ends by an error or is killed, the others, which would wait for it for ever, end within 20 seconds.

    Returns:
      Whether there are several processes.

    Raises:
      ValueError: If one of the three variables is missing, or is no number where it has to be one; if ``mpirun`` has
        started several processes in which JAX finds no other one, as with Open MPI 5.
    """
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    if "NUM_PROCESSES" in os.environ:
        coordinator, number, rank = _plain(os.environ)
        if number > 1:
            jax.distributed.initialize(
                coordinator,
                number,
                rank,
                cluster_detection_method="deactivate",  # or, under a launcher, JAX takes one GPU a process, or stops
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    elif _is_launched():
        devices = [] if _has_all_that_it_sees(os.environ) else None  # none named are all; without a list JAX takes one
        try:
            jax.distributed.initialize(local_device_ids=devices, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "mpi4py" not in str(error):
                raise
            if _has_started("OMPI_COMM_WORLD_SIZE"):
                raise ValueError(
                    f"processes that mpirun has started together need a coordinator; JAX finds none: {error} "
                    "Set COORDINATOR, NUM_PROCESSES and PROCESS_ID, as examples/launch/mpirun.sh does."
                ) from error
            return False  # a TPU of one machine, or a script of Slurm that is not under srun
    if jax.distributed.is_initialized():
        sys.excepthook = _end_with_the_reason
    return jax.distributed.is_initialized()


def _plain(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """Reads the three variables."""
    found = {name: environment.get(name, "") for name in _PLAIN}
    coordinator, number, rank = found.values()
    if not (coordinator and number.isdigit() and rank.isdigit() and int(rank) < int(number)):
        raise ValueError(
            f"a process of several needs COORDINATOR (host:port of process 0), NUM_PROCESSES and PROCESS_ID (from 0); "
            f"got {found}. Set all three, or none."
        )
    return coordinator, int(number), int(rank)


def _is_launched() -> bool:
    """Tells whether a launcher may have started other processes too; of a TPU only JAX can say."""
    return any(map(_has_started, _LAUNCHERS)) or importlib.util.find_spec("libtpu") is not None


def _has_started(launcher: str) -> bool:
    """Tells whether a launcher says, in a variable of its own, that it has started several processes."""
    size = os.environ.get(launcher, "")
    return size.isdigit() and int(size) > 1


def _has_all_that_it_sees(environment: Mapping[str, str]) -> bool:
    """Tells whether a launcher has started one process on each machine, or has shown each its own devices."""
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return False
    if "SLURM_NTASKS" in environment:
        nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES"))
        return nodes == environment["SLURM_NTASKS"] or "SLURM_GPUS_PER_TASK" in environment
    return environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _end_with_the_reason(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ends a process whose error nobody has caught at once, or it would wait for those that wait for it."""
    sys.__excepthook__(kind, error, traceback)
    here = f"process {jax.process_index()} of {jax.process_count()}"
    if _is_of_another(error):
        said = f"{here} ends, for another process has ended or cannot be reached. Look at what that one wrote"
    else:
        said = f"{here} ends by the error above, and so will the others, which need it. Mend it"
    print(f"fedjx: {said}, and start all of them again.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # not sys.exit: on its way out JAX would wait for all other processes


def _is_of_another(error: BaseException) -> bool:
    said = str(error)
    return any(sign in said for sign in ("Gloo", "gloo", "onnection closed", "onnection reset", "UNAVAILABLE"))
