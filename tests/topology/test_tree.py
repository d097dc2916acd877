from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology import archive as archive_module
from ompaffinity.topology import tar_stream
from ompaffinity.topology.archive import ArchiveTree, open_archive
from ompaffinity.topology.tree import DirectoryTree, read_content


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return str(path)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def test_directory_and_archive_have_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "box" / "sys" / "devices"
    folder.mkdir(parents=True)
    (folder / "online").write_text("0-3\n")
    (folder / "long").write_bytes(b"7" * 40000)
    (folder / "empty").write_bytes(b"")
    archive = tmp_path / "box.tar"
    with tarfile.open(archive, "w") as writer:
        writer.add(tmp_path / "box", "box")
    recorded = open_archive(str(archive))
    with DirectoryTree(str(tmp_path / "box")) as live:
        for reader in (live, recorded):
            assert reader.read("sys/devices/online") == b"0-3\n"
            assert reader.read("sys/devices/long") == b"7" * 40000
            assert reader.read("sys/devices/empty") == b""
            assert reader.read("sys/devices/absent") is None
            assert reader.names("sys/devices") == ["empty", "long", "online"]
            assert reader.names("sys/absent") == []


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_reads_every_compression(tmp_path: Path, mode: str) -> None:
    archive = open_archive(make_tar(tmp_path / "m.tar", {"./m/sys/x": b"1"}, mode=mode))
    assert archive.read("sys/x") == b"1"


def test_links_stay_inside_the_archive(tmp_path: Path) -> None:
    links = [
        special("sys/relative", tarfile.SYMTYPE, "a/b"),
        special("sys/up", tarfile.SYMTYPE, "../../../../../sys/a/b"),
        special("sys/absolute", tarfile.SYMTYPE, "/sys/a/b"),
        special("sys/hard", tarfile.LNKTYPE, "./sys/a/b"),
        special("sys/folder", tarfile.SYMTYPE, "a"),
        special("sys/secret", tarfile.SYMTYPE, "/etc/passwd"),
        special("sys/loop", tarfile.SYMTYPE, "loop"),
    ]
    archive = open_archive(make_tar(tmp_path / "m.tar.gz", {"sys/a/b": b"inside"}, *links))
    for name in ("relative", "up", "absolute", "hard", "folder/b"):
        assert archive.read(f"sys/{name}") == b"inside", name
    assert archive.read("sys/secret") is None
    assert archive.read("sys/loop") is None
    assert archive.names("sys/folder") == ["b"]


def test_reads_hard_links_one_folder_down(tmp_path: Path) -> None:
    hard = special("box/sys/hard", tarfile.LNKTYPE, "box/sys/a")
    assert open_archive(make_tar(tmp_path / "m.tar", {"box/sys/a": b"1"}, hard, mode="w")).read("sys/hard") == b"1"


