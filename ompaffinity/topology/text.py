"""Small files of sysfs and procfs as text, numbers and id lists; None if unreadable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import MAX_ID, parse_mask, parse_ordered_id_list

if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

# Lists end in "\n\0" on some old kernels and on Kunpeng.
BLANKS = " \t\r\n\0"


def read_text(tree: Tree, path: str) -> str | None:
    """Return a file's text without surrounding whitespace and NUL bytes, None if it cannot be read."""
    content = tree.read(path)
    return None if content is None else content.decode("ascii", "replace").strip(BLANKS)


def read_number(tree: Tree, path: str) -> int | None:
    """Return a file's decimal number, with an optional minus sign, None if it has none."""
    text = read_text(tree, path)
    if text is None:
        return None
    number = plain_number(text.removeprefix("-"))
    return -number if number is not None and text.startswith("-") else number


def plain_number(text: str) -> int | None:
    """Return a decimal number without sign of at most 18 digits, None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def numbered(names: list[str], prefix: str) -> list[int]:
    """Return the ids in the names that consist of `prefix` and an id, ascending."""
    numbers = [plain_number(name[len(prefix) :]) for name in names if name.startswith(prefix)]
    return sorted(number for number in numbers if number is not None and number <= MAX_ID)


def ids_in(content: bytes) -> list[int] | None:
    """Return the ids in the content of a list file, in its order; None if it is not a list."""
    try:
        return parse_ordered_id_list(content.decode("ascii", "replace").strip(BLANKS))
    except IDListError:
        return None


def read_id_list(tree: Tree, path: str) -> list[int] | None:
    """Return the ids in a list file (``0-3,8``), ascending; None if there is no such list."""
    content = tree.read(path)
    ids = None if content is None else ids_in(content)
    return None if ids is None else sorted(ids)


def read_mask(tree: Tree, path: str) -> list[int] | None:
    """Return the ids in a mask file (``00000000,0000010f``), None if there is no such mask."""
    text = read_text(tree, path)
    try:
        return None if text is None else parse_mask(text)
    except IDListError:
        return None


def read_ids(tree: Tree, list_path: str, mask_path: str) -> list[int] | None:
    """Return the ids in a list file, or in the mask file if the list is absent or empty."""
    ids = read_id_list(tree, list_path)
    return ids or read_mask(tree, mask_path) or ids
