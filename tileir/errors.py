"""What a user sees when something is wrong with what they gave us.

A user's mistake is a `TileirError`: what, where, what is supported, what to do. A mistake of the compiler itself is
an assertion.
"""


class TileirError(Exception):
    """A mistake that its user can mend.

    message: what is wrong, with the offending value.
    location: where, as "file:line:col", a node or a tensor name; empty if there is none.
    hint: what is supported, and what to do.
    """

    def __init__(self, message: str, *, location: str = "", hint: str = "") -> None:
        self.message, self.location, self.hint = message, location, hint
        text = f"{location}: {message}" if location else message
        super().__init__(f"{text}\n  {hint}" if hint else text)


class PipelineError(TileirError):
    """The text of a pass pipeline, an option's name or its value is wrong."""


class ContractError(TileirError):
    """A module holds what its level does not allow."""


class PackageError(TileirError):
    """A package, or the weights that go with it, cannot be used."""


class DeviceError(TileirError):
    """No such device, too small, too old, or it failed."""


class DeviceHang(DeviceError):
    """A wait on the device ran out of time; the text says who waited for what."""
