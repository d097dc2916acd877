from __future__ import annotations

import pytest

from ompaffinity.topology.archive import ArchiveTree
from ompaffinity.topology.limits import memory_left, read_limits
from ompaffinity.topology.model import Limits


def limits(**files: str) -> Limits:
    return read_limits(ArchiveTree({path: content.encode() for path, content in files.items()}))


V2 = {
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    "proc/self/cgroup": "0::/a/b\n",
}
V1 = {
    "proc/mounts": (
        "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    ),
    "proc/self/cgroup": "7:cpuset:/job\n4:cpu,cpuacct:/job/step\n3:memory:/job\n",
}


def test_without_control_groups_there_are_no_limits() -> None:
    assert limits() == Limits()


def test_reads_the_v2_cpuset_of_the_innermost_group_that_shows_it() -> None:
    got = limits(
        **V2,
        **{
            "sys/fs/cgroup/cpuset.cpus.effective": "0-7",
            "sys/fs/cgroup/a/cpuset.cpus.effective": "2-3",
            "sys/fs/cgroup/a/cpuset.mems.effective": "1",
        },
    )
    assert got.cpuset_cpus == (2, 3)
    assert got.cpuset_nodes == (1,)


def test_reads_the_tightest_quota_and_memory_limit_along_the_path() -> None:
    got = limits(
        **V2,
        **{
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/memory.max": "4096\n",
            "sys/fs/cgroup/a/memory.current": "100\n",
            "sys/fs/cgroup/a/b/memory.max": "8192\n",
            "sys/fs/cgroup/a/b/memory.current": "50\n",
        },
    )
    assert got.cpu_quota == 1.5
    assert (got.memory_limit_bytes, got.memory_usage_bytes) == (4096, 100)


def test_reads_v1_limits_and_its_values_for_unlimited() -> None:
    got = limits(
        **V1,
        **{
            "sys/fs/cgroup/cpuset/job/cpuset.cpus": "0-1",
            "sys/fs/cgroup/cpuset/job/cpuset.mems": "0",
            "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "77",
        },
    )
    assert got == Limits(cpuset_cpus=(0, 1), cpuset_nodes=(0,), cpu_quota=2.5, memory_usage_bytes=77)


def test_reads_a_group_that_is_the_root_of_its_mount() -> None:
    """In a container without a group namespace the path is the host's and the mount begins inside it."""
    got = limits(
        **{
            "proc/self/mountinfo": "30 23 0:26 /docker/abc /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n",
            "proc/self/cgroup": "5:cpuset:/docker/abc\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "4-5",
        }
    )
    assert got.cpuset_cpus == (4, 5)


@pytest.mark.parametrize(
    ("root", "path", "folder"),
    [
        ("/docker", "/docker/abc", "abc"),
        ("/docker", "/dockerabc", "dockerabc"),  # beside the root: the path is that of the namespace
        ("/docker", "/abc", "abc"),
    ],
)
def test_reads_a_group_below_the_root_of_its_mount(root: str, path: str, folder: str) -> None:
    got = limits(
        **{
            "proc/self/mountinfo": f"30 23 0:26 {root} /groups rw - cgroup2 cgroup2 rw\n",
            "proc/self/cgroup": f"0::{path}\n",
            f"groups/{folder}/cpu.max": "150000 100000",
        }
    )
    assert got.cpu_quota == 1.5


MOUNT = "30 23 0:26 / /groups rw - cgroup2 cgroup2"


@pytest.mark.parametrize("line", [MOUNT, f"{MOUNT} rw", MOUNT.replace(" - ", " shared:1 master:2 - ")])
def test_reads_a_mount_with_and_without_optional_fields(line: str) -> None:
    files = {"proc/self/mountinfo": f"{line}\n", "proc/self/cgroup": "0::/\n", "groups/cpu.max": "150000 100000"}
    assert limits(**files).cpu_quota == 1.5


@pytest.mark.parametrize(
    "line",
    [
        "24 23 0:5 / /proc rw - proc proc rw",
        "30 23 0:26 / /groups rw - cgroup2",
        "30 23 0:26 / /groups rw cgroup2 cgroup2 rw nosuid",
        "cgroup2",
    ],
)
def test_ignores_lines_that_are_no_mount_of_groups(line: str) -> None:
    mounts = f"{line}\n{MOUNT}\n"
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": "0::/\n", "groups/cpu.max": "150000 100000"}
    assert limits(**files).cpu_quota == 1.5


def test_reads_the_mount_beside_one_outside_the_namespace() -> None:
    mounts = f"29 23 0:26 /../other /other rw - cgroup2 cgroup2 rw\n{MOUNT}\n"
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": "0::/\n", "groups/cpu.max": "150000 100000"}
    assert limits(**files) == Limits(cpu_quota=1.5)


def test_a_controller_outside_the_namespace_is_unknown_whatever_others_show() -> None:
    mounts = (
        "29 23 0:26 /../other /cpuset rw - cgroup cgroup rw,cpuset\n30 23 0:27 / /memory rw - cgroup cgroup rw,memory\n"
    )
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": "3:cpuset:/\n2:cpu:/\n1:memory:/\n"}
    assert limits(**files).unknown == ("cpuset",)


@pytest.mark.parametrize(("mode", "cpus"), [("cpuset", (0, 1, 2, 3)), ("cpuset,cpuset_v2_mode", (0, 1))])
def test_the_effective_cpus_of_version_1_count_in_version_2_mode(mode: str, cpus: tuple[int, ...]) -> None:
    got = limits(
        **{
            "proc/mounts": f"cgroup /groups cgroup rw,{mode} 0 0\n",
            "proc/self/cgroup": "1:cpuset:/\n",
            "groups/cpuset.cpus": "0-3",
            "groups/cpuset.effective_cpus": "0-1",
        }
    )
    assert got.cpuset_cpus == cpus


def test_prefers_a_mount_that_contains_the_process() -> None:
    got = limits(
        **{
            "proc/self/mountinfo": (
                "30 23 0:26 /other /mnt/other rw - cgroup2 cgroup2 rw\n"
                "31 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
                "32 23 0:26 /my\\040group /mnt/mine rw - cgroup2 cgroup2 rw\n"
            ),
            "proc/self/cgroup": "0::/my group/a\n",
            "mnt/other/cpu.max": "100000 100000",
            "mnt/mine/a/cpu.max": "200000 100000",
            "sys/fs/cgroup/my group/a/cpu.max": "200000 100000",
        }
    )
    assert got.cpu_quota == 2.0


def test_groups_outside_the_namespace_are_unknown() -> None:
    got = limits(**{**V2, "proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "100000 100000"})
    assert got == Limits(unknown=("cpuset", "cpu", "memory"))


def test_memory_left_is_that_of_the_fullest_group() -> None:
    files = {
        **V2,
        "sys/fs/cgroup/a/memory.max": "4000",
        "sys/fs/cgroup/a/memory.current": "3900",
        "sys/fs/cgroup/a/b/memory.max": "2000",
        "sys/fs/cgroup/a/b/memory.current": "10",
    }
    tree = ArchiveTree({path: content.encode() for path, content in files.items()})
    assert memory_left(tree) == 100
    assert (read_limits(tree).memory_limit_bytes, read_limits(tree).memory_usage_bytes) == (2000, 10)


def test_no_memory_is_left_above_the_limit() -> None:
    files = {**V2, "sys/fs/cgroup/a/memory.max": "4000", "sys/fs/cgroup/a/memory.current": "5000"}
    assert memory_left(ArchiveTree({path: content.encode() for path, content in files.items()})) == 0


@pytest.mark.parametrize("limit", [0, 1, 2**50])
def test_a_memory_limit_may_be_small_or_large(limit: int) -> None:
    assert limits(**V2, **{"sys/fs/cgroup/a/memory.max": str(limit)}).memory_limit_bytes == limit


@pytest.mark.parametrize(
    ("statistics", "left"),
    [
        ("", 100),
        ("active_file 30\ninactive_file 20\n", 150),
        ("slab_reclaimable 7\nslab_unreclaimable 1000\n", 107),
        ("anon 500\nfile 400\n", 100),
        ("inactive_file 1\ntotal_inactive_file 40\ntotal_active_file 5\nactive_file 2\n", 145),
        ("active_file 99999\n", 4000),
    ],
)
def test_memory_that_the_kernel_can_reclaim_is_left(statistics: str, left: int) -> None:
    files = {
        **V2,
        "sys/fs/cgroup/a/memory.max": "4000",
        "sys/fs/cgroup/a/memory.current": "3900",
        "sys/fs/cgroup/a/memory.stat": statistics,
    }
    assert memory_left(ArchiveTree({path: content.encode() for path, content in files.items()})) == left


@pytest.mark.parametrize(
    ("point", "name"), [("/dev/cpuset", "dev/cpuset/dummy/cpus"), ("/my\\040groups", "my groups/dummy/cpuset.cpus")]
)
def test_reads_escaped_mount_points(point: str, name: str) -> None:
    got = limits(**{"proc/mounts": f"none {point} cpuset rw 0 0\n", "proc/self/cpuset": "/dummy\n", name: "1"})
    assert got.cpuset_cpus == (1,)


def test_an_invalid_status_is_unknown() -> None:
    assert limits(**{"proc/self/status": "Mems_allowed_list:\tjunk\n"}).cpuset_nodes is None


def test_the_process_status_overrides_the_cpuset_nodes() -> None:
    got = limits(
        **V2, **{"sys/fs/cgroup/cpuset.mems.effective": "0-3", "proc/self/status": "Name:\tx\nMems_allowed_list:\t2\n"}
    )
    assert got.cpuset_nodes == (2,)


@pytest.mark.parametrize("text", ["", "x y", "100", "max", "-5 100000", "100000 0", f"{'9' * 5000} 100000"])
def test_ignores_invalid_quotas(text: str) -> None:
    assert limits(**V2, **{"sys/fs/cgroup/a/b/cpu.max": text}).cpu_quota is None


@pytest.mark.parametrize("damaged", ["cgroup", "cgroup /groups", "cgroup /groups cgroup2"])
def test_a_damaged_line_of_the_old_form_hides_no_mount_after_it(damaged: str) -> None:
    mounts = f"{damaged}\ncgroup2 /groups cgroup2 rw 0 0\n"
    files = {"proc/mounts": mounts, "proc/self/cgroup": "0::/\n", "groups/cpu.max": "150000 100000"}
    assert limits(**files).cpu_quota == 1.5
