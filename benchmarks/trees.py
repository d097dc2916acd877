"""Synthetic machines written as sysfs trees, as large as machines get."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CORES_PER_L3 = 8
CORES_PER_PACKAGE = 64


NEWER = ("die_cpus_list", "cluster_id", "core_cpus_list", "core_cpus", "package_cpus_list", "package_cpus")
"""Files that Linux 5.2 does not have."""


def write_tree(folder: Path, cpus: int, threads: int, *, old_kernel: bool = False) -> Path:
    """Write a machine of `cpus` CPUs, `threads` per core, as the kernel shows it; siblings are numbered as on x86.

    An `old_kernel` lacks the files `NEWER`.
    """
    cores = cpus // threads
    per_package = min(CORES_PER_PACKAGE, cores)
    root = folder / "sys" / "devices" / "system"
    cpu_root = root / "cpu"
    for cpu in range(cpus):
        core = cpu % cores
        first = core // CORES_PER_L3 * CORES_PER_L3
        package = core // per_package
        core_list = ",".join(str(core + thread * cores) for thread in range(threads))
        l3_list = _spans(first, CORES_PER_L3, cores, threads)
        package_list = _spans(package * per_package, per_package, cores, threads)
        topology = cpu_root / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        for name, text in {
            "core_id": str(core % per_package),
            "physical_package_id": str(package),
            "die_id": "0",
            "cluster_id": "65535",
            "core_cpus_list": core_list,
            "thread_siblings_list": core_list,
            "package_cpus_list": package_list,
            "core_siblings_list": package_list,
            "die_cpus_list": package_list,
            "core_cpus": _mask(core_list, cpus),
            "thread_siblings": _mask(core_list, cpus),
            "package_cpus": _mask(package_list, cpus),
            "core_siblings": _mask(package_list, cpus),
        }.items():
            if not (old_kernel and name in NEWER):
                (topology / name).write_text(text + "\n")
        for index, (level, kind, shared) in enumerate(
            ((1, "Data", core_list), (1, "Instruction", core_list), (2, "Unified", core_list), (3, "Unified", l3_list))
        ):
            cache = cpu_root / f"cpu{cpu}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            for name, text in {
                "level": str(level),
                "type": kind,
                "shared_cpu_list": shared,
                "shared_cpu_map": _mask(shared, cpus),
                "size": "32K",
                "coherency_line_size": "64",
                "number_of_sets": "64",
                "ways_of_associativity": "8",
                "physical_line_partition": "1",
            }.items():
                (cache / name).write_text(text + "\n")
        if cpu:
            (cpu_root / f"cpu{cpu}" / "online").write_text("1\n")
    for name in ("online", "present", "possible"):
        (cpu_root / name).write_text(f"0-{cpus - 1}\n")
    (cpu_root / "kernel_max").write_text("8191\n")
    _write_nodes(root / "node", cores // per_package, per_package, cores, threads)
    process = folder / "proc"
    process.mkdir()
    blocks = [
        f"processor\t: {cpu}\nvendor_id\t: AuthenticAMD\nmodel name\t: synthetic\nflags\t\t: fpu lm\n"
        for cpu in range(cpus)
    ]
    (process / "cpuinfo").write_text("\n".join(blocks))
    return folder


def _write_nodes(root: Path, count: int, per_package: int, cores: int, threads: int) -> None:
    for node in range(count):
        cpulist = _spans(node * per_package, per_package, cores, threads)
        folder = root / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpulist + "\n")
        (folder / "cpumap").write_text(_mask(cpulist, cores * threads) + "\n")
        (folder / "distance").write_text(" ".join("10" if node == other else "20" for other in range(count)) + "\n")
        (folder / "meminfo").write_text(
            f"Node {node} MemTotal:       268435456 kB\nNode {node} MemFree:        200000000 kB\n"
            f"Node {node} Active(file):     1000000 kB\nNode {node} Inactive(file):   1000000 kB\n"
        )
    for name in ("online", "possible", "has_cpu", "has_memory"):
        (root / name).write_text(f"0-{count - 1}\n" if count > 1 else "0\n")


def _spans(first: int, count: int, stride: int, threads: int) -> str:
    last = first + count - 1
    return ",".join(f"{first + thread * stride}-{last + thread * stride}" for thread in range(threads))


def _mask(ids: str, cpus: int) -> str:
    bits = 0
    for part in ids.split(","):
        first, _, last = part.partition("-")
        bits |= ((1 << (int(last or first) - int(first) + 1)) - 1) << int(first)
    words = -(-cpus // 32)
    digits = f"{bits:x}".rjust(8 * words, "0")
    return ",".join(digits[start : start + 8] for start in range(0, len(digits), 8))
