"""Every guest, in one place: what QEMU is started with, and so what must be read inside.

A guest is an emulated machine (no KVM) that boots Debian's own kernel into memory. What an architecture needs of QEMU
and of Debian is in `ARCHITECTURES`, the machines are in `GUESTS`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

OLD_QEMU = (7, 0)
SMT_QEMU = (8, 1)
"""The first QEMU that emulates more than one thread per core on POWER."""


@dataclass(frozen=True)
class Architecture:
    """What an emulated machine of one Debian architecture is made of."""

    machine: str
    kernel_package: str
    kernel_image: str
    qemu: str
    qemu_package: str
    board: str
    cpu: str
    console: str
    packages: tuple[str, ...] = ()


ARCHITECTURES = {
    "amd64": Architecture(
        machine="x86_64",
        kernel_package="linux-image-cloud-amd64",
        kernel_image="vmlinuz",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        board="q35",
        # With an AMD CPU the emulation shows the kernel one thread per core.
        cpu="max,vendor=GenuineIntel",
        console="ttyS0",
        packages=("libomp5-14",),
    ),
    "arm64": Architecture(
        machine="aarch64",
        kernel_package="linux-image-cloud-arm64",
        kernel_image="vmlinuz",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        board="virt,gic-version=3",
        cpu="cortex-a57",
        console="ttyAMA0",
        packages=("libomp5-14",),
    ),
    "ppc64el": Architecture(
        machine="ppc64le",
        kernel_package="linux-image-powerpc64le",
        kernel_image="vmlinux",
        qemu="qemu-system-ppc64",
        qemu_package="qemu-system-ppc",
        # x-vof starts the kernel without the slow firmware.
        board="pseries,x-vof=on",
        cpu="power9",
        console="hvc0",
        packages=("libomp5-14", "librtas2", "powerpc-ibm-utils"),
    ),
    "s390x": Architecture(
        machine="s390x",
        kernel_package="linux-image-s390x",
        kernel_image="vmlinuz",
        qemu="qemu-system-s390x",
        qemu_package="qemu-system-misc",
        board="s390-ccw-virtio",
        cpu="max",
        console="ttysclp0",
    ),
}


@dataclass(frozen=True)
class Node:
    """A NUMA node: its CPUs (a Linux id list, empty: none) and its memory in MiB (0: none)."""

    cpus: str
    mebibytes: int


@dataclass(frozen=True)
class Guest:
    """One machine: CPUs are numbered by thread, core and package, as QEMU does; `tests` are files in ``inside/``.

    `devices` are what QEMU's ``-device`` takes. `newer_kernel`: the kernel is that of Debian's backports. `cpu_flags`
    change the emulated CPU of the architecture.
    """

    name: str
    architecture: str
    packages: int
    cores: int
    threads: int
    tests: tuple[str, ...]
    nodes: dict[int, Node] = field(default_factory=dict)
    distances: tuple[tuple[int, ...], ...] = ()
    mebibytes: int = 0
    minimal_qemu: tuple[int, int] = OLD_QEMU
    setup: str = ""
    seconds: int = 1200
    devices: tuple[str, ...] = ()
    newer_kernel: bool = False
    cpu_flags: str = ""
    in_ci: bool = True

    @property
    def cpus(self) -> int:
        """The number of logical CPUs."""
        return self.packages * self.cores * self.threads

    @property
    def libraries(self) -> dict[str, str]:
        """The OpenMP runtimes inside: {file: family}."""
        found = {"libgomp.so.1": "gomp"}
        if "libomp5-14" in ARCHITECTURES[self.architecture].packages:
            found["libomp.so.5"] = "iomp"
        return found

    def qemu_arguments(self) -> list[str]:
        """Return QEMU's arguments for the CPUs, the nodes and their distances."""
        shape = f"{self.cpus}"
        if self.cores > 1 or self.threads > 1:
            shape += f",sockets={self.packages},cores={self.cores},threads={self.threads}"
        memory = self.mebibytes or sum(node.mebibytes for node in self.nodes.values())
        arguments = ["-smp", shape, "-m", str(memory)]
        # QEMU wants its nodes numbered without gaps; on POWER the empty ones stay offline.
        for number in range(max(self.nodes, default=-1) + 1):
            node = self.nodes.get(number, Node("", 0))
            words = [f"node,nodeid={number}"]
            if node.cpus:
                words += [f"cpus={part}" for part in node.cpus.split(",")]
            if node.mebibytes:
                arguments += ["-object", f"memory-backend-ram,id=memory{number},size={node.mebibytes}M"]
                words.append(f"memdev=memory{number}")
            arguments += ["-numa", ",".join(words)]
        for source, row in enumerate(self.distances):
            for target, distance in enumerate(row):
                if source != target:
                    arguments += ["-numa", f"dist,src={source},dst={target},val={distance}"]
        for device in self.devices:
            arguments += ["-device", device]
        return arguments

    def description(self) -> dict[str, object]:
        """Return what the tests inside need, ready for JSON."""
        return asdict(self) | {
            "cpus": self.cpus,
            "libraries": self.libraries,
            "machine": ARCHITECTURES[self.architecture].machine,
        }


UNEVEN = ((10, 12, 20, 22), (12, 10, 22, 24), (20, 22, 10, 12), (22, 24, 12, 10))
FOUR_NODES = {0: Node("0-3", 384), 1: Node("4-7", 384), 2: Node("8-11", 384), 3: Node("12-15", 384)}
READS = ("detection", "placement")

