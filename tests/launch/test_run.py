from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from ompaffinity.launch.output import CHUNK, MAX_LINE, PrefixedLines
from ompaffinity.launch.ranks import free_port, rank_variables
from ompaffinity.launch.run import COLOURS
from ompaffinity.launch.supervise import REPEATED_SECONDS
from ompaffinity.proc import start_time
from tests.conftest import ROOT, needs_program, needs_two_cpus

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = [sys.executable, "-m", "ompaffinity", "run", "--runtime", "gomp", "--granularity", "thread"]
CPUS = sorted(os.sched_getaffinity(0))
TWO = ["--tp", "2", *(["--oversubscribe"] if len(CPUS) < 2 else [])]


def run(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds, stdin=subprocess.DEVNULL
    )


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def running_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if is_alive(int(child))]


SLEEPER = """
import os, signal, sys, time
folder, rank = sys.argv[1], os.environ["RANK"]
def tell(number, frame):
    with open(f"{folder}/signal-{rank}-{number}", "w"):
        pass
    if number in (signal.SIGTERM, signal.SIGINT):
        sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN if "stubborn" in sys.argv else tell)
with open(f"{folder}/pid-{rank}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{folder}/pid-{rank}.new", f"{folder}/pid-{rank}")
time.sleep(300)
"""


