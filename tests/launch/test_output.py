"""The output of ranks: read in a thread, and handed to a consumer per pipe that may fail."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ompaffinity.launch import output
from ompaffinity.launch.output import CHUNK, MAX_LINE, Line, LineSplitter, OutputReader, PrefixedLines, descriptor_of
from tests.launch.test_run import wait_until


class Recorder:
    """A consumer that keeps what it gets, and fails from the start if there is a reason."""

    def __init__(self, reason: int | None = None) -> None:
        self.reason = reason
        self.fed: list[bytes] = []
        self.finished = 0

    def feed(self, data: bytes) -> None:
        self.fed.append(data)
        if self.reason is not None:
            raise OSError(self.reason, "cannot write")

    def finish(self) -> None:
        self.finished += 1


@contextmanager
def reading(*consumers: Recorder) -> Iterator[tuple[OutputReader, list[int]]]:
    """Yield a reader, and for each consumer the descriptor of its pipe to write to."""
    reader, descriptors = OutputReader(lambda: None), []
    for consumer in consumers:
        end, descriptor = os.pipe()
        reader.add(os.fdopen(end, "rb", buffering=0), consumer)
        descriptors.append(descriptor)
    reader.start()
    try:
        yield reader, descriptors
    finally:
        reader.close()


def end(reader: OutputReader, descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    reader.ranks_have_ended()
    wait_until(lambda: reader.done)


def test_each_consumer_gets_what_its_pipe_delivers_and_its_end() -> None:
    first, second = Recorder(), Recorder()
    with reading(first, second) as (reader, descriptors):
        os.write(descriptors[0], b"one")
        os.write(descriptors[1], b"two")
        end(reader, descriptors)
    assert (b"".join(first.fed), first.finished) == (b"one", 1)
    assert (b"".join(second.fed), second.finished) == (b"two", 1)
    assert reader.error is None


def test_closing_ends_the_thread_although_a_pipe_is_open() -> None:
    before = threading.enumerate()
    with reading(Recorder()) as (reader, descriptors):
        (thread,) = (thread for thread in threading.enumerate() if thread not in before)
    thread.join(30)
    assert (thread.is_alive(), reader.done) == (False, True)
    os.close(descriptors[0])


@pytest.mark.parametrize(("reason", "is_closed"), [(errno.EPIPE, True), (errno.ENOSPC, False)])
def test_a_consumer_that_cannot_write_gets_nothing_more(reason: int, is_closed: bool) -> None:
    failing, other = Recorder(reason), Recorder()
    with reading(failing, other) as (reader, descriptors):
        os.write(descriptors[0], b"first")
        wait_until(lambda: reader.error is not None)
        os.write(descriptors[0], b"second")
        os.write(descriptors[1], b"kept")
        end(reader, descriptors)
    assert (failing.fed, failing.finished) == ([b"first"], 0)
    assert (other.fed, other.finished) == ([b"kept"], 1)
    assert reader.error is not None
    assert reader.error.closed is is_closed


def test_the_first_error_is_the_one_that_is_reported() -> None:
    first, second = Recorder(errno.ENOSPC), Recorder(errno.EPIPE)
    with reading(first, second) as (reader, descriptors):
        os.write(descriptors[0], b"x")
        wait_until(lambda: reader.error is not None)
        os.write(descriptors[1], b"x")
        end(reader, descriptors)
    assert second.fed == [b"x"]
    assert reader.error is not None
    assert not reader.error.closed


def test_what_was_printed_is_delivered_where_a_process_keeps_the_pipe_open() -> None:
    recorder = Recorder()
    with reading(recorder) as (reader, (descriptor,)):
        os.write(descriptor, b"last line")
        reader.ranks_have_ended()
        wait_until(lambda: reader.done)
        os.close(descriptor)
    assert (b"".join(recorder.fed), recorder.finished) == (b"last line", 1)


class Slow(Recorder):
    """A consumer whose first write takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def feed(self, data: bytes) -> None:
        if not self.fed:
            time.sleep(1.5)
        super().feed(data)
        self.written.set()


def test_time_in_which_a_consumer_waits_does_not_count_for_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LEFTOVER_SECONDS", 1.0)
    slow = Slow()
    with reading(slow) as (reader, (descriptor,)):
        reader.ranks_have_ended()
        time.sleep(0.1)
        os.write(descriptor, b"one")
        assert slow.written.wait(30)
        time.sleep(0.2)
        assert not reader.done
        os.write(descriptor, b"two")
        os.close(descriptor)
        wait_until(lambda: reader.done)
    assert b"".join(slow.fed) == b"onetwo"


