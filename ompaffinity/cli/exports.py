"""Export formats: the options and files of other tools that bind the ranks of a plan.

Sources: numactl(8), taskset(1), srun(1), Open MPI's mpirun(1) ("Rankfiles"), systemd.exec(5), docker-run(1),
hwloc(7) ("Bitmasks"), the documentation of vLLM and SGLang; `integrations.engines`.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.integrations.engines import llama_cpp_arguments, onnxruntime_settings, openvino_config
from ompaffinity.openmp.plan_document import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ompaffinity.placement.model import Plan, RankPlacement

POLICY_OPTIONS = {
    "bind": "--membind",
    "preferred": "--preferred",
    "preferred-many": "--preferred-many",
    "interleave": "--interleave",
    "weighted-interleave": "--interleave",
}
SYSTEMD_POLICIES = {
    "bind": "bind",
    "preferred": "preferred",
    "interleave": "interleave",
    "weighted-interleave": "interleave",
}
WITHOUT_WEIGHTS = ("numactl", "systemd")
"""Formats with a memory policy, none of which has weights."""
HWLOC_BITS = 32


def export(plan: Plan, form: str, rank: int | None = None) -> str:
    """Return the plan, or one rank of it, in an export format.

    Raises:
        RequestError: the format cannot express the plan.
    """
    chosen = [placement for placement in plan.ranks if rank is None or placement.rank == rank]
    return EXPORTS[form](plan, chosen)


def own_cpus(plan: Plan, placement: RankPlacement) -> tuple[int, ...]:
    """Return the CPUs of a rank and those of its affinity that no other rank uses for OpenMP or helper threads.

    The affinity of a rank without helper CPUs includes CPUs of other ranks; OpenMP variables bind its team. Formats
    without these variables need this narrower set.
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
    """Return a writer of lines for each rank, after a comment with its number.

    A single rank has no comment unless the format is a `file`, so that its line can be used as the start of a command.
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
    # --cpunodebind is not used, because it widens an inherited mask to the whole node.
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
        raise RequestError("systemd does not support the policy preferred-many; use --memory-policy preferred")
    if placement.memory_policy != "none":
        nodes = placement.nodes[:1] if placement.memory_policy == "preferred" else placement.nodes
        yield f"NUMAPolicy={SYSTEMD_POLICIES[placement.memory_policy]}"
        yield f"NUMAMask={format_id_list(nodes)}"
    for name, value in environment.items():
        yield f'Environment="{name}={_in_unit(value)}"'
    yield f"UnsetEnvironment={' '.join(unset)}"


def _in_unit(value: str) -> str:
    """Return a value escaped for double quotes in a unit file (systemd.exec(5), systemd.unit(5) "Specifiers")."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _docker(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    words = [f"--cpuset-cpus={format_id_list(placement.affinity)}"]
    if placement.memory_policy in ("bind", "interleave", "weighted-interleave"):
        words.append(f"--cpuset-mems={format_id_list(placement.nodes)}")
    environment, _ = worker_environment(plan, placement)
    # For $(ompaffinity plan ... --format docker): the shell splits its words, and reads no quotes in them.
    yield " ".join([*words, *(f"--env={name}={value.replace(' ', ',')}" for name, value in environment.items())])


