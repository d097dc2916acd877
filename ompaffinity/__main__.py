"""``python -m ompaffinity``, and the ``ompaffinity`` command."""

from __future__ import annotations

import gc
import sys

# One collection would cost a fifth of a plan, and a process this short leaves nothing to collect.
gc.disable()

from ompaffinity.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
