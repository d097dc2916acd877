"""Every option of every verb in one table, from which the parser and the help are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.architecture import ARCHITECTURES
from ompaffinity.placement.options import PLAN_OPTIONS, Option
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

SHELLS = ("bash", "zsh", "fish")
EXPORT_FORMATS = (
    *("env", "numactl", "taskset", "slurm", "rankfile", "systemd", "docker", "hwloc", "vllm", "sglang"),
    *("llama.cpp", "onnxruntime", "openvino"),
)
FORMATS = ("table", "json", *EXPORT_FORMATS)


MACHINE_OPTIONS = (
    Option(
        "--machine",
        "machine",
        "text",
        "recorded machine: a capture, a directory or tar with sys/, lscpu -J output, hwloc XML (default: this machine)",
        metavar="PATH",
    ),
    Option(
        "--synthetic",
        "synthetic",
        "text",
        "synthetic machine, in hwloc's syntax: 'package:2 numa:2 core:8 pu:2'",
        metavar="TEXT",
    ),
    Option("--arch", "architecture", "choice", "architecture, where the machine does not report it", ARCHITECTURES),
    Option(
        "--source",
        "source",
        "choice",
        "source of the topology (default auto: sysfs, completed by lscpu on this machine)",
        SOURCES,
    ),
)
OUTPUT_OPTIONS = (Option("--json", "json", "flag", "print JSON"),)
VERBOSITY_OPTIONS = (
    Option("--quiet", "quiet", "flag", "print no warnings and notes"),
    Option("--verbose", "verbose", "flag", "also print what is read and decided"),
)
"""Options of every verb."""
SAVED_OPTIONS = (
    Option(
        "--options",
        "options",
        "text",
        "use the planning options that compare --save wrote to this file; options on the command line override them",
        metavar="FILE",
    ),
)
PICTURE_OPTIONS = (
    Option("--map", "map", "flag", "print a map of the machine above the table: a letter per CPU"),
    Option("--svg", "svg", "text", "draw the machine in this file (.svg, or .png)", metavar="FILE"),
)
TOPOLOGY_OPTIONS = (
    Option(
        "--capture",
        "capture",
        "text",
        "record the machine in this file, for --machine on any computer (-: standard output)",
        metavar="FILE",
    ),
    Option("--label", "label", "text", "name of the machine in the capture (default live)", metavar="TEXT"),
)
PLAN_OUTPUT_OPTIONS = (
    Option("--ray", "ray", "text", "plan for the nodes of a Ray cluster: auto, or HOST:PORT", metavar="ADDRESS"),
    *OUTPUT_OPTIONS,
    Option(
        "--format",
        "format",
        "choice",
        "table, json, or an export format: " + ", ".join(EXPORT_FORMATS) + " (default table)",
        FORMATS,
        metavar="FORM",
    ),
    *PICTURE_OPTIONS,
    Option("--rank", "rank", "number", "print this rank only (default: all)", metavar="R"),
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning"),
)

PROBE_OPTION = Option(
    "--probe",
    "probe",
    "files",
    "import this module in a child process to detect the OpenMP runtime; repeatable",
    metavar="MODULE",
)

VERIFY_OPTIONS = (
    PROBE_OPTION,
    Option(
        "--library",
        "library",
        "text",
        "OpenMP runtime of the teams: a file, or a name such as libgomp.so.1 (default: the one that workers load)",
        metavar="FILE",
    ),
    Option(
        "--pid",
        "pids",
        "pids",
        "check these live workers, or all workers of these servers, against the placements that they were started with",
        metavar="PID",
    ),
    Option(
        "--seconds",
        "seconds",
        "number",
        "maximum time to observe a command (default 30) or live workers (default 5), in seconds",
    ),
    Option("--plan", "plan", "text", "with --pid: check against the ranks of this plan (plan --json)", metavar="FILE"),
    Option(
        "--as",
        "as",
        "choice",
        "with --plan: the workers were started with this export of the plan (plan --format FORM)",
        EXPORT_FORMATS,
        metavar="FORM",
    ),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning"),
)

INSPECT_OPTIONS = (
    Option("PID", "pids", "pids", "processes to inspect, with all processes below them", metavar="PID"),
    Option("--pid", "named_pids", "pids", "the same", metavar="PID"),
    Option("--all", "all", "flag", "inspect every process that is bound to a subset of the online CPUs"),
    Option("--seconds", "seconds", "number", "length of the window in which threads are observed (default 1)"),
    Option("--full-command", "full_command", "flag", "show whole commands; arguments may be secret"),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a finding"),
)

BIND_OPTIONS = (
    Option(
        "--pid",
        "pids",
        "pids",
        "bind these processes and all below them: one server, or the worker of each rank in the order of the ranks",
        metavar="PID",
    ),
    Option("--plan", "plan", "text", "bind as in this plan (plan --json), instead of planning options", metavar="FILE"),
    Option("--seconds", "seconds", "number", "length of the window in which the teams are observed (default 1)"),
    Option("--save", "save", "text", "write what was changed to this file, for --undo", metavar="FILE"),
    Option("--undo", "undo", "text", "restore the CPUs that the threads in this file had before", metavar="FILE"),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a warning, such as a refused thread"),
)

WATCH_OPTIONS = (
    Option("--pid", "pids", "pids", "watch the workers of these servers, or these workers", metavar="PID"),
    Option("--all", "all", "flag", "watch every worker here that was started by ompaffinity"),
    Option(
        "--plan",
        "plan",
        "text",
        "check against the ranks of this plan (plan --json); for servers bound by bind, or by an export",
        metavar="FILE",
    ),
    Option("--interval", "interval", "number", "seconds between two checks (default 5)"),
    Option("--once", "once", "flag", "check once and exit, with the status of verify"),
    Option("--repair", "repair", "flag", "bind again what has drifted; plan again where CPUs are gone"),
    Option(
        "--prometheus",
        "prometheus",
        "text",
        "write metrics to this file, for the textfile collector of node_exporter",
        metavar="FILE",
    ),
    Option("--listen", "listen", "text", "serve metrics over HTTP: 127.0.0.1:9400", metavar="HOST:PORT"),
    *OUTPUT_OPTIONS,
)

EXEC_OPTIONS = (
    PROBE_OPTION,
    Option("--local-rank", "local_rank", "number", "rank of this process on this machine (default: from the launcher)"),
    Option(
        "--local-world-size",
        "local_world_size",
        "number",
        "number of ranks on this machine (default: from the launcher)",
    ),
    Option("--override", "override", "flag", "ignore the inherited affinity mask; use all CPUs of the cpuset"),
    Option("--strict", "strict", "flag", "if there is a warning, exit with status 1 and do not start the command"),
)

RUN_OPTIONS = (
    PROBE_OPTION,
    Option("--override", "override", "flag", "ignore the inherited affinity mask; use all CPUs of the cpuset"),
    Option("--log-dir", "log_dir", "text", "write the output of each rank to a file in this directory", metavar="DIR"),
    Option("--grace", "grace", "number", "seconds between SIGTERM and SIGKILL after a rank fails (default 10)"),
    Option("--strict", "strict", "flag", "if there is a warning, exit with status 1 and start no rank"),
)

COMPARE_OPTIONS = (
    PROBE_OPTION,
    Option(
        "--variant",
        "variants",
        "files",
        "binding to measure: a name, or NAME='--option value ...'; repeatable, the first one is the baseline (default:"
        " the usual variants)",
        metavar="NAME",
    ),
    Option(
        "--metric",
        "metric",
        "text",
        "figure in the output, as a regular expression with one group: 'tokens/s: ([0-9.]+)' (default: seconds)",
        metavar="REGEX",
    ),
    Option("--lower", "lower", "flag", "a smaller figure of --metric is better (default: a larger one)"),
    Option("--save", "save", "text", "write the advised options and the evidence to this file", metavar="FILE"),
    Option("--budget", "budget", "number", "maximum duration in seconds (default 300)"),
    Option("--precision", "precision", "fraction", "stop at this precision of every ratio (default 0.02)", metavar="F"),
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
        "interpreter whose environment is searched for OpenMP runtimes (default: the current one)",
        metavar="PATH",
    ),
    *OUTPUT_OPTIONS,
    Option("--strict", "strict", "flag", "exit with status 1 if there is a problem or a warning"),
)

COMPLETION_OPTIONS = (Option("--shell", "shell", "choice", "shell of the completion script", SHELLS),)

VERBS: dict[str, tuple[Option, ...]] = {
    verb: (*options, *VERBOSITY_OPTIONS)
    for verb, options in {
        "plan": (*PLAN_OPTIONS, *SAVED_OPTIONS, *MACHINE_OPTIONS, *PLAN_OUTPUT_OPTIONS),
        "topology": (*MACHINE_OPTIONS, *TOPOLOGY_OPTIONS, *OUTPUT_OPTIONS, *PICTURE_OPTIONS),
        "devices": DEVICES_OPTIONS,
        "verify": (*PLAN_OPTIONS, *SAVED_OPTIONS, *VERIFY_OPTIONS),
        "inspect": INSPECT_OPTIONS,
        "bind": (*PLAN_OPTIONS, *SAVED_OPTIONS, *BIND_OPTIONS),
        "watch": WATCH_OPTIONS,
        "compare": (*PLAN_OPTIONS, *SAVED_OPTIONS, *COMPARE_OPTIONS),
        "doctor": DOCTOR_OPTIONS,
        "completion": COMPLETION_OPTIONS,
        "exec": (*PLAN_OPTIONS, *SAVED_OPTIONS, *EXEC_OPTIONS),
        "run": (*PLAN_OPTIONS, *SAVED_OPTIONS, *RUN_OPTIONS),
    }.items()
}
WITH_COMMAND = ("verify", "exec", "run", "compare")
"""Verbs with a command after ``--``."""


GROUPS: dict[str, tuple[str, ...]] = {
    "ranks": (
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "oversubscribe", "rank", "ray"),
        *("local_rank", "local_world_size"),
    ),
    "where the ranks run": (*("cpus", "nodes", "avoid", "bind", "core_type", "distribute", "span", "override"),),
    "threads": (
        *("threads_per_core", "reserve", "reserve_per_rank", "kv_transfer", "helper_cpus"),
        *("runtime", "granularity", "wait_policy", "probe", "library"),
    ),
    "memory": ("memory_policy", "utilization"),
    "GPUs": ("numa_bind", "numa_bind_nodes", "numa_bind_cpus", "gpus", "share"),
    "machine": ("machine", "synthetic", "architecture", "source", "capture", "label", "python"),
    "processes": (
        *("pids", "named_pids", "all", "seconds", "plan", "as", "interval", "once", "repair", "save", "undo", "grace"),
    ),
    "measurement": ("variants", "metric", "lower", "budget", "precision", "options"),
    "output": (
        *("json", "format", "map", "svg", "full_command", "log_dir", "prometheus", "listen", "shell", "strict"),
        *("quiet", "verbose"),
    ),
}
"""The groups of options in the help, each with its fields."""


def planning_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the planning options among the values of a command line, and the file of measured ones."""
    return {name: values[name] for name in (*PlacementRequest._fields, "options") if name in values}


def flags_of(verb: str, fields: Iterable[str]) -> str:
    """Return the flags of a verb's fields for a message: ``--pid, --tp``, ``-- COMMAND`` for ``"command"``."""
    flags = {option.field: option.flag for option in VERBS[verb]} | {"command": "-- COMMAND"}
    return ", ".join(sorted(flags[field] for field in fields))
