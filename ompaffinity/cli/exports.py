"""A plan in the words of other tools: what binds a rank where something else than ompaffinity starts it.

Sources: numactl(8), taskset(1), srun(1), Open MPI's mpirun(1) ("Rankfiles"), systemd.exec(5), docker-run(1),
hwloc(7) ("Bitmasks"), the documentation of vLLM and SGLang.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.openmp.plan_document import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ompaffinity.placement.model import Plan, RankPlacement

POLICY_OPTIONS = {
    "bind": "--membind",
    "preferred": "--preferred",
    "preferred-many": "--preferred-many",
    "interleave": "--interleave",
}
SYSTEMD_POLICIES = {"bind": "bind", "preferred": "preferred", "interleave": "interleave"}
HWLOC_BITS = 32


def export(plan: Plan, form: str, rank: int | None = None) -> str:
    """Return the plan, or one rank of it, in another tool's form.

    Raises:
        RequestError: the form has no words for it.
    """
    chosen = [placement for placement in plan.ranks if rank is None or placement.rank == rank]
    return EXPORTS[form](plan, chosen)


def own_cpus(plan: Plan, placement: RankPlacement) -> tuple[int, ...]:
    """Return the CPUs of a rank that no other one has OpenMP threads or helpers on, and its own.

    Where a rank has no CPU for helper threads, its affinity is wider: the variables of OpenMP keep its team apart then,
    and this is for the forms that set none.
    """
    others = {
        cpu
        for other in plan.ranks
        if other.local_rank != placement.local_rank
        for cpu in (*other.cpus, *other.helper_cpus)
    }
    return tuple(sorted({*placement.cpus, *placement.helper_cpus} | (set(placement.affinity) - others)))


def _per_rank(
    line: Callable[[Plan, RankPlacement], Iterable[str]], *, file: bool = False
) -> Callable[[Plan, list[RankPlacement]], str]:
    """Return what writes lines for each rank, after a comment that names it.

    One rank alone that is no `file` but the beginning of a command has none, so that it can be used as it is.
    """

    def write(plan: Plan, ranks: list[RankPlacement]) -> str:
        lines: list[str] = []
        for placement in ranks:
            if file or len(ranks) > 1 or not placement.bound:
                lines.append(f"# rank {placement.rank}{'' if placement.bound else ', not bound'}")
            lines += line(plan, placement) if placement.bound else ()
        return "\n".join(lines) + "\n"

    return write


def _shell(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    environment, unset = worker_environment(plan, placement)
    yield from (f"unset {name}" for name in unset)
    yield from (f"export {name}={quote(value)}" for name, value in environment.items())


def _numactl(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    # Never --cpunodebind: it widens an outside mask to the whole node.
    words = ["numactl", f"--physcpubind={format_id_list(own_cpus(plan, placement))}"]
    if placement.memory_policy != "none":
        nodes = placement.nodes[:1] if placement.memory_policy == "preferred" else placement.nodes
        words.append(f"{POLICY_OPTIONS[placement.memory_policy]}={format_id_list(nodes)}")
    yield " ".join(words)


def _taskset(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    yield f"taskset --cpu-list {format_id_list(own_cpus(plan, placement))}"


def _systemd(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    environment, unset = worker_environment(plan, placement)
    yield "[Service]"
    yield f"CPUAffinity={format_id_list(placement.affinity)}"
    if placement.memory_policy == "preferred-many":
        raise RequestError("systemd knows no policy of several preferred nodes; say --memory-policy preferred")
    if placement.memory_policy != "none":
        nodes = placement.nodes[:1] if placement.memory_policy == "preferred" else placement.nodes
        yield f"NUMAPolicy={SYSTEMD_POLICIES[placement.memory_policy]}"
        yield f"NUMAMask={format_id_list(nodes)}"
    for name, value in environment.items():
        yield f'Environment="{name}={_in_unit(value)}"'
    yield f"UnsetEnvironment={' '.join(unset)}"


def _in_unit(value: str) -> str:
    """Return a value as it stands in double quotes of a unit file (systemd.exec(5), systemd.unit(5) "Specifiers")."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _docker(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    words = [f"--cpuset-cpus={format_id_list(placement.affinity)}"]
    if placement.memory_policy in ("bind", "interleave"):
        words.append(f"--cpuset-mems={format_id_list(placement.nodes)}")
    environment, _ = worker_environment(plan, placement)
    yield " ".join([*words, *(f"--env={quote(f'{name}={value}')}" for name, value in environment.items())])


