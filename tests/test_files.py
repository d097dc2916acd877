"""Files for output: whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ompaffinity.files import open_new, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    path.write_text("old")
    write_whole(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.svg"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(str(tmp_path / "new"), b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


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


def test_a_device_is_written_to_as_it_is() -> None:
    write_whole(os.devnull, b"text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.close(open_new(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
