"""The rooms of the package: each one imports only from itself and from the rooms before it, and there is no cycle."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "ompaffinity"
ORDER = (
    "errors",
    "records",
    "shown",
    "files",
    "messages",
    "ids",
    "proc",
    "mapped",
    "interpreter",
    "topology",
    "devices",
    "placement",
    "openmp",
    "bind",
    "launch",
    "proof",
    "measure",
    "doctor",
    "integrations",
    "cli",
)
PUBLIC_FACE = ("__init__", "ray", "__main__")
"""These only name what the rooms have."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Return the modules of this package that a file imports, inside functions and for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            names = {name.name for name in node.names}
        else:
            continue
        found |= {name.removeprefix("ompaffinity.") for name in names if name.startswith("ompaffinity.")} & modules
    return found


def graph() -> dict[str, set[str]]:
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    return {
        module: imports_of(path, set(paths)) - {module}
        for module, path in paths.items()
        if module.partition(".")[0] not in PUBLIC_FACE
    }


def test_every_module_is_in_a_room() -> None:
    assert {module.partition(".")[0] for module in graph()} == set(ORDER)


def test_rooms_import_only_from_rooms_before_them() -> None:
    place = {room: number for number, room in enumerate(ORDER)}
    wrong = [
        f"{module} imports {imported}"
        for module, names in graph().items()
        for imported in names
        if place[imported.partition(".")[0]] > place[module.partition(".")[0]]
    ]
    assert wrong == []


def test_no_import_cycles() -> None:
    waiting = graph()
    while free := [module for module, names in waiting.items() if not names & waiting.keys()]:
        for module in free:
            del waiting[module]
    # Packages import nothing, so what is left is in a cycle, or imports from one.
    assert sorted(waiting) == []
