"""Give an s390x guest drawers, books and packages: ``python -m tests.guests.inside.drawers``.

Emulation has no topology facility, so the kernel shows every CPU in a drawer of its own. A copy of the CPUs' folder of
sysfs, with 2 drawers x 2 books x 2 packages, is mounted over the real one. The scheduler stays real.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from ompaffinity.ids import format_id_list

REAL, COPY = Path("/sys/devices/system"), Path("/tmp/system")
SIZES = {"core": 1, "physical_package": 1, "book": 2, "drawer": 4}
SIBLINGS = {
    "thread_siblings": 1,
    "core_cpus": 1,
    "core_siblings": 1,
    "package_cpus": 1,
    "book_siblings": 2,
    "drawer_siblings": 4,
}
"""CPUs per unit of each level, and of each list of neighbours."""


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def main() -> None:
    COPY.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(COPY)], check=True)
    for name in ("possible", "present", "online", "offline", "kernel_max", "dispatching", "isolated"):
        source = REAL / "cpu" / name
        if source.exists():
            write(COPY / "cpu" / name, source.read_text().strip())
    cpus = sorted(int(path.name[3:]) for path in (REAL / "cpu").glob("cpu[0-9]*"))
    for cpu in cpus:
        folder = COPY / "cpu" / f"cpu{cpu}"
        for name, size in SIZES.items():
            write(folder / "topology" / f"{name}_id", cpu // size)
        for name, size in SIBLINGS.items():
            near = [other for other in cpus if other // size == cpu // size]
            write(folder / "topology" / name, f"{sum(1 << other for other in near):x}")
            write(folder / "topology" / f"{name}_list", format_id_list(near))
        for name in ("online", "configure", "polarization", "address"):
            source = REAL / "cpu" / f"cpu{cpu}" / name
            if source.exists():
                write(folder / name, source.read_text().strip())
    subprocess.run(["mount", "--bind", str(COPY), str(REAL)], check=True)


if __name__ == "__main__":
    main()
