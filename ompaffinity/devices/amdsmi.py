"""AMD GPUs from amdsmi (the extra ``[amd]``), queried in a child process.

The child process isolates the caller: importing amdsmi prints to standard output and raises KeyError where its library
is missing, and its shutdown affects every user in the process. The node comes from
``amdsmi_get_gpu_topo_numa_affinity``. ``amdsmi_topo_get_numa_node_number`` returns a number of the driver's own
topology, and uninitialised memory in some releases. Source: the AMD SMI Python API reference.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

from ompaffinity.devices.nvml import DriverView
from ompaffinity.devices.pci import Answer, nearest_cpu_nodes, pci_address
from ompaffinity.devices.visibility import AMD, PhysicalGPU
from ompaffinity.interpreter import child_command

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

TIMEOUT_SECONDS = 30
MARK = "ompaffinity-amdsmi:"
PROGRAM = f"""
import json
found = []
try:
    import amdsmi
    amdsmi.amdsmi_init()
    for handle in amdsmi.amdsmi_get_processor_handles():
        row = {{}}
        for name, function in (
            ("address", "amdsmi_get_gpu_device_bdf"),
            ("uuid", "amdsmi_get_gpu_device_uuid"),
            ("node", "amdsmi_get_gpu_topo_numa_affinity"),
            ("numbers", "amdsmi_get_gpu_enumeration_info"),
            ("board", "amdsmi_get_gpu_asic_info"),
        ):
            try:
                row[name] = getattr(amdsmi, function)(handle)
            except Exception as error:
                row[name + "_error"] = str(error)
        found.append(row)
    answer = {{"gpus": found}}
except BaseException as error:
    answer = {{"problem": type(error).__name__ + ": " + " ".join(str(error).split())}}
print()
print({MARK!r} + json.dumps(answer, default=str))
"""


def read_amdsmi(tree: Tree, topology: Topology) -> DriverView:
    """Return what amdsmi reports about every GPU of this machine, visible or not."""
    from importlib.util import find_spec

    if find_spec("amdsmi") is None:
        return DriverView(problem="amdsmi is not installed (the extra [amd])")
    # Query all GPUs of the driver, not only those visible to this process.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VISIBLE_DEVICES")}
    try:
        # The argv list runs this interpreter with a constant program, without a shell.
        done = subprocess.run(  # noqa: S603
            child_command(PROGRAM),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return DriverView(problem=str(error))
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        return DriverView(problem=f"amdsmi printed no result (status {done.returncode})")
    try:
        answer = json.loads(line.removeprefix(MARK))
        return DriverView(problem=answer["problem"]) if "problem" in answer else _view(answer["gpus"], tree, topology)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return DriverView(problem=f"the result of amdsmi is invalid ({type(error).__name__}: {error})")


def _view(rows: list[dict[str, Any]], tree: Tree, topology: Topology) -> DriverView:
    devices, answers = [], {}
    for row in rows:
        address = pci_address(str(row.get("address", "")))
        if address is None:
            continue
        # The form that HIP_VISIBLE_DEVICES accepts, where the library reports it.
        uuid = _field(row, "numbers", "hip_uuid") or str(row.get("uuid", ""))
        # The order of amdsmi differs from the order of HIP.
        number = _field(row, "numbers", "hip_id")
        order = int(number) if number.isdigit() else -1
        devices.append(PhysicalGPU(address, AMD, _field(row, "board", "market_name"), uuid, order=order))
        node = row.get("node")
        if isinstance(node, int):
            near = nearest_cpu_nodes(tree, topology, node)
            answers[address] = [Answer("amdsmi", near, f"NUMA affinity {node}")]
    return DriverView(tuple(devices), answers, complete=0 < len(devices) == len(rows))


def _field(row: dict[str, Any], name: str, field: str) -> str:
    found = row.get(name)
    value = found.get(field) if isinstance(found, dict) else None
    return "" if value is None else str(value)
