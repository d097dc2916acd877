from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.live_holders import held_live
from ompaffinity.launch.exec import options_of_group
from ompaffinity.launch.mask_groups import MaskGroup
from ompaffinity.launch.ranks import LauncherRank
from tests.conftest import CPUS, ROOT, needs_program, needs_two_cpus, run_command
from tests.openmp.libraries import needs_torch

REPORT = """
import json, os, time
names = ("OMP_NUM_THREADS", "OMPAFFINITY_PLACEMENT")
folder, ranks = os.environ["REPORTS"], int(os.environ.get("REPORTING_RANKS", "1"))
# A file each: launchers mix the lines of ranks that print at once.
with open(os.path.join(folder, str(os.getpid())), "w") as file:
    json.dump([sorted(os.sched_getaffinity(0)), *(os.environ.get(name) for name in names)], file)
# Ranks look at each other, and who has ended is not seen: real workers live longer than the start of the others.
deadline = time.monotonic() + 60
while len(os.listdir(folder)) < ranks and time.monotonic() < deadline:
    time.sleep(0.02)
"""
WRITE_MASK = """
import json, os, sys
folder, rank = sys.argv[1], os.environ[sys.argv[2]]
with open(os.path.join(folder, rank), "w") as file:
    json.dump(sorted(os.sched_getaffinity(0)), file)
"""
"""What a rank runs that its launcher binds. Arguments: the folder of the files, and the variable that has the rank."""
# Which runtime a worker loads is not the same everywhere.
EXEC = [sys.executable, "-m", "ompaffinity", "exec", "--runtime", "gomp", "--granularity", "thread"]
WORKER = ["--", sys.executable, "-c", REPORT]


def launch(*command: str, ranks: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start this; workers that report wait until so many have."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "REPORTING_RANKS": str(ranks), **environment},
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


def masks_by_rank(folder: Path) -> dict[int, set[int]]:
    """Return what the ranks that run WRITE_MASK wrote."""
    return {int(path.name): set(json.loads(path.read_text())) for path in folder.iterdir()}


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
def test_reads_the_options(rank: int, folder: Path) -> None:
    done = launch(*EXEC, "--local-rank", str(rank), "--local-world-size", "2", *WORKER)
    assert done.stderr == ""
    ((mask, threads, placement),) = reports(folder)
    plan = json.loads(launch(sys.executable, "-m", "ompaffinity", "plan", *EXEC[4:], "--tp", "2", "--json").stdout)
    expected = {name: value for name, value in plan["ranks"][rank].items() if name not in ("environment", "unset")}
    assert json.loads(placement) == expected
    assert set(expected["cpus"]) <= set(mask) <= set(CPUS)
    assert threads == str(len(expected["cpus"]))


@needs_two_cpus
def test_ranks_of_one_launcher_do_not_keep_off_each_other(folder: Path) -> None:
    exec_rank = shlex.join([*EXEC, "--reserve", "0", "--avoid", "live", "--local-world-size", "2", "--local-rank"])
    worker = shlex.join(WORKER)
    both = f"{exec_rank} 0 {worker} & {exec_rank} 1 {worker} & wait $!; status=$?; wait; exit $status"
    done = launch("sh", "-c", both, ranks=2)
    if done.returncode and held_live():
        pytest.skip("other processes here hold CPUs")
    check_ranks(done, 2, folder)


@needs_two_cpus
def test_a_single_rank_keeps_off_what_its_parent_started_before(folder: Path) -> None:
    if held_live():
        pytest.skip("other processes here hold CPUs")
    single = [*EXEC, "--reserve", "0", "--local-rank", "0", "--local-world-size", "1"]
    idle = ["--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)"]
    with subprocess.Popen([*single, "--cpus", str(CPUS[0]), *idle], stdout=subprocess.PIPE, cwd=ROOT) as before:
        try:
            assert before.stdout is not None
            assert before.stdout.readline() == b"up\n"
            done = launch(*single, "--avoid", "live", *WORKER)
            assert done.returncode == 0, done.stderr
        finally:
            before.kill()
    ((mask, _, _),) = reports(folder)
    assert mask
    assert CPUS[0] not in mask


def test_warns_without_a_launcher_and_assumes_one_rank(folder: Path) -> None:
    done = launch(*EXEC, *WORKER)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: no launcher detected")
    placement = json.loads(reports(folder)[0][2])
    assert (placement["rank"], placement["local_rank"], placement["local_world_size"]) == (0, 0, 1)
    strict = launch(*EXEC, "--strict", *WORKER)
    assert (strict.returncode, len(reports(folder))) == (1, 1)


def test_the_commands_status_is_passed_on() -> None:
    options = ["--local-rank", "0", "--local-world-size", "1", "--"]
    assert launch(*EXEC, *options, sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    missing = launch(*EXEC, *options, "/no/such/command")
    assert missing.returncode == 127
    assert missing.stderr == "ompaffinity: error: /no/such/command cannot be started: No such file or directory\n"


def test_the_command_starts_where_standard_output_is_closed() -> None:
    command = [*EXEC, "--local-rank", "0", "--local-world-size", "1", "--", sys.executable, "-c", "raise SystemExit(7)"]
    # The shell closes it; exec(2) keeps it closed.
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "exec needs a command"),
        (["--", ""], "the command after -- is empty"),
        (["--"], "no command follows --"),
        (["--tp", "3", "--local-rank", "0", "--local-world-size", "2", "--", "true"], "make 3 local ranks"),
        (["--local-rank", "2", "--local-world-size", "2", "--", "true"], "local rank 2 is not one of 2"),
        (["--local-rank", "x", "--", "true"], "--local-rank is 'x'"),
    ],
)
def test_bad_input_is_one_sentence(options: list[str], match: str) -> None:
    done = launch(*EXEC, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("ompaffinity: error: ")
    assert match in done.stderr
    assert done.stderr.count("\n") == 1


def test_ranks_bound_in_groups_stay_what_they_are() -> None:
    place = LauncherRank("Open MPI", 2, 4, 2, 4)
    for sizes, expected in (
        ({}, {"tensor_parallel_size": 2}),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2}, {"tensor_parallel_size": 2}),
        # Independent ranks are so in a part of them too.
        ({"tensor_parallel_size": 1, "data_parallel_size": 4}, {"data_parallel_size": 2}),
        ({"data_parallel_size": 2}, {"data_parallel_size": 2}),
    ):
        found = options_of_group({"reserve": 0, **sizes}, MaskGroup(2, (2, 3)), place)
        assert found == (
            {"reserve": 0, **expected},
            0,
            (),
        )


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


