from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from ompaffinity.launch import mask_groups
from ompaffinity.launch.mask_groups import MaskGroup, environments_of_ranks, mask_group_of
from ompaffinity.launch.ranks import LauncherRank
from ompaffinity.proc import mask_of, parent_of, started_with
from tests.conftest import ROOT, needs_two_cpus

CPUS = sorted(os.sched_getaffinity(0))
SLEEPER = (
    "import os, sys, time; os.sched_setaffinity(0, map(int, sys.argv[1].split())); print(flush=True)\ntime.sleep(60)"
)


@pytest.mark.parametrize(
    ("kind", "listed", "rank", "size", "group"),
    [
        ("mask_cpu:", "0x1,0x2", 1, 2, MaskGroup(1, (1,))),
        # All tasks have the one mask that was allocated.
        ("mask_cpu:", "0xF", 3, 4, MaskGroup(3, (0, 1, 2, 3))),
        ("mask_cpu:", "0x1,0x2", 3, 4, MaskGroup(3, (1, 3))),
        ("map_cpu:", "0,0,1,1", 2, 4, MaskGroup(2, (2, 3))),
    ],
)
def test_slurm_lists_its_masks(kind: str, listed: str, rank: int, size: int, group: MaskGroup) -> None:
    environ = {"SLURM_CPU_BIND_TYPE": kind, "SLURM_CPU_BIND_LIST": listed}
    assert mask_group_of(environ, LauncherRank("Slurm", rank, size, rank, size)) == group


def place(rank: int, size: int, launcher: str = "Open MPI") -> LauncherRank:
    return LauncherRank(launcher, rank, size, rank, size)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the launcher and this process have these masks, and the ranks those that the test names."""

    def set_up(launcher: set[int], mine: set[int], ranks: dict[int, set[int]]) -> None:
        monkeypatch.setattr(mask_groups, "WAIT_SECONDS", 0.05)
        monkeypatch.setattr(mask_groups, "_launcher", lambda variable: 77)
        monkeypatch.setattr(mask_groups, "mask_of", lambda pid: launcher)
        monkeypatch.setattr(mask_groups, "_masks_of_ranks", lambda variable, pid: dict(ranks))
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: mine)

    return set_up


REPORTED = {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}


def test_a_launcher_that_binds_no_rank(processes: Any) -> None:
    processes({0, 1, 2, 3}, {0, 1, 2, 3}, {})
    assert mask_group_of(REPORTED, place(1, 2)) == MaskGroup(1, (0, 1))


def test_ranks_apart(processes: Any) -> None:
    processes({0, 1, 2, 3}, {1}, {0: {0}})
    assert mask_group_of(REPORTED, place(1, 2)) == MaskGroup(1, (1,))


def test_ranks_on_two_sockets(processes: Any) -> None:
    # Rank 3 has bound itself already.
    processes({0, 1, 2, 3}, {2, 3}, {0: {0, 1}, 2: {0}, 3: {3}})
    assert mask_group_of(REPORTED, place(1, 4)) == MaskGroup(1, (1, 3))


def test_does_not_wait_where_every_rank_is_bound(processes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError(seconds)

    processes({0, 1, 2, 3}, {1}, {0: {0}})
    monkeypatch.setattr("time.sleep", refuse)
    assert mask_group_of(REPORTED, place(1, 2)).certain


def test_waits_for_a_rank_that_is_not_bound_yet(processes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[int]] = {0: {0, 1, 2, 3}}
    processes({0, 1, 2, 3}, {1}, seen)
    monkeypatch.setattr("time.sleep", lambda seconds: seen.update({0: {1}}))
    # There is a CPU for each, but both were given the same one.
    assert mask_group_of(REPORTED, place(1, 2)) == MaskGroup(1, (0, 1))


def test_one_mask_for_all(processes: Any) -> None:
    processes({0, 1, 2, 3}, {0, 1, 2}, {0: {0}, 2: {0, 1, 2}})
    assert mask_group_of(REPORTED, place(1, 3)) == MaskGroup(1, (0, 1, 2))


def test_ranks_that_are_not_seen_count(processes: Any) -> None:
    processes({0, 1, 2, 3}, {0, 1}, {0: {0, 1, 2, 3}, 2: {2, 3}})
    assert mask_group_of(REPORTED, place(1, 4)) == MaskGroup(1, (0, 1, 3), certain=False)


def test_ranks_that_are_not_seen_have_masks_of_their_own_if_there_are_enough_cpus(processes: Any) -> None:
    processes({0, 1, 2, 3}, {1}, {0: {0, 1, 2, 3}})
    assert mask_group_of(REPORTED, place(1, 4)) == MaskGroup(1, (1,))
    # Who is seen to share does so.
    processes({0, 1, 2, 3}, {0, 1}, {0: {0}})
    assert mask_group_of(REPORTED, place(1, 2)) == MaskGroup(1, (0, 1))


def test_only_the_options_name_the_rank(processes: Any) -> None:
    processes({0, 1, 2, 3}, {0, 1}, {})
    assert mask_group_of({}, place(1, 2, "the options")) == MaskGroup(1, (1,))
    assert mask_group_of({}, place(1, 3, "the options")) == MaskGroup(1, (0, 1, 2))
    assert mask_group_of({}, place(0, 1, "the options")) == MaskGroup(0, (0,))


@needs_two_cpus
def test_the_masks_of_real_processes() -> None:
    started = []
    try:
        # The last ones are no ranks, though their masks are read as well.
        for rank, mask in (("0", CPUS), ("1", CPUS[:1]), ("", CPUS), ("x", CPUS), ("\u0661", CPUS)):
            environment = {**os.environ, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
            words = [sys.executable, "-c", SLEEPER, " ".join(map(str, mask))]
            started.append(subprocess.Popen(words, stdout=subprocess.PIPE, env=environment))
            assert started[-1].stdout is not None
            started[-1].stdout.readline()
        found = mask_groups._masks_of_ranks("OMPI_COMM_WORLD_LOCAL_RANK", os.getpid())
        assert found == {0: set(CPUS), 1: {CPUS[0]}}
        assert parent_of(started[0].pid) == os.getpid()
        assert started_with(started[0].pid)["OMPI_COMM_WORLD_LOCAL_RANK"] == "0"
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert parent_of(2**22 + 1) == 0
    assert mask_groups._environment(2**22 + 1) == {}
    assert mask_of(2**22 + 1) is None


SHOW_ENVIRONMENTS = """
import json
from ompaffinity.launch.mask_groups import environments_of_ranks
from ompaffinity.launch.ranks import LauncherRank
found = environments_of_ranks(LauncherRank("Open MPI", 0, 2, 0, 2), ["GPUS"])
print(json.dumps({rank: environment["GPUS"] for rank, environment in found.items()}))
"""


def test_reads_what_the_process_of_each_rank_with_the_variables_was_started_with() -> None:
    rank = "OMPI_COMM_WORLD_LOCAL_RANK"
    others: tuple[dict[str, str], ...] = ({rank: "1"}, {"GPUS": "none"}, {rank: "1", "GPUS": "b"})
    started = [subprocess.Popen(["sleep", "60"], env={**os.environ, **variables}) for variables in others]
    try:
        done = subprocess.run(
            [sys.executable, "-c", SHOW_ENVIRONMENTS],
            capture_output=True, text=True, check=True, cwd=ROOT, timeout=60,
            env={**os.environ, rank: "0", "GPUS": "a"},
        )  # fmt: skip
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert json.loads(done.stdout) == {"0": "a", "1": "b"}


TWO = place(0, 2)


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, str]]:
    """Let the launcher's processes be started with these variables: one of the two ranks at first."""
    found = {11: {"OMPI_COMM_WORLD_LOCAL_RANK": "0"}}
    monkeypatch.setattr(mask_groups, "_launcher", lambda variable: 10)
    monkeypatch.setattr(mask_groups, "processes_below", lambda pid: [*found])
    monkeypatch.setattr(mask_groups, "_environment", found.__getitem__)
    return found


