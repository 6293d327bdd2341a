"""Seeded defects: edits of correct engine modules, and of the protocol that executes them.

A defect of a module is what a pass might do wrong: the verifier has to reject it, or the reference device, with the
verifier skipped, to stop or to give other bits. A defect of the protocol is what a kernel might do wrong with a
correct module: the reference device has to notice.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from test.models import arrays, tiny_llama, tiny_moe, tiny_v32
from test.protocol_defects import PROTOCOL
from test.unit.test_verify_hard import on
from test.unit.test_verify_schedule import MODULE_DEFECTS, row, sub
from tileir.compiler import compile_module
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.package import Package
from tileir.reference.explore import explore
from tileir.reference.steps import Request
from tileir.scheduling.problem import ScheduleError
from tileir.target import TARGETS

SCHEDULES = 60
Edit = Callable[[str], str]
# An attribute, a type, or a word of IR.
PIECE = re.compile(
    r"\w+ = (?:array<[^>]*>|\[[^\]]*\]|\"[^\"]*\"|[-\w.]+)|tensor<\w+|\"[\w.]+\"|[%\w.#]+"
)


@dataclass(frozen=True)
class Base:
    """A correct module: a model, its options, what runs on it, and how its target differs from "virtual"."""

    model: Callable[[], Any]
    requests: tuple[Request, ...]
    options: dict[str, Any]
    target: tuple[tuple[str, float], ...] = ()
    context: int = 64


TEXT = [3, 1, 4, 1, 5, 9, 2, 6] * 3
ONE = (Request(TEXT, 2),)
SHORT = (Request(TEXT[:6], 2),)
BASES = {
    # Two layers; gate and up in three ranges of tiles, the vocabulary in two.
    "dense": Base(lambda: tiny_llama(vocab_size=1100, intermediate_size=1040), ONE, {}),
    # Attention of one split alone up to 16 old rows, of two beyond.
    "long": Base(
        lambda: tiny_llama(
            num_hidden_layers=1, num_key_value_heads=1, max_position_embeddings=1024
        ),
        ONE,
        {},
        context=1024,
    ),
    # The smallest, for many schedules.
    "small": Base(
        lambda: tiny_llama(
            num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=64
        ),
        (Request(TEXT[:3], 2),),
        {},
    ),
    # A linear with K in two parts.
    "halves": Base(
        lambda: tiny_llama(num_hidden_layers=1, hidden_size=80, intermediate_size=512), SHORT, {}
    ),
    # Packets that every SM reads whole in two replicas.
    "copied": Base(
        lambda: tiny_llama(num_hidden_layers=1),
        SHORT,
        {},
        (("copied_us", 0.1), ("copied_word_us", 0)),
    ),
    # More SMs than tasks: some are far behind the others.
    "idle": Base(
        lambda: tiny_moe(num_hidden_layers=1, hidden_size=32, vocab_size=64),
        SHORT,
        {},
        (("sms", 96),),
    ),
    # Latents, selected positions, experts.
    "chosen": Base(
        lambda: tiny_v32(
            num_hidden_layers=2, mlp_layer_types=["dense", "sparse"], first_k_dense_replace=1
        ),
        ONE,
        {"tokens": 2},
    ),
    # Two sequences on pages.
    "pages": Base(
        lambda: tiny_llama(num_hidden_layers=1),
        (Request(TEXT, 3), Request([2, 7], 5, start=2)),
        {"tokens": 4, "sequences": 2, "page": 8},
    ),
    # Experts on two GPUs.
    "gpus": Base(lambda: tiny_moe(num_hidden_layers=1), SHORT, {"tokens": 2, "devices": 2}),
    # Partial sums of two GPUs.
    "parts": Base(
        lambda: tiny_llama(num_hidden_layers=1),
        ONE,
        {"devices": 2, "placement": "tensor-parallel"},
    ),
}


def then(*edits: Edit) -> Edit:
    def apply(text: str) -> str:
        for edit in edits:
            text = edit(text)
        return text

    return apply


def swapped(first: str, second: str) -> Edit:
    """Two rows of the table exchange bodies and operands, and keep their stages."""

    def apply(text: str) -> str:
        lines = text.split("\n")
        a, b = (
            next(i for i, t in enumerate(lines) if f'body = "{n}"' in t) for n in (first, second)
        )
        stages = [re.search(r"stage = \d+", lines[i]) for i in (a, b)]
        there = [m[0] for m in stages if m is not None]
        lines[a], lines[b] = (
            lines[b].replace(there[1], there[0]),
            lines[a].replace(there[0], there[1]),
        )
        return "\n".join(lines)

    return apply


# Those of the verifier's own tests that stand for a kind of their own, on the dense module.
KNOWN = (
    "a lookup of too few pairs", "a channel that no row writes", "a tile published twice",
    "two segments into one place", "a range of tiles twice", "a range of tiles left out",
    "two rows into one channel", "a value appended twice", "values not appended", "a rotation beyond the SMs",
    "a fill of fewer tiles", "a multiply over fewer k", "a second loader of the ring", "a drain of another ring",
    "k and v exchanged", "another window", "a consumer warp too few", "no barrier behind receive",
    "no barrier before emit", "rows out of order", "no select", "no release", "a release of one state", "no acquire",
    "the own row at another place", "values appended before they rotate", "rings that overlap",
    "partial sums too small", "channels that overlap", "a packet across words", "a payload of another type",
    "a scope too small", "records of too few SMs", "more blocks than SMs",
)  # fmt: skip

OF_SPLITS = (
    "a combine of too few heads",
    "a combine that stands idle at other positions",
    "a combine of parts that nobody makes",
    "attention that never finishes",
)

MODULE: dict[str, tuple[str, Edit]] = {
    **{name: ("dense", MODULE_DEFECTS[name][0]) for name in KNOWN},
    **{name: ("long", MODULE_DEFECTS[name][0]) for name in OF_SPLITS},
    "a task of attention that no SM has": ("long", sub(r"(fill_rows.*tasks = )2", r"\g<1>1")),
    "old rows in other splits": ("long", sub(r"(fill_rows.*splits = )2", r"\g<1>1")),
    "old rows in fewer splits": ("long", sub(r"(fill_rows.*least = )8", r"\g<1>1024")),
    "old rows of another case": ("long", sub(r"(fill_rows.*alone = )16", r"\g<1>8")),
    "a combine left out": ("long", sub(r'.*engine.row.*body = "combine_0".*\n', "", 1)),
    "a tile of a contract left out": (
        "dense",
        sub(r'(publish".*bases = array<i64: 96, 104>.*\n.*\n.*tiles = )2', r"\g<1>1", 1),
    ),
    "attention before its keys are there": ("dense", swapped("contract_0", "attend_0")),
    "a residual of another row": (
        "dense",
        row("contract_1", '"residual_0", "embedding_0"', '"residual_0", "residual_0"'),
    ),
    "records of one copy": ("idle", sub(r'depth = 2(.*"candidates_0")', r"depth = 1\1")),
    "an expert of another SM's tiles": (
        "idle",
        sub(r'(engine.fill"\(%.*experts = array<i64: 0, 8>.*tiles = )2', r"\g<1>1", 1),
    ),
    "indices of two copies": ("chosen", sub(r'depth = 3(.*"indices_0")', r"depth = 2\1")),
    "indices of one copy": ("chosen", sub(r'depth = 3(.*"indices_0")', r"depth = 1\1")),
    "fewer positions chosen": ("chosen", sub(r"(engine.choose.*\bk = )8", r"\g<1>4", 1)),
    "a routing of fewer experts": (
        "chosen",
        sub(r'(engine.choose.*\bk = )2(.*"route")', r"\g<1>1\2"),
    ),
    "a latent over its turned part": ("chosen", sub(r'(tile.store".*offset = )0', r"\g<1>16", 1)),
    "own keys in another order": ("chosen", sub(r'(.*tile.key".*\n)(.*tile.key".*\n)', r"\2\1", 1)),
    "a gather before its choice": ("chosen", swapped("select_0", "attend_0")),
    "pages of another size": (
        "pages",
        sub(r'page = 8( : i64, sym_name = "k_cache_0")', r"page = 4\1"),
    ),
    "a token's place too few": ("pages", sub(r"4x128xbf16", "3x128xbf16")),
    "an expert that two GPUs have": (
        "gpus",
        on(1, sub(r"experts = array<i64: 4, 8>", "experts = array<i64: 3, 8>")),
    ),
    "an expert that no GPU has": (
        "gpus",
        on(1, sub(r"experts = array<i64: 4, 8>", "experts = array<i64: 5, 8>")),
    ),
    "consumers of fewer experts than their loader": (
        "gpus",
        on(0, sub(r"(engine.multiply.*experts = array<i64: 0, )4", r"\g<1>3")),
    ),
    "results of experts that do not cross": (
        "gpus",
        sub(r'level = "peer"(.*"weighted_0")', r'level = "gpu"\1'),
    ),
    "partial sums that do not cross": (
        "parts",
        sub(r'level = "peer"(.*"linear_0")', r'level = "gpu"\1'),
    ),
    "partial sums in one part": (
        "parts",
        on(1, sub(r"bases = array<i64: 64, 72>", "bases = array<i64: 0, 8>", 1)),
    ),
    "the heads of another GPU": (
        "parts",
        on(1, sub(r'(body = "attend_0".*tile_base = )\d+', r"\g<1>0")),
    ),
    "tokens of another GPU": (
        "parts",
        on(1, sub(r'(tile.candidate".*bases = array<i64: )\d+, \d+', r"\g<1>0, 8")),
    ),
    "a part that nobody makes": (
        "parts",
        on(1, sub(r'.*engine.row.*"attention_0", "linear_0"\].*\n', "")),
    ),
    "a multiply of one part of K": ("halves", sub("k_parts = 2 : i64, ", "", 1)),
    "halves of K that are gated": (
        "halves",
        sub(r"tile.join(.*?\)) :", r'tile.glu\1 {activation = "silu"} :', 1),
    ),
    "replicas that overlap": ("dense", sub(r"replicas = 1", "replicas = 2", 1)),
    "records of one GPU": ("parts", sub("x8x2xi32", "x4x2xi32")),
}


@dataclass(frozen=True)
class Verdict:
    """Who caught a defect. proof: of the verifier, "" if it accepts; schedule: number of the one that failed, 0 = none.

    change: the edit, or where the protocol's defect is; reason: what the device said. An error of Python's, of a
    module that the device cannot execute, is none of its findings: then reason names it and schedule is 0.
    """

    name: str
    base: str
    change: str
    proof: str
    message: str
    schedule: int
    reason: str

    @property
    def caught(self) -> bool:
        return bool(self.proof or self.schedule)


def names() -> list[str]:
    """All defects."""
    return [*MODULE, *PROTOCOL]


def judge(name: str, schedules: int = SCHEDULES) -> Verdict:
    """Verify the defect, and run it under up to so many schedules."""
    if name in MODULE:
        base, edit = MODULE[name]
        text = edit(compiled(base)[0].engine_text)
        proof, message = verified(base, text)
        change, patched = difference(compiled(base)[0].engine_text, text), nullcontext()
    else:
        base, change, make = PROTOCOL[name]
        text, proof, message, patched = compiled(base)[0].engine_text, "", "", applied(make)
    wanted(base)
    with patched:
        schedule, reason = execute(base, text, schedules)
    return Verdict(name, base, change, proof, message, schedule, reason)


@contextmanager
def applied(make: Callable[[pytest.MonkeyPatch], None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make(patch)
        yield


@contextmanager
def target_of(base: Base) -> Iterator[str]:
    """A small target of the base's SMs."""
    with pytest.MonkeyPatch.context() as patch:
        made = dataclasses.replace(TARGETS["virtual"], name="small", **dict(base.target))
        patch.setitem(TARGETS, made.name, made)
        yield made.name


