"""What each step does: which tokens of which sequences, what is accepted, where rows of KV lie (docs/ir.md, steps).

A plan is the host's part and the rule that every SM applies to the same choices. Plain data, no MLIR.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tileir.errors import DeviceHang, TileirError

Array = np.ndarray
Drafts = Callable[[list[int]], list[int]]
MODEL = "model"


@dataclass
class Request:
    """A prompt, and what is wanted behind it.

    ids: the prompt. new: tokens to make. stop_ids: those that end it, and are given. start: the first step that may
    carry it. drafts: None, "model" for the draft layer's, or a function of the tokens so far.
    """

    ids: list[int]
    new: int
    stop_ids: frozenset[int] = frozenset()
    start: int = 0
    drafts: Drafts | str | None = None


@dataclass(frozen=True)
class StepRecord:
    """A step: for each live row its token, sequence and position.

    number: from 0. bases: the first position of each sequence's rows. known: how many of them are known tokens; those
    behind are drafts. holders: the request in each sequence. table: the
    page table, [sequences, pages of a context], of this version. stop: no step follows, this one has no rows.
    """

    number: int
    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    bases: dict[int, int]
    known: dict[int, int]
    holders: dict[int, int]
    table: Array
    version: int
    stop: bool = False

    def rows_of(self, sequence: int) -> list[int]:
        """The rows of a sequence, in order."""
        return [t for t, s in enumerate(self.sequences) if s == sequence]


def kept(record: StepRecord, sequence: int, choices: Sequence[int]) -> int:
    """Rows of a sequence that stay: known tokens, then drafts as long as each equals the choice before it."""
    rows = record.rows_of(sequence)
    count = record.known[sequence]
    while count < len(rows) and record.tokens[rows[count]] == choices[rows[count - 1]]:
        count += 1
    return count


@dataclass
class _Running:
    """A request in a sequence. tokens: known so far; base: rows in the states; draft: the model's for the next step."""

    number: int
    request: Request
    tokens: list[int]
    base: int = 0
    draft: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that it needs at most: all of its text but the last token that it makes."""
        ids = len(self.request.ids)
        return max(ids, ids + self.request.new - 1)

    @property
    def made(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - len(self.request.ids)


class Plan:
    """Requests over `sequences` places, at most `tokens` rows a step; KV in pages of `page` rows if that is not 0.

    context: positions of a sequence. A request begins, in order, when a place is free and pages for all of its rows
    are. Raises TileirError for one that needs more pages than there are.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        tokens: int,
        sequences: int = 1,
        context: int,
        page: int = 0,
        pages: int = 0,
    ) -> None:
        self.tokens, self.context, self.page = tokens, context, page
        self.waiting = [_Running(i, r, list(r.ids)) for i, r in enumerate(requests)]
        self.places: list[_Running | None] = [None] * sequences
        self.texts = [r.tokens for r in self.waiting]
        self.pages, self.free = pages, list(range(pages))
        self.table = np.full((sequences, -(-context // page) if page else 1), -1)
        self.version = 0
        self.accepted: list[tuple[int, int, int]] = []
        self.made: list[list[int]] = [[] for _ in requests]
        self._skipped = self.pages_used = 0
        self._seen: tuple[int, tuple[int, ...], tuple[int, ...]] | None = None
        for running in self.waiting:
            if self._need(running) > pages:
                raise TileirError(
                    f"request {running.number} needs {self._need(running)} pages of KV, there are {pages}",
                    hint="compile with more pages",
                )
        self.record = self._record(0)

    def next(self, record: StepRecord, choices: Array, drafts: Array | None) -> StepRecord:
        """The record behind `record`, from what was chosen in it: the same for every SM that asks.

        `accepted` then lists (request, position, row) of the rows that stay. Raises DeviceHang if an SM asks with other
        choices.
        """
        drafted = () if drafts is None else tuple(int(d) for d in drafts)
        asked = (record.number, tuple(int(c) for c in choices), drafted)
        if self._seen is None or self._seen[0] < record.number:
            self._seen = asked
            self._accept(record, asked[1], asked[2])
            self.record = self._record(record.number + 1)
        elif self._seen != asked:
            raise DeviceHang(
                f"step {record.number}: SMs chose {self._seen[1:]} and {asked[1:]} for the same rows"
            )
        return self.record

    # ---- accepting

    def _accept(
        self, record: StepRecord, choices: tuple[int, ...], drafts: tuple[int, ...]
    ) -> None:
        self.accepted = []
        for place, running in enumerate(self.places):
            rows = record.rows_of(place)
            if running is not None and rows:
                self._take(place, running, rows, record, choices, drafts)

    def _take(
        self,
        place: int,
        running: _Running,
        rows: list[int],
        record: StepRecord,
        choices: tuple[int, ...],
        drafts: tuple[int, ...],
    ) -> None:
        """Take what a sequence keeps, up to its end; every row from the last known token on makes one."""
        known = len(running.tokens) - running.base
        taken, ended = 0, False
        for row in rows[: kept(record, place, choices)]:
            taken += 1
            self.accepted.append((running.number, record.positions[row], row))
            if taken < known:
                continue
            if running.made < running.request.new:
                running.tokens.append(choices[row])
                self.made[running.number].append(choices[row])
            stopped = choices[row] in running.request.stop_ids
            ended = stopped or running.made >= running.request.new
            if ended:
                break
        running.base += taken
        running.draft = []
        if running.request.drafts == MODEL and drafts and taken >= known:
            running.draft = [drafts[rows[taken - 1]]]
        if ended:
            self.places[place] = None
            self.free += running.pages
            self.table[place] = -1
            self.version += 1

    # ---- the next step

    def _record(self, number: int) -> StepRecord:
        for place, running in enumerate(self.places):
            ready = [r for r in self.waiting if r.request.start <= number + self._skipped]
            if running is None and ready and self._has_pages(ready[0]):
                self.waiting.remove(ready[0])
                self.places[place] = ready[0]
        live = [(place, r) for place, r in enumerate(self.places) if r is not None]
        if not live and self.waiting:
            # Nothing to do before the next request begins.
            self._skipped = min(r.request.start for r in self.waiting) - number
            return self._record(number)
        wanted = [self._wanted(r) for _, r in live]
        shares = self._shares([len(w) for w in wanted])
        rows: list[tuple[int, int, int]] = []
        known: dict[int, int] = {}
        for (place, running), tokens, share in zip(live, wanted, shares, strict=True):
            self._hold_pages(place, running, running.base + share)
            rows += [(token, place, running.base + i) for i, token in enumerate(tokens[:share])]
            known[place] = min(share, len(running.tokens) - running.base)
        return StepRecord(
            number,
            tuple(token for token, _, _ in rows),
            tuple(place for _, place, _ in rows),
            tuple(position for _, _, position in rows),
            {place: r.base for place, r in live},
            known,
            {place: r.number for place, r in live},
            self.table.copy(),
            self.version,
            stop=not rows,
        )

    def _wanted(self, running: _Running) -> list[int]:
        """Known tokens whose rows are not there yet, then drafts."""
        known = running.tokens[running.base :]
        drafts: list[int] = []
        source = running.request.drafts
        if source == MODEL:
            drafts = running.draft
        elif callable(source):
            drafts = source(list(running.tokens))
        return (known + drafts)[: running.rows - running.base]

    def _shares(self, wanted: list[int]) -> list[int]:
        """Rows of each sequence: one each, then what is left to those that want more, in order."""
        if len(wanted) > self.tokens:
            raise TileirError(
                f"{len(wanted)} sequences in steps of {self.tokens} tokens",
                hint="compile with as many tokens a step as sequences, or more",
            )
        shares = [min(1, w) for w in wanted]
        for i, w in enumerate(wanted):
            shares[i] += min(w - shares[i], self.tokens - sum(shares))
        return shares

    def _hold_pages(self, place: int, running: _Running, rows: int) -> None:
        """Pages for so many rows."""
        while self.page and len(running.pages) * self.page < rows:
            running.pages.append(self.free.pop(0))
            self.pages_used += 1
            self.table[place, len(running.pages) - 1] = running.pages[-1]
            self.version += 1

    def _need(self, running: _Running) -> int:
        """Pages for all rows of a request."""
        return -(-running.rows // self.page) if self.page else 0

    def _has_pages(self, running: _Running) -> bool:
        """Whether pages are left for it by those that run, and will hold theirs."""
        held = sum(self._need(r) for r in self.places if r is not None)
        return held + self._need(running) <= self.pages
