"""Start a team per rank under a plan, or look at workers that run, and compare what the kernel reports."""

from __future__ import annotations

import os
import sys
from itertools import chain
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.interpreter import child_command
from ompaffinity.openmp.detect import GOMP, IOMP, expected_runtimes, family_of_file, system_runtimes
from ompaffinity.openmp.library_path import find_library
from ompaffinity.placement.request import AUTO
from ompaffinity.proof.compare import not_found, verdict_of_team
from ompaffinity.proof.observe import observe_process, require_proc
from ompaffinity.proof.report import VARIABLES, other_output, with_runtime_report
from ompaffinity.proof.sampling import WINDOW_SECONDS, TreeObserver, observe_for
from ompaffinity.proof.timeline import CONFIRMING_WINDOWS
from ompaffinity.proof.verdict import RankVerdict, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from subprocess import Popen
    from typing import Any

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.placement.model import RankPlacement

PROBE_SECONDS = 60
END_SECONDS = 10
LIVE_SECONDS = 5.0
"""For how long live processes are observed at most."""


def library_to_probe(runtime: str, environ: Mapping[str, str], library: str | None = None) -> tuple[str, str]:
    """Return (family, file) of the OpenMP runtime to form a team with.

    That is `library` if given; else what a worker would load (preloaded, or torch's) if it is of the family
    `runtime` (``"auto"`` and ``"omp"``: any); else one of the system.

    Raises:
        RequestError: there is none, or `library` is no OpenMP runtime.
    """
    # Where pip puts Intel's libiomp5.
    origins = (os.path.join(sys.prefix, "lib"),)
    if library is not None:
        path = find_library(library, environ, origins)
        family = None if path is None else family_of_file(path)
        if path is None or family is None:
            reason = "cannot be found" if path is None else "is no OpenMP runtime"
            raise RequestError(
                f"--library {library} {reason}; name a file such as libgomp.so.1, libomp.so.5, libiomp5.so"
            )
        return family, path
    families = (runtime,) if runtime in (GOMP, IOMP) else (GOMP, IOMP)
    for found in chain(expected_runtimes(environ), system_runtimes(environ, origins)):
        if found.family in families:
            return found.family, found.path
    kind = "" if runtime == AUTO else f" for --runtime {runtime}"
    raise RequestError(
        f"no OpenMP runtime{kind} is installed here; name one with --library,"
        " or install libgomp1, libomp5 (Debian) or intel-openmp (PyPI)"
    )


def verify_plan(manager: OMPProcessManager, library: str) -> Verdict:
    """Start a probe per rank through the manager, all at once, and return how they compare with the plan.

    Raises:
        RequestError: a probe cannot form a team at all.
    """
    require_proc()
    probes: list[tuple[RankPlacement, dict[str, str], Popen[str]]] = []
    outputs: list[str] = []
    try:
        for rank in range(len(manager.plan.ranks)):
            probes.append(_start_probe(manager, rank, library))
        verdicts = [_judge(placement, environment, probe) for placement, environment, probe in probes]
    finally:
        for _, _, probe in probes:
            outputs.append(_end(probe))
    reported = (
        with_runtime_report(verdict, placement, output)
        for verdict, (placement, _, _), output in zip(verdicts, probes, outputs)
    )
    return Verdict(tuple(reported), tuple(manager.messages))


def _start_probe(
    manager: OMPProcessManager, rank: int, library: str
) -> tuple[RankPlacement, dict[str, str], Popen[str]]:
    import subprocess

    command = child_command("from ompaffinity.proof.probe import main; main()", library)
    with manager.configure_omp_envs(rank) as placement:
        environment = dict(os.environ)
        # This interpreter and our own module, and no shell.
        probe = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **VARIABLES},
        )
    return placement, environment, probe


def _end(probe: Popen[str]) -> str:
    """Let a probe end by the end of its input, or kill it, and return what it printed on standard error."""
    import subprocess

    try:
        return probe.communicate(timeout=END_SECONDS)[1] or ""
    except subprocess.TimeoutExpired:
        probe.kill()
        return probe.communicate()[1] or ""
    except (OSError, ValueError):
        # It was killed, and its pipes are closed.
        probe.wait()
        return ""


def _judge(placement: RankPlacement, environment: dict[str, str], probe: Popen[str]) -> RankVerdict:
    answer = _answer(placement.rank, probe)
    state = observe_process(probe.pid)
    return verdict_of_team(placement, state, tuple(answer["team"]), environment)


def _answer(rank: int, probe: Popen[str]) -> dict[str, Any]:
    import json
    import selectors

    if probe.stdout is None:
        raise RequestError("the probe has no output")
    with selectors.DefaultSelector() as selector:
        selector.register(probe.stdout, selectors.EVENT_READ)
        line = probe.stdout.readline() if selector.select(PROBE_SECONDS) else ""
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        probe.kill()
        printed = other_output(probe.communicate()[1] or "")
        reason = printed[-1] if printed else f"no answer within {PROBE_SECONDS} seconds"
        raise RequestError(f"the probe of rank {rank} formed no team: {reason}") from None
    if "error" in answer:
        raise RequestError(answer["error"])
    return answer


def verify_processes(
    pids: Iterable[int], placements: Sequence[RankPlacement] | None = None, *, seconds: float = LIVE_SECONDS
) -> Verdict:
    """Return how the ranks in live process trees compare with the placements that they were started with.

    The processes and all those below them are observed until every rank is proven or differs, or for so many seconds.
    Against the `placements` of a plan, a process that was started by the manager is the rank with the same local rank
    and CPUs; others are the ranks on whose CPUs they run, or else those in the order given.

    Raises:
        RequestError: there is no such process, it may not be seen, or no process was started by the manager and there
            is no plan.
    """
    require_proc()
    numbers = tuple(dict.fromkeys(pids))
    for pid in numbers:
        # The first error is about a process that was named.
        observe_process(pid, with_memory=False)
    observer = TreeObserver(numbers, plan=placements)
    passed = observe_for(observer, seconds, settled_seconds=CONFIRMING_WINDOWS * WINDOW_SECONDS * 0.9)
    observer.observe_memory()
    judgement = observer.judge()
    if placements is None and not judgement.ranks:
        raise RequestError(_no_placement(numbers, observer))
    found = {(rank.rank, rank.local_rank) for rank in judgement.ranks}
    missing = [
        not_found(placement) for placement in placements or () if (placement.rank, placement.local_rank) not in found
    ]
    return Verdict((*judgement.ranks, *missing), others=judgement.others, seconds=passed)


def _no_placement(numbers: Sequence[int], observer: TreeObserver) -> str:
    named = f"process {numbers[0]}" if len(numbers) == 1 else f"none of the processes {', '.join(map(str, numbers))}"
    was = "was not" if len(numbers) == 1 else "was"
    damaged = any(not state.environment_complete for state in observer.states.values())
    unknown = "it cannot be read, or the program has overwritten it" if damaged else "nor in that of a process below"
    return (
        f"{named} {was} started by ompaffinity (no OMPAFFINITY_PLACEMENT in its environment, {unknown}); give its plan"
        " with --plan FILE"
    )
