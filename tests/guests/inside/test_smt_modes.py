"""POWER switches SMT while it runs: what is read, planned and bound follows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import ompaffinity, run
from tests.guests.inside.test_detection import test_lscpu_reports_the_same as lscpu_says_the_same


@pytest.mark.parametrize("mode", [4, 2, 1, 8])
def test_a_mode_shows_in_what_is_read_planned_and_bound(guest: dict[str, Any], mode: int) -> None:
    run("ppc64_cpu", f"--smt={mode}")
    topology = load_topology()
    online = [cpu for cpu in topology.cpus if cpu.online]
    sizes = Counter(cpu.physical_core for cpu in online)
    assert set(sizes.values()) == {mode}
    assert len(sizes) == guest["packages"] * guest["cores"]
    lscpu_says_the_same()
    plan = ompaffinity("plan", "--tp", "2")
    offline = [group["cpus"] for group in plan["left_out"] if group["reason"] == "offline"]
    assert bool(offline) == (mode < 8)
    cores = {cpu.id: cpu.physical_core for cpu in online}
    for rank in plan["ranks"]:
        per_core = Counter(cores[cpu] for cpu in rank["cpus"])
        # Four threads per core are as many as the architecture's rule takes.
        assert set(per_core.values()) == {min(mode, 4)}
    verdict = ompaffinity("verify", "--tp", "2", "--library", "libgomp.so.1")
    assert verdict["holds"]
