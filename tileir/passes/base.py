"""What a pass is: a frozen dataclass whose fields are its options."""

import dataclasses
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from tileir.errors import PipelineError


@dataclass(frozen=True)
class Pass:
    """A rewrite of a module in place.

    name: the flag, and with underscores the file. before, after: the levels between which it stands. The first line
    of the docstring is its help; the rest says what must hold before and what holds after, with a snippet.
    """

    name: ClassVar[str] = ""
    before: ClassVar[str] = ""
    after: ClassVar[str] = ""

    def run(self, module: Any) -> None:
        """Rewrite the builtin.module. Raises TileirError for a user's fault."""
        raise AssertionError(f"{type(self).__name__} has no run")

    @classmethod
    def options(cls) -> dict[str, tuple[type, Any]]:
        """Option name → (type, default)."""
        hints = typing.get_type_hints(cls)
        return {
            f.name.replace("_", "-"): (hints[f.name], f.default) for f in dataclasses.fields(cls)
        }

    @classmethod
    def from_options(cls, options: dict[str, str]) -> Self:
        """A pass from textual options. Raises PipelineError for unknown names and wrong values."""
        known, values = cls.options(), {}
        for key, text in options.items():
            if key not in known:
                near = get_close_matches(key, known, n=1)
                guess = f"did you mean {near[0]!r}? " if near else ""
                raise PipelineError(
                    f"pass {cls.name!r} has no option {key!r}",
                    hint=f"{guess}options: {', '.join(known) or 'none'}",
                )
            values[key.replace("-", "_")] = _value(cls.name, key, text, known[key][0])
        return cls(**values)

    def text(self) -> str:
        """The pass as it stands in a pipeline."""
        values = {n: getattr(self, n.replace("-", "_")) for n in self.options()}
        inside = " ".join(
            f"{n}={str(v).lower() if v is True or v is False else v}" for n, v in values.items()
        )
        return f"{self.name}{{{inside}}}" if inside else self.name


def _value(owner: str, key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "1", ""):
            return True
        if text.lower() in ("false", "0"):
            return False
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise PipelineError(
        f"pass {owner!r}: option {key!r} is {text!r}",
        hint=f"it takes a value of type {kind.__name__}",
    )
