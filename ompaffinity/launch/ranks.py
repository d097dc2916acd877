"""The rank of this process, from the environment variables of launchers.

Launchers nest (srun starts mpirun, mpirun starts torchrun), and processes inherit the variables of all of them; the
innermost launcher has precedence. Sources: the manuals of torchrun (Environment Variables), mpirun(1) of Open MPI,
hydra's README, srun(1), pals(7), jsrun(1), flux-run(1), MVAPICH2's user guide, the PMIx standard.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.placement.request import MAX_RANKS
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TASKS = 1 << 24


class LauncherRank(NamedTuple):
    """The name of a launcher and the numbers that it sets for this process, each None where it is unset.

    `local_rank` of `local_world_size` processes on this machine, `rank` of `world_size` in all.
    """

    launcher: str
    local_rank: int
    local_world_size: int | None = None
    rank: int | None = None
    world_size: int | None = None

    @property
    def local_size(self) -> int:
        """How many ranks there are on this machine; one where the launcher does not report it."""
        return self.local_world_size or 1


class Variables(NamedTuple):
    """The environment variables of a launcher; an empty name means that it has no such variable."""

    launcher: str
    local_rank: str
    local_world_size: str
    rank: str
    world_size: str


TORCHRUN = Variables("torchrun", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")
MPI = (
    Variables(
        "Open MPI",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
    ),
    Variables("MPICH or Intel MPI (hydra)", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_RANK", "PMI_SIZE"),
    Variables("PALS", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", "PALS_RANKID", "PALS_SIZE"),
    Variables(
        "JSM (jsrun)",
        "JSM_NAMESPACE_LOCAL_RANK",
        "JSM_NAMESPACE_LOCAL_SIZE",
        "JSM_NAMESPACE_RANK",
        "JSM_NAMESPACE_SIZE",
    ),
    Variables(
        "MVAPICH2",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
    ),
    Variables("Cray PMI", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE"),
)
"""Launchers of MPI. They do not nest, so different numbers of two of them are a contradiction."""
FLUX = Variables("Flux", "FLUX_TASK_LOCAL_ID", "", "FLUX_TASK_RANK", "FLUX_JOB_SIZE")
PMIX = Variables("PMIx", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE", "PMIX_RANK", "PMIX_SIZE")
SLURM = Variables("Slurm", "SLURM_LOCALID", "", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


def local_rank_variable(launcher: str) -> str | None:
    """Return the name of a launcher's variable for the local rank, None if `launcher` is not a launcher."""
    launchers = (TORCHRUN, *MPI, FLUX, PMIX, SLURM)
    return next((variables.local_rank for variables in launchers if variables.launcher == launcher), None)


def find_rank(environ: Mapping[str, str]) -> LauncherRank | None:
    """Return the numbers of the innermost launcher, None without a launcher.

    Slurm is used only inside a step: the processes of a batch script inherit the numbers of the script.

    Raises:
        RequestError: a variable is not a number, or two launchers contradict each other.
    """
    outer = _mpi(environ) or _flux(environ) or _read(PMIX, environ) or _slurm(environ)
    inner = _read(TORCHRUN, environ)
    if inner is None:
        return outer
    if inner.local_world_size is None and outer is not None and outer.local_rank == inner.local_rank:
        # Some scripts export the launcher's local rank as LOCAL_RANK, and no other variable of torchrun.
        return outer
    return inner


def local_world(
    environ: Mapping[str, str], local_rank: int | None = None, local_world_size: int | None = None
) -> LauncherRank | None:
    """Return the rank of this process, None without options and launcher. Arguments override launchers.

    Raises:
        RequestError: the numbers contradict each other, or the number of local ranks is unknown.
    """
    found = None if local_rank is not None and local_world_size is not None else find_rank(environ)
    if found is None and local_rank is None and local_world_size is None:
        return None
    name = "the options" if found is None else found.launcher
    rank = local_rank if local_rank is not None else None if found is None else found.local_rank
    size = local_world_size if local_world_size is not None else None if found is None else found.local_world_size
    if rank is None:
        raise RequestError(f"--local-world-size is {size}, but the local rank is unknown; set --local-rank")
    if size is None:
        raise RequestError(
            f"the local rank is {rank} ({name}), but the number of local ranks is unknown; set --local-world-size"
        )
    if size > MAX_RANKS:
        raise RequestError(f"{name} gives {size} local ranks; a machine runs at most {MAX_RANKS}")
    if not 0 <= rank < size:
        raise RequestError(f"local rank {rank} is not one of {size} local ranks ({name}); local ranks start at 0")
    whole = None if found is None else found.rank
    return LauncherRank(name, rank, size, rank if whole is None else whole, None if found is None else found.world_size)


def _read(variables: Variables, environ: Mapping[str, str]) -> LauncherRank | None:
    # Trainers without a launcher set LOCAL_RANK=-1.
    local_rank = (
        None if environ.get(variables.local_rank, "").strip() == "-1" else _number(variables.local_rank, environ)
    )
    if local_rank is None:
        return None
    return LauncherRank(
        variables.launcher,
        local_rank,
        _number(variables.local_world_size, environ),
        _number(variables.rank, environ),
        _number(variables.world_size, environ),
    )


def _mpi(environ: Mapping[str, str]) -> LauncherRank | None:
    ranks = [rank for rank in (_read(variables, environ) for variables in MPI) if rank is not None]
    if not ranks:
        return None
    first = ranks[0]
    for other in ranks[1:]:
        if (other.local_rank, other.local_world_size) != (first.local_rank, first.local_world_size):
            raise RequestError(
                f"{first.launcher} sets local rank {first.local_rank} of {first.local_world_size},"
                f" {other.launcher} sets {other.local_rank} of {other.local_world_size}; set --local-rank and"
                " --local-world-size"
            )
    return first


def _flux(environ: Mapping[str, str]) -> LauncherRank | None:
    found = _read(FLUX, environ)
    nodes = _number("FLUX_JOB_NNODES", environ)
    if found is None or found.world_size is None or not nodes or found.world_size % nodes:
        return found
    return found._replace(local_world_size=found.world_size // nodes)


def _slurm(environ: Mapping[str, str]) -> LauncherRank | None:
    if "SLURM_STEP_ID" not in environ:
        return None
    found = _read(SLURM, environ)
    node = _number("SLURM_NODEID", environ)
    if found is None or node is None:
        return found
    counts = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return found._replace(local_world_size=counts[node] if node < len(counts) else None)


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks of each node in Slurm's format: ``"2(x3),1"`` is 2, 2, 2, 1.

    Raises:
        RequestError: `text` does not have this format.
    """
    counts: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"([0-9]{1,8})(?:\(x([0-9]{1,8})\))?", part)
        if match is None or len(counts) + int(match[2] or 1) > MAX_TASKS:
            raise RequestError(f"SLURM_STEP_TASKS_PER_NODE is {text[:60]!r}; it must have the form 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(name, "").strip() if name else ""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(f"the environment variable {name} is {text!r}; it must be a whole number, or unset")
    return int(text)


def rank_variables(
    rank: int, world_size: int, local_rank: int, local_world_size: int, *, address: str = "127.0.0.1", port: int = 0
) -> dict[str, str]:
    """Return the variables that torchrun sets for a worker; rank 0 listens at `address` and `port`."""
    return {
        TORCHRUN.rank: str(rank),
        TORCHRUN.world_size: str(world_size),
        TORCHRUN.local_rank: str(local_rank),
        TORCHRUN.local_world_size: str(local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return an unused TCP port of this machine."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
