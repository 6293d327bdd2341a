"""What the host does with a kernel that runs when something goes wrong, in which order; on a made-up device."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import tiny_llama
from tileir.errors import DeviceError, DeviceHang
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.runtime import driver
from tileir.runtime import session as session_
from tileir.runtime.session import CudaSession

IDS, NEW = [3, 1, 4], 6
TOKENS = [10, 11, 12, 13, 14, 15]


class Device:
    """Notes calls. A kernel writes one of TOKENS each time the host looks, and ends after the last or when poked."""

    name = "made up"

    def __init__(self, _index: int) -> None:
        self.calls: list[str] = []
        self.free, self.endless, self.aborted = 1 << 40, False, 0
        self.on_look: Callable[[], None] = lambda: None
        self.words = np.zeros(0, np.int32)
        self.looks = 0
        self.runs = False

    def attribute(self, name: str) -> int:
        return {"MULTIPROCESSOR_COUNT": 132, "COMPUTE_CAPABILITY_MAJOR": 9}[name]

    def free_bytes(self) -> int:
        return self.free

    def resident_blocks(self, *_: Any) -> int:
        return 1

    def module(self, *_: Any) -> None:
        self.calls.append("module")

    def function(self, *_: Any) -> None: ...
    def event(self) -> None: ...
    def upload(self, *_: Any) -> None: ...
    def unpin(self, *_: Any) -> None: ...
    def fill(self, *_: Any) -> None: ...

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def milliseconds(self, *_: Any) -> float:
        return 1.0

    def allocate(self, _size: int, what: str) -> int:
        self.calls.append(f"allocate {what}")
        return 1 << 20

    def mapped(self, words: int) -> tuple[np.ndarray, int]:
        self.words = np.zeros(words, np.int32)
        return self.words, 1

    def download(self, _pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.full(shape, self.aborted, dtype)

    def launch(self, *_: Any, **__: Any) -> None:
        self.calls.append("launch")
        self.runs, self.looks = True, 0

    def idle(self) -> bool:
        self.on_look()
        self.looks += 1
        made = min(self.looks, len(TOKENS))
        self.words[16 : 16 + made] = TOKENS[:made]
        self.words[0] = made
        self.runs = self.runs and (self.endless or self.looks < len(TOKENS))
        return not self.runs

    def poke(self, _pointer: int, value: int) -> None:
        self.calls.append(f"poke {value}")
        self.endless = self.runs = False

    def synchronize(self) -> None:
        assert not self.endless or not self.runs, (
            "the host waits for a kernel that nobody has stopped"
        )
        self.calls.append("synchronize")

    def close(self) -> None:
        assert not self.runs, "memory is freed under a kernel that runs"
        self.calls.append("close")


@pytest.fixture(scope="module")
def package() -> Package:
    return tileir.compile(export_decode(tiny_llama(), 64), target="h100")


@pytest.fixture
def session(package: Package, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaSession]:
    made_up(monkeypatch)
    session = CudaSession(package, {})
    device(session).calls.clear()
    yield session
    session.close()


def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_, "Device", Device)
    monkeypatch.setattr(session_, "pack_tape", lambda *_: (1, 1))
    monkeypatch.setattr(session_, "upload_constants", lambda *_: 1)


def device(session: CudaSession) -> Any:
    return session._device


def interrupted_at(look: int, error: BaseException) -> Callable[[], None]:
    looks = iter(range(look))

    def on_look() -> None:
        if next(looks, None) is None:
            raise error

    return on_look


def test_all_tokens_without_a_stop(session: CudaSession) -> None:
    assert list(session.generate(IDS, NEW)) == TOKENS
    assert device(session).calls == ["launch", "synchronize"]


def test_a_host_that_does_not_read_gets_all_tokens(session: CudaSession) -> None:
    """The mailbox holds every token of a launch: nothing is overwritten, and the kernel never waits for the host."""
    stream = session.generate(IDS, NEW)
    while not device(session).idle():
        pass
    assert not device(session).runs
    assert list(stream) == TOKENS
    room = len(device(session).words) - session._first_token
    assert room >= session.manifest["context"]


@pytest.mark.parametrize("given", [0, 1, 3])
@pytest.mark.parametrize("how", ["closed", "collected"])
def test_leaving_early_stops_the_kernel(session: CudaSession, given: int, how: str) -> None:
    """Also a generator that was never asked for a token."""
    device(session).endless = True
    stream = session.generate(IDS, NEW)
    for _ in range(given):
        next(stream)
    if how == "closed":
        stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert device(session).calls == ["launch", "poke 2", "synchronize"]
    assert list(session.generate(IDS, NEW)) == TOKENS


@pytest.mark.parametrize("look", [0, 1, 4])
def test_ctrl_c_stops_the_kernel(session: CudaSession, look: int) -> None:
    device(session).endless = True
    device(session).on_look = interrupted_at(look, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(session.generate(IDS, NEW))
    assert device(session).calls == ["launch", "poke 2", "synchronize"]
    device(session).on_look = lambda: None
    assert list(session.generate(IDS, NEW)) == TOKENS


def test_ctrl_c_while_it_sleeps(session: CudaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    device(session).endless = True
    with pytest.raises(KeyboardInterrupt):
        session.time_steps(4, 0)
    assert device(session).calls == ["launch", "poke 2", "synchronize"]


def test_ctrl_c_while_it_waits_for_the_end(
    session: CudaSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, while the first one's kernel ends: the session goes on to work."""
    usual = device(session).synchronize

    def synchronize() -> None:
        usual()
        raise KeyboardInterrupt

    monkeypatch.setattr(device(session), "synchronize", synchronize)
    device(session).endless = True
    stream = session.generate(IDS, NEW)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.close()  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert list(session.generate(IDS, NEW)) == TOKENS


