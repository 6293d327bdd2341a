"""What each level may hold."""

import pytest

from tileir.dialect.contracts import check
from tileir.errors import ContractError
from tileir.mlir import ir, new_context

STATE = '"{level}.state"() {{sym_name = "s"}} : () -> tensor<1x2x3xf32{place}>'


def checked(level: str, inside: str, argument: str = "tensor<?xi32>", wanted: str = "any") -> None:
    """Check a function, or at engine level a device, that holds this."""
    body = f"func.func @f(%t: {argument}) {{ {inside}\n return }}"
    if level == "engine":
        facts = [
            "index",
            "devices",
            "sms",
            "consumer_warps",
            "tokens",
            "sequences",
            "page",
            "context",
            "vocabulary",
        ]
        numbers = ", ".join(f"{name} = 1 : i64" for name in facts)
        body = f'"engine.device"() ({{ {inside} }}) {{{numbers}}} : () -> ()'
    with new_context(), ir.Location.unknown():
        text = f'module attributes {{tileir.level = "{level}"}} {{ {body} }}'
        check(ir.Module.parse(text), wanted)


@pytest.mark.parametrize(
    ("level", "place"), [("graph", ""), ("tile", ', "state"'), ("engine", ', "state"')]
)
def test_what_belongs(level: str, place: str) -> None:
    for wanted in (level, "any"):
        checked(level, STATE.format(level=level, place=place), wanted=wanted)


@pytest.mark.parametrize("level", ["", "mesh"])
def test_modules_say_their_level(level: str) -> None:
    with pytest.raises(ContractError, match="the module's level is") as caught:
        checked(level, "")
    assert "graph, tile, engine" in caught.value.hint


def test_modules_have_the_level_that_is_asked_for() -> None:
    with pytest.raises(ContractError, match="at graph level, not tile"):
        checked("graph", "", wanted="tile")


@pytest.mark.parametrize(
    ("level", "inside", "name"),
    [
        ("graph", STATE.format(level="tile", place=', "state"'), "tile.state"),
        ("tile", STATE.format(level="graph", place=""), "graph.state"),
        ("engine", STATE.format(level="tile", place=', "state"'), "tile.state"),
        ("graph", "%c = arith.constant 1 : i32", "arith.constant"),
    ],
)
def test_operations_of_another_level(level: str, inside: str, name: str) -> None:
    with pytest.raises(ContractError, match=f"{name} does not belong to {level} level") as caught:
        checked(level, f'\n{inside} loc("model.py":3:4)')
    assert caught.value.location == "model.py:3:4"
    assert f"{level}.*" in caught.value.hint


@pytest.mark.parametrize(
    ("level", "place", "allowed"),
    [("graph", ', "state"', "no place"), ("engine", ', "weight"', '"channel" or "buffer"')],
)
def test_tensors_in_a_place_of_another_level(level: str, place: str, allowed: str) -> None:
    with pytest.raises(ContractError, match=f"{level}.state makes a value of type") as caught:
        checked(level, STATE.format(level=level, place=place))
    assert allowed in caught.value.message


def test_at_tile_level_only_tokens_have_no_place() -> None:
    checked("tile", "", argument="tensor<?xi32>")
    with pytest.raises(ContractError, match="makes a value of type tensor<1x8xbf16>"):
        checked("tile", "", argument="tensor<1x8xbf16>")
