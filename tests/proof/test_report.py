"""What OpenMP runtimes report of their threads (OMP_DISPLAY_AFFINITY), compared with the plan."""

from __future__ import annotations

from ompaffinity.proof.compare import verdict_of_team
from ompaffinity.proof.report import MARK, other_output, with_runtime_report
from ompaffinity.proof.verdict import RankVerdict, difference_in_words
from tests.proof.observations import PLACEMENT, process

# The places of the plan, and the threads of the team.
FIRST, SECOND = PLACEMENT.places


def reported(*lines: str) -> RankVerdict:
    """Return the verdict on a team that holds, with what its runtime printed."""
    holds = verdict_of_team(PLACEMENT, process(FIRST, SECOND), (100, 101))
    assert holds.holds
    return with_runtime_report(holds, PLACEMENT, "\n".join(lines))


def test_a_report_that_is_as_planned_leaves_the_verdict() -> None:
    found = reported("a warning", f"{MARK} 0 4,6", f"OMP: {MARK} 1 5")
    assert (found.verdict, found.runtime_report) == ("holds", {0: (4, 6), 1: (5,)})
    assert found.to_document()["runtime_report"] == {"0": "4,6", "1": "5"}


def test_a_thread_that_is_reported_elsewhere_differs() -> None:
    found = reported(f"{MARK} 0 4,6", f"{MARK} 1 7")
    assert found.verdict == "differs"
    (difference,) = found.differences
    assert difference_in_words(1, difference) == (
        "rank 1, thread 1: is on CPU 7 by the report of its OpenMP runtime, the plan requires 5"
    )


def test_the_first_team_counts_and_threads_beyond_the_plan_do_not() -> None:
    # Nested teams number their threads anew.
    found = reported(f"{MARK} 0 4,6", f"{MARK} 1 5", f"{MARK} 2 9", f"{MARK} 0 7")
    assert (found.verdict, found.runtime_report) == ("holds", {0: (4, 6), 1: (5,), 2: (9,)})


def test_without_a_line_of_the_report_there_is_none() -> None:
    found = reported("a warning", f"{MARK} x 7", f"{MARK} 1", f"{MARK} 1 7 8", f"{MARK} 1 seven", "1 7")
    assert (found.verdict, found.runtime_report) == ("holds", None)


def test_other_lines_of_the_output_are_no_report() -> None:
    assert other_output(f"\nfirst\n{MARK} 0 4\nsecond\n") == ["first", "second"]
