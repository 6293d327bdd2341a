"""The `tileir` command: compile, run, inspect."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import tileir
from tileir.errors import TileirError

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
    max_context: Annotated[int, typer.Option(help="positions the KV cache holds")] = 2048,
    emit: Annotated[str, typer.Option(help=f"print one stop instead: {', '.join(STAGES)}")] = "",
    print_ir_after: Annotated[
        list[str] | None, typer.Option(help="print the IR after a pass")
    ] = None,
) -> None:
    """Compile a model: tileir compile ./SmolLM2 -o smol.tileir --target h100."""
    from tileir.frontends.torch_export import export_decode, load_hf

    if emit and emit not in STAGES:
        raise TileirError(f"nothing to emit called {emit!r}", hint=f"stops: {', '.join(STAGES)}")
    console = Console(stderr=True, highlight=False)
    with console.status("exporting"):
        program = export_decode(load_hf(model), max_context)
    if emit or print_ir_after:
        from tileir.compiler import stop_at

        print(stop_at(program, target, emit or "engine", set(print_ir_after or ())))
        return
    package = tileir.compile(
        program, target=target, progress=lambda n, s: console.print(f"  {n:20} {s:6.2f} s")
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
    max_new_tokens: Annotated[int, typer.Option(help="how many tokens at most")] = 128,
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
    session = loaded.load(weights, device=device)
    streamer = Streamer(tokenizer)
    for token in session.generate(ids, max_new_tokens, stop_ids=_stop_ids(weights)):
        print(streamer.push(token), end="", flush=True)
    print(streamer.rest())
    session.close()


@app.command()
def inspect(
    package: Annotated[Path, typer.Argument(help="a compiled package")],
    as_json: Annotated[bool, typer.Option("--json", help="the whole manifest")] = False,
) -> None:
    """Say what a package holds: tileir inspect smol.tileir."""
    loaded = tileir.load_package(package)
    print(json.dumps(loaded.manifest, indent=1) if as_json else loaded.summary())


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
