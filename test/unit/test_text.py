"""Text as it comes: whole characters, nothing twice, nothing lost."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tileir.errors import TileirError
from tileir.frontends.torch_export.smollm2 import prepare_smollm2
from tileir.tools.text import Streamer, load_tokenizer

ROOT = Path(__file__).parent.parent.parent


def tokenizer() -> Tokenizer:
    """One token a byte, and "</s>", special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    return made


BYTES = tokenizer()


@given(st.text(max_size=12))
def test_streamed_text_is_the_text_in_whole_characters(text: str) -> None:
    streamer = Streamer(BYTES)
    parts = [streamer.push(i) for i in BYTES.encode(text).ids]
    assert "".join(parts) + streamer.rest() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("text", ["👩‍👩‍👧 fine", "日本語と한국어", "né 😀😀!", "mixed 鑫a龘b"])
def test_a_real_tokenizer_never_splits_a_character(text: str) -> None:
    tokenizer = real_tokenizer()
    ids = tokenizer.encode(text).ids
    assert any("\ufffd" in tokenizer.decode([i]) for i in ids), "no token ends inside a character"
    streamer = Streamer(tokenizer)
    parts = [streamer.push(i) for i in ids]
    assert streamer.rest() == ""
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def real_tokenizer() -> Any:
    """SmolLM2's: byte-level BPE, whose tokens hold one to many bytes."""
    try:
        return load_tokenizer(prepare_smollm2(ROOT / ".cache"))
    except TileirError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_special_tokens_are_not_text() -> None:
    streamer, end = Streamer(BYTES), BYTES.token_to_id("</s>")
    ids = [*BYTES.encode("a").ids, end, end, *BYTES.encode("é").ids, end]
    assert "".join(streamer.push(i) for i in ids) + streamer.rest() == "aé"


def test_a_character_cut_short_is_told_at_the_end() -> None:
    streamer = Streamer(BYTES)
    ids = BYTES.encode("a€").ids
    assert [streamer.push(i) for i in ids[:-1]] == ["a", "", ""]
    assert streamer.rest() == "\ufffd"
    assert streamer.rest() == ""


def test_streaming_decodes_no_more_than_it_must() -> None:
    lengths: list[int] = []

    def decode(ids: list[int], **options: Any) -> str:
        lengths.append(len(ids))
        return str(BYTES.decode(ids, **options))

    streamer = Streamer(SimpleNamespace(decode=decode))
    for i in BYTES.encode("x€" * 100).ids:
        streamer.push(i)
    assert max(lengths) <= 8
