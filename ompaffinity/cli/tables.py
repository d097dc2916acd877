"""Tables drawn with rich: colour only on a terminal and without NO_COLOR, 80 columns in a pipe."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.devices.model import GPUList
    from ompaffinity.doctor.check import Diagnosis
    from ompaffinity.integrations.ray.cluster import ClusterPlan
    from ompaffinity.messages import Message
    from ompaffinity.placement.model import Plan, RankPlacement
    from ompaffinity.proof.inspect import Inspection
    from ompaffinity.proof.verdict import RankVerdict, Verdict
    from ompaffinity.topology.model import LogicalCPUInfo, Topology

LEVEL_STYLES = {"warning": "bold yellow", "note": "cyan"}


def print_plan(topology: Topology, plan: Plan, rank: int | None = None) -> None:
    """Print one row per rank, the CPUs left out with the reason, and the messages."""
    console = new_console()
    console.print(_machine_line(topology))
    console.print(f"variables for {_RUNTIME_NAMES[plan.runtime]}, {_GRANULARITY_NAMES[plan.granularity]}", style="dim")
    console.print()
    budgets = any(placement.memory_budget is not None for placement in plan.ranks)
    gpus = any(placement.gpu is not None for placement in plan.ranks)
    headings = (
        *("rank", *(("GPU",) if gpus else ()), "threads", "CPUs", "helper CPUs", "memory"),
        *(("budget",) if budgets else ()),
    )
    ranks = new_table(*headings, right=("rank", "GPU", "threads", "budget"))
    for placement in plan.ranks:
        if rank is None or placement.rank == rank:
            budget = (_bytes(placement.memory_budget),) if budgets else ()
            gpu = (str(placement.gpu),) if gpus else ()
            ranks.add_row(str(placement.rank), *gpu, *_placement_cells(placement), *budget)
    console.print(ranks)
    if plan.left_out:
        console.print()
        left_out = new_table("left out", "CPUs", "reason", "what to do about it", right=("left out",))
        for group in plan.left_out:
            left_out.add_row(str(len(group.cpus)), format_id_list(group.cpus), group.reason, group.detail)
        console.print(left_out)
    print_messages(plan.messages)


def print_cluster_plan(plan: ClusterPlan, rank: int | None = None) -> None:
    """Print one row per rank of a cluster, with its node, and the messages."""
    console = new_console()
    machines = counted(len(plan.hosts), "machine")
    console.print(Text(f"{counted(len(plan.ranks), 'rank')} on {machines} of the cluster", style="bold"))
    console.print()
    gpus = any(chosen.placement.gpu is not None for chosen in plan.ranks)
    headings = ("rank", "node", *(("GPU",) if gpus else ()), "threads", "CPUs", "helper CPUs", "memory")
    table = new_table(*headings, right=("rank", "GPU", "threads"))
    for chosen in plan.ranks:
        if rank is None or chosen.rank == rank:
            _, node = plan.home(chosen.rank)
            gpu = (str(chosen.placement.gpu),) if gpus else ()
            table.add_row(str(chosen.rank), node.name, *gpu, *_placement_cells(chosen.placement))
    console.print(table)
    print_messages(plan.all_messages)


def _placement_cells(placement: RankPlacement) -> tuple[str, str, str, str]:
    """Return the cells threads, CPUs, helper CPUs and memory of a rank."""
    if not placement.bound:
        return ("", "not bound", "", "")
    memory = f"{placement.memory_policy} {format_id_list(placement.nodes)}"
    if placement.memory_policy == "none":
        memory = f"any, near {format_id_list(placement.nodes)}" if placement.nodes else "any"
    return (
        str(len(placement.cpus)),
        _ordered(placement.cpus),
        format_id_list(placement.helper_cpus) or "none",
        memory,
    )


def print_topology(topology: Topology) -> None:
    """Print the caches with their CPUs, the NUMA nodes, and the limits of this process."""
    console = new_console()
    console.print(_machine_line(topology))
    console.print()
    groups = new_table("package", "node", "L3", "kind", "cores", "CPUs", right=("package", "node", "L3", "cores"))
    for key, members in _by_cache(topology).items():
        *numbers, kind = key
        cpus = format_id_list(cpu.id for cpu in members)
        groups.add_row(*map(_number, numbers), kind or "", str(_cores(members)), cpus)
    console.print(groups)
    if topology.nodes:
        console.print()
        nodes = new_table(
            "node", "CPUs", "memory", "available", "allowed", "distances", right=("node", "memory", "available")
        )
        for node in topology.nodes:
            nodes.add_row(
                str(node.id),
                format_id_list(node.cpus) or "none",
                _bytes(node.total_memory),
                _bytes(node.available_memory),
                "yes" if node.allowed else "no",
                " ".join(map(str, (node.distances or {}).values())) or "unknown",
            )
        console.print(nodes)
    console.print()
    for name, value in _limit_lines(topology):
        console.print(Text.assemble((f"{name}: ", "bold"), value))
    print_messages(topology.messages)


_RUNTIME_NAMES = {"gomp": "GNU libgomp", "iomp": "Intel and LLVM OpenMP", "omp": "any OpenMP runtime (standard)"}
_GRANULARITY_NAMES = {"thread": "each thread on its own CPU", "team": "a team that floats within the rank's CPUs"}


def print_devices(found: GPUList, topology: Topology) -> None:
    """Print one row per GPU, with the answer of every source about its node."""
    console = new_console()
    if not found.gpus:
        console.print("no GPU is visible to this process")
    else:
        table = new_table("GPU", "name", "PCI address", "node", "near CPUs", "source", "all sources", right=("GPU",))
        for device in found.gpus:
            answers = "; ".join(
                f"{answer.source} {'?' if answer.nodes is None else format_id_list(answer.nodes)}"
                for answer in device.answers
            )
            table.add_row(
                str(device.number),
                device.name or device.vendor,
                device.address,
                format_id_list(device.nodes) or "?",
                format_id_list(device.near_cpus(topology)) or "unknown",
                device.source or "unknown",
                answers or "none",
            )
        console.print(table)
    for vendor, state in found.libraries.items():
        if state != "ok" and any(device.vendor == vendor for device in found.gpus):
            console.print(Text(f"note: the driver library of {vendor} is not available: {state}", style="cyan"))
    print_messages(found.messages)


VERDICT_STYLES = {"holds": "bold green", "differs": "bold red", "unproven": "bold yellow"}
THREAD_WORDS = {True: "holds", False: "DIFFERS", None: "not seen"}
THREAD_STYLES = {True: "green", False: "bold red", None: "yellow"}


def print_verdict(verdict: Verdict) -> None:
    """Print one row per thread, the differences with their likely causes, the other processes, and the verdict."""
    from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN, difference_in_words

    console = new_console()
    threads = new_table("rank", "pid", "thread", "planned CPUs", "actual CPUs", "", right=("rank", "pid", "thread"))
    for rank in verdict.ranks:
        for thread in rank.threads:
            actual = "" if thread.cpus is None else format_id_list(thread.cpus)
            plan = format_id_list(thread.place) or "no such thread"
            word = Text(THREAD_WORDS[thread.holds], style=THREAD_STYLES[thread.holds])
            pid = "-" if rank.pid is None else str(rank.pid)
            threads.add_row(str(rank.rank), pid, str(thread.thread), plan, actual, word)
    console.print(threads)
    console.print()
    for rank in verdict.ranks:
        for difference in rank.differences:
            console.print(Text(difference_in_words(rank.rank, difference), style="red"))
        for note in rank.notes:
            console.print(Text(f"note: rank {rank.rank}: {note}", style="cyan"))
        console.print(Text(f"rank {rank.rank}: {_evidence_line(rank)}; {_memory_line(rank)}", style="dim"))
        if rank.runtime_report is not None:
            report = ", ".join(
                f"{thread} on {format_id_list(cpus)}" for thread, cpus in sorted(rank.runtime_report.items())
            )
            console.print(Text(f"rank {rank.rank}: threads reported by the OpenMP runtime: {report}", style="dim"))
    for process in verdict.others:
        role = process.kind if process.role is None else f"{process.kind}, {process.role}"
        console.print(Text(f"process {process.pid} ({process.command[:40]}) is no rank: {role}", style="dim"))
    print_messages(verdict.messages)
    count = counted(len({(rank.rank, rank.local_rank) for rank in verdict.ranks}), "rank")
    number = {
        word: len({(rank.rank, rank.local_rank) for rank in verdict.ranks if rank.verdict == word})
        for word in (DIFFERS, UNPROVEN)
    }
    words = {
        HOLDS: f"The plan holds: {count}, every thread on its planned CPUs.",
        DIFFERS: f"The plan does not hold for {number[DIFFERS]} of {count}.",
        UNPROVEN: f"The plan is unproven for {number[UNPROVEN]} of {count}: nothing contradicts it, but no team as"
        " planned was seen at work.",
    }
    console.print(Text(words[verdict.verdict], style=VERDICT_STYLES[verdict.verdict]))


def _evidence_line(rank: RankVerdict) -> str:
    """Return what the verdict of a rank rests on."""
    if rank.team_known:
        return "the process reported its OpenMP team"
    if rank.busy_threads is None:
        return "not observed at work"
    of = "OpenMP threads" if rank.level == "threads" else "threads within the mask"
    engines = f" ({', '.join(rank.engines)})" if rank.level == "mask" and rank.engines else ""
    return f"{counted(rank.busy_threads, 'busy thread')}, compared as {of}{engines}"


def print_inspection(inspection: Inspection) -> None:
    """Print one row per process and affinity mask, with the process's memory, and the findings."""
    console = new_console()
    right = ("pid", "threads", "busy", "waiting")
    table = new_table("pid", "kind", "command", "threads", "busy", "waiting", "affinity", "memory", right=right)
    for process in inspection.processes:
        groups: dict[tuple[int, ...], list[int]] = {}
        for thread in process.state.threads:
            groups.setdefault(thread.cpus, []).append(thread.thread_id)
        busy, delay = set(process.busy_threads), process.delay_seconds
        rank = "" if process.state.placement is None or process.kind != "rank" else f" {process.state.placement.rank}"
        cells = [str(process.state.pid), process.kind + rank, process.state.command[:40]]
        waiting = "" if delay is None else f"{delay:.0%}"
        memory = process.state.memory
        by_node = {} if memory is None else memory.bytes_by_node
        pages = ", ".join(f"{size / 2**20:.0f} MiB on node {node}" for node, size in sorted(by_node.items()))
        for cpus, numbers in sorted(groups.items()):
            count = sum(number in busy for number in numbers)
            table.add_row(*cells, str(len(numbers)), str(count), waiting, format_id_list(cpus), pages)
            cells, pages, waiting = ["", "", ""], "", ""
    console.print(table)
    console.print()
    for finding in inspection.findings:
        console.print(Text(f"{finding.message} [{finding.code}]", style="bold red"))
    for process in inspection.processes:
        for note in process.state.problems:
            console.print(Text(f"note: process {process.state.pid}: {note}", style="cyan"))
    if inspection.unseen:
        numbers_of = format_id_list(inspection.unseen)
        console.print(Text(f"note: process {numbers_of} may not be read by this user", style="cyan"))
    if inspection.hidden:
        text = "note: other users' processes are hidden (hidepid, or a container's own /proc)"
        console.print(Text(text, style="cyan"))
    if inspection.has_seen_nothing:
        console.print(Text("No process could be observed.", style="bold yellow"))
    elif not inspection.findings:
        console.print(Text(f"No problem found in {inspection.seconds:.1f} seconds.", style="bold green"))


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print one row per check: its level, what was found, and the fix."""
    console = new_console()
    table = new_table("", "check", "result and fix")
    styles = {"ok": "green", "warning": "bold yellow", "problem": "bold red"}
    for check in diagnosis.checks:
        text = Text(check.message)
        if check.fix is not None:
            text.append(f"; {check.fix}", style="dim")
        table.add_row(Text(check.level, style=styles[check.level]), check.name, text)
    console.print(table)
    console.print()
    if diagnosis.problems:
        count = counted(len(diagnosis.problems), "problem")
        console.print(Text(f"{count}: workers cannot be bound as planned here.", style="bold red"))
    else:
        console.print(Text("Workers can be bound as planned.", style="bold green"))


def _memory_line(rank: RankVerdict) -> str:
    if rank.bytes_by_node is None:
        return "the nodes of its pages are unknown"
    pages = ", ".join(f"{size / 2**20:.0f} MiB on node {node}" for node, size in sorted(rank.bytes_by_node.items()))
    return f"memory policy {rank.policy}, {pages or 'no pages'}"


def new_console(*, stderr: bool = False) -> Console:
    """Return a console with the width of the terminal, or 80 columns in a pipe."""
    # With COLUMNS=0 rich prints nothing, hence the minimum width.
    columns, lines = shutil.get_terminal_size((80, 24))
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        width=max(columns, 40),
        height=lines,
        # A message is one line of any length, which the terminal wraps.
        soft_wrap=stderr,
    )


def print_messages(messages: Iterable[Message]) -> None:
    """Print messages on standard error, one line each: ``warning: TEXT [code]``."""
    console = new_console(stderr=True)
    for message in messages:
        console.print(message_line(message))


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table with these columns; those in `right` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _machine_line(topology: Topology) -> Text:
    online = [cpu for cpu in topology.cpus if cpu.online]
    counts = {
        "package": len({cpu.package for cpu in online} - {UNKNOWN}),
        "NUMA node": len(topology.nodes),
        "core": _cores(online),
    }
    parts = [counted(count, word) for word, count in counts.items() if count]
    parts.append(f"{counted(len(online), 'CPU')} ({len(topology.allowed_cpus)} allowed)")
    return Text.assemble(
        (topology.machine, "bold"),
        f" ({topology.architecture}, read from {topology.source}): {', '.join(parts)}",
    )


def message_line(message: Message) -> Text:
    """Return ``str(message)`` with its level in colour and its code dimmed."""
    level = (f"{message.level}: ", LEVEL_STYLES[message.level])
    return Text.assemble(level, message.message, (f" [{message.code}]", "dim"))


def _cores(cpus: Iterable[LogicalCPUInfo]) -> int:
    return len({cpu.physical_core if cpu.physical_core != UNKNOWN else UNKNOWN - 1 - cpu.id for cpu in cpus})


def _by_cache(topology: Topology) -> dict[tuple[int, int, int, str | None], list[LogicalCPUInfo]]:
    groups: dict[tuple[int, int, int, str | None], list[LogicalCPUInfo]] = {}
    for cpu in topology.cpus:
        if cpu.online:
            groups.setdefault((cpu.package, cpu.numa_node, cpu.l3, cpu.kind), []).append(cpu)
    return groups


def _limit_lines(topology: Topology) -> Iterable[tuple[str, str]]:
    limits = topology.limits
    present = [cpu.id for cpu in topology.cpus]
    offline = [cpu.id for cpu in topology.cpus if not cpu.online]
    isolated = [cpu.id for cpu in topology.cpus if cpu.isolated]
    yield "allowed CPUs", f"{format_id_list(topology.allowed_cpus)} of {format_id_list(present)}"
    for name, ids in (
        ("offline CPUs", offline),
        ("isolated CPUs", isolated),
        ("allowed memory nodes", limits.cpuset_nodes or ()),
    ):
        if ids:
            yield name, format_id_list(ids)
    if limits.cpu_quota is not None:
        yield "CPU quota", f"{limits.cpu_quota:g} CPUs"
    if limits.memory_limit_bytes is not None:
        yield "memory limit", f"{_bytes(limits.memory_limit_bytes)}, {_bytes(limits.memory_usage_bytes)} in use"


def _ordered(cpus: tuple[int, ...]) -> str:
    """Return ascending CPUs as an id list with ranges, and CPUs in another order one by one."""
    return format_id_list(cpus) if list(cpus) == sorted(cpus) else ",".join(map(str, cpus))


def _number(number: int) -> str:
    return "" if number == UNKNOWN else str(number)


def _bytes(count: int | None) -> str:
    return "unknown" if count is None or count == UNKNOWN else f"{count / 2**30:.1f} GiB"
