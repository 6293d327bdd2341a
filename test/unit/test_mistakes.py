"""Mistakes on the command line: options, prompts, folders."""

from pathlib import Path

import tileir
from test.mistakes import Act, Mistake, each_mistake, package, program, tensors
from test.unit.test_text import BYTES

COMPILE = ["tileir", "compile", "model"]
VIRTUAL = [*COMPILE, "--target", "virtual"]
RUN = ["tileir", "run", "m.tileir", "--device", "reference", "--weights", "model"]


def says(*arguments: str) -> Act:
    return list(arguments)


def compiles(**options: object) -> Act:
    held = program()
    return lambda: tileir.compile(held, **{"target": "virtual"} | options)


def generates(ids: object, new: int = 4) -> Act:
    session = package().load(tensors(), "reference")
    return lambda: session.generate(ids, new)


def without(folder: Path, *names: str) -> Act:
    """`tileir run` after files of the model are gone."""
    for name in names:
        (folder / "model" / name).unlink()
    return [*RUN, "--prompt", "ab"]


def rewritten(folder: Path, name: str, text: str, *arguments: str) -> Act:
    """A command after a file of the model has other text."""
    (folder / "model" / name).write_text(text)
    return list(arguments)


USAGE = [
    Mistake("unknown command", lambda f: says("tileir", "compil"), ("'compil'", "Did you mean 'compile'"), 2),
    Mistake("unknown option", lambda f: says(*COMPILE, "--targt", "h100"), ("--targt", "did you mean --target?"), 2),
    Mistake("no model", lambda f: says("tileir", "compile"), ("Missing argument", "tileir compile --help"), 2),
    Mistake("one argument too many", lambda f: says("tileir", "inspect", "m.tileir", "b"),
            ("extra argument", "(b)"), 2),
    Mistake("no prompt", lambda f: says(*RUN), ("--prompt", "--chat"), 2),
    Mistake("no weights", lambda f: says("tileir", "run", "m.tileir", "--prompt", "a"), ("--weights",), 2),
    Mistake("negative context", lambda f: says(*COMPILE, "--max-context", "-1"), ("--max-context", "1"), 2),
    Mistake("context that is no number", lambda f: says(*COMPILE, "--max-context", "2k"),
            ("--max-context", "integer"), 2),
    Mistake("no tokens", lambda f: says(*COMPILE, "--tokens", "0"), ("--tokens", "1"), 2),
    Mistake("negative new tokens", lambda f: says(*RUN, "--prompt", "a", "--max-new-tokens", "-3"),
            ("--max-new-tokens",), 2),
    Mistake("negative page", lambda f: says(*COMPILE, "--page", "-1"), ("--page", "0"), 2),
    Mistake("two forms", lambda f: says("tileir", "inspect", "m.tileir", "--json", "--manifest"),
            ("--json", "--manifest"), 2),
]  # fmt: skip

OPTIONS = [
    Mistake("target", lambda f: says(*COMPILE, "--target", "h10"),
            ("'h10'", "did you mean 'h100'?", "h200, virtual")),
    Mistake("stop", lambda f: says(*COMPILE, "--emit", "px"),
            ("stop 'px'", "did you mean 'ptx'?", "graph, tile, engine")),
    Mistake("pass", lambda f: says(*COMPILE, "--print-ir-after", "tile-grap"),
            ("'tile-grap'", "did you mean 'tile-graph'?")),
    Mistake("placement", lambda f: says(*VIRTUAL, "--devices", "2", "--placement", "tensor-paralel"),
            ("'tensor-paralel'", "2 GPUs", "candidates", "tensor-parallel")),
    Mistake("sequences without pages", lambda f: says(*VIRTUAL, "--sequences", "2"),
            ("2 sequences", "page=64")),
    Mistake("more than kernels do", lambda f: says(*COMPILE, "--tokens", "4"), ("4 tokens", "reference device")),
    Mistake("a context that is not held", lambda f: says("tileir", "inspect", "m.tileir", "--context", "33"),
            ("33 positions", "0 … 32", "max_context")),
    Mistake("unknown option of the API", lambda f: compiles(tokns=2),
            ("'tokns'", "did you mean 'tokens'?", "sequences")),
    Mistake("no tokens of the API", lambda f: compiles(tokens=0), ("'tokens' is 0", "1 or more")),
    Mistake("tokens that are no number", lambda f: compiles(tokens="two"), ("'tokens' is 'two'", "whole number")),
    Mistake("no sequences of the API", lambda f: compiles(sequences=0), ("'sequences' is 0", "1 or more")),
    Mistake("negative page of the API", lambda f: compiles(page=-1), ("'page' is -1", "0 or more")),
    Mistake("negative pages of the API", lambda f: compiles(page=16, pages=-1), ("'pages' is -1", "0 or more")),
    Mistake("no GPUs of the API", lambda f: compiles(devices=0), ("'devices' is 0", "1 or more")),
    Mistake("unknown target of the API", lambda f: compiles(target="h20"), ("'h20'", "did you mean 'h200'?")),
    Mistake("a pass behind none of ours", lambda f: compiles(insert={"tile-grap": "cse"}),
            ("'tile-grap'", "tile-graph")),
    Mistake("an unknown pass behind one", lambda f: compiles(insert={"tile-graph": "csee"}),
            ("'csee'", "did you mean 'cse'?")),
]  # fmt: skip

