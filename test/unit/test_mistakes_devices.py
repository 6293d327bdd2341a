"""Mistakes with GPUs, on a driver that is made up: its answers are the row's."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from test.mistakes import package, tensors
from tileir.errors import DeviceError
from tileir.runtime import driver

GB = 1 << 30


@dataclass
class Driver:
    """Answers as the CUDA driver of a machine with one GPU. fails: what a call says instead, by its name."""

    name: str = "NVIDIA H100 80GB HBM3"
    capability: int = 9
    sms: int = 132
    free: tuple[int, ...] = (79 * GB,)
    fails: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = iter(self.free)
        self._left = self.free[-1]

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if name in self.fails:
            raise DeviceError(f"{name} failed: {self.fails[name]}")
        if name == "cuDeviceGetAttribute":
            major = "COMPUTE_CAPABILITY_MAJOR" in str(arguments[0])
            return self.capability if major else self.sms
        if name == "cuMemGetInfo":
            self._left = next(self._free, self._left)
            return self._left, 80 * GB
        return {"cuDeviceGetName": self.name.encode() + b"\0"}.get(name, 1)


def needed() -> int:
    """Bytes that the package says it takes."""
    return sum(package("h100").manifest["memory"].values())


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(driver, "device_count", lambda: 1)
    return monkeypatch


ROWS = [
    ("cuda:3", Driver(), ("no device cuda:3", "sees: 1", 'device="reference"')),
    ("cuda:0", Driver(name="NVIDIA A100", capability=8), ("NVIDIA A100", "Hopper", "H100 and H200")),
    ("cuda:0", Driver(name="NVIDIA H100 PCIe", sms=114), ("132 SMs", "NVIDIA H100 PCIe has 114", "target")),
    ("cuda:0", Driver(free=(1 << 20,)), (f"{1 << 20} bytes free", "needs", "states", "max_context")),
    ("cuda:0", Driver(free=(79 * GB, 100)), ("needs", "100 are free", "H100", "max_context")),
    ("cuda:0", Driver(fails={"cuDevicePrimaryCtxRetain": "CUDA_ERROR_DEVICE_UNAVAILABLE"}),
     ("cuda:0", "CUDA_ERROR_DEVICE_UNAVAILABLE", "another process")),
    ("cuda:0", Driver(fails={"cuModuleLoadData": "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}),
     ("refuses the kernel", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "driver or newer")),
]  # fmt: skip
NAMES = ["absent", "too old", "too few SMs", "too small", "full meanwhile", "busy", "old driver"]


@pytest.mark.parametrize(("device", "made_up", "words"), ROWS, ids=NAMES)
def test_mistake(
    device: str, made_up: Driver, words: tuple[str, ...], patched: pytest.MonkeyPatch
) -> None:
    held = package("h100")
    patched.setattr(driver, "call", made_up.call)
    with pytest.raises(DeviceError) as raised:
        held.load(tensors(), device)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert raised.value.hint
    retained = "cuDevicePrimaryCtxRetain" in set(made_up.calls) - set(made_up.fails)
    assert made_up.calls.count("cuDevicePrimaryCtxRelease") == retained


def test_a_load_that_fails_gives_its_memory_back(patched: pytest.MonkeyPatch) -> None:
    held, made_up = package("h100"), Driver(fails={"cuLaunchKernel": "CUDA_ERROR_LAUNCH_FAILED"})
    patched.setattr(driver, "call", made_up.call)
    # What the driver says it has pinned is memory of ours.
    patched.setattr(driver.Device, "pinned", lambda self, size: np.zeros(size, np.uint8))
    patched.setattr(driver.Device, "unpin", lambda self, array: None)
    with pytest.raises(DeviceError, match="CUDA_ERROR_LAUNCH_FAILED"):
        held.load(tensors(), "cuda:0")
    assert made_up.calls.count("cuMemAlloc") == made_up.calls.count("cuMemFree") > 0
    assert made_up.calls[-1] == "cuDevicePrimaryCtxRelease"


def test_too_small_says_how_much_is_needed(patched: pytest.MonkeyPatch) -> None:
    held = package("h100")
    patched.setattr(driver, "call", Driver(free=(1 << 20,)).call)
    with pytest.raises(DeviceError, match=r"the model needs (\d+)") as raised:
        held.load(tensors(), "cuda:0")
    found = int(str(raised.value).partition("the model needs ")[2].partition(":")[0])
    assert found >= needed()
