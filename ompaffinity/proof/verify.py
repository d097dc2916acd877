"""Start a team per rank under a plan, or look at workers that run, and compare what the kernel says."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.interpreter import child_command
from ompaffinity.openmp.detect import GOMP, IOMP, expected_runtimes, family_of_file
from ompaffinity.openmp.library_path import find_library
from ompaffinity.proof.compare import compare_with_placement
from ompaffinity.proof.observe import observe_process
from ompaffinity.proof.verdict import Difference, RankVerdict, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from subprocess import Popen
    from typing import Any

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.placement.model import RankPlacement

PROBE_SECONDS = 60


END_SECONDS = 10


SYSTEM_LIBRARIES = {GOMP: ("libgomp.so.1",), IOMP: ("libomp.so.5", "libiomp5.so")}


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
    families = (runtime,) if runtime in SYSTEM_LIBRARIES else (GOMP, IOMP)
    for expected in expected_runtimes(environ):
        if expected.family in families:
            return expected.family, expected.path
    for family in families:
        for name in SYSTEM_LIBRARIES[family]:
            path = find_library(name, environ, origins)
            if path is not None:
                return family, path
    raise RequestError(
        f"no OpenMP runtime of the kind {runtime} is installed here; name one with --library,"
        " or install libgomp1, libomp5 (Debian) or intel-openmp (PyPI)"
    )


def verify_plan(manager: OMPProcessManager, library: str) -> Verdict:
    """Start a probe per rank through the manager, all at once, and return how they compare with the plan.

    Raises:
        RequestError: a probe cannot form a team at all.
    """
    probes: list[tuple[RankPlacement, dict[str, str], Popen[str]]] = []
    try:
        for rank in range(len(manager.plan.ranks)):
            probes.append(_start_probe(manager, rank, library))
        verdicts = [_judge(placement, environment, probe) for placement, environment, probe in probes]
    finally:
        for _, _, probe in probes:
            _end(probe)
    return Verdict(tuple(verdicts), tuple(manager.messages))


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
            # Its answer is a line on stdout, where LLVM's and Intel's runtimes would display things.
            env={name: value for name, value in environment.items() if not name.startswith("OMP_DISPLAY_")},
        )
    return placement, environment, probe


def _end(probe: Popen[str]) -> None:
    """Let a probe end, as the end of its input tells it to, or kill it."""
    import subprocess

    try:
        probe.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
    except (OSError, ValueError):
        # It was killed, and its pipes are closed.
        probe.wait()


def _judge(placement: RankPlacement, environment: dict[str, str], probe: Popen[str]) -> RankVerdict:
    answer = _answer(placement.rank, probe)
    state = observe_process(probe.pid)
    return compare_with_placement(placement, state, tuple(answer["team"]), environment)


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
        said = (probe.communicate()[1] or "").strip().splitlines()
        reason = said[-1] if said else f"no answer within {PROBE_SECONDS} seconds"
        raise RequestError(f"the probe of rank {rank} formed no team: {reason}") from None
    if "error" in answer:
        raise RequestError(answer["error"])
    return answer


def verify_processes(pids: Iterable[int], placements: Sequence[RankPlacement] | None = None) -> Verdict:
    """Return how live workers compare with the placements that they were started with, or with those of a plan.

    Against `placements`, a process that was started by us is the rank that it was started as; others are the
    ranks in the order given.

    Raises:
        RequestError: there is no such process, it was not started by us and there is no plan, or there are more
            processes than ranks.
    """
    numbers = tuple(dict.fromkeys(pids))
    if placements is not None and len(numbers) > len(placements):
        raise RequestError(f"--pid names {len(numbers)} processes, but the plan has {len(placements)} ranks")
    verdicts = []
    started: dict[int, int] = {}
    for position, pid in enumerate(numbers):
        state = observe_process(pid)
        placement = state.placement
        if placements is not None:
            started_as = position if placement is None else placement.local_rank
            placement = placements[started_as if started_as < len(placements) else position]
        if placement is None:
            raise RequestError(
                f"process {pid} was not started by ompaffinity (no OMPAFFINITY_PLACEMENT in its environment, or it"
                " cannot be read); give its plan with --plan FILE"
            )
        verdict = compare_with_placement(placement, state)
        first = started.setdefault(placement.rank, pid)
        if first != pid:
            twice = Difference(
                "process",
                f"{pid} was started as rank {placement.rank}, and so was process {first}",
                "a fork server (multiprocessing's forkserver) gives every worker the first one's environment",
            )
            verdict = verdict._replace(differences=(*verdict.differences, twice))
        verdicts.append(verdict)
    return Verdict(tuple(verdicts))
