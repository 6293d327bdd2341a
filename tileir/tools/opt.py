"""tileir-opt: read a module, run passes, print it. Our passes and upstream's in one pipeline."""

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.passes.registry import NAMES, find_pass

SEPARATOR = re.compile(r"(?m)^// -----.*$\n?")
EXPECTED = re.compile(
    r"//\s*expected-(error|warning|note|remark)\s*(?:@([+-]\d+|above|below))?\s*\{\{(.*?)\}\}"
)


@dataclass
class Diagnostic:
    """What MLIR or a pass said: severity, (line, column) or None, text."""

    severity: str
    place: tuple[int, int] | None
    text: str


@dataclass
class Reader:
    """One piece of input, and what was said about it."""

    name: str
    text: str
    first_line: int
    said: list[Diagnostic] = field(default_factory=list)

    def hear(self, diagnostic: Any) -> bool:
        """MLIR's handler: keep errors and their notes."""
        match = re.search(r":(\d+):(\d+)", str(diagnostic.location))
        place = (int(match.group(1)), int(match.group(2))) if match else None
        severity = str(diagnostic.severity).rsplit(".", 1)[-1].lower()
        self.said.append(Diagnostic(severity, place, diagnostic.message))
        return True

    def show(self) -> str:
        """The diagnostics as file:line:col with the source line and a caret."""
        lines, out = self.text.splitlines(), []
        for d in self.said:
            if d.severity == "note" and d.text.startswith("see current operation"):
                continue
            where = f"{self.name}:{d.place[0]}:{d.place[1]}: " if d.place else f"{self.name}: "
            out.append(f"{where}{d.severity}: {d.text}")
            row = d.place[0] - self.first_line if d.place else -1
            if d.place and 0 <= row < len(lines):
                out += [lines[row], " " * (d.place[1] - 1) + "^"]
        return "\n".join(out)

    def unexpected(self) -> list[str]:
        """What differs from the `expected-…` comments: (file:line: message)s."""
        wanted = []
        for number, line in enumerate(self.text.splitlines(), start=self.first_line):
            for severity, at, text in EXPECTED.findall(line):
                shift = {"above": -1, "below": 1, "": 0}.get(at)
                wanted.append([severity, number + (int(at) if shift is None else shift), text])
        out = []
        for d in self.said:
            line_number = d.place[0] if d.place else None
            hit = next((w for w in wanted if w[0] == d.severity and w[2] in d.text
                        and (line_number is None or w[1] == line_number)), None)  # fmt: skip
            if hit is not None:
                wanted.remove(hit)
            elif d.severity == "error":
                out.append(f"{self.name}:{line_number}: unexpected error: {d.text}")
        return out + [f"{self.name}:{w[1]}: expected {w[0]} {w[2]!r} was not said" for w in wanted]


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 1 after an error that was printed."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    pipeline = args.pass_pipeline or ",".join(_flag(parser, f) for f in flags)
    text = sys.stdin.read() if args.input == "-" else _read(parser, args.input)
    name = "<stdin>" if args.input == "-" else args.input
    status, outputs, line = 0, [], 1
    for piece in SEPARATOR.split(text) if args.split_input_file else [text]:
        reader = Reader(name, piece, line)
        output = _process(reader, pipeline, args)
        if args.verify_diagnostics:
            problems = reader.unexpected()
            print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
            status |= bool(problems)
        elif output is None:
            print(reader.show(), file=sys.stderr)
            status = 1
        else:
            outputs.append(output)
        line += piece.count("\n") + 1
    result = "// -----\n".join(outputs)
    if args.output != "-":
        Path(args.output).write_text(result)
    elif not args.verify_diagnostics:
        print(result, end="")
    return int(status)


def _process(reader: Reader, pipeline: str, args: argparse.Namespace) -> str | None:
    """The module after the pipeline, as text; None after an error."""
    context = new_context()
    context.emit_error_diagnostics = True
    handler = context.attach_diagnostic_handler(reader.hear)

    def after(name: str, module: Any) -> None:
        if args.print_ir_after_all or name in args.print_ir_after:
            print(f"// ----- IR after {name} -----\n{module}", file=sys.stderr)

    def timed(name: str, seconds: float) -> None:
        if args.mlir_timing:
            print(f"{seconds * 1e3:10.2f} ms  {name}", file=sys.stderr)

    try:
        with context, ir.Location.unknown():
            # Newlines in front keep the lines of a later piece right.
            module = ir.Module.parse("\n" * (reader.first_line - 1) + reader.text)
            run_pipeline(module, pipeline, on_pass=timed, after_pass=after)
            return str(module.operation.get_asm(enable_debug_info=args.mlir_print_debuginfo)) + "\n"
    except ir.MLIRError as error:
        if not reader.said:
            reader.said.append(Diagnostic("error", None, str(error)))
        return None
    except TileirError as error:
        match = re.search(r":(\d+):(\d+)", error.location)
        place = (int(match.group(1)), int(match.group(2))) if match else None
        text = str(error) if place is None else f"{error.message}\n  {error.hint}"
        reader.said.append(Diagnostic("error", place, text))
        return None
    finally:
        handler.detach()


def _read(parser: argparse.ArgumentParser, path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {path}: {error}")


def _flag(parser: argparse.ArgumentParser, text: str) -> str:
    """`--tile-graph=tokens=2` as `tile-graph{tokens=2}`."""
    match = re.fullmatch(r"--?([\w.-]+)(?:=(.*))?", text)
    if match is None:
        parser.error(f"unexpected argument {text!r}")
    return match.group(1) + (f"{{{match.group(2)}}}" if match.group(2) else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tileir-opt",
        description=__doc__,
        epilog=_passes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", nargs="?", default="-", help="a file, or - for stdin")
    parser.add_argument("-o", dest="output", default="-", help="where to write; - for stdout")
    parser.add_argument("--pass-pipeline", default="", help="'builtin.module(graph-fuse,cse,…)'")
    parser.add_argument("--split-input-file", action="store_true", help="pieces between // -----")
    parser.add_argument("--verify-diagnostics", action="store_true", help="check expected-error")
    parser.add_argument("--print-ir-after-all", action="store_true")
    parser.add_argument("--print-ir-after", action="append", default=[], metavar="PASS")
    parser.add_argument("--mlir-timing", action="store_true", help="time of each pass")
    parser.add_argument("--mlir-print-debuginfo", action="store_true", help="print locations")
    return parser


def _passes() -> str:
    """Every pass with the first line of its docstring and its options."""
    lines = ["passes, each also a flag (--NAME or --NAME=option=value):"]
    for name in NAMES:
        found = find_pass(name)
        lines.append(f"  {name:20} {(found.__doc__ or '').splitlines()[0]}")
        for option, (kind, default) in found.options().items():
            lines.append(f"  {'':20}   {option}={kind.__name__} (default {default})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
