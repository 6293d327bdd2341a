"""What the importer takes, and how it refuses the rest."""

from typing import Any

import pytest
import torch
from torch import nn

import tileir
from test.models import OwnModel, export_own, tiny_dsa, tiny_llama, tiny_mtp
from tileir.dialect.attributes import get, name_of, walk
from tileir.errors import TileirError
from tileir.frontends.torch_export import (
    export_decode,
    export_draft_decode,
    fake_draft,
    fake_hf,
    import_program,
)
from tileir.mlir import new_context


def ops_of(program: Any) -> list[str]:
    return [name_of(o) for o in walk(import_program(program, new_context()), "graph.linear", "graph.rope",
            "graph.rms_norm", "graph.append", "graph.attention", "graph.glu", "graph.add")]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_becomes_named_operations(dtype: torch.dtype) -> None:
    found = ops_of(export_decode(tiny_llama().to(dtype), 64))
    layer = ["rms_norm", "linear", "linear", "linear", "rope", "rope", "append", "append", "attention",
             "linear", "add", "rms_norm", "linear", "linear", "glu", "linear", "add"]  # fmt: skip
    assert found == [f"graph.{n}" for n in [*layer, *layer, "rms_norm", "linear"]]


def test_names_are_the_checkpoints() -> None:
    module = import_program(export_decode(tiny_llama(tie_word_embeddings=True), 64), new_context())
    names = [get(o, "sym_name") for o in walk(module, "graph.weight")]
    assert "model.layers.1.mlp.down_proj.weight" in names
    assert names.count("model.embed_tokens.weight") == 1
    assert "lm_head.weight" not in names


def test_fake_weights_import() -> None:
    """A model without memory for its weights: names, shapes and real rope frequencies."""
    program = export_decode(fake_hf(tiny_llama().config), 64)
    module = import_program(program, new_context())
    (frequencies,) = (get(o, "value") for o in walk(module, "graph.constant"))
    assert frequencies[0] == 1.0
    assert len(frequencies) == 8


class Odd(OwnModel):
    """A model with an operation that nothing takes."""

    def forward(self, ids: Any, positions: Any) -> Any:
        return torch.erf(super().forward(ids, positions))


class Growing(nn.Module):
    """A KV cache that grows by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 16), nn.Linear(16, 16)
        self.register_buffer("past", torch.zeros(1, 1, 7, 16), persistent=False)

    def forward(self, ids: Any, positions: Any) -> Any:
        x = self.embed(ids)[:, None]
        keys = torch.cat([self.past, x], 2)
        return self.head(nn.functional.scaled_dot_product_attention(x, keys, keys)[:, 0])


def test_unknown_operation_names_node_module_and_line() -> None:
    with pytest.raises(TileirError) as error:
        tileir.compile(export_own(Odd()), target="virtual")
    text = str(error.value)
    assert "'erf'" in text
    assert "test_importer.py:" in text
    assert "torch.erf" in text
    assert "supported:" in text


def test_cache_by_cat_says_what_to_use() -> None:
    with pytest.raises(TileirError, match="KV cache"):
        tileir.compile(export_own(Growing()), target="virtual")


def test_core_aten_decompositions_are_refused() -> None:
    example = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    model = OwnModel().eval()
    with torch.no_grad():
        program = torch.export.export(model, example, strict=False)
        program = program.run_decompositions()
    with pytest.raises(TileirError, match=r"run_decompositions\(\{\}\)|supported"):
        tileir.compile(program, target="virtual")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train(), "training mode"),
        (lambda m: m.double(), "float64"),
        (lambda m: nn.Linear(2, 2).eval(), "no transformers causal"),
    ],
)
def test_models_that_cannot_be_exported(change: Any, message: str) -> None:
    with pytest.raises(TileirError, match=message):
        export_decode(change(tiny_llama()), 64)


def test_two_tokens_are_refused() -> None:
    example = (torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        program = torch.export.export(OwnModel().eval(), example, strict=False)
    with pytest.raises(TileirError, match=r"input_ids \[1, 1\]"):
        import_program(program.run_decompositions({}), new_context())


class Sliced(nn.Module):
    """Half of an activation that is no linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 32), nn.Linear(16, 16)

    def forward(self, ids: Any, positions: Any) -> Any:
        return self.head(self.embed(ids)[..., :16])


class Chosen(nn.Module):
    """Experts that are chosen by what `score` makes of the logits."""

    def __init__(self, score: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = score
        self.embed, self.gate = nn.Embedding(16, 32), nn.Linear(32, 4, bias=False)
        self.experts = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, ids: Any, positions: Any) -> Any:
        x = self.embed(ids)[0]
        weights, chosen = torch.topk(self.score(self.gate(x)), 2)
        y = torch.bmm(self.experts[chosen.view(-1)], x.repeat_interleave(2, 0)[..., None])[..., 0]
        return (y * weights.view(-1)[:, None]).view(1, 2, 32).sum(1)[None]


def test_parts_of_other_values_than_a_linears_are_refused() -> None:
    with pytest.raises(TileirError, match="'slice'") as error:
        import_program(export_own(Sliced()), new_context())
    assert "parts of a linear's values" in str(error.value)


def test_routers_that_nothing_takes_are_refused() -> None:
    module = import_program(export_own(Chosen(lambda x: x.softmax(-1))), new_context())
    assert [get(o, "normalize") for o in walk(module, "graph.router")] == [False]
    with pytest.raises(TileirError, match="chosen in a way that nothing takes") as error:
        import_program(export_own(Chosen(lambda x: x.tanh())), new_context())
    assert "test_importer.py:" in str(error.value)
    assert "softmax" in str(error.value)


def test_draft_models_have_one_layer() -> None:
    model, _ = tiny_mtp()
    with pytest.raises(TileirError, match="one layer"):
        export_draft_decode(model, nn.Linear(2, 2), 64)


def test_kernels_are_chosen_for_the_export_only() -> None:
    model = tiny_dsa()
    before = dict(vars(model.config))
    export_decode(model, 64)
    assert dict(vars(model.config)) == before
    assert not any("forward" in vars(m) for m in model.modules())


def test_fake_drafts_import() -> None:
    """A draft layer without memory for its weights, beside its model."""
    real, _ = tiny_mtp()
    model = fake_hf(real.config)
    module = import_program(export_draft_decode(model, fake_draft(model), 64), new_context())
    names = {get(o, "sym_name") for o in walk(module, "graph.weight")}
    assert "mtp.layers.0.eh_proj.weight" in names
    assert len(list(walk(module, "graph.sample"))) == 2
    states = [get(o, "sym_name") for o in walk(module, "graph.state")]
    assert states == [f"latent_cache_{i}" for i in range(4)]
