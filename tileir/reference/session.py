"""The reference device: a session on a machine without a GPU."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from tileir.mlir import ir, new_context
from tileir.prompt import check_prompt
from tileir.reference.engine import EngineExecutor
from tileir.reference.steps import MODEL, Request
from tileir.stages import Heard


class ReferenceSession:
    """A loaded package, executed in NumPy.

    engine_text, recipes: a package's `engine_text` and `packing`. weights: arrays by state-dict name. rounding: values
    become bf16 where the kernel's do; without it all arithmetic is fp32. seed: the order in which ready roles run; the
    result does not depend on it.
    """

    def __init__(
        self,
        engine_text: str,
        recipes: Sequence[dict[str, Any]],
        weights: Mapping[str, Any],
        *,
        rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self._context = new_context()
        with self._context, ir.Location.unknown():
            self._module = ir.Module.parse(engine_text)
            self._engine = EngineExecutor(
                self._module, recipes, weights, rounding=rounding, seed=seed
            )
        self.device = "reference-bf16" if rounding else "reference"

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()
    ) -> Generator[int]:
        """Yield up to `max_new_tokens` greedy tokens after the prompt; a stop id ends them and is yielded.

        Raises TileirError for a prompt that is empty, too long, or has ids out of range.
        """
        ids = self._checked(ids, max_new_tokens)
        self._engine.reset()
        return self._tokens(
            Request(ids, max_new_tokens, frozenset(stop_ids), drafts=self._drafts())
        )

    def generate_batch(self, requests: Sequence[Request]) -> list[list[int]]:
        """The tokens that follow each prompt, all requests sharing steps as the package allows.

        Raises TileirError for a prompt as generate does, and for steps with fewer tokens than sequences.
        """
        for request in requests:
            self._checked(request.ids, request.new)
        self._engine.reset()
        *_, made = [[[] for _ in requests], *self._engine.run(requests)]
        return [list(tokens) for tokens in made]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of the ids, [len(ids), vocabulary] f32, the ids being forced."""
        ids = self._checked(ids, 0)
        self._engine.reset()
        out = np.zeros((len(ids), self._engine.vocabulary), np.float32)
        for _ in self._engine.run([Request(ids, 0)], [out]):
            pass
        return out

    def batch_logits(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Of each request the logits of its accepted rows, [rows, vocabulary] f32; steps as in generate_batch."""
        for request in requests:
            self._checked(request.ids, request.new)
        self._engine.reset()
        shape = self._engine.context, self._engine.vocabulary
        found = [np.full(shape, np.nan, np.float32) for _ in requests]
        for _ in self._engine.run(requests, found):
            pass
        return [rows[~np.isnan(rows).any(1)] for rows in found]

    def schedule(self, seed: int, strategy: str) -> None:
        """The order of the next calls: one of Scheduler.STRATEGIES, by a seed."""
        self._engine.seed, self._engine.strategy = seed, strategy

    def trace(self, heard: Callable[[int, str, int], None]) -> None:
        """Tell `heard` (SM, role, row of the table) whenever a role begins a row."""
        self._engine.trace = heard

    def listen(self, heard: Heard | None) -> None:
        """Tell `heard` what stages publish: stage, positions [T], index [n], values [T, n]; SM by SM, part by part."""
        self._engine.heard = heard

    @property
    def steps(self) -> int:
        """Steps of the last call."""
        return self._engine.steps

    @property
    def made(self) -> list[list[int]]:
        """The new tokens of each request of the last call."""
        return self._engine.made

    @property
    def pages_used(self) -> int:
        """Pages of KV that the last call's sequences took, one behind the other."""
        return self._engine.pages_used

    def close(self) -> None:
        """Nothing to give back."""

    def _tokens(self, request: Request) -> Generator[int]:
        given = 0
        for (made,) in self._engine.run([request] if request.new else []):
            yield from made[given:]
            given = len(made)

    def _drafts(self) -> str | None:
        return MODEL if self._engine.drafts else None

    def _checked(self, ids: Sequence[int], new: int) -> list[int]:
        return check_prompt(ids, new, self._engine.vocabulary, self._engine.context)
