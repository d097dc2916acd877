from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology.archive import ArchiveTree
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology
from ompaffinity.topology.snapshot import parse_capture
from ompaffinity.topology.synthetic import parse_synthetic
from ompaffinity.topology.sysfs import read_sysfs
from tests.machines import CPU_ROOT, NODE_ROOT, sysfs_files
from tests.strategies import topologies


def read(files: dict[str, bytes], architecture: str = "x86_64", affinity: tuple[int, ...] | None = None) -> Topology:
    return read_sysfs(ArchiveTree(files), architecture=architecture, machine="drawn", affinity=affinity)


def text_files(**files: str) -> dict[str, bytes]:
    return {f"{CPU_ROOT}/{name.replace('__', '/')}": content.encode() for name, content in files.items()}


def small_machine(**more: str) -> dict[str, bytes]:
    files = {f"{CPU_ROOT}/online": b"0-3\n"}
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu % 2},{cpu % 2 + 2}\n".encode()
    return files | {f"{CPU_ROOT}/{name}": content.encode() for name, content in more.items()}


@given(topologies())
def test_reads_back_a_written_machine(machine: Topology) -> None:
    allowed = tuple(cpu.id for cpu in machine.cpus if cpu.allowed)
    got = read(sysfs_files(machine), machine.architecture, allowed)
    assert got.cpus == machine.cpus
    assert got.nodes == machine.nodes
    assert got.limits.affinity == allowed


@given(st.data())
def test_any_bytes_are_read_or_rejected(data: st.DataObject) -> None:
    files = sysfs_files(data.draw(topologies(max_cores=3)))
    for path in data.draw(st.lists(st.sampled_from(sorted(files)), max_size=6)):
        if data.draw(st.booleans()):
            files[path] = data.draw(st.binary(max_size=20))
        else:
            files.pop(path, None)
    try:
        topology = read(files)
    except TopologyError:
        return
    assert any(cpu.online for cpu in topology.cpus)


def test_ignores_nul_bytes_and_whitespace_around_lists() -> None:
    files = small_machine()
    files[f"{CPU_ROOT}/online"] = b"0-3\n\0"
    files[f"{NODE_ROOT}/node0/cpulist"] = b"0-3\n\0"
    topology = read(files)
    assert [cpu.id for cpu in topology.cpus] == [0, 1, 2, 3]
    assert topology.nodes[0].cpus == (0, 1, 2, 3)


def test_reads_masks_where_lists_are_missing() -> None:
    files = {f"{CPU_ROOT}/cpu{cpu}/topology/thread_siblings": b"00000000,0000000f\n" for cpu in range(4)}
    topology = read(files)
    assert [cpu.physical_core for cpu in topology.cpus] == [0, 0, 0, 0]


def test_reads_the_mask_if_the_list_lacks_its_own_cpu() -> None:
    files = small_machine()
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/cache/index3/level"] = b"3\n"
        files[f"{CPU_ROOT}/cpu{cpu}/cache/index3/shared_cpu_list"] = b"0-1\n"
        files[f"{CPU_ROOT}/cpu{cpu}/cache/index3/shared_cpu_map"] = b"3\n" if cpu < 2 else b"c\n"
    assert [cpu.l3 for cpu in read(files).cpus] == [0, 0, 1, 1]


@pytest.mark.parametrize("without", [0, 3])
def test_a_cpu_without_caches_leaves_the_others_their_own(without: int) -> None:
    files = small_machine()
    for cpu in {0, 1, 2, 3} - {without}:
        files[f"{CPU_ROOT}/cpu{cpu}/cache/index3/level"] = b"3\n"
        files[f"{CPU_ROOT}/cpu{cpu}/cache/index3/shared_cpu_list"] = b"0-3\n"
    caches = {cpu.l3 for cpu in read(files).cpus if cpu.id != without}
    assert caches == {0}


def test_a_cpu_without_a_sibling_list_leaves_the_others_on_their_cores() -> None:
    files = small_machine()
    del files[f"{CPU_ROOT}/cpu0/topology/thread_siblings_list"]
    assert [cpu.physical_core for cpu in read(files).cpus] == [1, 0, 1, 0]


