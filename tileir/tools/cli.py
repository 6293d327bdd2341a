"""The `tileir` command: compile, run, check, inspect, trace, tune, postmortem, models."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import tileir
from tileir.errors import TileirError
from tileir.passes.registry import NAMES
from tileir.target import find_target
from tileir.tools.bounds import BOUNDS, Bounds
from tileir.tools.messages import report, usage, warn

EXITS = (
    "Exit status: 0 all went well; 1 a mistake or a limit, told as `error:` and `hint:` on stderr; "
    "2 a command line that makes no sense; 130 interrupted by Ctrl-C. "
    "`tileir --install-completion` lets your shell complete commands and options."
)
STAGES = ("graph", "tile", "engine", "nvvm", "ptx")

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compile decode steps to one persistent GPU kernel, and run them.",
    epilog=EXITS,
)

Compiled = Annotated[Path, typer.Argument(help="a compiled package")]
Weights = Annotated[Path, typer.Option(help="a folder or a file of safetensors, or a GGUF file")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="print results and errors only")]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry; ends with SystemExit, whose code `tileir --help` explains."""
    argv = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        # Text of models is UTF-8, whatever the locale says.
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    warnings.showwarning = warn
    try:
        status = app(argv or ["--help"], prog_name="tileir", standalone_mode=False)
    except (TileirError, typer.TyperException, typer.Abort) as error:
        status = report(error)
    except KeyboardInterrupt:
        status = 130
    if status == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(status or 0)


def _examples(*commands: str) -> str:
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])