PROMPTS = [
    Mistake("empty prompt", lambda f: says(*RUN, "--prompt", ""), ("prompt is empty", "at least one token")),
    Mistake("long prompt", lambda f: says(*RUN, "--prompt", "a" * 40), ("40 tokens", "context of 32", "max_context")),
    Mistake("no room for the answer", lambda f: says(*RUN, "--prompt", "a" * 30, "--max-new-tokens", "9"),
            ("30 tokens and 9 new", "context of 32")),
    Mistake("another model's tokenizer", lambda f: says(*RUN, "--prompt", "\x00", "--max-new-tokens", "2"),
            (f"token id {BYTES.encode(chr(0)).ids[0]}", "0 … 127", "the model that was compiled")),
    Mistake("empty ids", lambda f: generates([]), ("prompt is empty", "token id")),
    Mistake("long ids", lambda f: generates([1] * 33, 0), ("33 tokens", "context of 32", "max_context")),
    Mistake("id past the vocabulary", lambda f: generates([1, 128]), ("token id 128", "0 … 127", "tokenizer")),
    Mistake("negative id", lambda f: generates([-1]), ("token id -1", "0 … 127")),
    Mistake("text instead of ids", lambda f: generates("hello"), ("'hello'", "tokenizer.encode")),
    Mistake("half an id", lambda f: generates([1.5]), ("[1.5]", "whole numbers")),
    Mistake("negative new tokens of the API", lambda f: generates([1], -2), ("max_new_tokens is -2", "0 or more")),
]  # fmt: skip

FOLDERS = [
    Mistake("no folder", lambda f: says("tileir", "compile", "gone"), ("gone", "config.json", "save_pretrained")),
    Mistake("no config", lambda f: says("tileir", "compile", "."), ("config.json", "save_pretrained")),
    Mistake("config that is no JSON", lambda f: rewritten(f, "config.json", "{", *COMPILE),
            ("config.json", "JSON", "tileir models")),
    Mistake("unknown architecture", lambda f: rewritten(f, "config.json", '{"model_type": "zzz"}', *COMPILE),
            ("`zzz`", "model", "tileir models")),
    Mistake("no tokenizer", lambda f: without(f, "tokenizer.json"),
            ("model", "tokenizer.json", "beside the weights")),
    Mistake("damaged tokenizer", lambda f: rewritten(f, "tokenizer.json", "{}", *RUN, "--prompt", "a"),
            ("tokenizer.json", "copy it again")),
    Mistake("damaged config", lambda f: rewritten(f, "config.json", "[", *RUN, "--prompt", "a"),
            ("config.json", "JSON", "copy it again")),
    Mistake("no chat template", lambda f: says(*RUN, "--chat", "--prompt", "a"),
            ("model", "chat template", "without --chat")),
]  # fmt: skip


test_mistake = each_mistake([*USAGE, *OPTIONS, *PROMPTS, *FOLDERS])
