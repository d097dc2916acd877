from __future__ import annotations

from pathlib import Path

import pytest

from ompaffinity.bind.capacity import FullNodes
from ompaffinity.doctor import memory as doctor_memory
from ompaffinity.doctor.memory import memory_checks
from ompaffinity.doctor.record import Check
from ompaffinity.topology.limits import read_limits
from tests.conftest import needs_libnuma
from tests.doctor.checks import checked, tree_of
from tests.placement.machines import synthetic


def memory_group(limit: int, used: int | None) -> dict[str, str]:
    """Return the files of a control group with a memory limit, and so many bytes in use (None: not reported)."""
    files = {
        "proc/self/cgroup": "0::/here\n",
        "proc/self/mountinfo": "30 20 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/here/memory.max": f"{limit}\n",
    }
    if used is not None:
        files["sys/fs/cgroup/here/memory.current"] = f"{used}\n"
    return files


@needs_libnuma
def test_reports_what_is_wrong_with_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: (0, 0))
    node = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB"
    files = {
        "proc/sys/kernel/numa_balancing": "1\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        f"{node}/nr_hugepages": "8\n",
        f"{node}/free_hugepages": "6\n",
        **memory_group(1000000, 999000),
    }
    machine = synthetic("package:2 [numa] core:2 pu:1")
    hidden = machine.nodes[1]._replace(allowed=False)
    # A node without memory is never allowed, and is not reported.
    nodes = (machine.nodes[0], hidden, hidden._replace(id=2, cpus=(), has_memory=False))
    machine = machine._replace(nodes=nodes, limits=machine.limits._replace(memory_limit_bytes=1000000))
    with tree_of(tmp_path, files) as tree:
        found = checked(memory_checks(machine, tree))
    assert {name: check.level for name, check in found.items()} == {
        "libnuma": "ok",
        "memory policy": "ok",
        "memory nodes": "warning",
        "memory limit": "warning",
        "NUMA balancing": "warning",
        "transparent huge pages": "warning",
        "huge pages": "warning",
    }
    assert "node 0: 8 of 1024 MiB, 6 free: 6.0 GiB unavailable" in found["huge pages"].message
    assert "node 1 is not allowed" in found["memory nodes"].message


@pytest.mark.parametrize(("used", "level"), [(949, "ok"), (951, "warning"), (None, "ok")])
def test_warns_of_a_memory_limit_that_is_used_by_more_than_95_percent(
    tmp_path: Path, used: int | None, level: str
) -> None:
    files = memory_group(1000 * 2**20, None if used is None else used * 2**20)
    machine = synthetic("core:2 pu:1")
    with tree_of(tmp_path, files) as tree:
        machine = machine._replace(limits=read_limits(tree))
        assert checked(memory_checks(machine, tree))["memory limit"].level == level


def test_reads_huge_pages_without_nodes(tmp_path: Path) -> None:
    folder = "sys/kernel/mm/hugepages/hugepages-2048kB"
    files = {f"{folder}/nr_hugepages": "4", f"{folder}/free_hugepages": "4", "proc/self/cgroup": ""}
    small = folder.replace("2048", "64")
    files |= {f"{small}/nr_hugepages": "3", f"{small}/free_hugepages": "1"}
    with tree_of(tmp_path, files) as tree:
        found = checked(memory_checks(synthetic("core:2 pu:1"), tree))
    assert (found["huge pages"].level, found["huge pages"].message) == (
        "ok",
        "4 of 2 MiB, 4 free; 3 of 64 KiB, 1 free",
    )
    assert found["NUMA balancing"].message == "unsupported by this kernel"
    assert found["transparent huge pages"].message == "unsupported by this kernel"


@pytest.mark.parametrize(("nodes", "level"), [((0,), "warning"), ((0, 1), "problem")])
def test_missing_libnuma_is_a_problem_only_with_several_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: tuple[int, ...], level: str
) -> None:
    from ompaffinity.bind.mempolicy import AcceptedPolicy, LibnumaMissingError, MemoryPolicyError

    def missing() -> None:
        raise LibnumaMissingError("libnuma cannot be loaded")

    asked = []

    def refuse(*question: object) -> AcceptedPolicy:
        asked.append(question)
        return AcceptedPolicy("none", (), MemoryPolicyError("the kernel refused"))

    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: nodes)
    monkeypatch.setattr(doctor_memory, "load_libnuma", missing)
    monkeypatch.setattr(doctor_memory, "accepted_policy", refuse)
    with tree_of(tmp_path, {}) as tree:
        found = checked(memory_checks(synthetic("core:2 pu:1"), tree))
    assert (found["libnuma"].level, found["memory policy"].level) == (level, level)
    assert "SYS_NICE" in str(found["memory policy"].fix)
    assert asked == [("bind", (0,))]


