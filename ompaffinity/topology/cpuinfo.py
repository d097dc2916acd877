"""The architecture of a recorded machine, detected from its /proc.

sysfs does not name the architecture. /proc/cpuinfo has a different format on each one (arch/*/kernel/ in the kernel),
and hwloc-gather-topology adds ``Architecture:``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.topology.model import UNKNOWN_ARCHITECTURE
from ompaffinity.topology.text import read_text

if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree


FIRST_BLOCK = 2048


def recorded_architecture(tree: Tree) -> str:
    """Return the architecture of the recorded machine as ``uname -m`` names it, or ``"unknown"``."""
    # The block of the first CPU is enough; on large machines the file has megabytes.
    fields = _fields((tree.read("proc/cpuinfo", most=FIRST_BLOCK) or b"")[:FIRST_BLOCK].decode("ascii", "replace"))
    found = _from_cpuinfo(fields)
    if found != UNKNOWN_ARCHITECTURE:
        return found
    named = _fields(read_text(tree, "proc/hwloc-nofile-info") or "").get("architecture", "")
    return named or UNKNOWN_ARCHITECTURE


def _fields(text: str) -> dict[str, str]:
    """Return the first value of every ``name : value`` line, names in lower case."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon and name not in fields:
            fields[name] = value.strip()
    return fields


def _from_cpuinfo(fields: dict[str, str]) -> str:
    cpu = fields.get("cpu", "").upper()
    if "flags" in fields:
        return "x86_64" if "lm" in fields["flags"].split() else "i686"
    if fields.get("vendor_id") == "IBM/S390":
        return "s390x"
    if "cpu implementer" in fields:
        version = fields.get("cpu architecture", "")
        return "aarch64" if version in ("8", "AArch64") else f"armv{version[:1] or '7'}l"
    if fields.get("isa", "").startswith(("rv64", "rv32")):
        return f"riscv{fields['isa'][2:4]}"
    if fields.get("cpu family", "").startswith("Loongson-64bit"):
        return "loongarch64"
    if fields.get("arch", "") == "IA-64":
        return "ia64"
    if cpu.startswith(("POWER8", "POWER9", "POWER1")):
        return "ppc64le"
    if cpu.startswith(("POWER", "PPC970", "CELL")):
        return "ppc64"
    if "Power" in fields.get("machine", ""):
        return "ppc"
    if fields.get("type", "").startswith("sun4"):
        return "sparc64"
    return UNKNOWN_ARCHITECTURE
