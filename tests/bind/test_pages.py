from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.bind import pages
from ompaffinity.bind.mempolicy import MemoryPolicyError
from ompaffinity.bind.pages import NoRoomError, mapped_memory, migrate_process_pages, parse_numa_maps
from tests.conftest import needs_libnuma

NUMA_MAPS = """\
00400000 default file=/usr/bin/python3 mapped=20 active=0 N0=12 N1=8 kernelpagesize_kB=4
7f0000000000 bind:1 anon=512 dirty=512 N1=512 kernelpagesize_kB=4
7f0040000000 bind:1 huge anon=2 dirty=2 N0=1 N1=1 kernelpagesize_kB=2048
7ffd00000000 interleave:0-1 stack
7f0080000000 prefer (many):0-1 anon=3 N0=3 kernelpagesize_kB=4
7f00c0000000 weighted interleave:0-1 mapped=1 N0=1 kernelpagesize_kB=4
short
"""


def test_pages_by_policy_and_node() -> None:
    memory = parse_numa_maps(NUMA_MAPS.splitlines())
    assert memory.bytes_by_policy == {
        "default": {0: 12 * 4096, 1: 8 * 4096},
        "bind:1": {0: 2**21, 1: 2**21 + 512 * 4096},
        "prefer (many):0-1": {0: 3 * 4096},
        "weighted interleave:0-1": {0: 4096},
    }
    assert memory.bytes_by_node == {0: 2**21 + 16 * 4096, 1: 2**21 + 520 * 4096}
    assert memory.anonymous == {0: 2**21 + 3 * 4096, 1: 2**21 + 512 * 4096}


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_is_read(lines: list[str]) -> None:
    parse_numa_maps(lines)


@needs_libnuma
def test_pages_of_this_process_are_where_it_may_have_them() -> None:
    memory = mapped_memory()
    assert sum(memory.anonymous.values()) > 2**20
    assert migrate_process_pages(memory.anonymous, memory.anonymous) == 0


@pytest.mark.parametrize(("code", "error"), [(errno.EPERM, MemoryPolicyError), (errno.ENOMEM, NoRoomError)])
def test_a_refusal_to_move_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    class Library:
        def migrate_pages(self, *arguments: Any) -> int:
            return -1

    monkeypatch.setattr(pages, "load_libnuma", Library)
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    with pytest.raises(error):
        migrate_process_pages([0], [1])


def test_passes_masks_of_unequal_length_to_the_kernel_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = []

    class Library:
        def migrate_pages(self, pid: int, bits: Any, origin: Any, target: Any) -> int:
            reported.append((bits.value, list(origin), list(target)))
            return 0

    monkeypatch.setattr(pages, "load_libnuma", Library)
    migrate_process_pages([0, 70], [1])
    assert reported == [(129, [1, 1 << 6], [2, 0])]


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("7f00 default anon=2 N0=2", 2 * 4096),
        ("7f00 default anon=2 N0=2 kernelpagesize_kB=64", 2 * 65536),
        ("7f00 default anon=2 N0=2 kernelpagesize_kB=x", 2 * 4096),
        ("7f00 default anon=2 N0=2 N0=3", 5 * 4096),
        ("7f00 default anon=2 M0=2", 0),
        ("7f00 default anon=2 N0", 0),
        ("7f00 default anon=2 N=2", 0),
        ("7f00 default anon=2 N0=x", 0),
        ("7f00 N0=2", 0),
    ],
)
def test_counts_the_pages_of_a_node_by_their_size(line: str, size: int) -> None:
    memory = parse_numa_maps([line])
    assert memory.bytes_by_node.get(0, 0) == memory.anonymous.get(0, 0) == size


def test_a_line_that_is_cut_does_not_hide_the_next_ones() -> None:
    assert parse_numa_maps(["7f00", "7f01 default N1=1"]).bytes_by_node == {1: 4096}


@needs_libnuma
def test_reading_may_be_limited_in_time() -> None:
    assert mapped_memory(seconds=0) == ({}, {}, False)
    assert mapped_memory(seconds=600).complete
    assert mapped_memory().complete


def test_the_kernel_gets_this_process_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []

    class Library:
        def migrate_pages(self, pid: int, *_arguments: Any) -> int:
            pids.append(pid)
            return 3

    monkeypatch.setattr(pages, "load_libnuma", Library)
    assert migrate_process_pages([0], [1]) == 3
    assert migrate_process_pages([0], [1], 77) == 3
    assert pids == [os.getpid(), 77]
