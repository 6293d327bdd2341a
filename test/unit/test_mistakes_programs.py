"""Mistakes in what is exported: models, programs, folders of other architectures."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import tileir
from test.mistakes import Act, Mistake, each_mistake, program
from test.models import OwnModel, tiny_llama
from tileir.frontends.torch_export import export_decode

TOKEN = torch.zeros(1, 1, dtype=torch.long)
POSITION = torch.zeros(1, dtype=torch.long)
HERE = "test_mistakes_programs.py:"
RECIPE = ("buffers [1, kv heads, context, head size]", "index_copy_", "export_decode")


def compiled(model: nn.Module, *example: Any, table: Any = (), **options: Any) -> Act:
    """Compile a module's own export. table: of run_decompositions; None: none are run."""
    with torch.no_grad():
        made = torch.export.export(model, example or (TOKEN, POSITION), strict=False, **options)
        if table is not None:
            made = made.run_decompositions(*([{}] if table == () else table))
    return lambda: tileir.compile(made, target="virtual")


def exported(model: Any, context: Any = 32) -> Callable[[Path], Act]:
    return lambda folder: lambda: export_decode(model, context)


def loaded(config: Any, kind: Any = None) -> Callable[[Path], Act]:
    """`tileir compile` of a saved folder of another architecture."""

    def prepare(folder: Path) -> Act:
        (config if kind is None else kind(config)).save_pretrained(folder / "other")
        return ["tileir", "compile", "other", "--target", "virtual"]

    return prepare


class Summed(OwnModel):
    def forward(self, ids: Any, positions: Any) -> Any:
        return torch.cumsum(super().forward(ids, positions), -1)


class Dropped(OwnModel):
    def forward(self, ids: Any, positions: Any) -> Any:
        return F.dropout(super().forward(ids, positions), 0.1, self.training)


class Tripled(OwnModel):
    def forward(self, ids: Any, positions: Any) -> Any:
        logits = super().forward(ids, positions)
        return logits, logits + 1, logits + 2


class Swapped(OwnModel):
    def forward(self, positions: Any, ids: Any) -> Any:
        return super().forward(ids, positions)


class Learned(OwnModel):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(32, 64)

    def forward(self, ids: Any, positions: Any) -> Any:
        self.embed.register_forward_hook(lambda module, given, x: x + self.places(positions))
        return super().forward(ids, positions)


class ByToken(OwnModel):
    """One of what goes by positions goes by the token's id."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, ids: Any, positions: Any) -> Any:
        by = dict.fromkeys(("angle", "mask", "at"), positions) | {self.wrong: ids[0]}
        angle = by["angle"][:, None].float() * self.inv_freq
        mask = torch.arange(self.context)[None, :] <= by["mask"][:, None]
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, by["at"], angle.cos(), angle.sin(), mask)
        return self.head(self.norm(x))


class Attending(nn.Module):
    """One layer of attention over what `rows` makes of the new keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, 64), nn.Linear(64, 96)
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
        self.register_buffer("keys", torch.zeros(1, 4, 7, 16), persistent=False)
        self.register_buffer("values", torch.zeros(1, 4, 7, 16), persistent=False)

    def forward(self, ids: Any, positions: Any, *caches: Any) -> Any:
        x = self.embed(ids)
        q, *new = (p(x).view(1, 1, 4, 16).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = self.rows(new, caches or (self.keys, self.values))
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 1, 64))

    def rows(self, new: list[Any], old: Any) -> list[Any]:
        return [torch.cat(pair, 2) for pair in zip(old, new, strict=True)]


class Forgetful(Attending):
    def rows(self, new: list[Any], old: Any) -> list[Any]:
        return new


