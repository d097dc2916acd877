"""OMPProcessManager: start worker processes that are bound from birth.

A child inherits the affinity mask and the memory policy of the *thread* that starts it
(sched_setaffinity(2), set_mempolicy(2)). So the calling thread takes the worker's mask and
policy, starts the process, and gets its own back: no wrapper, no shell, no file, and other threads never notice.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import ExitStack, contextmanager

from ompaffinity.errors import BindingError, RequestError
from ompaffinity.memory.policy import LibnumaMissingError, restore_thread_policy, set_thread_policy, thread_policy
from ompaffinity.openmp.document import worker_environment
from ompaffinity.openmp.environment import BINDING_VARIABLES, MANAGED_VARIABLES, PLACEMENT_VARIABLE
from ompaffinity.openmp.held import held_by_plans
from ompaffinity.placement.plan import RankPlacement, make_plan
from ompaffinity.placement.request import AUTO, parse_bind, requested
from ompaffinity.records import Message
from ompaffinity.topology.idlist import format_id_list
from ompaffinity.topology.load import load_topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ompaffinity.placement.plan import Plan

logger = logging.getLogger("ompaffinity")

# The environment belongs to the process, so one lock serves every manager in it.
_environment_lock = threading.RLock()
_tasks_inside: list[object] = []


def _forget_other_threads() -> None:
    """In a forked child only the forking thread lives on: a lock that another one held would never be released."""
    global _environment_lock  # noqa: PLW0603
    _environment_lock = threading.RLock()
    _tasks_inside.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)

FAMILY_PREFIXES = ("OMP_", "GOMP_", "KMP_")


class OMPProcessManager:
    """Binds the worker processes that are started inside its context.

    Built from a `plan`, or from the keyword arguments of `PlacementRequest` (`tensor_parallel_size`,
    `reserve`, `bind`, ...), of which those not given come from the environment (OMPAFFINITY_BIND, ...); `bind` also
    takes the text of ``--bind``. A worker whose OpenMP runtime is not named (`runtime`) is bound
    as a team that floats within its CPUs.

    What the kernel refuses leaves the worker without it and is logged and added to
    `warnings`; with `strict` it raises.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """

    def __init__(self, plan: Plan | None = None, *, strict: bool = False, **request: Any) -> None:
        if plan is not None and request:
            raise RequestError(f"give a plan or {', '.join(sorted(request))}, not both")
        self.plan = plan if plan is not None else _live_plan(request)
        self.strict = strict
        self.warnings: list[Message] = list(self.plan.warnings)
        for message in self.warnings:
            if message.level == "warning":
                logger.warning("%s: %s", message.code, message.message)

    @contextmanager
    def configure_omp_envs(self, rank: int, local_rank: int | None = None) -> Iterator[RankPlacement]:
        """Start the worker of `rank` inside this context; yields its placement.

        `local_rank` (by default `rank`) picks the placement of the plan. The environment, the
        affinity and the memory policy of the calling thread are what they were afterwards,
        whatever is raised inside. Contexts of several threads wait for each other; they nest.

        Raises:
            RequestError: the plan has no such local rank.
            BindingError: the kernel refuses to bind, and the manager is strict.
        """
        local_rank = rank if local_rank is None else local_rank
        if not isinstance(rank, int) or not isinstance(local_rank, int):
            raise RequestError(f"rank {rank!r} and local rank {local_rank!r} must be numbers")
        if not 0 <= local_rank < len(self.plan.ranks):
            raise RequestError(f"local rank {local_rank} is not one of the {len(self.plan.ranks)} ranks of the plan")
        placement = self.plan.ranks[local_rank]._replace(rank=rank)
        _start_resource_tracker()
        with ExitStack() as stack:
            stack.enter_context(_turn())
            stack.enter_context(_restored_environment())
            if placement.bound:
                placement = self._bind_calling_thread(placement, stack)
            environment, unset = worker_environment(self.plan, placement)
            for name in unset:
                os.environ.pop(name, None)
            os.environ.update(environment)
            yield placement

    @contextmanager
    def configure_reserved(self) -> Iterator[tuple[int, ...]]:
        """Start the process that the reserved CPUs are kept for (a scheduler, say) inside this context; yields them.

        It may run on all reserved CPUs and hears nothing of OpenMP binding; afterwards all is as it was.
        A plan that reserves nothing leaves it unbound, with the warning ``nothing-reserved``.

        Raises:
            BindingError: nothing is reserved or the kernel refuses to bind, and the manager is strict.
        """
        reserved = self.plan.reserved
        _start_resource_tracker()
        with ExitStack() as stack:
            stack.enter_context(_turn())
            stack.enter_context(_restored_environment())
            code = "affinity-not-permitted" if reserved else "nothing-reserved"
            try:
                if not reserved:
                    raise BindingError("the plan reserves no CPU for it, so it runs unbound; ask for --reserve N")
                _take_affinity(reserved, stack)
            except BindingError as error:
                self._refused(code, "the process beside the ranks", error)
                reserved = ()
            if any(placement.bound for placement in self.plan.ranks):
                for name in (*BINDING_VARIABLES, PLACEMENT_VARIABLE):
                    os.environ.pop(name, None)
            yield reserved

    def _bind_calling_thread(self, placement: RankPlacement, stack: ExitStack) -> RankPlacement:
        """Bind the calling thread until the stack unwinds, and return what the kernel granted of the placement."""
        try:
            _take_affinity(placement.affinity, stack)
        except BindingError as error:
            self._refused("affinity-not-permitted", f"rank {placement.rank}", error)
            return RankPlacement(placement.rank, placement.local_rank, bound=False)
        try:
            _take_memory_policy(placement, stack)
        except LibnumaMissingError as error:
            self._refused("libnuma-missing", f"rank {placement.rank}", error)
        except BindingError as error:
            self._refused("memory-policy-not-permitted", f"rank {placement.rank}", error)
        else:
            return placement
        return placement._replace(memory_policy="none")

    def _refused(self, code: str, whom: str, error: BindingError) -> None:
        if self.strict:
            raise error
        message = Message(code, "warning", f"{whom}: {error}")
        if message not in self.warnings:
            logger.warning("%s: %s", code, message.message)
            self.warnings.append(message)


def _live_plan(options: dict[str, Any]) -> Plan:
    """Plan for this machine; what is not among `options` comes from the environment."""
    if isinstance(options.get("bind"), str):
        options = options | {"bind": parse_bind(options["bind"])}
    if "avoid" in options:
        options = options | {"avoid": held_by_plans(options["avoid"])}
    request = requested(options, os.environ)
    if request.runtime != AUTO:
        return make_plan(load_topology(), request)
    if request.granularity == AUTO:
        request = request._replace(granularity="team")
    plan = make_plan(load_topology(), request)
    if request.bind == "none":
        return plan
    consequence = (
        "a team floats within its rank's CPUs" if plan.granularity == "team" else "standard variables are used"
    )
    unknown = Message(
        "runtime-unknown",
        "warning",
        f"which OpenMP runtime the workers load is not known, so {consequence};"
        " say runtime='gomp' (what torch brings), 'iomp' or 'omp'",
    )
    return plan._replace(warnings=(*plan.warnings, unknown))


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other thread is inside a context; coroutines of this thread must not interleave theirs.

    Raises:
        RequestError: another asyncio task of this thread is inside a context.
    """
    task = _current_task()
    with _environment_lock:
        if _tasks_inside and _tasks_inside[-1] is not task:
            raise RequestError(
                "another asyncio task of this thread is starting a worker; start workers one after another,"
                " for they share the environment and the thread's binding"
            )
        _tasks_inside.append(task)
        try:
            yield
        finally:
            if _tasks_inside:
                _tasks_inside.pop()


