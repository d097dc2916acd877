"""Reader: ``lscpu -J -e`` of util-linux 2.30 to 2.42, run here or saved.

lscpu reports cores, sockets, nodes and L3s, but no dies, clusters or memory. The cells
of one column may be numbers, text, ``"-"``, null or a bare ``-`` (2.38 to 2.40; it is invalid
JSON and replaced here); ``online`` is true/false, or yes/no up to 2.37. Sources: lscpu(1) and
outputs of eleven versions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.ids import MAX_ID
from ompaffinity.messages import LSCPU_CORES_DOUBTFUL, LSCPU_KINDS_UNKNOWN, NOTE, WARNING, Message
from ompaffinity.topology.kinds import UNIFORM, CoreKind, kinds_by_speed
from ompaffinity.topology.lscpu_summary import COMMAND, summarized_topology, summary_fields
from ompaffinity.topology.model import UNKNOWN, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology, lscpu_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

TIMEOUT_S = 10
SYSTEM_PATHS = ("/usr/bin/lscpu", "/bin/lscpu")
COLUMNS = "CPU,CORE,SOCKET,NODE,CACHE,ONLINE"
S390_COLUMNS = "CPU,CORE,SOCKET,NODE,BOOK,DRAWER,CACHE,ONLINE"
"""BOOK and DRAWER are requested on s390 only: elsewhere they make the JSON of 2.38 to 2.40 invalid."""

CSV_COLUMNS = "CPU,CORE,SOCKET,NODE,ONLINE"

MAX_MHZ = 1e6
_CACHE_COLUMN = re.compile(r"l\d[di]?")
_BARE_DASH = re.compile(r"(:\s*)-(?=\s*[,}\n])")


def read_lscpu(architecture: str, root: str | None = None) -> tuple[LogicalCPUInfo, ...]:
    """Return the CPUs that lscpu reports for this machine, or for the directory `root` (``--sysroot``).

    JSON is read first. If it is unusable, the CSV format is read, which is the same in all versions.

    Raises:
        TopologyError: lscpu is missing, fails, takes longer than 10 s, or lists no CPU.
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
            [_program(), *options, *(() if root is None else ("--sysroot", root))],
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TopologyError(f"lscpu did not finish within {TIMEOUT_S} s; use --source sysfs") from None
    except OSError as error:
        raise TopologyError(f"cannot run lscpu ({error.strerror}); install util-linux, or use --source sysfs") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.decode("utf-8", "replace").split())[:200] or "no message"
        raise TopologyError(f"lscpu failed with status {done.returncode} ({reason}); use --source sysfs")
    return done.stdout.decode("utf-8", "replace")


def _program() -> str:
    """Return the lscpu of the system; only where it has none, one that PATH has."""
    return next((path for path in SYSTEM_PATHS if os.access(path, os.X_OK)), "lscpu")


def parse_lscpu(text: str) -> tuple[LogicalCPUInfo, ...]:
    """Return the CPUs in the output of ``lscpu -J -e`` or ``lscpu -p``, ascending, with machine-wide group numbers.

    Raises:
        TopologyError: `text` is not such an output, lists no CPU, or lists a CPU twice.
    """
    rows = _csv_rows(text) if text.lstrip().startswith("#") else _rows(text)
    if not all("cpu" in row and "core" in row for row in rows):
        raise TopologyError(
            "the lscpu output lacks the column CPU or CORE; create it with lscpu -J -e=CPU,CORE,SOCKET,NODE,ONLINE"
        )
    invalid = [row["cpu"] for row in rows if isinstance(row["cpu"], int) and lscpu_number(row["cpu"]) == UNKNOWN]
    if invalid:
        raise TopologyError(f"the lscpu output has an invalid CPU number {invalid[0]}; numbers are 0 to {MAX_ID}")
    rows = [row for row in rows if lscpu_number(row["cpu"]) != UNKNOWN]
    rows.sort(key=lambda row: lscpu_number(row["cpu"]))
    numbers = [lscpu_number(row["cpu"]) for row in rows]
    if not rows:
        raise TopologyError("lscpu lists no CPU (a fault of versions 2.37 to 2.39 on RISC-V); use --source sysfs")
    if len(set(numbers)) != len(numbers):
        raise TopologyError("the lscpu output lists a CPU twice; create it again with one lscpu command")
    online = [_is_online(row) for row in rows]
    if not any(online):
        raise TopologyError("the lscpu output has no online CPU; create it again on a running machine")
    columns = {
        name: _groups([lscpu_number(row.get(name)) for row in rows]) for name in ("core", "socket", "book", "drawer")
    }
    l3 = _groups([_l3(row) for row in rows])
    kinds = _kinds(rows, online)
    return tuple(
        LogicalCPUInfo(
            id=numbers[index],
            physical_core=columns["core"][index],
            numa_node=lscpu_number(row.get("node")),
            package=columns["socket"][index],
            l3=l3[index],
            book=columns["book"][index],
            drawer=columns["drawer"][index],
            online=online[index],
            allowed=online[index],
            **kinds.get(index, UNIFORM)._asdict(),
        )
        for index, row in enumerate(rows)
    )


