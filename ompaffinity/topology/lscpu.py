"""Reader: ``lscpu -J -e`` of util-linux 2.30 to 2.42, run here or saved.

lscpu tells cores, sockets, nodes and L3s; dies, clusters and memory it does not know. The cells
of one column may be numbers, text, ``"-"``, null or a bare ``-`` (2.38 to 2.40, which is no
JSON and is mended here); ``online`` is true/false, or yes/no up to 2.37. Source: lscpu(1) and
its outputs from eleven versions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.messages import LSCPU_CORES_DOUBTFUL, NOTE, WARNING, Message
from ompaffinity.topology.model import UNKNOWN, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology, lscpu_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

TIMEOUT_S = 10
COLUMNS = "CPU,CORE,SOCKET,NODE,CACHE,ONLINE"
S390_COLUMNS = "CPU,CORE,SOCKET,NODE,BOOK,DRAWER,CACHE,ONLINE"
"""BOOK and DRAWER only there: elsewhere they alone make the JSON of 2.38 to 2.40 invalid."""

CSV_COLUMNS = "CPU,CORE,SOCKET,NODE,ONLINE"

_BARE_DASH = re.compile(r"(:\s*)-(?=\s*[,}\n])")


def read_lscpu(architecture: str, root: str | None = None) -> tuple[LogicalCPUInfo, ...]:
    """Return the CPUs that lscpu sees on this machine, or in the directory `root` (``--sysroot``).

    JSON first; where lscpu writes no usable JSON, its CSV form, which is the same in all versions.

    Raises:
        TopologyError: lscpu is missing, fails, does not answer within 10 s, or names no CPU.
    """
    columns = S390_COLUMNS if architecture.startswith("s390") else COLUMNS
    try:
        return parse_lscpu(_run(["-J", f"-e={columns}"], root))
    except TopologyError as error:
        try:
            return parse_lscpu(_run([f"-p={CSV_COLUMNS}"], root))
        except TopologyError:
            raise error from None


def _run(options: list[str], root: str | None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LSCPU_COLUMNS", "LIBSMARTCOLS_JSON")
    }
    try:
        done = subprocess.run(  # noqa: S603
            ["lscpu", *options, *(() if root is None else ("--sysroot", root))],  # noqa: S607
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TopologyError(f"lscpu did not answer within {TIMEOUT_S} s; --source sysfs does without it") from None
    except OSError as error:
        raise TopologyError(f"cannot run lscpu ({error.strerror}); install util-linux, or use --source sysfs") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200] or "no message"
        raise TopologyError(f"lscpu failed with status {done.returncode} ({said}); --source sysfs does without it")
    return done.stdout.decode("utf-8", "replace")


def parse_lscpu(text: str) -> tuple[LogicalCPUInfo, ...]:
    """Return the CPUs in the output of ``lscpu -J -e`` or ``lscpu -p``, ascending, groups numbered over the machine.

    Raises:
        TopologyError: it is no such output, names no CPU, or names one twice.
    """
    rows = _csv_rows(text) if text.lstrip().startswith("#") else _rows(text)
    if not all("cpu" in row and "core" in row for row in rows):
        raise TopologyError(
            "lscpu's output lacks the columns CPU and CORE; make it with lscpu -J -e=CPU,CORE,SOCKET,NODE,ONLINE"
        )
    strange = [row["cpu"] for row in rows if isinstance(row["cpu"], int) and lscpu_number(row["cpu"]) == UNKNOWN]
    if strange:
        raise TopologyError(f"lscpu's output has a CPU {strange[0]}, which there cannot be")
    rows = [row for row in rows if lscpu_number(row["cpu"]) != UNKNOWN]
    rows.sort(key=lambda row: lscpu_number(row["cpu"]))
    numbers = [lscpu_number(row["cpu"]) for row in rows]
    if not rows:
        raise TopologyError("lscpu names no CPU (versions 2.37 to 2.39 do so on RISC-V); use --source sysfs")
    if len(set(numbers)) != len(numbers):
        raise TopologyError("lscpu's output names a CPU twice")
    online = [_is_online(row) for row in rows]
    if not any(online):
        raise TopologyError("lscpu's output has no CPU online")
    columns = {
        name: _groups([lscpu_number(row.get(name)) for row in rows]) for name in ("core", "socket", "book", "drawer")
    }
    l3 = _groups([_l3(row) for row in rows])
    return tuple(
        LogicalCPUInfo(
            id=numbers[place],
            physical_core=columns["core"][place],
            numa_node=lscpu_number(row.get("node")),
            package=columns["socket"][place],
            l3=l3[place],
            book=columns["book"][place],
            drawer=columns["drawer"][place],
            online=online[place],
            allowed=online[place],
        )
        for place, row in enumerate(rows)
    )


def _rows(text: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(_BARE_DASH.sub(r"\1null", text))
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"lscpu's output is not JSON ({error})") from None
    rows = document.get("cpus") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TopologyError('lscpu\'s output has no list "cpus"; make it with lscpu -J -e=CPU,CORE,SOCKET,NODE,ONLINE')
    return rows


def _csv_rows(text: str) -> list[dict[str, Any]]:
    """Read ``lscpu -p``: the columns stand in the last comment line; an empty cell is unknown, and Y means yes."""
    names: list[str] = []
    rows = []
    for line in text.splitlines():
        if line.startswith("#"):
            names = [name.strip().lower() for name in line[1:].split(",")]
        elif line.strip():
            cells = line.split(",")
            if len(cells) != len(names):
                raise TopologyError("the rows of lscpu's CSV output do not fit its columns")
            rows.append(dict(zip(names, cells)))
    return rows


def _is_online(row: dict[str, Any]) -> bool:
    """What the column ONLINE says; where it says nothing, a CPU without a core is off line."""
    online = row.get("online")
    if online in (True, "yes", "Y"):
        return True
    return online not in (False, "no", "N") and lscpu_number(row["core"]) != UNKNOWN


def _l3(row: dict[str, Any]) -> int:
    """Return the number of the L3: the last one of ``"l1d:l1i:l2:l3": "0:0:0:0"``, or a CSV column's."""
    for name, value in row.items():
        if name.endswith(":l3") and isinstance(value, str):
            return lscpu_number(value.rpartition(":")[2])
    return lscpu_number(row.get("l3"))