def _hwloc(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    yield hwloc_mask(own_cpus(plan, placement))


def hwloc_mask(cpus: Iterable[int]) -> str:
    """Return CPUs as hwloc writes a bitmask: words of 32 bits, the highest first, each in hexadecimal digits."""
    bits = mask_of(cpus)
    words: list[str] = []
    while bits or not words:
        words.append(f"0x{bits & 0xFFFFFFFF:08x}")
        bits >>= HWLOC_BITS
    return ",".join(reversed(words))


def mask_of(ids: Iterable[int]) -> int:
    """Return the number with these bits set."""
    bits = 0
    for number in ids:
        bits |= 1 << number
    return bits


def _slurm(plan: Plan, ranks: list[RankPlacement]) -> str:
    """Options of srun for all tasks of a node, in the order of their local ids."""
    _check_bound("srun's list of masks", ranks)
    masks = [f"0x{mask_of(own_cpus(plan, placement)):X}" for placement in ranks]
    words = [f"--cpu-bind=mask_cpu:{','.join(masks)}"]
    if all(placement.memory_policy == "bind" for placement in ranks):
        if all(len(placement.nodes) == 1 for placement in ranks):
            words.append("--mem-bind=map_mem:" + ",".join(str(placement.nodes[0]) for placement in ranks))
        else:
            words.append("--mem-bind=mask_mem:" + ",".join(f"0x{mask_of(placement.nodes):X}" for placement in ranks))
    return " ".join(words) + "\n"


def _rankfile(plan: Plan, ranks: list[RankPlacement]) -> str:
    """A rankfile of Open MPI for ranks on this host."""
    _check_bound("a rankfile", ranks)
    lines = ["# mpirun --mca rmaps_rank_file_physical 1 --rankfile FILE ..."]
    lines += [
        f"rank {placement.rank}=localhost slot={format_id_list(own_cpus(plan, placement))}" for placement in ranks
    ]
    return "\n".join(lines) + "\n"


def _vllm(plan: Plan, ranks: list[RankPlacement]) -> str:
    """The variables of vLLM's CPU backend, or the options of its GPU workers."""
    _check_bound("vLLM's list", ranks)
    if any(placement.gpu is not None for placement in ranks):
        nodes, cpus = _by_gpu(plan, ranks)
        return f"--numa-bind --numa-bind-nodes {nodes} --numa-bind-cpus {cpus}\n"
    lists = "|".join(_in_order(placement.cpus) for placement in ranks)
    lines = [f"export VLLM_CPU_OMP_THREADS_BIND={quote(lists)}"]
    used = sorted({node for placement in ranks for node in placement.nodes})
    if used and any(placement.memory_policy != "none" for placement in ranks):
        # vLLM splits it at the commas, and knows no ranges.
        lines.append(f"export CPU_VISIBLE_MEMORY_NODES={','.join(map(str, used))}")
    return "\n".join(lines) + "\n"


def _sglang(plan: Plan, ranks: list[RankPlacement]) -> str:
    """The variables of SGLang's CPU backend, or the option of its GPU workers."""
    _check_bound("SGLang's list", ranks)
    if any(placement.gpu is not None for placement in ranks):
        return f"--numa-node {_by_gpu(plan, ranks)[0]}\n"
    lists = "|".join(_in_order(placement.cpus) for placement in ranks)
    return f"export SGLANG_CPU_OMP_THREADS_BIND={quote(lists)}\n"


def _by_gpu(plan: Plan, ranks: list[RankPlacement]) -> tuple[str, str]:
    """Return the nodes and the CPU lists of all GPUs in order, as words of a command line."""
    placed = {placement.gpu: placement for placement in ranks if placement.gpu is not None}
    missing = set(range(max(placed) + 1)) - placed.keys()
    if missing or any(len(placement.nodes) != 1 for placement in placed.values()):
        what = f"GPU {format_id_list(missing)} has no rank" if missing else "a rank has several memory nodes, or none"
        raise RequestError(f"one node per GPU is what is to be named, but {what}")
    ordered = [placed[device] for device in sorted(placed)]
    nodes = " ".join(str(placement.nodes[0]) for placement in ordered)
    return nodes, " ".join(format_id_list(own_cpus(plan, placement)) for placement in ordered)


def _in_order(cpus: tuple[int, ...]) -> str:
    return format_id_list(cpus) if list(cpus) == sorted(cpus) else ",".join(map(str, cpus))


def _check_bound(what: str, ranks: list[RankPlacement]) -> None:
    unbound = [placement.rank for placement in ranks if not placement.bound]
    if unbound:
        raise RequestError(f"rank {format_id_list(unbound)} is not bound, and {what} has a place for every rank")


EXPORTS: dict[str, Callable[[Plan, list[RankPlacement]], str]] = {
    "env": _per_rank(_shell, file=True),
    "numactl": _per_rank(_numactl),
    "taskset": _per_rank(_taskset),
    "slurm": _slurm,
    "rankfile": _rankfile,
    "systemd": _per_rank(_systemd, file=True),
    "docker": _per_rank(_docker),
    "hwloc": _per_rank(_hwloc),
    "vllm": _vllm,
    "sglang": _sglang,
}
