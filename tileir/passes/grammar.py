"""The text of a pipeline as passes; what is wrong with it is shown where it stands."""

import functools
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import lark

from tileir.errors import PipelineError
from tileir.mlir import ir, passmanager
from tileir.passes.base import Pass
from tileir.passes.registry import find_pass, pass_names

GRAMMAR = r"""
    start: [items]
    items: item ("," item)*
    item: NAME "(" [items] ")" -> nest
        | NAME [options] -> single
    options: "{" option* "}"
    option: NAME ["=" value]
    value: STRING | BRACED | WORD ("," WORD)*
    NAME: /[\w.\-]+/
    STRING: /"[^"]*"|'[^']*'/
    BRACED: /\{(?:[^{}]|\{[^{}]*\})*\}/
    WORD: /[^\s{},"'=]+/
    %import common.WS
    %ignore WS
"""
WORDS = {
    **{"COMMA": "','", "LPAR": "'('", "RPAR": "')'", "LBRACE": "'{'", "RBRACE": "'}'"},
    **{"EQUAL": "'='", "NAME": "a name", "WORD": "a value", "$END": "the end"},
}
# Upstream has no list of its passes; near matches are sought among those that fit these levels.
UPSTREAM = (
    *("canonicalize", "cse", "inline", "loop-invariant-code-motion", "print-op-stats", "sccp"),
    *("strip-debuginfo", "symbol-dce", "symbol-privatize", "topological-sort"),
)
SHOWN = 88


@dataclass(frozen=True)
class Upstream:
    """A pass of upstream's, or a nest of them, as text. A nest's name is its text."""

    name: str
    whole: str

    def text(self) -> str:
        """The pass as it stands in a pipeline."""
        return self.whole


Item = Pass | Upstream


def parse_pipeline(text: str) -> list[Item]:
    """The passes of a pipeline, in order. Raises PipelineError with the place of what is wrong."""
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    found = _items(tree.children[0])
    if len(found) == 1 and found[0].data == "nest" and found[0].children[0] == "builtin.module":
        found = _items(found[0].children[1])
    return [_item(text, child) for child in found]


@functools.cache
def _parser() -> lark.Lark:
    return lark.Lark(GRAMMAR, parser="lalr", propagate_positions=True)


def _items(tree: Any) -> list[Any]:
    return [] if tree is None else list(tree.children)


def _item(text: str, tree: Any) -> Item:
    name = str(tree.children[0])
    if tree.data == "single" and name in pass_names():
        return _ours(text, find_pass(name), tree.children[1])
    for inner in tree.find_data("single"):
        nested = inner.children[0]
        if nested in pass_names():
            raise _at(text, nested.start_pos, f"pass {str(nested)!r} cannot stand inside {name}(…)",
                      "it rewrites a whole module: write it beside")  # fmt: skip
    start, end = tree.meta.start_pos, tree.meta.end_pos
    _check_upstream(text, start, end)
    whole = text[start:end]
    return Upstream(name if tree.data == "single" else whole, whole)


def _ours(text: str, found: type[Pass], options: Any) -> Pass:
    values: dict[str, Any] = {}
    for option in _items(options):
        key, value = option.children
        given = None if value is None else _unquoted(value.children)
        try:
            field, read = found.read_option(str(key), given)
        except PipelineError as error:
            raise _at(text, key.start_pos, error.message, error.hint) from None
        if field in values:
            raise _at(text, key.start_pos, f"option {str(key)!r} is given twice", "keep one")
        values[field] = read
    return found(**values)


def _unquoted(tokens: list[Any]) -> str:
    first = tokens[0]
    return str(first)[1:-1] if first.type in ("STRING", "BRACED") else ",".join(tokens)


def _check_upstream(text: str, start: int, end: int) -> None:
    """Let upstream read its own pass. Raises PipelineError if it does not know it."""
    try:
        with ir.Context():
            passmanager.PassManager.parse(f"builtin.module({text[start:end]})")
    except ValueError as error:
        said = str(error).strip()
        place = re.search(r":1:(\d+): error: (.*)", said)
        at = start + int(place.group(1)) - 1 if place else start
        message = place.group(2) if place else said.splitlines()[0]
        unknown = re.match(r"'(.*)' does not refer to a registered pass", message)
        if unknown is not None:
            raise _unknown_pass(text, at, unknown.group(1)) from None
        message = message.removeprefix("<Pass-Options-Parser>: ")
        raise _at(text, at, f"upstream refuses it: {message}") from None


def _unknown_pass(text: str, at: int, name: str) -> PipelineError:
    near = get_close_matches(name, (*pass_names(), *UPSTREAM), n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return _at(
        text, at, f"unknown pass {name!r}", f"{guess}tileir-opt --help lists the passes of ours"
    )


def _syntax_error(text: str, error: lark.exceptions.UnexpectedInput) -> PipelineError:
    if isinstance(error, lark.exceptions.UnexpectedToken):
        expected, end = error.accepts or error.expected, error.token.type == "$END"
    else:
        assert isinstance(error, lark.exceptions.UnexpectedCharacters)
        expected, end = error.allowed, False
    at = len(text) if end else error.pos_in_stream or 0
    words = [word for name, word in WORDS.items() if name in expected]
    found = "the end" if end else repr(text[at])
    return _at(text, at, f"expected {' or '.join(words)}, not {found}")


def _at(text: str, position: int, message: str, hint: str = "") -> PipelineError:
    """An error that shows the line of the pipeline, with a caret under the position."""
    row = text.count("\n", 0, position)
    line = text.split("\n")[row]
    column = position - (text.rfind("\n", 0, position) + 1)
    # A window of the line, so that the caret stays below its place on a terminal.
    cut = max(0, min(column - SHOWN // 2, len(line) - SHOWN))
    shown = [f"{line[cut : cut + SHOWN]}", f"{' ' * (column - cut)}^", *([hint] if hint else [])]
    return PipelineError(
        message, location=f"pipeline:{row + 1}:{column + 1}", hint="\n  ".join(shown)
    )