def _groups(values: list[int]) -> list[int]:
    """Number the groups of equal values in the order of their first members."""
    numbers: dict[int, int] = {}
    return [UNKNOWN if value == UNKNOWN else numbers.setdefault(value, len(numbers)) for value in values]


def saved_topology(text: str, machine: str, architecture: str) -> Topology:
    """Return the machine in a saved output of lscpu; its nodes have CPUs, but no sizes or distances.

    Raises:
        TopologyError: as `parse_lscpu`.
    """
    cpus = parse_lscpu(text)
    members: dict[int, list[int]] = {}
    for cpu in cpus:
        if cpu.numa_node != UNKNOWN:
            members.setdefault(cpu.numa_node, []).extend([cpu.id] if cpu.online else [])
    nodes = tuple(MemoryNodeInfo(id=node, cpus=tuple(members[node])) for node in sorted(members))
    return Topology(architecture, "lscpu", machine, cpus, nodes, Limits(), tuple(_doubts(cpus, architecture)))


def _doubts(cpus: tuple[LogicalCPUInfo, ...], architecture: str) -> Iterator[Message]:
    """Tell of core numbers that lscpu 2.37 and later repeat for each CPU type: on big.LITTLE that looks like SMT."""
    online = [cpu for cpu in cpus if cpu.online]
    repeated = len({cpu.physical_core for cpu in online}) < len(online)
    arm = architecture.startswith(("aarch64", "arm"))
    if repeated and (arm or architecture == "unknown"):
        yield LSCPU_CORES_DOUBTFUL(level=WARNING if arm else NOTE)
