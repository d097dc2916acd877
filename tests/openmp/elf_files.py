"""Small ELF files, made by hand."""

from __future__ import annotations

import struct

SYMBOLS, STRINGS, TABLE = 0x400, 0x500, 0x2000
"""The addresses of the parts. The second segment starts with the symbols."""
DT_NULL, DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_SONAME, DT_RPATH, DT_DEBUG, DT_RUNPATH = (
    0,
    1,
    4,
    5,
    6,
    14,
    15,
    21,
    29,
)
DT_GNU_HASH = 0x6FFFFEF5


def hash_of(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def crafted(
    table: bytes,
    tag: int = DT_HASH,
    *,
    wide: bool = True,
    order: str = "<",
    machine: int = 62,
    symbol: str = "GOMP_parallel",
    soname: str = "libcrafted.so",
    needed: str = "libneeded.so",
    path_tag: int = DT_RUNPATH,
    without: int | None = None,
    before: int = 0,
    after: tuple[tuple[int, int], ...] = (),
    shift: int = 0,
) -> bytes:
    """Return an ELF file with a hash table and one defined symbol, at the index 3.

    It has no tag `without`, so many others `before` its tags, and the tags `after` behind its last one. The second
    segment is `shift` bytes later in the file than in memory.
    """
    word = "Q" if wide else "I"
    names = b"".join(b"\0" + name.encode() for name in (symbol, soname, needed)) + b"\0"
    first, second = len(symbol) + 2, len(symbol) + len(soname) + 3
    tags = [(DT_NEEDED, second), (DT_SONAME, first), (path_tag, 0), (DT_STRTAB, STRINGS), (DT_SYMTAB, SYMBOLS)]
    tags = [(DT_DEBUG, 0)] * before + [pair for pair in (*tags, (tag, TABLE)) if pair[0] != without]
    dynamic = b"".join(struct.pack(f"{order}2{word}", *pair) for pair in (*tags, (DT_NULL, 0), *after))
    identity = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(f"{order}HHI3{word}I6H", 3, machine, 1, 0, 64, 0, 0, 64, 56 if wide else 32, 3, 0, 0, 0)
    segments = b""
    for kind, address, size in (
        (1, 0, SYMBOLS),
        (1, SYMBOLS, TABLE + len(table) - SYMBOLS),
        (2, TABLE + len(table), len(dynamic)),
    ):
        offset = address + shift if address else 0
        values = (kind, 5, offset, address, 0, size, size, 8) if wide else (kind, offset, address, 0, size, size, 5, 4)
        segments += struct.pack(f"{order}2I6Q" if wide else f"{order}8I", *values)
    entry = (
        struct.pack(f"{order}IBBHQQ", 1, 0x12, 0, 1, 0, 0) if wide else struct.pack(f"{order}3IBBH", 1, 0, 0, 18, 0, 1)
    )
    content = bytearray(TABLE + shift)
    for offset, part in (
        (0, identity + header),
        (64, segments),
        (SYMBOLS + shift, bytes(3 * len(entry)) + entry),
        (STRINGS + shift, names),
    ):
        content[offset : offset + len(part)] = part
    return bytes(content) + table + dynamic


def old_table(order: str = "<", entry: str = "I", chain: tuple[int, ...] = (0, 3, 0, 0)) -> bytes:
    return struct.pack(f"{order}{3 + len(chain)}{entry}", 1, len(chain), 1, *chain)


def gnu_table(order: str = "<", wide: bool = True) -> bytes:
    bloom = struct.pack(f"{order}{'Q' if wide else 'I'}", 0)
    chain = (2, hash_of(b"another") & ~1, hash_of(b"GOMP_parallel") | 1)
    return struct.pack(f"{order}4I", 1, 2, 1, 0) + bloom + struct.pack(f"{order}3I", *chain)
