"""Inject faults, and print how many of them did harm: ``python -m tests.faults`` (``tox -e faults``).

Hostile input for every door, refused system calls, tight limits and missing parts of the system under every verb,
signals at random moments, slow readers, and a thousand contexts. Exits with 1 if any figure is not what it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.conftest import can_unshare
from tests.faults import endings, hostile, places
from tests.faults.child import MAX_MEBIBYTES, MAX_SECONDS, problem, run_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.faults.child import Case

MAX_GROWTH_KIB = 1024


class Tally(NamedTuple):
    """What a group of cases gave; `slow` and `large` are over the limits of time and memory."""

    tried: int
    wrong: int
    slow: int
    large: int
    longest: float
    most: float


def tally(cases: Iterable[Case], *, verbose: bool) -> Tally:
    """Run cases one after the other and print each that does harm."""
    tried = wrong = slow = large = 0
    longest = most = 0.0
    for case in cases:
        outcome = run_case(case)
        tried += 1
        longest, most = max(longest, outcome.cpu_seconds), max(most, outcome.mebibytes)
        found = problem(case, outcome)
        costs = f"{outcome.cpu_seconds:.2f} s, {outcome.mebibytes:.0f} MiB"
        wrong += found is not None
        slow += outcome.cpu_seconds > MAX_SECONDS
        large += outcome.mebibytes > MAX_MEBIBYTES
        if found or outcome.cpu_seconds > MAX_SECONDS or outcome.mebibytes > MAX_MEBIBYTES:
            print(f"  {case.name}: {found or 'too much'} ({costs})", flush=True)
        elif verbose:
            print(f"  {case.name}: status {outcome.status} ({costs}) {outcome.stderr.strip()[:160]}", flush=True)
    return Tally(tried, wrong, slow, large, longest, most)


def written(make: Callable[[Path], Iterator[Case]], folder: Path) -> Iterator[Case]:
    """Yield the cases of a function that writes large files, called in a process of its own.

    The peak of memory of a process counts for the children that it starts later, too (getrusage(2)).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield from pool.submit(hostile.as_list, make, folder).result()


def inputs(folder: Path) -> dict[str, Iterable[Case]]:
    """Return the groups of hostile input."""
    return {
        "machines": written(hostile.machine_files, folder),
        "plan files": written(hostile.plan_files, folder),
        "command lines": hostile.words(),
        "launcher variables": hostile.launcher_variables(),
    }


def cells() -> dict[str, Iterable[Case]]:
    """Return the groups of odd places."""
    groups: dict[str, Iterable[Case]] = {
        "refused calls": places.refused_calls(),
        "limits": places.tight_limits(),
        "streams": places.closed_streams(),
    }
    if can_unshare():
        groups["missing parts"] = places.missing_parts()
    else:
        print("missing parts: left out, mount namespaces need root")
    return groups


def main() -> int:
    """Run the chosen groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="groups whose name begins so")
    parser.add_argument("--moments", type=int, default=10, help="random moments for each signal and launcher")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    harm = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, cases in (inputs(Path(folder)) | cells()).items():
            if name.startswith(options.only or ""):
                found = tally(cases, verbose=options.verbose)
                harm += found.wrong + (found.slow + found.large if name in inputs_names() else 0)
                print(
                    f"{name}: {found.tried} tried, {found.wrong} wrong, {found.slow} over {MAX_SECONDS:.0f} s (longest "
                    f"{found.longest:.1f}), {found.large} over {MAX_MEBIBYTES:.0f} MiB (most {found.most:.0f})",
                    flush=True,
                )
    if "signals".startswith(options.only or ""):
        harm += signals(options.moments, options.seed)
    if "output".startswith(options.only or ""):
        harm += output()
    if "leaks".startswith(options.only or ""):
        harm += cycles(options.cycles)
    print("no harm" if harm == 0 else f"{harm} faults did harm")
    return int(harm > 0)


def inputs_names() -> tuple[str, ...]:
    """Return the groups that are judged by time and memory: a verb that waits or measures takes what it takes."""
    return ("machines", "plan files", "command lines", "launcher variables")


def signals(count: int, seed: int) -> int:
    """Print and return the orphans of signalled launchers."""
    orphans = tried = 0
    for verb, number, moment in endings.moments(count, seed):
        left = endings.orphans_of(verb, number, moment)
        tried += 1
        orphans += left
        if left:
            print(f"  {verb}, {number.name} after {moment:.3f} s: {left} left running", flush=True)
    print(f"signals: {tried} sent, {orphans} orphans (seed {seed})", flush=True)
    return orphans


def output() -> int:
    """Print and return the lines lost."""
    lost = 0
    for pause, stops in ((0.0, False), (0.02, False), (0.005, True)):
        lost += abs(endings.lost_lines(16, 12000, pause=pause, stops=stops))
    print(f"output: {3 * 16 * 12000} lines, {lost} lost", flush=True)
    return lost


def cycles(count: int) -> int:
    """Print and return the leaks."""
    found = json.loads(endings.leaks(count))
    print(
        f"leaks: {count} contexts, changed: {found['changed'] or 'nothing'}, {found['grown_kib']} KiB more", flush=True
    )
    return len(found["changed"]) + int(found["grown_kib"] > MAX_GROWTH_KIB)


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    sys.exit(main())