def _current_task() -> object:
    """Return the running asyncio task, None outside of one (and where asyncio is not even loaded)."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Put back every variable of the OpenMP families and of ours, also those that appear or change inside."""
    before = {name: value for name, value in os.environ.items() if _is_ours(name)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if _is_ours(name) and name not in before]:
            del os.environ[name]
        os.environ.update(before)


def _is_ours(name: str) -> bool:
    return name.startswith(FAMILY_PREFIXES) or name in MANAGED_VARIABLES or name == PLACEMENT_VARIABLE


def _take_affinity(cpus: tuple[int, ...], stack: ExitStack) -> None:
    """Give the calling thread these CPUs until the stack unwinds."""
    if not hasattr(os, "sched_setaffinity"):
        raise BindingError("this system cannot bind threads to CPUs; the worker runs unbound")
    before = os.sched_getaffinity(0)
    wanted = set(cpus)
    # Registered first: a mask that was half taken must not stay either.
    stack.callback(_give_back_affinity, before)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        raise BindingError(
            f"the kernel refused CPU {format_id_list(wanted)} ({error.strerror});"
            " did a CPU go offline, or the cpuset shrink, since the plan?"
        ) from None
    got = os.sched_getaffinity(0)
    if got != wanted:
        os.sched_setaffinity(0, before)
        raise BindingError(
            f"of CPU {format_id_list(wanted)} the kernel gave only {format_id_list(got)};"
            " the cpuset shrank since the plan"
        )


def _give_back_affinity(before: set[int]) -> None:
    try:
        os.sched_setaffinity(0, before)
    except OSError as error:
        logger.warning("the calling thread could not get CPU %s back: %s", format_id_list(before), error.strerror)


def _take_memory_policy(placement: RankPlacement, stack: ExitStack) -> None:
    """Give the calling thread the memory policy of a worker until the stack unwinds."""
    if placement.memory_policy == "none" or not placement.nodes:
        return
    before = thread_policy()
    stack.callback(restore_thread_policy, before)
    set_thread_policy(placement.memory_policy, placement.nodes)


def _start_resource_tracker() -> None:
    """Start multiprocessing's resource tracker now: `spawn` would start it bound to the first worker's CPUs."""
    if "multiprocessing.context" in sys.modules and os.name == "posix":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
