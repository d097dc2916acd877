"""The tables of ``verify`` and ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import ids_cell, new_console, new_table
from ompaffinity.cli.text import print_messages
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted

if TYPE_CHECKING:
    from ompaffinity.doctor.check import Diagnosis
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
