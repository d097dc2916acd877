"""OMPProcessManager: start worker processes that are bound before they start.

A child inherits the affinity mask and the memory policy of the *thread* that starts it
(sched_setaffinity(2), set_mempolicy(2)). So the calling thread takes the worker's mask and
policy, starts the process, and gets its own back: no wrapper, no shell, no file.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from ompaffinity.bind.environment import change_environment, copy_of
from ompaffinity.bind.live_plan import live_plan, with_live_messages
from ompaffinity.bind.plan_files import avoids_live
from ompaffinity.bind.profile import OPENMP_PROFILE
from ompaffinity.bind.scope import in_turn, is_inside, take_affinity
from ompaffinity.bind.start_lock import StartLock
from ompaffinity.bind.start_methods import FORK, FORKSERVER, refuse_starts
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.messages import REFUSALS, Message, log_warnings
from ompaffinity.openmp.variables import BINDING_VARIABLES, TEAM_BREAKERS
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.placement.model import Plan, RankPlacement

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.process import BaseProcess
    from typing import Any

    from typing_extensions import Unpack

    from ompaffinity.bind.options import PlanOptions
    from ompaffinity.bind.profile import Variables, WorkerProfile
    from ompaffinity.bind.undo import Undo


class NothingReservedError(BindingError):
    """A process was to run on the reserved CPUs, but the plan has none."""

    code = "nothing-reserved"


class OMPProcessManager:
    """Binds the worker processes that are started inside its context.

    Built from a `plan` for this machine, or from the keyword arguments of `PlacementRequest` (`tensor_parallel_size`,
    `reserve`, `bind`, ...), of which those not given come from the environment (OMPAFFINITY_BIND, ...); `bind` also
    takes the text of ``--bind``, and `avoid` a list of plan files and ``"live"``: other starts of this user that avoid
    live processes then wait until each rank was started once, or until `release`. Without `runtime`, the OpenMP
    runtime of the workers is detected from what LD_PRELOAD and torch would load; `probe` names modules to import in a
    child and look at. A worker whose runtime is unknown, or that loads two, is bound as a team that floats within its
    CPUs.
    `profile` is what is set and guarded besides CPUs and memory: by default the variables of OpenMP.

    What the kernel refuses leaves the worker without it and is logged and added to
    `messages`; with `strict` it raises.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here, or it is for another machine.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        strict: bool = False,
        probe: str | Iterable[str] = (),
        profile: WorkerProfile = OPENMP_PROFILE,
        **request: Unpack[PlanOptions],
    ) -> None:
        given = [*sorted(request), *(["probe"] if probe else [])]
        if plan is not None:
            if given:
                raise RequestError(f"give a plan or {', '.join(given)}, not both")
            _check_plan(plan)
        self._lock = StartLock() if plan is None and avoids_live(request, os.environ) else None
        try:
            planned = live_plan(request, probe) if plan is None else with_live_messages(plan)
        except BaseException:
            self.release()
            raise
        # A strict manager fails when it comes to bind, so it plans for what was asked for.
        self.plan = _with_accepted_memory(planned, replace=not strict)
        self.strict = strict
        self.profile = profile
        self.messages: list[Message] = list(self.plan.messages)
        self._waiting = {placement.local_rank for placement in self.plan.ranks}
        log_warnings(self.messages)

    def release(self) -> None:
        """Let other starts with ``--avoid live`` go on, though not every rank of this plan was started.

        This happens by itself when each rank was started once.
        """
        if self._lock is not None:
            self._lock.release()

    def _started(self, placement: RankPlacement) -> None:
        self._waiting.discard(placement.local_rank)
        if not self._waiting:
            self.release()

    def configure_omp_envs(self, rank: int, local_rank: int | None = None) -> AbstractContextManager[RankPlacement]:
        """Start the worker of `rank` inside this context; yields its placement.

        `local_rank` (by default `rank`) picks the placement of the plan. Inside, the environment of this process and
        the affinity and memory policy of the calling thread are the worker's. At the end each is restored
        that still has the value that the context gave it, whatever is raised inside. Contexts of several threads wait
        for each other; they nest. Processes that *other* threads start meanwhile inherit the worker's variables,
        because the environment belongs to the process: `popen` and `environment` avoid that.

        Raises:
            RequestError: the plan has no such local rank.
            BindingError: the kernel refuses to bind, and the manager is strict.
            StartMethodError: inside, a process is started in a way that cannot be bound: ``fork`` after
                libgomp was loaded here, or ``forkserver``.
        """
        placement = self._placement(rank, local_rank)
        _start_resource_tracker()

        def take(undo: Undo) -> RankPlacement:
            undo.add(partial(self._started, placement))
            if placement.bound:
                refuse_starts(self.profile.refused_starts, undo)
            accepted = self._bind_calling_thread(placement, undo)
            variables, removed = self._variables(placement, accepted, os.environ)
            change_environment(variables, removed, undo)
            return accepted

        return in_turn(take)

    def environment(self, rank: int, local_rank: int | None = None) -> dict[str, str]:
        """Return the whole environment of the worker of `rank`, as planned: this process's with the plan's changes.

        Nothing of this process changes. The worker's CPUs and memory policy are not part of it: see `popen`. Waits
        until no other thread is inside a context, whose variables would be in it.

        Raises:
            RequestError: the plan has no such local rank.
        """
        placement = self._placement(rank, local_rank)
        with in_turn(lambda _: _changed(os.environ, self._variables(placement, placement, os.environ))) as environment:
            return environment

    def popen(
        self, rank: int, argv: Sequence[str], *, local_rank: int | None = None, **popen_keywords: Any
    ) -> subprocess.Popen[Any]:
        """Start a command as the worker of `rank`, bound, and return it; the environment of this process never changes.

        `popen_keywords` are those of `subprocess.Popen`. The worker's variables are set in its `env`, by default the
        environment of this process. The calling thread has the worker's CPUs and memory policy while it starts it.

        Raises:
            RequestError: the plan has no such local rank, `argv` is no list of words, or a shell is asked for.
            BindingError: the kernel refuses to bind, and the manager is strict.
            OSError: the command cannot be started.
        """
        import subprocess

        if popen_keywords.get("shell"):
            raise RequestError(
                "popen got a true value for shell; pass the command as a list of words and leave shell out"
            )
        if isinstance(argv, (str, bytes, os.PathLike)):
            raise RequestError(f"popen got the command {argv!r}; pass a list of words: ['python', 'worker.py']")
        placement = self._placement(rank, local_rank)
        env = popen_keywords.pop("env", None)
        base: Mapping[str, str] = os.environ if env is None else env

        def take(undo: Undo) -> Variables:
            undo.add(partial(self._started, placement))
            return self._variables(placement, self._bind_calling_thread(placement, undo), base)

        with in_turn(take) as variables:
            # The caller's own command, as argv: no shell.
            return subprocess.Popen(list(argv), env=_changed(base, variables), **popen_keywords)  # noqa: S603

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
        from ompaffinity.bind.starter_thread import call_in_starter

        def start_bound() -> RankPlacement:
            with self.configure_omp_envs(rank, local_rank) as placement:
                process.start()
            return placement

        placement: RankPlacement = call_in_starter(start_bound)
        return placement

    def configure_reserved(self) -> AbstractContextManager[tuple[int, ...]]:
        """Start the process that runs on the reserved CPUs (a scheduler) inside this context; yields the CPUs.

        It may run on all reserved CPUs and inherits no variable of OpenMP binding; the end restores what the context
        has changed. A plan that reserves nothing leaves it unbound, with the warning ``nothing-reserved``.

        Raises:
            BindingError: nothing is reserved or the kernel refuses to bind, and the manager is strict.
        """
        _start_resource_tracker()

        def take(undo: Undo) -> tuple[int, ...]:
            refuse_starts((FORK, FORKSERVER), undo)
            reserved = self.plan.reserved
            try:
                if not reserved:
                    raise NothingReservedError(
                        "the plan reserves no CPU for it; an automatic plan with --reserve N does"
                    )
                take_affinity(reserved, undo)
            except BindingError as error:
                self._refused("the process beside the ranks", error)
                reserved = ()
            if any(placement.bound for placement in self.plan.ranks):
                change_environment({}, (*BINDING_VARIABLES, PLACEMENT_VARIABLE), undo)
            return reserved

        return in_turn(take)

    def _placement(self, rank: int, local_rank: int | None) -> RankPlacement:
        """Return the planned placement of a rank.

        Raises:
            RequestError: the plan has no such local rank.
        """
        local_rank = rank if local_rank is None else local_rank
        if not isinstance(rank, int) or not isinstance(local_rank, int):
            raise RequestError(f"rank {rank!r} and local rank {local_rank!r} must be numbers")
        if not 0 <= local_rank < len(self.plan.ranks):
            raise RequestError(f"local rank {local_rank} is not one of the {len(self.plan.ranks)} ranks of the plan")
        return self.plan.ranks[local_rank]._replace(rank=rank)

    def _variables(self, planned: RankPlacement, accepted: RankPlacement, environ: Mapping[str, str]) -> Variables:
        """Return the variables of a worker; `accepted` is what the kernel accepts of the planned placement."""
        variables, removed = self.profile.variables(self.plan, accepted, environ)
        if planned.bound and not accepted.bound:
            # The kernel rejected the mask: the worker runs unbound, so inherited binding variables are removed.
            removed = (*BINDING_VARIABLES, *TEAM_BREAKERS)
        return variables, removed

    def _bind_calling_thread(self, placement: RankPlacement, undo: Undo) -> RankPlacement:
        """Bind the calling thread until `undo` runs, and return what the kernel accepted of the placement."""
        if not placement.bound:
            return placement
        try:
            take_affinity(placement.affinity, undo)
        except BindingError as error:
            self._refused(f"rank {placement.rank}", error)
            # What it shares with the other ranks stays: its memory is still its part only.
            return placement._replace(
                bound=False, cpus=(), helper_cpus=(), places=(), affinity=(), memory_policy="none"
            )
        if not _has_memory_policy(placement):
            return placement
        from ompaffinity.bind.memory_fallbacks import refusal_message, with_memory_policy
        from ompaffinity.bind.team_policy import change_thread_policy

        accepted = change_thread_policy(placement.memory_policy, placement.nodes, undo)
        if accepted.refusal is not None and self.strict:
            raise accepted.refusal
        message = refusal_message(f"rank {placement.rank}", placement.memory_policy, placement.nodes, accepted)
        if message is None:
            return placement
        self._warn(message)
        return with_memory_policy(placement, accepted)

    def _refused(self, subject: str, error: BindingError) -> None:
        if self.strict:
            raise error
        self._warn(REFUSALS[error.code](subject=subject, consequence="it runs unbound", reason=error))

    def _warn(self, message: Message) -> None:
        if message not in self.messages:
            log_warnings([message])
            self.messages.append(message)