def test_rejects_a_header_of_hundreds_of_megabytes(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 900 * 2**20
    path = tmp_path / "m.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(20):
            file.write(b"0" * 2**20)
    with pytest.raises(TopologyError, match="larger headers"):
        open_archive(str(path))


@pytest.mark.parametrize("name", ["/sys/x", "../sys/x", "sys/../../x", "sys/.."])
def test_rejects_members_that_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(TopologyError, match="leads outside"):
        open_archive(make_tar(tmp_path / "m.tar.gz", {"sys/y": b"", name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_rejects_devices_and_pipes(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(TopologyError, match="device or a pipe"):
        open_archive(make_tar(tmp_path / "m.tar.gz", {"sys/y": b""}, special("sys/dev", kind)))


def test_rejects_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "m.tar.gz", {"sys/y": b"\0" * 5000})
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_BYTES", 4000)
    with pytest.raises(TopologyError, match="too large"):
        open_archive(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b" + b"x" * 50, b"BZh9" + b"x" * 50, b"\xfd7zXZ\0" + b"x" * 50]
)
def test_rejects_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tar.gz"
    path.write_bytes(content)
    with pytest.raises(TopologyError):
        open_archive(str(path))


def test_rejects_a_truncated_archive(tmp_path: Path) -> None:
    path = Path(make_tar(tmp_path / "m.tar.gz", {f"sys/{number}": os.urandom(500) for number in range(50)}))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(TopologyError, match="cannot read"):
        open_archive(str(path))


@pytest.mark.parametrize("size", [700, 3 * 2**20])
def test_rejects_a_tar_file_that_ends_within_a_file(tmp_path: Path, size: int) -> None:
    # Of a file of three megabytes only the first one is kept.
    path = Path(make_tar(tmp_path / "m.tar", {"sys/first": b"1", "sys/last": b"7" * size}, mode="w"))
    path.write_bytes(path.read_bytes()[: 3 * 512 + size - 100])
    with pytest.raises(TopologyError, match="cannot read"):
        open_archive(str(path))


def test_a_damaged_header_ends_the_archive_or_is_rejected(tmp_path: Path) -> None:
    path = Path(make_tar(tmp_path / "m.tar", {"sys/first": b"1", "sys/second": b"2"}, mode="w"))
    content = bytearray(path.read_bytes())
    content[1024 + 5] ^= 1
    path.write_bytes(content)
    assert open_archive(str(path)).names("sys") == ["first"]


def test_reads_an_archive_of_proc_alone_one_folder_down(tmp_path: Path) -> None:
    assert open_archive(make_tar(tmp_path / "m.tar", {"box/proc/cpuinfo": b"1"}, mode="w")).read("proc/cpuinfo") == b"1"


def test_rejects_an_archive_without_a_machine(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="no recorded machine"):
        open_archive(make_tar(tmp_path / "m.tar.gz", {"a/b/sys/x": b"1"}))


def test_ignores_a_pipe_in_a_directory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with DirectoryTree(str(tmp_path)) as tree:
        assert not tree.read("pipe")


def test_reads_a_file_under_proc_to_its_end() -> None:
    """The kernel returns whole records: every read is short, and not only the last one."""
    with DirectoryTree("/") as tree:
        read = tree.read("proc/self/maps") or b""
    assert read.split()[-1] == Path("/proc/self/maps").read_bytes().split()[-1]


@pytest.mark.parametrize(
    ("path", "reads", "size"),
    [
        ("sys/list", (4096, 4096, 100), 8292),
        ("sys/list", (4095, 4096), 4095),  # a short read ends a file of sysfs
        ("proc/maps", (4095, 4096), 8191),
        ("proc/maps", (), 0),
    ],
)
def test_the_kernel_returns_a_file_by_pages_or_records(path: str, reads: tuple[int, ...], size: int) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with kernel:
            for length in reads:
                kernel.send(b"7" * length)
        assert len(read_content(ours.fileno(), path, 2**20)) == size


@pytest.mark.parametrize("path", ["/does/not/exist", __file__])
def test_rejects_a_missing_directory_and_a_file(path: str) -> None:
    with pytest.raises(TopologyError, match="cannot open"):
        DirectoryTree(path)


def test_reads_an_archive_without_links_directly() -> None:
    archive = ArchiveTree({"sys/a": b"1", "sys/b/c": b"2"})
    assert archive.names("sys") == ["a", "b"]
    assert archive.names("") == ["sys"]


@given(st.data())
def test_any_damaged_archive_is_read_or_rejected(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(make_tar(Path(folder) / "m.tar", {"m/sys/a": b"1", "m/proc/b": b"22"}, mode="w"))
        content = bytearray(path.read_bytes()[: data.draw(st.integers(0, 4096))])
        for place in data.draw(st.lists(st.integers(0, 1600), max_size=6)):
            if place < len(content):
                content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(TopologyError):
            assert open_archive(str(path)).names("") is not None


# Small archives that would cost minutes or gigabytes.


def test_rejects_more_files_than_a_record_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_MEMBERS", 10)
    path = make_tar(tmp_path / "a.tar.gz", {f"sys/{number}": b"" for number in range(11)})
    with pytest.raises(TopologyError, match="more than 10 files"):
        open_archive(path)


@pytest.mark.parametrize("size", [-1, -1024])
def test_rejects_a_negative_size(tmp_path: Path, size: int) -> None:
    headers = [bytearray(special(f"sys/{name}", tarfile.REGTYPE).tobuf(tarfile.USTAR_FORMAT)) for name in "abc"]
    headers[1][124:136] = b"%011o\0" % size
    headers[1][148:156] = b" " * 8
    headers[1][148:156] = b"%06o\0 " % sum(headers[1])
    (tmp_path / "m.tar").write_bytes(b"".join(headers) + bytes(1024))
    with pytest.raises(TopologyError):
        open_archive(str(tmp_path / "m.tar"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_rejects_large_headers(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=form) as archive:
        archive.addfile(tarfile.TarInfo("sys/" + "a" * 100_000))
    with pytest.raises(TopologyError, match="larger headers"):
        open_archive(str(tmp_path / "a.tar.gz"))


def test_rejects_many_headers_that_are_large_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "MAX_HEADERS_BYTES", 10_000)
    path = make_tar(tmp_path / "a.tar.gz", {f"sys/{number}{'a' * 1000}": b"" for number in range(20)})
    with pytest.raises(TopologyError, match="larger headers"):
        open_archive(path)


def test_rejects_deep_folders_and_long_targets(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="more than 40 folders"):
        open_archive(make_tar(tmp_path / "a.tar.gz", {"sys/" + "a/" * 100 + "b": b""}))
    link = special("sys/link", tarfile.SYMTYPE, "a/" * 3000)
    with pytest.raises(TopologyError, match="target of 6000 bytes"):
        open_archive(make_tar(tmp_path / "b.tar.gz", {"sys/a": b""}, link))


def test_rejects_more_content_than_a_record_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_KEPT_BYTES", 10_000)
    path = make_tar(tmp_path / "a.tar.gz", {f"sys/{number}": b"7" * 4000 for number in range(4)})
    with pytest.raises(TopologyError, match="too large"):
        open_archive(path)


def test_a_path_through_many_links_ends(tmp_path: Path) -> None:
    links = [special(f"sys/l{number}", tarfile.SYMTYPE, f"l{number + 1}/" * 100) for number in range(30)]
    tree = open_archive(make_tar(tmp_path / "a.tar.gz", {"sys/a": b""}, *links))
    assert tree.read("sys/l0/a") is None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["x" * 50, "x" * 95])
def test_reads_the_names_links_and_sizes_of_every_format(tmp_path: Path, form: int, folder: str) -> None:
    path = tmp_path / "box.tar"
    # The header's field has 100 bytes: a name may be cut behind a slash.
    with tarfile.open(path, "w", format=form) as writer:
        for name, kind, target, content in (
            (f"sys/{folder}", tarfile.DIRTYPE, "", b""),
            (f"sys/{folder}/file", tarfile.REGTYPE, "", b"7" * 1000),
            ("sys/old", tarfile.AREGTYPE, "", b""),
            (f"sys/{folder}/link", tarfile.SYMTYPE, "file", b""),
        ):
            member = special(name, kind, target)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    tree = open_archive(str(path))
    assert tree.names(f"sys/{folder}") == ["file", "link"]
    assert tree.read("sys/old") == b""
    assert tree.read(f"sys/{folder}/link") == b"7" * 1000


@pytest.mark.parametrize(
    ("kind", "size", "target"), [(tarfile.REGTYPE, 1000, ""), (tarfile.DIRTYPE, 0, ""), (tarfile.SYMTYPE, 0, "file")]
)
def test_a_plain_header_is_read_without_tarfile_unless_it_is_damaged(kind: bytes, size: int, target: str) -> None:
    member = special(f"{'d' * 90}/{'n' * 60}", kind, target)
    member.size = size
    block = member.tobuf(tarfile.USTAR_FORMAT)
    plain = tar_stream.plain_header(block)
    assert plain is not None
    assert plain._replace(name=plain.name.rstrip("/")) == (member.name, kind, size, target)
    # One bit of the name.
    assert tar_stream.plain_header(bytes([block[0] ^ 1]) + block[1:]) is None
