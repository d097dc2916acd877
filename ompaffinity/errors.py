"""Every exception class of the package, under one base class.

The command line prints each of them as one line on stderr and exits with status 2.
"""


class OMPAffinityError(Exception):
    """Base class: invalid input, an unreadable machine, or a request that cannot be met."""


class IDListError(OMPAffinityError, ValueError):
    """A list of CPUs or nodes does not have the form ``0-3,8``."""


class TopologyError(OMPAffinityError):
    """A live or recorded machine cannot be read."""


class RequestError(OMPAffinityError, ValueError):
    """The request is invalid on every machine."""


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
