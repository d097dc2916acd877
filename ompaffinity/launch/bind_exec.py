"""Bind this process, then become another program: a file of its own that needs nothing but Python's standard library.

``python -I -S bind_exec.py [--cpus LIST] [--bind|--preferred|--preferred-many|--interleave NODES] [--set NAME=VALUE]
[--unset NAME] [--die-with-parent PID] [--strict] -- COMMAND...``

What starts a process before its interpreter (Ray's py_executable, a job script) can thus bind all of its threads from
birth. There is no shell. What the kernel refuses, and arguments that are not understood, leave the program unbound,
with the reason in OMPAFFINITY_UNBOUND, and without OpenMP's binding variables where it is the CPUs that are refused;
under ``--strict`` it is not started: status 71 or 64. Status 127: the command
cannot be started. Sources: sched_setaffinity(2), set_mempolicy(2), PR_SET_PDEATHSIG(2const), sysexits(3).
"""

from __future__ import annotations

import os
import signal
import sys

UNBOUND_VARIABLE = "OMPAFFINITY_UNBOUND"
BINDING_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""What tells an OpenMP runtime the CPUs of its threads: of no use to a program that does not have them."""
USAGE, NOT_BOUND, NOT_STARTED = 64, 71, 127
MAX_ID = 65535
MODES = {"--preferred": 1, "--bind": 2, "--interleave": 3, "--preferred-many": 5}
FALLBACKS = ("--preferred-many", "--preferred")
"""The modes of set_mempolicy(2), and those that are tried where another one is refused."""
SET_MEMPOLICY = {
    "x86_64": 238,
    "aarch64": 237,
    "riscv64": 237,
    "loongarch64": 237,
    "ppc64le": 261,
    "ppc64": 261,
    "s390x": 270,
}
"""The number of the system call (the kernel's syscall tables): libnuma need not be there."""
PR_SET_PDEATHSIG = 1


class NotUnderstoodError(Exception):
    """The arguments make no sense."""


class Options:
    """What the arguments ask for."""

    def __init__(self) -> None:
        self.cpus: set[int] | None = None
        self.policy: tuple[str, set[int]] | None = None
        self.variables: dict[str, str] = {}
        self.unset: list[str] = []
        self.parent = 0
        self.strict = False


def id_list(text: str) -> set[int]:
    """Return the numbers in ``0-3,8``."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        words = (first, last if dash else first)
        if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
            raise NotUnderstoodError(f"{text!r} is no list as in 0-3,8")
        low, high = int(words[0]), int(words[1])
        if not low <= high <= MAX_ID:
            raise NotUnderstoodError(f"{part!r} in {text!r} is no range")
        numbers.update(range(low, high + 1))
    return numbers


def parse(words: list[str]) -> Options:
    """Return what the words before ``--`` ask for."""
    options = Options()
    rest = iter(words)
    for word in rest:
        if word == "--strict":
            options.strict = True
        elif word in ("--cpus", "--set", "--unset", "--die-with-parent", *MODES):
            value = next(rest, None)
            if value is None:
                raise NotUnderstoodError(f"{word} needs a value")
            _take(options, word, value)
        else:
            raise NotUnderstoodError(f"{word!r} is no option")
    return options


def _take(options: Options, word: str, value: str) -> None:
    if word == "--cpus":
        options.cpus = id_list(value)
    elif word == "--unset":
        options.unset.append(value)
    elif word == "--die-with-parent":
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise NotUnderstoodError(f"--die-with-parent {value!r} is not the number of a process")
        options.parent = int(value)
    elif word == "--set":
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise NotUnderstoodError(f"--set {value!r} is not as in NAME=VALUE")
        options.variables[name] = text
    else:
        options.policy = (word, id_list(value))


def bind(options: Options) -> list[str]:
    """Bind this process as asked; return what the kernel refused, in words."""
    refused = []
    if options.cpus is not None:
        reason = _set_cpus(options.cpus)
        if reason is not None:
            refused.append(reason)
            options.unset += BINDING_VARIABLES
    if options.policy is not None:
        reason = _set_policy(*options.policy)
        if reason is not None:
            refused.append(reason)
    return refused


def _set_cpus(cpus: set[int]) -> str | None:
    """Take these CPUs, or keep what there is; return why they are not to be had."""
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        if os.sched_getaffinity(0) == cpus:
            return None
        os.sched_setaffinity(0, before)
    except (OSError, AttributeError) as error:
        return f"CPUs: {error}"
    return "CPUs: some of what --cpus says are off line, or outside of the cpuset"


def _set_policy(asked: str, nodes: set[int]) -> str | None:
    """Take the policy, or the next best that the kernel grants; return why it is not what was asked."""
    number = SET_MEMPOLICY.get(os.uname().machine)
    if number is None:
        return f"memory: the system call is not known on {os.uname().machine}"
    try:
        import ctypes
    except ImportError as error:
        return f"memory: {error}"
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    libc = ctypes.CDLL(None, use_errno=True)
    first = None
    for step in (asked, *FALLBACKS[FALLBACKS.index(asked) + 1 if asked in FALLBACKS else 0 :]):
        wanted = {min(nodes)} if step == "--preferred" else nodes
        words = max(wanted) // bits + 1
        mask = (ctypes.c_ulong * words)()
        for node in wanted:
            mask[node // bits] |= 1 << node % bits
        # The kernel reads one bit less than it is told (set_mempolicy(2), "maxnode").
        arguments = (ctypes.c_int(MODES[step]), mask, ctypes.c_ulong(words * bits + 1))
        if libc.syscall(ctypes.c_long(number), *arguments) == 0:
            return None if first is None else f"{first}; {step[2:]} instead"
        first = first or f"memory: {asked[2:]} refused ({os.strerror(ctypes.get_errno())})"
    return f"{first}; no policy instead"


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it ends, however it ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        # It has ended already.
        os._exit(NOT_STARTED)


def main(arguments: list[str]) -> int:
    """Bind and become the command; returns only if that cannot be."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Who interrupts it now interrupts the command, and wants no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    words, command = arguments, arguments[:0]
    if "--" in arguments:
        cut = arguments.index("--")
        words, command = arguments[:cut], arguments[cut + 1 :]
    if not command:
        return _say("there is no command; write bind_exec.py --cpus 0-3 -- COMMAND", USAGE)
    options = Options()
    try:
        options = parse(words)
        refused = bind(options)
    except NotUnderstoodError as error:
        refused = [str(error)]
        if "--strict" in words:
            return _say(refused[0], USAGE)
    if refused:
        _say("; ".join(refused), NOT_BOUND)
        if options.strict:
            return NOT_BOUND
        os.environ[UNBOUND_VARIABLE] = "; ".join(refused)
    os.environ.update(options.variables)
    for name in options.unset:
        os.environ.pop(name, None)
    if options.parent:
        _die_with(options.parent)
    return _become(command)


def _become(command: list[str]) -> int:
    restore_signals()
    try:
        os.execvp(command[0], command)  # noqa: S606
    except (OSError, ValueError) as error:
        return _say(f"{command[0]} cannot be started: {getattr(error, 'strerror', None) or error}", NOT_STARTED)


def restore_signals() -> None:
    """Give back what Python's start has taken: it ignores these, and a program that it becomes would, too."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _say(text: str, status: int) -> int:
    print(f"ompaffinity: {'; '.join(text.splitlines())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
