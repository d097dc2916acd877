from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.cli.log import set_verbosity
from ompaffinity.cli.text import format_bytes, ids_text, print_line, print_messages, print_table
from ompaffinity.ids import parse_id_list
from ompaffinity.messages import Message
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
WARNING = Message("code-of-it", "warning", "something is wrong")
MANY = ids_text([number for number in range(200) if number % 10 not in (3, 7)])


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return what replaces variables of the environment, which has none that decides about styles or width."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@contextmanager
def terminal(variables: pytest.MonkeyPatch, stream: str = "stdout") -> Iterator[list[str]]:
    """Make standard output (or `stream`) a terminal of 80 columns; its lines are in the list afterwards."""
    reader, other_end = os.openpty()
    lines: list[str] = []
    try:
        with os.fdopen(other_end, "w") as writer, variables.context() as changed:
            changed.setattr(sys, stream, writer)
            changed.setenv("TERM", "xterm")
            changed.setenv("COLUMNS", "80")
            yield lines
        text = b""
        # After the last byte of a terminal whose other end is closed, the kernel reports EIO.
        with suppress(OSError):
            while part := os.read(reader, 4096):
                text += part
        lines += text.decode().splitlines()
    finally:
        os.close(reader)


def test_a_table_has_a_line_of_headings_a_rule_and_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("rank", "CPUs"), [("0", "0-3,8"), ("11", "4")], right=("rank",))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["rank   CPUs", RULE * 12, "   0   0-3,8", "  11   4"]


def test_a_table_without_rows_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("rank", "CPUs"), [])
    assert capsys.readouterr().out.splitlines() == ["rank   CPUs", RULE * 11]


def test_a_table_of_the_width_of_the_terminal_is_not_wrapped(
    capsys: pytest.CaptureFixture[str], pipe: pytest.MonkeyPatch
) -> None:
    rows = [("7", "1,2," + "3" * 60)]
    wide = ["a   b", RULE * 68, "7   1,2," + "3" * 60]
    pipe.setenv("COLUMNS", "68")
    print_table(("a", "b"), rows)
    assert capsys.readouterr().out.splitlines() == wide
    pipe.setenv("COLUMNS", "67")
    print_table(("a", "b"), rows)
    assert len(capsys.readouterr().out.splitlines()) > len(wide)


def test_a_list_wraps_at_its_commas(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("left out", "CPUs"), [("160", MANY)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    column = lines[0].index("CPUs")
    parts = [line[column:].strip() for line in lines[2:]]
    assert len(parts) > 1
    assert all(part.endswith(",") for part in parts[:-1])
    assert parse_id_list("".join(parts).replace(" ", "")) == parse_id_list(MANY)


def test_an_option_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{'x' * length} --threads-per-core all" for length in range(30, 60)]
    print_table(("CPUs", "what to do"), [("0-3,7" * 6, text) for text in texts])
    text = capsys.readouterr().out
    assert text.count("--threads-per-core") == len(texts)
    assert text.count("0-3") == 6 * len(texts)


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("39", 40), ("1", 40), ("44", 44)])
def test_a_table_is_never_narrower_than_40_columns(
    columns: str, width: int, capsys: pytest.CaptureFixture[str], pipe: pytest.MonkeyPatch
) -> None:
    pipe.setenv("COLUMNS", columns)
    print_table(("a", "b"), [("word " * 30, "word " * 30)])
    assert capsys.readouterr().out.splitlines()[1] == RULE * width


def test_the_rule_is_of_letters_that_the_output_can_encode(pipe: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    pipe.setattr(sys, "stdout", stream)
    print_table(("rank", "CPUs"), [("0", "0-3")])
    stream.seek(0)
    assert stream.read().splitlines() == ["rank   CPUs", "-----------", "0      0-3"]


@given(st.text(), st.text())
def test_control_characters_are_escaped(first: str, second: str) -> None:
    streams = sys.stdout, io.StringIO()
    sys.stdout = streams[1]
    try:
        print_line(first, (second, "bold"))
        print_table(("a", "b"), [(first, second)])
    finally:
        sys.stdout = streams[0]
    assert all(line.isprintable() for line in streams[1].getvalue().split("\n"))


def test_styles_are_for_terminals(pipe: pytest.MonkeyPatch) -> None:
    with terminal(pipe) as lines:
        print_line(("name", "bold"), " of a machine")
        print_line(("name", "bold"), stream=io.StringIO())
        pipe.setenv("NO_COLOR", "1")
        print_line(("name", "bold"))
        pipe.setenv("NO_COLOR", "")
        pipe.setenv("TERM", "dumb")
        print_line(("name", "bold"))
    assert lines == ["\x1b[1mname\x1b[0m of a machine", "name", "name"]


def test_headings_are_bold_on_a_terminal(pipe: pytest.MonkeyPatch) -> None:
    with terminal(pipe) as lines:
        print_table(("rank", "CPUs"), [("0", "0-3")])
    assert lines == ["\x1b[1mrank   CPUs\x1b[0m", RULE * 11, "0      0-3"]


def test_a_message_is_one_line_with_its_level_and_its_code(
    capsys: pytest.CaptureFixture[str], pipe: pytest.MonkeyPatch
) -> None:
    print_messages([WARNING])
    assert capsys.readouterr() == ("", "warning: something is wrong [code-of-it]\n")
    pipe.setenv("FORCE_COLOR", "1")
    print_messages([WARNING, WARNING._replace(level="note")])
    error = capsys.readouterr().err.splitlines()
    rest = "something is wrong\x1b[2m [code-of-it]\x1b[0m"
    assert error == [f"\x1b[1m\x1b[33mwarning: \x1b[0m{rest}", f"\x1b[36mnote: \x1b[0m{rest}"]


def test_messages_have_colours_where_only_standard_error_is_a_terminal(pipe: pytest.MonkeyPatch) -> None:
    with terminal(pipe, "stderr") as lines:
        print_messages([WARNING])
    assert lines == ["\x1b[1m\x1b[33mwarning: \x1b[0msomething is wrong\x1b[2m [code-of-it]\x1b[0m"]


@pytest.mark.parametrize(
    ("count", "text"), [(None, "unknown"), (UNKNOWN, "unknown"), (0, "0.0 GiB"), (3 << 29, "1.5 GiB"), (1, "0.0 GiB")]
)
def test_bytes_are_in_gibibytes(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


def test_quiet_prints_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    set_verbosity(quiet=True, verbose=False)
    try:
        print_messages([WARNING])
    finally:
        set_verbosity(quiet=False, verbose=False)
    assert capsys.readouterr().err == ""
