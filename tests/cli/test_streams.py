"""Standard streams that are closed, full, or not read; and errors of the system that nothing foresaw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.cli import main as cli
from tests.conftest import ROOT

OMPAFFINITY = [sys.executable, "-m", "ompaffinity"]
FAST = ["--runtime", "gomp", "--granularity", "thread"]


def with_closed(streams: list[int], *words: str) -> subprocess.CompletedProcess[str]:
    """Run ompaffinity with some standard streams closed."""
    code = f"import os, sys; [os.close(number) for number in {streams}]; os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *OMPAFFINITY, *words], capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("streams", [[2], [1], [0], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_starts_the_command_also_where_streams_are_closed(verb: str, streams: list[int], tmp_path: Path) -> None:
    path = tmp_path / "started"
    done = with_closed(streams, verb, *FAST, "--", "sh", "-c", f"echo out; echo err >&2; touch {path}; exit 5")
    assert done.returncode == 5
    assert path.exists()
    if 1 not in streams:
        assert done.stdout == ("out\n" if verb == "exec" else "[rank 0] out\n")
    if 2 not in streams:
        assert done.stderr.endswith("err\n")


@pytest.mark.parametrize("streams", [[2], [1], [1, 2]])
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_exits_with_127_for_a_missing_command_where_streams_are_closed(verb: str, streams: list[int]) -> None:
    assert with_closed(streams, verb, *FAST, "--", "/no/such").returncode == 127


def test_a_verb_that_prints_needs_standard_output() -> None:
    done = with_closed([1], "plan", *FAST)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output is closed" in done.stderr
    assert with_closed([1, 2], "plan", *FAST).returncode == 2
    assert with_closed([2], "plan", *FAST).returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["plan", *FAST], ["topology"], ["topology", "--json"], ["--help"]])
def test_a_reader_that_is_gone_is_no_error(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*OMPAFFINITY, *words], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=ROOT, timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["plan", *FAST], ["topology", "--json"], ["run", *FAST, "--", "echo", "hi"]])
def test_a_full_disk_is_reported_as_such(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*OMPAFFINITY, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT, timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "ompaffinity: error: cannot write the output: No space left on device\n"


def test_the_status_counts_where_errors_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*OMPAFFINITY, "no-such-verb"], stdout=subprocess.DEVNULL, stderr=full, check=False, cwd=ROOT, timeout=60
        )
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(38, "Function not implemented"), "a system call failed in ompaffinity."),
        (OSError("no number"), ": no number"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (PermissionError(13, "Permission denied", "/etc/secret"), "cannot use /etc/secret: Permission denied"),
        (MemoryError(), "out of memory"),
    ],
)
def test_an_unforeseen_error_names_what_failed(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ompaffinity.cli.plan.run_plan", fail)
    assert cli.main(["plan", *FAST]) == 2
    reported = capsys.readouterr().err
    assert reported.startswith("ompaffinity: error: ")
    assert words in reported
    assert "cannot write the output" not in reported
    assert reported.count("\n") == 1
