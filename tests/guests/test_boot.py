"""The harness itself: the arguments of a guest, and how one that goes wrong ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.guests import boot, image
from tests.guests.boot import BEGIN, END, GuestDiedError, pytest_command
from tests.guests.image import NoGuestError, emulator
from tests.guests.table import ARCHITECTURES, GUESTS, Guest, Node

GUEST = Guest("small", "amd64", 1, 1, 1, tests=("detection",), seconds=20)


def test_qemu_gets_each_node_and_distance() -> None:
    guest = Guest("two", "amd64", 2, 1, 2, (), {0: Node("0-1", 64), 2: Node("2-3", 0)}, ((10, 12), (12, 10)))
    words = guest.qemu_arguments()
    assert words[:4] == ["-smp", "4,sockets=2,cores=1,threads=2", "-m", "64"]
    assert "node,nodeid=0,cpus=0-1,memdev=memory0" in words
    assert "node,nodeid=1" in words
    assert "node,nodeid=2,cpus=2-3" in words
    assert "dist,src=0,dst=1,val=12" in words


@pytest.mark.parametrize("guest", GUESTS.values(), ids=str)
def test_every_guest_has_tests_and_cpus_of_its_own_nodes(guest: Guest) -> None:
    folder = Path(__file__).parent / "inside"
    assert all((folder / f"test_{name}.py").is_file() for name in guest.tests)
    assert guest.architecture in ARCHITECTURES
    assert guest.tests


def fake_guest(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_status_and_the_lines_of_the_command_come_through() -> None:
    reported: list[str] = []
    code = f"print('console'); print('{BEGIN}'); print('one'); print('two{END} 3')"
    outcome = boot._watch(GUEST, fake_guest(code), reported.append)
    assert outcome.status == 3
    assert reported == ["one", "two"]
    assert outcome.output == "one\ntwo"


def test_a_guest_that_dies_shows_its_console() -> None:
    with pytest.raises(GuestDiedError, match=r"ended early\nKernel panic"):
        boot._watch(GUEST, fake_guest("print('Kernel panic')"), print)


def test_a_guest_that_hangs_is_ended(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    code = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    guest = Guest("hangs", "amd64", 1, 1, 1, tests=(), seconds=2)
    with pytest.raises(GuestDiedError, match=r"longer than \d+ seconds"):
        boot._watch(guest, fake_guest(code), print)
    assert not Path(f"/proc/{number.read_text()}").exists()


def test_a_machine_without_an_emulator_has_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(NoGuestError, match="qemu-system-x86_64 is not installed"):
        emulator("amd64", (7, 0))


def test_a_machine_without_packages_has_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoGuestError, match="apt-get, apt-cache"):
        image.image("amd64")


def test_the_command_runs_the_guests_own_files_unless_others_are_named() -> None:
    assert pytest_command(GUEST).endswith(" tests/guests/inside/test_detection.py")
    assert pytest_command(GUEST, ("-x", "-k", "a b")).endswith("test_detection.py -x -k 'a b'")
    assert pytest_command(GUEST, ("tests/other.py",)).endswith("inside tests/other.py")
