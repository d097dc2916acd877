"""Text of others on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.shown import brief_command, did_you_mean, shown


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
        (f"{'x' * 60} a", f"{'x' * 60} a"),
        (f"{'x' * 61} a", f"{'x' * 60}... a"),
        ("one two three four", "one two three four"),
        ("one two three four five", "one two three four ..."),
        ("", ""),
    ],
)
def test_a_brief_command_has_no_options(command: str, brief: str) -> None:
    assert brief_command(command) == brief


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plna", "; did you mean plan?"),
        ("plans", "; did you mean plan?"),
        ("xyz", ""),
        # Letters after the hundredth are not compared: with them the words would have too little in common.
        ("p" * 100 + "z" * 300, f"; did you mean {'p' * 100}?"),
    ],
)
def test_the_most_similar_word_is_named(word: str, text: str) -> None:
    assert did_you_mean(word, ["bind", "plan", "place", "p" * 100]) == text
