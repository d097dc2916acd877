"""Every exception class of the package, under one base class.

The command line prints each of them as one line on stderr and exits with status 2.
"""

import errno


class OMPAffinityError(Exception):
    """Base class: invalid input, an unreadable machine, or a request that cannot be met."""


class IDListError(OMPAffinityError, ValueError):
    """A list of CPUs or nodes does not have the form ``0-3,8``."""


class TopologyError(OMPAffinityError):
    """A live or recorded machine cannot be read."""


class RequestError(OMPAffinityError, ValueError):
    """The request is invalid on every machine."""


class ProcessEndedError(RequestError):
    """There is no such process, or it has ended."""


class CommandStartError(RequestError):
    """The command of a rank cannot be started."""


class NotExecutableError(CommandStartError):
    """The kernel does not execute the command of a rank: it is missing, or no program."""


class PlacementError(OMPAffinityError):
    """The request is valid, but this machine cannot meet it."""


class NoMemoryNodeError(PlacementError):
    """No allowed NUMA node has memory."""


class CapacityError(OMPAffinityError):
    """A rank has less memory than requested."""


class StartMethodError(OMPAffinityError, RuntimeError):
    """The start method of a worker cannot be bound; `code` is the message code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class BindingError(OMPAffinityError, RuntimeError):
    """The kernel rejected a CPU mask or memory policy, or did not apply it; `code` is the message code."""

    code = "affinity-not-permitted"


class SupervisionError(OMPAffinityError):
    """The kernel refuses what is needed to start ranks or to wait for them."""


class InterruptedBySignalError(OMPAffinityError):
    """A signal ended the work; `number` is the signal, and 128 + `number` the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


class OutputError(OMPAffinityError):
    """What was printed cannot be written; `closed`: because its reader is gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror or error}")
        self.closed = error.errno == errno.EPIPE
