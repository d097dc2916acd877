from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.devices.visibility import AMD, INTEL, NVIDIA, OTHER, PhysicalGPU, visible_gpus

FIRST, SECOND = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-8932aaaa-d72c-4106-c12f-20bd9faed9f6"
PART, OTHER_PART = "MIG-aaaa0000-1111", "MIG-bbbb0000-1111"


def gpus(count: int, vendor: str = NVIDIA) -> list[PhysicalGPU]:
    uuids = [FIRST, SECOND, *(f"GPU-{number:08x}-0000" for number in range(2, count))]
    return [
        PhysicalGPU(f"0000:{16 + number:02x}:00.0", vendor, "model", uuid, (PART, OTHER_PART) if number == 1 else ())
        for number, uuid in zip(range(count), uuids)
    ]


def numbers(text: str | None, vendor: str = NVIDIA, environ: dict[str, str] | None = None) -> list[int]:
    devices = gpus(4, vendor)
    name = {NVIDIA: "CUDA_VISIBLE_DEVICES", AMD: "HIP_VISIBLE_DEVICES", INTEL: "ZE_AFFINITY_MASK"}[vendor]
    found, _ = visible_gpus(devices, environ or {} if text is None else {name: text})
    return [devices.index(device) for device in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        # The example of the guide: entries after the first invalid one are not visible.
        ("0,2,-1,1", [0, 2]),
        ("0,9,1", [0]),
        ("nonsense", []),
        ("-1", []),
        ("1gpu2,3", [1, 3]),
        ("1,1", []),
        ("0,1,0", []),
        (FIRST, [0]),
        ("GPU-8932a,GPU-8932f937", [1, 0]),
        # Not unique, and unknown.
        ("GPU-8932", []),
        ("GPU-dead,GPU-8932f937", []),
        # Kinds do not mix.
        ("GPU-8932f937,0", [0]),
        ("0,GPU-8932f937", [0]),
        (PART, [1]),
        (f"{PART},{OTHER_PART}", [1, 1]),
        (f"{PART},{PART}", []),
        (f"MIG-{SECOND}/1/0", [1]),
        ("MIG-unknown", []),
        ("99999999999999999999", []),
        (",0", []),
    ],
)
def test_selects_by_cuda_visible_devices(text: str | None, expected: list[int]) -> None:
    assert numbers(text) == expected


def test_numbers_gpus_by_pci_address() -> None:
    far, near, wide = (PhysicalGPU(address, NVIDIA) for address in ("0001:01:00.0", "0000:9b:00.0", "10000:00:02.0"))
    found, messages = visible_gpus([wide, far, near], {})
    assert found == (near, far, wide)
    assert messages == ()


@pytest.mark.parametrize(
    ("environ", "reported"),
    [
        ({}, True),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, True),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
    ],
)
def test_reports_the_unknown_order_of_different_gpus(environ: dict[str, str], reported: bool) -> None:
    devices = [PhysicalGPU("0000:01:00.0", NVIDIA, "A100", "GPU-a"), PhysicalGPU("0000:02:00.0", NVIDIA, "H100")]
    _, messages = visible_gpus(devices, environ)
    assert [message.code for message in messages] == ["device-order-unknown"] * reported


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, [2, 3]),
        ({"HIP_VISIBLE_DEVICES": "3"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [3]),
        # HIP_VISIBLE_DEVICES overrides CUDA_VISIBLE_DEVICES.
        ({"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        # ROCr selects first, and HIP renumbers.
        ({"ROCR_VISIBLE_DEVICES": "3,2", "HIP_VISIBLE_DEVICES": "1,0"}, [2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-8932f937", "HIP_VISIBLE_DEVICES": "0"}, [0]),
    ],
)
def test_selects_by_rocr_then_hip(environ: dict[str, str], expected: list[int]) -> None:
    assert numbers(None, AMD, environ) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", [0, 1, 2, 3]), ("2,0", [0, 2]), ("1.0,1.1", [1]), ("0.1,3", [0, 3]), ("9", []), ("x,1", [1])],
)
def test_level_zero_filters_and_never_reorders(text: str, expected: list[int]) -> None:
    assert numbers(text, INTEL) == expected


def test_reports_the_entry_that_ends_a_list() -> None:
    _, messages = visible_gpus(gpus(2), {"CUDA_VISIBLE_DEVICES": "0,7"})
    (message,) = messages
    assert (message.code, message.level) == ("device-list-cut", "warning")
    assert message.message.startswith("CUDA_VISIBLE_DEVICES is '0,7', and '7' in it names no GPU that is left")
    # -1 ends a list on purpose.
    assert visible_gpus(gpus(2), {"CUDA_VISIBLE_DEVICES": "-1"})[1] == ()
    _, (twice,) = visible_gpus(gpus(2), {"CUDA_VISIBLE_DEVICES": "1,1"})
    assert "named twice leaves none" in twice.message


def test_lists_the_vendors_in_a_fixed_order() -> None:
    devices = [PhysicalGPU(f"0000:0{at}:00.0", vendor) for at, vendor in enumerate((OTHER, INTEL, AMD, NVIDIA))]
    found, _ = visible_gpus(devices, {"HIP_VISIBLE_DEVICES": ""})
    assert [device.vendor for device in found] == [NVIDIA, INTEL, OTHER]


@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, 4))
def test_any_text_selects_only_present_gpus(first: str, second: str, count: int) -> None:
    for vendor, names in (
        (NVIDIA, ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")),
        (AMD, ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")),
        (INTEL, ("ZE_AFFINITY_MASK", "CUDA_VISIBLE_DEVICES")),
    ):
        devices = gpus(count, vendor)
        found, _ = visible_gpus(devices, dict(zip(names, (first, second))))
        assert set(found) <= set(devices)


@given(st.lists(st.integers(0, 3), unique=True))
def test_keeps_the_order_of_the_numbers(chosen: list[int]) -> None:
    assert numbers(",".join(map(str, chosen))) == chosen
