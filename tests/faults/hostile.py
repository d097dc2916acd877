"""Hostile input for every door: archives, documents, lists, launcher variables, plan files. Each case is made here."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from typing import TYPE_CHECKING

from tests.faults.child import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
REFUSED, READ_OR_REFUSED = (2,), (0, 2)


def _member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """Return one member of a tar file, header and content, in the format of GNU tar."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, len(content)
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def _small_machine(cpus: int) -> dict[str, bytes]:
    """Return the sysfs files of a machine with one core per CPU."""
    files = {f"{CPU}/{name}": f"0-{cpus - 1}\n".encode() for name in ("online", "present", "possible")}
    for cpu in range(cpus):
        files[f"{CPU}/cpu{cpu}/topology/core_id"] = f"{cpu}\n".encode()
        files[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = b"0\n"
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu}\n".encode()
    return files


def _tar(files: dict[str, bytes]) -> bytes:
    return b"".join(_member(name, content) for name, content in files.items()) + bytes(1024)


def _quadratic(name: str) -> bytes:
    """Return a tar file in which each of 4,096 CPUs has a long list of its own in one file."""
    files = _small_machine(4096)
    for cpu in range(4096):
        files[f"{CPU}/cpu{cpu}/{name}"] = ",".join(str(other) for other in range(cpu % 2, 4096, 2)).encode()
    return _tar(files)


def _nodes_with_long_lists() -> bytes:
    files = _small_machine(4096) | {f"{NODE}/online": b"0-1023\n"}
    for node in range(1024):
        files[f"{NODE}/node{node}/cpulist"] = ",".join(str(cpu) for cpu in range(node % 2, 4096, 2)).encode()
        files[f"{NODE}/node{node}/distance"] = (b"10 " * 1024) + b"\n"
    return _tar(files)


def _pax(megabytes: int) -> bytes:
    """Return a tar file with pax headers of so much text."""
    text = "x" * (megabytes * 2**20)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("sys/a")
        member.pax_headers = {"comment": text}
        archive.addfile(member)
    return out.getvalue()


def _archives() -> dict[str, Callable[[], bytes]]:
    small = _small_machine(4)
    return {
        "many-members": lambda: b"".join(_member(f"sys/{number}") for number in range(300_000)) + bytes(1024),
        "many-folders": lambda: (
            b"".join(_member(f"sys/{number}", kind=tarfile.DIRTYPE) for number in range(300_000)) + bytes(1024)
        ),
        "many-links": lambda: (
            b"".join(_member(f"sys/{n}", kind=tarfile.SYMTYPE, target=f"{n + 1}") for n in range(100_000)) + bytes(1024)
        ),
        "long-link-names": lambda: (
            b"".join(_member("././@LongLink", b"y" * 1_000_000, b"L") + _member(f"sys/{n}") for n in range(60))
            + bytes(1024)
        ),
        "pax-60-megabytes": lambda: _pax(60),
        "deep-path": lambda: _tar({"sys/" + "d/" * 5000 + "file": b"1"}),
        "link-circle": lambda: (
            _tar(small)[:-1024]
            + _member(f"{CPU}/cpu4", kind=tarfile.SYMTYPE, target="cpu5")
            + _member(f"{CPU}/cpu5", kind=tarfile.SYMTYPE, target="cpu4")
            + bytes(1024)
        ),
        "link-out": lambda: (
            _tar({**small})[:-1024] + _member(NODE, kind=tarfile.SYMTYPE, target="/etc") + bytes(1024)
        ),
        "zeros-1-gigabyte": lambda: bytes(2**30),
        "file-1-gigabyte": lambda: _member("sys/big", bytes(2**30)) + bytes(1024),
        "long-l3-lists": lambda: _quadratic("cache/index3/shared_cpu_list"),
        "long-sibling-lists": lambda: _quadratic("topology/thread_siblings_list"),
        "long-package-lists": lambda: _quadratic("topology/package_cpus_list"),
        "nodes-with-long-lists": _nodes_with_long_lists,
        "cpus-65536": lambda: _tar(_small_machine(65536)),
        "cpu-4000000000": lambda: _tar(small | {f"{CPU}/online": b"0-4000000000\n", f"{CPU}/present": b"0-4000000000"}),
        "numbers-of-a-million-digits": lambda: _tar(small | {f"{CPU}/cpu0/topology/core_id": b"9" * 10**6}),
        "no-files": lambda: bytes(10240),
        "cut": lambda: _tar(small)[:3000],
        "negative-size": lambda: _tar(small).replace(b"00000000002\0", b"-0000000002\0"),
    }


