"""Every option of every verb in one table; what the parser, the help and the docs are made from."""

from __future__ import annotations

from typing import NamedTuple

from ompaffinity.placement.architecture import ARCHITECTURES
from ompaffinity.placement.request import (
    DISTRIBUTIONS,
    GRANULARITIES,
    KINDS,
    MEMORY_POLICIES,
    RUNTIMES,
    SPANS,
    WAIT_POLICIES,
)
from ompaffinity.topology.source import SOURCES

SHELLS = ("bash", "zsh", "tcsh")
SEVERAL_VALUES = ("pids", "numbers", "lists")
EXPORT_FORMATS = (*("env", "numactl", "taskset", "slurm", "rankfile", "systemd", "docker", "hwloc", "vllm", "sglang"),)
FORMATS = ("table", "json", *EXPORT_FORMATS)


class Option(NamedTuple):
    """One option, or without leading dashes an argument.

    `kind` says how its text is read: a flag, a number, one of `choices`, an id list, or text.
    An option of the kind ``"files"`` may be given several times, one of `SEVERAL_VALUES` takes several values.
    """

    flag: str
    field: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None


MACHINE_OPTIONS = (
    Option(
        "--machine",
        "machine",
        "text",
        "a recorded machine: a capture, a directory or tar with sys/, lscpu -J output, hwloc XML (default: this one)",
        metavar="PATH",
    ),
    Option(
        "--synthetic",
        "synthetic",
        "text",
        "an invented machine in hwloc's language: 'package:2 numa:2 core:8 pu:2'",
        metavar="TEXT",
    ),
    Option("--arch", "architecture", "choice", "architecture of a machine that does not say", ARCHITECTURES),
    Option(
        "--source",
        "source",
        "choice",
        "which reader (default auto: sysfs, which lscpu completes here where it is lacking)",
        SOURCES,
    ),
)
PLAN_OPTIONS = (
    Option("--tp", "tensor_parallel_size", "number", "tensor-parallel ranks (default 1)"),
    Option("--pp", "pipeline_parallel_size", "number", "pipeline-parallel ranks (default 1)"),
    Option("--dp", "data_parallel_size", "number", "data-parallel ranks (default 1)"),
    Option("--cpus", "cpus", "ids", "plan within these CPUs only: 0-15,32", metavar="LIST"),
    Option("--nodes", "nodes", "ids", "plan within these NUMA nodes only: 0,2", metavar="LIST"),
    Option("--avoid", "avoid", "files", "keep off the cores that another plan (--json) holds", metavar="PLAN.json"),
    Option(
        "--bind",
        "bind",
        "bind",
        "auto, none, or one CPU list per rank, order kept: '0-6:2|8-14:2' (default auto)",
        metavar="auto|none|LISTS",
    ),
    Option(
        "--threads-per-core",
        "threads_per_core",
        "threads",
        "SMT siblings per core: auto (by architecture), all, or a number",
        metavar="auto|all|N",
    ),
    Option("--kinds", "kinds", "choice", "cores of hybrid chips to use (default performance)", KINDS),
    Option(
        "--reserve",
        "reserve",
        "auto-number",
        "cores kept from the OpenMP threads, in all (default auto: by architecture)",
        metavar="auto|N",
    ),
    Option("--reserve-per-rank", "reserve_per_rank", "number", "cores kept from the OpenMP threads, per rank"),
    Option("--kv-transfer", "kv_transfer", "flag", "keep one more core per rank for KV-cache transfer"),
    Option(
        "--distribute",
        "distribute",
        "choice",
        "which nodes when there are more than ranks (default close)",
        DISTRIBUTIONS,
    ),
    Option("--span", "span", "choice", "what a rank may use if there are more nodes than ranks (default node)", SPANS),
    Option("--oversubscribe", "oversubscribe", "flag", "let ranks share CPUs if there are more ranks than CPUs"),
    Option(
        "--runtime",
        "runtime",
        "choice",
        "whose variables: GNU, Intel/LLVM, or standard OpenMP (default auto: standard)",
        RUNTIMES,
    ),
    Option(
        "--granularity",
        "granularity",
        "choice",
        "one CPU per thread, or a team that floats within the rank's CPUs",
        GRANULARITIES,
    ),
    Option(
        "--wait-policy",
        "wait_policy",
        "choice",
        "how idle threads wait; brief: a moment, then sleep (default keep: leave it to the user)",
        WAIT_POLICIES,
    ),
    Option(
        "--memory-policy",
        "memory_policy",
        "choice",
        "memory policy of a rank (default auto: by the nodes it uses)",
        MEMORY_POLICIES,
    ),
    Option(
        "--utilization",
        "utilization",
        "fraction",
        "tell each rank's memory budget: this part of what it shares with the others, as in 0.9",
        metavar="F",
    ),
    Option("--numa-bind", "numa_bind", "flag", "GPU ranks: each next to its GPU"),
    Option(
        "--numa-bind-nodes",
        "numa_bind_nodes",
        "numbers",
        "GPU ranks: the NUMA node of each GPU, by hand: 0 0 1 1",
        metavar="N",
    ),
    Option(
        "--numa-bind-cpus",
        "numa_bind_cpus",
        "lists",
        "GPU ranks: the CPUs of each GPU's rank, by hand: 0-3 4-7",
        metavar="LIST",
    ),
    Option("--gpus", "gpus", "gpus", "GPU ranks: the GPU of each rank (default 0, 1, ...): 2,3", metavar="LIST"),
    Option("--share", "share", "flag", "GPU ranks: those next to one node share all of it"),
)
OUTPUT_OPTIONS = (Option("--json", "json", "flag", "print JSON"),)
TOPOLOGY_OPTIONS = (
    Option(
        "--capture",
        "capture",
        "text",
        "record the machine in this file, for --machine elsewhere (-: print)",
        metavar="FILE",
    ),
    Option("--label", "label", "text", "name of the machine in the record (default: live)", metavar="TEXT"),
)
PLAN_OUTPUT_OPTIONS = (
    Option("--ray", "ray", "text", "plan over the nodes of a Ray cluster: auto, or HOST:PORT", metavar="ADDRESS"),
    *OUTPUT_OPTIONS,
    Option(
        "--format",
        "format",
        "choice",
        "table (default), json, or the plan in another tool's words: " + ", ".join(EXPORT_FORMATS),
        FORMATS,
        metavar="FORM",
    ),
    Option("--map", "map", "flag", "print a small map of the machine and the ranks above the table"),
    Option("--svg", "svg", "text", "draw the machine and the ranks in this file", metavar="FILE"),
    Option("--rank", "rank", "number", "this rank only", metavar="R"),
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning"),
)

