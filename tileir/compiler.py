"""The journey on one screen: ExportedProgram → graph → tile → engine → PTX → package."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tileir.codegen.kernel import MAILBOX_TOKENS, REPORT_BYTES, REPORT_OFFSET, WAIT_CODES
from tileir.codegen.plan import Plan, read_plan
from tileir.codegen.ptx import DECODE, PACK, assemble, kernel_module, to_ptx
from tileir.codegen.recipe import packing_recipe
from tileir.dialect.attributes import get, walk
from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.package import Package, make_package
from tileir.packing import tape_layout
from tileir.passes.pipeline import run_pipeline
from tileir.target import Target, find_target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Progress = Callable[[str, float], None]

# Order matters: each pass refines what the one before it decided (docs/journey.md).
PIPELINE = (
    "builtin.module(graph-fuse,specialize-gpu{{devices=1}},tile-graph{{tokens={tokens}}},"
    "fuse-communication,specialize-block{{target={target}}},select-sync,specialize-warp{{target={target}}},"
    "schedule-pipeline{{target={target}}},outline-stages{{target={target}}},"
    "allocate-memory{{target={target}}},verify-schedule{{target={target}}})"
)


def compile(
    program: "ExportedProgram",
    *,
    target: str = "h100",
    tokens: int = 1,
    progress: Progress | None = None,
) -> Package:
    """Compile an exported decode step, after `run_decompositions({})`, for one device.

    target: a name of tileir.target.TARGETS. tokens: most tokens a step. progress: called with the name of each part
    of the journey when it is done, and the seconds it took. Raises TileirError for an operation that nothing takes,
    with its node and source line, and for a model that does not fit the target.
    """
    clock = _Clock(progress)
    context = new_context()
    with context, ir.Location.unknown():
        from tileir.frontends.torch_export import import_program

        module = import_program(program, context)
        clock("import")
        return compile_module(module, target=target, tokens=tokens, progress=progress)


def compile_module(
    module: Any, *, target: str = "h100", tokens: int = 1, progress: Progress | None = None
) -> Package:
    """Compile a graph-level module; needs its context to be current. Errors as `compile`."""
    chosen = find_target(target)
    clock = _Clock(progress)
    run_pipeline(module, PIPELINE.format(target=target, tokens=tokens), on_pass=progress)
    clock = _Clock(progress)
    (device,) = walk(module, "engine.device")
    plan = read_plan(device, chosen)
    engine, recipe = str(module), packing_recipe(device, plan)
    manifest = _manifest(device, plan, recipe, chosen)
    ptx = None
    if chosen.emits_ptx:
        ptx = to_ptx(kernel_module(plan))
        clock("generate code")
        _, facts = assemble(ptx, chosen)
        decode = facts[DECODE]
        if decode.spill_bytes:
            raise TileirError(
                f"the kernel spills {decode.spill_bytes} bytes of registers",
                hint="attention keeps all queries of a kv head in registers: kernels are generated for "
                "up to about 4 queries a kv head; the reference device runs the model",
            )
        manifest["assembled"] = {
            "registers": decode.registers,
            "stack_bytes": decode.stack_bytes,
            "spill_bytes": decode.spill_bytes,
            "barriers": decode.barriers,
        }
        clock("assemble")
    return make_package(manifest, engine, recipe, ptx)


def stop_at(program: "ExportedProgram", target: str, stop: str, after: set[str]) -> str:
    """The text of one stop of the journey: "graph", "tile", "engine", "nvvm" or "ptx"; and the IR after some passes."""
    texts: list[str] = []
    context = new_context()

    def after_pass(name: str, module: Any) -> None:
        if name in after:
            texts.append(f"// ----- IR after {name} -----\n{module}")

    with context, ir.Location.unknown():
        from tileir.frontends.torch_export import import_program

        module = import_program(program, context)
        passes = PIPELINE.format(target=target, tokens=1).removeprefix("builtin.module(")[:-1]
        cut = {"graph": "tile-graph", "tile": "outline-stages"}.get(stop)
        if cut is not None:
            passes = passes.split(f",{cut}{{")[0]
        run_pipeline(module, f"builtin.module({passes})", after_pass=after_pass)
        result = str(module)
        if stop in ("nvvm", "ptx"):
            (device,) = walk(module, "engine.device")
            kernel = kernel_module(read_plan(device, find_target(target)))
            result = to_ptx(kernel) if stop == "ptx" else str(kernel)
    return "\n".join([*texts, result])


def _manifest(device: Any, plan: Plan, recipe: dict[str, Any], target: Target) -> dict[str, Any]:
    return {
        "target": target.name,
        "chip": target.chip,
        "sms": plan.sms,
        "warps": plan.warps,
        "threads": target.threads,
        "smem_bytes": plan.smem_bytes,
        "tokens": plan.tokens,
        "context": plan.context,
        "vocabulary": plan.vocabulary,
        "devices": 1,
        "kernels": {"decode": DECODE, "pack": PACK},
        "mailbox": {"tokens": MAILBOX_TOKENS},
        "report": {
            "offset": REPORT_OFFSET,
            "bytes": REPORT_BYTES,
            "waits": list(WAIT_CODES.values()),
        },
        "bodies": [body.name for body in plan.bodies],
        "row_bodies": [get(row, "body") for row in plan.rows],
        "row_words": plan.row_words,
        "table": plan.table(),
        "memory": {
            "tape": tape_layout(recipe["tape"], plan.sms).size,
            "constants": get(device, "constant_bytes"),
            "states": get(device, "state_bytes"),
            "exchange": get(device, "exchange_bytes"),
        },
    }


class _Clock:
    """Calls `progress` with the seconds since the last call."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.last = progress, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        if self.progress is not None:
            self.progress(name, now - self.last)
        self.last = now
