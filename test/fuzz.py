"""Random decoders, from one seed each: sizes, norms, biases, tied or not, and the wiring of residuals."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from test import own_modules as own
from test.models import arrays, export_own
from tileir.codegen.plan import read_plan
from tileir.codegen.ptx import assemble, kernel_module, to_ptx
from tileir.codegen.recipe import packing_recipe
from tileir.compiler import Options
from tileir.dialect.attributes import walk
from tileir.errors import TileirError
from tileir.frontends.torch_export import import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.session import ReferenceSession
from tileir.reference.tile import TileExecutor
from tileir.target import TARGETS, Target

TOLERANCE = 1e-4
WIRINGS = ("before", "behind", "beside", "both", "skip")


class Wired(own.Layer):
    """A layer whose residuals go as `wiring` says."""

    def __init__(self, o: dict[str, Any]) -> None:
        super().__init__(o | {"post": False})
        self.wiring = o["wiring"]

    def forward(self, x: Any, at: Any, turn: own.Part, mask: Any) -> Any:
        first, second = self.first, self.second
        match self.wiring:
            case "behind":
                x = x + first(self.attention(x, at, turn, mask))
                return x + second(self.mlp(x))
            case "beside":
                n = first(x)
                return x + self.attention(n, at, turn, mask) + self.mlp(n)
            case "both":
                y = x + self.attention(first(x), at, turn, mask)
                return y + self.mlp(second(y)) + x
            case "skip":
                y = self.attention(first(x), at, turn, mask)
                return x + self.mlp(second(y))
        x = x + self.attention(first(x), at, turn, mask)
        return x + self.mlp(second(x))


class Fuzzed(own.Decoder):
    """A decoder of wired layers, its head tied to its table or not."""

    def __init__(self, tied: bool, wirings: list[str], **options: Any) -> None:
        super().__init__(**options)
        o = {"bias": False, "norm": own.Rms, "parts": own.by_split, "attend": own.attend_called}
        o |= options
        self.layers = nn.ModuleList(Wired(o | {"wiring": w}) for w in wirings)
        for name, parameter in self.layers.named_parameters():
            noise = torch.randn_like(parameter) * 0.15
            with torch.no_grad():
                parameter.copy_(noise if parameter.ndim > 1 or "bias" in name else 1 + noise)
        if tied:
            self.head.weight = self.embed.weight


@dataclass(frozen=True)
class Outcome:
    """Of one model: the worst error of a level, relative to the largest logit; refused: why, "" if compiled."""

    text: str
    errors: dict[str, float]
    refused: str = ""


def model_of(seed: int) -> tuple[Fuzzed, str]:
    """The decoder of a seed, and what it is."""
    pick = random.Random(seed)
    kv, shared, head = (
        pick.randint(1, 3),
        pick.randint(1, 3),
        pick.choice([16, 32, 48, 64, 80, 128]),
    )
    norm = pick.choice([own.Rms, own.Rms, nn.LayerNorm])
    bias, inner = pick.random() < 0.4, 8 * pick.randint(2, 20)
    gated = pick.random() < 0.6
    act = pick.choice([F.silu, F.gelu, F.relu])
    facts: dict[str, Any] = {
        "hidden": 16 * pick.randint(2, 12),
        "heads": kv * shared,
        "kv": kv,
        "head": head,
        "layers": 0,
        "vocabulary": pick.randint(17, 300),
        "context": pick.choice([8, 24, 33, 64]),
        "bias": bias,
        "parts": pick.choice([own.by_split, own.by_slices, own.by_narrow]),
        "attend": pick.choice(
            [own.attend_called, own.attend_scaled_before, own.attend_by_hand, own.attend_capped]
        ),
        "final": pick.random() < 0.9,
    }
    wirings = [pick.choice(WIRINGS) for _ in range(pick.randint(1, 4))]
    tied = pick.random() < 0.3
    text = f"seed {seed}: {len(wirings)} layers ({', '.join(wirings)})" + "".join(
        f", {n} {facts[n]}" for n in ("hidden", "heads", "kv", "head", "vocabulary", "context")
    )

    def mlp(size: int) -> nn.Module:
        if gated:
            return own.Gated(size, inner, act=act, bias=bias)
        return own.Plain(size, inner, act, bias)

    torch.manual_seed(seed)
    return Fuzzed(tied, wirings, norm=norm, mlp=mlp, **facts).eval(), text


def fuzz(seed: int, target: Target | None = None, steps: int = 5) -> Outcome:
    """A model of a seed down to ptxas, each level against eager fp32 over so many tokens.

    target: without one, no code is made. Raises AssertionError where a level is further off than `TOLERANCE`; a model
    that is refused with a TileirError says so.
    """
    model, text = model_of(seed)
    ids = np.random.default_rng(seed).integers(0, model.head.out_features, steps).tolist()
    program = export_own(model)
    with torch.no_grad():
        eager = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    exact, weights = torch.cat(eager).numpy(), arrays(model)
    try:
        found = dict(_levels(program, weights, ids))
        if target is not None:
            _assemble(program, target)
    except TileirError as error:
        return Outcome(text, {}, str(error))
    errors = {n: float(np.abs(f - exact).max() / np.abs(exact).max()) for n, f in found.items()}
    assert max(errors.values()) < TOLERANCE, f"{text}: {errors}"
    return Outcome(text, errors)


def _levels(program: Any, weights: Any, ids: list[int]) -> Any:
    """(level, logits [tokens, vocabulary]) of the reference executors."""
    with new_context() as context, ir.Location.unknown():
        module = import_program(program, context)
        yield "graph", _steps(GraphExecutor(module, weights), ids)
        to_tile = Options("virtual").pipeline.split(",select-sync")[0] + ")"
        lowered = import_program(program, context)
        run_pipeline(lowered, to_tile)
        yield "tile", _steps(TileExecutor(lowered, weights), ids)
        run_pipeline(module, Options("virtual").pipeline)
        plans = [read_plan(d, TARGETS["virtual"]) for d in walk(module, "engine.device")]
        session = ReferenceSession(str(module), [packing_recipe(p) for p in plans], weights)
    yield "engine", session.logits(ids)


def _steps(executor: Any, ids: list[int]) -> Any:
    return np.concatenate(
        [executor.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
    )


def _assemble(program: Any, target: Target) -> None:
    """PTX, and what ptxas says."""
    with new_context() as context, ir.Location.unknown():
        module = import_program(program, context)
        run_pipeline(module, Options(target.name).pipeline)
        (device,) = walk(module, "engine.device")
        _, facts = assemble(to_ptx(kernel_module(read_plan(device, target))), target)
        assert all(f.registers for f in facts.values())
