"""The catalogue of messages: what the package reports to a user, each with a stable code, a level and a text.

The table of messages in docs/reference.md is generated from this file (scripts/generate-docs).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

WARNING, NOTE, ERROR = "warning", "note", "error"
LOGGER = "ompaffinity"


class Message(NamedTuple):
    """A report about a machine, a plan or a binding.

    `code` is stable and meant for programs. `level` is ``"warning"`` (something that the user requested or expects is
    not available) or ``"note"``. `message` has what is wrong and what to do.
    """

    code: str
    level: str
    message: str

    def __str__(self) -> str:
        """Return the one form in which every verb and the log print a message: ``warning: TEXT [code]``."""
        return f"{self.level}: {shown(self.message)} [{self.code}]"


class Template(NamedTuple):
    """A message before its values are known: `text` is a format string (`str.format`)."""

    code: str
    level: str
    text: str

    def __call__(self, *, level: str | None = None, **values: object) -> Message:
        """Return the message with these values; `level` replaces the template's own."""
        return Message(self.code, level or self.level, self.text.format(**values))


def plural(word: str, count: int) -> str:
    """Return a regular noun in the form for this number of things."""
    return word if count == 1 else f"{word}s"


def counted(count: int, word: str) -> str:
    """Return a number of things in words: ``"1 CPU"``, ``"2 CPUs"``."""
    return f"{count} {plural(word, count)}"


def log_warnings(messages: Iterable[Message]) -> None:
    """Write the messages of level ``"warning"`` to the logger ``ompaffinity``."""
    logging = sys.modules.get("logging")
    for message in messages:
        if message.level != WARNING:
            continue
        if logging is not None:
            logging.getLogger(LOGGER).warning("%s", message)
        elif sys.stderr is not None:
            # What logging does where nothing is configured, without its import: a tenth of the start-up of exec.
            with suppress(OSError, ValueError):
                print(message, file=sys.stderr)