def test_a_machine_with_nothing_to_report(tmp_path: Path) -> None:
    mode = {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n", "proc/self/cgroup": ""}
    with tree_of(tmp_path, mode) as tree:
        found = checked(memory_checks(synthetic("[numa] core:2 pu:1"), tree))
    texts = {name: check.message for name, check in found.items() if name not in ("libnuma", "memory policy")}
    assert texts == {
        "memory nodes": "node 0, all allowed",
        "memory limit": "none",
        "NUMA balancing": "unsupported by this kernel",
        "transparent huge pages": "madvise",
        "huge pages": "none reserved",
    }
    assert {found[name].level for name in texts} == {"ok"}


def test_a_machine_without_nodes_has_no_node_to_name(tmp_path: Path) -> None:
    with tree_of(tmp_path, {}) as tree:
        found = checked(memory_checks(synthetic("core:2 pu:1")._replace(nodes=()), tree))
    assert found["memory nodes"] == Check("memory nodes", "ok", "none: no NUMA information")


def test_warns_of_nodes_that_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = FullNodes((1,), 100 * 2**20, 4096 * 2**20)
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: (0, 1))
    monkeypatch.setattr(doctor_memory, "full_nodes", {(0,): None, (1,): full}.get)
    with tree_of(tmp_path, {}) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["memory nodes"]
    assert (check.level, check.message) == ("warning", "node 1 has 100 MiB available of 4096 MiB")


@pytest.mark.parametrize(
    ("used", "message"),
    [(None, "3.0 GiB (control group)"), (1 << 30, "3.0 GiB (control group), 2.0 GiB left")],
)
def test_names_the_memory_limit_and_what_is_left(used: int | None, message: str, tmp_path: Path) -> None:
    with tree_of(tmp_path, memory_group(3 << 30, used)) as tree:
        machine = synthetic("core:2 pu:1")._replace(limits=read_limits(tree))
        assert checked(memory_checks(machine, tree))["memory limit"] == Check("memory limit", "ok", message)


@pytest.mark.parametrize(
    ("value", "nodes", "level", "words"),
    [
        ("1", (0, 1), "warning", "on: the kernel samples page accesses"),
        ("2", (0, 1), "warning", "on: the kernel samples page accesses"),
        ("1", (0,), "ok", "on"),
        ("0", (0, 1), "ok", "off"),
    ],
)
def test_balancing_is_a_warning_with_several_nodes(
    value: str, nodes: tuple[int, ...], level: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: nodes)
    with tree_of(tmp_path, {"proc/sys/kernel/numa_balancing": value}) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["NUMA balancing"]
    assert check.level == level
    assert check.message.startswith(words)


@pytest.mark.parametrize(
    ("kibibytes", "free", "level", "message"),
    [
        (2048, 511, "ok", "600 of 2 MiB, 511 free"),
        (2048, 512, "warning", "600 of 2 MiB, 512 free: 1.0 GiB unavailable as normal pages"),
        (1024, 3, "ok", "600 of 1 MiB, 3 free"),
        (512, 3, "ok", "600 of 512 KiB, 3 free"),
    ],
)
def test_a_gibibyte_of_free_huge_pages_is_a_warning(
    kibibytes: int, free: int, level: str, message: str, tmp_path: Path
) -> None:
    folder = f"sys/kernel/mm/hugepages/hugepages-{kibibytes}kB"
    with tree_of(tmp_path, {f"{folder}/nr_hugepages": "600", f"{folder}/free_hugepages": str(free)}) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["huge pages"]
    assert (check.level, check.message) == (level, message)


def test_free_huge_pages_of_all_nodes_count_together(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for node in (0, 1):
        folder = f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
        files |= {f"{folder}/nr_hugepages": "256", f"{folder}/free_hugepages": "256"}
    with tree_of(tmp_path, files) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["huge pages"]
    assert check.message == (
        "node 0: 256 of 2 MiB, 256 free; node 1: 256 of 2 MiB, 256 free: 1.0 GiB unavailable as normal pages"
    )


def test_policies_are_not_required_without_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", tuple)
    with tree_of(tmp_path, {}) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["memory policy"]
    assert check == Check("memory policy", "ok", "none required: the kernel reports no NUMA nodes")


def test_sizes_without_pages_and_other_names_are_no_huge_pages(tmp_path: Path) -> None:
    folder = "sys/kernel/mm/hugepages"
    files = {
        f"{folder}/hugepages-1048576kB/nr_hugepages": "0",
        f"{folder}/hugepages-1048576kB/free_hugepages": "0",
        f"{folder}/hugepages-xkB/nr_hugepages": "7",
        # Without a number of free ones none is known to be free.
        f"{folder}/hugepages-2048kB/nr_hugepages": "600",
    }
    with tree_of(tmp_path, files) as tree:
        check = checked(memory_checks(synthetic("core:2 pu:1"), tree))["huge pages"]
    assert check == Check("huge pages", "ok", "600 of 2 MiB, 0 free")
