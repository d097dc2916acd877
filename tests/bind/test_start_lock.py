"""The lock that starts with ``--avoid live`` wait for: where its file is, and who may hold it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from ompaffinity.bind.start_lock import StartLock
from ompaffinity.errors import RequestError

NAME = f"ompaffinity-{os.getuid()}.lock"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to other users")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's runtime folder; temporary files are in the folder beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime


def is_free() -> bool:
    """Return whether a start would get the lock."""
    try:
        StartLock(wait_seconds=0).release()
    except RequestError:
        return False
    return True


def test_the_file_is_in_the_users_runtime_folder(folder: Path) -> None:
    StartLock().release()
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert not (folder.parent / NAME).exists()


def unusable_folders(folder: Path) -> list[str]:
    return [str(folder / "absent"), __file__, ""]


@pytest.mark.skipif(os.access(f"/run/user/{os.getuid()}", os.W_OK), reason="this user has another runtime folder")
@pytest.mark.parametrize("number", range(3))
def test_without_a_runtime_folder_the_file_is_a_temporary_one(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", unusable_folders(folder)[number])
    StartLock().release()
    assert (folder.parent / NAME).exists()


@needs_root
@pytest.mark.skipif(os.access(f"/run/user/{os.getuid()}", os.W_OK), reason="this user has another runtime folder")
def test_the_runtime_folder_of_another_user_is_not_used(folder: Path) -> None:
    os.chown(folder, 12345, 12345)
    StartLock().release()
    assert [*folder.iterdir()] == []
    assert (folder.parent / NAME).exists()


@needs_root
def test_a_file_of_another_user_is_refused(folder: Path) -> None:
    (folder / NAME).touch()
    os.chown(folder / NAME, 12345, 12345)
    with pytest.raises(RequestError, match="is no file of this user; remove it"):
        StartLock()


def test_a_pipe_in_place_of_the_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / NAME)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RequestError, match="is no file of this user; remove it"):
        StartLock()
    assert os.listdir("/proc/self/fd") == before


def test_a_link_in_place_of_the_file_is_not_followed(folder: Path) -> None:
    target = folder / "target"
    (folder / NAME).symlink_to(target)
    with pytest.raises(RequestError, match="lock file"):
        StartLock()
    assert not target.exists()


def test_a_start_waits_until_the_one_before_lets_it_go_on() -> None:
    lock = StartLock()
    assert not is_free()
    threading.Timer(0.3, lock.release).start()
    StartLock(wait_seconds=60).release()
    assert is_free()


def test_the_lock_is_released_once() -> None:
    lock = StartLock()
    lock.release()
    another = StartLock()
    lock.release()
    assert not is_free()
    another.release()


def test_the_error_names_how_long_it_waited_and_leaves_nothing_open() -> None:
    lock = StartLock()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RequestError, match="for more than 1 seconds; end it, or start without --avoid live"):
        StartLock(wait_seconds=1)
    assert os.listdir("/proc/self/fd") == before
    lock.release()


def test_a_program_that_is_executed_does_not_hold_the_lock() -> None:
    program = (
        "import os, sys; from ompaffinity.bind.start_lock import StartLock; StartLock()\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'print(1, flush=True); input()'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert is_free()
        process.communicate()
