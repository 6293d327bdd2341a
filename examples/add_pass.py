# %% [markdown]
"""Passes of your own, without touching tileir: write, run by `tileir-opt`, check, compile with, measure.

    python examples/add_pass.py

The passes are in my_passes.py, beside this file: `count-bytes` writes down how many bytes of weights each stage
streams, `set-window` says how many copies of a ring may be on their way.
"""

# %%
import difflib
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tileir
from tileir.compiler import stop_at
from tileir.frontends.torch_export import export_decode
from tileir.passes.registry import find_pass, load_passes

# %% Loading the file registers its passes: from here on every pipeline of this process knows them. (Importing it does
# the same; `load_passes` needs no place on the path.) The docstring's first line is a pass's help, fields its options.
FILE = Path(__file__).with_name("my_passes.py")
for name in load_passes(FILE):
    print(f"{name:14} {(find_pass(name).__doc__ or '').splitlines()[0]}")
    print(f"{'':14} options: {', '.join(find_pass(name).options())}")

# %% A model to try them on: a Llama of two small layers.
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config).eval().requires_grad_(False)
program = export_decode(model, max_context=64)

# %% The IR on which a pass works: `stop_at` stops at a level, here with all that tile level decides.
scratch = tempfile.TemporaryDirectory()
before = Path(scratch.name) / "before.mlir"
before.write_text(stop_at(program, "tile", set(), target="virtual"))


# %% One pass on its own, as a compiler engineer runs it; this is the `tileir-opt` command, without its installed name.
def tileir_opt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command printed, and its status."""
    print("tileir-opt", shlex.join(arguments))
    command = [sys.executable, "-m", "tileir.tools.opt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


done = tileir_opt(str(before), f"--load-pass={FILE}", "--count-bytes")
assert done.returncode == 0, done.stderr

# Before and after: the lines that differ.
same = tileir_opt(str(before)).stdout.splitlines()
changed = [line for line in difflib.unified_diff(same, done.stdout.splitlines(), n=0, lineterm="")]
print("\n".join(line[:110] for line in changed[:9]))
assert sum(line.startswith("+") and "tape_bytes" in line for line in changed) == 10

# %% The check that belongs to the pass, in FileCheck's words: what lit runs for tileir's own (test/passes).
CHECKS = """
// CHECK: module attributes {example.tape_bytes = [[#TOTAL:]] : i64
// One layer's queries, keys and values: (64 + 32 + 32) rows of 64 values of bf16.
// CHECK: "tile.contract"
// CHECK: tape_bytes = 16384 : i64
// The head: 128 rows.
// CHECK: tile.candidate
// CHECK: tape_bytes = 16384 : i64
"""
checks = Path(scratch.name) / "count-bytes.mlir"
checks.write_text(CHECKS)
command = [sys.executable, "-m", "filecheck", str(checks)]
subprocess.run(command, input=done.stdout, text=True, check=True)

# %% A refusal is a TileirError. It says where, keeps the module as it was, and gives the command that repeats it.
refused = tileir_opt(str(before), f"--load-pass={FILE}", "--count-bytes=limit=20000")
print(refused.stderr)
assert refused.returncode == 1
assert "a contract streams 40960 bytes" in refused.stderr
assert f"--load-pass={FILE}" in refused.stderr

# %% In the pipeline: `insert` says behind which pass. Contracts of levels are checked around your pass as around ours.
counted = stop_at(
    program,
    "engine",
    {"count-bytes"},
    target="virtual",
    insert={"schedule-pipeline": "count-bytes"},
)
total = int(counted.partition("example.tape_bytes = ")[2].split()[0])

# %% A compiled model with a narrow window. It comes behind allocate-memory, which makes the rings, and in front of
# verify-schedule: the proof that nothing hangs or races is about the changed schedule.
usual = tileir.compile(program, target="virtual")
narrow = tileir.compile(
    program, target="virtual", insert={"allocate-memory": "set-window{slots=1}"}
)
for package in (usual, narrow):
    print(
        re.findall(
            r"engine.ring.* (slots = \d+).*sym_name = (.*), (window = \d+)", package.engine_text
        )
    )
assert "window = 3" in usual.engine_text
assert usual.engine_text != narrow.engine_text
assert usual.manifest["memory"] == narrow.manifest["memory"]

# What was counted in the tile module is what the package says its tape has.
assert total == usual.manifest["memory"]["tape"], (total, usual.manifest["memory"])

# %% The results stay the same, to the bit, and so do the tokens.
weights = {name: value.numpy() for name, value in model.state_dict().items()}
ids = [1, 17, 42, 7]
sessions = [package.load(weights, device="reference") for package in (usual, narrow)]
expected, found = (session.logits(ids) for session in sessions)
assert (expected == found).all()
tokens, others = (list(session.generate(ids, max_new_tokens=8)) for session in sessions)
assert tokens == others
print("tokens with either window:", tokens)

# %% IR that an operation refuses is the mistake of the pass: an assertion that names it, with the command that repeats
# it as a note. What verifies and could still hang or race is for verify-schedule to refuse.
mistake = ""
try:
    tileir.compile(program, target="virtual", insert={"allocate-memory": "set-window{slots=99}"})
except AssertionError as error:
    mistake = "\n".join([str(error), *error.__notes__])
print(mistake)
assert "set-window made invalid IR" in mistake
assert "window of 99 outside 1 … 12" in mistake
assert f"--load-pass={FILE}" in mistake
scratch.cleanup()