def _compressed(content: bytes) -> Iterator[tuple[str, bytes]]:
    yield "tar.gz", gzip.compress(content, 1)
    if len(content) >= 2**30:
        yield "tar.bz2", bz2.compress(content, 1)
        yield "tar.xz", lzma.compress(content, preset=0)


def _documents() -> dict[str, Callable[[], bytes]]:
    capture = {"schema": "ompaffinity.topology/1", "architecture": "x86_64", "cpus": [], "nodes": [], "limits": {}}
    entity = b"".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">'.encode() for n in range(12))
    return {
        "deep.json": lambda: b"[" * 10**6,
        "deep-objects.json": lambda: b'{"a":' * 10**6,
        "many-values.json": lambda: b"[" + b"0," * (8 * 10**6) + b"0]",
        "many-objects.json": lambda: b"[" + b"{}," * (5 * 10**6) + b"{}]",
        "long-number.json": lambda: b'{"schema": "ompaffinity.topology/1", "cpus": ' + b"9" * 10**7 + b"}",
        "long-text.json": lambda: b'{"schema": "' + b"\xc3\xa9" * 10**7 + b'"}',
        "empty.json": lambda: json.dumps(capture).encode(),
        "wrong-kinds.json": lambda: json.dumps(capture | {"cpus": {"0": []}, "nodes": 1, "limits": "x"}).encode(),
        "escape-label.json": lambda: json.dumps(capture | {"machine": "\x1b]0;owned\x07"}).encode(),
        "surrogate.json": lambda: b'{"schema": "\\ud800"}',
        "not-utf-8.json": lambda: b'{"schema": "\xff\xfe"}',
        "nul.json": lambda: b"{\0}",
        "entities.xml": lambda: b'<?xml version="1.0"?><!DOCTYPE t [<!ENTITY e0 "x">'
        + entity
        + b"]><topology>&e12;</topology>",
        "deep.xml": lambda: b"<topology>" + b"<object>" * 10**6,
        "attributes.xml": lambda: b"<topology " + b" ".join(b'a%d="1"' % n for n in range(10**6)) + b"/>",
        "many-objects.xml": lambda: b"<topology>" + b'<object type="PU" os_index="1"/>' * 10**6 + b"</topology>",
        "long-attribute.xml": lambda: b'<topology><object type="' + b"x" * (30 * 10**6) + b'"/></topology>',
        "lscpu.txt": lambda: b"# CPU,Core,Socket,Node\n" + b"".join(b"%d,0,0,0\n" % n for n in range(10**6)),
        "nothing.txt": lambda: b"",
        "one-line.txt": lambda: b"a" * (60 * 10**6),
        "zeros.bin": lambda: bytes(10**6),
    }


def as_list(make: Callable[[Path], Iterator[Case]], folder: Path) -> list[Case]:
    """Return the cases of a function, for a call in another process."""
    return list(make(folder))


def machine_files(folder: Path) -> Iterator[Case]:
    """Yield a plan for each hostile record of a machine; most are refused, some may be read."""
    for name, make in _archives().items():
        for ending, content in _compressed(make()):
            path = folder / f"{name}.{ending}"
            path.write_bytes(content)
            yield Case(f"machine {path.name}", ("plan", "--machine", str(path)), statuses=READ_OR_REFUSED)
    yield from document_files(folder)
    yield Case("machine /dev/zero", ("plan", "--machine", "/dev/zero"))
    yield Case("machine folder of links", ("plan", "--machine", str(_folder_of_links(folder))))


def document_files(folder: Path) -> Iterator[Case]:
    """Yield a plan for each hostile capture, export or output."""
    for name, make in _documents().items():
        path = folder / name
        path.write_bytes(make())
        yield Case(f"machine {name}", ("plan", "--machine", str(path)), statuses=READ_OR_REFUSED)


def _folder_of_links(folder: Path) -> Path:
    place = folder / "links" / CPU
    place.mkdir(parents=True)
    (place / "online").symlink_to("/dev/zero")
    (place / "present").symlink_to("online")
    os.mkfifo(place / "possible")
    return folder / "links"


