from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.launch.exec import is_bound_apart, seat_within_mask
from ompaffinity.launch.ranks import LauncherRank
from tests.conftest import ROOT
from tests.openmp.libraries import needs_torch

REPORT = """
import json, os
names = ("OMP_NUM_THREADS", "OMPAFFINITY_PLACEMENT")
# A file each: launchers mix the lines of ranks that print at once.
with open(os.path.join(os.environ["REPORTS"], str(os.getpid())), "w") as file:
    json.dump([sorted(os.sched_getaffinity(0)), *(os.environ.get(name) for name in names)], file)
"""
EXEC = [sys.executable, "-m", "ompaffinity", "exec"]
WORKER = ["--", sys.executable, "-c", REPORT]
CPUS = sorted(os.sched_getaffinity(0))

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="two ranks need two CPUs")


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    names = ("LOCAL_RANK", "OMPI_", "PMI", "SLURM_", "MPI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=clean | environment,
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers report."""
    monkeypatch.setenv("REPORTS", str(tmp_path))
    return tmp_path


def reports(folder: Path) -> list[Any]:
    """Return what each worker reports, by local rank."""
    found = [json.loads(path.read_text()) for path in folder.iterdir()]
    return sorted(found, key=lambda report: json.loads(report[2])["local_rank"])


def check_ranks(done: subprocess.CompletedProcess[str], ranks: int, folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    found = reports(folder)
    placements = [json.loads(report[2]) for report in found]
    assert [placement["local_rank"] for placement in placements] == list(range(ranks))
    for (mask, threads, _), placement in zip(found, placements, strict=True):
        assert placement["bound"]
        assert placement["local_world_size"] == ranks
        assert int(threads) == len(placement["cpus"])
        assert set(placement["cpus"]) <= set(mask)
    owned = [cpu for placement in placements for cpu in placement["cpus"]]
    if ranks <= len(CPUS):
        assert len(owned) == len(set(owned))


@needs_two_cpus
@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_options_say(rank: int, folder: Path) -> None:
    done = launch(*EXEC, "--local-rank", str(rank), "--local-world-size", "2", *WORKER)
    assert done.stderr == ""
    ((mask, threads, placement),) = reports(folder)
    plan = json.loads(launch(sys.executable, "-m", "ompaffinity", "plan", "--tp", "2", "--json").stdout)
    expected = {name: value for name, value in plan["ranks"][rank].items() if name not in ("environment", "unset")}
    assert json.loads(placement) == expected
    assert set(expected["cpus"]) <= set(mask) <= set(CPUS)
    assert threads == str(len(expected["cpus"]))


def test_nobody_says_which_rank_this_is(folder: Path) -> None:
    done = launch(*EXEC, *WORKER)
    assert done.returncode == 0
    assert done.stderr.startswith("rank-unknown: no launcher says which rank this is")
    assert json.loads(reports(folder)[0][2])["local_world_size"] == 1
    strict = launch(*EXEC, "--strict", *WORKER)
    assert (strict.returncode, len(reports(folder))) == (1, 1)


def test_the_commands_status_is_passed_on() -> None:
    options = ["--local-rank", "0", "--local-world-size", "1", "--"]
    assert launch(*EXEC, *options, sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    missing = launch(*EXEC, *options, "/no/such/command")
    assert missing.returncode == 127
    assert missing.stderr == "ompaffinity: error: /no/such/command cannot be started: No such file or directory\n"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "exec needs a command"),
        (["--"], "there is no command after --"),
        (["--tp", "3", "--local-rank", "0", "--local-world-size", "2", "--", "true"], "make 3 local ranks"),
        (["--local-rank", "2", "--local-world-size", "2", "--", "true"], "local rank 2 is none of 2"),
        (["--local-rank", "x", "--", "true"], "--local-rank is 'x'"),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], match: str) -> None:
    done = launch(*EXEC, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("ompaffinity: error: ")
    assert match in done.stderr
    assert done.stderr.count("\n") == 1


@needs_two_cpus
def test_a_mask_from_outside_is_planned_within_unless_it_is_overridden(folder: Path) -> None:
    place = ["--local-rank", "0", "--local-world-size", "1"]
    for override, expected in (([], {CPUS[0]}), (["--override"], None)):
        bound = f"import os, sys; os.sched_setaffinity(0, [{CPUS[0]}]); os.execv(sys.argv[1], sys.argv[1:])"
        launch(sys.executable, "-c", bound, *EXEC, *place, *override, *WORKER)
        ((mask, _, placement),) = reports(folder)
        next(folder.iterdir()).unlink()
        if expected is None:
            assert len(mask) > 1
            assert len(json.loads(placement)["cpus"]) >= 1
        else:
            assert set(mask) == expected


OPEN_MPI = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"]
HYDRA = ["mpirun.mpich"]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs_two_cpus
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([*OPEN_MPI, "--bind-to", "none", "-n"], marks=needs("mpirun.openmpi"), id="openmpi"),
        pytest.param([*HYDRA, "-n"], marks=needs("mpirun.mpich"), id="mpich"),
    ],
)
@pytest.mark.parametrize("ranks", [2, 4])
def test_mpi_starts_ranks_that_bind_themselves(launcher: list[str], ranks: int, folder: Path) -> None:
    few = ["--oversubscribe"] if ranks > len(CPUS) else []
    check_ranks(launch(*launcher, str(ranks), *EXEC, *few, *WORKER), ranks, folder)


@needs_two_cpus
@needs("mpirun.openmpi")
def test_ranks_that_mpirun_bound_apart_stay_apart(folder: Path) -> None:
    done = launch(*OPEN_MPI, "--bind-to", "core", "-n", "2", *EXEC, *WORKER)
    found = reports(folder)
    assert done.returncode == 0, done.stderr
    assert len(found) == 2
    masks = [set(report[0]) for report in found]
    assert not masks[0] & masks[1]
    for mask, placement in zip(masks, (json.loads(report[2]) for report in found), strict=True):
        assert set(placement["cpus"]) <= mask


@needs_two_cpus
@needs_torch
@pytest.mark.parametrize("ranks", [2, 4])
def test_torchrun_starts_ranks_that_bind_themselves(ranks: int, folder: Path) -> None:
    few = ["--oversubscribe"] if ranks > len(CPUS) else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    check_ranks(launch(*torchrun, "--no-python", *EXEC, *few, *WORKER), ranks, folder)


def place(launcher: str, size: int = 2) -> LauncherRank:
    return LauncherRank(launcher, 0, size, 0, size)


def test_who_bound_its_ranks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {0: {1}, os.getppid(): {0, 1}}
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: masks[pid])
    assert is_bound_apart({}, place("PALS"))
    assert not is_bound_apart({}, place("PALS", size=1))
    masks[os.getppid()] = {1}
    assert not is_bound_apart({}, place("PALS"))
    assert is_bound_apart({"OMPI_MCA_orte_bound_at_launch": "1"}, place("Open MPI"))
    assert not is_bound_apart({"OMPI_MCA_orte_bound_at_launch": "1"}, place("torchrun"))
    assert is_bound_apart({"SLURM_CPU_BIND_TYPE": "rank"}, place("Slurm"))
    assert not is_bound_apart({"SLURM_CPU_BIND_TYPE": "none"}, place("Slurm"))


@pytest.mark.parametrize(
    ("kind", "masks", "rank", "size", "seat"),
    [
        ("mask_cpu:", "0x1,0x2", 1, 2, (0, 1)),
        # All tasks have the one mask that was allocated.
        ("mask_cpu:", "0xF", 3, 4, (3, 4)),
        ("mask_cpu:", "0x1,0x2", 3, 4, (1, 2)),
        ("map_cpu:", "0,0,1,1", 2, 4, (0, 2)),
        ("none", "", 1, 2, (1, 2)),
        ("", "", 1, 2, (1, 2)),
    ],
)
def test_who_shares_a_mask_of_slurms(
    kind: str, masks: str, rank: int, size: int, seat: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    environ = {"SLURM_CPU_BIND_TYPE": kind, "SLURM_CPU_BIND_LIST": masks}
    assert seat_within_mask(environ, LauncherRank("Slurm", rank, size, rank, size)) == seat
