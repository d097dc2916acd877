"""``python -m ompaffinity``, and the ``ompaffinity`` command."""

from __future__ import annotations

import gc
import sys

NEW_OBJECTS = 50_000
"""The garbage collector runs after so many new objects: a command makes fewer while it starts."""


def main() -> int:
    """Run the command line of this process and return its exit status."""
    gc.set_threshold(NEW_OBJECTS)
    from ompaffinity.cli.main import main as run

    status = run()
    # Or the interpreter looks through all objects once more when it ends, which takes longer than making a plan.
    gc.freeze()
    return status


if __name__ == "__main__":
    sys.exit(main())
