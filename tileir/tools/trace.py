"""Where a step's time goes: the clocks of a kernel that traces, as a table, a Perfetto file and a picture.

`CudaSession.trace` notes, on every SM, when each row of the phase table begins, has its input and has multiplied
(warp 0), when other warps have, and when the loaders are at it. SMs count their own clocks; the GPU's timer, which all
share, ties them.
"""

import json
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tileir.errors import TileirError
from tileir.package import Package
from tileir.tools.drawn import named_or_drawn
from tileir.tools.figures import row_bytes
from tileir.tools.pictures import pyplot_for

# What warp 0 does between two marks of a row.
PARTS = ("exchange", "warps", "weights", "work", "epilogue")
COLOURS = {
    "exchange": "#d95f02",
    "warps": "#e7298a",
    "weights": "#7570b3",
    "work": "#1b9e77",
    "epilogue": "#66a61e",
}
CLOCK_MASK = 0xFFFFFFFF  # what marks hold of a clock
SCHEMA = 1  # of files; another one when the marks, or what they mean, change
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Trace:
    """One step. clocks: [sms, rows + 1, marks] int64, the last row being the step. rows: each row's body.

    bytes: of weights and KV that each row reads; stream_tbps: at which the target can stream them, TB/s.
    """

    clocks: np.ndarray
    marks: list[str]
    rows: list[str]
    bytes: list[int]
    stream_tbps: float

    def save(self, path: Path) -> None:
        """As a NumPy archive."""
        facts = json.dumps({"schema": SCHEMA, "marks": self.marks, "rows": self.rows, "bytes": self.bytes,
                            "stream_tbps": self.stream_tbps})  # fmt: skip
        with path.open("wb") as stream:
            np.savez_compressed(stream, clocks=self.clocks, facts=np.array(facts))

    @cached_property
    def ns(self) -> np.ndarray:
        """Every mark's time in ns from the step's first, [sms, rows, marks] f64; NaN where there is none."""
        marks = self.clocks[:, :-1]
        begin, timer, end, timer_end = self._step
        rate = (timer_end - timer) / (end - begin)
        since = (marks - begin[:, None, None]) & CLOCK_MASK
        found = (timer - timer.min())[:, None, None] + since * rate[:, None, None]
        # 0 is what a row has not noted: a clock's low word is 0 once in 2 s, for half a ns.
        inside = (since <= (end - begin)[:, None, None]) & (marks != 0)
        waited = self.marks.index("waited")
        found[..., waited] = marks[..., waited] * rate[:, None]
        inside[..., waited] = True
        return np.where(inside, found, np.nan)

    @property
    def step_ns(self) -> float:
        """From the first SM's beginning to the last one's end."""
        _, timer, _, timer_end = self._step
        return float(timer_end.max() - timer.min())

    @property
    def _step(self) -> np.ndarray:
        """Each SM's clock and the GPU's timer in ns, at the step's begin, and both at its end: [4, sms]."""
        return self.clocks[:, -1, :4].T

    def ends(self) -> np.ndarray:
        """When rows end, in ns, [sms, rows] f64: the next one begins, or the step ends."""
        begin, (_, timer, _, timer_end) = self.ns[..., self.marks.index("begin")], self._step
        return np.column_stack([begin[:, 1:], timer_end - timer.min()])

    def parts(self) -> dict[str, np.ndarray]:
        """What warp 0 did of each row, in ns, [sms, rows]: PARTS.

        It waited for other SMs, until the other warps of its SM had their part of x, and for the ring, multiplied,
        and did what comes behind, up to the next row: it waits for the other warps' sums, and runs the epilogue. A row
        without tasks on an SM is all exchange.
        """
        at = {name: self.ns[..., i] for i, name in enumerate(self.marks)}
        begin, end = at["begin"], self.ends()
        received, met, multiplied = (at[n] for n in ("received", "met", "multiplied"))
        # Of a row without tasks, marks are NaN, of which no comparison is true.
        busy = (begin <= received) & (received <= met) & (met <= multiplied) & (multiplied <= end)
        waited = np.minimum(at["waited"], np.where(busy, multiplied - met, 0))
        parts = {
            "exchange": received - begin,
            "warps": met - received,
            "weights": waited,
            "work": multiplied - met - waited,
            "epilogue": end - multiplied,
        }
        idle = {"exchange": end - begin}
        return {name: np.where(busy, took, idle.get(name, 0.0)) for name, took in parts.items()}

    def table(self) -> str:
        """µs a step of each kind of stage, a mean over SMs; its bytes at the target's rate; the loss against it."""
        parts = self.parts()
        kinds = list(dict.fromkeys(self.rows))
        heads = (*PARTS, "sum", "floor", "loss")
        lines = [f"{'stage':14}{'rows':>6}" + "".join(f"{head:>10}" for head in heads)]
        for kind in [*kinds, "all"]:
            mine = [i for i, body in enumerate(self.rows) if kind in (body, "all")]
            micro = [float(parts[p][:, mine].sum(1).mean()) / 1e3 for p in PARTS]
            floor = sum(self.bytes[i] for i in mine) / self.stream_tbps / 1e6
            micro += [sum(micro), floor, sum(micro) - floor]
            lines.append(f"{kind:14}{len(mine):6}" + "".join(f"{m:10.1f}" for m in micro))
        total, step = sum(self.bytes), self.step_ns / 1e3
        floor = total / self.stream_tbps / 1e6
        lines.append(
            f"step {step:.1f} µs; floor {floor:.1f} µs: {total / 1e6:.1f} MB at {self.stream_tbps} TB/s; "
            f"loss {step - floor:.1f} µs"
        )
        return "\n".join(lines)

    def perfetto(self) -> dict[str, Any]:
        """Trace events for ui.perfetto.dev: a process an SM, a thread a role; times in µs."""
        names = {0: "consumer", 1: "tape loader", 2: "state loader"}
        events: list[dict[str, Any]] = []
        for sm in range(len(self.clocks)):
            about = {"ph": "M", "pid": sm}
            events.append(about | {"name": "process_name", "args": {"name": f"SM {sm}"}})
            for role, name in names.items():
                events.append(about | {"name": "thread_name", "tid": role, "args": {"name": name}})
        parts, ns = self.parts(), self.ns
        for sm, row in np.ndindex(*ns.shape[:2]):
            at = float(ns[sm, row, self.marks.index("begin")])
            for part in PARTS:
                took = float(parts[part][sm, row])
                if took > 0:
                    events.append(self._event(sm, 0, row, part, at, took))
                    at += took
            for role, name in ((1, "tape"), (2, "state")):
                first, last = (
                    ns[sm, row, self.marks.index(f"{name}_{e}")] for e in ("begin", "end")
                )
                if last > first:
                    events.append(self._event(sm, role, row, name, first, last - first))
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def _event(self, sm: int, role: int, row: int, part: str, at: float, took: float) -> Any:
        times = {"ts": round(at / 1e3, 3), "dur": round(took / 1e3, 3)}
        facts = {"args": {"row": row}, "cat": part}
        return (
            {"ph": "X", "pid": sm, "tid": role, "name": f"{self.rows[row]} {part}"} | times | facts
        )

    def picture(self, path: Path) -> None:
        """Time across, SMs down, coloured by what warp 0 does; PNG or SVG by the path's suffix.

        Raises TileirError without matplotlib, or for another suffix.
        """
        pyplot = pyplot_for(path)
        from matplotlib.patches import Patch

        figure, axes = pyplot.subplots(figsize=(14, 6), layout="constrained")
        begin = self.ns[..., self.marks.index("begin")]
        parts = self.parts()
        for sm in range(len(begin)):
            at = begin[sm].copy()
            for part in PARTS:
                took = parts[part][sm]
                bars = [(a / 1e3, t / 1e3) for a, t in zip(at, took, strict=True) if t > 0]
                axes.broken_barh(bars, (sm, 1), color=COLOURS[part], linewidth=0, rasterized=True)
                at = at + took
        axes.set(xlabel="µs", ylabel="SM", xlim=(0, self.step_ns / 1e3), ylim=(len(begin), 0))
        handles = [Patch(color=COLOURS[p], label=p) for p in PARTS]
        axes.legend(handles=handles, ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1))
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def record_trace(package: Package, weights: Path | None, position: int, device: str) -> Trace:
    """Trace one step on a GPU, at a position.

    weights: None for drawn ones. Raises TileirError for a package that does not trace or a position that it does not
    hold, DeviceError.
    """
    if not package.manifest["memory"]["trace"]:
        raise TileirError("this package does not trace", hint="tileir compile MODEL --trace")
    held = package.manifest["context"]
    if not 8 <= position < held:
        raise TileirError(
            f"a step at position {position}: the package holds {held}",
            hint=f"name a --position of 8 … {held - 1}",
        )
    if not device.startswith("cuda"):
        raise TileirError(f"device {device!r} has no clocks", hint="a GPU traces: cuda:N")
    read = [sum(both) for both in row_bytes(package, position)[0]]
    with closing(package.load(named_or_drawn(package, weights), device)) as session:
        clocks = session.trace(position)  # type: ignore[attr-defined]  # a CudaSession, by its device
    m = package.manifest
    return Trace(clocks, m["marks"], m["row_bodies"], read, m["stream_tbps"])


def load_trace(path: Path) -> Trace:
    """A trace that `Trace.save` has written. Raises TileirError for what is none, or of another version."""
    hint = "`tileir trace PACKAGE --save PATH` writes one"
    try:
        with np.load(path) as held:
            clocks, facts = held["clocks"], dict(json.loads(str(held["facts"])))
        if (schema := facts.pop("schema", None)) != SCHEMA:
            raise TileirError(
                f"{path} is a trace of schema {schema}; this version reads schema {SCHEMA}",
                hint=hint,
            )
        found = Trace(clocks, **facts)
        if clocks.shape[1:] != (rows := len(found.rows) + 1, marks := len(found.marks)):
            raise ValueError(f"clocks {list(clocks.shape)}, not [sms, {rows}, {marks}]")
    except _UNREADABLE as error:
        raise TileirError(f"{path} is no trace: {error}", hint=hint) from None
    return found
