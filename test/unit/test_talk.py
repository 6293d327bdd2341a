"""Conversations: turns go through the chat template, history is kept, mistakes do not end them."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test.unit.test_text import BYTES
from tileir.errors import TileirError
from tileir.prompt import check_prompt
from tileir.tools.talk import Talker

TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


class Echo:
    """Answers with "ok" and how many ids it was given; knows what it was given."""

    def __init__(self, context: int = 64) -> None:
        self.context, self.read, self.closed = context, [], False

    def generate(self, ids: Any, max_new_tokens: int, stop_ids: Any = ()) -> Iterator[int]:
        check_prompt(ids, max_new_tokens, 300, self.context)
        self.read.append(BYTES.decode(ids))
        answer = BYTES.encode(f"ok{len(self.read)}").ids[:max_new_tokens]
        return (token for token in answer)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BYTES.save(str(tmp_path / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    return tmp_path


def talk(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch, context: int = 64) -> Echo:
    session = Echo(context)
    facts = {"context": context, "vocabulary": 300}
    package: Any = SimpleNamespace(load=lambda *_, **__: session, manifest=facts)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    talker = Talker(package, folder, 8, chat=True)
    with talker.on("reference"):
        talker.talk(quiet=True)
    assert session.closed
    return session


def test_history_is_kept_until_it_is_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = talk(folder, "hi\n\nyes 😀\n/forget\nnew\n", monkeypatch)
    assert session.read == ["<u>hi<a>", "<u>hi<a>ok1<u>yes 😀<a>", "<u>new<a>"]
    assert capsys.readouterr().out == "ok1\nok2\nok3\n"


def test_quit_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk(folder, "a\n/quit\nb\n", monkeypatch).read == ["<u>a<a>"]


def test_a_turn_that_does_not_fit_is_told_and_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = talk(folder, f"a\n{'x' * 40}\nb\n", monkeypatch, context=32)
    assert session.read == ["<u>a<a>", "<u>a<a>ok1<u>b<a>"]
    said = capsys.readouterr()
    assert said.out == "ok1\nok2\n"
    assert said.err.startswith("error: a prompt of ")
    assert "the context of 32\nhint: " in said.err


def test_the_last_answer_takes_the_room_that_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(folder, "a\nb\n", monkeypatch, context=18)
    assert capsys.readouterr().out == "ok1\nok\n"


def test_no_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    package: Any = SimpleNamespace(manifest={})
    with pytest.raises(TileirError, match="no chat template\n  run without --chat"):
        Talker(package, folder, 8, chat=True)
