"""A kernel that may be running: how it is awaited, stopped and reported, and how all memory is given back."""

import time
from contextlib import suppress
from typing import Any

import numpy as np

from tileir.errors import DeviceError, DeviceHang
from tileir.runtime.driver import Device
from tileir.runtime.report import describe, dump_of, save_dump

LOOK_SECONDS = 1e-4


class Running:
    """What is known of a session's launches. `now`: whether one may be running. Holds the device, not the session."""

    def __init__(self, device: Device, manifest: dict[str, Any], name: str) -> None:
        self.device, self.manifest, self.name = device, manifest, name
        self.control_bytes = manifest["control"]["snapshot"] + manifest["memory"]["exchange"]
        self.control = device.allocate(self.control_bytes, "control")
        self.now = False

    def clear(self) -> None:
        """Before a launch: no stop, no reports."""
        self.device.fill(self.control, self.manifest["control"]["snapshot"])

    def reach_end(self) -> None:
        """Wait for the end without being deaf to Ctrl-C, which stops the kernel before it goes on."""
        try:
            while not self.device.idle():
                time.sleep(LOOK_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Tell the kernel to end, and wait until it has."""
        try:
            self.device.poke(self.control, self.manifest["control"]["stop"])
        finally:
            self.settle()

    def settle(self) -> None:
        """Wait for the stream; whatever happens, nothing is running any longer that a later launch would not await."""
        try:
            self.device.synchronize()
        finally:
            self.now = False

    def hung(self) -> bool:
        """Whether the launch that has ended gave up by itself."""
        return bool(self.device.download(self.control, (1,), np.uint32)[0])

    def hang(self) -> DeviceHang:
        """What it left behind, as an error; its data is in a file."""
        memory = self.device.download(self.control, (self.control_bytes,), np.uint8)
        dump = dump_of(memory, self.manifest, self.name)
        path = save_dump(dump)
        hint = f"`tileir postmortem {path}` draws who waited for whom" if path else ""
        return DeviceHang(describe(dump), hint=hint)

    def give_back(self) -> None:
        """Stop what runs, then free all memory. Raises DeviceError if the driver does not take some of it."""
        if self.now:
            # A device that has failed cannot be stopped, and still has memory to give back.
            with suppress(DeviceError):
                self.stop()
        self.device.close()
