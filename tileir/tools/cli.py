"""The `tileir` command: compile, run, inspect."""

import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import tileir
from tileir.errors import TileirError
from tileir.passes.registry import NAMES
from tileir.target import find_target

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compile decode steps to one persistent GPU kernel, and run them.",
)
STAGES = ("graph", "tile", "engine", "nvvm", "ptx")


@app.command(name="compile")
def compile_command(
    model: Annotated[Path, typer.Argument(help="a Hugging Face folder")],
    output: Annotated[Path, typer.Option("-o", help="where the package goes")] = Path(
        "model.tileir"
    ),
    target: Annotated[str, typer.Option(help="h100, h200 or virtual")] = "h100",
    max_context: Annotated[int, typer.Option(min=1, help="positions the KV cache holds")] = 2048,
    tokens: Annotated[int, typer.Option(min=1, help="most tokens a step")] = 1,
    sequences: Annotated[int, typer.Option(min=1, help="most sequences a step")] = 1,
    page: Annotated[int, typer.Option(min=0, help="rows of a KV page; 0: no pages")] = 0,
    devices: Annotated[int, typer.Option(min=1, help="GPUs")] = 1,
    placement: Annotated[str, typer.Option(help="how GPUs share the work; else the cheapest")] = "",
    print_candidates: Annotated[bool, typer.Option(help="print what placements cost")] = False,
    emit: Annotated[str, typer.Option(help=f"print one stop instead: {', '.join(STAGES)}")] = "",
    print_ir_after: Annotated[
        list[str] | None, typer.Option(help="print the IR after a pass")
    ] = None,
) -> None:
    """Compile a model: tileir compile ./SmolLM2 -o smol.tileir --target h100."""
    _check_names("stop", [emit] if emit else [], STAGES)
    _check_names("pass", print_ir_after or [], NAMES)
    find_target(target)
    if not output.absolute().parent.is_dir():
        raise TileirError(f"no folder {output.parent}", hint="make it, or name another with -o")
    from tileir.frontends.torch_export import export_decode, load_hf

    warnings.simplefilter("ignore", FutureWarning)  # torch.export's, about itself
    console = Console(stderr=True, highlight=False)
    with console.status("exporting"):
        program = export_decode(load_hf(model), max_context)
    options: dict[str, Any] = {"target": target, "tokens": tokens, "sequences": sequences}
    options |= {"page": page, "devices": devices, "placement": placement}
    options["print_candidates"] = print_candidates
    if emit or print_ir_after:
        from tileir.compiler import stop_at

        print(stop_at(program, emit or "engine", set(print_ir_after or ()), **options))
        return
    package = tileir.compile(
        program, progress=lambda n, s: console.print(f"  {n:20} {s:6.2f} s"), **options
    )
    path = package.save(output)
    print(f"{package.summary()}\nwrote {path} ({path.stat().st_size / 1024:.0f} KB)")


@app.command()
def run(
    package: Annotated[Path, typer.Argument(help="a compiled package")],
    weights: Annotated[Path, typer.Option(help="a folder with safetensors and tokenizer.json")],
    prompt: Annotated[str, typer.Option(help="text to go on from")],
    chat: Annotated[
        bool, typer.Option(help="put the prompt into the model's chat template")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="how many tokens at most")] = 128,
    device: Annotated[str, typer.Option(help="auto, cuda:N, reference or reference-bf16")] = "auto",
) -> None:
    """Generate text: tileir run smol.tileir --weights ./SmolLM2 --prompt "Once upon"."""
    from tileir.tools.text import Streamer, load_tokenizer

    loaded = tileir.load_package(package)
    tokenizer = load_tokenizer(weights)
    if chat:
        from tileir.frontends.torch_export.chat import render_chat

        prompt = render_chat(weights, prompt)
    ids = tokenizer.encode(prompt).ids
    streamer = Streamer(tokenizer)
    with closing(loaded.load(weights, device=device)) as session:
        # Closed first, also on Ctrl-C: a kernel that still runs must end before its memory is given back.
        with closing(session.generate(ids, max_new_tokens, stop_ids=_stop_ids(weights))) as tokens:
            for token in tokens:
                print(streamer.push(token), end="", flush=True)
        print(streamer.rest())


@app.command()
def inspect(
    package: Annotated[Path, typer.Argument(help="a compiled package")],
    as_json: Annotated[bool, typer.Option("--json", help="the whole manifest")] = False,
) -> None:
    """Say what a package holds: tileir inspect smol.tileir."""
    loaded = tileir.load_package(package)
    print(json.dumps(loaded.manifest, indent=1) if as_json else loaded.summary())


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises TileirError, with near matches, for the first name that is none of the known."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise TileirError(f"unknown {kind} {name!r}", hint=f"{guess}known: {', '.join(known)}")


def _stop_ids(folder: Path) -> list[int]:
    """End-of-sequence ids of the folder's configs."""
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if found is None and path.is_file():
            found = json.loads(path.read_text()).get("eos_token_id")
    return [found] if isinstance(found, int) else list(found or ())


def main() -> None:
    """The command's entry: a user's mistake is a message on stderr and status 1."""
    try:
        app()
    except TileirError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
