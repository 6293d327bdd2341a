"""Targets: what a device can do, as frozen data. Passes ask for capabilities, never for names.

Some are built in; others come from files, JSON objects of Target's fields, as `tileir tune --measure` writes them.
"""

import json
import math
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tileir.errors import TileirError

# setmaxnreg acts on warpgroups (PTX ISA 9.7.19.5), so the two loader warps and the watchdog come with an idle one.
LOADER_WARPS = 4


@dataclass(frozen=True)
class Target:
    """One kind of device.

    sms: streaming multiprocessors, one resident block each.
    consumer_warps: warps that multiply, of 32 threads each.
    registers, loader_registers: of a consumer's and of a loader's thread, once roles have parted (setmaxnreg).
    queries: that share a key row in attention, which one product of a tensor core holds.
    smem_bytes: dynamic shared memory a block may have.
    slot_bytes: bytes of one ring slot, a multiple of 1024.
    window: copies of a ring on their way at once; their bytes, over a copy's latency, bound the bandwidth.
    fed_window: and no more than so many while at most a quarter of the ring is free: then nobody starves, and
    exchanges need not queue behind copies.
    spare_window, spare_fed_window: instead of these, for kernels whose stages are short: they wait for exchanges, not
    for weights.
    alone_bytes: old rows of a kv head, keys and values, that one split takes alone at most: more are worth a combine.
    split_bytes: of more, what a split takes at least: with less it is no faster, and more splits are more to combine.
    stream_tbps: measured streaming read, TB/s; hop_us: one packet exchange, µs. Both feed the cost model.
    packet_us, packet_word_us: measured exchange among all SMs by packets, µs: to begin, and for each 32-bit word that
    an SM reads; copied_us, copied_word_us: of packets in two copies, each for half of the SMs; block_us,
    block_word_us: of words behind a release flag for each SM. select-sync goes by them.
    mbarrier_us: measured hand-over by an mbarrier between two warps of an SM, µs; launch_us: a cooperative launch of
    one block an SM that does nothing, µs.
    chip, ptx: what LLVM and ptxas are told; empty chip means that no PTX is made.
    """

    name: str
    sms: int
    consumer_warps: int
    registers: int
    loader_registers: int
    queries: int
    smem_bytes: int
    slot_bytes: int
    window: int
    fed_window: int
    spare_window: int
    spare_fed_window: int
    alone_bytes: int
    split_bytes: int
    stream_tbps: float
    hop_us: float
    packet_us: float
    packet_word_us: float
    copied_us: float
    copied_word_us: float
    block_us: float
    block_word_us: float
    mbarrier_us: float
    launch_us: float
    chip: str = ""
    ptx: int = 0

    @property
    def emits_ptx(self) -> bool:
        """Whether kernels can be generated for it."""
        return bool(self.chip)

    @property
    def threads(self) -> int:
        """Threads of a block: the consumer warps and a warpgroup of two loaders, a watchdog and an idle warp."""
        return (self.consumer_warps + LOADER_WARPS) * 32

    @property
    def entry_registers(self) -> int:
        """Registers a thread that all roles start with: an even share of the SM's 65536, in units of 8."""
        return 65536 // self.threads // 8 * 8


_H100 = Target(
    name="h100",
    sms=132,
    consumer_warps=16,
    registers=104,
    loader_registers=64,
    queries=8,
    smem_bytes=232448,
    slot_bytes=16384,
    window=3,
    fed_window=3,
    spare_window=3,
    spare_fed_window=3,
    alone_bytes=32768,
    split_bytes=16384,
    stream_tbps=3.12,
    hop_us=1.0,
    packet_us=0.5,
    packet_word_us=0.095e-3,
    copied_us=0.5,
    copied_word_us=0.097e-3,
    block_us=2.6,
    block_word_us=0.03e-3,
    mbarrier_us=0.039,
    launch_us=1.9,
    chip="sm_90a",
    ptx=87,
)

TARGETS = {
    target.name: target
    for target in (
        _H100,
        replace(
            _H100,
            name="h200",
            window=4,
            fed_window=2,
            spare_window=3,
            spare_fed_window=1,
            alone_bytes=65536,
            stream_tbps=4.65,
            packet_us=0.62,
            packet_word_us=0.103e-3,
            copied_us=0.61,
            copied_word_us=0.105e-3,
            block_us=2.22,
            block_word_us=0.055e-3,
        ),
        # A small device for tests and for machines without a GPU; nothing is emitted for it.
        replace(
            _H100,
            name="virtual",
            sms=4,
            consumer_warps=4,
            slot_bytes=65536,
            smem_bytes=1 << 21,
            alone_bytes=1024,
            split_bytes=512,
            chip="",
            ptx=0,
        ),
    )
}


