"""The real model on the reference device against transformers, fp32."""

import os
from pathlib import Path

import pytest
import torch

import tileir
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode, load_hf
from tileir.frontends.torch_export.smollm2 import prepare_smollm2

PROMPTS = (
    "Once upon a time, there was a little",
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "The best way to learn a language is",
)
# TILEIR_FULL=1: 5 prompts × 64 tokens, some four minutes.
FULL = os.environ.get("TILEIR_FULL") == "1"


def test_greedy_tokens_are_transformers() -> None:
    """1 prompt × 16 tokens, or all with TILEIR_FULL."""
    try:
        folder = prepare_smollm2(Path(".cache"))
    except TileirError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = load_hf(folder)
    count = 64 if FULL else 16
    package = tileir.compile(export_decode(model, 512), target="virtual")
    session = package.load(folder, "reference")
    for prompt in PROMPTS if FULL else PROMPTS[:1]:
        ids = tokenizer(prompt).input_ids
        with torch.no_grad():
            wanted = model.generate(
                torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None
            )
        assert list(session.generate(ids, count)) == wanted[0, len(ids) :].tolist()
