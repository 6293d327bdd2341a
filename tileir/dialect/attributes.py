"""Attributes as Python values, and operations built from them.

One mapping, used by every dialect, pass and executor: bool ↔ i1, int ↔ i64, float ↔ f64, str ↔ string,
list of int ↔ array<i64>, list of str or of list ↔ array, dict ↔ dictionary, NumPy f32 array ↔ dense elements.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tileir.mlir import ir


def to_attribute(value: Any) -> Any:
    """The attribute that stands for a Python value. Needs a current context."""
    if isinstance(value, ir.Attribute):
        return value
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    if isinstance(value, str):
        return ir.StringAttr.get(value)
    if isinstance(value, np.ndarray):
        return ir.DenseElementsAttr.get(np.ascontiguousarray(value, np.float32))
    if isinstance(value, dict):
        return ir.DictAttr.get({k: to_attribute(v) for k, v in value.items()})
    assert isinstance(value, list | tuple), f"no attribute for {value!r}"
    if value and all(isinstance(v, int) for v in value):
        return ir.DenseI64ArrayAttr.get(list(value))
    return ir.ArrayAttr.get([to_attribute(v) for v in value])


def from_attribute(attribute: Any) -> Any:
    """The Python value that an attribute stands for; the attribute itself if none."""
    for kind in (ir.BoolAttr, ir.IntegerAttr, ir.FloatAttr, ir.StringAttr):
        if isinstance(attribute, kind):
            return attribute.value
    if isinstance(attribute, ir.DenseI64ArrayAttr):
        return list(attribute)
    if isinstance(attribute, ir.ArrayAttr):
        return [from_attribute(a) for a in attribute]
    if isinstance(attribute, ir.DenseFPElementsAttr):
        return np.array(attribute)
    if isinstance(attribute, ir.DictAttr):
        return {attribute[i].name: from_attribute(attribute[i].attr) for i in range(len(attribute))}
    return attribute


def get(op: Any, name: str, default: Any = None) -> Any:
    """The Python value of an operation's attribute, or `default` if it has none."""
    attributes = op.operation.attributes
    return from_attribute(attributes[name]) if name in attributes else default


def put(op: Any, **values: Any) -> None:
    """Set attributes: bool as i1, int as i64, float as f64, str, lists of int as array<i64>, other lists, dicts."""
    for name, value in values.items():
        op.operation.attributes[name] = to_attribute(value)


def all_of(op: Any) -> dict[str, Any]:
    """Every attribute of an operation, by name, as Python values."""
    attributes = op.operation.attributes
    return {attributes[i].name: from_attribute(attributes[i].attr) for i in range(len(attributes))}


def build(
    name: str,
    operands: Sequence[Any] = (),
    results: Sequence[Any] = (),
    regions: int = 0,
    **values: Any,
) -> Any:
    """Create the operation `name` at the current insertion point and location.

    operands: SSA values. results: types. regions: how many empty regions. values: attributes.
    """
    return ir.Operation.create(
        name,
        results=list(results),
        operands=list(operands),
        attributes={k: to_attribute(v) for k, v in values.items()},
        regions=regions,
    )


def tensor(shape: Sequence[int | None], element: str, place: str | None = None) -> Any:
    """`tensor<shape x element, "place">`; None is a dynamic dimension."""
    dynamic = ir.ShapedType.get_dynamic_size()
    sizes = [dynamic if s is None else s for s in shape]
    encoding = None if place is None else ir.StringAttr.get(place)
    return ir.RankedTensorType.get(sizes, ir.Type.parse(element), encoding)


def place_of(value: Any) -> str:
    """Where a tensor lives: "channel", "buffer", "state", "weight", or "" if it has no encoding."""
    kind = ir.RankedTensorType(value.type)
    return "" if kind.encoding is None else ir.StringAttr(kind.encoding).value


def shape_of(value: Any) -> list[int | None]:
    """The shape of a tensor value, None where dynamic."""
    kind = ir.RankedTensorType(value.type)
    return [None if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]


def static_shape(value: Any) -> list[int]:
    """The shape of a tensor value that has no dynamic dimension."""
    shape = [size for size in shape_of(value) if size is not None]
    assert len(shape) == len(shape_of(value)), f"{value} has a dynamic dimension"
    return shape


def element_of(value: Any) -> str:
    """The element type of a tensor value, as text."""
    return str(ir.RankedTensorType(value.type).element_type)


def walk(op: Any, *names: str) -> Iterator[Any]:
    """Every operation nested in `op` (itself included) in order; only those called `names`, if any are given."""
    found: list[Any] = []

    def visit(inner: Any) -> Any:
        if not names or inner.name in names:
            found.append(inner)
        return ir.WalkResult.ADVANCE

    op.operation.walk(visit, ir.WalkOrder.PRE_ORDER)
    return iter(found)


def name_of(op: Any) -> str:
    """The operation's full name, such as "tile.contract"."""
    return str(op.operation.name)


def located(op: Any) -> str:
    """Where an operation comes from, as file:line:col or its name."""
    text = str(op.operation.location).removeprefix("loc(").removesuffix(")")
    return "" if text == "unknown" else text.replace('"', "")


def fail(op: Any, message: str) -> bool:
    """Report a verifier's error at `op`; returns False, what a verifier then returns."""
    op.operation.location.emit_error(f"'{name_of(op)}' op {message}")
    return False


def divides(part: int | None, whole: int | None) -> bool:
    """Whether `part` is a positive divisor of `whole`; a size that is not known is none."""
    return part is not None and whole is not None and part > 0 and whole % part == 0


def all_positive(op: Any, *names: str) -> bool:
    """Report the first of these attributes that is there and below 1; True if there is none."""
    found = ((name, get(op, name)) for name in names)
    return first_failure(op, [(n is None or n >= 1, f"{name} = {n}") for name, n in found])


def first_failure(op: Any, checks: Iterable[tuple[bool, str]]) -> bool:
    """Report the first check that does not hold; True if all hold."""
    for holds, message in checks:
        if not holds:
            return fail(op, message)
    return True
