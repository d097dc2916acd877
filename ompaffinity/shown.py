"""Text of others on a terminal: names of processes, commands, files and machines may hold escape sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

MOST_WORDS, MOST_LETTERS = 4, 60
MAX_WRONG_WORD = 100
"""Letters of a wrong word that are compared."""


def shown(text: str) -> str:
    r"""Return a text with every character that is not printable as an escape: ``"\x1b[31m"`` as ``\\x1b[31m``."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in text
    )


def brief_command(command: str) -> str:
    """Return the start of a command: its program, module and verb. Values of options may be secret."""
    words = command.split(" ")
    kept: list[str] = []
    for word in words[:MOST_WORDS]:
        if word.startswith("-") and word != "-m":
            break
        kept.append(word if len(word) <= MOST_LETTERS else f"{word[:MOST_LETTERS]}...")
    return " ".join(kept) if len(kept) == len(words) else " ".join([*kept, "..."])


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return ``"; did you mean plan?"`` with the known word that is most similar; "" where none is."""
    # Loaded for an error only.
    from difflib import get_close_matches

    found = get_close_matches(word[:MAX_WRONG_WORD], list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""