def _version(asked: bool) -> None:
    if asked:
        print(f"tileir {tileir.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Compile decode steps to one persistent GPU kernel, and run them."""


@app.command(
    name="compile",
    epilog=_examples(
        "tileir compile ./SmolLM2 -o smol.tileir",
        "tileir compile ./SmolLM2 --target virtual --max-context 512",
        "tileir compile ./SmolLM2 --emit tile > tile.mlir",
    ),
)
def compile_command(
    model: Annotated[Path, typer.Argument(help="a Hugging Face folder")],
    output: Annotated[Path, typer.Option("-o", "--output", help="where the package goes")] = Path(
        "model.tileir"
    ),
    target: Annotated[
        str, typer.Option(help="h100, h200, virtual, or a file of `tune --measure`")
    ] = "h100",
    max_context: Annotated[int, typer.Option(min=1, help="positions the KV cache holds")] = 2048,
    tokens: Annotated[int, typer.Option(min=1, help="most tokens a step")] = 1,
    sequences: Annotated[int, typer.Option(min=1, help="most sequences a step")] = 1,
    page: Annotated[int, typer.Option(min=0, help="rows of a KV page; 0: no pages")] = 0,
    devices: Annotated[int, typer.Option(min=1, help="GPUs")] = 1,
    placement: Annotated[str, typer.Option(help="how GPUs share the work; else the cheapest")] = "",
    print_candidates: Annotated[
        bool, typer.Option("--print-candidates", help="print what placements cost")
    ] = False,
    trace: Annotated[bool, typer.Option("--trace", help="the kernel notes its times")] = False,
    emit: Annotated[str, typer.Option(help=f"print one stop instead: {', '.join(STAGES)}")] = "",
    print_ir_after: Annotated[
        list[str] | None, typer.Option(help="print the IR after a pass")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compile a model into a package, without its weights; needs no GPU."""
    _check_names("stop", [emit] if emit else [], STAGES)
    _check_names("pass", print_ir_after or [], NAMES)
    find_target(target)
    prints = bool(emit or print_ir_after)
    if not prints:
        _check_output(output)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours says enough
    from tileir.frontends.torch_export import export_decode, load_hf

    warnings.simplefilter("ignore", FutureWarning)  # torch.export's, about itself
    console = Console(file=sys.stderr, highlight=False, quiet=quiet)
    with console.status("exporting"):
        program = export_decode(load_hf(model), max_context)
    options: dict[str, Any] = {"target": target, "tokens": tokens, "sequences": sequences}
    options |= {"page": page, "devices": devices, "placement": placement}
    options |= {"print_candidates": print_candidates, "trace": trace}
    if prints:
        from tileir.compiler import stop_at

        print(stop_at(program, emit or "engine", set(print_ir_after or ()), **options))
        return
    package = tileir.compile(
        program, progress=lambda n, s: console.print(f"  {n:20} {s:6.2f} s"), **options
    )
    path = package.save(output)
    if not quiet:
        print(f"{package.summary()}\nwrote {path} ({path.stat().st_size / 1024:.0f} KB)")


@app.command(
    epilog=_examples(
        'tileir run smol.tileir --weights ./SmolLM2 --prompt "Once upon a time"',
        'tileir run smol.tileir --weights ./SmolLM2 --chat --prompt "What is gravity?"',
        "tileir run smol.tileir --weights ./SmolLM2 --chat",
        'tileir run smol.tileir --weights smol.Q4_1.gguf --tokenizer ./SmolLM2 --prompt "Once"',
    )
)
def run(
    package: Compiled,
    weights: Weights,
    prompt: Annotated[
        str | None, typer.Option(help="text to go on from; without it, --chat asks you")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="use the model's chat template, turn by turn")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="the folder of tokenizer.json, if not that of the weights")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="how many tokens at most")] = 128,
    device: Annotated[str, typer.Option(help="auto, cuda:N, reference or reference-bf16")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Generate text, or talk with a model; text appears as it is made."""
    if prompt is None and not chat:
        raise usage("run needs --prompt TEXT, or --chat to talk")
    from tileir.tools.talk import Talker

    loaded = tileir.load_package(package)
    folder = tokenizer or (weights.parent if weights.is_file() else weights)
    talker = Talker(loaded, folder, max_new_tokens, weights=weights, chat=chat)
    if prompt is not None:
        talker.check(prompt)
    with talker.on(device, quiet=quiet):
        if prompt is None:
            talker.talk(quiet=quiet)
        else:
            talker.say(prompt)


@app.command(
    epilog=_examples(
        "tileir check smol.tileir --weights ./SmolLM2",
        "tileir check smol.tileir --weights ./SmolLM2 --device cuda:0 --all",
        "tileir check smol.tileir --weights ./SmolLM2 --save-exact exact.npz",
        "tileir check smol.tileir --weights ./SmolLM2 --device cuda:0 --exact exact.npz",
    )
)
def check(
    package: Compiled,
    weights: Weights,
    device: Annotated[
        str, typer.Option(help="reference-bf16, the kernel's rounding on the CPU, or cuda:N")
    ] = "reference-bf16",
    text: Annotated[
        str | None, typer.Option(help="a text, or a file of it; else ids without a pattern")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="the folder of tokenizer.json, if not that of the weights")
    ] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, help="how many; else 24, or all of the text")
    ] = None,
    exact: Annotated[
        Path | None, typer.Option(help="the fp32 side, computed before with --save-exact")
    ] = None,
    save_exact: Annotated[
        Path | None, typer.Option(help="compute the fp32 side only, into a file, *.npz")
    ] = None,
    max_stage_error: Annotated[
        float, typer.Option(min=0, help="of the largest value in a stage's channel")
    ] = BOUNDS.stage,
    max_rise: Annotated[
        float, typer.Option(min=1, help="of a stage's mean error, beside all before it")
    ] = BOUNDS.rise,
    max_logit_error: Annotated[
        float, typer.Option(min=0, help="of the position's largest logit")
    ] = BOUNDS.logit,
    max_kl: Annotated[float, typer.Option(min=0, help="nats, mean over positions")] = BOUNDS.kl,
    max_top1: Annotated[
        int, typer.Option(min=0, help="positions whose best token differs not by rounding")
    ] = BOUNDS.top1,
    every: Annotated[bool, typer.Option("--all", help="a line for every row of the table")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="all figures as JSON")] = False,
) -> None:
    """Compare what a package computes with its execution in fp32, stage by stage.

    The exact side runs on the CPU, at some positions a second at most: minutes for a real model.
    """
    from tileir.tools.check import check_device, check_package
    from tileir.tools.exact import exact_of, ids_of, load_exact

    if exact is not None and (text, positions, save_exact) != (None, None, None):
        raise usage("--exact has ids of its own: no --text, --positions or --save-exact beside it")
    if save_exact is not None:
        _check_output(save_exact)
    loaded = tileir.load_package(package)
    if save_exact is None:
        check_device(loaded, device)
    console = Console(file=sys.stderr, highlight=False)
    if exact is not None:
        found = load_exact(exact, loaded, weights)
    else:
        folder = tokenizer or (weights.parent if weights.is_file() else weights)
        ids = ids_of(loaded, text, folder, positions)
        with console.status(f"{len(ids)} positions on the reference device, in fp32"):
            found = exact_of(loaded, weights, ids)
    if save_exact is not None:
        found.save(save_exact)
        print(f"wrote {save_exact}")
        return
    bounds = Bounds(max_stage_error, max_rise, max_logit_error, max_kl, max_top1)
    with console.status(f"{len(found.ids)} positions on {device}"):
        report = check_package(loaded, weights, device, found, bounds)
    print(json.dumps(report.json(), indent=1) if as_json else report.table(every=every))
    report.refuse()


