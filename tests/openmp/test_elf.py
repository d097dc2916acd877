"""ELF files: what a library exports and needs, and crafted files that must not cost time or memory."""

from __future__ import annotations

import os
import resource
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
from tests.openmp.elf_files import DT_GNU_HASH, DT_STRTAB, DT_SYMTAB, TABLE, crafted, gnu_table, old_table
from tests.openmp.libraries import needs_gcc


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


@pytest.mark.parametrize(("machine", "order"), [(22, ">"), (0x9026, "<")], ids=["s390x", "alpha"])
def test_reads_the_wide_hash_tables(tmp_path: Path, machine: int, order: str) -> None:
    content = crafted(old_table(order, "Q"), order=order, machine=machine)
    with library(tmp_path / "x.so", content) as found:
        assert found.exports("GOMP_parallel")


def test_reads_the_narrow_hash_table_of_other_64_bit_machines(tmp_path: Path) -> None:
    for machine in (21, 23, 62, 183):
        with library(tmp_path / "x.so", crafted(old_table(">"), order=">", machine=machine)) as found:
            assert found.exports("GOMP_parallel")


@pytest.mark.parametrize("wide", [True, False])
def test_reads_tables_that_are_later_in_the_file_than_in_memory(tmp_path: Path, wide: bool) -> None:
    with library(tmp_path / "x.so", crafted(old_table(), wide=wide, shift=0x3000)) as found:
        assert (found.soname, found.needed) == ("libcrafted.so", ["libneeded.so"])
        assert found.exports("GOMP_parallel")


def test_ignores_tags_after_the_last_one(tmp_path: Path) -> None:
    with library(tmp_path / "x.so", crafted(old_table(), after=((1, 1),))) as found:
        assert found.needed == ["libneeded.so"]


@pytest.mark.parametrize(("before", "is_read"), [(4090, True), (4091, False)])
def test_reads_4096_tags(tmp_path: Path, before: int, is_read: bool) -> None:
    with library(tmp_path / "x.so", crafted(old_table(), before=before)) as found:
        assert found.soname == "libcrafted.so"
        assert found.exports("GOMP_parallel") is is_read


@pytest.mark.parametrize(("tag", "words"), [(DT_STRTAB, "no symbol table"), (DT_SYMTAB, "no symbol table")])
def test_rejects_a_library_without_symbols_or_their_names(tmp_path: Path, tag: int, words: str) -> None:
    with library(tmp_path / "x.so", crafted(old_table(), without=tag)) as found, pytest.raises(ELFError, match=words):
        found.exports("GOMP_parallel")


@pytest.mark.parametrize(("length", "is_read"), [(4095, True), (4096, False)])
def test_names_are_shorter_than_the_longest_path(tmp_path: Path, length: int, is_read: bool) -> None:
    name = "n" * length
    with library(tmp_path / "x.so", crafted(old_table(), soname=name)) as found:
        if is_read:
            assert found.soname == name
        else:
            with pytest.raises(ELFError, match="has no end"):
                assert found.soname


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


@needs_gcc
@pytest.mark.parametrize("style", ["sysv", "gnu"])
def test_finds_each_of_many_symbols(tmp_path: Path, style: str) -> None:
    names = [f"a_function_with_a_long_name_{number}" for number in range(60)]
    (tmp_path / "x.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    command = ["gcc", "-shared", f"-Wl,--hash-style={style}", "-o", str(tmp_path / "x.so"), str(tmp_path / "x.c")]
    subprocess.run(command, check=True)
    with library(tmp_path / "x.so") as found:
        assert all(map(found.exports, names))
        assert not any(found.exports(f"{name}x") for name in names)


HUGE = 1 << 29
HOSTILE = {
    "a chain that is a circle": crafted(struct.pack("<6I", 1, 3, 2, 0, 0, 2)),
    "buckets without end": crafted(struct.pack("<5I", HUGE, HUGE, 1, 0, 1)),
    "a table of 2 GiB": crafted(struct.pack("<4I", HUGE, 0, HUGE, 0), DT_GNU_HASH),
    "an endless chain": crafted(struct.pack("<4IQI", 1, 1, 1, 0, 0, 1) + bytes(2**20), DT_GNU_HASH),
    "no bucket": crafted(struct.pack("<4I", 0, 0, 0, 0), DT_GNU_HASH),
    "no bucket in an old table": crafted(struct.pack("<4I", 0, 0, 0, 0)),
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


@given(st.lists(st.tuples(st.integers(0, TABLE + 140), st.integers(0, 255)), max_size=12), st.integers(0, TABLE + 160))
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
