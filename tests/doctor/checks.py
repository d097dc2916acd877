"""A tree of files to check, and the checks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ompaffinity.doctor.record import Check


def tree_of(folder: Path, files: dict[str, str]) -> DirectoryTree:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return DirectoryTree(str(folder))


def checked(found: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}