def _hwloc(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    yield hwloc_mask(own_cpus(plan, placement))


def hwloc_mask(cpus: Iterable[int]) -> str:
    """Return CPUs as a bitmask of hwloc: hexadecimal words of 32 bits, the highest first."""
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
    """Return the options of srun for all tasks of a node, in the order of their local ids."""
    _check_bound("slurm", ranks)
    masks = [f"0x{mask_of(own_cpus(plan, placement)):X}" for placement in ranks]
    words = [f"--cpu-bind=mask_cpu:{','.join(masks)}"]
    if all(placement.memory_policy == "bind" for placement in ranks):
        if all(len(placement.nodes) == 1 for placement in ranks):
            words.append("--mem-bind=map_mem:" + ",".join(str(placement.nodes[0]) for placement in ranks))
        else:
            words.append("--mem-bind=mask_mem:" + ",".join(f"0x{mask_of(placement.nodes):X}" for placement in ranks))
    return " ".join(words) + "\n"


def _rankfile(plan: Plan, ranks: list[RankPlacement]) -> str:
    """Return a rankfile of Open MPI for ranks on this host."""
    _check_bound("rankfile", ranks)
    lines = ["# mpirun --mca rmaps_rank_file_physical 1 --rankfile FILE ..."]
    lines += [
        f"rank {placement.rank}=localhost slot={format_id_list(own_cpus(plan, placement))}" for placement in ranks
    ]
    return "\n".join(lines) + "\n"


def _vllm(plan: Plan, ranks: list[RankPlacement]) -> str:
    """Return the variables of vLLM's CPU backend, or the options of its GPU workers."""
    _check_bound("vllm", ranks)
    if any(placement.gpu is not None for placement in ranks):
        nodes, cpus = _by_gpu(plan, ranks)
        return f"--numa-bind --numa-bind-nodes {nodes} --numa-bind-cpus {cpus}\n"
    lists = "|".join(_in_order(placement.cpus) for placement in ranks)
    lines = [f"export VLLM_CPU_OMP_THREADS_BIND={quote(lists)}"]
    used = sorted({node for placement in ranks for node in placement.nodes})
    if used and any(placement.memory_policy != "none" for placement in ranks):
        # vLLM splits the value at commas and does not support ranges.
        lines.append(f"export CPU_VISIBLE_MEMORY_NODES={','.join(map(str, used))}")
    return "\n".join(lines) + "\n"


def _sglang(plan: Plan, ranks: list[RankPlacement]) -> str:
    """Return the variables of SGLang's CPU backend, or the option of its GPU workers."""
    _check_bound("sglang", ranks)
    if any(placement.gpu is not None for placement in ranks):
        return f"--numa-node {_by_gpu(plan, ranks)[0]}\n"
    lists = "|".join(_in_order(placement.cpus) for placement in ranks)
    return f"export SGLANG_CPU_OMP_THREADS_BIND={quote(lists)}\n"


def _llama_cpp(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    del plan
    yield " ".join(llama_cpp_arguments(placement))


def _onnxruntime(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    del plan
    yield from (f"{name}={value}" for name, value in onnxruntime_settings(placement).items())


def _openvino(plan: Plan, placement: RankPlacement) -> Iterable[str]:
    del plan
    yield from (f"{name}={value}" for name, value in openvino_config(placement).items())


def _by_gpu(plan: Plan, ranks: list[RankPlacement]) -> tuple[str, str]:
    """Return the nodes and the CPU lists of all GPUs in order, each as words of a command line."""
    placed = {placement.gpu: placement for placement in ranks if placement.gpu is not None}
    missing = set(range(max(placed))) - placed.keys()
    if missing or any(len(placement.nodes) != 1 for placement in placed.values()):
        if missing:
            raise RequestError(f"GPU {format_id_list(missing)} has no rank; plan a rank for each GPU for this format")
        raise RequestError(
            "this format requires one memory node per GPU, but a rank has several or none; use --span node"
        )
    ordered = [placed[device] for device in sorted(placed)]
    nodes = " ".join(str(placement.nodes[0]) for placement in ordered)
    return nodes, " ".join(format_id_list(own_cpus(plan, placement)) for placement in ordered)


def _in_order(cpus: tuple[int, ...]) -> str:
    return format_id_list(cpus) if list(cpus) == sorted(cpus) else ",".join(map(str, cpus))


def _check_bound(form: str, ranks: list[RankPlacement]) -> None:
    unbound = [placement.rank for placement in ranks if not placement.bound]
    if unbound:
        raise RequestError(
            f"rank {format_id_list(unbound)} is not bound, but --format {form} requires CPUs for every rank; bind it,"
            " or use --format numactl"
        )


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
    "llama.cpp": _per_rank(_llama_cpp),
    "onnxruntime": _per_rank(_onnxruntime),
    "openvino": _per_rank(_openvino),
}
