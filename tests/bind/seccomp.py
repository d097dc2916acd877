"""Run a command whose memory-policy system calls are refused with EPERM, as Docker's default profile does.

``python -m tests.bind.seccomp COMMAND...``. Sources: seccomp(2), the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": (237, 238, 239),
    "aarch64": (235, 237, 236),
    "ppc64le": (259, 261, 260),
    "s390x": (268, 270, 269),
}
"""mbind, set_mempolicy and get_mempolicy on each architecture."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


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


if __name__ == "__main__":
    refuse(NUMBERS[platform.machine()])
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
