"""A model on a GPU: one launch a generation, tokens through mapped memory while it runs."""

import ctypes
import re
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tileir.errors import DeviceError, TileirError
from tileir.package import Package
from tileir.prompt import check_prompt
from tileir.runtime.driver import Device
from tileir.runtime.loader import pack_tape, upload_constants
from tileir.runtime.running import Running
from tileir.runtime.upload import Uploader

MAX_STOP_IDS = 64
# Launch parameters: arguments of the kernel, in their order, and constants of its PTX.
ARGUMENTS = ("tape_window", "fed_window", "alone_bytes", "split_bytes", "splits")
SPARE_BYTES = 256 << 20
LIMIT_CLOCKS = 4_000_000_000  # about 2 s at 1.98 GHz


class CudaSession:
    """A loaded package on one GPU. Not for several threads at once.

    tensors: arrays by state-dict name, packed on the GPU. index: the GPU's number. `launch`: how kernels are launched,
    by the names of manifest["launch_limits"], which has each one's least and most. The driver assembles the kernel
    anew, some seconds, for constants of its PTX that it has not had.
    Raises DeviceError for a GPU that is not there, of another generation or too small, PackageError for weights that do
    not fit.
    """

    def __init__(
        self,
        package: Package,
        tensors: Mapping[str, Any],
        index: int = 0,
    ) -> None:
        self.manifest = package.manifest
        self.launch: dict[str, int] = dict(package.manifest["launch"])
        ptx, recipe = package.ptx, package.packing[0]
        d = self._device = Device(index)
        try:
            self.device = f"cuda:{index} {d.name}"
            self._load(d, ptx, recipe, tensors)
        except BaseException:
            # Nobody gets this session, so nobody would give its memory back; what failed first is what is told.
            with suppress(DeviceError):
                d.close()
            raise
        # Also of a session that nobody closes: when it is collected, at the latest when the interpreter exits.
        self._give_back = weakref.finalize(self, self._running.give_back)
        self.last_milliseconds = 0.0

    def _load(
        self,
        d: Device,
        ptx: str,
        recipe: dict[str, Any],
        tensors: Mapping[str, Any],
    ) -> None:
        m = self.manifest
        self._check_device(d)
        self._check_memory(d)
        self._ptx, self._kernels = ptx, dict[str, Any]()
        module, decode = self._assembled()
        if d.resident_blocks(decode, m["threads"], m["smem_bytes"]) < 1:
            raise DeviceError(f"a block of {m['smem_bytes']} bytes does not fit an SM of {d.name}")
        pack = d.function(module, m["kernels"]["pack"])
        sizes = m["memory"]
        with Uploader(d) as up:
            self._tape, self._offsets = pack_tape(d, up, pack, recipe["tape"], m["sms"], tensors)
            self._constants = upload_constants(
                d, up, recipe["constants"], sizes["constants"], tensors
            )
        self._states = d.allocate(sizes["states"], "KV states")
        self._exchange = d.allocate(sizes["exchange"], "exchange buffers")
        table = np.asarray(m["table"], np.uint32)
        self._table = d.allocate(table.nbytes, "the phase table")
        self._prompt = d.allocate(4 * m["context"], "the prompt")
        self._stops = d.allocate(4 * MAX_STOP_IDS, "stop ids")
        self._running = Running(d, m, self.device)
        self._first_token = m["mailbox"]["tokens"] // 4
        self._mailbox, self._mailbox_device = d.mapped(self._first_token + m["context"] + 1)
        self._logits = 0
        self._trace = d.allocate(sizes["trace"], "the trace") if sizes["trace"] else 0
        self._stamps, self._stride = 0, 1
        d.upload(table, self._table)
        self._epoch = 0
        self._limit = LIMIT_CLOCKS

    def _assembled(self) -> tuple[Any, Any]:
        """The module and the decode kernel with the launch's constants, assembled by the driver the first time."""
        ptx = with_constants(self._ptx, self.launch)
        if ptx not in self._kernels:
            d, m = self._device, self.manifest
            module = d.module(ptx)
            decode = d.function(module, m["kernels"]["decode"], m["smem_bytes"])
            self._kernels[ptx] = module, decode
        return self._kernels[ptx]

    def _check_device(self, d: Device) -> None:
        m = self.manifest
        found = d.attribute("MULTIPROCESSOR_COUNT")
        if d.attribute("COMPUTE_CAPABILITY_MAJOR") != 9:
            raise DeviceError(f"{d.name} is no Hopper GPU", hint="packages run on H100 and H200")
        if found < m["sms"]:
            raise DeviceError(
                f"the package needs {m['sms']} SMs, {d.name} has {found}",
                hint="compile for a target with fewer SMs",
            )

    def _check_memory(self, d: Device) -> None:
        sizes = self.manifest["memory"]
        needed, free = sum(sizes.values()) + SPARE_BYTES, d.free_bytes()
        if needed > free:
            parts = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise DeviceError(
                f"{d.name} has {free} bytes free, the model needs {needed}: {parts}, {SPARE_BYTES} while it loads",
                hint="end other processes on the GPU, or export with a smaller max_context",
            )

    # ---- use

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()
    ) -> Generator[int]:
        """Yield up to `max_new_tokens` greedy tokens after the prompt; a stop id ends them and is yielded.

        Raises TileirError for a prompt that is empty, too long, or has ids out of range; DeviceHang if a wait on the
        device runs out of time. Leaving the iterator early stops the kernel.
        """
        ids = self._prompt_of(ids, max_new_tokens)
        if len(stop_ids) > MAX_STOP_IDS:
            raise TileirError(f"{len(stop_ids)} stop ids", hint=f"at most {MAX_STOP_IDS}")
        self._start(ids, len(ids) - 1 + max_new_tokens, stop_ids)
        stream = self._stream(max_new_tokens)
        # Begun here: a generator that has not begun would not stop the kernel when it is closed.
        next(stream)
        return stream

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of the ids, [len(ids), vocabulary] f32, the ids being forced."""
        ids = self._prompt_of(ids, 0)
        shape = (len(ids), self.manifest["vocabulary"])
        self._logits = self._device.allocate(4 * shape[0] * shape[1], "logits")
        try:
            self._start(ids, len(ids), ())
            self._finish()
            return self._device.download(self._logits, shape, np.float32)
        finally:
            self._device.free(self._logits)
            self._logits = 0

    def exchange(self, ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """The exchange memory after one launch that the ids are forced in, and its last step's epoch.

        Memory is uint64, for tileir.runtime.exchange.read_channel.
        """
        ids = self._prompt_of(ids, 0)
        self._start(ids, len(ids), ())
        self._finish()
        packets = self.manifest["memory"]["exchange"] // 8
        return self._device.download(self._exchange, (packets,), np.uint64), self._epoch

    def time_steps(self, steps: int, position: int) -> float:
        """Milliseconds a step over one launch of `steps` steps from `position` on; states are as they are.

        Raises TileirError if they pass the context.
        """
        if position + steps > self.manifest["context"]:
            raise TileirError(f"{steps} steps from {position} pass the context")
        self._start([0], steps, (), position)
        self._finish()
        return self.last_milliseconds / steps

    def step_times(self, steps: int, position: int) -> np.ndarray:
        """Milliseconds of each of `steps` steps of one launch, all of them at `position`, float64 [steps - 1].

        Raises TileirError if the position, or the number of steps, passes the context.
        """
        context = self.manifest["context"]
        if position >= context or steps > context:
            raise TileirError(f"{steps} steps at {position} pass the context of {context}")
        self._stamps, self._stride = self._device.allocate(8 * steps, "time stamps"), 0
        try:
            self._start([0], steps, (), position)
            self._finish()
            stamps = self._device.download(self._stamps, (steps,), np.int64)
            return np.diff(stamps) * 1e-6
        finally:
            self._device.free(self._stamps)
            self._stamps, self._stride = 0, 1

    def trace(self, position: int, steps: int = 8) -> np.ndarray:
        """Clocks of the last of `steps` steps, at `position`: [sms, rows + 1, marks] int64, as manifest["marks"] names.

        The last row is the step: the SM's clock at its begin, the GPU's timer in ns, and both again at its end.
        States are as they are. Raises TileirError for a package that was not compiled with trace=True.
        """
        if not self._trace:
            raise TileirError("this package does not trace", hint="compile it with trace=True")
        m = self.manifest
        self._device.fill(self._trace, m["memory"]["trace"])
        self.time_steps(steps, position - steps + 1)
        shape = (m["sms"], len(m["table"]) + 1, len(m["marks"]))
        return self._device.download(self._trace, shape, np.int64)

    def close(self) -> None:
        """Stop what runs and give the device's memory back; once is enough."""
        self._give_back()

    # ---- one launch

    def _prompt_of(self, ids: Sequence[int], new: int) -> list[int]:
        self._check_open()
        return check_prompt(ids, new, self.manifest["vocabulary"], self.manifest["context"])

    def _check_open(self) -> None:
        if not self._give_back.alive:
            raise DeviceError("this session is closed", hint="load the package again")

    def _start(
        self, ids: Sequence[int], steps: int, stop_ids: Sequence[int], position: int = 0
    ) -> None:
        self._check_open()
        if self._running.now:
            raise DeviceError("this session is generating", hint="finish or close that iterator")
        d, m = self._device, self.manifest
        check_launch(self.launch, m["launch_limits"])
        _, decode = self._assembled()
        if self._epoch + steps >= 2**32 - 1:
            self._forget_epochs()
        self._mailbox[:] = 0
        self._running.clear()
        d.upload(np.asarray(ids, np.int32), self._prompt)
        d.upload(np.asarray([*stop_ids, 0], np.int32), self._stops)
        pointers = (
            *(self._tape, self._offsets, self._constants, self._states, self._exchange),
            *(self._table, self._prompt, self._stops, self._logits, self._running.control),
            *(self._mailbox_device, self._trace, self._stamps),
        )
        words = (
            *(len(m["table"]), len(ids), steps, self._epoch, position, self._stride),
            *(len(stop_ids), self._epoch + steps),
            *(self.launch[name] for name in ARGUMENTS),
        )
        arguments: list[tuple[int, Any]] = [(p, ctypes.c_void_p) for p in pointers]
        arguments += [(w, ctypes.c_uint32) for w in words]
        arguments.append((self._limit, ctypes.c_uint64))
        self._epoch += steps
        self._running.now = True
        try:
            self._begin = d.event()
            d.launch(
                decode,
                (m["sms"],),
                m["threads"],
                m["smem_bytes"],
                arguments,
                cooperative=True,
            )
            self._end = d.event()
        except BaseException:
            self._running.stop()
            raise

    def _forget_epochs(self) -> None:
        self._device.fill(self._exchange, self.manifest["memory"]["exchange"])
        self._epoch = 0

    def _stream(self, limit: int) -> Generator[int]:
        given, ended = 0, False
        try:
            yield -1
            while given < limit:
                if not self._running.now:
                    raise DeviceError("this session was closed while it generated")
                ended = self._device.idle()
                if given < int(self._mailbox[0]):
                    yield int(self._mailbox[self._first_token + given])
                    given += 1
                elif ended:
                    break
                else:
                    time.sleep(0 if given else 1e-5)
        finally:
            # Left early, or by an exception: Ctrl-C may come anywhere above. A session that was closed has stopped.
            if self._running.now and given < limit and not ended:
                self._running.stop()
                self._take_time()
            elif self._running.now:
                self._finish()

    def _take_time(self) -> None:
        self.last_milliseconds = self._device.milliseconds(self._begin, self._end)

    def _finish(self) -> None:
        """Wait for the launch's end. Raises DeviceHang if a wait ran out."""
        self._running.reach_end()
        self._running.settle()
        self._take_time()
        if self._running.hung():
            # Warps that ran on after the report have published, maybe for epochs to come.
            self._forget_epochs()
            raise self._running.hang()


def with_constants(ptx: str, launch: Mapping[str, int]) -> str:
    """The PTX with the launch's constants, which stand in it as numbers before their names in comments."""
    return re.sub(r"\d+ /\*(\w+)\*/", lambda m: f"{launch[m[1]]} /*{m[1]}*/", ptx)


def check_launch(launch: Mapping[str, int], limits: Mapping[str, Sequence[int]]) -> None:
    """Raises DeviceError for launch parameters that are not those of `limits` (name → least, most), or outside them."""
    if set(launch) != set(limits):
        raise DeviceError(
            f"launch parameters {', '.join(sorted(launch))}", hint=f"they are {', '.join(limits)}"
        )
    for name, value in launch.items():
        least, most = limits[name]
        if not least <= value <= most:
            raise DeviceError(
                f"launch parameter {name} is {value}", hint=f"it lies in {least} … {most}"
            )
