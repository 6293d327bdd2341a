"""Pipelines: what their text means, what is said of a wrong one, and how they run."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tileir.dialect.attributes import build, put, walk
from tileir.errors import ContractError, PipelineError, TileirError
from tileir.mlir import ir, new_context, passmanager
from tileir.passes import grammar, pipeline, registry
from tileir.passes.base import Pass, type_text
from tileir.passes.grammar import UPSTREAM, Upstream, parse_pipeline
from tileir.passes.pipeline import run_pipeline
from tileir.tools.opt import main

TWICE = """
module attributes {tileir.level = "graph"} {
  func.func @f(%a: tensor<?x8xf32>) {
    %x = "graph.add"(%a, %a) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    return
  }
}
"""


@dataclass(frozen=True)
class SamplePass(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "sample-pass"
    before: ClassVar[str] = "any"
    after: ClassVar[str] = "graph"

    count: int = 1
    ratio: float = 0.5
    on: bool = False
    label: str = "a"
    block_sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["x", "y"])

    action: ClassVar[Callable[[Any], None]] = staticmethod(lambda module: None)

    def run(self, module: Any) -> None:
        type(self).action(module)


@pytest.fixture(autouse=True)
def sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines know SamplePass, and forget it behind the test."""
    monkeypatch.setattr(registry, "_added", {})
    registry.register(SamplePass)


# ---- text


def test_ours_and_upstreams_mix() -> None:
    text = "builtin.module(sample-pass{count=3}, cse,func.func(canonicalize{max-iterations=2},cse))"
    nest = "func.func(canonicalize{max-iterations=2},cse)"
    ours, *theirs = parse_pipeline(text)
    assert ours == SamplePass(count=3)
    assert theirs == [Upstream("cse", "cse"), Upstream(nest, nest)]
    assert parse_pipeline(text[len("builtin.module(") : -1]) == [ours, *theirs]


@pytest.mark.parametrize("text", ["", " ", "builtin.module()"])
def test_empty_pipelines(text: str) -> None:
    assert parse_pipeline(text) == []


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("{}", {}),
        ("{count=-2 ratio=1e-3}", {"count": -2, "ratio": 1e-3}),
        ("{on}", {"on": True}),
        ("{on=false label='b c'}", {"on": False, "label": "b c"}),
        ("{block-sizes=1,2,3 count=4}", {"block_sizes": [1, 2, 3], "count": 4}),
        ("{block-sizes={1,2} names={}}", {"block_sizes": [1, 2], "names": []}),
        ('{names="p,q" label={r}}', {"names": ["p", "q"], "label": "r"}),
    ],
)
def test_options_have_their_types(text: str, options: dict[str, Any]) -> None:
    assert parse_pipeline(f"sample-pass{text}") == [SamplePass(**options)]


words = st.text("abc-_./:+09", min_size=1)


@given(
    count=st.integers(),
    ratio=st.floats(allow_nan=False),
    on=st.booleans(),
    label=st.text('ab c,={}"', max_size=5),
    block_sizes=st.lists(st.integers()),
    names=st.lists(words),
)
def test_a_pass_reads_its_own_text(**options: Any) -> None:
    sample = SamplePass(**options)
    assert parse_pipeline(f"cse,{sample.text()},cse")[1] == sample


@pytest.mark.parametrize("name", UPSTREAM)
def test_near_matches_are_passes(name: str) -> None:
    """What errors suggest exists."""
    assert parse_pipeline(name) == [Upstream(name, name)]


MISTAKES = [
    ("builtin.module(tile-grap)", 15, "unknown pass 'tile-grap'", "did you mean 'tile-graph'"),
    ("cse,canonicalise", 4, "unknown pass 'canonicalise'", "did you mean 'canonicalize'"),
    ("cse,func.func(cse,symbol-dec)", 18, "unknown pass 'symbol-dec'", "'symbol-dce'"),
    ("cse,qwertz", 4, "unknown pass 'qwertz'", "tileir-opt --help"),
    ("func.func(sample-pass)", 10, "cannot stand inside func.func", "write it beside"),
    ("cse,canonicalize{x=1}", 4, "no such option x", ""),
    ("sample-pass{cont=1}", 12, "no option 'cont'", "did you mean 'count'"),
    ("sample-pass{qwertz=1}", 12, "no option 'qwertz'", "options: count, ratio, on"),
    ("sample-pass{on count=a}", 15, "'count' is 'a'", "of type int"),
    ("sample-pass{count}", 12, "'count' has no value", "of type int"),
    ("sample-pass{label}", 12, "'label' has no value", "of type str"),
    ("sample-pass{on=yes}", 12, "'on' is 'yes'", "of type bool"),
    ("sample-pass{block-sizes=1,x}", 12, "'block-sizes' is '1,x'", "of type list[int]"),
    ("sample-pass{count=1 count=2}", 20, "given twice", "keep one"),
    ("cse,,cse", 4, "expected a name, not ','", ""),
    ("builtin.module(cse", 18, "expected ')', not the end", ""),
    ("cse cse", 4, "not 'c'", ""),
    ("cse{", 4, "not the end", ""),
    ("sample-pass{count=}", 18, "expected a value, not '}'", ""),
    ("cse)", 3, "not ')'", ""),
]


@pytest.mark.parametrize(("text", "column", "message", "hint"), MISTAKES)
def test_mistakes_are_shown_at_their_place(text: str, column: int, message: str, hint: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text)
    error = caught.value
    assert error.location == f"pipeline:1:{column + 1}"
    assert message in error.message
    shown, caret, *rest = error.hint.split("\n  ")
    assert shown == text
    assert caret == " " * column + "^"
    assert hint in " ".join(rest)