class Bigram(nn.Module):
    """No attention at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, 64), nn.Linear(64, 96)

    def forward(self, ids: Any, positions: Any = None) -> Any:
        return self.head(self.embed(ids))


def deciding() -> Any:
    """A Llama, a layer of which decides by its values."""
    model = tiny_llama()
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) if x.sum() > 0 else x
    return model


def config(kind: str, **facts: Any) -> Any:
    return getattr(transformers, kind)(**facts)


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
BERT = config("BertConfig", num_hidden_layers=1, num_attention_heads=2, **SMALL)
GPT2 = config("GPT2Config", n_layer=1, n_embd=32, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=2)  # fmt: skip
LLAMA = config("LlamaConfig", num_hidden_layers=1, **SMALL)

MODELS = [
    Mistake("training mode", exported(tiny_llama().train()), ("training mode", "model.eval()")),
    Mistake("float64 model", exported(tiny_llama().double()), ("torch.float64", "float32, bfloat16 and float16")),
    Mistake("no context", exported(tiny_llama(), 0), ("max_context is 0", "at least one")),
    Mistake("negative context", exported(tiny_llama(), -5), ("max_context is -5", "at least one")),
    Mistake("a context that is text", exported(tiny_llama(), "2k"), ("max_context is '2k'", "at least one")),
    Mistake("module instead of a model", exported(nn.Linear(2, 2)),
            ("Linear is no transformers causal language model with attention", "torch.export", "tileir.compile")),
    Mistake("control flow by values", exported(deciding()), (HERE, "LlamaForCausalLM", "x.sum() > 0", "torch.where")),
    Mistake("model instead of a program", lambda f: lambda: tileir.compile(tiny_llama(), target="virtual"),
            ("LlamaForCausalLM", "ExportedProgram", "export_decode")),
    Mistake("encoder", loaded(BERT, transformers.BertForMaskedLM), ("encoder", "causal", "tileir models")),
    Mistake("GPT-2", loaded(GPT2, transformers.GPT2LMHeadModel),
            ("modeling_gpt2.py:", "an embedding of positions", "module 'model.transformer.wpe'", "rotary")),
    Mistake("model of images", loaded(config("ViTConfig")), ("other", "ViTConfig", "tileir models")),
    Mistake("encoder and decoder", loaded(config("T5Config")), ("other", "T5Config", "tileir models")),
    Mistake("config without weights", loaded(LLAMA), ("other", "model.safetensors", "safetensors files")),
]  # fmt: skip

PROGRAMS = [
    Mistake("unsupported operation", lambda f: compiled(Summed().eval()),
            (HERE, "'cumsum'", "node 'cumsum'", "supported: ")),
    Mistake("training graph", lambda f: compiled(Dropped().train()), (HERE, "training mode", "model.eval()")),
    Mistake("no decompositions", lambda f: compiled(OwnModel().eval(), table=None),
            ("models.py:", "in place", "module 'blocks.0'", "run_decompositions({})")),
    Mistake("all decompositions", lambda f: compiled(OwnModel().eval(), table=[]),
            ("core ATen", "'addmm'", "module 'blocks.0.q'", "run_decompositions({})")),
    Mistake("all decompositions of a model", lambda f: again(),
            ("core ATen", "'mm'", "q_proj", "run_decompositions({})")),
    Mistake("float64 program", lambda f: compiled(OwnModel().double().eval()),
            ("'embed.weight'", "torch.float64", "bfloat16")),
    Mistake("caches as inputs", lambda f: compiled(Attending(), TOKEN, POSITION, *[torch.zeros(1, 4, 7, 16)] * 2),
            ("[1, 4, 7, 16]", *RECIPE)),
    Mistake("cache that grows", lambda f: compiled(Attending()),
            (HERE, "grows by cat", "index_copy", "export_decode")),
    Mistake("attention without a cache", lambda f: compiled(Forgetful()), (HERE, "without a KV cache", "index_copy")),
    Mistake("no cache at all", lambda f: compiled(Bigram()), ("no KV cache", *RECIPE)),
    Mistake("no positions", lambda f: compiled(Bigram(), TOKEN), ("[[1, 1]]", "positions [1]")),
    Mistake("positions first", lambda f: compiled(Swapped(), POSITION, TOKEN),
            ("'ids'", "embedded as tokens", "in this order")),
    Mistake("positions that are floats", lambda f: compiled(Bigram(), TOKEN, torch.zeros(1)),
            ("'positions'", "float32", "int64")),
    Mistake("several tokens", lambda f: compiled(OwnModel(), TOKEN.repeat(1, 4), torch.arange(4)),
            ("[[1, 4], [4]]", "[1, 1]")),
    Mistake("learned positions", lambda f: compiled(Learned()), ("models.py:", "an embedding of positions", "rotary")),
    Mistake("rotated by tokens", lambda f: compiled(ByToken("angle")),
            ("models.py:", "a rotation by something else than positions", "positions[:, None] * frequencies")),
    Mistake("masked by tokens", lambda f: compiled(ByToken("mask")),
            ("models.py:", "an attention mask that is not made from positions", "positions[:, None]")),
    Mistake("written at tokens", lambda f: compiled(ByToken("at")),
            ("models.py:", "an index_copy that is no KV cache", "at positions")),
    Mistake("three outputs", lambda f: compiled(Tripled()), ("3 outputs", "logits")),
]  # fmt: skip


def again() -> Act:
    """An export_decode program, decomposed once more."""
    made = program().run_decompositions()
    return lambda: tileir.compile(made, target="virtual")


test_mistake = each_mistake([*MODELS, *PROGRAMS])


def test_the_graph_that_torch_prints_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(tileir.TileirError):
        export_decode(deciding(), 32)
    assert "def forward" not in capsys.readouterr().err


def test_what_a_model_prints_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_llama()
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: (print("here I am", file=sys.stderr), plain(x))[1]
    export_decode(model, 32)
    assert "here I am" in capsys.readouterr().err
