"""A real Slurm: slurmctld and slurmd on this machine, with a munged of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ompaffinity.launch.ranks import free_port
from tests.conftest import CPUS, needs_libnuma, needs_two_cpus
from tests.launch.test_exec import EXEC, WORKER, WRITE_MASK, check_ranks, folder, launch, masks_by_rank, reports

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
SECONDS = 30
pytestmark = [
    needs_two_cpus,
    # slurmd is linked with it.
    needs_libnuma,
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason="Slurm and munge are not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]
__all__ = ["folder"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The configuration file of a Slurm of one node that runs."""
    home = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (home / name).mkdir()
    key = home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    configuration = home / "slurm.conf"
    configuration.write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={len(CPUS)} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
""")
    files = {"key-file": key, **{f"{name}-file": home / f"munged.{name}" for name in ("pid", "log", "seed")}}
    munged = ["munged", "--foreground", "--force", f"--socket={home}/munge.socket"]
    commands = [
        [*munged, *(f"--{option}={path}" for option, path in files.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    with ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((home / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            stack.callback(_end, daemon)
            if command[0] == "munged":
                _wait_for(lambda: (home / "munge.socket").exists(), home)
        # The node is there when a step runs.
        _wait_for(lambda: _idle(environment), home)
        yield str(configuration)


def _idle(environment: dict[str, str]) -> bool:
    reported = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False, env=environment)
    return reported.stdout.strip() == "idle"


def _wait_for(condition: object, home: Path) -> None:
    deadline = time.monotonic() + SECONDS
    assert callable(condition)
    while not condition():
        logs = "\n".join(path.read_text() for path in home.glob("*.out"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


@pytest.mark.parametrize("ranks", [2, 4])
def test_srun_starts_ranks_that_bind_themselves(slurm: str, ranks: int, folder: Path) -> None:
    few = ["--oversubscribe"] if ranks > len(CPUS) else []
    srun = ["srun", *(["--overcommit"] if few else []), "-n", str(ranks), "--cpu-bind=none"]
    check_ranks(launch(*srun, *EXEC, *few, *WORKER, ranks=ranks, SLURM_CONF=slurm), ranks, folder)


def test_ranks_that_srun_bound_apart_stay_apart(slurm: str, folder: Path) -> None:
    done = launch("srun", "-n", "2", "--cpu-bind=map_cpu:0,1", *EXEC, *WORKER, ranks=2, SLURM_CONF=slurm)
    assert done.returncode == 0, done.stderr
    assert sorted(report[0] for report in reports(folder)) == [[0], [1]]


def test_a_batch_script_is_no_step(slurm: str, folder: Path) -> None:
    script = folder.with_name(f"{folder.name}-script")
    output = folder.with_name(f"{folder.name}-output")
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "ompaffinity", "exec", "--", "true"))
    script.write_text(f"#!/bin/sh\nenv | grep -c ^SLURM_LOCALID\nexec {words}\n")
    done = launch("sbatch", "--wait", "-n", "2", f"--output={output}", str(script), SLURM_CONF=slurm)
    assert done.returncode == 0, output.read_text()
    assert output.read_text().startswith("1\nwarning: no launcher detected")


def test_the_exported_masks_bind(slurm: str, folder: Path) -> None:
    # Slurm has the number of CPUs, and assumes the first ones, whatever mask these tests run in.
    machine = ("--synthetic", f"core:{len(CPUS)} pu:1", "--arch", "x86_64")
    plan = (sys.executable, "-m", "ompaffinity", "plan", "--tp", "2", "--reserve", "0", *machine)
    done = launch(*plan, "--format", "slurm")
    assert done.returncode == 0, done.stderr
    words = ["srun", "-n", "2", "-c", str(len(CPUS) // 2), *shlex.split(done.stdout)]
    started = launch(*words, sys.executable, "-c", WRITE_MASK, str(folder), "SLURM_PROCID", SLURM_CONF=slurm)
    assert started.returncode == 0, started.stderr
    masks = [int(mask, 16) for mask in re.findall("0x([0-9A-F]+)", done.stdout)]
    planned = [{cpu for cpu in range(len(CPUS)) if mask >> cpu & 1} for mask in masks[:2]]
    assert masks_by_rank(folder) == dict(enumerate(planned))
