"""A lit format that imports tileir once per worker and forks for each test."""

import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from typing import Any

import lit.formats
import lit.Test
import lit.TestRunner


class ForkingFormat(lit.formats.ShTest):  # type: ignore[misc]
    """Runs `[not] tileir-opt ARGS [2>&1] [| filecheck ARGS]` in a forked child; other lines go to a shell."""

    def execute(self, test: Any, config: Any) -> Any:
        """lit's entry: the result of one test."""
        script = lit.TestRunner.parseIntegratedTestScript(test, require_script=True)
        if isinstance(script, lit.Test.Result):
            return script
        commands = [_parse(str(getattr(line, "command", line)), test) for line in script]
        if any(c is None for c in commands):
            return super().execute(test, config)
        for command in commands:
            status, log = _fork(command)
            if status:
                return lit.Test.FAIL, f"{command}: exit {status}\n{log}"
        return lit.Test.PASS, ""


def _parse(line: str, test: Any) -> tuple[bool, bool, list[str], list[str] | None] | None:
    """(negated, stderr too, tileir-opt's arguments, filecheck's arguments)."""
    line = re.sub(r"^%dbg\([^)]*\)\s*", "", line).replace("%s", test.getSourcePath())
    if re.search(r"%|&&|;(?![^']*')|>(?!&1)|<", re.sub(r"'[^']*'", "", line)):
        return None
    parts = [shlex.split(p) for p in line.split(" | ")]
    negated = parts[0][:1] == ["not"]
    arguments = parts[0][1:] if negated else parts[0]
    both = arguments[-1:] == ["2>&1"]
    arguments = arguments[:-1] if both else arguments
    if arguments[:1] != ["tileir-opt"] or len(parts) > 2:
        return None
    if len(parts) == 2 and parts[1][:1] != ["filecheck"]:
        return None
    return negated, both, arguments[1:], parts[1][1:] if len(parts) == 2 else None


def _fork(command: Any) -> tuple[int, str]:
    import tileir.tools.opt  # imported once, before the fork

    assert tileir.tools.opt
    with tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os._exit(_child(*command))
        _, status = os.waitpid(child, 0)
        log.seek(0)
        return os.waitstatus_to_exitcode(status), log.read()


def _child(negated: bool, both: bool, arguments: list[str], check: list[str] | None) -> int:
    from filecheck.matcher import Matcher
    from filecheck.options import parse_argv_options

    from tileir.tools.opt import main

    status = 99
    try:
        out = io.StringIO()
        real, sys.stdout = sys.stdout, out
        real_error = sys.stderr
        if both:
            sys.stderr = out
        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        sys.stdout, sys.stderr = real, real_error
        status = int(status == 0) if negated else status
        if status or check is None:
            print(out.getvalue())
        else:
            sys.stdin = io.StringIO(out.getvalue())
            status = Matcher.from_opts(parse_argv_options(["filecheck", *check])).run()
    except BaseException:
        traceback.print_exc()
        status = 98
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)
