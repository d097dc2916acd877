"""Which physical GPUs a process sees, and under which numbers: told by the variables that it was started with.

Nothing here asks a driver, and nothing initialises CUDA or HIP in the caller. Sources: CUDA C++ Programming Guide
(Environment Variables), NVIDIA's MIG User Guide (Device Enumeration), ROCm's documentation (GPU isolation techniques),
the Level Zero specification (Affinity Mask).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.messages import DEVICE_LIST_CUT, DEVICE_LISTED_TWICE, DEVICE_ORDER_UNKNOWN, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NVIDIA, AMD, INTEL, OTHER = "nvidia", "amd", "intel", "other"
CUDA_LIST, CUDA_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
ROCR_LIST, HIP_LIST = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
ZE_MASK = "ZE_AFFINITY_MASK"
VISIBILITY = (CUDA_LIST, ROCR_LIST, HIP_LIST, ZE_MASK)
NUMBER = re.compile(r"\s*([+-]?)([0-9]{1,9})")


class PhysicalGPU(NamedTuple):
    """A GPU as its driver, or the PCI bus, tells it.

    `address` is that of sysfs (``0000:1a:00.0``, the domain as long as it must be), `uuid` as the vendor writes it
    (``GPU-8932f937-...``), and `parts` are the UUIDs of its MIG instances. Empty where it is not known. `order` is the
    number that the vendor's runtime gives it when it sees all (HIP's), -1 where that is not known; `display` says that
    it is one, and of another vendor perhaps no more than that.
    """

    address: str
    vendor: str = OTHER
    name: str = ""
    uuid: str = ""
    parts: tuple[str, ...] = ()
    order: int = -1
    display: bool = False


def visible_gpus(
    devices: Sequence[PhysicalGPU], environ: Mapping[str, str]
) -> tuple[tuple[PhysicalGPU, ...], tuple[Message, ...]]:
    """Return the GPUs in the order of their numbers in a process with this environment, and what there is to say.

    `devices` are all GPUs of the machine; each vendor's are numbered by PCI address, or as its runtime is known to.
    A machine with GPUs of several vendors lists NVIDIA's, AMD's, Intel's, then the others, of which displays count only
    where there is nothing else.
    """
    found: list[PhysicalGPU] = []
    messages: list[Message] = []
    for vendor, chosen in ((NVIDIA, _cuda), (AMD, _rocm), (INTEL, _level_zero)):
        members = sorted((device for device in devices if device.vendor == vendor), key=_by_address)
        if all(device.order >= 0 for device in members):
            members.sort(key=lambda device: device.order)
        if members:
            found += chosen(members, environ, messages)
            if vendor == NVIDIA:
                # HIP reads CUDA's variable, too; where there are GPUs of both it is meant for CUDA.
                environ = {name: value for name, value in environ.items() if name != CUDA_LIST}
    only_displays = all(device.vendor == OTHER and device.display for device in devices)
    others = [device for device in devices if device.vendor == OTHER and (only_displays or not device.display)]
    found += sorted(others, key=_by_address)
    return tuple(found), tuple(messages)


def by_address(address: str) -> tuple[int, ...]:
    """Return what PCI addresses are sorted by."""
    return tuple(int(number, 16) for number in re.split("[:.]", address))


def _by_address(device: PhysicalGPU) -> tuple[int, ...]:
    return by_address(device.address)


def _cuda(devices: list[PhysicalGPU], environ: Mapping[str, str], messages: list[Message]) -> Sequence[PhysicalGPU]:
    text = environ.get(CUDA_LIST)
    by_speed = environ.get(CUDA_ORDER, "FASTEST_FIRST") != "PCI_BUS_ID" and len({gpu.name for gpu in devices}) > 1
    if by_speed and (text is None or NUMBER.match(text)):
        messages.append(DEVICE_ORDER_UNKNOWN())
    return devices if text is None else _selected(CUDA_LIST, text, devices, messages)


def _rocm(devices: list[PhysicalGPU], environ: Mapping[str, str], messages: list[Message]) -> Sequence[PhysicalGPU]:
    """ROCr chooses first and numbers anew; HIP chooses among these, and reads CUDA's variable if it has none."""
    left: Sequence[PhysicalGPU] = devices
    text = environ.get(ROCR_LIST)
    if text is not None:
        left = _selected(ROCR_LIST, text, left, messages)
    name = HIP_LIST if HIP_LIST in environ else CUDA_LIST
    text = environ.get(name)
    return left if text is None else _selected(name, text, left, messages)


def _level_zero(
    devices: list[PhysicalGPU], environ: Mapping[str, str], messages: list[Message]
) -> Sequence[PhysicalGPU]:
    """The mask filters and never reorders; ``0.1`` is a tile of device 0."""
    text = environ.get(ZE_MASK)
    if not (text and text.strip()):
        return devices
    wanted = set()
    for part in text.split(","):
        number = part.strip().partition(".")[0]
        if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(devices)):
            messages.append(
                DEVICE_LIST_CUT(variable=ZE_MASK, value=text, entry=part.strip(), consequence="it is left out")
            )
            continue
        wanted.add(int(number))
    return [device for number, device in enumerate(devices) if number in wanted]


def _selected(name: str, text: str, devices: Sequence[PhysicalGPU], messages: list[Message]) -> list[PhysicalGPU]:
    """Return the devices that a list names, up to the first entry that names none; none if it names one twice."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    find = _finder(words[0] if words else "")
    found: list[PhysicalGPU] = []
    named: set[object] = set()
    for word in words:
        hit = find(word, devices)
        if hit is None:
            if word != "-1":
                messages.append(
                    DEVICE_LIST_CUT(variable=name, value=text, entry=word, consequence="the list ends before it")
                )
            break
        device, key = hit
        if key in named:
            messages.append(DEVICE_LISTED_TWICE(variable=name, value=text))
            return []
        named.add(key)
        found.append(device)
    return found


def _finder(
    first: str,
) -> Callable[[str, Sequence[PhysicalGPU]], tuple[PhysicalGPU, object] | None]:
    """Return how the entries are read: the first one tells, and another kind ends the list."""
    if first.startswith("MIG-"):
        return _by_part
    return _by_uuid if first.startswith("GPU-") else _by_number


def _by_number(word: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """As strtol reads: ``1gpu2`` is 1."""
    match = NUMBER.match(word)
    if match is None or match[1] == "-" or int(match[2]) >= len(devices):
        return None
    return devices[int(match[2])], int(match[2])


def _by_uuid(word: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """By the UUID or as much of it as only one GPU has."""
    if not word.startswith("GPU-"):
        return None
    hits = [device for device in devices if device.uuid.lower().startswith(word.lower())]
    return (hits[0], hits[0].uuid) if len(hits) == 1 else None


def _by_part(word: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """A MIG instance, by its UUID or in the form of older drivers (MIG-GPU-<uuid>/<instance>/<instance>): its GPU."""
    old = re.fullmatch(r"MIG-(GPU-[0-9a-fA-F-]+)/[0-9]{1,3}/[0-9]{1,3}", word)
    if old is not None:
        hit = _by_uuid(old[1], devices)
        return None if hit is None else (hit[0], word)
    hits = [(device, part) for device in devices for part in device.parts if part.lower().startswith(word.lower())]
    return hits[0] if word.startswith("MIG-") and len(hits) == 1 else None
