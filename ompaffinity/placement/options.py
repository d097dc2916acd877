"""The planning options: one table for the command line, its help, and the variable OMPAFFINITY_OPTIONS."""

from __future__ import annotations

from ompaffinity.placement.request import (
    CORE_TYPES,
    DISTRIBUTIONS,
    GRANULARITIES,
    HELPER_CPUS,
    MEMORY_POLICIES,
    RUNTIMES,
    SPANS,
    WAIT_POLICIES,
)
from ompaffinity.records import NamedTuple

SEVERAL_VALUES = ("pids", "numbers", "lists")
OPTIONS_VARIABLE = "OMPAFFINITY_OPTIONS"
OPTIONS_FLAG = "--options"
"""The option that names a file of measured options; it is no planning option itself."""


class Option(NamedTuple):
    """One option, or a positional argument if `flag` has no leading dashes.

    `kind` selects the parser of its value: a flag, a number, one of `choices`, an id list, or text.
    An option of the kind ``"files"`` can be repeated; an option of one of `SEVERAL_VALUES` has several values.
    """

    flag: str
    field: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None


PLAN_OPTIONS = (
    Option("--tp", "tensor_parallel_size", "number", "tensor-parallel ranks (default 1)"),
    Option("--pp", "pipeline_parallel_size", "number", "pipeline-parallel ranks (default 1)"),
    Option("--dp", "data_parallel_size", "number", "data-parallel ranks (default 1)"),
    Option("--cpus", "cpus", "ids", "restrict the plan to these CPUs: 0-15,32 (default: all allowed)", metavar="LIST"),
    Option("--nodes", "nodes", "ids", "restrict the plan to these NUMA nodes: 0,2 (default: all)", metavar="LIST"),
    Option(
        "--avoid",
        "avoid",
        "files",
        "exclude the cores of another plan (plan --json), or of processes that run here (live); repeatable",
        metavar="PLAN.json|live",
    ),
    Option(
        "--bind",
        "bind",
        "bind",
        "auto, none, or one CPU list per rank in thread order: '0-6:2|8-14:2' (default auto)",
        metavar="auto|none|LISTS",
    ),
    Option(
        "--threads-per-core",
        "threads_per_core",
        "threads",
        "SMT siblings per core: auto, all, or a number (default auto: by architecture)",
        metavar="auto|all|N",
    ),
    Option(
        "--core-type",
        "core_type",
        "choice",
        "kinds of cores of hybrid chips to use (default auto: by number and speed)",
        CORE_TYPES,
    ),
    Option(
        "--reserve",
        "reserve",
        "auto-number",
        "cores without OpenMP threads, in total (default auto: by architecture)",
        metavar="auto|N",
    ),
    Option("--reserve-per-rank", "reserve_per_rank", "number", "cores without OpenMP threads, per rank"),
    Option("--kv-transfer", "kv_transfer", "flag", "reserve one more core per rank for KV-cache transfer"),
    Option(
        "--distribute",
        "distribute",
        "choice",
        "nodes to use if there are more nodes than ranks (default close)",
        DISTRIBUTIONS,
    ),
    Option(
        "--span",
        "span",
        "choice",
        "extent of a rank if there are more nodes than ranks (default auto: as many whole nodes of a package as fit)",
        SPANS,
    ),
    Option(
        "--helper-cpus",
        "helper_cpus",
        "choice",
        "CPUs of the other threads of ranks without helper CPUs: their own, or all ranks' of the node (default own)",
        HELPER_CPUS,
    ),
    Option("--oversubscribe", "oversubscribe", "flag", "allow ranks to share CPUs if there are more ranks than CPUs"),
    Option(
        "--runtime",
        "runtime",
        "choice",
        "OpenMP runtime of the workers: GNU, Intel/LLVM, or standard variables (default auto)",
        RUNTIMES,
    ),
    Option(
        "--granularity",
        "granularity",
        "choice",
        "one CPU per thread, or a team that floats within the rank's CPUs (default auto)",
        GRANULARITIES,
    ),
    Option(
        "--wait-policy",
        "wait_policy",
        "choice",
        "how idle threads wait: spin (active), spin briefly (brief), sleep (passive) (default keep: unchanged)",
        WAIT_POLICIES,
    ),
    Option(
        "--memory-policy",
        "memory_policy",
        "choice",
        "memory policy of each rank (default auto: by the number of its nodes)",
        MEMORY_POLICIES,
    ),
    Option(
        "--utilization",
        "utilization",
        "fraction",
        "memory budget per rank, as a fraction of its share: 0.9",
        metavar="F",
    ),
    Option("--numa-bind", "numa_bind", "flag", "GPU ranks: bind each rank next to its GPU"),
    Option(
        "--numa-bind-nodes",
        "numa_bind_nodes",
        "numbers",
        "GPU ranks: NUMA node of each GPU, instead of the detected one: 0 0 1 1",
        metavar="N",
    ),
    Option(
        "--numa-bind-cpus",
        "numa_bind_cpus",
        "lists",
        "GPU ranks: CPUs of each GPU's rank, instead of those next to the GPU: 0-3 4-7",
        metavar="LIST",
    ),
    Option("--gpus", "gpus", "gpus", "GPU ranks: GPU of each rank: 2,3 (default 0, 1, ...)", metavar="LIST"),
    Option("--share", "share", "flag", "GPU ranks: the ranks of a NUMA node share all its CPUs"),
)
