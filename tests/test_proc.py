"""What is read from /proc/PID."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity import proc
from ompaffinity.mapped import mapped_files
from tests.conftest import needs_two_cpus

CPUS = tuple(sorted(os.sched_getaffinity(0)))


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
    for read in (proc.thread_ids, proc.status_fields, proc.stat_fields, proc.process_facts, mapped_files):
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


def test_the_nearest_processes_below_one_are_the_first() -> None:
    # The first child starts a child of its own before the second one is started.
    sleep = "import time; time.sleep(60)"
    inner = f"import subprocess, sys; a = subprocess.Popen([sys.executable, '-c', {sleep!r}]); print(a.pid, flush=True)"
    code = (
        "import os, subprocess, sys\n"
        "first = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE, text=True)\n"
        "below = first.stdout.readline().strip()\n"
        "second = subprocess.Popen([sys.executable, '-c', sys.argv[2]])\n"
        "print(first.pid, second.pid, below, flush=True); input(); second.kill(); first.kill(); os.kill(int(below), 9)"
    )
    command = [sys.executable, "-c", code, f"{inner}; {sleep}", sleep]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        expected = [int(word) for word in parent.stdout.readline().split()]
        found = list(proc.processes_below(parent.pid))
        parent.communicate("\n", timeout=60)
    assert found == expected


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
        (b"A=1\0rest of it\0", {"A": "1"}, False),
    ],
)
def test_detects_an_environment_that_the_program_has_overwritten(
    content: bytes, variables: dict[str, str], complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "open", lambda *_arguments, **_keywords: io.BytesIO(content), raising=False)
    assert proc.environment_of(1) == (variables, complete)


def recorded(folder: Path, state: str = "S", flags: int = 0, last_cpu: str = "3", **files: str) -> Any:
    """Write what the kernel reports of a process and its thread 1 into a folder, and return the name of the process."""
    fields = {3: state, 4: "7", 9: str(flags), 14: "250", 15: "50", 22: "12345", 39: last_cpu}
    stat = f"42 (a b) c) {' '.join(fields.get(number, '0') for number in range(3, 53))}\n"
    for place in (folder, folder / "task" / "1"):
        place.mkdir(parents=True, exist_ok=True)
        for name, content in {"stat": stat, **files}.items():
            (place / name).write_text(content)
    return f"..{folder}"


def test_reads_each_field_at_its_place(tmp_path: Path) -> None:
    pid = recorded(
        tmp_path, status="Name:\ta b) c\nCpus_allowed_list:\t0-2,5\n", io="rchar: 99\nwchar: 5\n", comm="x y\n"
    )
    assert proc.process_facts(pid) == proc.ProcessFacts(7, 12345, forked=False, has_ended=False, ticks=300)
    assert (proc.parent_of(pid), proc.cpu_ticks(pid), proc.start_time(pid)) == (7, 300, 12345)
    assert (proc.thread_name(pid, 1), proc.bytes_read(pid)) == ("x y", 99)
    assert proc.allowed_cpus(proc.status_fields(pid)) == (0, 1, 2, 5)
    run_ns = 300 * 10**9 // os.sysconf("SC_CLK_TCK")
    assert proc.thread_times(pid, 1) == proc.ThreadTimes(12345, 3, run_ns, None)


@pytest.mark.parametrize(
    ("state", "flags", "forked", "is_kernels", "has_ended"),
    [
        ("R", 0, False, False, False),
        ("Z", 0x40, True, False, True),
        ("X", 0x200000, False, True, True),
        ("D", 0x200040, True, True, False),
        ("S", ~0x200040 & 0xFFFFFFFF, False, False, False),
    ],
)
def test_reads_how_a_process_started_and_whether_it_has_ended(
    state: str, flags: int, forked: bool, is_kernels: bool, has_ended: bool, tmp_path: Path
) -> None:
    pid = recorded(tmp_path, state, flags)
    facts = proc.process_facts(pid)
    assert (facts.forked, proc.is_kernel_thread(pid), facts.has_ended) == (forked, is_kernels, has_ended)


@pytest.mark.parametrize(("text", "cpu"), [("0", 0), ("65535", 65535), ("100000", None), ("-1", None), ("x", None)])
def test_a_last_cpu_that_is_no_number_is_unknown(text: str, cpu: int | None, tmp_path: Path) -> None:
    assert proc.thread_times(recorded(tmp_path, last_cpu=text), 1).last_cpu == cpu


def test_other_counters_are_not_the_bytes_read(tmp_path: Path) -> None:
    assert proc.bytes_read(recorded(tmp_path, io="wchar: 5\nrchar: 99\n")) is None


def test_words_of_a_command_that_are_empty_are_left_out(tmp_path: Path) -> None:
    assert proc.command_line(recorded(tmp_path, cmdline="a\0\0b c\0")) == ["a", "b c"]


def test_the_last_process_is_the_newest_one() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    newest = proc.last_process_id()
    assert newest is not None
    assert newest >= process.pid


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
        mapped_files,
        lambda pid: list(proc.numa_maps_lines(pid)),
        lambda pid: proc.allowed_cpus(proc.status_fields(pid)),
        lambda pid: proc.thread_times(pid, 1),
        lambda pid: proc.thread_name(pid, 1),
    ):
        with suppress(OSError):
            read(pid)
