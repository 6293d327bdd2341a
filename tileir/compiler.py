"""The journey on one screen: ExportedProgram → graph → tile → engine → PTX → package."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tileir.codegen.layout import CONSTANTS, MAILBOX_TOKENS, MARKS, STOPPED, WAIT_CODES, Control
from tileir.codegen.plan import Plan, read_plan
from tileir.codegen.ptx import DECODE, PACK, Assembled, assemble, kernel_module, to_ptx
from tileir.codegen.reads import row_reads
from tileir.codegen.recipe import packing_recipe
from tileir.dialect.attributes import get, walk
from tileir.errors import PipelineError, TileirError
from tileir.mlir import ir, new_context
from tileir.package import Package, make_package
from tileir.packing import store_bytes, tape_layout
from tileir.passes.base import value_text
from tileir.passes.pipeline import parse_pipeline, run_pipeline
from tileir.passes.verify_schedule import problem_of
from tileir.scheduling.exchange_table import exchange_table
from tileir.target import Target, find_target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LEAST = {"tokens": 1, "sequences": 1, "page": 0, "pages": 0, "devices": 1}
Progress = Callable[[str, float], None]

# Order matters: each pass refines what the one before it decided (docs/journey.md).
PIPELINE = (
    "builtin.module(absorb-latents{{enable={absorb}}},graph-fuse,"
    "specialize-gpu{{devices={devices} placement={placement} target={target} print-candidates={candidates}}},"
    "tile-graph{{tokens={tokens} sequences={sequences} page={page} pages={pages} target={target}}},"
    "fuse-communication,specialize-block{{target={target}}},select-sync{{target={target}}},specialize-warp{{target={target}}},"
    "schedule-pipeline{{target={target}}},outline-stages{{target={target}}},"
    "allocate-memory{{target={target} trace={trace}}},verify-schedule{{target={target}}})"
)


@dataclass(frozen=True)
class Options:
    """What a model is compiled for.

    target: a name of tileir.target.TARGETS, or the path of a target's file, *.json. tokens, sequences: the most that a
    step carries. page: rows of a KV page, of which states have `pages` (0: enough for all sequences); 0: states in one
    piece, for one sequence. devices: GPUs, placed as `placement` says (specialize-gpu's candidates; "": the cheapest),
    their prices printed to stderr with `print_candidates`. absorb: attend over latents instead of what they expand to.
    trace: the kernel notes when each SM does what in one step (`tileir trace`). insert: passes of upstream's or of your
    own (tileir.passes.registry), each behind one of ours: {"tile-graph": "my-pass{count=2},cse"}; behind the last one,
    verify-schedule, the module is verified once more.
    """

    target: str | Path = "h100"
    tokens: int = 1
    sequences: int = 1
    page: int = 0
    pages: int = 0
    devices: int = 1
    placement: str = ""
    print_candidates: bool = False
    absorb: bool = True
    trace: bool = False
    insert: Mapping[str, str] = field(default_factory=dict)

    @property
    def pipeline(self) -> str:
        """The passes' text. Raises PipelineError if `insert` names a pass that is not there."""
        flags = {"absorb": self.absorb, "candidates": self.print_candidates, "trace": self.trace}
        facts = asdict(self) | {n: str(v).lower() for n, v in flags.items()}
        texts = {"placement": f'"{self.placement}"', "target": value_text(str(self.target))}
        text = PIPELINE.format(**facts | texts)
        return _insert(text, self.insert) if self.insert else text

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The options of these names. Raises TileirError for a name, or a value, that there is not."""
        names = [f.name for f in fields(cls)]
        for name, value in given.items():
            if name not in names:
                near = [f"did you mean {n!r}? " for n in get_close_matches(name, names, n=1)]
                hint = f"{''.join(near)}options: {', '.join(names)}"
                raise TileirError(f"unknown option {name!r}", hint=hint)
            least = _LEAST.get(name)
            if least is not None and (not isinstance(value, int) or value < least):
                raise TileirError(
                    f"option {name!r} is {value!r}", hint=f"a whole number, {least} or more"
                )
        return cls(**given)


def compile(
    program: "ExportedProgram", *, progress: Progress | None = None, **options: Any
) -> Package:
    """Compile an exported decode step, after `run_decompositions({})`; the package holds no weights.

    program: `forward(input_ids [1, 1] int64, positions [1] int64) -> logits [1, 1, vocabulary]`, with KV caches as
    buffers [1, heads, context, size] that `index_copy_` writes; a second output is a draft layer's logits.
    options: fields of tileir.Options, such as target="h100" and tokens=8. progress: called with the name of each part
    of the journey when it is done, and the seconds it took.

    Raises TileirError for an operation that nothing takes, with its node and source line, and for a model that does not
    fit the target; PipelineError for `insert`.
    """
    find_target(Options.read(options).target)
    clock = _Clock(progress)
    context = new_context()
    with context, ir.Location.unknown():
        from tileir.frontends.torch_export import import_program

        module = import_program(program, context)
        clock("import")
        return compile_module(module, progress=progress, **options)


def compile_module(module: Any, *, progress: Progress | None = None, **options: Any) -> Package:
    """Compile a graph-level module, as import_program makes it, in place: it then holds the engine level.

    Needs the module's context to be current. options, progress and errors as `compile`'s; ContractError for a module of
    another level.
    """
    asked = Options.read(options)
    target = find_target(asked.target)
    if get(module, "tileir.context") == 0:
        raise TileirError(
            "the program writes no KV cache: it is no decode step",
            hint="caches are buffers [1, kv heads, context, head size] that forward writes with index_copy_ at "
            "positions; export_decode makes such a program of a transformers model",
        )
    run_pipeline(module, asked.pipeline, on_pass=progress)
    return package_of(module, target, progress)


def package_of(module: Any, target: Target, progress: Progress | None = None) -> Package:
    """The package of a module of the engine level, which is not verified again. Raises as `compile` does."""
    clock = _Clock(progress)
    plans = [read_plan(device, target) for device in walk(module, "engine.device")]
    recipes = [packing_recipe(plan) for plan in plans]
    manifest = _manifest(plans, recipes)
    ptx = None
    if target.emits_ptx:
        plan, ptx, decode = _fitting(plans[0])
        if decode.spill_bytes and not plan.trace_bytes:
            raise TileirError(
                f"the kernel spills {decode.spill_bytes} bytes of registers",
                hint="the reference device runs the model",
            )
        manifest["assembled"] = {
            "registers": decode.registers,
            "stack_bytes": decode.stack_bytes,
            "spill_bytes": decode.spill_bytes,
            "barriers": decode.barriers,
        }
        clock("generate code and assemble")
    return make_package(manifest, str(module), recipes, ptx)


def _fitting(plan: Plan) -> tuple[Plan, str, Assembled]:
    """A device's plan, its PTX and what the kernel takes: less is asked for at once where registers run out.

    A kernel that traces asks for as much as the one that does not.
    """
    if plan.trace_bytes:
        plain, *_ = _fitting(replace(plan, trace_bytes=0))
        return _assembled(replace(plain, trace_bytes=plan.trace_bytes))
    for blocks, words in product(range(plan.blocks, 0, -1), (plan.early_words, 0)):
        found = _assembled(replace(plan, blocks=blocks, early_words=words))
        if not found[2].spill_bytes:
            break
    return found


def _assembled(plan: Plan) -> tuple[Plan, str, Assembled]:
    ptx = to_ptx(kernel_module(plan))
    _, facts = assemble(ptx, plan.target)
    return plan, ptx, facts[DECODE]


def stop_at(program: "ExportedProgram", stop: str, after: set[str], **options: Any) -> str:
    """The text of one stop of the journey: "graph", "tile", "engine", "nvvm" or "ptx"; and the IR after some passes.

    program, options: as `compile`'s. after: names of passes; the IR behind each stands first, under a comment with its
    name. A stop is what its level's last pass leaves. Raises as `compile` does.
    """
    texts: list[str] = []
    context = new_context()

    def after_pass(name: str, module: Any) -> None:
        if name in after:
            texts.append(f"// ----- IR after {name} -----\n{module}")

    with context, ir.Location.unknown():
        from tileir.frontends.torch_export import import_program

        module = import_program(program, context)
        asked = Options.read(options)
        passes = asked.pipeline.removeprefix("builtin.module(")[:-1]
        cut = {"graph": "tile-graph", "tile": "outline-stages"}.get(stop)
        if cut is not None:
            passes = passes.split(f",{cut}{{")[0]
        run_pipeline(module, f"builtin.module({passes})", after_pass=after_pass)
        result = str(module)
        if stop in ("nvvm", "ptx"):
            (device,) = walk(module, "engine.device")
            plan, ptx, _ = _fitting(read_plan(device, find_target(asked.target)))
            result = ptx if stop == "ptx" else str(kernel_module(plan))
    return "\n".join([*texts, result])


def _insert(pipeline: str, behind: Mapping[str, str]) -> str:
    """The pipeline with other passes behind some of its own; what stands behind the last one is proved again."""
    items = parse_pipeline(pipeline)
    names = [item.name for item in items]
    for name in behind:
        if name not in names:
            raise PipelineError(
                f"insert: the pipeline has no pass {name!r}", hint=f"its passes: {', '.join(names)}"
            )
    texts = [t for item in items for t in (item.text(), behind.get(item.name, "")) if t]
    if items[-1].name in behind:
        texts.append(items[-1].text())
    return f"builtin.module({','.join(texts)})"


def _manifest(plans: list[Plan], recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest; what is told of a GPU is told of the first one, but what its rows read of each."""
    plan, recipe = plans[0], recipes[0]
    problem, control = problem_of(plan.device, plan.target), Control(plan)
    rows = problem.rows
    return {
        "target": plan.target.name,
        "chip": plan.target.chip,
        "stream_tbps": plan.target.stream_tbps,
        "sms": plan.sms,
        "warps": plan.warps,
        "threads": plan.target.threads,
        "smem_bytes": plan.smem_bytes,
        "tokens": plan.tokens,
        "sequences": plan.sequences,
        "context": plan.context,
        "vocabulary": plan.vocabulary,
        "devices": len(plans),
        "kernels": {"decode": DECODE, "pack": PACK},
        "mailbox": {"tokens": MAILBOX_TOKENS},
        "control": {
            "reports": control.reports,
            "report_bytes": control.report_bytes,
            "ends": control.ends,
            "snapshot": control.snapshot,
            "stop": STOPPED,
        },
        "waits": list(WAIT_CODES.values()),
        **_launch(plan),
        "marks": list(MARKS),
        "bodies": [body.name for body in plan.bodies],
        "row_bodies": [get(row, "body") for row in plan.rows],
        "row_awaits": [sorted(set(row.awaited)) for row in rows],
        "row_writes": [sorted(row.fills_channels) for row in rows],
        **exchange_table(problem),
        "row_reads": [row_reads(p, r) for p, r in zip(plans, recipes, strict=True)],
        "row_words": plan.row_words,
        "table": plan.table(),
        "memory": {
            "tape": tape_layout(recipe["tape"], plan.sms).size,
            "store": store_bytes(recipe["store"]),
            "constants": get(plan.device, "constant_bytes"),
            "states": get(plan.device, "state_bytes"),
            "exchange": get(plan.device, "exchange_bytes"),
            "trace": plan.trace_bytes,
        },
    }


def _launch(plan: Plan) -> dict[str, Any]:
    """What a launch may change, least and most of each, and which of them the driver assembles.

    Those that gain most come first: `tileir tune` tries them in this order.
    """
    splits = [get(op, "splits") for op in walk(plan.device, "engine.attend")]
    replicas = [get(op, "replicas") for op in walk(plan.device, "engine.channel")]
    tape, most = plan.rings["tape"], max(splits, default=1)
    fed = tape.fed_window
    fed_limits = (1, tape.slots) if tape.narrows else (fed, fed)
    limits = {
        "tape_window": (tape.window, 1, tape.slots),
        "fed_window": (fed, *fed_limits),
        "splits": (most, 1, most),
        "alone_bytes": (plan.target.alone_bytes, 0, 1 << 20),
        "split_bytes": (plan.target.split_bytes, 1, 1 << 20),
        "replicas": (CONSTANTS["replicas"], 1, max(replicas, default=1)),
        "poll_sleep_ns": (CONSTANTS["poll_sleep_ns"], 0, 1000),
    }
    return {
        "launch": {name: value for name, (value, *_) in limits.items()},
        "launch_limits": {name: [least, most] for name, (_, least, most) in limits.items()},
        "launch_constants": [name for name in limits if name in CONSTANTS],
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
