"""The dynamic section of a shared library, as the loader reads it. Any user can map any file, so each step is bounded.

Nothing is read but the tables that a question needs, each entry at its offset, so that neither the size of a file nor
its contents decide how long an answer takes. Sources: elf(5); System V ABI, "Dynamic Linking"; glibc's elf/dl-lookup.c
(DT_GNU_HASH).
"""

from __future__ import annotations

import os
import struct

from ompaffinity.records import NamedTuple

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_SONAME, DT_RUNPATH = 0, 1, 4, 5, 6, 14, 29
DT_GNU_HASH = 0x6FFFFEF5
WIDE_HASH_MACHINES = (22, 0x9026)
"""s390x and Alpha: entries of their 64-bit DT_HASH have 8 bytes."""
MAX_SEGMENTS = 128
MAX_TAGS = 4096
MAX_CHAIN = 1024
"""Symbols in one bucket of a hash table; linkers aim at a few."""
MAX_NAME = 4096


class ELFError(ValueError):
    """The file is no ELF file with a dynamic section, or a damaged one."""


class _Segment(NamedTuple):
    address: int
    offset: int
    size: int


class SharedLibrary:
    """An open ELF file with a dynamic section, of either word size and byte order.

    Every method raises ELFError for a damaged file, and OSError where it cannot be read.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        identity = self._bytes(0, 16)
        if identity[:4] != b"\x7fELF" or identity[4] not in (1, 2) or identity[5] not in (1, 2):
            raise ELFError("it is not an ELF file")
        self._wide = identity[4] == 2
        self._order = "<" if identity[5] == 1 else ">"
        self._address = "Q" if self._wide else "I"
        (self._machine,) = self._numbers("H", 18)
        self._segments: list[_Segment] = []
        dynamic = self._read_segments()
        if dynamic is None:
            raise ELFError("it has no dynamic section")
        self._tags = self._read_tags(dynamic)

    @property
    def soname(self) -> str | None:
        """The name under which the library is needed, None where it has none."""
        return next(map(self._name, self._values(DT_SONAME)), None)

    @property
    def needed(self) -> list[str]:
        """The names of the libraries that it needs, in the order in which they are loaded."""
        return [self._name(offset) for offset in self._values(DT_NEEDED)]

    @property
    def has_runpath(self) -> bool:
        """Whether it has a DT_RUNPATH, which LD_LIBRARY_PATH goes before, as it does not before a DT_RPATH."""
        return bool(self._values(DT_RUNPATH))

    def exports(self, symbol: str) -> bool:
        """Return whether the library defines `symbol`, by its own hash table."""
        gnu, old = self._table(DT_GNU_HASH), self._table(DT_HASH)
        if gnu is not None:
            return self._in_gnu_table(gnu, symbol.encode())
        return old is not None and self._in_old_table(old, symbol.encode())

    def _read_segments(self) -> _Segment | None:
        """Keep the loaded segments, and return the dynamic one."""
        (start,) = self._numbers(self._address, 32 if self._wide else 28)
        size, count = self._numbers("HH", 54 if self._wide else 42)
        dynamic = None
        for number in range(min(count, MAX_SEGMENTS)):
            if self._wide:
                kind, _, offset, address, _, length = self._numbers("IIQQQQ", start + number * size)
            else:
                kind, offset, address, _, length = self._numbers("IIIII", start + number * size)
            segment = _Segment(address, offset, length)
            if kind == PT_LOAD:
                self._segments.append(segment)
            elif kind == PT_DYNAMIC and dynamic is None:
                dynamic = segment
        return dynamic

    def _read_tags(self, dynamic: _Segment) -> list[tuple[int, int]]:
        size = 2 * self._address_bytes
        tags: list[tuple[int, int]] = []
        content = self._bytes(dynamic.offset, min(dynamic.size, MAX_TAGS * size) // size * size)
        for tag, value in struct.iter_unpack(f"{self._order}2{self._address}", content):
            if tag == DT_NULL:
                break
            tags.append((tag, value))
        return tags

    def _in_gnu_table(self, table: int, symbol: bytes) -> bool:
        buckets, first, bloom_words, _ = self._numbers("IIII", table)
        wanted = 5381
        for byte in symbol:
            wanted = (wanted * 33 + byte) & 0xFFFFFFFF
        if buckets == 0:
            return False
        start = table + 16 + bloom_words * self._address_bytes
        (index,) = self._numbers("I", start + 4 * (wanted % buckets))
        if index < first:
            return False
        chain = start + 4 * buckets
        for number in range(index, index + MAX_CHAIN):
            (value,) = self._numbers("I", chain + 4 * (number - first))
            if value | 1 == wanted | 1 and self._defines(number, symbol):
                return True
            if value & 1:
                return False
        raise ELFError("a chain of its hash table has no end")

    def _in_old_table(self, table: int, symbol: bytes) -> bool:
        entry = "Q" if self._wide and self._machine in WIDE_HASH_MACHINES else "I"
        size = struct.calcsize(entry)
        buckets, _ = self._numbers(2 * entry, table)
        wanted = 0
        for byte in symbol:
            wanted = (wanted << 4) + byte
            high = wanted & 0xF0000000
            wanted = (wanted ^ high >> 24) & ~high
        if buckets == 0:
            return False
        (index,) = self._numbers(entry, table + size * (2 + wanted % buckets))
        for _ in range(MAX_CHAIN):
            if index == 0:
                return False
            if self._defines(index, symbol):
                return True
            (index,) = self._numbers(entry, table + size * (2 + buckets + index))
        raise ELFError("a chain of its hash table has no end")

    def _defines(self, number: int, symbol: bytes) -> bool:
        """Return whether the entry of the symbol table has this name, and is defined here."""
        symbols, strings = self._table(DT_SYMTAB), self._table(DT_STRTAB)
        if symbols is None or strings is None:
            raise ELFError("it has no symbol table")
        if self._wide:
            name, _, _, section = self._numbers("IBBH", symbols + 24 * number)
        else:
            name, _, _, _, _, section = self._numbers("IIIBBH", symbols + 16 * number)
        return section != 0 and self._bytes(strings + name, len(symbol) + 1) == symbol + b"\0"

    @property
    def _address_bytes(self) -> int:
        return 8 if self._wide else 4

    def _values(self, tag: int) -> list[int]:
        return [value for found, value in self._tags if found == tag]

    def _table(self, tag: int) -> int | None:
        """Return the offset in the file of a table that the dynamic section names by its address."""
        for address in self._values(tag):
            for segment in self._segments:
                if segment.address <= address < segment.address + segment.size:
                    return address - segment.address + segment.offset
        return None

    def _name(self, offset: int) -> str:
        strings = self._table(DT_STRTAB)
        if strings is None:
            raise ELFError("it has no string table")
        name, end, _ = self._piece(strings + offset, MAX_NAME).partition(b"\0")
        if not end:
            raise ELFError("a name in its string table has no end")
        return os.fsdecode(name)

    def _numbers(self, form: str, offset: int) -> tuple[int, ...]:
        layout = struct.Struct(self._order + form)
        return layout.unpack(self._bytes(offset, layout.size))

    def _bytes(self, offset: int, size: int) -> bytes:
        content = self._piece(offset, size)
        if len(content) < size:
            raise ELFError("it is shorter than its headers require")
        return content

    def _piece(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OverflowError:
            raise ELFError("it refers to offsets that no file has") from None
