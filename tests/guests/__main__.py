"""Run a guest by hand: ``python -m tests.guests x86-holes [pytest arguments]``, or ``-c COMMAND``; no name: a list."""

from __future__ import annotations

import sys

from tests.guests.boot import GuestDiedError, pytest_command, run_in_guest
from tests.guests.image import NoGuestError
from tests.guests.table import GUESTS


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in GUESTS:
        for guest in GUESTS.values():
            print(f"{guest.name}: {guest.architecture}, {guest.cpus} CPUs, nodes {', '.join(map(str, guest.nodes))}")
        return 2
    guest, rest = GUESTS[arguments[0]], arguments[1:]
    command = rest[1] if rest[:1] == ["-c"] else pytest_command(guest, tuple(rest))
    try:
        outcome = run_in_guest(guest, command, lambda line: print(line, flush=True))
    except (GuestDiedError, NoGuestError) as error:
        print(error, file=sys.stderr)
        return 125
    print(f"[shell after {outcome.boot_seconds:.1f} s, {outcome.seconds:.1f} s in all]", file=sys.stderr)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
