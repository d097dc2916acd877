"""Files for output: whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.files import open_new, require_writable, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    path.write_text("old")
    write_whole(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.svg"]


@pytest.mark.parametrize("write", ["whole", "new"])
@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o000, 0o666)])
def test_a_new_file_has_the_permissions_of_the_umask(write: str, umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        if write == "whole":
            write_whole(str(tmp_path / "new"), b"")
        else:
            os.close(open_new(str(tmp_path / "new")))
    finally:
        after = os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    assert after == umask


@pytest.mark.parametrize("write", ["whole", "new"])
def test_a_link_to_nothing_is_replaced_and_not_followed(write: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    if write == "whole":
        write_whole(str(link), b"ours")
    else:
        os.close(open_new(str(link)))
    assert not target.exists()
    assert not link.is_symlink()


def test_a_link_that_appears_meanwhile_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, path = tmp_path / "target", tmp_path / "log"
    target.write_text("of somebody else")
    monkeypatch.setattr(os, "unlink", lambda name: Path(name).symlink_to(target))
    with pytest.raises(FileExistsError):
        open_new(str(path))


@pytest.mark.parametrize("write", ["whole", "new"])
def test_a_link_is_replaced_and_not_followed(write: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("of somebody else")
    link.symlink_to(target)
    if write == "whole":
        write_whole(str(link), b"ours")
    else:
        os.close(open_new(str(link)))
    assert target.read_text() == "of somebody else"
    assert not link.is_symlink()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "capture.json"
    path.write_text("old")

    def full(_descriptor: int, _mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(str(path), b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["capture.json"]


@pytest.mark.parametrize("write", ["whole", "new"])
def test_a_pipe_is_written_to_as_it_is(write: str, tmp_path: Path) -> None:
    # Not /dev/null: where this fails, root would lose it.
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if write == "whole":
            write_whole(str(path), b"text")
        else:
            with open(open_new(str(path)), "wb") as file:
                file.write(b"text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.lstat().st_mode)


def test_the_temporary_file_is_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No file can be made there.
    monkeypatch.chdir("/proc")
    write_whole(str(tmp_path / "plan.svg"), b"new")
    assert (tmp_path / "plan.svg").read_bytes() == b"new"


def test_a_file_without_a_folder_is_written_in_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_writable("--svg", "plan.svg")
    write_whole("plan.svg", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.svg"]


def test_a_folder_that_is_missing_is_reported(tmp_path: Path) -> None:
    require_writable("--svg", str(tmp_path / "plan.svg"))
    folder = tmp_path / "none"
    with pytest.raises(RequestError, match=f"^--svg {folder}/plan.svg cannot be written: {folder} is no directory"):
        require_writable("--svg", f"{folder}/plan.svg")
