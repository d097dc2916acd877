"""Bind this process, then exec a command: a single file that requires only Python's standard library.

``python -I -S bind_exec.py [--cpus LIST]
[--bind|--preferred|--preferred-many|--interleave|--weighted-interleave NODES]
[--set NAME=VALUE] [--unset NAME] [--die-with-parent PID] [--strict] -- COMMAND...``

A launcher that runs it in place of the interpreter (Ray's py_executable, a job script) binds all threads of a process
before it starts. There is no shell. If the kernel rejects the binding, or the arguments are invalid, the command starts
unbound, with the reason in OMPAFFINITY_UNBOUND; if the CPUs are rejected, the OpenMP binding variables are removed.
With ``--strict`` the command is not started: exit status 71 (rejected) or 64 (invalid arguments). Exit status 127: the
command cannot be started. Sources: sched_setaffinity(2), set_mempolicy(2), PR_SET_PDEATHSIG(2const), sysexits(3).
"""

from __future__ import annotations

import os
import signal
import sys

UNBOUND_VARIABLE = "OMPAFFINITY_UNBOUND"
BINDING_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""The variables that bind OpenMP threads to CPUs, removed if the process does not get these CPUs."""
USAGE, NOT_BOUND, NOT_STARTED = 64, 71, 127
MAX_ID = 65535
MODES = {"--preferred": 1, "--bind": 2, "--interleave": 3, "--preferred-many": 5, "--weighted-interleave": 6}
"""The modes of set_mempolicy(2)."""
FALLBACKS = ("--preferred-many", "--preferred")
"""The modes that are tried, in this order, if the kernel rejects another one."""
SET_MEMPOLICY = {
    "x86_64": 238,
    "aarch64": 237,
    "riscv64": 237,
    "loongarch64": 237,
    "ppc64le": 261,
    "ppc64": 261,
    "s390x": 270,
}
"""The number of the system call (the kernel's syscall tables), which avoids the dependency on libnuma."""
PR_SET_PDEATHSIG = 1


class InvalidArgumentsError(Exception):
    """The arguments are invalid."""


class Options:
    """The parsed arguments."""

    def __init__(self) -> None:
        self.cpus: set[int] | None = None
        self.policy: tuple[str, set[int]] | None = None
        self.variables: dict[str, str] = {}
        self.unset: list[str] = []
        self.parent = 0
        self.strict = False


def id_list(text: str) -> set[int]:
    """Return the ids in a list such as ``0-3,8``."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        words = (first, last if dash else first)
        if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
            raise InvalidArgumentsError(f"{text!r} is not a list of ids; write it as in 0-3,8")
        low, high = int(words[0]), int(words[1])
        if not low <= high <= MAX_ID:
            raise InvalidArgumentsError(f"{part!r} in {text!r} is not an ascending range from 0 to {MAX_ID}")
        numbers.update(range(low, high + 1))
    return numbers


def parse(words: list[str]) -> Options:
    """Return the options in the words before ``--``."""
    options = Options()
    rest = iter(words)
    for word in rest:
        if word == "--strict":
            options.strict = True
        elif word in ("--cpus", "--set", "--unset", "--die-with-parent", *MODES):
            value = next(rest, None)
            if value is None:
                raise InvalidArgumentsError(f"{word} has no value; add one")
            _set_option(options, word, value)
        else:
            raise InvalidArgumentsError(f"the option {word!r} is unknown; the command follows after --")
    return options


def _set_option(options: Options, word: str, value: str) -> None:
    if word == "--cpus":
        options.cpus = id_list(value)
    elif word == "--unset":
        options.unset.append(value)
    elif word == "--die-with-parent":
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise InvalidArgumentsError(f"--die-with-parent is {value!r}; it must be a process id")
        options.parent = int(value)
    elif word == "--set":
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise InvalidArgumentsError(f"--set is {value!r}; it must have the form NAME=VALUE")
        options.variables[name] = text
    else:
        options.policy = (word, id_list(value))


def bind(options: Options) -> list[str]:
    """Bind this process as requested; return a reason for each setting that the kernel rejects."""
    rejected = []
    if options.cpus is not None:
        reason = _set_cpus(options.cpus)
        if reason is not None:
            rejected.append(reason)
            options.unset += BINDING_VARIABLES
    if options.policy is not None:
        reason = _set_policy(*options.policy)
        if reason is not None:
            rejected.append(reason)
    return rejected


def _set_cpus(cpus: set[int]) -> str | None:
    """Set the affinity mask, or keep the old one and return the reason."""
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        if os.sched_getaffinity(0) == cpus:
            return None
        os.sched_setaffinity(0, before)
    except (OSError, AttributeError) as error:
        return f"CPUs: {error}"
    return "CPUs: some CPUs in --cpus are offline or outside the cpuset"


def _set_policy(requested: str, nodes: set[int]) -> str | None:
    """Set the memory policy, or the first fallback that the kernel accepts; return why it is not the requested one."""
    number = SET_MEMPOLICY.get(os.uname().machine)
    if number is None:
        return f"memory: policies are unsupported on {os.uname().machine}"
    try:
        import ctypes
    except ImportError as error:
        return f"memory: {error}"
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    libc = ctypes.CDLL(None, use_errno=True)
    first = None
    first_modes = (requested, "--interleave") if requested == "--weighted-interleave" else (requested,)
    for mode in (*first_modes, *FALLBACKS[FALLBACKS.index(requested) + 1 if requested in FALLBACKS else 0 :]):
        mode_nodes = {min(nodes)} if mode == "--preferred" else nodes
        words = max(mode_nodes) // bits + 1
        mask = (ctypes.c_ulong * words)()
        for node in mode_nodes:
            mask[node // bits] |= 1 << node % bits
        # The kernel reads maxnode - 1 bits (set_mempolicy(2)).
        arguments = (ctypes.c_int(MODES[mode]), mask, ctypes.c_ulong(words * bits + 1))
        if libc.syscall(ctypes.c_long(number), *arguments) == 0:
            return None if first is None else f"{first}; {mode[2:]} instead"
        first = first or f"memory: {requested[2:]} rejected ({os.strerror(ctypes.get_errno())})"
    return f"{first}; no policy instead"


def _die_with(parent: int) -> None:
    """Set SIGKILL as the signal that the kernel sends to this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        # The parent has ended already.
        os._exit(NOT_STARTED)


def main(arguments: list[str]) -> int:
    """Bind this process and exec the command; return an exit status only if it cannot be started."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # SIGINT before exec terminates this process as it would terminate the command: without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    words, command = arguments, arguments[:0]
    if "--" in arguments:
        cut = arguments.index("--")
        words, command = arguments[:cut], arguments[cut + 1 :]
    if not command:
        return _report("the command is missing; write bind_exec.py --cpus 0-3 -- COMMAND", USAGE)
    options = Options()
    try:
        options = parse(words)
        rejected = bind(options)
    except InvalidArgumentsError as error:
        rejected = [str(error)]
        if "--strict" in words:
            return _report(rejected[0], USAGE)
    if rejected:
        _report("; ".join(rejected), NOT_BOUND)
        if options.strict:
            return NOT_BOUND
        os.environ[UNBOUND_VARIABLE] = "; ".join(rejected)
    os.environ.update(options.variables)
    for name in options.unset:
        os.environ.pop(name, None)
    if options.parent:
        _die_with(options.parent)
    return _exec(command)


def _exec(command: list[str]) -> int:
    restore_signals()
    try:
        os.execvp(command[0], command)  # noqa: S606
    except (OSError, ValueError) as error:
        return _report(f"{command[0]} cannot be started: {getattr(error, 'strerror', None) or error}", NOT_STARTED)


def restore_signals() -> None:
    """Restore the default actions of the signals that Python ignores; the command would inherit the ignored state."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _report(text: str, status: int) -> int:
    """Print one line on stderr and return the exit status."""
    print(f"ompaffinity: {'; '.join(text.splitlines())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
