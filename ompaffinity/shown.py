"""Text of others on a terminal: names of processes, commands, files and machines may hold escape sequences."""

from __future__ import annotations

MOST_WORDS, MOST_LETTERS = 4, 60


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