def test_long_pipelines_are_shown_around_the_mistake() -> None:
    before = "sample-pass,\n" + "canonicalize," * 20
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(f"{before}cze,{'cse,' * 30}cse")
    assert caught.value.location == "pipeline:2:261"
    shown, caret, *_ = caught.value.hint.split("\n  ")
    assert len(shown) <= grammar.SHOWN
    assert shown[caret.index("^") :].startswith("cze,")


def test_types_have_names() -> None:
    kinds = [type_text(kind) for kind, _ in SamplePass.options().values()]
    assert kinds == ["int", "float", "bool", "str", "list[int]", "list[str]"]


# ---- runs


def run(text: str, source: str = TWICE, **callbacks: Any) -> str:
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(source)
        run_pipeline(module, text, **callbacks)
        return str(module)


def test_a_run_of_upstreams_passes_is_one_pass_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def manager(anchor: str) -> Any:
        made.append(anchor)
        return passmanager.PassManager(anchor)

    monkeypatch.setattr(pipeline, "passmanager", SimpleNamespace(PassManager=manager))
    told: list[str] = []
    run("cse,canonicalize,sample-pass,func.func(cse),cse", on_pass=lambda n, s: told.append(n))
    assert made == ["builtin.module"] * 2
    assert told == ["cse", "canonicalize", "sample-pass", "func.func(cse)", "cse"]


def test_callers_see_the_module_after_each_pass() -> None:
    seen: dict[str, str] = {}
    seconds: list[float] = []

    def on_pass(name: str, took: float) -> None:
        seconds.append(took)

    def after(name: str, module: Any) -> None:
        seen[name] = str(module)

    source = TWICE.replace("func.func @f", "func.func private @gone()\n func.func @f")
    last = run("strip-debuginfo,symbol-dce", source, on_pass=on_pass, after_pass=after)
    assert "@gone" in seen["strip-debuginfo"]
    assert "@gone" not in seen["symbol-dce"]
    assert seen["symbol-dce"] == last
    assert all(took >= 0 for took in seconds)


@pytest.mark.parametrize("text", ["sample-pass", "cse,canonicalize"])
def test_a_callers_error_comes_through(text: str) -> None:
    def after(name: str, module: Any) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError, match=re.escape(text.split(",")[0])):
        run(text, after_pass=after)


def test_what_a_pass_refuses_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the error, run as printed, gives the same error."""
    with pytest.raises(ContractError) as caught:
        run("cse,tile-graph{tokens=2},cse", TWICE.replace('"graph"}', '"tile"}'))
    (line,) = [x for x in caught.value.hint.splitlines() if "reproduce: " in x]
    program, *arguments = shlex.split(line.partition("reproduce: ")[2])
    assert program == "tileir-opt"
    assert "tile-graph{tokens=2 " in arguments[-1]
    assert main(arguments) == 1
    assert f"error: {caught.value.message}" in capsys.readouterr().err


def test_what_upstream_refuses_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TileirError, match="gpu-module-to-binary failed") as caught:
        run("cse,gpu-module-to-binary", "gpu.module @m {\n}")
    _, *arguments = shlex.split(caught.value.hint.partition("reproduce: ")[2])
    assert main(arguments) == 1
    assert "the module has no target attributes" in capsys.readouterr().err


def _refuse(module: Any) -> None:
    raise TileirError("no", location="here", hint="try this")


def test_a_refusal_keeps_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamplePass, "action", staticmethod(_refuse))
    with pytest.raises(TileirError) as caught:
        run("sample-pass{count=7}")
    assert (caught.value.message, caught.value.location) == ("no", "here")
    assert caught.value.hint.startswith("try this\n  reproduce: tileir-opt ")
    assert "sample-pass{count=7 " in caught.value.hint


def _crash(module: Any) -> None:
    raise ZeroDivisionError


def _break_the_ir(module: Any) -> None:
    for op in walk(module, "graph.add"):
        op.operation.operands[0].set_type(ir.Type.parse("tensor<?x9xf32>"))


def _leave_the_level(module: Any) -> None:
    put(module, **{"tileir.level": "tile"})


def _use_another_dialect(module: Any) -> None:
    (function,) = walk(module, "func.func")
    with ir.InsertionPoint.at_block_begin(function.regions[0].blocks[0]):
        build("tile.state", (), [ir.Type.parse('tensor<1x2x3xf32, "state">')], sym_name="s")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (_crash, ZeroDivisionError),
        (_break_the_ir, AssertionError),
        (_leave_the_level, AssertionError),
        (_use_another_dialect, AssertionError),
    ],
)
def test_a_fault_of_the_compiler_can_be_repeated(
    action: Callable[[Any], None], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that crashes, or breaks what holds after it, is no user's mistake."""
    monkeypatch.setattr(SamplePass, "action", staticmethod(action))
    with pytest.raises(error) as caught:
        run("sample-pass")
    (note,) = caught.value.__notes__
    assert note.startswith("reproduce: tileir-opt ")


@pytest.mark.parametrize("level", ["tile", "engine"])
def test_passes_run_at_their_level(level: str) -> None:
    with pytest.raises(ContractError, match=f"at {level} level, not graph"):
        run("graph-fuse", TWICE.replace('"graph"}', f'"{level}"}}'))