def log_debug(text: str, *values: object) -> None:
    """Write what was read or decided to the logger ``ompaffinity``, where logging is loaded at all."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(LOGGER).debug(text, *values)


def has_warning(messages: Iterable[Message]) -> bool:
    """Return whether one of these messages fails a run with ``--strict``."""
    return any(message.level == WARNING for message in messages)


# The machine and its sources.
LSCPU_UNUSABLE = Template("lscpu-unusable", NOTE, "sysfs does not report all cores and packages, and {reason}")
LSCPU_SUMMARY = Template(
    "lscpu-summary",
    NOTE,
    "this output of lscpu has counts only, so {what}; record the machine with {command}",
)
LSCPU_KINDS_UNKNOWN = Template(
    "core-kinds-unknown",
    NOTE,
    "the cores differ in SMT siblings or caches, and this output of lscpu does not name their kinds, so all count as"
    " equal; record the machine with {command}",
)
LSCPU_CORES_DOUBTFUL = Template(
    "lscpu-cores-doubtful",
    NOTE,
    "lscpu repeats its core numbers on ARM chips with several types of core, where every CPU is a core; on such a chip"
    " record /sys instead (hwloc-gather-topology)",
)
SOURCES_DISAGREE = Template(
    "sources-disagree",
    WARNING,
    "{first} and {second} differ on {levels} ({example}); the plan uses {first}, --source {second} uses the other",
)
HWLOC_NODES_DOUBTFUL = Template(
    "hwloc-nodes-doubtful",
    NOTE,
    "several NUMA nodes of this export are near the same CPUs, which are assigned to the first of them; a record of"
    " /sys (hwloc-gather-topology) separates them",
)
LIMITS_UNKNOWN = Template(
    "limits-unknown",
    NOTE,
    "the control group of this process is outside of its cgroup namespace, so limits of {controllers} are unknown; the"
    " affinity mask counts, and --cpus LIST names fewer CPUs",
)
NO_NUMA_INFORMATION = Template(
    "no-numa-information",
    NOTE,
    "the machine reports no NUMA nodes: ranks are cut along packages and caches, and no memory policy is set",
)
OUTSIDE_BINDING = Template(
    "outside-binding",
    NOTE,
    "the affinity mask of this process has CPU {cpus} of {online}; the plan stays within it, start the process unbound"
    " to use the whole machine",
)

# CPU ranks.
RANKS_EXCEED_NODES = Template("ranks-exceed-nodes", NOTE, "{ranks} ranks share {nodes} and the memory there")
NODES_UNUSED = Template("nodes-unused", NOTE, "{unused} of {nodes} NUMA nodes are not used: {reason}")
UNEVEN_RANKS = Template(
    "uneven-ranks",
    NOTE,
    "the ranks have {smallest} to {largest} threads{cause}; a tensor-parallel step waits for the smallest rank",
)
CORE_TYPES = Template(
    "core-types",
    NOTE,
    "the cores differ in speed, and a team waits for its slowest core ({figures}): the plan uses {used} cores;"
    " {remedy}, and ompaffinity compare measures both",
)
ONLY_SLOW_CORES = Template(
    "core-types", NOTE, "this process may use {name} cores alone; a mask or cpuset with the other cores makes it faster"
)
SLOWER_CORES_USED = Template(
    "slower-cores-used",
    WARNING,
    "{ranks} need more cores than there are of the chosen types, so the slower CPU {cpus} is used too; a step of"
    " several ranks waits for the slowest one",
)
ISOLATED_CPUS_USED = Template(
    "isolated-cpus-used",
    NOTE,
    "the plan uses CPU {cpus}, which isolcpus keeps from the scheduler: the kernel does not balance threads there, so"
    " each thread must be bound",
)
KEEPS_OFF_LIVE = Template(
    "keeps-off-live", NOTE, "the plan keeps off the cores that processes running here are bound to: CPU {holders}"
)
ISOLATED_SIBLINGS = Template(
    "isolated-siblings",
    NOTE,
    "CPU {cpus} of the plan shares a core with an isolated CPU (isolcpus), and slows down what runs there; --cpus LIST"
    " leaves it out",
)
UNKNOWN_CORES = Template(
    "unknown-cores",
    NOTE,
    "the machine does not report which CPUs share a core, so CPU {cpus} are planned as a core each; with SMT half of"
    " the threads (--reserve, --cpus) may be faster",
)
CPUS_ON_NO_NODE = Template(
    "cpus-on-no-node",
    NOTE,
    "CPU {cpus} is on no NUMA node, so the CPUs of nodes come first; a rank on these CPUs alone uses all memory nodes",
)
SIBLINGS_ON_TWO_NODES = Template(
    "ranks-share-cores",
    WARNING,
    "the machine puts SMT siblings of one core on several NUMA nodes (CPU {cpus}), so OpenMP threads share cores;"
    " in a virtual machine let the nodes of the guest follow its cores",
)
OVERSUBSCRIBED = Template(
    "oversubscribed",
    WARNING,
    "{ranks} ranks share {cpus} (--oversubscribe): ranks on one CPU take turns, and each waits for the others; use this"
    " for tests only",
)
RANKS_SHARE_CORES = Template(
    "ranks-share-cores",
    WARNING,
    "{ranks} ranks exceed the physical cores, so SMT siblings of one core go to different ranks ({cpus} CPUs in all);"
    " fewer ranks would each run faster",
)
RESERVE_IMPOSSIBLE = Template(
    "reserve-impossible",
    NOTE,
    "{reserved} of {wanted} {unit} could be reserved for the scheduler and helper threads, because each rank keeps at"
    " least one thread; use fewer ranks, or --reserve 0 if this is intended",
)
HELPER_CPUS_SHARED = Template(
    "helper-cpus-shared",
    NOTE,
    "no CPU is left for the helper threads of {ranks}: they share CPUs with OpenMP threads (--reserve N keeps some)",
)
MEMORYLESS_NODE = Template("memoryless-node", NOTE, "this process may use no memory on {nodes}; {consequence}")
WEIGHTS_NOT_EXPORTED = Template(
    "weights-not-exported",
    NOTE,
    "--format {form} has no weighted interleave, so its memory policy is interleave: each node gets as many pages",
)
QUOTA_BELOW_CPUS = Template(
    "quota-below-cpus",
    NOTE,
    "the CPU quota of the control group is {quota} CPUs, fewer than the {cpus} in the mask: the plan has {threads} in"
    " all{consequence}",
)

# GPU ranks.
DEVICE_NODE_UNKNOWN = Template(
    "device-node-unknown",
    WARNING,
    "{gpu}: its NUMA node is unknown ({reason}), so its rank stays unbound; name the node with --numa-bind-nodes",
)
NO_GPU_SEEN = Template(
    "device-node-unknown",
    WARNING,
    "no GPU is visible here, so the worker stays unbound; check its driver and CUDA_VISIBLE_DEVICES",
)
GPU_OF_RAY_UNSEEN = Template(
    "device-node-unknown", WARNING, "Ray assigned GPU {gpus}, which is not visible here, so this actor stays unbound"
)
DEVICE_SOURCES_DISAGREE = Template(
    "device-sources-disagree",
    WARNING,
    "{gpu}: the sources differ on its NUMA node: {answers}; the plan uses the one of {source}",
)
DEVICE_ORDER_UNKNOWN = Template(
    "device-order-unknown",
    WARNING,
    "the GPUs differ, and CUDA numbers the fastest first, in an order that is unknown here; the plan numbers them by"
    " PCI address; set CUDA_DEVICE_ORDER=PCI_BUS_ID for the processes that use them",
)
DEVICE_LIST_CUT = Template(
    "device-list-cut", WARNING, "{variable} is {value!r}, and {entry!r} in it names no GPU that is left; {consequence}"
)
DEVICE_LISTED_TWICE = Template(
    "device-list-cut", WARNING, "{variable} is {value!r}: a GPU that is named twice leaves none"
)
DEVICE_CPUS_OUTSIDE = Template(
    "outside-binding",
    WARNING,
    "rank {rank} has GPU {gpu}, next to {place}; this process may use {part} there ({reasons}), so {consequence}",
)
DEVICE_CPUS_UNUSABLE = Template(
    "device-cpus-unusable",
    WARNING,
    "rank {rank} has GPU {gpu}, next to {place}; the plan may use {part} there ({reasons}), so {consequence}",
)
GPU_RANKS_SHARE_CORES = Template(
    "ranks-share-cores",
    WARNING,
    "ranks {ranks} are next to {place}, where CPU {cpus} may be used: fewer cores than ranks, so {consequence}; use"
    " fewer ranks there, or a wider mask or cpuset",
)
GPU_NODES_UNUSED = Template("nodes-unused", NOTE, "{nodes}: {reason}")
GPU_SHARING_UNKNOWN = Template(
    "gpu-sharing-unknown",
    WARNING,
    "{ranks} local ranks share {gpus}, and which of them have GPU {address} is unknown, so each one gets a part as if"
    " all had it; name one GPU per rank with --gpus",
)

# OpenMP runtimes, the environment and start methods.
RUNTIME_UNKNOWN = Template(
    "runtime-unknown",
    WARNING,
    "the OpenMP runtime of the workers is unknown, so {consequence}; name it with --runtime gomp (torch's own), iomp or"
    " omp, or import a module to detect it with --probe MODULE",
)
RUNTIME_DIFFERS = Template(
    "runtime-differs",
    WARNING,
    "the workers load {libraries}, which ignores the variables of --runtime {runtime}; leave --runtime out",
)
TWO_OPENMP_RUNTIMES = Template(
    "two-openmp-runtimes",
    WARNING,
    "the workers load {libraries}: the first to start narrows the mask that the other reads, so {consequence}; load one"
    " of them only, or name the one that computes with --runtime",
)
ENVIRONMENT_OVERRIDDEN = Template(
    "environment-overridden",
    NOTE,
    "this environment has {variables}; workers get the plan's values or none of these",
)
FORK_AFTER_OPENMP = Template(
    "fork-after-openmp",
    ERROR,
    "{library} is loaded in this process: a forked worker ignores its OpenMP variables, and hangs in its first parallel"
    ' region if one has run here; start workers with multiprocessing.get_context("spawn")',
)
FORKSERVER_ENVIRONMENT = Template(
    "forkserver-environment",
    ERROR,
    "the start method forkserver gives every worker the environment and the CPUs of its server; start workers with"
    ' multiprocessing.get_context("spawn")',
)

# Binding and memory.
_REFUSED = "{subject}: {consequence}, because {reason}"
AFFINITY_NOT_PERMITTED = Template("affinity-not-permitted", WARNING, _REFUSED)
NOTHING_RESERVED = Template("nothing-reserved", WARNING, _REFUSED)
LIBNUMA_MISSING = Template("libnuma-missing", WARNING, _REFUSED)
MEMORY_POLICY_NOT_PERMITTED = Template("memory-policy-not-permitted", WARNING, _REFUSED)
NO_ROOM_FOR_PAGES = Template("memory-nearly-full", WARNING, _REFUSED)
REFUSALS = {
    template.code: template
    for template in (
        AFFINITY_NOT_PERMITTED,
        NOTHING_RESERVED,
        LIBNUMA_MISSING,
        MEMORY_POLICY_NOT_PERMITTED,
        NO_ROOM_FOR_PAGES,
    )
}
"""The template for each `BindingError.code`."""
MEMORY_NEARLY_FULL = Template(
    "memory-nearly-full",
    WARNING,
    "{subject}: node {nodes} has {available:.0f} MiB available of {total:.0f} MiB; the kernel kills a process that is"
    " bound there and needs more; stop other users of this memory, or use --memory-policy preferred",
)
THREADS_NOT_BOUND = Template(
    "affinity-not-permitted", WARNING, "{subject}: {count} of its threads are not bound ({reasons})"
)
MASK_NOT_WIDENED = Template(
    "affinity-not-permitted",
    WARNING,
    "--override cannot widen the mask, CPU {cpus}: the kernel refuses ({reason}); allow sched_setaffinity in the"
    " seccomp profile, or leave --override out",
)
PAGES_NOT_MOVED = Template(
    "pages-not-moved",
    WARNING,
    "{mebibytes:.0f} MiB of this process stayed on their nodes: pages that other processes share do not move, nor do"
    " pages move into a full node; bind before the pages are touched",
)
OPTIONS_MEASURED_ELSEWHERE = Template(
    "options-measured-elsewhere",
    WARNING,
    "the options in {file} were measured under other conditions: {differences}; measure them here with compare --save",
)
RUNNING_NOT_BOUND = Template(
    "affinity-not-permitted", WARNING, "the CPUs of {count} of process {pid} stay as they are: {reason}"
)
TEAM_UNKNOWN = Template(
    "team-unknown",
    WARNING,
    "rank {rank}, process {pid}: {busy} seen, the plan has {planned}, so all its threads share CPU {cpus}; bind it"
    " while it computes, with options that plan a CPU for each of its threads (--reserve 0, --cpus)",
)
POLICY_NOT_SET = Template(
    "memory-policy-not-set",
    NOTE,
    "process {pid}: {moved:.0f} MiB moved to node {nodes}, {left:.0f} MiB stay elsewhere; its memory policy is its own"
    " and stays as it is, so new pages go to the node of the thread that touches them",
)
PAGES_OF_PROCESS_STAY = Template(
    "pages-not-moved",
    WARNING,
    "the pages of process {pid} stay where they are, instead of node {nodes}: {reason}",
)
NODE_OUTSIDE_MASK = Template(
    "outside-binding",
    WARNING,
    "this process may use CPU {cpus}, none of which is on node {node}, so it is left unchanged; start it with a wider"
    " mask or cpuset",
)

# Launchers and Ray.
RANK_UNKNOWN = Template(
    "rank-unknown",
    WARNING,
    "no launcher detected (torchrun, mpirun, srun ...), so 1 local rank is assumed; name this one with --local-rank and"
    " --local-world-size",
)
SERVER_BINDS_WORKERS = Template(
    "server-binds-workers",
    WARNING,
    "{server} binds its own workers, so {verb} sets no OpenMP variables for it; use {instead}, without {verb}",
)
RANKS_SHARE_MASK = Template(
    "outside-binding",
    WARNING,
    "{launcher} or a script under it has bound the ranks, and not all of them were seen, so rank {rank} takes one of"
    " {parts} parts of its mask; let the launcher bind none (mpirun --bind-to none, srun --cpu-bind=none), or use"
    " --override",
)
GPU_BY_SCHEDULER = Template(
    "gpu-by-scheduler",
    NOTE,
    "Ray assigns the GPUs of a node to its ranks; call bind_actor() first in the actor to bind it next to its GPU",
)
GROUPS_SPAN_NODES = Template(
    "groups-span-nodes",
    NOTE,
    "no machine has room for every group of {group} ranks, so groups communicate over the network; use a smaller --tp,"
    " or larger machines",
)
HELPER_UNUSABLE = Template(
    "helper-unusable",
    WARNING,
    "actors cannot be bound before they start ({reason}); call bind_actor() first in each actor",
)
MEMORY_POLICY_UNKNOWN = Template(
    "memory-policy-unknown", WARNING, "the memory policies that the kernel permits there are unknown: {reason}"
)
NODE_NOT_READ = Template("node-not-read", WARNING, "node {node} gets no ranks: {reason}")
NODES_OVERLAP = Template(
    "nodes-overlap",
    WARNING,
    "{first} and {second} are on one machine and share CPU {cpus}, but not all CPUs, so ranks of both may get the same"
    " CPUs; start their raylets with identical or with separate CPUs",
)
NODES_SHARE_MACHINE = Template(
    "nodes-share-machine", NOTE, "nodes {nodes} are on one machine, {machine}, and are planned together"
)


def catalogue() -> tuple[Template, ...]:
    """Return every template, by code."""
    return tuple(sorted((value for value in globals().values() if isinstance(value, Template)), key=lambda t: t.code))
