"""OMPProcessManager: start worker processes that are bound from birth.

A child inherits the affinity mask and the memory policy of the *thread* that starts it
(sched_setaffinity(2), set_mempolicy(2)). So the calling thread takes the worker's mask and
policy, starts the process, and gets its own back: no wrapper, no shell, no file, and other threads never notice.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.live_plan import live_plan, with_live_messages
from ompaffinity.bind.memory_fallbacks import refusal_message, with_granted_memory, with_memory_policy
from ompaffinity.bind.scope import is_inside, restored_environment, take_affinity, take_memory_policy, turn
from ompaffinity.bind.start_methods import refuse_unbindable_starts
from ompaffinity.bind.starter_thread import call_in_launcher
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.messages import Message
from ompaffinity.openmp.plan_document import worker_environment
from ompaffinity.openmp.variables import BINDING_VARIABLES, TEAM_BREAKERS
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.placement.model import Plan, RankPlacement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.process import BaseProcess
    from typing import Any

logger = logging.getLogger("ompaffinity")


class NothingReservedError(BindingError):
    """A process was to run on the reserved CPUs, but the plan has none."""

    code = "nothing-reserved"


class OMPProcessManager:
    """Binds the worker processes that are started inside its context.

    Built from a `plan`, or from the keyword arguments of `PlacementRequest` (`tensor_parallel_size`,
    `reserve`, `bind`, ...), of which those not given come from the environment (OMPAFFINITY_BIND, ...); `bind` also
    takes the text of ``--bind``, and `avoid` a list of plan files. Without `runtime`, the OpenMP runtime of the
    workers is told from what LD_PRELOAD and torch would load; `probe` names modules to import in a child and
    see. A worker whose runtime is not known, or that loads two, is bound as a team that floats within its CPUs.

    What the kernel refuses leaves the worker without it and is logged and added to
    `warnings`; with `strict` it raises.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """

    def __init__(
        self, plan: Plan | None = None, *, strict: bool = False, probe: str | Iterable[str] = (), **request: Any
    ) -> None:
        given = [*sorted(request), *(["probe"] if probe else [])]
        if plan is not None and given:
            raise RequestError(f"give a plan or {', '.join(given)}, not both")
        if plan is not None and not isinstance(plan, Plan):
            raise RequestError(f"the plan is {plan!r}; it must be what make_plan returns")
        planned = live_plan(request, probe) if plan is None else with_live_messages(plan)
        # A strict manager fails when it comes to bind, so it plans for what was asked for.
        self.plan = with_granted_memory(planned, replace=not strict)
        self.strict = strict
        self._environments: dict[tuple[object, ...], tuple[dict[str, str], tuple[str, ...]]] = {}
        self.messages: list[Message] = list(self.plan.messages)
        for message in self.messages:
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
            StartMethodError: inside, a process is started in a way that cannot be bound: ``fork`` after
                libgomp was loaded here, or ``forkserver``.
        """
        local_rank = rank if local_rank is None else local_rank
        if not isinstance(rank, int) or not isinstance(local_rank, int):
            raise RequestError(f"rank {rank!r} and local rank {local_rank!r} must be numbers")
        if not 0 <= local_rank < len(self.plan.ranks):
            raise RequestError(f"local rank {local_rank} is not one of the {len(self.plan.ranks)} ranks of the plan")
        placement = self.plan.ranks[local_rank]._replace(rank=rank)
        _start_resource_tracker()
        with ExitStack() as stack:
            stack.enter_context(turn())
            before = stack.enter_context(restored_environment())
            bound = placement.bound
            if bound:
                stack.enter_context(self._guard_starts())
                placement = self._bind_calling_thread(placement, stack)
            environment, unset = self._environment(placement)
            if bound and not placement.bound:
                # Refused: it runs unbound, and not as a stale variable says.
                unset = (*BINDING_VARIABLES, *TEAM_BREAKERS)
            for name in before.keys() & set(unset):
                del os.environ[name]
            os.environ.update(environment)
            yield placement

    def start(self, process: BaseProcess, rank: int, local_rank: int | None = None) -> RankPlacement:
        """Start a multiprocessing process as the worker of `rank`, and return its placement.

        It is started in a thread of its own that lives as long as this process, so that the calling
        thread is never bound and a worker may ask to die with its parent (PR_SET_PDEATHSIG).

        Raises:
            RequestError: the plan has no such local rank, or the caller is inside a context.
            BindingError, StartMethodError: as `configure_omp_envs`; whatever starting the process raises.
        """
        if is_inside():
            raise RequestError("start() makes its own context; call it outside of configure_omp_envs")

        def start_bound() -> RankPlacement:
            with self.configure_omp_envs(rank, local_rank) as placement:
                process.start()
            return placement

        placement: RankPlacement = call_in_launcher(start_bound)
        return placement

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
            stack.enter_context(turn())
            stack.enter_context(restored_environment())
            stack.enter_context(refuse_unbindable_starts())
            try:
                if not reserved:
                    raise NothingReservedError(
                        "the plan reserves no CPU for it, so it runs unbound; an automatic plan with --reserve N does"
                    )
                take_affinity(reserved, stack)
            except BindingError as error:
                self._refused("the process beside the ranks", error)
                reserved = ()
            if any(placement.bound for placement in self.plan.ranks):
                for name in (*BINDING_VARIABLES, PLACEMENT_VARIABLE):
                    os.environ.pop(name, None)
            yield reserved

    def _guard_starts(self) -> AbstractContextManager[None]:
        """Refuse, in the calling thread, ways to start a process that would not be bound."""
        return refuse_unbindable_starts()

    def _environment(self, placement: RankPlacement) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return what a worker hears, worked out once for each placement."""
        key = (placement.local_rank, placement.rank, placement.bound, placement.memory_policy, placement.nodes)
        if key not in self._environments:
            self._environments[key] = worker_environment(self.plan, placement)
        return self._environments[key]

    def _bind_calling_thread(self, placement: RankPlacement, stack: ExitStack) -> RankPlacement:
        """Bind the calling thread until the stack unwinds, and return what the kernel granted of the placement."""
        try:
            take_affinity(placement.affinity, stack)
        except BindingError as error:
            self._refused(f"rank {placement.rank}", error)
            # What it shares with the other ranks stays: its memory is still its part only.
            return placement._replace(
                bound=False, cpus=(), helper_cpus=(), places=(), affinity=(), memory_policy="none"
            )
        granted = take_memory_policy(placement, stack)
        if granted.refusal is not None and self.strict:
            raise granted.refusal
        message = refusal_message(f"rank {placement.rank}", placement.memory_policy, placement.nodes, granted)
        if message is None:
            return placement
        self._warn(message)
        return with_memory_policy(placement, granted)

    def _refused(self, whom: str, error: BindingError) -> None:
        if self.strict:
            raise error
        self._warn(Message(error.code, "warning", f"{whom}: {error}"))

    def _warn(self, message: Message) -> None:
        if message not in self.messages:
            logger.warning("%s: %s", message.code, message.message)
            self.messages.append(message)


_tracker_of = 0


def _start_resource_tracker() -> None:
    """Start multiprocessing's resource tracker, once: `spawn` would start it bound to the first worker's CPUs."""
    global _tracker_of  # noqa: PLW0603
    if "multiprocessing.context" in sys.modules and os.name == "posix" and _tracker_of != os.getpid():
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
        _tracker_of = os.getpid()
