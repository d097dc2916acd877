"""A part of the fault injection for every run of the tests; ``tox -e faults`` has the rest, and the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from ompaffinity.cli.main import main
from tests.conftest import needs_program
from tests.faults import hostile, places
from tests.faults.child import Case, problem, run_case

COMMAND_LINES = [case for case in hostile.words() if case.statuses == hostile.REFUSED]
CALLS = [case for case in places.refused_calls() if "sched_" in case.name or "pidfd_open" in case.name]


def name_of(case: Case) -> str:
    return case.name.encode("unicode_escape").decode("ascii")


@pytest.mark.parametrize("case", COMMAND_LINES, ids=name_of)
def test_rejects_hostile_command_lines_in_one_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(case.arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("ompaffinity: error: ")
    assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize("case", [*hostile.launcher_variables()][::4], ids=name_of)
def test_rejects_hostile_variables_of_launchers(case: Case) -> None:
    assert problem(case, run_case(case)) is None


def test_reads_hostile_plan_files_within_limits(tmp_path: Path) -> None:
    for case in hostile.plan_files(tmp_path):
        outcome = run_case(case)
        assert problem(case, outcome) is None, case.name


def test_reads_hostile_documents_within_limits(tmp_path: Path) -> None:
    for case in hostile.document_files(tmp_path):
        outcome = run_case(case)
        assert problem(case, outcome) is None, case.name


@pytest.mark.parametrize("case", CALLS, ids=name_of)
def test_reports_refused_system_calls(case: Case) -> None:
    assert problem(case, run_case(case)) is None


@needs_program("prlimit")
@pytest.mark.parametrize("case", [case for case in places.tight_limits() if "=8" in case.name], ids=name_of)
def test_reports_that_eight_open_files_are_too_few(case: Case) -> None:
    assert problem(case, run_case(case)) is None
