"""The CUDA driver, as much of it as a persistent kernel needs. `cuda-bindings` underneath.

Every call's status is checked; a failure is a DeviceError that names the call.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tileir.errors import DeviceError


@cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(
            f"the CUDA driver's bindings do not load: {error}",
            hint='pip install cuda-bindings, or use device="reference"',
        ) from None
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function by name; its results, without the status. Raises DeviceError."""
    status, *results = getattr(_driver(), name)(*arguments)
    if int(status) != 0:
        raise DeviceError(f"{name} failed: {status.name}")
    return results[0] if len(results) == 1 else results or None


@cache
def device_count() -> int:
    """GPUs that this process can use; 0 if there is no driver."""
    try:
        call("cuInit", 0)
        return int(call("cuDeviceGetCount"))
    except (DeviceError, RuntimeError):
        return 0


def _too_small(what: str, size: int, free: int, name: str) -> DeviceError:
    return DeviceError(
        f"{what} needs {size} bytes, {free} are free on {name}",
        hint="free the GPU, or compile with a smaller max_context",
    )


class Device:
    """A GPU with its primary context; keeps what it allocates until `close`."""

    def __init__(self, index: int) -> None:
        if index >= device_count():
            raise DeviceError(
                f"no device cuda:{index}",
                hint=f'GPUs that this process sees: {device_count()}; device="reference" needs none',
            )
        self.handle = call("cuDeviceGet", index)
        try:
            self.context = call("cuDevicePrimaryCtxRetain", self.handle)
        except DeviceError as error:
            raise DeviceError(
                f"cuda:{index} gives this process no context: {error}",
                hint="another process may hold it alone (its compute mode), or its memory may be full",
            ) from None
        call("cuCtxSetCurrent", self.context)
        # Blocking flags cost latency when the host polls; a stream of our own waits for nobody.
        self.stream = call("cuStreamCreate", 1)
        self.side_stream = call("cuStreamCreate", 1)
        self._memory: list[int] = []
        self._pinned: list[int] = []

    def attribute(self, name: str) -> int:
        """A device attribute by the end of its name, such as MULTIPROCESSOR_COUNT."""
        key = getattr(_driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", key, self.handle))

    @property
    def name(self) -> str:
        """The GPU's name."""
        return str(call("cuDeviceGetName", 100, self.handle).decode().rstrip("\0 "))

    def free_bytes(self) -> int:
        """Bytes of memory that nobody holds."""
        return int(call("cuMemGetInfo")[0])

    def allocate(self, size: int, what: str) -> int:
        """Device memory of `size` bytes, zeroed in the stream's order.

        Raises DeviceError with needed and free bytes.
        """
        free = self.free_bytes()
        if size > free:
            raise _too_small(what, size, free, self.name)
        pointer = int(call("cuMemAlloc", max(size, 16)))
        self._memory.append(pointer)
        call("cuMemsetD8Async", pointer, 0, max(size, 16), self.stream)
        return pointer

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._memory.remove(pointer)
        call("cuMemFree", pointer)

    def borrow(self, size: int, what: str) -> int:
        """Device memory of `size` bytes for the stream's work from here to `give_back`; nothing waits."""
        try:
            return int(call("cuMemAllocAsync", size, self.stream))
        except DeviceError:
            raise _too_small(what, size, self.free_bytes(), self.name) from None

    def give_back(self, pointer: int) -> None:
        """End a loan, once the stream's work so far is done."""
        call("cuMemFreeAsync", pointer, self.stream)

    def pinned(self, size: int) -> np.ndarray:
        """Host memory that the device copies from without a detour, [size] bytes."""
        address = int(call("cuMemHostAlloc", size, 0))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, array: np.ndarray) -> None:
        """Give pinned memory back."""
        self._pinned.remove(array.ctypes.data)
        call("cuMemFreeHost", array.ctypes.data)

    def fill(self, pointer: int, size: int) -> None:
        """Zero memory, in the stream's order."""
        call("cuMemsetD8Async", pointer, 0, size, self.stream)

    def mapped(self, words: int) -> tuple[np.ndarray, int]:
        """Host memory that the device writes: ([words] int32 on the host, its device address)."""
        address = int(call("cuMemHostAlloc", words * 4, 0x02 | 0x01))
        self._pinned.append(address)
        view = np.ctypeslib.as_array((ctypes.c_int32 * words).from_address(address))
        view[:] = 0
        return view, int(call("cuMemHostGetDevicePointer", address, 0))

    def upload(self, array: np.ndarray, pointer: int) -> None:
        """Copy a contiguous array to the device, after what the stream does; waits."""
        self.begin_upload(array, pointer)
        self.synchronize()

    def begin_upload(self, array: np.ndarray, pointer: int) -> None:
        """Copy a contiguous array to the device, after what the stream does; pinned memory must stay till then."""
        call("cuMemcpyHtoDAsync", pointer, array.ctypes.data, array.nbytes, self.stream)

    def download(self, pointer: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Copy from the device, after what the stream does; waits."""
        self.synchronize()
        out = np.empty(shape, dtype)
        call("cuMemcpyDtoH", out.ctypes.data, pointer, out.nbytes)
        return out

    def module(self, ptx: str) -> Any:
        """Load PTX."""
        try:
            return call("cuModuleLoadData", ptx.encode() + b"\0")
        except DeviceError as error:
            raise DeviceError(
                f"the driver refuses the kernel: {error}",
                hint=f"it needs a Hopper GPU and a CUDA 12.7 driver or newer; this is {self.name}",
            ) from None

    def function(self, module: Any, name: str, smem: int = 0) -> Any:
        """A kernel of a module, with `smem` bytes of dynamic shared memory allowed."""
        function = call("cuModuleGetFunction", module, name.encode())
        if smem:
            key = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("cuFuncSetAttribute", function, key, smem)
        return function

    def resident_blocks(self, function: Any, threads: int, smem: int) -> int:
        """Blocks of this shape that fit one SM at once."""
        name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        return int(call(name, function, threads, smem))

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        threads: int,
        smem: int,
        arguments: Sequence[tuple[int, Any]],
        *,
        cooperative: bool = False,
    ) -> None:
        """Launch on the device's stream; arguments are (value, ctypes type)."""
        values = tuple(v for v, _ in arguments), tuple(t for _, t in arguments)
        name = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        shape = (*grid, *(1,) * (3 - len(grid)), threads, 1, 1)
        extra = () if cooperative else (0,)
        call(name, function, *shape, smem, self.stream, values, *extra)

    def event(self) -> Any:
        """An event recorded on the stream now."""
        event = call("cuEventCreate", 0)
        call("cuEventRecord", event, self.stream)
        return event

    def reach(self, event: Any) -> None:
        """Wait for an event, and forget it."""
        call("cuEventSynchronize", event)
        call("cuEventDestroy", event)

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two events that have happened."""
        return float(call("cuEventElapsedTime", start, end))

    def idle(self) -> bool:
        """Whether the stream has nothing left to do. Raises DeviceError if it failed."""
        status = _driver().cuStreamQuery(self.stream)[0]
        if int(status) not in (0, 600):
            raise DeviceError(f"the kernel failed: {status.name}")
        return int(status) == 0

    def synchronize(self) -> None:
        """Wait for the stream."""
        call("cuStreamSynchronize", self.stream)

    def poke(self, pointer: int, value: int) -> None:
        """Write a 32-bit word while a kernel runs."""
        call("cuMemsetD32Async", pointer, value, 1, self.side_stream)
        call("cuStreamSynchronize", self.side_stream)

    def close(self) -> None:
        """Give everything back. Raises DeviceError, after all has been tried, if the driver refused some of it."""
        calls = [("cuMemFree", pointer) for pointer in self._memory]
        calls += [("cuMemFreeHost", address) for address in self._pinned]
        calls += [("cuStreamDestroy", stream) for stream in (self.stream, self.side_stream)]
        self._memory, self._pinned, failed = [], [], None
        for name, argument in (*calls, ("cuDevicePrimaryCtxRelease", self.handle)):
            try:
                call(name, argument)
            except DeviceError as error:
                failed = failed or error
        if failed is not None:
            raise failed
