"""tileir-opt: read a module, run passes, print it. Our passes and upstream's in one pipeline."""

import argparse
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.passes.base import type_text, value_text
from tileir.passes.pipeline import parse_pipeline, run_pipeline
from tileir.passes.registry import find_pass, load_passes, pass_names
from tileir.tools.diagnostics import Diagnostic, Piece

LOAD_HELP = "a Python file that registers passes of your own"
SEPARATOR = re.compile(r"(?m)^// -----[ \t]*$\n?")


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 1 after an error that was printed, or 2 for arguments that make no sense."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        _load(argv)
        parser = _parser(with_passes=bool({"-h", "--help"} & set(argv)))
        args, flags = parser.parse_known_args(argv)
        pipeline = _pipeline(parser, args, flags)
        text = _read(args.input)
        status, output = _all_pieces(text, pipeline, args)
        if status == 0 and not args.verify_diagnostics:
            _write(args.output, output)
        return status
    except TileirError as error:
        print(f"tileir-opt: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who reads our output has stopped; nothing more may be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _load(argv: list[str]) -> None:
    """Load the files of --load-pass first: their passes are flags too, and stand in the help."""
    early = argparse.ArgumentParser("tileir-opt", add_help=False, allow_abbrev=False)
    early.add_argument("--load-pass", action="append", default=[])
    for path in early.parse_known_args(argv)[0].load_pass:
        load_passes(path)


def _all_pieces(text: str, pipeline: str, args: argparse.Namespace) -> tuple[int, str]:
    """(status, the pieces' modules as text)."""
    status, outputs, line = 0, [], 1
    name = "<stdin>" if args.input == "-" else args.input
    for part in SEPARATOR.split(text) if args.split_input_file else [text]:
        piece = Piece(name, part, line)
        output = _process(piece, pipeline, args)
        said = "\n".join(piece.surprises()) if args.verify_diagnostics else piece.show()
        if said:
            print(said, file=sys.stderr)
        failed = bool(said) if args.verify_diagnostics else output is None
        status |= failed
        outputs.append(output or "")
        line += part.count("\n") + 1
    return int(status), "// -----\n".join(outputs)


def _process(piece: Piece, pipeline: str, args: argparse.Namespace) -> str | None:
    """The module after the pipeline, as text; None after an error."""
    context = new_context()
    context.emit_error_diagnostics = True
    handler = context.attach_diagnostic_handler(piece.hear)

    def after(name: str, module: Any) -> None:
        if args.print_ir_after_all or name in args.print_ir_after:
            print(f"// ----- IR after {name} -----\n{module}", file=sys.stderr)

    def timed(name: str, seconds: float) -> None:
        if args.mlir_timing:
            print(f"{seconds * 1e3:10.2f} ms  {name}", file=sys.stderr)

    try:
        with context, ir.Location.unknown():
            module = _parse(piece, from_file=args.input != "-" and not args.split_input_file)
            run_pipeline(module, pipeline, on_pass=timed, after_pass=after)
            return str(module.operation.get_asm(enable_debug_info=args.mlir_print_debuginfo)) + "\n"
    except ir.MLIRError as error:
        if not piece.said:
            piece.said.append(Diagnostic("error", None, str(error)))
        return None
    except TileirError as error:
        # What upstream's pass said has been heard; only the way to repeat it is new.
        heard = isinstance(error.__cause__ and error.__cause__.__cause__, ir.MLIRError)
        if not (heard and args.verify_diagnostics):
            piece.fail(error, "note" if heard and piece.said else "error")
        return None
    finally:
        handler.detach()


def _parse(piece: Piece, *, from_file: bool) -> Any:
    if from_file:  # locations then name the file
        return ir.Module.parseFile(piece.name)
    # Newlines in front keep the lines of a later piece right.
    return ir.Module.parse("\n" * (piece.first_line - 1) + piece.text)


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise TileirError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TileirError(f"cannot read {path}: byte {error.start} is no UTF-8") from None


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="", flush=True)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TileirError(f"cannot write {path}: {error.strerror}") from None


def _pipeline(parser: argparse.ArgumentParser, args: argparse.Namespace, flags: list[str]) -> str:
    """The pipeline's text, from --pass-pipeline or from single passes. Raises PipelineError."""
    if args.pass_pipeline and flags:
        raise TileirError(
            f"--pass-pipeline and {flags[0]}", hint="put every pass into the pipeline, or none"
        )
    pipeline = args.pass_pipeline or ",".join(_single(parser, flag) for flag in flags)
    names = [item.name for item in parse_pipeline(pipeline)]
    for name in args.print_ir_after:
        if name not in names:
            raise TileirError(
                f"--print-ir-after={name}: the pipeline has no such pass",
                hint=f"its passes: {', '.join(names) or 'none'}",
            )
    return str(pipeline)


def _single(parser: argparse.ArgumentParser, flag: str) -> str:
    """`--tile-graph=tokens=2` as `tile-graph{tokens=2}`."""
    match = re.fullmatch(r"--?([\w.-]+)(?:=(.*))?", flag)
    if match is None:
        parser.error(f"unexpected argument {flag!r}")
    name, options = match.groups()
    known = [o[2:] for action in parser._actions for o in action.option_strings]
    near = get_close_matches(name, (*known, *pass_names()), n=1)
    if near and near[0] in known:
        parser.error(f"unknown argument {flag!r}: did you mean '--{near[0]}'?")
    return f"{name}{{{options}}}" if options else name


def _parser(*, with_passes: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tileir-opt",
        description=__doc__,
        epilog=_passes() if with_passes else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", nargs="?", default="-", help="a file, or - for stdin")
    parser.add_argument("-o", dest="output", default="-", help="where to write; - for stdout")
    parser.add_argument("--pass-pipeline", default="", help="'builtin.module(graph-fuse,cse,…)'")
    parser.add_argument("--load-pass", action="append", metavar="FILE", help=LOAD_HELP)
    parser.add_argument("--split-input-file", action="store_true", help="pieces between // -----")
    parser.add_argument("--verify-diagnostics", action="store_true", help="check expected-error")
    parser.add_argument("--print-ir-after-all", action="store_true", help="on stderr")
    parser.add_argument("--print-ir-after", action="append", default=[], metavar="PASS")
    parser.add_argument("--mlir-timing", action="store_true", help="time of each pass, on stderr")
    parser.add_argument("--mlir-print-debuginfo", action="store_true", help="print locations")
    return parser


def _passes() -> str:
    """Every pass with the first line of its docstring and its options."""
    lines = ["passes, each also a flag (--NAME or --NAME='option=value …'):"]
    for name in pass_names():
        found = find_pass(name)
        lines.append(f"  {name:20} {(found.__doc__ or '').splitlines()[0]}")
        for option, (kind, default) in found.options().items():
            lines.append(f"  {'':20}   {option}={type_text(kind)} (default {value_text(default)})")
    lines.append("Upstream's passes too, such as canonicalize, cse, func.func(cse).")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
