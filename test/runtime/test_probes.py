"""Probes on a device that is made up: it keeps time by what it is asked to do. Their PTX is assembled."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tileir.codegen.ptx import assemble
from tileir.errors import DeviceError, TileirError
from tileir.runtime import probes
from tileir.runtime.probes import PTX, measure
from tileir.target import TARGETS

H100 = TARGETS["h100"]


@dataclass
class Gpu:
    """Streams 3 TB/s, hands over in 0.05 µs, launches in 4 µs, each times the next of `drift`; exchanges at a price."""

    name: str = "NVIDIA H100 PCIe"
    sms: int = 114
    major: int = 9
    free: int = 79 << 30
    drift: tuple[float, ...] = (1.0,)
    stuck: str = ""
    ms: float = 0.0
    launches: list[tuple[str, int, int, int]] = field(default_factory=list)
    memory: dict[int, int] = field(default_factory=dict)
    open: bool = True

    def __call__(self, index: int) -> "Gpu":
        assert index == 0
        return self

    def attribute(self, name: str) -> int:
        return {
            "MULTIPROCESSOR_COUNT": self.sms,
            "COMPUTE_CAPABILITY_MAJOR": self.major,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448,
        }[name]

    def free_bytes(self) -> int:
        return self.free

    def allocate(self, size: int, what: str) -> int:
        self.memory[len(self.memory) + 1] = size
        return len(self.memory)

    def fill(self, pointer: int, size: int) -> None:
        assert size <= self.memory[pointer]

    def module(self, ptx: str) -> str:
        return ptx

    def function(self, module: str, name: str, smem: int = 0) -> str:
        assert f".visible .entry {name}(" in module
        return name

    def launch(
        self,
        function: str,
        grid: Any,
        threads: int,
        smem: int,
        arguments: Any,
        *,
        cooperative: bool,
    ) -> None:
        assert cooperative
        values = [value for value, _ in arguments]
        us = {
            "stream_read": lambda: values[1] * 16384 / 3e6,
            "exchange_packets": lambda: values[3] * self.packets_us(*values[1:3]),
            "exchange_blocks": lambda: values[2] * (2.5 + 0.02e-3 * values[1] * self.sms),
            "mbarrier": lambda: values[0] * 2 * 0.05,
            "nothing": lambda: 4.0,
        }[function]()
        self.ms += us / 1e3 * self.drift[len(self.launches) % len(self.drift)]
        self.launches.append((function, grid[0], threads, smem))

    def packets_us(self, words: int, copies: int) -> float:
        """One exchange of so many words of each SM."""
        begin, each = {1: (0.5, 0.1e-3), 2: (0.4, 0.15e-3)}[copies]
        return begin + each * words * self.sms

    def event(self) -> float:
        return self.ms

    def milliseconds(self, begin: float, end: float) -> float:
        return end - begin

    def reach(self, event: float) -> None:
        assert event <= self.ms

    def synchronize(self) -> None: ...

    def download(self, pointer: int, shape: Any, dtype: Any) -> np.ndarray:
        return np.full(shape, self.launches[-1][0] == self.stuck, dtype)

    def close(self) -> None:
        self.open = False


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_probes_assemble() -> None:
    _, facts = assemble(PTX.read_text(), H100)
    exchanges = {"exchange_packets", "exchange_blocks"}
    assert set(facts) == {"stream_read", "mbarrier", "nothing"} | exchanges
    assert [f.spill_bytes for f in facts.values()] == [0] * 5


def test_every_loop_that_waits_has_a_limit() -> None:
    """What polls or tries looks at the clock before it goes round."""
    for entry in PTX.read_text().split(".visible .entry ")[1:]:
        for wait in ("mbarrier.try_wait", "ld.relaxed.gpu"):
            if wait in entry:
                loop = entry[entry.index(wait) :]
                assert "%clock64" in loop[: loop.index("st.relaxed.gpu.global.u32 [word]")]


def test_figures_are_what_the_device_does(patch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    patch.setattr(probes, "Device", gpu)
    found = measure(H100)
    assert (found.name, found.sms, found.smem_bytes) == ("nvidia-h100-pcie", 114, 232448)
    assert found.stream_tbps == pytest.approx(3.0, rel=1e-3)
    assert found.hop_us == pytest.approx(0.5 + 0.1e-3 * 8 * 114, rel=1e-3)
    assert found.packet_us == pytest.approx(0.5, rel=1e-2)
    assert found.packet_word_us == pytest.approx(0.1e-3, rel=1e-2)
    assert found.copied_us == pytest.approx(0.4, rel=1e-2)
    assert found.copied_word_us == pytest.approx(0.15e-3, rel=1e-2)
    assert found.block_us == pytest.approx(2.5, rel=1e-2)
    assert found.block_word_us == pytest.approx(0.02e-3, rel=1e-2)
    assert found.mbarrier_us == pytest.approx(0.05, rel=1e-3)
    assert found.launch_us == pytest.approx(4.0, rel=1e-3)
    assert (found.window, found.chip, found.threads) == (H100.window, "sm_90a", H100.threads)
    assert set(gpu.launches) == {
        ("stream_read", 114, 32, 196608),
        ("exchange_packets", 114, 512, 0),
        ("exchange_blocks", 114, 512, 0),
        ("mbarrier", 114, 64, 0),
        ("nothing", 114, H100.threads, 232448),
    }
    assert not gpu.open


def test_one_repeat_may_be_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probes, "Device", Gpu(drift=(*(1.0,) * 20, 9.0)))
    assert measure(H100).hop_us == pytest.approx(0.5912, rel=1e-3)


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (Gpu(drift=(1.0, 1.0, 3.0)), ("stream_tbps differs", "1 … 3 TB/s", "end other work")),
        (Gpu(major=8, name="NVIDIA A100"), ("NVIDIA A100 is no Hopper GPU", "H100 and H200")),
        (Gpu(free=1 << 30), ("1073741824 bytes are free", "end other processes")),
        (
            Gpu(stuck="exchange_blocks"),
            ("probe exchange_blocks waited in vain on NVIDIA H100 PCIe", "end other processes"),
        ),
    ],
    ids=["noise", "generation", "memory", "stuck"],
)
def test_mistakes(gpu: Gpu, words: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(probes, "Device", gpu)
    with pytest.raises(TileirError) as raised:
        measure(H100)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert not gpu.open


def test_a_base_without_kernels_and_a_gpu_that_is_not_there(patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TileirError, match="'virtual' has no kernels"):
        measure(TARGETS["virtual"])
    patch.setattr("tileir.runtime.driver.device_count", lambda: 0)
    with pytest.raises(DeviceError, match="no device cuda:1"):
        measure(H100, 1)