def plan_files(folder: Path) -> Iterator[Case]:
    """Yield commands that read a hostile plan file."""
    documents = {
        "deep": b"[" * 10**6,
        "large": b'{"schema": "ompaffinity.plan/1", "ranks": [' + b"{}," * (5 * 10**6) + b"{}]}",
        "over-the-limit": b" " * (17 * 2**20),
        "no-ranks": b'{"schema": "ompaffinity.plan/1"}',
        "wide-ids": b'{"schema": "ompaffinity.plan/1", "ranks": [{"rank": 0, "cpus": ['
        + b"1," * (4 * 10**6)
        + b"1]}]}",
        "range": b'{"schema": "ompaffinity.plan/1", "ranks": [{"rank": 0, "affinity": "0-4000000000"}]}',
    }
    for name, content in documents.items():
        path = folder / f"plan-{name}.json"
        path.write_bytes(content)
        for verb in (("plan", "--avoid"), ("verify", "--pid", "1", "--plan")):
            yield Case(f"{verb[-1]} {name}", (*verb, str(path)))
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    for source in (str(pipe), "/dev/zero", str(folder), str(folder / "absent"), "/proc/self/mem"):
        yield Case(f"--avoid {os.path.basename(source)}", ("plan", "--avoid", source))


def words() -> Iterator[Case]:
    """Yield command lines with values that no machine has."""
    huge = "9" * 5000
    for option in ("--tp", "--pp", "--dp", "--reserve", "--reserve-per-rank", "--threads-per-core", "--rank"):
        for value in ("1000000000", huge, "-1", "1e9", "", "\x1b[31m", "٣"):
            yield Case(f"{option} {value[:12]!r}", ("plan", option, value))
    for option in ("--cpus", "--nodes", "--bind", "--gpus", "--numa-bind-nodes", "--numa-bind-cpus"):
        for value in ("0-4000000000", huge, "0-" * 10**4, "," * 10**5, "0-10:0", "\x1b[31m", "3-1", "0|" * 10**4):
            yield Case(f"{option} {value[:12]!r}", ("plan", option, value))
    for text in (
        "core:1000000000",
        "pu:" + huge,
        "core:2 " * 1000,
        "numa:1000 core:1000 pu:1000",
        "package:-1",
        "\x1b",
    ):
        yield Case(f"--synthetic {text[:20]!r}", ("plan", "--synthetic", text))
    for text in ("pu:1(indexes=" + "1," * 50_000 + "1)", "[numa]" * 10**4 + " pu:1"):
        yield Case(f"--synthetic {text[:20]!r}", ("plan", "--synthetic", text))
    for pid in ("0", "-1", "4194305", huge, "self", "1/../2"):
        yield Case(f"--pid {pid[:12]}", ("inspect", "--pid", pid, "--seconds", "1"), statuses=(2, 3))


def launcher_variables() -> Iterator[Case]:
    """Yield `exec` under launchers that claim what no machine can run."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"}
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    openmpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    values = ("999999999", "9" * 5000, "-1", "x", "1.5", "\x1b[31m", "٣")
    for base, names in (
        (torchrun, ("LOCAL_WORLD_SIZE", "LOCAL_RANK")),
        (openmpi | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")),
    ):
        for name in names:
            for value in values:
                # Programs set LOCAL_RANK=-1 for "not distributed".
                statuses = READ_OR_REFUSED if value == "-1" else REFUSED
                yield Case(f"{name}={value[:12]!r}", ("exec", "--", "true"), {**base, name: value}, (), statuses)
    for value in ("99999999(x16777216)", "1(x999999999)", "(" * 10**4, "1," * 10**4, "999999999", "x"):
        variables = {**slurm, "SLURM_STEP_TASKS_PER_NODE": value}
        yield Case(f"SLURM_STEP_TASKS_PER_NODE={value[:20]}", ("exec", "--", "true"), variables, statuses=(0, 2))
    for name, value in (("OMPAFFINITY_BIND", "0-4000000000"), ("OMPAFFINITY_RESERVED_CPUS", "9" * 5000)):
        yield Case(f"{name}={value[:12]}", ("plan",), {name: value})
    yield Case("OMPAFFINITY_OPTIONS unclosed quote", ("plan",), {"OMPAFFINITY_OPTIONS": "--tp '1"})
    yield Case("OMPAFFINITY_OPTIONS unknown", ("plan",), {"OMPAFFINITY_OPTIONS": "--no-such-option"})