SCHED_SETAFFINITY = {"x86_64": 203, "aarch64": 122, "ppc64le": 222, "s390x": 239}
"""The number of the system call on each architecture (the kernel's syscall tables)."""


@pytest.mark.skipif(platform.machine() not in SCHED_SETAFFINITY, reason="the system call's number is not known here")
@pytest.mark.parametrize("verb", ["exec", "run"])
def test_override_warns_where_the_kernel_refuses_and_starts_the_command(verb: str, tmp_path: Path) -> None:
    refuse = (
        "import os, sys; from tests.bind.seccomp import refuse;"
        f" refuse(({SCHED_SETAFFINITY[platform.machine()]},)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    place = ["--local-rank", "0", "--local-world-size", "1"] if verb == "exec" else []
    options = [sys.executable, "-m", "ompaffinity", verb, "--runtime", "gomp", *place, "--override"]
    command = ["--", sys.executable, "-c", "print('started')"]
    done = launch(sys.executable, "-c", refuse, *options, *command)
    assert (done.returncode, "started" in done.stdout) == (0, True), done.stderr
    assert "warning: --override cannot widen the mask" in done.stderr
    strict = launch(sys.executable, "-c", refuse, *options, "--strict", *command)
    assert (strict.returncode, "started" in strict.stdout) == (1, False)


OPEN_MPI = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"]
HYDRA = ["mpirun.mpich"]


@needs_two_cpus
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([*OPEN_MPI, "--bind-to", "none", "-n"], marks=needs_program("mpirun.openmpi"), id="openmpi"),
        pytest.param([*HYDRA, "-n"], marks=needs_program("mpirun.mpich"), id="mpich"),
    ],
)
@pytest.mark.parametrize("ranks", [2, 4])
def test_mpi_starts_ranks_that_bind_themselves(launcher: list[str], ranks: int, folder: Path) -> None:
    few = ["--oversubscribe"] if ranks > len(CPUS) else []
    check_ranks(launch(*launcher, str(ranks), *EXEC, *few, *WORKER, ranks=ranks), ranks, folder)