@cache
def compiled(name: str) -> tuple[Package, dict[str, np.ndarray]]:
    """(package, weights) of a base."""
    base = BASES[name]
    model = base.model()
    with target_of(base) as target, new_context() as context, ir.Location.unknown():
        module = import_program(export_decode(model, base.context), context)
        return compile_module(module, target=target, **base.options), arrays(model)


@cache
def wanted(name: str) -> list[np.ndarray]:
    """The unbroken module's logits."""
    package, weights = compiled(name)
    found = explore(package.engine_text, package.packing, weights, BASES[name].requests, 1)
    assert not found.failure, found.failure
    return found.logits


def verified(name: str, text: str) -> tuple[str, str]:
    """(proof that fails, its message), both "" if the verifier accepts."""
    from tileir.passes.verify_schedule import VerifySchedulePass

    with target_of(BASES[name]) as target, new_context() as context, ir.Location.unknown():
        try:
            VerifySchedulePass(target).run(ir.Module.parse(text, context))
        except ScheduleError as error:
            frames, at = [], error.__traceback__
            while at is not None:
                frames.append(at.tb_frame.f_code.co_name)
                at = at.tb_next
            return frames[frames.index("verify") + 1], str(error)
    return "", ""


def execute(name: str, text: str, schedules: int) -> tuple[int, str]:
    """(number of the schedule that failed, why); 0 if none did, and for what cannot be executed."""
    package, weights = compiled(name)
    facts = package.packing, weights, BASES[name].requests, schedules, wanted(name)
    try:
        found = explore(text, *facts)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:  # fmt: skip
        return 0, f"{type(error).__name__}: it cannot be executed"
    return found.schedules if found.failure else 0, found.failure


def difference(before: str, after: str) -> str:
    """The first place where texts differ, `old` → `new`, or what is left out."""
    lines = [[line.strip() for line in t.split("\n") if line.strip()] for t in (before, after)]
    at = next(i for i, (a, b) in enumerate(zip(*lines, strict=False)) if a != b)
    old, new = ([m[0] for m in PIECE.finditer(t[at])] for t in lines)
    if len(lines[0]) > len(lines[1]):
        return f"`{' '.join(old[:3])[:72]}` is left out"
    if len(old) > len(new):
        gone = next(a for a in old if a not in new)
        return f"`{gone}` is left out"
    first, second = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
    return f"`{first}` → `{second}`"
