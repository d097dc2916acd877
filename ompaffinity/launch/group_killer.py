"""Kill process groups when the process that named them ends without notice: a file that runs on its own.

Standard input has one group per line: its number when it starts, and minus its number before its leader is reaped (the
number may then belong to another group). When the input ends, the process that wrote it was killed, and the groups that
are left are killed, too.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Read group numbers until the input ends; kill the groups that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, None] = {}
    for line in sys.stdin:
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
