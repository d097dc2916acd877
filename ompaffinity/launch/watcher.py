"""Kill process groups when the launcher that names them here ends without a word: a file that runs on its own.

On standard input come the numbers of the groups, one a line (with a minus sign: it has ended, and its number may be
somebody else's), then ``done``. If the input ends before that, the launcher was killed, and so is everything that it
has started.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Wait for the word, or the end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, None] = {}
    for line in sys.stdin:
        if line == "done\n":
            return 0
        group = int(line)
        if group > 0:
            groups[group] = None
        else:
            groups.pop(-group, None)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main())
