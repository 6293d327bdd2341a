"""What a pass is: a frozen dataclass whose fields are its options."""

import dataclasses
import re
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from tileir.errors import PipelineError

# Values that need no quotes: the grammar's WORD without parentheses (tileir/passes/grammar.py).
BARE = re.compile(r"""[^\s{}(),"'=]+""")


@dataclass(frozen=True)
class Pass:
    """A rewrite of a module in place.

    name: the flag, and with underscores the file. before, after: the levels between which it stands, or "any". The
    first line of the docstring is its help; the rest says what must hold before and what holds after, with a snippet.
    Fields are options: int, float, bool, str, list[int] or list[str], each with a default.
    """

    name: ClassVar[str] = ""
    before: ClassVar[str] = ""
    after: ClassVar[str] = ""

    def run(self, module: Any) -> None:
        """Rewrite the builtin.module. Raises TileirError for a user's fault."""
        raise AssertionError(f"{type(self).__name__} has no run")

    @classmethod
    def options(cls) -> dict[str, tuple[Any, Any]]:
        """Option name → (type, default)."""
        hints = typing.get_type_hints(cls)
        return {
            f.name.replace("_", "-"): (
                hints[f.name],
                f.default if f.default_factory is dataclasses.MISSING else f.default_factory(),
            )
            for f in dataclasses.fields(cls)
        }

    @classmethod
    def read_option(cls, key: str, text: str | None) -> tuple[str, Any]:
        """The field and the value that `key=text` stands for; text is None where a pipeline gives only the key.

        Raises PipelineError for unknown names and wrong values.
        """
        known = cls.options()
        if key not in known:
            near = get_close_matches(key, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise PipelineError(
                f"pass {cls.name!r} has no option {key!r}",
                hint=f"{guess}options: {', '.join(known) or 'none'}",
            )
        kind = known[key][0]
        try:
            return key.replace("-", "_"), _read(kind, text)
        except ValueError:
            given = "has no value" if text is None else f"is {text!r}"
            raise PipelineError(
                f"pass {cls.name!r}: option {key!r} {given}",
                hint=f"it takes a value of type {type_text(kind)}",
            ) from None

    def text(self) -> str:
        """The pass as it stands in a pipeline."""
        inside = " ".join(
            f"{key}={value_text(getattr(self, key.replace('-', '_')))}" for key in self.options()
        )
        return f"{self.name}{{{inside}}}" if inside else self.name


def type_text(kind: Any) -> str:
    """An option's type as help and errors name it: "int", "list[str]"."""
    return str(kind) if typing.get_origin(kind) is list else str(kind.__name__)


def value_text(value: Any) -> str:
    """An option's value as it stands in a pipeline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"{{{','.join(map(value_text, value))}}}"
    text = str(value)
    quote = "'" if '"' in text else '"'
    return text if BARE.fullmatch(text) else f"{quote}{text}{quote}"


def _read(kind: Any, text: str | None) -> Any:
    """The value of that type. Raises ValueError if the text is none."""
    if kind is bool:
        values = {None: True, "true": True, "1": True, "false": False, "0": False}
        if text not in values:
            raise ValueError(text)
        return values[text]
    if text is None:
        raise ValueError("a key alone")
    if typing.get_origin(kind) is list:
        (element,) = typing.get_args(kind)
        return [_read(element, part.strip()) for part in text.split(",")] if text else []
    return kind(text)
