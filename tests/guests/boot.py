"""Boot a guest, run a command in it, and pass on its output, one line after the other."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guests.image import compile_python, emulator, image, newer_kernel, pack
from tests.guests.table import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guests.table import Guest

ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN, END = "@@GUEST-BEGIN@@", "@@GUEST-END@@"
INJECTED = ("ompaffinity", "tests")
DESCRIPTION = "guest.json"


class GuestDiedError(Exception):
    """The guest ended, or had to be ended, before its command did; the text is its console's end."""


@dataclass(frozen=True)
class Outcome:
    """The status of the command, its output, and the seconds until the shell came and in all."""

    status: int
    output: str
    boot_seconds: float
    seconds: float


def run_in_guest(guest: Guest, command: str, report: Callable[[str], object] = print) -> Outcome:
    """Run a shell command in the checkout inside of the guest; `report` gets each line as it comes.

    Nothing of the guest is left running, whatever happens: the emulator dies with this process.

    Raises:
        NoGuestError: there is no such guest on this machine.
        GuestDiedError: it ended or hung before the command did.
    """
    qemu = emulator(guest.architecture, guest.minimal_qemu)
    kernel, initramfs = image(guest.architecture)
    if guest.newer_kernel:
        kernel = newer_kernel(guest.architecture)
    with tempfile.TemporaryDirectory(prefix="ompaffinity-guest-") as folder:
        work = Path(folder)
        _pack_checkout(guest, command, work)
        whole = work / "initrd"
        with whole.open("wb") as target:
            # The kernel unpacks one archive after the other.
            for part in (initramfs, work / "checkout.cpio"):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
        return _watch(guest, _command_line(guest, qemu, kernel, whole), report)


def pytest_command(guest: Guest, arguments: tuple[str, ...] = ()) -> str:
    """Return the command that runs the guest's tests inside."""
    named = any(argument.startswith("tests/") for argument in arguments)
    files = () if named else tuple(f"tests/guests/inside/test_{name}.py" for name in guest.tests)
    words = shlex.join((*files, *arguments))
    setup = f"{guest.setup} && " if guest.setup else ""
    # Above `inside` is the conftest of the tests outside, which needs hypothesis.
    return f"{setup}python3 -m pytest -q --color=no -p no:cacheprovider --confcutdir=tests/guests/inside {words}"


def _pack_checkout(guest: Guest, command: str, work: Path) -> None:
    root = work / "checkout"
    for name in INJECTED:
        shutil.copytree(ROOT / name, root / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root / "checkout")
    compile_python(root / "checkout", "/checkout")
    (root / DESCRIPTION).write_text(json.dumps(guest.description()))
    # Threads that spin while they wait take their turns on the one real CPU behind all emulated ones.
    settings = "export PYTHONPATH=/checkout OMP_WAIT_POLICY=passive"
    (root / "guest-command").write_text(f"cd /checkout\n{settings}\n{command}\n")
    pack(root, work / "checkout.cpio")


def _command_line(guest: Guest, qemu: list[str], kernel: Path, initrd: Path) -> list[str]:
    needs = ARCHITECTURES[guest.architecture]
    accelerated = _has_kvm(guest)
    command = [
        *qemu,
        *("-machine", needs.board),
        # One thread for all emulated CPUs: many of them boot in seconds on two real ones, else in minutes.
        *("-accel", "kvm" if accelerated else "tcg,thread=single"),
        *("-cpu", "host" if accelerated else f"{needs.cpu}{guest.cpu_flags}"),
        *guest.qemu_arguments(),
        *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-monitor", "none"),
        *("-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", f"console={needs.console} quiet loglevel=1 panic=-1"),
    ]
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", *command]


def _has_kvm(guest: Guest) -> bool:
    """A writable /dev/kvm is not enough: without svm or vmx a stock kernel never comes up under it."""
    if platform.machine() != ARCHITECTURES[guest.architecture].machine or not os.access("/dev/kvm", os.W_OK):
        return False
    flags = Path("/proc/cpuinfo").read_text().split()
    return guest.architecture == "amd64" and ("svm" in flags or "vmx" in flags)


def _time_limit(guest: Guest) -> float:
    """Return the seconds after which a guest counts as hung: more where other processes share the CPUs."""
    waiting = os.getloadavg()[0] / max(1, len(os.sched_getaffinity(0)))
    return guest.seconds * max(1.0, waiting)


def _watch(guest: Guest, command: list[str], report: Callable[[str], object]) -> Outcome:
    start = time.monotonic()
    status, boot, begun = None, 0.0, False
    output: list[str] = []
    console: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        limit = _time_limit(guest)
        clock = threading.Timer(limit, qemu.kill)
        clock.start()
        try:
            for raw in qemu.stdout or ():
                line = raw.decode(errors="replace").rstrip("\r\n")
                if BEGIN in line:
                    begun, boot = True, time.monotonic() - start
                    continue
                if END in line:
                    # It may follow a last line without an end.
                    line, _, code = line.partition(END)
                    status, begun = int(code), False
                    if not line:
                        continue
                    output.append(line)
                    report(line)
                elif begun:
                    output.append(line)
                    report(line)
                else:
                    console.append(line)
        finally:
            clock.cancel()
            qemu.kill()
    seconds = time.monotonic() - start
    if status is None:
        reason = f"ran longer than {limit:.0f} seconds" if seconds >= limit else "ended early"
        raise GuestDiedError("\n".join([f"guest {guest.name} {reason}", *(output or console)[-40:]]))
    return Outcome(status, "\n".join(output), boot, seconds)
