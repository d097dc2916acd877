"""Programs for a child of this interpreter that imports no module from the current directory."""

from __future__ import annotations

import os
import sys

PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def child_command(program: str, *arguments: str) -> list[str]:
    """Return the argv list that runs the source text `program` in this interpreter.

    ``python -c`` and ``python -m`` import from the current directory first, also where a module of the standard
    library has the same name (Python's documentation, ``sys.path``; ``-P`` needs Python 3.11). The child removes that
    entry before its first import of a file, and can import this package.
    """
    start = (
        "import sys\n"
        "sys.path = [folder for folder in sys.path if folder]\n"
        f"if {PACKAGE_FOLDER!r} not in sys.path: sys.path.insert(0, {PACKAGE_FOLDER!r})\n"
    )
    return [sys.executable, "-c", start + program, *arguments]