@needs_two_cpus
@needs_program("mpirun.openmpi")
def test_ranks_that_mpirun_bound_apart_stay_apart(folder: Path) -> None:
    done = launch(*OPEN_MPI, "--bind-to", "core", "-n", "2", *EXEC, *WORKER, ranks=2)
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
    check_ranks(launch(*torchrun, "--no-python", *EXEC, *few, *WORKER, ranks=ranks), ranks, folder)


@needs_two_cpus
@needs_program("mpirun.openmpi")
@pytest.mark.parametrize(
    "binding",
    [["--bind-to", "socket:overload-allowed"], ["--bind-to", "numa:overload-allowed"], []],
    ids=["socket", "numa", "default"],
)
def test_ranks_that_mpirun_bound_together_share_what_they_have(binding: list[str], folder: Path) -> None:
    done = launch(*OPEN_MPI, *binding, "-n", "3", *EXEC, "--reserve", "0", "--oversubscribe", *WORKER, ranks=3)
    assert done.returncode == 0, done.stderr
    placements = [json.loads(report[2]) for report in reports(folder)]
    assert len(placements) == 3
    owned = [cpu for placement in placements for cpu in placement["cpus"]]
    assert len(owned) == len(set(owned)) or len(CPUS) < 3


# The file's own name leads to it: a launcher starts it as it would a worker.
SCRIPT = "#!/bin/sh\n{before}\n{command}\n{after}\n"


def script(folder: Path, before: str = "", after: str = "", prefix: str = "") -> Path:
    path = folder.with_name(f"{folder.name}-script")
    words = [*EXEC, "--reserve", "0", "--oversubscribe", *WORKER]
    path.write_text(SCRIPT.format(before=before, after=after, command=f"{prefix} {shlex.join(words)}"))
    path.chmod(0o755)
    return path


@needs_two_cpus
@needs_torch
@needs_program("taskset")
@pytest.mark.parametrize("before", ["", "sleep 0.$((LOCAL_RANK * 8))"], ids=["at once", "one after the other"])
def test_a_mask_that_a_script_set_for_all_ranks_is_shared(before: str, folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    part = CPUS[: len(CPUS) // 2]
    path = script(folder, before, prefix=f"exec taskset -c {','.join(map(str, part))}")
    done = launch(*torchrun, str(path), ranks=2)
    assert done.returncode == 0, done.stderr
    owned = [cpu for report in reports(folder) for cpu in json.loads(report[2])["cpus"]]
    # One CPU they share, more they divide.
    assert sorted(owned) == (part if len(part) > 1 else part * 2)


@needs_two_cpus
@needs_program("mpirun.mpich")
@needs_program("taskset")
def test_a_script_of_its_own_for_each_rank(folder: Path) -> None:
    path = script(folder, prefix=f"taskset -c $(($MPI_LOCALRANKID + {CPUS[0]}))", after="true")
    done = launch(*HYDRA, "-n", "2", str(path), ranks=2)
    assert done.returncode == 0, done.stderr
    assert sorted(report[0] for report in reports(folder)) == [[CPUS[0]], [CPUS[0] + 1]]


@needs_two_cpus
@needs_program("mpirun.mpich")
def test_a_script_does_not_hide_that_ranks_are_bound_apart(folder: Path) -> None:
    done = launch(*HYDRA, "-n", "2", "-bind-to", "core", str(script(folder, after="true")), ranks=2)
    assert done.returncode == 0, done.stderr
    masks = [set(report[0]) for report in reports(folder)]
    assert len(masks) == 2
    assert not masks[0] & masks[1]


def test_the_command_starts_with_the_signals_of_a_fresh_process() -> None:
    options = ["--local-rank", "0", "--local-world-size", "1", "--"]
    shell = ["sh", "-c", "grep SigIgn /proc/self/status"]
    direct = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    assert launch(*EXEC, *options, *shell).stdout == direct


def test_the_command_gets_the_default_actions_of_the_signals_that_python_ignores() -> None:
    done = run_command("exec", "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))
