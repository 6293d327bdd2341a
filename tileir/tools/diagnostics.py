"""What was said about a piece of input: shown with source lines, or compared with `expected-…` comments."""

import linecache
import re
from dataclasses import dataclass, field
from typing import Any, Self

from tileir.errors import TileirError

# In `loc("model.py":12:3)` and in what `located` makes of it; the innermost file of a nested location.
PLACE = re.compile(r"([^()\[\]]*?):(\d+):(\d+)")
EXPECTED = re.compile(
    r"//\s*expected-(error|warning|note|remark)\s*(?:@([+-]\d+|above|below|unknown))?\s*\{\{(.*?)\}\}"
)
# The name that the bindings give to text that came from no file.
TEXT = "-"


@dataclass(frozen=True)
class Place:
    """A line and column of a file, both from 1."""

    file: str
    line: int
    column: int

    @classmethod
    def of(cls, location: str) -> Self | None:
        """The place in a location's text; None if it is unknown."""
        match = PLACE.search(location.removeprefix("loc(").replace('"', ""))
        if match is None or match.group(2) == "0":
            return None
        return cls(match.group(1), int(match.group(2)), int(match.group(3)))


@dataclass(frozen=True)
class Diagnostic:
    """What MLIR or a pass said. hint: lines that follow the source line."""

    severity: str
    place: Place | None
    text: str
    hint: str = ""


@dataclass
class Piece:
    """A piece of input from `first_line` on, and what was said about it."""

    name: str
    text: str
    first_line: int = 1
    said: list[Diagnostic] = field(default_factory=list)

    def hear(self, diagnostic: Any) -> bool:
        """MLIR's handler: keeps the diagnostic and its notes."""
        severity = str(diagnostic.severity).rsplit(".", 1)[-1].lower()
        text = diagnostic.message
        if not (severity == "note" and text.startswith("see current operation")):
            place = Place.of(str(diagnostic.location))
            self.said.append(Diagnostic(severity, place, text))
        for note in diagnostic.notes:
            self.hear(note)
        return True

    def fail(self, error: TileirError, severity: str = "error") -> None:
        """Keeps what a pass raised."""
        place = Place.of(error.location)
        where = "" if place or not error.location else f"{error.location}: "
        self.said.append(Diagnostic(severity, place, where + error.message, error.hint))

    def show(self) -> str:
        """The diagnostics as file:line:col with the source line and a caret."""
        return "\n".join(line for d in self.said for line in self._shown(d))

    def _shown(self, d: Diagnostic) -> list[str]:
        hint = [f"  {d.hint}"] if d.hint else []
        if d.place is None:
            return [f"{self.name}: {d.severity}: {d.text}", *hint]
        file = self.name if d.place.file == TEXT else d.place.file
        source = self._source(file, d.place.line)
        caret = [source, " " * (d.place.column - 1) + "^"] if source else []
        return [
            f"{file}:{d.place.line}:{d.place.column}: {d.severity}: {d.text}", *caret, *hint
        ]  # fmt: skip

    def _source(self, file: str, line: int) -> str:
        if file != self.name:
            return linecache.getline(file, line).rstrip("\n")
        lines, row = self.text.splitlines(), line - self.first_line
        return lines[row] if 0 <= row < len(lines) else ""

    def surprises(self) -> list[str]:
        """What was said or not said otherwise than the `expected-…` comments have it."""
        wanted = self._wanted()
        out = []
        for d in self.said:
            own = d.place is not None and d.place.file in (TEXT, self.name)
            line = d.place.line if d.place and own else None
            text = f"{d.text}\n  {d.hint}"
            hit = next((w for w in wanted if w[:2] == (d.severity, line) and w[2] in text), None)
            if hit is None:
                where = f"{self.name}:{line}" if line else f"{self.name}: elsewhere"
                out.append(f"{where}: unexpected {d.severity}: {d.text}")
            else:
                wanted.remove(hit)
        for severity, line, text in wanted:
            where = f"{self.name}:{line}" if line else self.name
            out.append(f"{where}: expected {severity} {text!r} was not said")
        return out

    def _wanted(self) -> list[tuple[str, int | None, str]]:
        """(severity, line or None for @unknown, text) of every expectation."""
        out: list[tuple[str, int | None, str]] = []
        for number, line in enumerate(self.text.splitlines(), start=self.first_line):
            for severity, at, text in EXPECTED.findall(line):
                shift = {"above": -1, "below": 1, "": 0}.get(at)
                if at == "unknown":
                    out.append((severity, None, text))
                else:
                    out.append((severity, number + (int(at) if shift is None else shift), text))
        return out
