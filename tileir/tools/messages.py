"""Errors of the command line as text: `error:`, then `hint:`, on stderr."""

import sys

import typer

from tileir.errors import TileirError

MISTAKE, USAGE = 1, 2


def usage(message: str) -> typer.BadParameter:
    """A command line that makes no sense, to be raised."""
    return typer.BadParameter(message)


def report(error: Exception) -> int:
    """Print an error of the user's; the exit status."""
    if isinstance(error, TileirError):
        place = f"{error.location}: " if error.location else ""
        _print(place + error.message, error.hint)
        return MISTAKE
    if isinstance(error, typer.TyperException):
        message = error.format_message().partition(" (Possible options: ")[0]
        near = [f"did you mean {name}? " for name in getattr(error, "possibilities", None) or ()]
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tileir"
        _print(
            message.replace("Invalid value: ", ""),
            f"{''.join(near[:1])}{path} --help lists what there is",
        )
        return USAGE
    _print("no answer: the input has ended", "")
    return MISTAKE


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """What `warnings` calls to show a warning: one line, without the place in our code."""
    print(f"warning: {message}", file=sys.stderr)


def _print(message: str, hint: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