def test_the_consumers_own_mistake(session: CudaSession) -> None:
    device(session).endless = True

    def consume() -> None:
        for _ in session.generate(IDS, NEW):
            raise ValueError("the consumer's")

    with pytest.raises(ValueError, match="the consumer's"):
        consume()
    gc.collect()
    assert device(session).calls == ["launch", "poke 2", "synchronize"]


def test_closed_while_it_generates(session: CudaSession) -> None:
    """Stop, wait, free, in this order; the iterator does not touch memory that is gone."""
    device(session).endless = True
    stream = session.generate(IDS, NEW)
    next(stream)
    session.close()
    session.close()
    assert device(session).calls == ["launch", "poke 2", "synchronize", "close"]
    with pytest.raises(DeviceError, match="closed while it generated"):
        next(stream)
    with pytest.raises(DeviceError, match="this session is closed"):
        session.generate(IDS, NEW)


def test_a_session_that_nobody_closes(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch)
    session = CudaSession(package, {})
    calls = device(session).calls
    calls.clear()
    device(session).endless = True
    del session
    gc.collect()
    assert calls == ["close"]


EXIT = """
import sys
from test.runtime.test_host_faults import IDS, NEW, Device, session_
from tileir.package import load_package
session_.Device = Device
session_.pack_tape, session_.upload_constants = lambda *_: (1, 1), lambda *_: 1
session = session_.CudaSession(load_package(sys.argv[1]), {})
calls = session._device.calls
calls.clear()
session._device.endless = True
Device.close = lambda self: print(*calls, flush=True)
stream = session.generate(IDS, NEW)
next(stream)
"""


def test_the_interpreters_exit(package: Package, tmp_path: Any) -> None:
    path = package.save(tmp_path / "m.tileir")
    command = [sys.executable, "-W", "ignore", "-c", EXIT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "launch poke 2 synchronize"
    assert not done.stderr


def test_a_hang_forgets_epochs(session: CudaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran on after the report may have published for epochs to come: the next launch must not see it."""
    filled: list[int] = []
    monkeypatch.setattr(device(session), "fill", lambda _pointer, size: filled.append(size))
    device(session).aborted = 1
    monkeypatch.setattr(session._running, "hang", lambda: DeviceHang("it hangs"))
    with pytest.raises(DeviceHang):
        list(session.generate(IDS, NEW))
    assert filled[-1] == session.manifest["memory"]["exchange"]
    assert (session._epoch, session._running.now) == (0, False)


def test_a_failed_launch(session: CudaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: Any, **__: Any) -> None:
        raise DeviceError("no launch")

    monkeypatch.setattr(device(session), "launch", launch)
    with pytest.raises(DeviceError, match="no launch"):
        session.generate(IDS, NEW)
    monkeypatch.undo()
    assert list(session.generate(IDS, NEW)) == TOKENS


def test_all_is_given_back_though_one_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(name: str, argument: Any) -> None:
        calls.append(name)
        if argument == 2:
            raise DeviceError(f"{name} failed")

    monkeypatch.setattr(driver, "call", call)
    found = driver.Device.__new__(driver.Device)
    found._memory, found._pinned, found.handle = [1, 2, 3], [4], 0
    found.stream, found.side_stream = 5, 6
    with pytest.raises(DeviceError, match="cuMemFree failed"):
        found.close()
    assert calls == [
        *["cuMemFree"] * 3, "cuMemFreeHost", *["cuStreamDestroy"] * 2, "cuDevicePrimaryCtxRelease",
    ]  # fmt: skip


def test_too_little_memory(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is needed and what is free; nothing has been allocated, and the context is given back."""
    made_up(monkeypatch)
    made: list[Device] = []

    class Small(Device):
        def __init__(self, index: int) -> None:
            super().__init__(index)
            self.free = 1000
            made.append(self)

    monkeypatch.setattr(session_, "Device", Small)
    needed = sum(package.manifest["memory"].values()) + session_.SPARE_BYTES
    with pytest.raises(DeviceError, match=f"has 1000 bytes free, the model needs {needed}: tape "):
        CudaSession(package, {})
    assert made[0].calls == ["close"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_exception_while_it_loads(
    package: Package, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    made_up(monkeypatch)
    made: list[Device] = []
    monkeypatch.setattr(session_, "Device", lambda n: made.append(Device(n)) or made[0])

    def pack_tape(*_: Any) -> None:
        raise error

    monkeypatch.setattr(session_, "pack_tape", pack_tape)
    with pytest.raises(type(error)):
        CudaSession(package, {})
    assert made[0].calls == ["module", "synchronize", "close"]


def test_a_constant_of_the_ptx_is_assembled_once(session: CudaSession) -> None:
    before = dict(session.launch)
    for sleep in (20, 0, 20):
        session.launch["poll_sleep_ns"] = sleep
        session.time_steps(4, 0)
    session.launch.update(before)
    assert device(session).calls.count("module") == 1