# Least, most and unit of whole numbers. The steps of registers are setmaxnreg's (PTX ISA 9.7.19.5); a block has 1024
# threads at most, and its consumers whole warpgroups.
_WHOLE = {
    "sms": (1, 1024, 1),
    "consumer_warps": (4, 28, 4),
    "registers": (24, 256, 8),
    "loader_registers": (24, 256, 8),
    "queries": (1, 64, 1),
    "smem_bytes": (1024, 1 << 30, 1),
    "slot_bytes": (1024, 1 << 20, 1024),
    "window": (1, 64, 1),
    "fed_window": (1, 64, 1),
    "spare_window": (1, 64, 1),
    "spare_fed_window": (1, 64, 1),
    "alone_bytes": (0, 1 << 20, 1),
    "split_bytes": (1, 1 << 20, 1),
    "ptx": (0, 999, 1),
}
_CHIPS = ("", "sm_90a")
_LEAST_PTX = 80  # the first that knows sm_90a
_SUFFIX = ".json"


def find_target(name: str | Path) -> Target:
    """The target of that name, or of a file, whose name ends in .json.

    Raises TileirError, with near matches, for a name that there is not, and for a file that cannot be read or does not
    hold the fields of a Target, each of its type and of a value that a device can have.
    """
    name = str(name)
    if name in TARGETS:
        return TARGETS[name]
    if name.endswith(_SUFFIX):
        return _read(Path(name))
    near = get_close_matches(name, TARGETS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise TileirError(
        f"unknown target {name!r}",
        hint=f"{guess}targets: {', '.join(TARGETS)}, or the path of a target's file, *{_SUFFIX}",
    )


def target_text(target: Target) -> str:
    """A target as the text of a file that find_target reads. Raises TileirError for values that no device has."""
    check_target(asdict(target), f"target {target.name!r}")
    return json.dumps(asdict(target), indent=1) + "\n"


def _read(path: Path) -> Target:
    if {"'", '"'} <= set(str(path)):
        raise TileirError(
            f"target {str(path)!r} has both kinds of quotes in its name",
            hint="rename it: pipelines name targets between quotes",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TileirError(
            f"cannot read the target {path}: {error.strerror}",
            hint="`tileir tune --measure PATH` writes one on a machine with a GPU",
        ) from None
    except ValueError as error:
        raise TileirError(f"it is no JSON: {error}", location=str(path), hint=_FORM) from None
    if not isinstance(found, dict):
        raise TileirError(
            f"it holds {_kind(found)} instead of an object", location=str(path), hint=_FORM
        )
    check_target(found, str(path))
    if found.get("name") in TARGETS:
        raise TileirError(
            f"field 'name' is {found['name']!r}, the name of a target that is built in",
            location=str(path),
            hint="call it otherwise: packages and messages name the target",
        )
    return Target(**found)


_FORM = "a target's file is a JSON object of the fields of tileir.target.Target"


def check_target(found: dict[str, Any], where: str) -> None:
    """Raises TileirError for fields that are unknown, missing, of a wrong type or of a value that no device has."""
    known = {f.name: f for f in fields(Target)}
    for name in found:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise TileirError(
                f"unknown field {name!r}", location=where, hint=f"{guess}fields: {', '.join(known)}"
            )
    lacking = [n for n, f in known.items() if n not in found and f.default is MISSING]
    if lacking:
        raise TileirError(
            f"fields are missing: {', '.join(lacking)}",
            location=where,
            hint="`tileir tune --measure PATH` writes all of them",
        )
    for name, value in found.items():
        wanted = _wanted(name, value, known[name].type)
        if wanted:
            raise TileirError(
                f"field {name!r} is {value!r}", location=where, hint=f"it takes {wanted}"
            )
    _check_together(Target(**found), where)


def _wanted(name: str, value: Any, kind: Any) -> str:
    """What a field takes, if the value is none of that; else "".  A whole number is a float too, a bool is neither."""
    if kind is str:
        if name == "chip":
            good, text = value in _CHIPS, " or ".join(map(repr, _CHIPS))
        else:
            good = isinstance(value, str) and re.fullmatch(r"[\w.\-]+", value) is not None
            text = "a name of letters, digits, '.', '-' and '_'"
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good, text = number and 0 < value < math.inf, "a number above 0"
    else:
        least, most, unit = _WHOLE[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        good = whole and least <= value <= most and value % unit == 0
        text = f"a whole number, {least} … {most}" + (f", a multiple of {unit}" if unit > 1 else "")
    return "" if good else text


def _check_together(target: Target, where: str) -> None:
    """Raises TileirError for values that are possible each, and not together."""
    if target.slot_bytes > target.smem_bytes:
        raise TileirError(
            f"a slot of {target.slot_bytes} bytes does not fit {target.smem_bytes} of shared memory",
            location=where,
            hint="lower slot_bytes",
        )
    if target.emits_ptx and target.ptx < _LEAST_PTX:
        raise TileirError(
            f"field 'ptx' is {target.ptx}, and chip {target.chip!r}",
            location=where,
            hint=f"{target.chip} takes ptx {_LEAST_PTX} or more; without a chip no kernel is made",
        )


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
