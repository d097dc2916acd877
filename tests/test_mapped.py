"""The files that a process has mapped, also in another mount namespace, or where they were replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ompaffinity import mapped
from ompaffinity.openmp.library_path import find_library
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.compare import verdict_of_state
from ompaffinity.proof.observe import observe_process
from tests.conftest import needs_namespaces
from tests.openmp.libraries import GOMP, needs_gomp

CPUS = tuple(sorted(os.sched_getaffinity(0)))
ONE_THREAD = RankPlacement(0, 0, cpus=CPUS[:1], places=(CPUS,), affinity=CPUS)
LOADER = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('loaded', flush=True); input()"


@pytest.fixture
def libgomp(tmp_path: Path) -> Path:
    path = find_library(GOMP, {})
    assert path is not None
    return Path(shutil.copy(os.path.realpath(path), tmp_path / GOMP))


@contextmanager
def started(*command: str) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loaded\n"
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.fixture(params=[True, False], ids=["map_files", "without map_files"])
def may_use_map_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether map_files can be read; without privilege the kernel refuses them."""
    if request.param:
        try:
            os.close(mapped.open_mapped_file("self", mapped.mapped_files("self", "python")[0]))
            first = mapped.mapped_files("self", "python")[0]
            os.stat(f"/proc/self/map_files/{first.start:x}-{first.end:x}")
        except OSError:
            pytest.skip("map_files need CAP_CHECKPOINT_RESTORE")
        return True
    open_regular = mapped.open_regular

    def refused(path: str) -> int:
        if "/map_files/" in path:
            raise PermissionError(1, "Operation not permitted", path)
        return open_regular(path)

    monkeypatch.setattr(mapped, "open_regular", refused)
    return False


@needs_gomp
@needs_namespaces
def test_finds_the_runtime_of_a_process_in_another_mount_namespace(libgomp: Path, may_use_map_files: bool) -> None:
    script = f'mount -t tmpfs none /mnt && cp "$1" /mnt/ && exec "$2" -c "$3" /mnt/{GOMP}'
    with started("unshare", "-m", "sh", "-c", script, "sh", str(libgomp), sys.executable, LOADER) as pid:
        state = observe_process(pid)
    assert not os.path.exists(f"/mnt/{GOMP}")
    assert [library[:2] for library in state.runtimes] == [(f"/mnt/{GOMP}", "gomp")]
    assert state.runtimes_known


@needs_gomp
@needs_namespaces
def test_finds_a_runtime_on_overlayfs(libgomp: Path, may_use_map_files: bool) -> None:
    script = (
        'mount -t tmpfs none /mnt && mkdir /mnt/lower /mnt/upper /mnt/work /mnt/both && cp "$1" /mnt/lower/'
        " && mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work none /mnt/both"
        f' || {{ echo no overlayfs; exit 0; }}; exec "$2" -c "$3" /mnt/both/{GOMP}'
    )
    command = ("unshare", "-m", "sh", "-c", script, "sh", str(libgomp), sys.executable)
    if "no overlayfs" in subprocess.run([*command, "pass"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this kernel mounts no overlayfs")
    with started(*command, LOADER) as pid:
        state = observe_process(pid)
    assert [library[:2] for library in state.runtimes] == [(f"/mnt/both/{GOMP}", "gomp")]
    assert state.runtimes_known


def test_reads_the_first_mapping_of_each_file() -> None:
    name = os.path.basename(os.path.realpath(sys.executable))
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f"/{name}")]
    found = next(file for file in mapped.mapped_files("self", name) if file.path.endswith(f"/{name}"))
    start, end = lines[0][0].split("-")
    assert (found.start, found.end) == (int(start, 16), int(end, 16))
    assert f"{os.major(found.device):02x}:{os.minor(found.device):02x}" == lines[0][3]
    assert (found.inode, found.path, found.deleted) == (int(lines[0][4]), lines[0][5], False)


def test_memory_of_no_file_is_not_among_them() -> None:
    assert "[stack]" in Path("/proc/self/maps").read_text()
    assert mapped.mapped_files("self", "stack") == []
    assert all(found.inode and found.path.startswith("/") for found in mapped.mapped_files("self"))


@needs_gomp
@pytest.mark.parametrize("replaced", ["another file", "", None])
def test_a_library_that_was_deleted_is_known_or_reported_as_unknown(
    libgomp: Path, may_use_map_files: bool, replaced: str | None
) -> None:
    with started(sys.executable, "-c", LOADER, str(libgomp)) as pid:
        libgomp.unlink()
        if replaced is not None:
            libgomp.write_text(replaced)
        state = observe_process(pid)
        verdict = verdict_of_state(ONE_THREAD, state)
    assert "no OpenMP runtime" not in str(verdict)
    if may_use_map_files:
        assert [library[:2] for library in state.runtimes] == [(str(libgomp), "gomp")]
        assert state.runtimes_known
    else:
        assert (state.runtimes, state.runtimes_known) == ((), False)
        reason = "No such file" if replaced is None else "another file has its path now"
        assert any(f"{libgomp} cannot be read ({reason}" in problem for problem in state.problems)


@needs_gomp
def test_a_replaced_library_of_this_process_is_not_loaded_a_second_time(libgomp: Path) -> None:
    code = (
        "import ctypes, os, shutil, sys; from ompaffinity.openmp.detect import loaded_runtimes;"
        " from ompaffinity.mapped import mapped_files; path = sys.argv[1]; ctypes.CDLL(path);"
        " shutil.copy(path, path + '.new'); os.replace(path + '.new', path);"
        " found = loaded_runtimes(); [ctypes.CDLL(library.path) for library in found];"
        " print(len(mapped_files('self', 'omp')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(libgomp)], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_many_files_with_such_names_make_the_runtimes_unknown(tmp_path: Path) -> None:
    code = (
        "import mmap, sys; pages = []\n"
        "for number in range(70):\n"
        "    with open(f'{sys.argv[1]}/libomp{number}.so', 'w+b') as file:\n"
        "        file.write(b'x'); file.flush(); pages.append(mmap.mmap(file.fileno(), 1))\n"
        "print('loaded', flush=True); input()"
    )
    with started(sys.executable, "-c", code, str(tmp_path)) as pid:
        state = observe_process(pid)
    assert (state.runtimes, state.runtimes_known) == ((), False)
    assert any("has mapped 70 such files" in problem for problem in state.problems)