def test_a_reader_that_was_not_started_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    end_of_pipe, descriptor = os.pipe()
    reader = OutputReader(lambda: None)
    reader.add(os.fdopen(end_of_pipe, "rb", buffering=0), Recorder())
    reader.close()
    os.close(descriptor)
    assert os.listdir("/proc/self/fd") == before


def test_abandoned_output_is_done_at_once_though_a_rank_may_print() -> None:
    changes: list[bool] = []
    reader = OutputReader(lambda: changes.append(reader.done))
    end_of_pipe, descriptor = os.pipe()
    reader.add(os.fdopen(end_of_pipe, "rb", buffering=0), Recorder())
    reader.start()
    reader.abandon()
    assert reader.done
    assert changes[0]
    os.close(descriptor)


@contextmanager
def left_over(consumer: Recorder, size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutputReader]:
    """Yield a reader that finds so many bytes when the time for leftovers is over, in a pipe that stays open."""
    monkeypatch.setattr(output, "LEFTOVER_SECONDS", 0.0)
    end_of_pipe, descriptor = os.pipe()
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)
    os.write(descriptor, b"x" * size)
    reader = OutputReader(lambda: None)
    reader.add(os.fdopen(end_of_pipe, "rb", buffering=0), consumer)
    reader.ranks_have_ended()
    try:
        yield reader
    finally:
        reader.close()
        os.close(descriptor)


def test_all_that_was_printed_is_delivered_when_the_time_for_leftovers_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    with left_over(recorder, 4 * CHUNK, monkeypatch) as reader:
        reader.start()
        wait_until(lambda: reader.done)
    assert (sum(map(len, recorder.fed)), recorder.finished) == (4 * CHUNK, 1)


def test_abandoned_leftovers_are_not_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Abandoning(Recorder):
        def feed(self, data: bytes) -> None:
            super().feed(data)
            reader.abandon()

    abandoning = Abandoning()
    with left_over(abandoning, 4 * CHUNK, monkeypatch) as reader:
        reader.start()
        wait_until(lambda: bool(abandoning.fed))
    assert (len(abandoning.fed), abandoning.finished) == (1, 0)


def test_the_thread_ends_with_abandoned_output_and_keeps_no_process_alive() -> None:
    before = threading.enumerate()
    with reading(Recorder()) as (reader, (descriptor,)):
        (thread,) = [thread for thread in threading.enumerate() if thread not in before]
        assert thread.daemon
        reader.abandon()
        # The pipe is still open.
        wait_until(lambda: not thread.is_alive())
        os.close(descriptor)


def test_leftovers_end_where_nothing_is_printed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(output, "LEFTOVER_SECONDS", 1e6)
    with reading(Recorder()) as (reader, (descriptor,)):
        reader.ranks_have_ended()
        wait_until(lambda: reader.done)
        os.close(descriptor)


def test_a_reader_that_is_done_writes_to_no_descriptor() -> None:
    with reading(Recorder()) as (reader, descriptors):
        end(reader, descriptors)
        pipes = [os.pipe() for _ in range(4)]
        reader.abandon()
        # Their numbers were the reader's.
        assert [select.select([first], [], [], 0)[0] for first, _ in pipes] == [[]] * 4
    for pipe in pipes:
        for number in pipe:
            os.close(number)


def test_the_descriptor_of_a_stream_has_all_that_was_printed(tmp_path: Path) -> None:
    assert descriptor_of(None) is None
    with (tmp_path / "out").open("w") as stream:
        stream.write("before")
        assert descriptor_of(stream) == stream.fileno()
        assert (tmp_path / "out").read_text() == "before"


def test_a_carriage_return_ends_a_line_and_with_a_line_feed_one_line() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"1%\r2%\r") == [Line(b"1%", b"\r")]
    assert splitter.feed(b"\nend") == [Line(b"2%", b"\n")]
    assert splitter.finish() == [Line(b"end", b"")]


def test_a_line_is_cut_only_above_the_longest_one() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * MAX_LINE) == []
    assert splitter.feed(b"y") == [Line(b"x" * MAX_LINE + b"y", b"")]
    assert splitter.finish() == []


def test_all_lines_reach_a_pipe_that_another_process_made_non_blocking() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    recorder, text = Recorder(), b"x" * 99 + b"\n"
    with reading() as (lines, _):
        lines.add(os.fdopen(reader, "rb", buffering=0), recorder)
        # More than a pipe holds.
        PrefixedLines(writer, b"> ").feed(text * (4 * CHUNK // 100))
        end(lines, [writer])
    assert b"".join(recorder.fed) == (b"> " + text) * (4 * CHUNK // 100)


def test_without_a_descriptor_lines_are_dropped() -> None:
    lines = PrefixedLines(None)
    lines.feed(b"one\n")
    lines.finish()