def _with_accepted_memory(plan: Plan, *, replace: bool) -> Plan:
    """Return the plan as `with_accepted_memory` does, which is loaded only where a rank has a memory policy."""
    if not any(map(_has_memory_policy, plan.ranks)):
        return plan
    from ompaffinity.bind.memory_fallbacks import with_accepted_memory

    return with_accepted_memory(plan, replace=replace)


def _has_memory_policy(placement: RankPlacement) -> bool:
    return placement.memory_policy != "none" and bool(placement.nodes)


def _check_plan(plan: object) -> None:
    """Refuse what is no plan, and a plan for another machine.

    Raises:
        RequestError: the plan cannot be bound here.
    """
    if not isinstance(plan, Plan):
        raise RequestError(f"the plan is {plan!r}; it must be what make_plan returns")
    if not plan.live:
        raise RequestError(
            f"the plan is for the machine {plan.machine!r}, not for this one, so nothing can be bound to its CPUs here;"
            " plan with load_topology(), without a machine, a synthetic one or a source of another machine"
        )


def _changed(environ: Mapping[str, str], variables: Variables) -> dict[str, str]:
    """Return an environment with variables set and removed."""
    added, removed = variables
    return {name: value for name, value in copy_of(environ).items() if name not in removed} | added


_tracker_of = 0


def _start_resource_tracker() -> None:
    """Start multiprocessing's resource tracker, once: `spawn` would start it bound to the first worker's CPUs."""
    global _tracker_of  # noqa: PLW0603
    if "multiprocessing.context" in sys.modules and os.name == "posix" and _tracker_of != os.getpid():
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
        _tracker_of = os.getpid()