def _rows(text: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(_BARE_DASH.sub(r"\1null", text))
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"the lscpu output is not JSON ({error}); create it with lscpu -J -e") from None
    rows = document.get("cpus") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TopologyError(
            'the lscpu output has no list "cpus"; create it with lscpu -J -e=CPU,CORE,SOCKET,NODE,ONLINE'
        )
    return rows


def _csv_rows(text: str) -> list[dict[str, Any]]:
    """Read ``lscpu -p``: the last comment line names the columns; an empty cell is unknown, and Y means yes."""
    names: list[str] = []
    rows = []
    for line in text.splitlines():
        if line.startswith("#"):
            names = [name.strip().lower() for name in line[1:].split(",")]
        elif line.strip():
            cells = line.split(",")
            # The row of a CPU ends before the columns of caches that it does not have.
            missing = names[len(cells) :]
            if len(cells) > len(names) or not all(_CACHE_COLUMN.fullmatch(name) for name in missing):
                raise TopologyError(
                    f"a row of the lscpu output has {len(cells)} of {len(names)} cells; create it with lscpu -p"
                )
            rows.append(dict(zip(names, cells)))
    return rows


def _is_online(row: dict[str, Any]) -> bool:
    """Return the column ONLINE; where it is empty, a CPU without a core is offline."""
    online = row.get("online")
    if online in (True, "yes", "Y"):
        return True
    return online not in (False, "no", "N") and lscpu_number(row["core"]) != UNKNOWN


def _l3(row: dict[str, Any]) -> int:
    """Return the number of the L3: in ``"l1d:l1i:l2:l3": "0:0:0:0"``, or in the CSV column L3."""
    for name, value in row.items():
        levels = name.split(":")
        if "l3" in levels and len(levels) > 1 and isinstance(value, str):
            # A CPU without an L3 has fewer numbers.
            numbers = value.split(":")
            place = levels.index("l3")
            return lscpu_number(numbers[place]) if place < len(numbers) else UNKNOWN
    return lscpu_number(row.get("l3"))


def _kinds(rows: list[dict[str, Any]], online: list[bool]) -> dict[int, CoreKind]:
    """Return {position: kind} by the column MAXMHZ; empty where an online CPU has none, or all are alike."""
    speeds = {}
    for position, row in enumerate(rows):
        frequency = _frequency(row.get("maxmhz"))
        if online[position] and frequency == 0:
            return {}
        speeds[position] = frequency
    return kinds_by_speed({position: speed for position, speed in speeds.items() if speed})


def _frequency(cell: object) -> int:
    """Return a cell of MAXMHZ (``5100.0000``, as number or text) in MHz, 0 where there is none."""
    try:
        number = float(cell) if isinstance(cell, (int, float, str)) else 0.0
    except ValueError:
        return 0
    return round(number) if 0 < number < MAX_MHZ else 0


def _groups(values: list[int]) -> list[int]:
    """Return a group number for each value, equal for equal values, in the order of the first members."""
    numbers: dict[int, int] = {}
    return [UNKNOWN if value == UNKNOWN else numbers.setdefault(value, len(numbers)) for value in values]


def saved_topology(text: str, machine: str, architecture: str) -> Topology:
    """Return the machine in a saved lscpu output, a table or a summary; its nodes have no sizes or distances.

    Raises:
        TopologyError: as `parse_lscpu`.
    """
    summary = summary_fields(text)
    if summary is not None:
        return summarized_topology(summary, machine, architecture)
    cpus = parse_lscpu(text)
    members: dict[int, list[int]] = {}
    for cpu in cpus:
        if cpu.numa_node != UNKNOWN:
            members.setdefault(cpu.numa_node, []).extend([cpu.id] if cpu.online else [])
    nodes = tuple(MemoryNodeInfo(id=node, cpus=tuple(members[node])) for node in sorted(members))
    return Topology(architecture, "lscpu", machine, cpus, nodes, Limits(), tuple(_messages(cpus, architecture)))


def _messages(cpus: tuple[LogicalCPUInfo, ...], architecture: str) -> Iterator[Message]:
    """Report repeated core numbers: lscpu 2.37 and later restarts them for each CPU type, which looks like SMT."""
    online = [cpu for cpu in cpus if cpu.online]
    repeated = len({cpu.physical_core for cpu in online}) < len(online)
    arm = architecture.startswith(("aarch64", "arm"))
    if repeated and (arm or architecture == "unknown"):
        yield LSCPU_CORES_DOUBTFUL(level=WARNING if arm else NOTE)
    with_l3 = sum(cpu.l3 != UNKNOWN for cpu in online)
    threads = set(Counter(cpu.physical_core for cpu in online).values())
    if all(cpu.kind is None for cpu in online) and (0 < with_l3 < len(online) or len(threads) > 1):
        yield LSCPU_KINDS_UNKNOWN(command=COMMAND)