VERIFY_OPTIONS = (
    Option(
        "--library",
        "library",
        "text",
        "form the teams with this OpenMP runtime: a file, or a name such as libgomp.so.1 (default: what workers load)",
        metavar="FILE",
    ),
    Option(
        "--pid",
        "pids",
        "pids",
        "start nothing; look at these live workers, by what they were started with",
        metavar="PID",
    ),
    Option("--seconds", "seconds", "number", "with a command: look at it for so long at most (default 30)"),
    Option("--plan", "plan", "text", "with --pid: compare them with the ranks of this plan (--json)", metavar="FILE"),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning"),
)

INSPECT_OPTIONS = (
    Option("PID", "pids", "pids", "the processes to look at", metavar="PID"),
    Option("--all", "all", "flag", "every process that is bound to fewer CPUs than there are"),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if something is wrong"),
)

EXEC_OPTIONS = (
    Option(
        "--local-rank", "local_rank", "number", "which rank of this machine this is (default: what the launcher says)"
    ),
    Option("--local-world-size", "local_world_size", "number", "how many ranks there are on this machine"),
    Option("--override", "override", "flag", "use all CPUs of the cpuset, whatever mask the launcher has set"),
    Option("--strict", "strict", "flag", "do not start the command if there is a warning: status 1"),
)

RUN_OPTIONS = (
    Option("--override", "override", "flag", "use all CPUs of the cpuset, whatever mask this process has"),
    Option("--log-dir", "log_dir", "text", "write what the ranks print into files there, not here", metavar="DIR"),
    Option("--grace", "grace", "number", "seconds between SIGTERM and SIGKILL when a rank has failed (default 10)"),
    Option("--strict", "strict", "flag", "start nothing if there is a warning: status 1"),
)

COMPARE_OPTIONS = (
    Option(
        "--variant",
        "variants",
        "files",
        "try this binding: a name, or NAME='--option value ...'; may be repeated, and the first one is what the others"
        " are compared with (default: the usual ones)",
        metavar="NAME",
    ),
    Option(
        "--metric",
        "metric",
        "text",
        "a figure from the output, by a regular expression with one group: 'tokens/s: ([0-9.]+)' (default: seconds)",
        metavar="REGEX",
    ),
    Option("--lower", "lower", "flag", "a smaller figure of --metric is better (default: a larger one)"),
    Option("--budget", "budget", "number", "spend so many seconds at most (default 300)"),
    Option("--precision", "precision", "fraction", "stop when every ratio is known to this (0.02)", metavar="F"),
    *OUTPUT_OPTIONS,
    Option("--svg", "svg", "text", "draw the result in this file", metavar="FILE"),
)

DEVICES_OPTIONS = (
    *MACHINE_OPTIONS[:1],
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning"),
)

DOCTOR_OPTIONS = (
    Option(
        "--python",
        "python",
        "text",
        "look for OpenMP runtimes in this interpreter's environment (default: the one that runs)",
        metavar="PATH",
    ),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 for a warning, too"),
)

COMPLETION_OPTIONS = (Option("--shell", "shell", "choice", "the shell to complete in", SHELLS),)

VERBS: dict[str, tuple[Option, ...]] = {
    "plan": (*PLAN_OPTIONS, *MACHINE_OPTIONS, *PLAN_OUTPUT_OPTIONS),
    "topology": (*MACHINE_OPTIONS, *TOPOLOGY_OPTIONS, *OUTPUT_OPTIONS),
    "devices": DEVICES_OPTIONS,
    "verify": (*PLAN_OPTIONS, *VERIFY_OPTIONS),
    "inspect": INSPECT_OPTIONS,
    "compare": (*PLAN_OPTIONS, *COMPARE_OPTIONS),
    "doctor": DOCTOR_OPTIONS,
    "completion": COMPLETION_OPTIONS,
    "exec": (*PLAN_OPTIONS, *EXEC_OPTIONS),
    "run": (*PLAN_OPTIONS, *RUN_OPTIONS),
}
WITH_COMMAND = ("verify", "exec", "run", "compare")
"""Verbs that take a command after ``--``."""
