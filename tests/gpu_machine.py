"""A machine with GPUs that this one is taken for: for what is decided about GPUs where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.devices.model import GPU, GPUList
from ompaffinity.messages import DEVICE_NODE_UNKNOWN
from ompaffinity.topology.model import Topology

LINES = "".join(f"gpu bus=00000000:{16 + at:02X}:00.0 uuid=GPU-{at} memory=1 cpu=ff\n" for at in range(2))
"""What the stand-in driver reports of two GPUs."""


def gpus_at(*nodes: int | None) -> GPUList:
    """Return GPUs next to these nodes."""
    found = []
    for number, node in enumerate(nodes):
        label = f"0000:{16 + number:02x}:00.0"
        unknown = DEVICE_NODE_UNKNOWN(gpu=f"GPU {number} ({label})", reason="no source reports it")
        reported = () if node is not None else (unknown,)
        near = () if node is None else (node,)
        found.append(GPU(number, label, "nvidia", "", "", near, "sysfs", None, (), reported))
    return GPUList.of(found)


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this machine be another one, with GPUs next to these nodes.

    Of these GPUs `visible` are the ones that this process sees; `hidden`: the driver hides the others.
    """
    monkeypatch.delenv("OMPAFFINITY_PLACEMENT", raising=False)
    # There are no other ranks to wait for.
    monkeypatch.setattr("ompaffinity.launch.mask_groups.WAIT_SECONDS", 0.05)

    def set_up(
        topology: Topology, *nodes: int | None, visible: tuple[int, ...] | None = None, hidden: bool = False
    ) -> Topology:
        every = gpus_at(*nodes)
        chosen = every if visible is None else GPUList.of(every.gpus[gpu] for gpu in visible)

        def live(_: Topology, *, environ: Any = None, user_nodes: Any = None, whole_bus: bool = False) -> GPUList:
            del user_nodes
            return every if whole_bus or (environ == {} and not hidden) else chosen

        for module in ("devices.live", "launch.gpus"):
            monkeypatch.setattr(f"ompaffinity.{module}.live_gpus", live)
        for module in ("launch.gpus", "integrations.vllm.gpu_workers"):
            monkeypatch.setattr(f"ompaffinity.{module}.load_topology", lambda: topology)
        return topology

    return set_up