@app.command(
    epilog=_examples(
        "tileir inspect smol.tileir",
        "tileir inspect smol.tileir --context 500 --json",
        "tileir inspect smol.tileir --manifest",
    )
)
def inspect(
    package: Compiled,
    context: Annotated[
        int | None, typer.Option(min=0, help="positions held, for the prediction; else all")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same numbers as JSON")] = False,
    manifest: Annotated[bool, typer.Option("--manifest", help="the whole manifest")] = False,
) -> None:
    """Say what a package holds, and what a token of it costs to read."""
    if as_json and manifest:
        raise usage("--json and --manifest: name one")
    loaded = tileir.load_package(package)
    if manifest:
        print(json.dumps(loaded.manifest, indent=1))
        return
    from tileir.tools.figures import figures, table_of

    found = figures(loaded, context)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for what, how_much in table_of(found):
        print(f"{what:10} {how_much}")


@app.command(
    epilog=_examples(
        "tileir trace smol.tileir --position 1000 --save step.npz",
        "tileir trace step.npz -o step.json --picture step.png",
    )
)
def trace(
    source: Annotated[
        Path, typer.Argument(help="a package compiled with --trace, or a saved trace, *.npz")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="a package's weights; drawn if not named")
    ] = None,
    position: Annotated[int, typer.Option(min=8, help="positions held in the traced step")] = 1000,
    device: Annotated[str, typer.Option(help="cuda:N")] = "cuda:0",
    output: Annotated[
        Path | None, typer.Option("-o", help="events for ui.perfetto.dev, as JSON")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="a picture, .png or .svg")] = None,
    save: Annotated[Path | None, typer.Option(help="the trace itself, to be named again")] = None,
) -> None:
    """Say where the time of one step goes, on every SM of a GPU."""
    from tileir.tools.trace import load_trace, record_trace

    for path in (output, picture, save):
        if path is not None:
            _check_output(path)
    if source.suffix == ".npz":
        found = load_trace(source)
    else:
        found = record_trace(tileir.load_package(source), weights, position, device)
    print(found.table())
    if output is not None:
        output.write_text(json.dumps(found.perfetto()))
    if picture is not None:
        found.picture(picture)
    if save is not None:
        found.save(save)


@app.command(epilog=_examples("tileir postmortem tileir-hang-1.json --picture hang.png"))
def postmortem(
    dump: Annotated[Path, typer.Argument(help="the file that a DeviceHang names")],
    picture: Annotated[
        Path | None,
        typer.Option(help="the wait-for graph, .png or .svg; beside the dump if not named"),
    ] = None,
) -> None:
    """Say who waited for whom when a kernel gave up, and draw it."""
    from tileir.runtime.report import describe, load_dump
    from tileir.tools.postmortem import picture as draw

    path = dump.with_suffix(".png") if picture is None else picture
    _check_output(path)
    found = load_dump(dump)
    print(describe(found))
    draw(found, path)
    print(f"wrote {path}")


@app.command(
    epilog=_examples(
        "tileir tune smol.tileir -o tuned.tileir",
        "tileir tune --measure mine.json",
        "tileir compile ./SmolLM2 --target mine.json",
    )
)
def tune(
    package: Annotated[Path | None, typer.Argument(help="a compiled package")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="the package's weights; if not named, drawn ones")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="where the tuned package goes")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="time of the search, once weights are loaded")
    ] = 60,
    position: Annotated[int, typer.Option(min=0, help="positions held in the timed steps")] = 1024,
    measure: Annotated[
        Path | None, typer.Option(help="measure the GPU instead, into a target's file, *.json")
    ] = None,
    base: Annotated[str, typer.Option(help="the target that tells what is not measured")] = "h100",
    device: Annotated[str, typer.Option(help="cuda:N")] = "cuda:0",
    quiet: Quiet = False,
) -> None:
    """Fit a package to the GPU at hand, or measure the GPU for `compile --target`."""
    if (package is None) == (measure is None):
        raise usage("tune needs PACKAGE, or --measure TARGET.json")
    from tileir.tools.tune import measure_target, tune_package

    if measure is not None:
        if weights is not None or output is not None:
            raise usage("--measure takes neither --weights nor --output")
        _check_output(measure)
        text = measure_target(measure, find_target(base), device)
        measure.write_text(text, encoding="utf-8")
        if not quiet:
            print(f"{text}wrote {measure}")
        return
    if package is None or output is None:
        raise usage("tune PACKAGE needs --output")
    _check_output(output)
    tuned = tune_package(tileir.load_package(package), weights, device, seconds, position)
    path = tuned.package.save(output)
    if not quiet:
        print(f"{tuned.table()}\nwrote {path}")


@app.command(epilog=_examples("tileir models", "tileir models --json"))
def models(
    as_json: Annotated[bool, typer.Option("--json", help="the table as JSON")] = False,
) -> None:
    """List the model families that are known to compile, and the devices that run them."""
    from dataclasses import asdict

    from tileir.tools.models import FAMILIES

    if as_json:
        print(json.dumps([asdict(family) for family in FAMILIES], indent=1))
        return
    for f in FAMILIES:
        print(f"{f.name:14} {f.transformers_class:24} {f.device:11} {f.special}".rstrip())


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises TileirError, with near matches, for the first name that is none of the known."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise TileirError(f"unknown {kind} {name!r}", hint=f"{guess}known: {', '.join(known)}")


def _check_output(path: Path) -> None:
    """Raises TileirError, before minutes of work, if a package could not be written there."""
    if path.is_dir():
        raise TileirError(f"{path} is a folder", hint="name a file, such as model.tileir")
    if not path.absolute().parent.is_dir():
        raise TileirError(f"no folder {path.parent}", hint="make it, or name another with -o")
    if not os.access(path.absolute().parent, os.W_OK):
        raise TileirError(f"{path.parent} cannot be written", hint="name another folder with -o")


if __name__ == "__main__":
    main()
