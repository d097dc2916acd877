"""Run a command some of whose system calls are refused, as sandboxes do.

``python -m tests.bind.seccomp [--calls NAME,...] [--error EPERM] COMMAND...``; by default the memory-policy
calls, which Docker's default profile refuses with EPERM. Sources: seccomp(2), the kernel's
Documentation/userspace-api/seccomp_filter.rst and syscall tables.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct

MEMORY_POLICY = ("mbind", "set_mempolicy", "get_mempolicy")
SHARED = {"pidfd_send_signal": 424, "pidfd_open": 434}
"""Calls that have the same number everywhere."""
NUMBERS = {
    "x86_64": SHARED
    | {
        "mbind": 237,
        "set_mempolicy": 238,
        "get_mempolicy": 239,
        "move_pages": 279,
        "sched_setaffinity": 203,
        "sched_getaffinity": 204,
        "prctl": 157,
        "ppoll": 271,
        "prlimit64": 302,
        "waitid": 247,
        "memfd_create": 319,
        "statx": 332,
        "getdents64": 217,
        "getrandom": 318,
        "setpgid": 109,
        "flock": 73,
    },
    "aarch64": SHARED
    | {
        "mbind": 235,
        "set_mempolicy": 237,
        "get_mempolicy": 236,
        "move_pages": 239,
        "sched_setaffinity": 122,
        "sched_getaffinity": 123,
        "prctl": 167,
        "ppoll": 73,
        "prlimit64": 261,
        "waitid": 95,
        "memfd_create": 279,
        "statx": 291,
        "getdents64": 61,
        "getrandom": 278,
        "setpgid": 154,
        "flock": 32,
    },
    "ppc64le": SHARED | {"mbind": 259, "set_mempolicy": 261, "get_mempolicy": 260},
    "s390x": SHARED | {"mbind": 268, "set_mempolicy": 270, "get_mempolicy": 269},
}
"""The numbers of system calls on each architecture."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def numbers_of(*names: str) -> tuple[int, ...]:
    """Return the numbers of system calls on this machine's architecture."""
    known = NUMBERS[platform.machine()]
    return tuple(known[name] for name in names)


def refuse(numbers: tuple[int, ...], code: int = errno.EPERM) -> None:
    """Refuse these system calls to this process and to what it starts.

    Raises:
        OSError: the kernel does not take the filter.
    """
    # The system call's number is the first word of struct seccomp_data.
    lines = [struct.pack("=HBBI", LOAD, 0, 0, 0)]
    for position, number in enumerate(numbers):
        lines.append(struct.pack("=HBBI", JUMP_IF_EQUAL, len(numbers) - position, 0, number))
    lines += [struct.pack("=HBBI", RETURN, 0, 0, value) for value in (ALLOW, FAIL | code)]
    text = ctypes.create_string_buffer(b"".join(lines))
    program = Program(len(lines), ctypes.cast(text, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def main() -> None:
    """Refuse the calls and execute the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", default=",".join(MEMORY_POLICY))
    parser.add_argument("--error", default="EPERM")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    refuse(numbers_of(*options.calls.split(",")), getattr(errno, options.error))
    os.execvp(options.command[0], options.command)  # noqa: S606


if __name__ == "__main__":
    main()
