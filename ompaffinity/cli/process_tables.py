"""The tables of ``inspect`` and ``bind --pid``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.cli.text import ids_text, print_line, print_messages, print_table
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted

if TYPE_CHECKING:
    from ompaffinity.proof.adopt import Adoption
    from ompaffinity.proof.inspect import Inspection


def print_inspection(inspection: Inspection) -> None:
    """Print one row per process and affinity mask, with the process's memory, and the findings."""
    rows: list[tuple[str, ...]] = []
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
            rows.append((*cells, str(len(numbers)), str(count), waiting, ids_text(cpus), pages))
            cells, pages, waiting = ["", "", ""], "", ""
    headings = ("pid", "kind", "command", "threads", "busy", "waiting", "affinity", "memory")
    print_table(headings, rows, right=("pid", "threads", "busy", "waiting"))
    print_line()
    for finding in inspection.findings:
        print_line((f"{finding.message} [{finding.code}]", "problem"))
    for process in inspection.processes:
        for note in process.state.problems:
            print_line((f"note: process {process.state.pid}: {note}", "note"))
    if inspection.unseen:
        numbers_of = format_id_list(inspection.unseen)
        print_line((f"note: process {numbers_of} may not be read by this user", "note"))
    if inspection.hidden:
        text = "note: other users' processes are hidden (hidepid, or a container's own /proc)"
        print_line((text, "note"))
    if inspection.has_seen_nothing:
        print_line(("No process could be observed.", "warning"))
    elif not inspection.findings:
        print_line((f"No problem found in {inspection.seconds:.1f} seconds.", "good"))


def print_adoption(adoption: Adoption, *, undone: bool) -> None:
    """Print one row per thread that got other CPUs, the messages, and how many threads were bound or restored."""
    ranks = {rank.pid: str(rank.placement.rank) for rank in adoption.ranks}
    teams = {number: at for rank in adoption.ranks for at, number in enumerate(rank.team)}
    rows = [
        (
            ranks.get(change.pid, ""),
            str(change.pid),
            str(change.thread_id),
            change.name,
            str(teams.get(change.thread_id, "")),
            ids_text(change.before),
            ids_text(change.cpus),
        )
        for change in adoption.binding.changes
    ]
    if rows:
        headings = ("rank", "pid", "thread id", "name", "OpenMP", "before", "now")
        print_table(headings, rows, right=("rank", "pid", "thread id", "OpenMP"))
        print_line()
    print_messages(adoption.messages)
    count = counted(len(adoption.binding.changes), "thread")
    verb = "got back the CPUs that they had before" if undone else "got other CPUs"
    refused = f", {len(adoption.binding.refused)} refused" if adoption.binding.refused else ""
    style = "warning" if adoption.binding.refused else "good"
    print_line((f"{count} {verb}{refused}.", style))
