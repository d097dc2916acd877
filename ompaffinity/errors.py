"""Every exception that the package raises on purpose, under one base class.

The command line turns each of them into one line on stderr and exit status 2.
"""

import errno


class OMPAffinityError(Exception):
    """Base class: bad input, an unreadable machine, or a request that cannot be met."""


class IDListError(OMPAffinityError, ValueError):
    """A list of CPUs or nodes is not of the form ``0-3,8``."""


class TopologyError(OMPAffinityError):
    """A machine, live or recorded, could not be read."""


class RequestError(OMPAffinityError, ValueError):
    """What was asked for makes no sense on any machine."""


class PlacementError(OMPAffinityError):
    """The request is sound, but this machine cannot meet it."""


class NoMemoryNodeError(PlacementError):
    """No allowed NUMA node has memory."""


class CapacityError(OMPAffinityError):
    """There is less memory for a rank than was asked for."""


class StartMethodError(OMPAffinityError, RuntimeError):
    """A worker was to be started in a way that cannot be bound; `code` is the message code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class BindingError(OMPAffinityError, RuntimeError):
    """The kernel refused to bind CPUs or memory, or did not do what it was told; `code` is the message code."""

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
