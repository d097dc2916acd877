"""scripts/install-system-packages, with stand-ins for the programs that would change this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

STANDINS = {
    # What is asked of it goes into a file; only a simulation has an answer.
    "apt-get": """echo "$*" >> "$CALLS"
case "$*" in
    download*) exit 1 ;;
    *--simulate*) for package; do :; done; echo "Inst $package (1.0 Debian)"; echo "Inst $package-data (1.0 Debian)" ;;
esac
""",
    "dpkg-query": "exit 1\n",
    "id": "echo 0\n",
    "lstopo": "",
}
TOOLS = ("grep", "mktemp", "rm", "sed")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH, which holds nothing but the stand-ins and the tools that the script uses."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, script in STANDINS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def install(programs: Path) -> tuple[str, list[str]]:
    """Return what the script prints, and the arguments of each call of apt-get that installs."""
    calls = programs.with_name("calls")
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "install-system-packages")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": str(programs), "CALLS": str(calls), "TMPDIR": str(programs.parent)},
    )
    return done.stdout, [call for call in calls.read_text().splitlines() if call.startswith("install ")]


def test_never_removes_a_package(programs: Path) -> None:
    _, calls = install(programs)
    assert calls
    assert all("--no-remove" in call.split() for call in calls)


def test_prints_the_packages_that_it_installs(programs: Path) -> None:
    output, calls = install(programs)
    packages = {call.split()[-1] for call in calls}
    assert {"gcc", "libnuma1"} <= packages
    printed = {line.removeprefix("installing ") for line in output.splitlines()}
    assert packages | {f"{package}-data" for package in packages} <= printed


@pytest.mark.parametrize("name", ["lstopo", "lstopo-no-graphics", None])
def test_keeps_an_installed_lstopo(programs: Path, name: str | None) -> None:
    if name is None:
        (programs / "lstopo").unlink()
    else:
        (programs / "lstopo").rename(programs / name)
    _, calls = install(programs)
    assert any(call.endswith(" hwloc-nox") for call in calls) == (name is None)
