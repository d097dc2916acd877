"""Small files of sysfs and procfs as values: text, numbers, id lists. Unreadable means None."""

from __future__ import annotations

from ompaffinity.errors import IdListError
from ompaffinity.topology.idlist import parse_id_list, parse_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

# Old kernels end some lists in "\n\0", Kunpeng's firmware all of them.
BLANKS = " \t\r\n\0"


def read_text(tree: Tree, path: str) -> str | None:
    """Return a file's text without surrounding blanks and NUL bytes, None where it cannot be read."""
    content = tree.read(path)
    return None if content is None else content.decode("ascii", "replace").strip(BLANKS)


def read_number(tree: Tree, path: str) -> int | None:
    """Return a file's decimal number (a sign is allowed), None where there is none."""
    text = read_text(tree, path)
    if text is None or len(text) > 20:
        return None
    digits = text[1:] if text.startswith("-") else text
    return int(text) if digits.isascii() and digits.isdigit() else None


def read_id_list(tree: Tree, path: str) -> list[int] | None:
    """Return the ids in a list file (``0-3,8``), None where there is no such list."""
    text = read_text(tree, path)
    try:
        return None if text is None else parse_id_list(text)
    except IdListError:
        return None


def read_mask(tree: Tree, path: str) -> list[int] | None:
    """Return the ids in a mask file (``00000000,0000010f``), None where there is no such mask."""
    text = read_text(tree, path)
    try:
        return None if text is None else parse_mask(text)
    except IdListError:
        return None


def read_ids(tree: Tree, list_path: str, mask_path: str) -> list[int] | None:
    """Return the ids in a list file, or where it is absent or empty those in the mask file beside it."""
    ids = read_id_list(tree, list_path)
    return ids or read_mask(tree, mask_path) or ids