def test_waits_for_a_rank_that_has_not_begun(
    environments: dict[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    monkeypatch.setattr("time.sleep", lambda seconds: environments.update({12: second}))
    assert environments_of_ranks(TWO, []) == {0: environments[11], 1: second}


def test_does_not_wait_forever_for_a_rank(
    environments: dict[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_groups, "WAIT_SECONDS", 0.05)
    assert environments_of_ranks(TWO, []) is None
    assert environments_of_ranks(TWO._replace(launcher="the options"), []) is None
    assert [*environments] == [11]


def test_without_masks_all_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    assert mask_group_of(REPORTED, place(1, 2)) == MaskGroup(1, (0, 1))


def test_the_first_process_of_a_container_may_be_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = {number: {"RANK": "0"} for number in (1, 2, 3)}
    monkeypatch.setattr("os.getppid", lambda: 3)
    monkeypatch.setattr(mask_groups, "_environment", reported.__getitem__)
    monkeypatch.setattr(mask_groups, "parent_of", lambda pid: pid - 1)
    assert mask_groups._launcher("RANK") == 1


def test_the_launcher_is_the_nearest_ancestor_without_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = {10: {"RANK": "0"}, 9: {"RANK": "0"}, 8: {}, 7: {"RANK": "9"}}
    monkeypatch.setattr("os.getppid", lambda: 10)
    monkeypatch.setattr(mask_groups, "_environment", reported.__getitem__)
    monkeypatch.setattr(mask_groups, "parent_of", lambda pid: pid - 1)
    assert mask_groups._launcher("RANK") == 8