def test_lists_offline_cpus_as_offline() -> None:
    topology = read(small_machine(online="0-1,3", present="0-3", offline="2"))
    assert [(cpu.id, cpu.online, cpu.allowed) for cpu in topology.cpus] == [
        (0, True, True),
        (1, True, True),
        (2, False, False),
        (3, True, True),
    ]
    assert topology.cpu(2).physical_core == UNKNOWN


def test_reads_old_kernels_without_cpu_lists() -> None:
    files = {f"{CPU_ROOT}/cpu{cpu}/topology/physical_package_id": b"0\n" for cpu in (0, 2, 5)}
    files[f"{CPU_ROOT}/cpu5/online"] = b"0\n"
    files[f"{CPU_ROOT}/cpufreq/boost"] = b"1\n"
    assert [(cpu.id, cpu.online) for cpu in read(files).cpus] == [(0, True), (2, True), (5, False)]


def test_groups_packages_by_sibling_lists_where_ids_are_missing() -> None:
    files = small_machine()
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/physical_package_id"] = b"-1\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/core_siblings_list"] = b"0,2\n" if cpu in (0, 2) else b"1,3\n"
    assert [cpu.package for cpu in read(files).cpus] == [0, 1, 0, 1]


def test_a_cpu_without_a_package_leaves_the_others_in_theirs() -> None:
    files = small_machine(**{f"cpu{cpu}/topology/physical_package_id": "0" for cpu in (1, 2, 3)})
    assert [cpu.package for cpu in read(files).cpus] == [UNKNOWN, 0, 0, 0]


def test_ignores_die_ids_that_mean_none() -> None:
    files = small_machine()
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/physical_package_id"] = b"0\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/die_id"] = b"65535\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/die_cpus_list"] = f"{cpu}\n".encode()
    assert {cpu.die for cpu in read(files).cpus} == {UNKNOWN}


def test_reads_books_only_on_s390x() -> None:
    files = small_machine()
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/book_siblings_list"] = b"0-1\n" if cpu < 2 else b"2-3\n"
    assert [cpu.book for cpu in read(files, "s390x").cpus] == [0, 0, 1, 1]
    assert {cpu.book for cpu in read(files, "x86_64").cpus} == {UNKNOWN}


def test_socket_ids_are_unique_within_a_book() -> None:
    files = small_machine()
    for cpu in range(4):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/book_siblings_list"] = b"0-1\n" if cpu < 2 else b"2-3\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/physical_package_id"] = f"{1 + cpu % 2}\n".encode()
        files[f"{CPU_ROOT}/cpu{cpu}/topology/core_siblings_list"] = f"{cpu}\n".encode()
    assert [cpu.package for cpu in read(files, "s390x").cpus] == [0, 1, 2, 3]


def test_reads_clusters_that_only_some_cpus_have() -> None:
    files = small_machine()
    for cpu, cluster in enumerate((-1, 5, 5, 6)):
        files[f"{CPU_ROOT}/cpu{cpu}/topology/physical_package_id"] = b"0\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/core_siblings_list"] = b"0-3\n"
        files[f"{CPU_ROOT}/cpu{cpu}/topology/cluster_id"] = f"{cluster}\n".encode()
        members = "1-2" if cluster == 5 else str(cpu)
        files[f"{CPU_ROOT}/cpu{cpu}/topology/cluster_cpus_list"] = f"{members}\n".encode()
    assert [cpu.cluster for cpu in read(files).cpus] == [UNKNOWN, 0, 0, 1]


def test_reads_distances_beside_a_hidden_node() -> None:
    files = small_machine() | {
        f"{NODE_ROOT}/online": b"0-1\n",
        f"{NODE_ROOT}/possible": b"0-3\n",
        f"{NODE_ROOT}/node1/cpulist": b"0-3\n",
        f"{NODE_ROOT}/node1/distance": b"20 10\n",
    }
    assert read(files).nodes[0].distances == {1: 10}


def test_the_columns_of_a_distance_row_are_the_possible_nodes_where_no_list_of_online_ones_fits() -> None:
    files = small_machine() | {
        f"{NODE_ROOT}/online": b"1\n",
        f"{NODE_ROOT}/possible": b"0-1\n",
        f"{NODE_ROOT}/node1/cpulist": b"0-3\n",
        f"{NODE_ROOT}/node1/distance": b"20 10\n",
    }
    assert read(files).nodes[0].distances == {1: 10}


