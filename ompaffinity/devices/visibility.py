"""Which physical GPUs are visible to a process, and under which numbers, from its environment variables.

This module queries no driver and initialises neither CUDA nor HIP. Sources: CUDA C++ Programming Guide
(Environment Variables), NVIDIA's MIG User Guide (Device Enumeration), ROCm's documentation (GPU isolation techniques),
the Level Zero specification (Affinity Mask).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ompaffinity.messages import DEVICE_LIST_CUT, DEVICE_LISTED_TWICE, DEVICE_ORDER_UNKNOWN, Message
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NVIDIA, AMD, INTEL, OTHER = "nvidia", "amd", "intel", "other"
CUDA_LIST, CUDA_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
ROCR_LIST, HIP_LIST = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
ZE_MASK = "ZE_AFFINITY_MASK"
VISIBILITY = (CUDA_LIST, ROCR_LIST, HIP_LIST, ZE_MASK)
NUMBER = re.compile(r"\s*([+-]?)([0-9]{1,9})")


class PhysicalGPU(NamedTuple):
    """A GPU as its driver or the PCI bus reports it.

    `address` has the form of sysfs (``0000:1a:00.0``; the domain may have more digits), `uuid` the form of the vendor
    (``GPU-8932f937-...``), and `parts` are the UUIDs of its MIG instances. Unknown texts are empty. `order` is its
    number in the vendor's runtime (HIP) if all GPUs are visible, -1 where unknown. `display`: the PCI class is a
    display controller, which may not be able to compute.
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
    """Return the GPUs in the order of their numbers in a process with this environment, and the messages.

    `devices` are all GPUs of the machine. Each vendor's GPUs are numbered by `order` where known, else by PCI address.
    NVIDIA comes first, then AMD, Intel and the others. Displays of other vendors count only if there is no other GPU.
    """
    visible: list[PhysicalGPU] = []
    messages: list[Message] = []
    for vendor, selected in ((NVIDIA, _cuda), (AMD, _rocm), (INTEL, _level_zero)):
        members = sorted((device for device in devices if device.vendor == vendor), key=_by_address)
        if all(device.order >= 0 for device in members):
            members.sort(key=lambda device: device.order)
        if members:
            visible += selected(members, environ, messages)
            if vendor == NVIDIA:
                # HIP also reads CUDA_VISIBLE_DEVICES; on a machine with GPUs of both vendors it applies to CUDA.
                environ = {name: value for name, value in environ.items() if name != CUDA_LIST}
    only_displays = all(device.vendor == OTHER and device.display for device in devices)
    others = [device for device in devices if device.vendor == OTHER and (only_displays or not device.display)]
    visible += sorted(others, key=_by_address)
    return tuple(visible), tuple(messages)


def by_address(address: str) -> tuple[int, ...]:
    """Return the sort key of a PCI address."""
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
    """Select with ROCR_VISIBLE_DEVICES, renumber, then select with HIP's list, or CUDA's where HIP's is unset."""
    remaining: Sequence[PhysicalGPU] = devices
    text = environ.get(ROCR_LIST)
    if text is not None:
        remaining = _selected(ROCR_LIST, text, remaining, messages)
    name = HIP_LIST if HIP_LIST in environ else CUDA_LIST
    text = environ.get(name)
    return remaining if text is None else _selected(name, text, remaining, messages)


def _level_zero(
    devices: list[PhysicalGPU], environ: Mapping[str, str], messages: list[Message]
) -> Sequence[PhysicalGPU]:
    """Select with ZE_AFFINITY_MASK, which filters and never reorders; ``0.1`` is a tile of device 0."""
    text = environ.get(ZE_MASK)
    if not (text and text.strip()):
        return devices
    wanted = set()
    for entry in text.split(","):
        number = entry.strip().partition(".")[0]
        if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(devices)):
            messages.append(
                DEVICE_LIST_CUT(variable=ZE_MASK, value=text, entry=entry.strip(), consequence="it is ignored")
            )
            continue
        wanted.add(int(number))
    return [device for number, device in enumerate(devices) if number in wanted]


def _selected(name: str, text: str, devices: Sequence[PhysicalGPU], messages: list[Message]) -> list[PhysicalGPU]:
    """Return the devices in a list, up to the first entry without a device; none if a device is listed twice."""
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    find = _finder(entries[0] if entries else "")
    selected: list[PhysicalGPU] = []
    keys: set[object] = set()
    for entry in entries:
        match = find(entry, devices)
        if match is None:
            if entry != "-1":
                messages.append(
                    DEVICE_LIST_CUT(variable=name, value=text, entry=entry, consequence="the list ends before it")
                )
            break
        device, key = match
        if key in keys:
            messages.append(DEVICE_LISTED_TWICE(variable=name, value=text))
            return []
        keys.add(key)
        selected.append(device)
    return selected


def _finder(
    first: str,
) -> Callable[[str, Sequence[PhysicalGPU]], tuple[PhysicalGPU, object] | None]:
    """Return the reader of all entries, by the kind of the first one; an entry of another kind ends the list."""
    if first.startswith("MIG-"):
        return _by_part
    return _by_uuid if first.startswith("GPU-") else _by_number


def _by_number(entry: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """Read a number as strtol(3) does: ``1gpu2`` is 1."""
    match = NUMBER.match(entry)
    if match is None or match[1] == "-" or int(match[2]) >= len(devices):
        return None
    return devices[int(match[2])], int(match[2])


def _by_uuid(entry: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """Read a UUID or a unique prefix of it."""
    if not entry.startswith("GPU-"):
        return None
    matches = [device for device in devices if device.uuid.lower().startswith(entry.lower())]
    return (matches[0], matches[0].uuid) if len(matches) == 1 else None


def _by_part(entry: str, devices: Sequence[PhysicalGPU]) -> tuple[PhysicalGPU, object] | None:
    """Return the GPU of a MIG instance: its UUID, or the form of older drivers, MIG-GPU-<uuid>/<number>/<number>."""
    old = re.fullmatch(r"MIG-(GPU-[0-9a-fA-F-]+)/[0-9]{1,3}/[0-9]{1,3}", entry)
    if old is not None:
        gpu = _by_uuid(old[1], devices)
        return None if gpu is None else (gpu[0], entry)
    matches = [(device, part) for device in devices for part in device.parts if part.lower().startswith(entry.lower())]
    return matches[0] if entry.startswith("MIG-") and len(matches) == 1 else None
