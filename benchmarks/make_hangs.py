"""Packages for benchmarks.hangs, compiled where there is no GPU: one that is correct, and those that hang."""

import json
from pathlib import Path
from typing import Any

import tileir
from benchmarks.device_check import CORRECT
from benchmarks.make_packages import tiny, write_case
from benchmarks.shapes import config_of
from test.gpu.hang_defects import DEFECTS, Defect
from tileir.compiler import package_of
from tileir.frontends.torch_export import export_decode, fake_hf
from tileir.mlir import ir, new_context
from tileir.package import Package
from tileir.target import find_target

CONTEXT = 128
# Of SmolLM2-135M's shape, whose steps are long: how soon all blocks end. Weights are random.
LONG = ("epoch off by one", "no release")


def make(folder: Path, target: str) -> None:
    """Write the packages, correct.npz, and cases.json: what each report has to say, and how it is launched."""
    folder.mkdir(parents=True, exist_ok=True)
    write_case(folder, CORRECT, tiny(), target)
    text = tileir.compile(export_decode(tiny(), CONTEXT), target=target).engine_text
    cases: dict[str, Any] = {}
    for name, defect in DEFECTS.items():
        broken(text, defect, target).save(folder / f"{_file(name)}.tileir")
        cases[_file(name)] = {"says": defect.says, "launch": defect.launch, "long": False}
    program = export_decode(fake_hf(config_of("smollm2-135m")), 2048)
    text = tileir.compile(program, target=target).engine_text
    for name in LONG:
        broken(text, DEFECTS[name], target).save(folder / f"long-{_file(name)}.tileir")
        cases[f"long-{_file(name)}"] = {"says": [], "launch": {}, "long": True}
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))
    print("\n".join(cases))


def broken(text: str, defect: Defect, target: str) -> Package:
    """The package of an engine module with a defect; verify-schedule does not see it."""
    edited = defect.edit(text)
    with defect.patch(), new_context() as context, ir.Location.unknown():
        return package_of(ir.Module.parse(edited, context), find_target(target))


def _file(name: str) -> str:
    return name.replace(" ", "-")
