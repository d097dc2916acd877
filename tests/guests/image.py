"""The guests' images: Debian's packages of the guest's architecture, unpacked into one initramfs.

A private apt, with folders of its own, fetches them: this machine's packages are left alone, and no root is needed.
Images are kept in ``$XDG_CACHE_HOME/ompaffinity-guests`` (by default in ``~/.cache``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guests.table import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "bookworm"
PYTHON = "python3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    "bash busybox-static libblkid1 libbz2-1.0 libc-bin libc6 libcap-ng0 libexpat1 libffi8 libgcc-s1 libgomp1"
    " liblzma5 libmount1 libnuma1 libpcre2-8-0 libpython3.11-minimal libpython3.11-stdlib libselinux1 libsmartcols1"
    " libtinfo6 libuuid1 numactl python3-psutil python3.11-minimal util-linux zlib1g"
)
WHEELS = "defusedxml iniconfig markdown-it-py mdurl packaging pluggy py-libnuma pygments pytest<8.4 rich<15"
"""What the project and its tests need; pure Python, so they fit each architecture."""
UNUSED = (
    "usr/lib/*/gconv usr/lib/python3.11/ensurepip usr/lib/python3.11/idlelib usr/lib/python3.11/lib2to3"
    " usr/lib/python3.11/pydoc_data usr/lib/python3/dist-packages/psutil/tests usr/lib/python3/dist-packages/tests"
    " usr/share"
)
INIT = """#!/bin/busybox sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
/bin/busybox --install -s /usr/bin 2>/dev/null
mkdir -p /proc /sys /dev /tmp /run /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
stty -opost -echo </dev/console 2>/dev/null
ip link set lo up 2>/dev/null
ldconfig
echo "@@GUEST-BEGIN@@"
bash -o pipefail -c 'bash /guest-command </dev/null 2>&1 | cat'
echo "@@GUEST-END@@ $?"
poweroff -f
"""
"""ldconfig makes the cache that ctypes.util.find_library reads; stty keeps line ends as they are.

The command writes into a pipe: s390x's console stops for ever at lines that are written again and again.
"""


class NoGuestError(Exception):
    """A guest is not available on this machine; the text is the reason for a skip."""


def image(architecture: str) -> tuple[Path, Path]:
    """Return (kernel, initramfs) of an architecture, made if they are not there yet.

    Raises:
        NoGuestError: they cannot be made here.
    """
    folder = _cache() / f"{architecture}-{_recipe(architecture)}"
    kernel, initramfs = folder / "kernel", folder / "initramfs"
    with _locked(folder):
        if not (kernel.exists() and initramfs.exists()):
            _require("apt-get", "apt-cache", "cpio", "dpkg-deb", "tar")
            with tempfile.TemporaryDirectory(dir=folder) as work:
                _build(architecture, Path(work), kernel, initramfs)
    return kernel, initramfs


def newer_kernel(architecture: str) -> Path:
    """Return the kernel of Debian's backports for an architecture, fetched if it is not there yet.

    Raises:
        NoGuestError: it is not available here.
    """
    folder = _cache() / f"{architecture}-newer-kernel"
    kernel = folder / "kernel"
    with _locked(folder):
        if not kernel.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                apt = _private_apt(Path(work) / "apt", architecture, f"{SUITE}-backports")
                boot = Path(work) / "boot"
                boot.mkdir()
                (package,) = _download(apt, [_kernel_package(apt, architecture)], Path(work) / "packages")
                _unpack(package, boot)
                _kernel_in(boot, architecture).replace(kernel)
    return kernel


def emulator(architecture: str, minimum: tuple[int, int]) -> list[str]:
    """Return the start of a QEMU command line, of a release that is not older than `minimum`.

    If this machine's is older, one from Debian's backports is fetched and unpacked beside the images.

    Raises:
        NoGuestError: there is none.
    """
    name, package = ARCHITECTURES[architecture].qemu, ARCHITECTURES[architecture].qemu_package
    installed = shutil.which(name)
    if installed is None:
        raise NoGuestError(f"{name} is not installed (Debian: {package}; scripts/install-system-packages does it)")
    if _release(installed) >= minimum:
        return [installed]
    folder = _cache() / f"{name}-newer"
    program = folder / "usr/bin" / name
    with _locked(_cache()):
        if not program.exists():
            _fetch_newer_emulator(package, folder)
    if not program.exists() or _release(str(program)) < minimum:
        wanted = ".".join(map(str, minimum))
        raise NoGuestError(f"{name} is older than {wanted}, and Debian's backports have none that runs here")
    data = [folder / "usr/share" / part for part in ("qemu", "seabios")]
    return [str(program), *(word for part in data for word in ("-L", str(part)))]


def pack(folder: Path, archive: Path) -> None:
    """Write a folder as an uncompressed archive, which an emulated kernel unpacks fastest."""
    names = subprocess.run(["find", ".", "-mindepth", "1", "-print0"], cwd=folder, check=True, stdout=subprocess.PIPE)
    command = ["cpio", "--null", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", str(archive)]
    subprocess.run(command, input=names.stdout, cwd=folder, check=True)


def compile_python(folder: Path, prefix: str) -> None:
    """Compile what an emulated Python would take seconds for; only the same release makes byte code for it."""
    if f"python{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON:
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        # Some of Python's own tests do not compile, on purpose.
        subprocess.run([*command, "-s", str(folder), "-p", prefix, str(folder)], check=False)


def _recipe(architecture: str) -> str:
    """Return a short name for all that goes into an image: another recipe makes another image."""
    parts = (SUITE, PACKAGES, WHEELS, UNUSED, INIT, repr(ARCHITECTURES[architecture]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ompaffinity-guests"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two test runs may want the same image."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise NoGuestError(f"{', '.join(missing)}: not installed, so no image of a guest can be made")


def _release(program: str) -> tuple[int, int]:
    reported = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", reported)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _run(*command: str, **options: object) -> str:
    """Return what a command prints.

    Raises:
        NoGuestError: it fails; what is wrong with a download is a reason to skip.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise NoGuestError(f"{command[0]} failed while making a guest's image: {''.join(last)}")
    return str(done.stdout)


