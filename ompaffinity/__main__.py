"""``python -m ompaffinity``, and the ``ompaffinity`` command."""

from __future__ import annotations

import gc
import sys

NEW_OBJECTS = 50_000
"""Python looks for garbage after so many new objects: more than a start makes, which drops few of them."""


def main() -> int:
    """Run the command line of this process and return its exit status."""
    gc.set_threshold(NEW_OBJECTS)
    from ompaffinity.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
