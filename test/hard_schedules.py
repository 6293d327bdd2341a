"""One layer that has it all, built at tile level: latent attention over selected positions, experts, a draft."""

from collections.abc import Callable, Sequence
from typing import Any

from tileir.dialect.attributes import build, get, put, tensor, walk
from tileir.mlir import func, ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.passes.verify_schedule import problem_of
from tileir.scheduling.problem import Problem
from tileir.target import find_target

PIPELINE = (
    "builtin.module(specialize-warp{target=virtual},schedule-pipeline{target=virtual},"
    "outline-stages{target=virtual},allocate-memory{target=virtual})"
)
HEADS, LATENT, ROPE, HIDDEN, CONTEXT, EXPERTS, CHOSEN, VOCABULARY = 4, 32, 16, 64, 64, 16, 2, 128
SMS = 4
Body = Callable[[Any, Any], None]


class _Layer:
    def __init__(self, tokens: int, sequences: int, page: int, devices: int) -> None:
        self.tokens, self.page, self.devices = tokens, page, list(range(devices))
        self.rows = sequences * CONTEXT
        self.f32 = ir.F32Type.get()

    # ---- parts

    def channel(self, *shape: int, element: str = "bf16") -> Any:
        return tensor([self.tokens, *shape], element, "channel")

    def buffer(self, name: str, *shape: int) -> Any:
        kind = tensor(list(shape), "bf16", "buffer")
        return build("tile.buffer", [], [kind], sym_name=name, kind="tensor").results[0]

    def state(self, name: str, size: int) -> Any:
        kind = tensor([1, self.rows, size], "bf16", "state")
        return build("tile.state", [], [kind], sym_name=name, page=self.page).results[0]

    def pair(self, name: str, values: Sequence[Any], *operands: Any, **facts: Any) -> list[Any]:
        made = build(name, [*values, *operands], [self.f32, self.f32], **facts)
        return list(made.results)

    def segment(
        self, tiles: int, body: Body, *, inner: int = 0, step: int = 16, outer: int = 0, hi: int = 8
    ) -> None:
        facts = {"tiles": tiles, "inner": inner or tiles, "step": step, "outer": outer}
        op = build("tile.segment", [], [], 1, sources=[0, 0, 0, hi], **facts)
        block = op.regions[0].blocks.append(self.f32, self.f32)
        with ir.InsertionPoint(block):
            body(*block.arguments)
            build("tile.yield")

    def plain(self, at: int, *, state: Any = None, first: int = 0, hi: int = 8) -> Body:
        """Publish both halves from `at` on; append them too."""

        def body(lo: Any, high: Any) -> None:
            if state is not None:
                build("tile.append", [lo, high, state], bases=[first, first + hi])
            build("tile.publish", [lo, high], bases=[at, at + hi])

        return body

    def contract(
        self, source: Any, result: Any, k: int, segments: Callable[[], Any], tiles: int,
        statement: Callable[[], Any] | None = None, devices: Sequence[int] | None = None, **facts: Any,
    ) -> Any:  # fmt: skip
        devices = self.devices if devices is None else list(devices)
        names = ["w"] * 2
        facts = {"groups": 1, "k_parts": 1, "tile_base": 0, "x": [0, 0], "weights": names} | facts
        op = build(
            "tile.contract", [source], [result], 2, k=k, tiles=tiles, devices=devices, **facts
        )
        block = op.regions[0].blocks.append(self.f32)
        with ir.InsertionPoint(block):
            if statement is not None:
                statement()
            build("tile.yield", [block.arguments[0]])
        with ir.InsertionPoint(op.regions[1].blocks.append()):
            segments()
            build("tile.yield")
        return op.results[0]

    def map(self, result: Any, rows: int, body: Callable[[], Any], **facts: Any) -> Any:
        op = build("tile.map", [], [result], 1, rows=rows, devices=self.devices, **facts)
        with ir.InsertionPoint(op.regions[0].blocks.append()):
            build("tile.yield", [body()])
        return op.results[0]

    def one(self, name: str, *operands: Any, **facts: Any) -> Any:
        return build(name, list(operands), [self.f32], **facts).results[0]

    # ---- stages

    def step(self, token_type: Any) -> list[Any]:
        several = len(self.devices) > 1
        table, norm = self.buffer("embed", VOCABULARY, HIDDEN), self.buffer("norm", LATENT)
        latents, keys = self.state("kv", LATENT + ROPE), self.state("keys", 16)
        x = self.map(
            self.channel(HIDDEN), HIDDEN // 2, lambda: self.one("tile.lookup", table, scale=1.0)
        )
        a = self.contract(x, self.channel(80), HIDDEN, lambda: (
            self.segment(2, self.plain(0)),
            self.segment(2, self.plain(32)),
            self.segment(1, self.plain(64, state=latents, first=LATENT), step=8),
        ), 5)  # fmt: skip

        def latent() -> Any:
            v = self.one("tile.load", a, offset=32, size=LATENT)
            v = self.one("tile.rms_norm", v, norm, eps=1e-6, unit_offset=False)
            build("tile.store", [v, latents], offset=0)
            return v

        own = self.map(self.channel(LATENT), 1, latent)
        size = HEADS * 32
        q = self.contract(a, self.channel(size), 32, lambda: (
            self.segment(HEADS, self.plain(0), inner=1, outer=32),
            self.segment(HEADS, self.plain(16), inner=1, outer=32, step=8),
        ), 2 * HEADS)  # fmt: skip
        absorbed = self.contract(
            q, self.channel(HEADS * LATENT), 16, lambda: self.segment(2 * HEADS, self.plain(0)),
            2 * HEADS, groups=HEADS, x=[0, 32],
        )  # fmt: skip
        indices = self.indexer(a, x, keys)
        attended = self.attend(absorbed, q, own, a, latents, indices)
        v = self.contract(
            attended, self.channel(HEADS * 16), LATENT, lambda: self.segment(HEADS, self.plain(0)),
            HEADS, groups=HEADS, x=[0, LATENT],
        )  # fmt: skip
        o = self.added(v, x, HIDDEN)
        y = self.experts(o)
        return self.sampled(y, table, token_type, several)

    def added(self, x: Any, residual: Any, k: int, **facts: Any) -> Any:
        def body(lo: Any, hi: Any) -> None:
            values = self.pair("tile.residual", [lo, hi], residual, bases=[0, 8])
            build("tile.publish", values, bases=[0, 8])

        tiles = HIDDEN // 16
        return self.contract(
            x, self.channel(HIDDEN), k, lambda: self.segment(tiles, body), tiles, **facts
        )

    def indexer(self, a: Any, x: Any, keys: Any) -> Any:
        queries = self.contract(a, self.channel(32), 32, lambda: self.segment(2, self.plain(0)), 2)
        own = self.contract(x, self.channel(32), HIDDEN, lambda: (
            self.segment(1, self.plain(0, state=keys)), self.segment(1, self.plain(16))
        ), 2)  # fmt: skip

        def body(lo: Any, hi: Any) -> None:
            values = self.pair("tile.relu_sum", [lo, hi], own, scale=0.25, offset=16)
            build("tile.publish", values, bases=[0, 8])

        tiles = CONTEXT // 16
        scores = self.contract(
            queries, self.channel(CONTEXT, element="f32"), 16, lambda: self.segment(tiles, body),
            tiles, lambda: build("tile.rows", [keys, own], offset=0), groups=2, x=[0, 16],
            splits=2, weights=[],
        )  # fmt: skip
        kind = self.channel(16, element="i32")
        facts = {"kind": "top_k", "k": 16, "devices": self.devices}
        return build("tile.select", [scores], [kind], **facts).results[0]

    def attend(self, absorbed: Any, q: Any, own: Any, a: Any, latents: Any, indices: Any) -> Any:
        several = len(self.devices) > 1
        splits, groups = 2, 2
        shared: dict[str, Any] = {"share": "rows", "parts": [0, 1, 2]} if several else {}
        partial = build(
            "tile.attend", [latents], [self.channel(HEADS, splits, LATENT + 2, element="f32")], 1,
            heads=HEADS, kv_heads=1, groups=groups, head_size=LATENT + ROPE, value_size=LATENT,
            scale=0.1, window=0, softcap=0.0, splits=splits, devices=self.devices, **shared,
        )  # fmt: skip
        with ir.InsertionPoint(partial.regions[0].blocks.append()):
            build("tile.query", [absorbed], offset=0, stride=LATENT, size=LATENT)
            build("tile.query", [q], offset=16, stride=32, size=ROPE)
            build("tile.key", [own], offset=0, stride=LATENT, size=LATENT)
            build("tile.key", [a], offset=64, stride=ROPE, size=ROPE)
            build("tile.gather", [indices])
            build("tile.yield")
        if several:
            shared = {"share": "rows", "parts": [0, 2, 4], "level": "peer"}
        kind = self.channel(HEADS * LATENT)
        return self.map(kind, HEADS, lambda: self.one("tile.combine", partial.results[0]), **shared)

    def experts(self, o: Any) -> Any:
        several = len(self.devices) > 1
        bias = self.buffer("bias", EXPERTS)

        def score(lo: Any, hi: Any) -> None:
            values = self.pair("tile.sigmoid", [lo, hi])
            keys = self.pair("tile.bias", values, bias, bases=[0, 8])
            build("tile.publish", keys, bases=[EXPERTS, EXPERTS + 8])
            build("tile.publish", values, bases=[0, 8])

        tiles = EXPERTS // 16
        scores = self.contract(
            o, self.channel(2 * EXPERTS, element="f32"), HIDDEN,
            lambda: self.segment(tiles, score), tiles,
        )  # fmt: skip
        facts = {"k": CHOSEN, "experts": EXPERTS, "groups": 1, "top_groups": 1, "normalize": True}
        facts |= {"scale": 1.0, "fill": 0.0, "score": "sigmoid", "kind": "route"}
        kind = self.channel(CHOSEN, 2, element="i32")
        routing = build("tile.select", [scores], [kind], devices=self.devices, **facts).results[0]

        def gated(lo: Any, hi: Any) -> None:
            value = self.one("tile.glu", lo, hi, activation="silu")
            build("tile.publish", [value], bases=[0])

        def weighed(lo: Any, hi: Any) -> None:
            values = self.pair("tile.weigh", [lo, hi], routing)
            build("tile.publish", values, bases=[0, 8])

        shared: dict[str, Any] = {"share": "rows", "parts": [0, 6, EXPERTS]} if several else {}
        chosen = lambda: build("tile.experts", [routing])  # noqa: E731
        inner = self.contract(
            o, self.channel(CHOSEN * 32), HIDDEN, lambda: self.segment(4, gated, step=8, hi=0), 4,
            chosen, groups=CHOSEN, **shared,
        )  # fmt: skip
        if several:
            shared["level"] = "peer"
        outer = self.contract(
            inner, self.channel(CHOSEN, HIDDEN, element="f32"), 32, lambda: self.segment(4, weighed), 4,
            chosen, groups=CHOSEN, x=[0, 32], **shared,
        )  # fmt: skip
        common = self.contract(
            o, self.channel(32), HIDDEN, lambda: self.segment(4, gated, step=8, hi=0), 4
        )
        more = self.partial(common) if several else self.added(common, o, 32)

        def total() -> Any:
            value = self.one("tile.sum", outer, size=2)
            if not several:
                return self.one("tile.plus", value, self.one("tile.load", more, offset=0, size=2))
            value = self.one("tile.plus", value, self.one("tile.sum", more, size=2))
            return self.one("tile.plus", value, self.one("tile.load", o, offset=0, size=2))

        return self.map(self.channel(HIDDEN), HIDDEN // 2, total)

    def partial(self, x: Any) -> Any:
        """A linear over ranges of K, as partial sums."""
        count = len(self.devices)
        view = [0, HIDDEN, 32, 32, 1]
        parts = [32 * i // count for i in range(count + 1)]
        return self.contract(
            x, self.channel(count, HIDDEN, element="f32"), 32,
            lambda: self.segment(HIDDEN // 16, self.plain(0)), HIDDEN // 16,
            share="sum", parts=parts, views=[view, view], level="peer",
        )  # fmt: skip

    def sampled(self, y: Any, table: Any, token_type: Any, several: bool) -> list[Any]:
        """The token, and a draft from the chosen token's embedding."""
        tiles, records = VOCABULARY // 16, SMS * len(self.devices)
        shared: dict[str, Any] = {}
        if several:
            shared = {"share": "rows", "parts": [[0, 3, tiles]], "level": "peer"}

        def candidate(lo: Any, hi: Any) -> None:
            build("tile.logits", [lo, hi], bases=[0, 8])
            build("tile.candidate", [lo, hi], bases=[0, 8])

        def choose(x: Any) -> Any:
            made = self.contract(
                x, self.channel(records, 2, element="i32"), HIDDEN,
                lambda: self.segment(tiles, candidate), tiles, **shared,
            )  # fmt: skip
            facts = {"kind": "argmax", "devices": self.devices}
            return build("tile.select", [made], [token_type], **facts).results[0]

        token = choose(y)
        next_x = self.map(
            self.channel(HIDDEN), HIDDEN // 2,
            lambda: self.one("tile.lookup", table, scale=1.0, of="choice"),
        )  # fmt: skip
        return [token, choose(self.added(next_x, y, HIDDEN))]


def hard_text(tokens: int = 2, sequences: int = 1, page: int = 0, devices: int = 1) -> str:
    """The engine module."""
    context = new_context()
    with context, ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            kind = tensor([None], "i32")
            block = func.FuncOp("step", ([kind, kind], [kind, kind])).add_entry_block()
            with ir.InsertionPoint(block):
                func.ReturnOp(_Layer(tokens, sequences, page, devices).step(kind))
        facts = {"level": "tile", "context": CONTEXT, "vocabulary": VOCABULARY, "target": "virtual"}
        facts |= {"tokens": tokens, "sequences": sequences, "page": page}
        put(module.operation, **{f"tileir.{n}": v for n, v in facts.items()})
        run_pipeline(module, "select-sync")
        for op in walk(module, "tile.select"):
            if get(op, "kind") == "top_k":
                # Its loaders may have nothing to gather, and then fall behind by two steps.
                put(op, depth=3)
        run_pipeline(module, PIPELINE)
        return str(module)


def parse_all(text: str, target: str = "virtual") -> list[Problem]:
    """Of all GPUs."""
    context = new_context()
    with context, ir.Location.unknown():
        module = ir.Module.parse(text, context)
        return [problem_of(d, find_target(target)) for d in walk(module, "engine.device")]
