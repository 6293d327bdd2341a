"""A lit format that imports tileir once per worker and forks for each test.

A RUN line is a pipe of commands. `tileir-opt` and `filecheck`, each perhaps after `not`, run in a forked child, which
costs milliseconds where a new process costs half a second; any other command is started as it is. What a pipe cannot
say (`&&`, `;`, files as input or output) goes to lit's own shell.
"""

import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import lit.formats
import lit.ShCommands
import lit.ShUtil
import lit.Test
import lit.TestRunner

STDERR_TO_STDOUT = [((">&", 2), "1")]
CRASHED = 98


@dataclass(frozen=True)
class Command:
    """One command of a pipe. negated: after `not`; joined: with `2>&1`."""

    words: list[str]
    negated: bool
    joined: bool


class ForkingFormat(lit.formats.ShTest):  # type: ignore[misc]
    """Runs `[not] tileir-opt ARGS [2>&1] | … | filecheck ARGS` in forked children; other lines go to a shell."""

    def execute(self, test: Any, config: Any) -> Any:
        """lit's entry: the result of one test."""
        script = lit.TestRunner.parseIntegratedTestScript(test, require_script=True)
        if isinstance(script, lit.Test.Result):
            return script
        folder, base = lit.TestRunner.getTempPaths(test)
        known = lit.TestRunner.getDefaultSubstitutions(test, folder, base)
        # The words tileir-opt and filecheck stay words here; for a shell they become paths.
        own = [s for s in known if s not in test.config.substitutions]
        lines = lit.TestRunner.applySubstitutions([_text(line) for line in script], own)
        pipes = [_pipe(line) for line in lines]
        if any(pipe is None for pipe in pipes):
            return super().execute(test, config)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for line, pipe in zip(lines, pipes, strict=True):
            status, log = _run(pipe or [], folder)
            if status:
                return lit.Test.FAIL, f"{line}\nexit {status}\n{log}"
        return lit.Test.PASS, ""


def _text(line: Any) -> str:
    return re.sub(r"^%dbg\([^)]*\)\s*", "", str(getattr(line, "command", line)))


def _pipe(line: str) -> list[Command] | None:
    """The commands of a line; None if it is more than a pipe."""
    try:
        parsed = lit.ShUtil.ShParser(line, pipefail=True).parse()
    except ValueError:
        return None
    if not isinstance(parsed, lit.ShCommands.Pipeline) or parsed.negate:
        return None
    found = []
    for command in parsed.commands:
        words = command.args
        if not all(isinstance(w, str) for w in words) or command.redirects not in (
            [],
            STDERR_TO_STDOUT,
        ):
            return None
        negated = words[0] == "not"
        found.append(Command(words[negated:], negated, bool(command.redirects)))
    # A shell's own words, such as cd, have no program to start.
    shell = any(c.words[0] in ("cd", "export", "env", "echo", "rm", "mkdir") for c in found)
    return None if shell else found


def _run(pipe: list[Command], folder: str) -> tuple[int, str]:
    """(the last status that is not 0, what was written beside the pipe); one command after the other."""
    status = 0
    with tempfile.TemporaryFile() as log:
        data: IO[bytes] = open(os.devnull, "rb")  # noqa: SIM115
        for command in pipe:
            out = tempfile.TemporaryFile()  # noqa: SIM115
            code = _start(command, data, out, out if command.joined else log, folder)
            # A crash is no error that `not` may wait for.
            failed = code == 0 if command.negated and 0 <= code < CRASHED else code != 0
            if failed:
                status = code or 1
            data.close()
            out.seek(0)
            data = out
        log.seek(0)
        text = log.read().decode(errors="replace") + data.read().decode(errors="replace")
        data.close()
    return status, text


def _start(
    command: Command, data: IO[bytes], out: IO[bytes], errors: IO[bytes], folder: str
) -> int:
    words = command.words
    if words[0] not in ("tileir-opt", "filecheck"):
        return subprocess.run(words, stdin=data, stdout=out, stderr=errors, check=False).returncode
    _warm_up()
    child = os.fork()
    if child == 0:
        for number, file in enumerate((data, out, errors)):
            os.dup2(file.fileno(), number)
        os._exit(_child(words, folder))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _warm_up() -> None:
    """Import what the children use, once, before the fork."""
    import filecheck.matcher
    import filecheck.options

    import tileir.tools.opt
    from tileir.passes.registry import NAMES, find_pass

    assert filecheck.matcher
    assert filecheck.options
    assert tileir.tools.opt
    for name in NAMES:
        find_pass(name)


def _child(words: list[str], folder: str) -> int:
    """The command's status, in the forked child."""
    from tileir.tools.opt import main

    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    tempfile.tempdir = folder
    try:
        check = words[0] == "filecheck"
        status = _check(words) if check else main(words[1:])
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        status = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


def _check(words: list[str]) -> int:
    from filecheck.matcher import Matcher
    from filecheck.options import parse_argv_options

    return int(Matcher.from_opts(parse_argv_options(words)).run())
