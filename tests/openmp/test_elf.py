"""ELF files: what a library exports and needs, and crafted files that must not cost time or memory."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.openmp.detect import family_of_file
from ompaffinity.openmp.elf import ELFError, SharedLibrary

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

DYNAMIC, STRINGS, SYMBOLS, TABLE = 0x200, 0x400, 0x500, 0x1000
NAMES = b"\0GOMP_parallel\0libcrafted.so\0libneeded.so\0"
DT_GNU_HASH = 0x6FFFFEF5


def hash_of(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def crafted(
    table: bytes, tag: int = 4, *, wide: bool = True, order: str = "<", size: int = 0, machine: int = 62
) -> bytes:
    """Return an ELF file with a hash table and one defined symbol, GOMP_parallel, at the index 1."""
    word = "Q" if wide else "I"
    tags = ((1, 29), (14, 15), (29, 0), (5, STRINGS), (6, SYMBOLS), (tag, TABLE), (0, 0))
    dynamic = b"".join(struct.pack(f"{order}2{word}", *pair) for pair in tags)
    identity = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(f"{order}HHI3{word}I6H", 3, machine, 1, 0, 64, 0, 0, 64, 56 if wide else 32, 2, 0, 0, 0)
    size = max(size, TABLE + len(table))
    if wide:
        segments = struct.pack(f"{order}2I6Q", 1, 5, 0, 0, 0, size, size, 4096)
        segments += struct.pack(f"{order}2I6Q", 2, 6, DYNAMIC, DYNAMIC, DYNAMIC, len(dynamic), len(dynamic), 8)
        symbol = struct.pack(f"{order}IBBHQQ", 1, 0x12, 0, 1, 0, 0)
    else:
        segments = struct.pack(f"{order}8I", 1, 0, 0, 0, size, size, 5, 4096)
        segments += struct.pack(f"{order}8I", 2, DYNAMIC, DYNAMIC, DYNAMIC, len(dynamic), len(dynamic), 6, 4)
        symbol = struct.pack(f"{order}3IBBH", 1, 0, 0, 0x12, 0, 1)
    content = bytearray(TABLE)
    for offset, part in (
        (0, identity + header),
        (64, segments),
        (DYNAMIC, dynamic),
        (STRINGS, NAMES),
        (SYMBOLS, bytes(len(symbol)) + symbol),
    ):
        content[offset : offset + len(part)] = part
    return bytes(content) + table


def old_table(order: str = "<", entry: str = "I", chain: tuple[int, ...] = (0, 0)) -> bytes:
    return struct.pack(f"{order}{3 + len(chain)}{entry}", 1, len(chain), 1, *chain)


def gnu_table(order: str = "<", wide: bool = True) -> bytes:
    bloom = struct.pack(f"{order}{'Q' if wide else 'I'}", 0)
    return struct.pack(f"{order}4I", 1, 1, 1, 0) + bloom + struct.pack(f"{order}2I", 1, hash_of(b"GOMP_parallel") | 1)


@contextmanager
def library(path: Path, content: bytes | None = None) -> Iterator[SharedLibrary]:
    if content is not None:
        path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield SharedLibrary(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("gnu", [True, False])
def test_reads_either_hash_table_of_every_word_size_and_byte_order(
    tmp_path: Path, order: str, wide: bool, gnu: bool
) -> None:
    table = gnu_table(order, wide) if gnu else old_table(order)
    content = crafted(table, DT_GNU_HASH if gnu else 4, wide=wide, order=order)
    with library(tmp_path / "x.so", content) as found:
        assert (found.soname, found.needed, found.has_runpath) == ("libcrafted.so", ["libneeded.so"], True)
        assert found.exports("GOMP_parallel")
        assert not found.exports("__kmpc_fork_call")
        assert not found.exports("GOMP_paralle")


def test_reads_the_wide_hash_table_of_s390x(tmp_path: Path) -> None:
    content = crafted(old_table(">", "Q"), order=">", machine=22)
    with library(tmp_path / "x.so", content) as found:
        assert found.exports("GOMP_parallel")


def test_reads_the_narrow_hash_table_of_other_64_bit_machines(tmp_path: Path) -> None:
    for machine in (21, 23, 62, 183):
        with library(tmp_path / "x.so", crafted(old_table(">"), order=">", machine=machine)) as found:
            assert found.exports("GOMP_parallel")


@pytest.mark.parametrize(("offset", "byte"), [(0, 0x7E), (3, 0x00), (4, 0), (4, 3), (5, 0), (5, 3)])
def test_rejects_another_identity(tmp_path: Path, offset: int, byte: int) -> None:
    content = bytearray(crafted(old_table()))
    content[offset] = byte
    with pytest.raises(ELFError, match="not an ELF file"), library(tmp_path / "x.so", bytes(content)):
        pass


@needs_gcc
@pytest.mark.parametrize("style", ["sysv", "gnu", "both"])
def test_reads_what_a_compiler_wrote(tmp_path: Path, style: str) -> None:
    source = "int undefined(void), getpid(void); int GOMP_parallel(void) { return undefined() + getpid(); }"
    (tmp_path / "x.c").write_text(source + "\n")
    command = ["gcc", "-shared", "-fPIC", f"-Wl,--hash-style={style},-soname,libx.so.1,--enable-new-dtags,-rpath,/x"]
    subprocess.run([*command, "-o", str(tmp_path / "x.so"), str(tmp_path / "x.c")], check=True)
    with library(tmp_path / "x.so") as found:
        assert (found.soname, found.has_runpath) == ("libx.so.1", True)
        assert "libc.so.6" in found.needed
        assert found.exports("GOMP_parallel")
        assert not found.exports("undefined")


@needs_gcc
@pytest.mark.parametrize(("tags", "has_runpath"), [("enable", True), ("disable", False)])
def test_a_runpath_is_not_an_rpath(tmp_path: Path, tags: str, has_runpath: bool) -> None:
    command = ["gcc", "-shared", f"-Wl,--{tags}-new-dtags,-rpath,/x", "-x", "c", "/dev/null"]
    subprocess.run([*command, "-o", str(tmp_path / "x.so")], check=True)
    with library(tmp_path / "x.so") as found:
        assert found.has_runpath == has_runpath


HUGE = 1 << 29
HOSTILE = {
    "a chain that is a circle": crafted(struct.pack("<6I", 1, 3, 2, 0, 0, 2)),
    "buckets without end": crafted(struct.pack("<5I", HUGE, HUGE, 1, 0, 1)),
    "a table of 2 GiB": crafted(struct.pack("<4I", HUGE, 0, HUGE, 0), DT_GNU_HASH),
    "an endless chain": crafted(struct.pack("<4IQI", 1, 1, 1, 0, 0, 1) + bytes(2**20), DT_GNU_HASH),
    "no bucket": crafted(struct.pack("<4I", 0, 0, 0, 0), DT_GNU_HASH),
    "segments without end": crafted(old_table())[:56] + b"\xff\xff" + crafted(old_table())[58:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_crafted_files_cost_neither_time_nor_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "libomp.so"
    path.write_bytes(HOSTILE[name])
    os.truncate(path, 16 << 30)
    code = "import sys; from ompaffinity.openmp.detect import family_of_file; print(family_of_file(sys.argv[1]))"

    def limited() -> None:
        # A hang is killed, and memory is what the interpreter itself needs and little more.
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_DATA, (64 * 2**20, 64 * 2**20))

    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("None", "gomp")


def test_rejects_a_chain_without_an_end(tmp_path: Path) -> None:
    circle = HOSTILE["a chain that is a circle"]
    with library(tmp_path / "x.so", circle) as found, pytest.raises(ELFError, match="has no end"):
        found.exports("GOMP_parallel")


@given(st.lists(st.tuples(st.integers(0, TABLE + 40), st.integers(0, 255)), max_size=12), st.integers(0, TABLE + 60))
def test_any_damaged_library_has_a_family_or_none(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(crafted(gnu_table(), DT_GNU_HASH))
    for place, value in changes:
        if place < len(content):
            content[place] = value
    path = tmp_path_factory.getbasetemp() / "libomp.so"
    path.write_bytes(content[:length])
    assert family_of_file(path) in (None, "gomp", "iomp")
