"""The OpenMP runtime's own report of a team that verify starts: a second opinion beside the kernel's data.

OMP_DISPLAY_AFFINITY makes a runtime print a line for each thread when a team is formed (OpenMP 5.2, 21.2.2 and 21.2.3).
GNU's prints nothing for a team of one, so that the absence of a report proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.proof.verdict import Difference, RankVerdict, with_differences

if TYPE_CHECKING:
    from ompaffinity.placement.model import RankPlacement

MARK = "ompaffinity-affinity"
VARIABLES = {"OMP_DISPLAY_AFFINITY": "TRUE", "OMP_AFFINITY_FORMAT": f"{MARK} %n %A"}


def with_runtime_report(verdict: RankVerdict, placement: RankPlacement, output: str) -> RankVerdict:
    """Return a verdict with what the runtime reported in this output, and with the differences to the plan."""
    report: dict[int, tuple[int, ...]] = {}
    for line in output.splitlines():
        _, mark, rest = line.partition(MARK)
        words = rest.split()
        if not mark or len(words) != 2 or not words[0].isdecimal():
            continue
        try:
            # The first team counts: nested ones number their threads anew.
            report.setdefault(int(words[0]), tuple(parse_id_list(words[1])))
        except IDListError:
            continue
    if not report:
        return verdict
    differences = [
        Difference(
            f"thread {thread}",
            f"is on CPU {format_id_list(cpus)} by the report of its OpenMP runtime, the plan requires"
            f" {format_id_list(placement.places[thread])}",
        )
        for thread, cpus in sorted(report.items())
        if thread < len(placement.places) and cpus != placement.places[thread]
    ]
    return with_differences(verdict._replace(runtime_report=report), differences)


def other_output(output: str) -> list[str]:
    """Return the lines of an output that are no report."""
    return [line for line in output.strip().splitlines() if MARK not in line]
