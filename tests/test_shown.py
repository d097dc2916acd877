"""Text of others on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.shown import brief_command, shown


@given(st.text())
def test_what_is_shown_is_printable_and_printable_text_is_unchanged(text: str) -> None:
    assert shown(text).isprintable()
    if text.isprintable():
        assert shown(text) == text


def test_escape_sequences_are_shown_as_such() -> None:
    assert shown("\x1b[31mred\x07\n") == "\\x1b[31mred\\x07\\n"


@pytest.mark.parametrize(
    ("command", "brief"),
    [
        ("python worker.py", "python worker.py"),
        ("python -m vllm.entrypoints serve m --api-key secret", "python -m vllm.entrypoints serve ..."),
        ("python -c print('secret')", "python ..."),
        ("server --token=secret", "server ..."),
        (f"{'x' * 100} a", f"{'x' * 60}... a"),
        ("", ""),
    ],
)
def test_a_brief_command_has_no_options(command: str, brief: str) -> None:
    assert brief_command(command) == brief