def _mirror() -> str:
    """Return the address of the Debian archive that this machine uses itself."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    for line in _run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        address, release, component = line.split()
        if component == "main" and release.isalpha() and address.rstrip("/").endswith("/debian"):
            return address
    raise NoGuestError("apt knows no Debian archive, so no image of a guest can be made")


def _private_apt(folder: Path, architecture: str, suite: str) -> dict[str, str]:
    """Return the environment of an apt that keeps all it does in `folder`, after an update."""
    if not KEYRING.exists():
        raise NoGuestError(f"{KEYRING} is missing (debian-archive-keyring), so no package of a guest can be checked")
    for name in ("state/lists/partial", "cache/archives/partial", "none"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {suite} main\n")
    (folder / "apt.conf").write_text(
        f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
        f'Dir::State "{folder}/state";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/none";\n'
        f'Dir::Etc::preferencesparts "{folder}/none";\nDir::Etc::preferences "{folder}/nofile";\n'
        'Acquire::Languages "none";\nAPT::Sandbox::User "";\n'
    )
    environment = dict(os.environ, APT_CONFIG=str(folder / "apt.conf"))
    _run("apt-get", "-qq", "update", env=environment)
    return environment


def _download(environment: dict[str, str], packages: list[str], folder: Path) -> list[Path]:
    folder.mkdir()
    _run("apt-get", "-qq", "download", *packages, env=environment, cwd=folder)
    return sorted(folder.glob("*.deb"))


def _unpack(package: Path, root: Path) -> None:
    """Unpack a package, into the folders behind the links of a merged /usr."""
    tar = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(root)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reader:
        subprocess.run(tar, stdin=reader.stdout, check=True)
    if reader.returncode != 0:
        raise NoGuestError(f"{package.name} cannot be unpacked")


def _build(architecture: str, work: Path, kernel: Path, initramfs: Path) -> None:
    needs = ARCHITECTURES[architecture]
    apt = _private_apt(work / "apt", architecture, SUITE)
    kernel_package = _kernel_package(apt, architecture)
    root, boot = work / "root", work / "boot"
    boot.mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in _download(apt, [kernel_package, *PACKAGES.split(), *needs.packages], work / "packages"):
        _unpack(package, boot if package.name.startswith("linux-image") else root)
    _install_wheels(work / "wheels", root / "usr/lib/python3/dist-packages")
    for pattern in UNUSED.split():
        for path in root.glob(pattern):
            shutil.rmtree(path)
    for name, target in (("python3", PYTHON), ("python", PYTHON), ("sh", "bash")):
        (root / "usr/bin" / name).unlink(missing_ok=True)
        (root / "usr/bin" / name).symlink_to(target)
    compile_python(root, "/")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    pack(root, work / "initramfs")
    _kernel_in(boot, architecture).replace(kernel)
    (work / "initramfs").replace(initramfs)


def _kernel_package(apt: dict[str, str], architecture: str) -> str:
    depends = _run("apt-cache", "depends", ARCHITECTURES[architecture].kernel_package, env=apt)
    return next(line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line)


def _kernel_in(boot: Path, architecture: str) -> Path:
    return next(boot.glob(f"boot/{ARCHITECTURES[architecture].kernel_image}-*"))


def _install_wheels(wheels: Path, site: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
        outside = shutil.which("pip3") or shutil.which("pip")
        if outside is None:
            raise NoGuestError("there is no pip, which fetches what the tests inside of a guest need")
        pip = [outside]
    fetch = ("download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels))
    _run(*pip, "--disable-pip-version-check", *fetch, *WHEELS.split())
    for wheel in wheels.glob("*-none-any.whl"):
        shutil.unpack_archive(wheel, site, "zip")


def _fetch_newer_emulator(package: str, folder: Path) -> None:
    host = _run("dpkg", "--print-architecture").strip()
    with tempfile.TemporaryDirectory(dir=_cache()) as work:
        apt = _private_apt(Path(work) / "apt", host, f"{SUITE}-backports")
        root = Path(work) / "root"
        root.mkdir()
        for archive in _download(apt, [package, "qemu-system-common", "qemu-system-data"], Path(work) / "packages"):
            _unpack(archive, root)
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)