@pytest.mark.parametrize(
    ("online", "nodes", "row"),
    [
        ("0-2", (0,), "10 20"),  # no list has as many nodes as the row
        ("0-1", (0, 1, 2), "10 20"),  # one node has no distance
        ("0-1", (0, 1), "10 x"),
    ],
)
def test_a_row_without_the_distance_of_each_node_is_unknown(online: str, nodes: tuple[int, ...], row: str) -> None:
    files = small_machine() | {f"{NODE_ROOT}/online": online.encode(), f"{NODE_ROOT}/node0/distance": row.encode()}
    files |= {f"{NODE_ROOT}/node{node}/cpulist": f"{node}\n".encode() for node in nodes}
    assert read(files).nodes[0].distances is None


class CountingTree(ArchiveTree):
    """Counts the files that are asked for and are not there."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.absent: list[str] = []

    def read(self, path: str, most: int = 2**20) -> bytes | None:
        content = super().read(path, most)
        if content is None:
            self.absent.append(path)
        return content


def test_files_that_an_old_kernel_lacks_are_not_asked_for_at_every_cpu() -> None:
    machine = parse_synthetic("package:4 l3:4 core:4 pu:2", "x86_64")
    newer = ("core_cpus", "package_cpus", "die_cpus", "cluster", "book", "drawer")
    written = sysfs_files(machine).items()
    files = {path: text for path, text in written if not path.rpartition("/")[2].startswith(newer)}
    files |= {f"{CPU_ROOT}/cpu{cpu.id}/topology/die_id": b"0\n" for cpu in machine.cpus}
    counting = CountingTree(files)
    topology = read_sysfs(counting, architecture="x86_64", machine="drawn")
    assert len({cpu.die for cpu in topology.cpus}) == 4
    absent = [path for path in counting.absent if "/topology/" in path]
    assert len(absent) < len(machine.cpus) / 2


def test_rejects_a_tree_without_cpus() -> None:
    with pytest.raises(TopologyError, match="no CPU"):
        read({"sys/kernel/x": b""})


@pytest.mark.parametrize(
    ("pmus", "kinds"),
    [
        ({"cpu_core": "0-1", "cpu_atom": "2-3"}, ["performance", "performance", "efficiency", "efficiency"]),
        ({"cpu_core": "0", "cpu_atom": "1-2"}, ["performance", "efficiency", "efficiency", "low-power"]),
        (
            {"cpu_core": "0", "cpu_atom": "1-2", "cpu_lowpower": "3"},
            ["performance", "efficiency", "efficiency", "low-power"],
        ),
        ({"cpu_core": "0-3"}, [None] * 4),
    ],
)
def test_reads_kinds_from_the_pmus_of_hybrids(pmus: dict[str, str], kinds: list[str | None]) -> None:
    files = small_machine() | {f"sys/devices/{name}/cpus": cpus.encode() for name, cpus in pmus.items()}
    assert [cpu.kind for cpu in read(files).cpus] == kinds


@pytest.mark.parametrize(
    ("capacities", "kinds"),
    [
        ((280, 855, 1024, 1024), ["efficiency", "performance", "performance", "performance"]),
        ((718, 731, 997, 1024), ["efficiency", "efficiency", "performance", "performance"]),
        ((1024, 1024, 1024, 1024), [None] * 4),
        ((900, 1000, 1024, 1024), [None] * 4),
        # One class up to a factor of 1.2.
        ((850, 850, 1020, 1020), [None] * 4),
        ((854, 854, 1024, 1024), [None] * 4),
        ((853, 853, 1024, 1024), ["efficiency", "efficiency", "performance", "performance"]),
    ],
)
def test_reads_kinds_from_capacity(capacities: tuple[int, ...], kinds: list[str | None]) -> None:
    files = small_machine(**{f"cpu{cpu}/cpu_capacity": str(value) for cpu, value in enumerate(capacities)})
    assert [cpu.kind for cpu in read(files).cpus] == kinds


def test_ignores_capacities_that_some_cpus_lack() -> None:
    files = small_machine(**{"cpu0/cpu_capacity": "1024", "cpu1/cpu_capacity": "300"})
    assert {cpu.kind for cpu in read(files).cpus} == {None}


@pytest.mark.parametrize(("capacity", "is_known"), [("1", True), ("0", False), ("-1", False), ("x", False)])
def test_ignores_capacities_that_are_no_speed(capacity: str, is_known: bool) -> None:
    files = small_machine(**{f"cpu{cpu}/cpu_capacity": "1024" for cpu in range(3)}, **{"cpu3/cpu_capacity": capacity})
    kinds = [*["performance"] * 3, "efficiency"] if is_known else [None] * 4
    assert [cpu.kind for cpu in read(files).cpus] == kinds


def max_frequencies(*frequencies: int) -> dict[str, str]:
    return {f"cpu{cpu}/cpufreq/cpuinfo_max_freq": str(value) for cpu, value in enumerate(frequencies)}


def test_frequencies_of_one_core_type_make_no_kinds() -> None:
    """Boost ranks and turbo classes: equal cores with different maximal frequencies."""
    files = small_machine(**max_frequencies(5_350_000, 4_000_000, 2_300_000, 5_350_000))
    assert {(cpu.kind, cpu.core_class) for cpu in read(files).cpus} == {(None, UNKNOWN)}


def test_the_speed_of_a_named_core_type_is_a_factor_times_its_frequency() -> None:
    pmus = {"sys/devices/cpu_core/cpus": b"0-1", "sys/devices/cpu_atom/cpus": b"2"}
    plain = read(small_machine() | pmus).cpus
    assert [(cpu.core_class, cpu.speed) for cpu in plain] == [(0, 1.0), (0, 1.0), (1, 0.5), (2, 0.4)]
    timed = read(small_machine(**max_frequencies(5000, 4900, 4000, 2500)) | pmus).cpus
    assert [cpu.speed for cpu in timed] == [5000.0, 4900.0, 2000.0, 1000.0]


# A container whose list of online CPUs is faked (lxcfs).


def faked(listed: str, **more: str) -> dict[str, bytes]:
    files = small_machine(present="0-3", **more) | {f"{CPU_ROOT}/cpu{cpu}/online": b"1\n" for cpu in range(1, 4)}
    return files | {f"{CPU_ROOT}/cpu0/topology/core_id": b"0\n", f"{CPU_ROOT}/online": f"{listed}\n".encode()}


@pytest.mark.parametrize(
    ("listed", "affinity", "allowed", "hidden"),
    [
        ("0", (3,), [3], [1, 2]),
        ("2-3", (2, 3), [2, 3], [0, 1]),
        ("0-1", (0, 1, 2, 3), [0, 1, 2, 3], []),
        ("0-3", (2,), [2], []),
        ("0", None, [0], [1, 2, 3]),
    ],
)
def test_the_mask_counts_and_not_a_faked_list_of_online_cpus(
    listed: str, affinity: tuple[int, ...] | None, allowed: list[int], hidden: list[int]
) -> None:
    topology = read(faked(listed), affinity=affinity)
    assert [cpu.id for cpu in topology.cpus if cpu.allowed] == allowed
    assert [cpu.id for cpu in topology.cpus if cpu.hidden] == hidden
    assert all(cpu.online for cpu in topology.cpus if cpu.allowed)


def test_cpus_that_are_switched_off_are_not_hidden() -> None:
    files = faked("0-1") | {f"{CPU_ROOT}/cpu2/online": b"0\n", f"{CPU_ROOT}/cpu3/online": b"0\n"}
    topology = read(files, affinity=(0, 1))
    assert [cpu.online for cpu in topology.cpus] == [True, True, False, False]
    assert not any(cpu.hidden for cpu in topology.cpus)


def test_the_mask_in_a_recorded_status_counts() -> None:
    files = small_machine() | {"proc/self/status": b"Name:\tcat\nCpus_allowed_list:\t1-2\nMems_allowed_list:\t0\n"}
    topology = read(files)
    assert topology.allowed_cpus == (1, 2)
    assert (topology.limits.affinity, topology.limits.cpuset_nodes) == ((1, 2), (0,))


def test_a_recorded_mask_may_have_cpus_that_are_off() -> None:
    """The kernel shows all possible CPUs in the status of a process without a mask of its own."""
    files = small_machine(present="0-7") | {"proc/self/status": b"Cpus_allowed_list:\t0-7\n"}
    topology = read(files)
    assert topology.allowed_cpus == (0, 1, 2, 3)
    assert not any(cpu.hidden for cpu in topology.cpus)


def test_reads_nodes_of_any_number() -> None:
    files = small_machine()
    files |= {
        f"{NODE_ROOT}/possible": b"0-255\n",
        f"{NODE_ROOT}/has_memory": b"0,8,250\n",
        f"{NODE_ROOT}/node0/cpulist": b"0-1,77\n",
        f"{NODE_ROOT}/node0/meminfo": b"Node 0 MemTotal: 100 kB\nNode 0 MemFree: 40 kB\nNode 0 Active(file): 8 kB\n",
        f"{NODE_ROOT}/node0/distance": b"10 40 80\n",
        f"{NODE_ROOT}/node8/cpulist": b"2-3\n",
        f"{NODE_ROOT}/node8/meminfo": b"Node 8 MemTotal: 0 kB\n",
        f"{NODE_ROOT}/node8/distance": b"40 10 80\n",
        f"{NODE_ROOT}/node250/cpulist": b"\n",
        f"{NODE_ROOT}/node250/distance": b"80 80\n",
    }
    zero, eight, far = read(files).nodes
    assert (zero.id, zero.cpus, zero.total_memory, zero.available_memory) == (0, (0, 1), 102400, 49152)
    assert zero.distances == {0: 10, 8: 40, 250: 80}
    assert (eight.id, eight.has_memory, eight.total_memory) == (8, False, 0)
    assert (far.id, far.cpus, far.has_memory, far.total_memory) == (250, (), True, UNKNOWN)
    assert far.distances is None, "a row whose columns cannot be told is no row"


def test_available_memory_is_free_memory_page_cache_and_reclaimable_slabs() -> None:
    sizes = {
        "MemTotal": 1000, "MemFree": 1, "Active(file)": 2, "Inactive(file)": 4, "SReclaimable": 8,
        "MemUsed": 16, "Active(anon)": 32, "Inactive(anon)": 64, "Slab": 128, "SUnreclaim": 256, "Active": 512,
    }  # fmt: skip
    text = "".join(f"Node 0 {name}: {size} kB\n" for name, size in sizes.items())
    files = small_machine() | {f"{NODE_ROOT}/node0/cpulist": b"0-3\n", f"{NODE_ROOT}/node0/meminfo": text.encode()}
    assert read(files).nodes[0].available_memory == 15 * 1024


@pytest.mark.parametrize(("size", "caches"), [("17179869184", [0, 0, 1, 1]), ("0", [UNKNOWN] * 4)])
def test_the_memory_of_a_xeon_phi_may_be_the_cache_of_each_node(size: str, caches: list[int]) -> None:
    report = f"version: 2\ncache_size: {size}\nassociativity: 1\n"
    files = small_machine() | {"var/run/hwloc/knl_memoryside_cache": report.encode()}
    files |= {f"{NODE_ROOT}/node0/cpulist": b"0-1\n", f"{NODE_ROOT}/node1/cpulist": b"2-3\n"}
    assert [cpu.l3 for cpu in read(files).cpus] == caches


@pytest.mark.parametrize(("nodes", "weights"), [((0,), [UNKNOWN]), ((0, 1), [3, UNKNOWN])])
def test_weights_are_read_where_pages_can_be_interleaved(nodes: tuple[int, ...], weights: list[int]) -> None:
    files = small_machine() | {f"{NODE_ROOT}/node{node}/cpulist": f"{node}\n".encode() for node in nodes}
    files["sys/kernel/mm/mempolicy/weighted_interleave/node0"] = b"3\n"
    assert [node.interleave_weight for node in read(files).nodes] == weights


def test_only_a_machine_without_nodes_has_a_total_of_its_own() -> None:
    files = small_machine() | {"proc/meminfo": b"MemTotal:  100 kB\nMemFree:  50 kB\n"}
    assert read(files).total_memory == 102_400
    assert read(files | {f"{NODE_ROOT}/node0/cpulist": b"0-3\n"}).total_memory == UNKNOWN


def test_gpu_memory_is_a_node_without_cpus_that_the_driver_names() -> None:
    files = small_machine() | {f"{NODE_ROOT}/node{node}/cpulist": b"\n" for node in (1, 2)}
    files |= {
        f"{NODE_ROOT}/node0/cpulist": b"0-3\n",
        "proc/driver/nvidia/gpus/0004:04:00.0/numa_status": b"Node:      0\n",
        "proc/driver/nvidia/gpus/0004:05:00.0/numa_status": b"Node:      2\nStatus:    online\nSize:      1\n",
    }
    assert [node.device_memory for node in read(files).nodes] == [False, False, True]


def test_reads_more_than_64_nodes() -> None:
    machine = parse_synthetic("numa:72 core:1 pu:2", "x86_64")
    row = " ".join("10" if node == 71 else "21" for node in range(72))
    files = sysfs_files(machine) | {f"{NODE_ROOT}/node71/distance": row.encode()}
    got = read(files)
    assert [node.cpus for node in got.nodes] == [(2 * node, 2 * node + 1) for node in range(72)]
    assert got.distance(71, 0) == 21


def test_a_cpu_of_several_nodes_belongs_to_the_lowest_and_is_listed_by_all() -> None:
    """As lscpu shows the nodes of ``numa=fake``."""
    files = small_machine()
    files |= {f"{NODE_ROOT}/node{node}/cpulist": b"0-3\n" for node in (1, 4)}
    topology = read(files)
    assert {cpu.numa_node for cpu in topology.cpus} == {1}
    assert [node.cpus for node in topology.nodes] == [(0, 1, 2, 3), (0, 1, 2, 3)]
    assert [topology.home_node(node) for node in (1, 4)] == [1, 1]


def test_ignores_numbers_out_of_range() -> None:
    files = {f"{CPU_ROOT}/cpu{'9' * 5000}/online": b"1\n", f"{CPU_ROOT}/cpu2/online": b"1\n"}
    assert [cpu.id for cpu in read(files).cpus] == [2]
    bomb = small_machine(online="0-65535," * 5000)
    with pytest.raises(TopologyError):
        read({path: content for path, content in bomb.items() if path.endswith("/online")})
    files = small_machine() | {f"{NODE_ROOT}/node0/meminfo": f"Node 0 MemTotal: {'9' * 5000} kB\n".encode()}
    assert read(files).nodes[0].total_memory == UNKNOWN


def test_cpu_raises_key_error_for_an_absent_cpu() -> None:
    with pytest.raises(KeyError):
        read(small_machine()).cpu(99)
    assert isinstance(read(small_machine()).cpu(3), LogicalCPUInfo)


def test_rejects_sibling_lists_that_name_too_many_cpus() -> None:
    """Each list leaves its own CPU out, so that it is read for every CPU."""
    files = {f"{CPU_ROOT}/online": b"0-999\n"}
    files |= {f"{CPU_ROOT}/cpu{cpu}/topology/thread_siblings_list": b"1000-65535\n" for cpu in range(1000)}
    with pytest.raises(TopologyError, match="contradict"):
        read(files)


def test_rejects_nodes_that_list_too_many_cpus() -> None:
    files = small_machine() | {f"{NODE_ROOT}/node{node}/cpulist": b"0-65535\n" for node in range(100)}
    with pytest.raises(TopologyError, match="contradict"):
        read(files)


def test_rejects_more_nodes_than_linux_has() -> None:
    files = small_machine() | {f"{NODE_ROOT}/node{node}/cpulist": b"\n" for node in range(1025)}
    with pytest.raises(TopologyError, match="1025 NUMA nodes"):
        read(files)


@pytest.mark.parametrize(("text", "size"), [("8192K", 8 * 2**20), ("", UNKNOWN), ("8M", UNKNOWN), ("-1K", UNKNOWN)])
def test_reads_the_size_of_each_l3(text: str, size: int) -> None:
    files = sysfs_files(parse_synthetic("package:1 l3:2 core:2 pu:1", "x86_64"))
    for path in [path for path in files if path.endswith("index3/level")]:
        files[path.replace("level", "size")] = f"{text}\n".encode()
    topology = read(files)
    assert topology.l3_bytes == (size, size)
    assert parse_capture(topology.to_document()).l3_bytes == topology.l3_bytes
