"""Tokens to text, as it comes."""

from pathlib import Path
from typing import Any

from tileir.errors import TileirError


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a Hugging Face folder. Raises TileirError if there is none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TileirError(
            f"{folder} holds no tokenizer.json", hint="save the tokenizer beside the weights"
        )
    return Tokenizer.from_file(str(path))


class Streamer:
    """Turns tokens into text without ever splitting a character.

    A token may end inside a UTF-8 sequence; what decodes to a replacement character waits for the next token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that one more token completes; may be empty."""
        self._tokens.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        return self._take(text)

    def rest(self) -> str:
        """What is left at the end, as it is."""
        return self._take(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _take(self, text: str) -> str:
        new, self._given = text[self._given :], len(text)
        return new
