"""The tables of ``verify``, ``inspect`` and ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import ids_cell, new_console, new_table
from ompaffinity.cli.text import print_messages
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from ompaffinity.doctor.check import Diagnosis
    from ompaffinity.proof.adopt import Adoption
    from ompaffinity.proof.inspect import Inspection
    from ompaffinity.proof.verdict import RankVerdict, Verdict

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
            actual = ids_cell(thread.cpus or ())
            plan = ids_cell(thread.place, "no such thread")
            word = Text(THREAD_WORDS[thread.holds], style=THREAD_STYLES[thread.holds])
            pid = "-" if rank.pid is None else str(rank.pid)
            # The threads that do not belong to the team inherit the mask of the first one, as `plan` shows it.
            named = "0, others" if thread.thread == 0 else str(thread.thread)
            threads.add_row(str(rank.rank), pid, named, plan, actual, word)
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
            table.add_row(*cells, str(len(numbers)), str(count), waiting, ids_cell(cpus), pages)
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


def print_adoption(adoption: Adoption, *, undone: bool) -> None:
    """Print one row per thread that got other CPUs, the messages, and how many threads were bound or restored."""
    console = new_console()
    ranks = {rank.pid: str(rank.placement.rank) for rank in adoption.ranks}
    teams = {number: at for rank in adoption.ranks for at, number in enumerate(rank.team)}
    right = ("rank", "pid", "thread id", "OpenMP")
    table = new_table("rank", "pid", "thread id", "name", "OpenMP", "before", "now", right=right)
    for change in adoption.binding.changes:
        table.add_row(
            ranks.get(change.pid, ""),
            str(change.pid),
            str(change.thread_id),
            shown(change.name),
            str(teams.get(change.thread_id, "")),
            ids_cell(change.before),
            ids_cell(change.cpus),
        )
    if adoption.binding.changes:
        console.print(table)
        console.print()
    print_messages(adoption.messages)
    count = counted(len(adoption.binding.changes), "thread")
    verb = "got back the CPUs that they had before" if undone else "got other CPUs"
    refused = f", {len(adoption.binding.refused)} refused" if adoption.binding.refused else ""
    style = "bold yellow" if adoption.binding.refused else "bold green"
    console.print(Text(f"{count} {verb}{refused}.", style=style))


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
