"""Tokens to text, as it comes."""

from pathlib import Path
from typing import Any

from tileir.errors import TileirError


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a Hugging Face folder. Raises TileirError if there is none, or none that reads."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TileirError(
            f"{folder} holds no tokenizer.json", hint="save the tokenizer beside the weights"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # what the bindings raise has no other class
        raise TileirError(f"{path} is no tokenizer: {error}", hint="copy it again") from None


class Streamer:
    """Turns tokens into text without ever splitting a character.

    A token may end inside a UTF-8 sequence; what decodes to a replacement character waits for the next token. Each
    token is decoded behind the ones before it, since a decoder may treat the first token of a text in its own way;
    what was given long ago is not decoded again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that one more token completes; may be empty."""
        self._waiting.append(token)
        text = self._text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._known, self._waiting = self._waiting, []
        return text

    def rest(self) -> str:
        """What is left at the end, as it is."""
        text, self._known, self._waiting = self._text(), self._waiting, []
        return text

    def _text(self) -> str:
        """What the waiting tokens add to the known ones."""
        return self._decode(self._known + self._waiting)[len(self._decode(self._known)) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
