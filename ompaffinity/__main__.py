"""``python -m ompaffinity``, and the ``ompaffinity`` command."""

from __future__ import annotations

import sys

from ompaffinity.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
