"""Plan files: read from files and pipes, within limits of size and time."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind import plan_files
from ompaffinity.bind.plan_files import avoids_live, held_by_plans, saved_placements
from ompaffinity.errors import RequestError
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.fields import MAX_DOCUMENT_BYTES
from tests.placement.machines import plan_for

PLAN = plan_for("core:4 pu:1", 2, reserve=0)
# Longer than a pipe holds at once.
CONTENT = json.dumps(plan_document(PLAN)).encode() + b" " * 200_000


@contextmanager
def in_thread(function: Callable[..., object], *arguments: object) -> Iterator[None]:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def write_and_close(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(content)


def test_reads_a_plan_from_a_fifo(tmp_path: Path) -> None:
    fifo = tmp_path / "plan.json"
    os.mkfifo(fifo)
    with in_thread(fifo.write_bytes, CONTENT):
        assert saved_placements(fifo) == PLAN.ranks


@pytest.mark.parametrize("content", [CONTENT, CONTENT[:5000]], ids=["longer than the pipe", "written before"])
def test_reads_a_plan_from_a_pipe(content: bytes) -> None:
    reader, writer = os.pipe()
    try:
        with in_thread(write_and_close, writer, content):
            (held,) = held_by_plans([f"/dev/fd/{reader}"])
    finally:
        os.close(reader)
    assert held.cpus == (0, 1, 2, 3)


def test_refuses_a_pipe_that_gives_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan_files, "READ_SECONDS", 0.1)
    fifo = tmp_path / "plan.json"
    os.mkfifo(fifo)
    with pytest.raises(
        RequestError, match=r"--avoid .*plan\.json cannot be read: the data did not end within 0 seconds"
    ):
        held_by_plans([fifo])
    reader, writer = os.pipe()
    try:
        with pytest.raises(
            RequestError, match=r"--plan /dev/fd/\d+ cannot be read: the data did not end within 0 seconds"
        ):
            saved_placements(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_refuses_a_pipe_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_files, "READ_SECONDS", -1)
    with pytest.raises(RequestError, match="cannot be read: the data did not end within"):
        saved_placements("/dev/zero")


def test_refuses_what_is_larger_than_a_plan(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    for path in (sparse, "/dev/zero"):
        with pytest.raises(RequestError, match="it is larger than 16 MiB"):
            saved_placements(path)


@pytest.mark.parametrize(("path", "reason"), [("/", "Is a directory"), ("/no/such", "No such file"), ("a\0b", "null")])
def test_refuses_what_cannot_be_read(path: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"cannot be read: .*{reason}"):
        saved_placements(path)


@pytest.mark.parametrize(
    ("given", "options", "live"),
    [
        ({}, "--avoid live", True),
        ({}, "--reserve 1", False),
        ({}, "", False),
        ({"avoid": ("live",)}, "", True),
        ({"avoid": ["plan.json", "live"]}, "", True),
        # What is given has precedence over the environment.
        ({"avoid": ()}, "--avoid live", False),
    ],
)
def test_options_or_the_environment_ask_to_keep_off_what_runs(given: dict[str, Any], options: str, live: bool) -> None:
    assert avoids_live(given, {"OMPAFFINITY_OPTIONS": options}) is live