def start_sleepers(folder: Path, *options: str, stubborn: bool = False) -> tuple[subprocess.Popen[str], list[int]]:
    """Start two ranks that sleep; return the launcher and the ranks' numbers."""
    words = [*python(SLEEPER), str(folder), *(["stubborn"] if stubborn else [])]
    launcher = subprocess.Popen(
        [*RUN, *TWO, *options, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT,
    )  # fmt: skip
    wait_until(lambda: all((folder / f"pid-{rank}").exists() for rank in (0, 1)))
    return launcher, [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]


def end(launcher: subprocess.Popen[str]) -> int:
    launcher.communicate(timeout=30)
    return launcher.returncode


def test_each_rank_is_bound_and_has_the_variables_of_its_rank() -> None:
    code = """
import json, os
told = {name: os.environ[name] for name in os.environ if any(word in name for word in ("RANK", "WORLD", "MASTER"))}
print(json.dumps([told, sorted(os.sched_getaffinity(0)), json.loads(os.environ["OMPAFFINITY_PLACEMENT"])]))
"""
    done = run(*TWO, *python(code))
    assert (done.returncode, done.stderr.count("\n")) == (0, done.stderr.count("oversubscribed"))
    found = {
        int(rank): json.loads(text) for rank, text in re.findall(r"^\[rank (\d)\] (.*)$", done.stdout, re.MULTILINE)
    }
    assert sorted(found) == [0, 1]
    for rank, (variables, mask, placement) in found.items():
        port = int(variables["MASTER_PORT"])
        assert variables == rank_variables(rank, 2, rank, 2, port=port)
        assert placement["rank"] == rank
        assert set(placement["cpus"]) <= set(mask)
    assert found[0][0]["MASTER_PORT"] == found[1][0]["MASTER_PORT"]


@needs_two_cpus
@needs_program("taskset")
def test_an_outside_mask_is_kept_unless_it_is_overridden() -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    narrow = ["taskset", "--cpu-list", str(CPUS[-1]), *RUN, "--reserve", "0"]
    kept, widened = (
        subprocess.run(
            [*narrow, *more, *python(code)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
        )
        for more in ((), ("--override",))
    )
    assert kept.stdout == f"[rank 0] {CPUS[-1:]}\n"
    # All that the cpuset has: these tests themselves may run in a narrower mask.
    assert set(json.loads(widened.stdout.removeprefix("[rank 0] "))) >= set(CPUS)


def test_lines_go_where_the_rank_sent_them() -> None:
    done = run(*TWO, *python("import os, sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no end')"))
    assert sorted(done.stdout.splitlines()) == [
        "[rank 0] no end", "[rank 0] out", "[rank 1] no end", "[rank 1] out",
    ]  # fmt: skip
    assert [line for line in sorted(done.stderr.splitlines()) if line.startswith("[")] == [
        "[rank 0] err",
        "[rank 1] err",
    ]


def test_output_goes_to_files_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "logs"
    done = run(*TWO, "--log-dir", str(folder), *python("import os, sys; print(os.environ['RANK']); sys.exit(0)"))
    assert (done.returncode, done.stdout) == (0, "")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "rank-0.out": "0\n", "rank-1.out": "1\n", "rank-0.err": "", "rank-1.err": "",
    }  # fmt: skip
    assert run(*TWO, "--log-dir", str(folder), *python("print('again')")).returncode == 0
    assert (folder / "rank-1.out").read_text() == "again\n"
    blocked = run(*TWO, "--log-dir", "/proc/no", *python(""))
    assert blocked.returncode == 2
    assert blocked.stderr.count("ompaffinity: error: --log-dir /proc/no cannot be made") == 1


def shown_on_a_terminal(**variables: str) -> str:
    """Return what a terminal gets of two ranks that print `hi`."""
    try:
        outer, inner = pty.openpty()
    except OSError:
        pytest.skip("this system has no pseudoterminals (devpts is not mounted)")
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | variables
    with subprocess.Popen(
        [*RUN, *TWO, *python("print('hi')")], stdin=subprocess.DEVNULL, stdout=inner, cwd=ROOT, env=environment
    ) as launcher:
        assert launcher.wait(60) == 0
    os.close(inner)
    text = ""
    # One read may return one line alone; without a writer left a terminal gives EIO.
    with suppress(OSError):
        while block := os.read(outer, CHUNK):
            text += block.decode()
    os.close(outer)
    return text


def test_a_terminal_shows_the_ranks_in_colours() -> None:
    text = shown_on_a_terminal()
    assert "\x1b[36m[rank 0] \x1b[0mhi" in text
    assert "\x1b[33m[rank 1] \x1b[0mhi" in text


def test_a_terminal_without_colours_shows_plain_ranks() -> None:
    assert sorted(shown_on_a_terminal(NO_COLOR="1").split("\r\n")) == ["", "[rank 0] hi", "[rank 1] hi"]


def test_no_two_ranks_in_a_row_are_red_and_green() -> None:
    red, green = COLOURS.index(31), COLOURS.index(32)
    assert sorted(COLOURS) == [*range(31, 37)]
    assert abs(red - green) > 1
    assert not {red, green} <= {*range(4)}


def test_the_numbers_of_ranks_are_aligned() -> None:
    done = run("--tp", "11", "--oversubscribe", *python("print('hi')"))
    assert sorted(done.stdout.splitlines()) == [f"[rank {rank:2}] hi" for rank in range(11)]


def test_the_process_that_guards_the_ranks_starts_after_them(tmp_path: Path) -> None:
    launcher, ranks = start_sleepers(tmp_path)
    wait_until(lambda: len(running_children(launcher.pid)) == 3)
    (guard,) = {*running_children(launcher.pid)} - {*ranks}
    assert (start_time(guard) or 0, guard) > max((start_time(rank) or 0, rank) for rank in ranks)
    launcher.terminate()
    end(launcher)


def test_two_signals_at_once_are_one_request_to_end(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep(1), print('done', flush=True), sys.exit(0)))\n"
        f"open({str(tmp_path / 'up')!r}, 'w'); time.sleep(60)"
    )
    with subprocess.Popen(
        [*RUN, "--tp", "1", *python(code)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT
    ) as launcher:
        wait_until((tmp_path / "up").exists)
        # As timeout(1) does: to the process, and to its group.
        launcher.terminate()
        launcher.terminate()
        assert launcher.communicate(timeout=30)[0] == b"[rank 0] done\n"
        assert launcher.returncode == 128 + signal.SIGTERM


def test_the_first_failure_ends_the_others_and_is_the_status(tmp_path: Path) -> None:
    # Rank 1 fails when rank 0 is up.
    failing = "while not os.path.exists(f'{folder}/pid-0'): time.sleep(0.01)\nsys.exit(7)"
    code = SLEEPER.replace("time.sleep(300)", f"if rank == '0': time.sleep(300)\n{failing}")
    done = run(*TWO, *python(code), str(tmp_path))
    assert done.returncode == 7
    assert not is_alive(int((tmp_path / "pid-0").read_text()))


def test_a_rank_that_will_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    launcher, (first, second) = start_sleepers(tmp_path, "--grace", "1", stubborn=True)
    os.kill(second, signal.SIGKILL)
    assert end(launcher) == 128 + signal.SIGKILL
    assert not is_alive(first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_ends_is_handed_on(tmp_path: Path, number: signal.Signals) -> None:
    launcher, ranks = start_sleepers(tmp_path)
    launcher.send_signal(number)
    assert end(launcher) == 128 + number
    assert all((tmp_path / f"signal-{rank}-{int(number)}").exists() for rank in (0, 1))
    assert not any(is_alive(pid) for pid in ranks)


def test_a_signal_that_does_not_end_is_handed_on(tmp_path: Path) -> None:
    launcher, ranks = start_sleepers(tmp_path)
    launcher.send_signal(signal.SIGUSR1)
    wait_until(lambda: all((tmp_path / f"signal-{rank}-{int(signal.SIGUSR1)}").exists() for rank in (0, 1)))
    assert launcher.poll() is None
    assert all(is_alive(pid) for pid in ranks)
    launcher.terminate()
    end(launcher)


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher, ranks = start_sleepers(tmp_path, stubborn=True)
    launcher.kill()
    end(launcher)
    wait_until(lambda: not any(is_alive(pid) for pid in ranks))


STARTER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("status", "stays"), [(0, True), (3, False)])
def test_what_a_rank_has_started_stays_only_where_all_goes_well(tmp_path: Path, status: int, stays: bool) -> None:
    number = tmp_path / "pid"
    # It holds the rank's output open, and the launcher does not wait for it.
    assert run("--tp", "1", *python(STARTER), str(number), str(status)).returncode == status
    pid = int(number.read_text())
    if stays:
        assert is_alive(pid)
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


def test_a_command_that_is_not_there() -> None:
    done = run(*TWO, "--", "/no/such/command")
    assert done.returncode == 127
    assert "/no/such/command cannot be started" in done.stderr


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--tp", "2"], "run needs a command"),
        (["--tp", "4096", "--", "true"], "--oversubscribe"),
        (["--grace", "-1", "--", "true"], "--grace"),
        (["--tp", "1", "--", ""], "the command after -- is empty"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], match: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert match in done.stderr
    assert done.stderr.startswith("ompaffinity: error: ")
    assert done.stderr.count("\n") == 1


def test_many_ranks_on_few_cpus_on_purpose() -> None:
    done = run("--tp", "32", "--oversubscribe", *python("import os; print(os.environ['RANK'])"))
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == sorted(f"[rank {rank:2}] {rank}" for rank in range(32))


def test_nothing_is_started_under_strict_with_a_warning(tmp_path: Path) -> None:
    # Without --runtime and torch, or with shared CPUs, there is a warning.
    done = run("--tp", "32", "--oversubscribe", "--strict", *python(f"open({str(tmp_path / 'x')!r}, 'w')"))
    assert done.returncode == 1
    assert not (tmp_path / "x").exists()


def test_lines_that_come_in_pieces_are_put_together(tmp_path: Path) -> None:
    with (tmp_path / "sink").open("wb") as sink:
        lines = PrefixedLines(sink.fileno(), b"> ")
        for piece in (b"on", b"e\ntw", b"o\r", b"\n", b"1%\r", b"2%\r", b"three"):
            lines.feed(piece)
        assert (tmp_path / "sink").read_bytes() == b"> one\n> two\n> 1%\r> 2%\r"
        lines.finish()
        lines.finish()
        assert (tmp_path / "sink").read_bytes() == b"> one\n> two\n> 1%\r> 2%\r> three\n"


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "sink").open("wb") as sink:
        lines = PrefixedLines(sink.fileno(), b"")
        for _ in range(MAX_LINE // CHUNK):
            lines.feed(b"x" * CHUNK)
        assert (tmp_path / "sink").stat().st_size == 0
        lines.feed(b"x")
        assert (tmp_path / "sink").stat().st_size == MAX_LINE + 2


def test_files_hold_what_the_ranks_wrote_and_at_once(tmp_path: Path) -> None:
    code = "import os, time; os.write(1, b'1%\\r' + bytes(range(256)) * 4000); time.sleep(300)"
    words = [*RUN, "--tp", "1", "--log-dir", str(tmp_path), *python(code)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=ROOT) as launcher:
        wait_until(lambda: (tmp_path / "rank-0.out").exists() and (tmp_path / "rank-0.out").stat().st_size > 10**6)
        launcher.terminate()
    assert (tmp_path / "rank-0.out").read_bytes() == b"1%\r" + bytes(range(256)) * 4000


@pytest.mark.parametrize("status", [0, 3])
def test_a_process_that_a_rank_left_may_print_without_end(status: int) -> None:
    words = [*RUN, "--tp", "1", "--grace", "1", "--", "sh", "-c", f"yes & echo $!; sleep 0.3; exit {status}"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        flood = next(int(line.split()[-1]) for line in launcher.stdout if line.split()[-1].isdigit())
        launcher.stdout.read()
        try:
            assert launcher.wait(30) == status
        finally:
            with suppress(ProcessLookupError):
                os.kill(flood, signal.SIGKILL)


def test_what_is_left_of_a_failed_group_prints_no_more() -> None:
    # It ignores SIGTERM, and would print its last line within the seconds for which leftovers are read.
    leftover = "trap '' TERM; for i in 1 2 3 4 5 6; do sleep 0.7; echo tick; done; echo last"
    done = run("--tp", "1", "--", "sh", "-c", f"({leftover}) & sleep 0.5; echo failed; exit 3")
    assert done.returncode == 3
    assert "[rank 0] failed" in done.stdout
    assert "last" not in done.stdout


def test_delivers_every_line_to_a_reader_that_reads_late(tmp_path: Path) -> None:
    """A reader that does not read makes the ranks wait; it gets all lines, also those of ranks that ended before."""
    code = f"import os; [print(i) for i in range(12000)]; open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w')"
    words = [*RUN, "--tp", "4", "--oversubscribe", *python(code)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        # 4 x 62 kB: of what the ranks wrote, some is in the pipe of this test, and some in the ranks' pipes.
        wait_until(lambda: len([*tmp_path.iterdir()]) >= 2)
        lines = launcher.stdout.read().decode().splitlines()
        assert launcher.wait(30) == 0
    assert sorted(lines) == sorted(f"[rank {rank}] {i}" for rank in range(4) for i in range(12000))


def test_ends_ranks_also_while_the_reader_does_not_read() -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: print('x' * 1000)"
    failing = f"import os, time\nif os.environ['RANK'] == '0': time.sleep(1); raise SystemExit(7)\n{code}"
    words = [*RUN, *TWO, "--grace", "1", *python(failing)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        wait_until(lambda: len(running_children(launcher.pid)) == 3)
        # Only the process that guards them is left.
        wait_until(lambda: len(running_children(launcher.pid)) == 1)
        assert launcher.poll() is None
        assert set(launcher.stdout.read().splitlines()[:-1]) == {b"[rank 1] " + b"x" * 1000}
        assert launcher.wait(30) == 7


def is_full(pipe: IO[bytes] | None) -> bool:
    """Return whether a pipe holds much, and no more than a moment ago."""
    assert pipe is not None
    before = bytes_in(pipe)
    time.sleep(0.1)
    return before > 2**15 and bytes_in(pipe) == before


def bytes_in(pipe: IO[bytes]) -> int:
    """Return the number of bytes that a pipe holds (pipe(7), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_drops_output_after_a_second_signal(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'up')!r}, 'w')\nwhile True: print('x' * 1000)"
    words = [*RUN, "--tp", "1", *python(code)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        wait_until((tmp_path / "up").exists)
        # Only what no longer fits into the pipe is left to be dropped.
        wait_until(lambda: is_full(launcher.stdout))
        launcher.terminate()
        wait_until(lambda: len(running_children(launcher.pid)) == 1)
        # A signal that comes sooner is the same request, sent twice.
        time.sleep(1.5 * REPEATED_SECONDS)
        assert launcher.poll() is None
        launcher.terminate()
        assert launcher.wait(30) == 128 + signal.SIGTERM


def test_ends_when_its_reader_is_gone() -> None:
    code = "import time\nfor _ in range(3000): print('x', flush=True); time.sleep(0.01)"
    words = [*RUN, *TWO, "--grace", "1", *python(code)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        launcher.stdout.close()
        assert launcher.wait(30) == 128 + signal.SIGPIPE


def test_signals_that_are_ignored_stay_so() -> None:
    # As nohup and a shell's & start it.
    ignoring = "import os, signal, sys; signal.signal(1, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", ignoring, *RUN, "--tp", "1", "--", "sh", "-c", "echo up; sleep 2"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        launcher.send_signal(signal.SIGHUP)
        assert launcher.wait(30) == 0


def test_a_signal_while_ranks_are_started_reaches_them_all(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w'); time.sleep(100)"
    words = [*RUN, "--tp", "32", "--oversubscribe", "--grace", "60", *python(code)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as launcher:
        wait_until(lambda: any(tmp_path.iterdir()))
        launcher.send_signal(signal.SIGTERM)
        _, reported = launcher.communicate(timeout=40)
        assert launcher.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in reported


def test_no_child_of_a_rank_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    words = [*RUN, "--tp", "1", "--", "sh", "-c", f"sleep 300 & echo $! > {number}.new; mv {number}.new {number}; wait"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT) as launcher:
        wait_until(number.exists)
        child = int(number.read_text())
        assert is_alive(child)
        launcher.kill()
    wait_until(lambda: not is_alive(child))


@pytest.mark.parametrize(("command", "reason"), [("/tmp", "it is a directory"), ("README.md", "is not")])
def test_why_a_command_cannot_be_started(command: str, reason: str) -> None:
    done = run("--tp", "1", "--", command if command != "README.md" else str(ROOT / command))
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1].startswith("ompaffinity: error: ")
    assert reason in done.stderr


def test_too_few_open_files() -> None:
    limited = "import os, resource, sys; resource.setrlimit(7, (24, 24)); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", limited, *RUN, "--tp", "16", "--oversubscribe", "--", "sleep", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "cannot be started: Too many open files" in done.stderr.splitlines()[-1]


def test_a_free_port_is_one() -> None:
    assert 1024 <= free_port() < 65536
