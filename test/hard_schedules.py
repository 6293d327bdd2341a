"""Layers that have it all, built at tile level: latent attention over selected positions, experts, a draft."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tileir.dialect.attributes import build, put, tensor, walk
from tileir.mlir import func, ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.passes.verify_schedule import problem_of
from tileir.scheduling.problem import Problem
from tileir.target import find_target

PIPELINE = (
    "builtin.module(select-sync,specialize-warp{{target={target}}},schedule-pipeline{{target={target}}},"
    "outline-stages{{target={target}}},allocate-memory{{target={target}}})"
)
Body = Callable[[Any, Any], None]


@dataclass(frozen=True)
class Sizes:
    """Of the model: `lora` values of the query's low rank, `index_heads` of `index_size` values, `top` positions."""

    layers: int = 1
    hidden: int = 64
    heads: int = 4
    nope: int = 16
    rope: int = 16
    latent: int = 32
    lora: int = 32
    inner: int = 32
    experts: int = 16
    chosen: int = 2
    index_heads: int = 2
    index_size: int = 16
    top: int = 16
    groups: int = 2
    context: int = 64
    vocabulary: int = 128


class _Layers:
    def __init__(
        self, sizes: Sizes, target: str, tokens: int, sequences: int, page: int, devices: int
    ) -> None:
        self.n, self.sms = sizes, find_target(target).sms
        self.tokens, self.page, self.devices = tokens, page, list(range(devices))
        self.positions = sequences * sizes.context
        self.f32 = ir.F32Type.get()

    # ---- parts

    def channel(self, *shape: int, element: str = "bf16") -> Any:
        return tensor([self.tokens, *shape], element, "channel")

    def buffer(self, name: str, *shape: int) -> Any:
        kind = tensor(list(shape), "bf16", "buffer")
        return build("tile.buffer", [], [kind], sym_name=name, kind="tensor").results[0]

    def state(self, name: str, size: int) -> Any:
        kind = tensor([1, self.positions, size], "bf16", "state")
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
        n = self.n
        table, norm = self.buffer("embed", n.vocabulary, n.hidden), self.buffer("norm", n.latent)
        bias = self.buffer("bias", n.experts)
        x = self.map(
            self.channel(n.hidden), n.hidden // 2, lambda: self.one("tile.lookup", table, scale=1.0)
        )
        for layer in range(n.layers):
            more = f"_{layer}" if layer else ""
            latents = self.state(f"kv{more}", n.latent + n.rope)
            # Every second layer takes the positions of the one before.
            keys = self.state(f"keys{more}", n.index_size) if layer % 2 == 0 else None
            x = self.experts(self.attention(x, norm, latents, keys), bias)
        return self.sampled(x, table, token_type, len(self.devices) > 1)

    def attention(self, x: Any, norm: Any, latents: Any, keys: Any) -> Any:
        n = self.n
        begin, end = n.lora, n.lora + n.latent
        a = self.contract(x, self.channel(end + n.rope), n.hidden, lambda: (
            self.segment(n.lora // 16, self.plain(0)),
            self.segment(n.latent // 16, self.plain(begin)),
            self.segment(
                n.rope // 16, self.plain(end, state=latents, first=n.latent, hi=n.rope // 2), step=8
            ),
        ), (end + n.rope) // 16)  # fmt: skip

        def latent() -> Any:
            v = self.one("tile.load", a, offset=begin, size=n.latent)
            v = self.one("tile.rms_norm", v, norm, eps=1e-6, unit_offset=False)
            build("tile.store", [v, latents], offset=0)
            return v

        own = self.map(self.channel(n.latent), 1, latent)
        size = n.nope + n.rope
        q = self.contract(a, self.channel(n.heads * size), n.lora, lambda: (
            self.segment(n.heads * n.nope // 16, self.plain(0), inner=n.nope // 16, outer=size),
            self.segment(
                n.heads * n.rope // 16, self.plain(n.nope, hi=n.rope // 2), inner=n.rope // 16,
                outer=size, step=8,
            ),
        ), n.heads * size // 16)  # fmt: skip
        tiles = n.heads * n.latent // 16
        absorbed = self.contract(
            q, self.channel(n.heads * n.latent), n.nope,
            lambda: self.segment(tiles, self.plain(0)), tiles, groups=n.heads, x=[0, size],
        )  # fmt: skip
        if keys is not None:
            self.indices = self.indexer(a, x, keys)
        attended = self.attend(absorbed, q, own, a, latents, self.indices)
        tiles = n.heads * n.nope // 16
        v = self.contract(
            attended, self.channel(n.heads * n.nope), n.latent,
            lambda: self.segment(tiles, self.plain(0)), tiles, groups=n.heads, x=[0, n.latent],
        )  # fmt: skip
        return self.added(v, x, n.heads * n.nope)

    def added(self, x: Any, residual: Any, k: int, **facts: Any) -> Any:
        def body(lo: Any, hi: Any) -> None:
            values = self.pair("tile.residual", [lo, hi], residual, bases=[0, 8])
            build("tile.publish", values, bases=[0, 8])

        tiles = self.n.hidden // 16
        return self.contract(
            x, self.channel(self.n.hidden), k, lambda: self.segment(tiles, body), tiles, **facts
        )

    def indexer(self, a: Any, x: Any, keys: Any) -> Any:
        n, size = self.n, self.n.index_heads * self.n.index_size
        queries = self.contract(
            a,
            self.channel(size),
            n.lora,
            lambda: self.segment(size // 16, self.plain(0)),
            size // 16,
        )
        weights = -(-n.index_heads // 16)
        own = self.contract(x, self.channel(n.index_size + 16 * weights), n.hidden, lambda: (
            self.segment(n.index_size // 16, self.plain(0, state=keys)),
            self.segment(weights, self.plain(n.index_size)),
        ), n.index_size // 16 + weights)  # fmt: skip

        def body(lo: Any, hi: Any) -> None:
            values = self.pair("tile.relu_sum", [lo, hi], own, scale=0.25, offset=n.index_size)
            build("tile.publish", values, bases=[0, 8])

        tiles = n.context // 16
        scores = self.contract(
            queries, self.channel(n.context, element="f32"), n.index_size, lambda: self.segment(tiles, body),
            tiles, lambda: build("tile.rows", [keys, own], offset=0), groups=n.index_heads,
            x=[0, n.index_size], splits=2, weights=[],
        )  # fmt: skip
        kind = self.channel(n.top, element="i32")
        facts = {"kind": "top_k", "k": n.top, "devices": self.devices}
        return build("tile.select", [scores], [kind], **facts).results[0]

    def attend(self, absorbed: Any, q: Any, own: Any, a: Any, latents: Any, indices: Any) -> Any:
        n, splits, several = self.n, 2, len(self.devices) > 1
        shared: dict[str, Any] = (
            {"share": "rows", "parts": self.ranges(n.groups)} if several else {}
        )
        partial = build(
            "tile.attend", [latents], [self.channel(n.heads, splits, n.latent + 2, element="f32")], 1,
            heads=n.heads, kv_heads=1, groups=n.groups, head_size=n.latent + n.rope, value_size=n.latent,
            scale=0.1, window=0, softcap=0.0, splits=splits, devices=self.devices, **shared,
        )  # fmt: skip
        with ir.InsertionPoint(partial.regions[0].blocks.append()):
            build("tile.query", [absorbed], offset=0, stride=n.latent, size=n.latent)
            build("tile.query", [q], offset=n.nope, stride=n.nope + n.rope, size=n.rope)
            build("tile.key", [own], offset=0, stride=n.latent, size=n.latent)
            build("tile.key", [a], offset=n.lora + n.latent, stride=n.rope, size=n.rope)
            build("tile.gather", [indices])
            build("tile.yield")
        if several:
            shared = {"share": "rows", "parts": self.ranges(n.heads), "level": "peer"}
        kind = self.channel(n.heads * n.latent)
        return self.map(
            kind, n.heads, lambda: self.one("tile.combine", partial.results[0]), **shared
        )

    def ranges(self, count: int) -> list[int]:
        """Bounds of the GPUs' shares; the last one's is the largest."""
        return [count * i // len(self.devices) for i in self.devices] + [count]

    def experts(self, o: Any, bias: Any) -> Any:
        n, several = self.n, len(self.devices) > 1

        def score(lo: Any, hi: Any) -> None:
            values = self.pair("tile.sigmoid", [lo, hi])
            keys = self.pair("tile.bias", values, bias, bases=[0, 8])
            build("tile.publish", keys, bases=[n.experts, n.experts + 8])
            build("tile.publish", values, bases=[0, 8])

        tiles = n.experts // 16
        scores = self.contract(
            o, self.channel(2 * n.experts, element="f32"), n.hidden,
            lambda: self.segment(tiles, score), tiles,
        )  # fmt: skip
        facts = {
            "k": n.chosen,
            "experts": n.experts,
            "groups": 1,
            "top_groups": 1,
            "normalize": True,
        }
        facts |= {"scale": 1.0, "fill": 0.0, "score": "sigmoid", "kind": "route"}
        kind = self.channel(n.chosen, 2, element="i32")
        routing = build("tile.select", [scores], [kind], devices=self.devices, **facts).results[0]

        def gated(lo: Any, hi: Any) -> None:
            value = self.one("tile.glu", lo, hi, activation="silu")
            build("tile.publish", [value], bases=[0])

        def weighed(lo: Any, hi: Any) -> None:
            values = self.pair("tile.weigh", [lo, hi], routing)
            build("tile.publish", values, bases=[0, 8])

        parts = [max(0, bound - 2) for bound in self.ranges(n.experts)[:-1]] + [n.experts]
        shared: dict[str, Any] = {"share": "rows", "parts": parts} if several else {}
        chosen = lambda: build("tile.experts", [routing])  # noqa: E731
        inner = self.contract(
            o, self.channel(n.chosen * n.inner), n.hidden,
            lambda: self.segment(n.inner // 8, gated, step=8, hi=0), n.inner // 8, chosen,
            groups=n.chosen, **shared,
        )  # fmt: skip
        if several:
            shared["level"] = "peer"
        outer = self.contract(
            inner, self.channel(n.chosen, n.hidden, element="f32"), n.inner,
            lambda: self.segment(n.hidden // 16, weighed), n.hidden // 16, chosen, groups=n.chosen,
            x=[0, n.inner], **shared,
        )  # fmt: skip
        common = self.contract(
            o, self.channel(n.inner), n.hidden,
            lambda: self.segment(n.inner // 8, gated, step=8, hi=0), n.inner // 8,
        )  # fmt: skip
        more = self.partial(common) if several else self.added(common, o, n.inner)

        def total() -> Any:
            value = self.one("tile.sum", outer, size=2)
            if not several:
                return self.one("tile.plus", value, self.one("tile.load", more, offset=0, size=2))
            value = self.one("tile.plus", value, self.one("tile.sum", more, size=2))
            return self.one("tile.plus", value, self.one("tile.load", o, offset=0, size=2))

        return self.map(self.channel(n.hidden), n.hidden // 2, total)

    def partial(self, x: Any) -> Any:
        """A linear over ranges of K, as partial sums."""
        n = self.n
        view = [0, n.hidden, n.inner, n.inner, 1]
        return self.contract(
            x, self.channel(len(self.devices), n.hidden, element="f32"), n.inner,
            lambda: self.segment(n.hidden // 16, self.plain(0)), n.hidden // 16, share="sum",
            parts=self.ranges(n.inner), views=[view, view], level="peer",
        )  # fmt: skip

    def sampled(self, y: Any, table: Any, token_type: Any, several: bool) -> list[Any]:
        """The token, and a draft from the chosen token's embedding."""
        n = self.n
        tiles, records = n.vocabulary // 16, self.sms * len(self.devices)
        shared: dict[str, Any] = {}
        if several:
            parts = [max(0, bound - 1) for bound in self.ranges(tiles)[:-1]] + [tiles]
            shared = {"share": "rows", "parts": parts, "level": "peer"}

        def candidate(lo: Any, hi: Any) -> None:
            build("tile.logits", [lo, hi], bases=[0, 8])
            build("tile.candidate", [lo, hi], bases=[0, 8])

        def choose(x: Any) -> Any:
            made = self.contract(
                x, self.channel(records, 2, element="i32"), n.hidden,
                lambda: self.segment(tiles, candidate), tiles, **shared,
            )  # fmt: skip
            facts = {"kind": "argmax", "devices": self.devices}
            return build("tile.select", [made], [token_type], **facts).results[0]

        token = choose(y)
        next_x = self.map(
            self.channel(n.hidden), n.hidden // 2,
            lambda: self.one("tile.lookup", table, scale=1.0, of="choice"),
        )  # fmt: skip
        return [token, choose(self.added(next_x, y, n.hidden))]


def hard_text(
    tokens: int = 2,
    sequences: int = 1,
    page: int = 0,
    devices: int = 1,
    sizes: Sizes = Sizes(),
    target: str = "virtual",
) -> str:
    """The engine module."""
    context = new_context()
    with context, ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            kind = tensor([None], "i32")
            block = func.FuncOp("step", ([kind, kind], [kind, kind])).add_entry_block()
            with ir.InsertionPoint(block):
                layers = _Layers(sizes, target, tokens, sequences, page, devices)
                func.ReturnOp(layers.step(kind))
        facts = {"level": "tile", "context": sizes.context, "vocabulary": sizes.vocabulary}
        facts |= {"target": target, "tokens": tokens, "sequences": sequences, "page": page}
        put(module.operation, **{f"tileir.{n}": v for n, v in facts.items()})
        if target != "virtual":
            run_pipeline(module, f"specialize-block{{target={target}}}")
        run_pipeline(module, PIPELINE.format(target=target))
        return str(module)


def parse_all(text: str, target: str = "virtual") -> list[Problem]:
    """Of all GPUs."""
    context = new_context()
    with context, ir.Location.unknown():
        module = ir.Module.parse(text, context)
        return [problem_of(d, find_target(target)) for d in walk(module, "engine.device")]
