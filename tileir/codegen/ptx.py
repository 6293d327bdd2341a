"""engine → scf, arith, nvvm, llvm → PTX → ptxas.

PTX text travels in the package; ptxas runs at compile time to know registers, spills and shared memory.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tileir.codegen import layout, packing
from tileir.codegen.builder import both, eq, if_, set_max_registers, ult
from tileir.codegen.consumer import consumer
from tileir.codegen.kernel import Kernel
from tileir.codegen.loaders import state_loader, tape_loader
from tileir.codegen.plan import Plan, check_supported
from tileir.codegen.watchdog import watchdog
from tileir.errors import TileirError
from tileir.mlir import gpu, ir, passmanager
from tileir.target import Target

DECODE, PACK = "tileir_decode", "tileir_pack"
# convert-gpu-to-nvvm folds greedily and fails, without a word, on what does not settle in 10 rounds.
PIPELINE = (
    "builtin.module(convert-scf-to-cf,canonicalize{max-iterations=100},gpu.module(convert-gpu-to-nvvm,convert-nvvm-to-llvm,"
    "reconcile-unrealized-casts),canonicalize,cse,gpu-module-to-binary{format=isa})"
)


@dataclass(frozen=True)
class Assembled:
    """What ptxas says of a kernel: registers a thread, bytes of stack, spills and static shared memory."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    barriers: int


def kernel_module(plan: Plan) -> Any:
    """The upstream-dialect module of a device's two kernels. Needs a current context and location.

    Raises TileirError for what kernels are not generated for.
    """
    check_supported(plan)
    threads = plan.target.threads
    module = ir.Module.parse(_skeleton(plan.target, threads))
    functions = list(module.body.operations[0].regions[0].blocks[0].operations)
    for function, emit in zip(functions[1:], (_decode(plan), packing.pack_kernel), strict=True):
        block = function.regions[0].blocks[0]
        with ir.InsertionPoint.at_block_terminator(block):
            emit(list(block.arguments))
    assert module.operation.verify()
    return module


def to_ptx(module: Any) -> str:
    """PTX of a kernel module, which is lowered in place."""
    passmanager.PassManager.parse(PIPELINE).run(module.operation)
    (binary,) = [o for o in module.body if o.operation.name == "gpu.binary"]
    text = gpu.ObjectAttr(ir.ArrayAttr(binary.attributes["objects"])[0]).object.decode()
    return str(text).rstrip("\0")


def assemble(ptx: str, target: Target) -> tuple[bytes, dict[str, Assembled]]:
    """The cubin that ptxas makes of PTX, and its facts by kernel.

    Raises TileirError if there is no ptxas; PTX that it refuses is the compiler's fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [_ptxas(), "-v", f"-arch={target.chip}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ptxas: {done.stderr}"
        return cubin.read_bytes(), _facts(done.stderr)


def _skeleton(target: Target, threads: int) -> str:
    def signature(arguments: dict[str, str]) -> str:
        return ", ".join(f"%{name}: {kind}" for name, kind in arguments.items())

    # `reqntid` tells ptxas that blocks are one-dimensional; only so does it know tid.x >> 5, hence
    # role branches and waits, to be warp-uniform.
    return f"""module attributes {{gpu.container_module}} {{
gpu.module @kernels [#nvvm.target<O = 3, chip = "{target.chip}", features = "+ptx{target.ptx}">] {{
  llvm.mlir.global external @smem() {{addr_space = 3 : i32, alignment = 128 : i64}} : !llvm.array<0 x i8>
  gpu.func @{DECODE}({signature(layout.ARGUMENTS)}) kernel
    attributes {{nvvm.reqntid = array<i32: {threads}, 1, 1>, nvvm.minctasm = 1 : i32}} {{
    gpu.return
  }}
  gpu.func @{PACK}({signature(packing.ARGUMENTS)}) kernel
    attributes {{nvvm.reqntid = array<i32: {packing.THREADS}, 1, 1>}} {{
    gpu.return
  }}
}} }}"""


def _decode(plan: Plan) -> Any:
    def emit(arguments: list[Any]) -> None:
        k = Kernel(plan, arguments)
        k.initialise()

        def consumers() -> None:
            set_max_registers(plan.target.registers, increase=True)
            consumer(k)

        def loaders() -> None:
            set_max_registers(plan.target.loader_registers, increase=False)
            for warp, role in enumerate((tape_loader, state_loader, watchdog), start=plan.warps):
                if role is state_loader and "state" not in plan.rings:
                    continue
                mine = both(eq(k.warp, warp), eq(k.lane, 0))
                if_(mine, partial(role, k))

        if_(ult(k.warp, plan.warps), consumers, loaders)

    return emit


def _ptxas() -> str:
    for folder in map(Path, sys.path):
        for found in sorted(folder.glob("nvidia/*/bin/ptxas")):
            return str(found)
    found_on_path = shutil.which("ptxas")
    if found_on_path is None:
        raise TileirError("ptxas not found", hint="pip install nvidia-cuda-nvcc==13.0.88")
    return found_on_path


def _facts(log: str) -> dict[str, Assembled]:
    facts = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.split("'", 1)[0]

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match.group(1)) if match else 0

        spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        stack = number(r"(\d+) bytes stack frame")
        facts[name] = Assembled(
            number(r"Used (\d+) registers"), stack, spills, number(r"used (\d+) barriers")
        )
    return facts