GUESTS = {
    guest.name: guest
    for guest in (
        Guest(
            "x86-four-nodes",
            "amd64",
            2,
            4,
            2,
            nodes=FOUR_NODES,
            distances=UNEVEN,
            tests=(*READS, "proof", "memory", "watch", "migration", "span"),
        ),
        # Node 2 has CPUs and no memory, node 3 memory and no CPUs.
        Guest(
            "x86-holes",
            "amd64",
            packages=2,
            cores=2,
            threads=2,
            nodes={0: Node("0-3", 512), 1: Node("4-5", 256), 2: Node("6-7", 0), 3: Node("", 256)},
            tests=(*READS, "proof", "memory", "limits", "smt", "launch", "span"),
        ),
        Guest(
            "x86-72-nodes",
            "amd64",
            packages=2,
            cores=2,
            threads=1,
            nodes={0: Node("0-1", 512), 1: Node("2-3", 512)}
            | {node: Node("", 96 if node in (63, 64, 65, 71) else 32) for node in range(2, 72)},
            tests=(*READS, "memory"),
        ),
        Guest(
            "x86-64-cpus",
            "amd64",
            packages=2,
            cores=16,
            threads=2,
            nodes={0: Node("0-31", 768), 1: Node("32-63", 768)},
            tests=(*READS, "many_cpus"),
        ),
        # Displays on the root bus (whose node is unknown), behind a bridge on node 0, and two behind one on node 1.
        Guest(
            "x86-gpus",
            "amd64",
            packages=2,
            cores=4,
            threads=1,
            nodes={0: Node("0-3", 512), 1: Node("4-7", 512)},
            devices=(
                "bochs-display,bus=pcie.0,addr=0x10",
                "pxb-pcie,id=bridge0,bus=pcie.0,bus_nr=0x20,numa_node=0",
                "pcie-root-port,id=port0,bus=bridge0,chassis=1,slot=1",
                "bochs-display,bus=port0",
                "pxb-pcie,id=bridge1,bus=pcie.0,bus_nr=0x40,numa_node=1",
                "pcie-root-port,id=port1,bus=bridge1,chassis=2,slot=2",
                "bochs-display,bus=port1",
                "pcie-root-port,id=port2,bus=bridge1,chassis=3,slot=3",
                "bochs-display,bus=port2",
            ),
            tests=("gpus",),
        ),
        # Weighted interleave came with Linux 6.9. QEMU 7.2 emulates cmpxchg16b wrongly, which newer x86 kernels use.
        *(
            Guest(
                name,
                architecture,
                packages=1,
                cores=4,
                threads=1,
                nodes={0: Node("0-1", 768), 1: Node("2-3", 768)},
                tests=("weights",),
                setup="python3 -m tests.guests.inside.weights",
                newer_kernel=True,
                minimal_qemu=minimal_qemu,
                cpu_flags=flags,
            )
            for name, architecture, minimal_qemu, flags in (
                ("x86-weights", "amd64", OLD_QEMU, ",-cx16"),
                ("arm-weights", "arm64", OLD_QEMU, ""),
                ("power-weights", "ppc64el", SMT_QEMU, ""),
            )
        ),
        Guest(
            "arm-four-nodes",
            "arm64",
            2,
            8,
            1,
            nodes=FOUR_NODES,
            distances=UNEVEN,
            tests=(*READS, "proof", "span"),
        ),
        Guest(
            "arm-smt2",
            "arm64",
            packages=2,
            cores=2,
            threads=2,
            nodes={0: Node("0-3", 512), 1: Node("4-7", 512)},
            tests=(*READS, "limits", "smt", "launch"),
        ),
        Guest(
            "power-smt8",
            "ppc64el",
            packages=2,
            cores=2,
            threads=8,
            nodes={0: Node("0-15", 768), 1: Node("16-31", 768)},
            tests=(*READS, "proof", "smt", "smt_modes"),
            minimal_qemu=SMT_QEMU,
        ),
        # Only the nodes 0, 8 and 70 come online.
        Guest(
            "power-sparse-nodes",
            "ppc64el",
            packages=3,
            cores=2,
            threads=4,
            nodes={0: Node("0-7", 768), 8: Node("8-15", 512), 70: Node("16-23", 512)},
            tests=(*READS, "memory", "launch", "span"),
            minimal_qemu=SMT_QEMU,
        ),
        Guest(
            "arm-memory",
            "arm64",
            packages=2,
            cores=2,
            threads=1,
            nodes={0: Node("0-1", 384), 1: Node("2-3", 384)},
            tests=("memory", "watch", "migration"),
            in_ci=False,
        ),
        Guest(
            "power-watch",
            "ppc64el",
            packages=2,
            cores=1,
            threads=2,
            nodes={0: Node("0-1", 768), 1: Node("2-3", 768)},
            tests=("span", "watch", "migration"),
            minimal_qemu=SMT_QEMU,
            in_ci=False,
        ),
        Guest(
            "s390x-watch",
            "s390x",
            packages=4,
            cores=1,
            threads=1,
            mebibytes=1024,
            tests=("watch",),
        ),
        # Emulation has no drawers and books; what is mounted over sysfs has.
        Guest(
            "s390x-drawers",
            "s390x",
            packages=8,
            cores=1,
            threads=1,
            mebibytes=1024,
            tests=("drawers", "launch"),
            setup="python3 -m tests.guests.inside.drawers",
        ),
    )
}
