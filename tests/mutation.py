"""Change the package in small ways, and count the changes that no test notices: ``python -m tests.mutation``.

A sample of the changes that Cosmic Ray can make in the rooms that decide, bind and prove is tried in a copy of the
checkout, for half an hour (``--minutes``; ``--all``: every change). For each one the tests of its room run, those that
name the module first, until one fails. A change survives if all of them pass. ``tox -e mutation``.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("placement", "openmp", "bind", "proof", "launch")
COPIED = ("ompaffinity", "tests", "docs", "scripts", "examples", "pyproject.toml", "README.md", "CHANGELOG.md")
COMPARISONS = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")
ARITHMETIC = ("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Div_Mul", "BitAnd_BitOr", "BitOr_BitAnd")
OPERATORS = (
    *(f"core/ReplaceComparisonOperator_{name}" for name in COMPARISONS),
    *(f"core/ReplaceBinaryOperator_{name}" for name in ARITHMETIC),
    *(f"core/Replace{name}" for name in ("AndWithOr", "OrWithAnd", "TrueWithFalse", "FalseWithTrue")),
    *(f"core/Replace{name}" for name in ("BreakWithContinue", "ContinueWithBreak")),
    *("core/ReplaceUnaryOperator_Delete_Not", "core/AddNot", "core/NumberReplacer", "core/ZeroIterationForLoop"),
)
LEAST_SECONDS = 60.0
FACTOR = 3.0
"""A change whose tests take so many times as long as those of the unchanged room is noticed, too."""


class Mutant(NamedTuple):
    """A change: the file below the package, the operator and which of its places, and the line."""

    file: str
    operator: str
    occurrence: int
    line: int

    @property
    def room(self) -> str:
        """The folder of the package."""
        return Path(self.file).parts[1]


def mutants_of(path: Path, file: str) -> Iterator[Mutant]:
    """Yield every change of a file but those in annotations and imports for type checkers, which never run."""
    source = path.read_text()
    ignored = _lines_that_never_run(ast.parse(source))
    for operator in OPERATORS:
        plugin = cosmic_ray.plugins.get_operator(operator)()
        places = (place for node in ast_nodes(get_ast(source)) for place in plugin.mutation_positions(node))
        for occurrence, ((line, _), _) in enumerate(places):
            if line not in ignored:
                yield Mutant(file, operator, occurrence, line)


def _lines_that_never_run(tree: ast.AST) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        unused: list[ast.AST | None] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            unused += [node.returns, *(argument.annotation for argument in named if argument is not None)]
        elif isinstance(node, ast.AnnAssign):
            unused.append(node.annotation)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            unused.append(node)
        for part in unused:
            if part is not None:
                found.update(range(part.lineno, (part.end_lineno or part.lineno) + 1))  # type: ignore[attr-defined]
    return found


def tests_of(room: str, file: str, root: Path) -> list[str]:
    """Return the test files of a room, those that name the module first."""
    module = file.removesuffix(".py").replace("/", ".")
    paths = sorted((root / "tests" / room).rglob("test_*.py"))
    paths.sort(key=lambda path: (path.stem != f"test_{Path(file).stem}", module not in path.read_text()))
    return [str(path.relative_to(root)) for path in paths]


def passes(root: Path, files: list[str], seconds: float) -> bool | None:
    """Return whether the tests pass, None where they take longer."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None


def tried(mutant: Mutant, root: Path, seconds: float) -> str:
    """Make a change, run its tests, and undo it; return ``"survived"``, ``"killed"`` or ``"timed out"``."""
    path = root / mutant.file
    source = path.read_text()
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
    path.write_text(changed)
    try:
        outcome = passes(root, tests_of(mutant.room, mutant.file, root), seconds)
    finally:
        path.write_text(source)
    return {True: "survived", False: "killed", None: "timed out"}[outcome]


def copied_checkout(folder: Path) -> Path:
    """Copy the checkout, and link the recorded machines beside it."""
    root = folder / "checkout"
    root.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return root


def try_all(mutants: list[Mutant], root: Path, deadline: float) -> Counter[str]:
    """Try changes until the time is over; print those that survive, and return how many had each outcome.

    Raises:
        RuntimeError: the tests of a room fail without a change.
    """
    limits: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for mutant in mutants:
        if time.monotonic() > deadline:
            break
        if mutant.room not in limits:
            start = time.monotonic()
            if not passes(root, tests_of(mutant.room, mutant.file, root), 3600.0):
                raise RuntimeError(f"the tests of {mutant.room} fail without a change")
            limits[mutant.room] = max(LEAST_SECONDS, FACTOR * (time.monotonic() - start))
        outcome = tried(mutant, root, limits[mutant.room])
        counts[outcome] += 1
        if outcome == "survived":
            line = (root / mutant.file).read_text().splitlines()[mutant.line - 1].strip()
            place = f"{mutant.file}:{mutant.line}"
            print(f"survived: {place} {mutant.operator.removeprefix('core/')} {mutant.occurrence}: {line}", flush=True)
    return counts


def main() -> None:
    """Try changes until the time is over, and print the share that survives."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", default=[*ROOMS], help=f"rooms of the package (default {' '.join(ROOMS)})")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--all", action="store_true", help="try every change, however long it takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", help="changes of this file only, as in placement/cut.py")
    options = parser.parse_args()
    deadline = float("inf") if options.all else time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="ompaffinity-mutation-") as folder:
        root = copied_checkout(Path(folder))
        files = [path for room in options.rooms for path in sorted((root / "ompaffinity" / room).rglob("*.py"))]
        names = [str(path.relative_to(root)) for path in files]
        if options.file:
            names = [name for name in names if name == f"ompaffinity/{options.file}"]
        mutants = [mutant for name in names for mutant in mutants_of(root / name, name)]
        print(f"{len(mutants)} changes in {len(names)} files", flush=True)
        # The same sample each time.
        random.Random(options.seed).shuffle(mutants)  # noqa: S311
        counts = try_all(mutants, root, deadline)
    total = counts.total()
    print(f"{total} changes tried: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    print(f"{100 * counts['survived'] / max(1, total):.0f} % survived (goal: at most 10 %)")


if __name__ == "__main__":
    main()
