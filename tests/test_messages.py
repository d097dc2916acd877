from __future__ import annotations

import subprocess
import sys

import pytest

from ompaffinity.messages import Message, counted, has_warning, log_warnings
from tests.conftest import ROOT

WARN = "from ompaffinity.messages import RANK_UNKNOWN, log_warnings; log_warnings([RANK_UNKNOWN()])"


@pytest.mark.parametrize(
    ("before", "start"),
    [
        ("", "warning: no launcher detected"),
        ("import logging", "warning: no launcher detected"),
        ("import logging; logging.basicConfig()", "WARNING:ompaffinity:warning: no launcher detected"),
    ],
    ids=["logging is not loaded", "logging is loaded", "logging is configured"],
)
def test_a_warning_is_on_standard_error_whether_or_not_logging_is_loaded(before: str, start: str) -> None:
    code = f"{before}\n{WARN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr[: len(start)]) == ("", start)


@pytest.mark.parametrize("stderr", ["None", "open(os.devnull)"], ids=["closed at the start", "not writable"])
def test_a_warning_without_standard_error_is_dropped(stderr: str) -> None:
    code = f"import os, sys\nsys.stderr = {stderr}\n{WARN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(("count", "text"), [(0, "0 CPUs"), (1, "1 CPU"), (2, "2 CPUs")])
def test_one_thing_is_in_the_singular(count: int, text: str) -> None:
    assert counted(count, "CPU") == text


def test_a_note_is_no_warning() -> None:
    note, warning = Message("a", "note", "b"), Message("c", "warning", "d")
    assert [has_warning(messages) for messages in ((), (note,), (note, warning))] == [False, False, True]


def test_every_warning_is_logged_and_no_note(caplog: pytest.LogCaptureFixture) -> None:
    log_warnings([Message("a", "note", "b"), Message("c", "warning", "d"), Message("e", "warning", "f")])
    assert [record.getMessage() for record in caplog.records] == ["warning: d [c]", "warning: f [e]"]
