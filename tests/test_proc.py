"""What is read from /proc/PID, also of processes in another mount namespace or whose libraries were replaced."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity import proc
from ompaffinity.openmp.library_path import find_library
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.compare import verdict_of_state
from ompaffinity.proof.observe import observe_process
from tests.conftest import needs_namespaces, needs_two_cpus
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
            os.close(proc.open_mapped_file("self", proc.mapped_files("self", "python")[0]))
            mapped = proc.mapped_files("self", "python")[0]
            os.stat(f"/proc/self/map_files/{mapped.start:x}-{mapped.end:x}")
        except OSError:
            pytest.skip("map_files need CAP_CHECKPOINT_RESTORE")
        return True
    open_regular = proc.open_regular

    def refused(path: str) -> int:
        if "/map_files/" in path:
            raise PermissionError(1, "Operation not permitted", path)
        return open_regular(path)

    monkeypatch.setattr(proc, "open_regular", refused)
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


@needs_gomp
@pytest.mark.parametrize("replaced", [True, False])
def test_a_library_that_was_deleted_is_known_or_reported_as_unknown(
    libgomp: Path, may_use_map_files: bool, replaced: bool
) -> None:
    with started(sys.executable, "-c", LOADER, str(libgomp)) as pid:
        libgomp.unlink()
        if replaced:
            libgomp.write_text("another file")
        state = observe_process(pid)
        verdict = verdict_of_state(ONE_THREAD, state)
    assert "no OpenMP runtime" not in str(verdict)
    if may_use_map_files:
        assert [library[:2] for library in state.runtimes] == [(str(libgomp), "gomp")]
        assert state.runtimes_known
    else:
        assert (state.runtimes, state.runtimes_known) == ((), False)
        reason = "another file has its path now" if replaced else "No such file"
        assert any(f"{libgomp} cannot be read ({reason}" in problem for problem in state.problems)


@needs_gomp
def test_a_replaced_library_of_this_process_is_not_loaded_a_second_time(libgomp: Path) -> None:
    code = (
        "import ctypes, os, shutil, sys; from ompaffinity.openmp.detect import loaded_runtimes;"
        " from ompaffinity.proc import mapped_files; path = sys.argv[1]; ctypes.CDLL(path);"
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


def test_reads_the_threads_of_a_process() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert thread.native_id in proc.thread_ids("self")
        assert proc.allowed_cpus(proc.status_fields("self", thread.native_id)) == CPUS
        assert proc.thread_times("self", thread.native_id).last_cpu in range(65536)
        start, first = proc.start_time("self", thread.native_id), proc.start_time("self")
        assert start is not None
        assert first is not None
        assert start >= first
    finally:
        stop.set()
        thread.join()
    assert proc.start_time("self", 2**22 + 1) is None
    assert proc.allowed_cpus({}) is None


@needs_two_cpus
def test_reads_on_which_cpu_a_thread_ran_last() -> None:
    try:
        os.sched_setaffinity(0, CPUS[-1:])
        assert proc.thread_times("self", threading.get_native_id()).last_cpu == CPUS[-1]
    finally:
        os.sched_setaffinity(0, CPUS)


def test_reads_how_long_a_thread_ran() -> None:
    before = proc.scheduling("self")
    if before is None:
        pytest.skip("this kernel has no schedstat")
    sum(range(2_000_000))
    after = proc.scheduling("self")
    assert after is not None
    assert after.run_ns > before.run_ns
    assert after.delay_ns >= before.delay_ns
    assert proc.scheduling(2**22 + 1) is None


def test_a_process_that_has_ended_has_no_state() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pid = process.pid
    assert (proc.parent_of(pid), proc.cpu_ticks(pid), proc.thread_name(pid, pid)) == (0, 0, "")
    assert (proc.command_line(pid), list(proc.processes_below(pid))) == ([], [])
    assert not proc.is_kernel_thread(pid)
    assert (proc.mask_of(pid), proc.start_time(pid), proc.scheduling(pid), proc.bytes_read(pid)) == (None,) * 4
    assert proc.memory_file(pid, "x", 1) is None
    for read in (proc.thread_ids, proc.status_fields, proc.stat_fields, proc.process_facts, proc.mapped_files):
        with pytest.raises(OSError, match=f"/proc/{pid}"):
            read(pid)


def test_finds_the_processes_below_one() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    inner = "import os; print(os.getpid(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = list(proc.processes_below(os.getpid()))
        assert proc.command_line(grandchild)[-1] == inner
        assert proc.started_with(grandchild)["PATH"] == os.environ["PATH"]
        child.communicate("\n")
    assert found.index(child.pid) < found.index(grandchild)
    assert proc.command_line(2**22 + 1) == []


def test_distinguishes_forked_processes_from_executed_programs() -> None:
    code = "import os, time; pid = os.fork(); print(pid, flush=True) if pid else None; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert (proc.process_facts(parent.pid).forked, proc.process_facts(child).forked) == (False, True)
            assert proc.process_facts(child).parent == parent.pid
            assert list(proc.processes_below(parent.pid)) == [child]
        finally:
            os.kill(child, 9)
            parent.kill()


@pytest.mark.parametrize(
    ("content", "delay_ns"), [("12 34 5\n", 34), ("0 0 0\n", None), ("", None), (None, None)], ids=str
)
def test_counts_clock_ticks_where_the_scheduler_counts_nothing(
    content: str | None, delay_ns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, *arguments: object, **keywords: object) -> object:
        if not str(path).endswith("/schedstat"):
            return open(path, *arguments, **keywords)  # type: ignore[call-overload]
        if content is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return io.StringIO(content)

    while os.times().user + os.times().system < 0.05:
        pass
    monkeypatch.setattr(proc, "open", read, raising=False)
    times = proc.thread_times("self", os.getpid())
    assert times.delay_ns == delay_ns
    assert times.run_ns == 12 if delay_ns else times.run_ns >= 10**7


@pytest.mark.parametrize(
    ("content", "variables", "complete"),
    [
        (b"A=1\0B=2\0", {"A": "1", "B": "2"}, True),
        (b"", {}, True),
        (b"A=\0", {"A": ""}, True),
        (b"\0\0\0\0B=2\0", {"B": "2"}, False),
        (b"le of it\0=2\0B=2\0", {"": "2", "B": "2"}, False),
        (b"\0\0\0\0", {}, False),
    ],
)
def test_detects_an_environment_that_the_program_has_overwritten(
    content: bytes, variables: dict[str, str], complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "open", lambda *_arguments, **_keywords: io.BytesIO(content), raising=False)
    assert proc.environment_of(1) == (variables, complete)


NUMBERS = st.one_of(
    st.integers().map(str), st.sampled_from(["", "-1", "9" * 5000, "x", "\u00b2", "\u0663", "1.5", "\x1b[31m"])
)
LINES = st.lists(st.one_of(NUMBERS, st.sampled_from(["(a b)", ")", "(", ":", "Cpus_allowed_list:\t0-3", "N0=5", "/x"])))
FILES = st.dictionaries(
    st.sampled_from(["stat", "status", "schedstat", "io", "maps", "numa_maps", "environ", "cmdline", "comm"]),
    st.one_of(st.binary(max_size=300), st.lists(LINES.map(" ".join)).map("\n".join).map(str.encode)),
)


@given(files=FILES)
def test_any_proc_tree_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.getbasetemp() / "anyproc"
    shutil.rmtree(folder, ignore_errors=True)
    for place in (folder, folder / "task" / "1"):
        place.mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
    pid = f"..{folder}"
    for read in (
        proc.environment_of,
        proc.command_line,
        proc.thread_ids,
        proc.status_fields,
        proc.stat_fields,
        proc.bytes_read,
        proc.start_time,
        proc.scheduling,
        proc.mapped_files,
        lambda pid: list(proc.numa_maps_lines(pid)),
        lambda pid: proc.allowed_cpus(proc.status_fields(pid)),
        lambda pid: proc.thread_times(pid, 1),
        lambda pid: proc.thread_name(pid, 1),
    ):
        with suppress(OSError):
            read(pid)
