"""Text in, text out: one prompt, or a conversation turn by turn."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tileir.errors import TileirError
from tileir.package import Package, Session
from tileir.prompt import check_prompt
from tileir.tools.messages import report
from tileir.tools.text import Streamer, load_tokenizer

Turn = dict[str, str]
ASK = "> "
HELP = "A line is a turn; /forget starts anew, /quit or Ctrl-D ends, Ctrl-C interrupts."


class Talker:
    """A package, a folder's tokenizer and, with `chat`, its chat template and the turns so far.

    weights: where they are, if not in the folder.

    Raises TileirError for a folder without tokenizer or template.
    """

    def __init__(
        self,
        package: Package,
        folder: Path,
        max_new_tokens: int,
        *,
        weights: Path | None = None,
        chat: bool = False,
    ) -> None:
        self._package, self._most = package, max_new_tokens
        self._weights = weights or folder
        self._tokenizer, self._stops = load_tokenizer(folder), stop_ids(folder)
        self._render = _template(folder) if chat else None
        self._turns: list[Turn] = []
        self._session: Session | None = None

    def check(self, prompt: str) -> None:
        """Raises TileirError for a prompt that no session of this package takes."""
        m = self._package.manifest
        check_prompt(self._ids(self._asked(prompt)), self._most, m["vocabulary"], m["context"])

    @contextmanager
    def on(self, device: str, *, quiet: bool = False) -> Iterator[None]:
        """Load the weights onto a device for what is said inside."""
        with _bar(quiet=quiet) as progress:
            session = self._package.load(self._weights, device=device, progress=progress)
        with closing(session):
            self._session = session
            yield
        self._session = None

    def say(self, prompt: str) -> None:
        """Print the answer to a prompt, and remember both."""
        assert self._session is not None
        asked = self._asked(prompt)
        ids = self._ids(asked)
        streamer, parts = Streamer(self._tokenizer), []
        # Closed first, also on Ctrl-C: a kernel that still runs must end before its memory is given back.
        made = self._session.generate(ids, self._room(ids), stop_ids=self._stops)
        with closing(made) as tokens:
            for token in tokens:
                parts.append(streamer.push(token))
                print(parts[-1], end="", flush=True)
        parts.append(streamer.rest())
        print(parts[-1])
        self._turns = [*asked, {"role": "assistant", "content": "".join(parts)}]

    def talk(self, *, quiet: bool = False) -> None:
        """Read turns from stdin and answer them, until its end."""
        with suppress(ImportError):
            import readline  # noqa: F401  lets the line be edited
        if not quiet:
            print(HELP, file=sys.stderr)
        while (line := _ask()) is not None:
            if line == "/quit":
                return
            if line == "/forget":
                self._turns = []
            elif line:
                try:
                    self.say(line)
                except TileirError as error:  # the turn is lost, the conversation is not
                    report(error)

    def _asked(self, prompt: str) -> list[Turn]:
        return [*self._turns, {"role": "user", "content": prompt}]

    def _ids(self, turns: list[Turn]) -> list[int]:
        """What the model reads. A template writes special tokens itself."""
        if self._render is None:
            return list(self._tokenizer.encode(turns[-1]["content"]).ids)
        return list(self._tokenizer.encode(self._render(turns), add_special_tokens=False).ids)

    def _room(self, ids: list[int]) -> int:
        """New tokens: as many as asked for; in a conversation, as many of them as still fit."""
        room = self._package.manifest["context"] - len(ids) + 1
        return min(self._most, max(room, 1)) if self._turns else self._most


def stop_ids(folder: Path) -> list[int]:
    """End-of-sequence ids of the folder's configs. Raises TileirError for one that is not JSON."""
    found: Any = None
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if found is None and path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise TileirError(
                    f"{path} is no JSON object: {error}", hint="copy it again"
                ) from None
    return [found] if isinstance(found, int) else list(found or ())


def _template(folder: Path) -> Callable[[list[Turn]], str]:
    from tileir.frontends.torch_export.chat import load_chat

    return load_chat(folder)


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr while weights are read, if that is a terminal."""
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, all_: bar.update(task, completed=done, total=all_)


def _ask() -> str | None:
    """A line without spaces around it; None at the end of the input."""
    if sys.stdin.isatty():
        try:
            return input(ASK).strip()
        except EOFError:
            print()
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None
