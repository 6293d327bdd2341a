"""Steps of the reference device: what a plan keeps, what sequences share, and that every broken rule is noticed."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from test.graphs import routed
from test.models import arrays, tiny_llama, tiny_mtp
from tileir.compiler import compile_module
from tileir.errors import DeviceHang, TileirError
from tileir.frontends.torch_export import export_decode, export_draft_decode, import_program
from tileir.mlir import ir, new_context
from tileir.package import Package
from tileir.reference import consumers, protocol, tasks
from tileir.reference.consumers import ARCHETYPES, Consumers
from tileir.reference.engine import Sm
from tileir.reference.graph import GraphExecutor
from tileir.reference.memory import OwnRow, Rows
from tileir.reference.session import ReferenceSession
from tileir.reference.steps import MODEL, Plan, Request, StepRecord
from tileir.reference.stores import Stores
from tileir.scheduling.assign import MAX_TILES_PER_SM
from tileir.target import TARGETS

CONTEXT, TOLERANCE, SEEDS = 64, 1e-4, 24
Patch = pytest.MonkeyPatch


# ---- plans, against a machine that keeps nothing but tokens


def say(text: list[int], words: int = 5) -> int:
    """The next token of a model that looks at all of its text."""
    return hash((7, *text)) % words


def greedy(request: Request) -> list[int]:
    """What it makes of a request, one token at a time."""
    text: list[int] = list(request.ids)
    while len(text) - len(request.ids) < request.new:
        text.append(say(text))
        if text[-1] in request.stop_ids:
            break
    return text[len(request.ids) :]


class Machine:
    """Runs a plan: rows of a step see old rows of their sequence, where the table says, and their own."""

    def __init__(self, requests: list[Request], **sizes: int) -> None:
        self.requests, self.page = requests, sizes["page"]
        self.plan = Plan(requests, context=CONTEXT, **sizes)
        self.rows: dict[Any, int] = {}
        self.kept: list[list[int]] = [[] for _ in requests]
        self.steps = 0

    def run(self) -> list[list[int]]:
        """The tokens made."""
        record = self.plan.record
        while not record.stop:
            self.steps += 1
            assert self.steps < 1000, "no end"
            choices, drafts = self._step(record)
            after = self.plan.next(record, choices, drafts)
            for request, position, _ in self.plan.accepted:
                self.kept[request].append(position)
            record = after
        return self.plan.made

    def _step(self, record: StepRecord) -> tuple[np.ndarray, np.ndarray]:
        held = record.table[record.table >= 0].tolist()
        assert len(set(held)) == len(held), "two sequences hold a page"
        choices, drafts = [], []
        for t, (token, sequence, position) in enumerate(
            zip(record.tokens, record.sequences, record.positions, strict=True)
        ):
            own = record.rows_of(sequence)
            assert position == record.bases[sequence] + own.index(t)
            old = [self.rows[self._at(record, sequence, p)] for p in range(record.bases[sequence])]
            text = old + [record.tokens[o] for o in own if o <= t]
            choices.append(say(text))
            drafts.append(say([*text, choices[-1]]) if len(text) % 3 else 0)
            assert token == text[-1]
        for t, sequence in enumerate(record.sequences):
            self.rows[self._at(record, sequence, record.positions[t])] = record.tokens[t]
        return np.array(choices), np.array(drafts)

    def _at(self, record: StepRecord, sequence: int, position: int) -> Any:
        if not self.page:
            return sequence, position
        page = record.table[sequence, position // self.page]
        assert page >= 0
        return int(page), position % self.page


def sometimes(text: list[int]) -> list[int]:
    """Drafts that are right now and then."""
    text, said = list(text), []
    for i in range(hash(tuple(text)) % 5):
        text.append(say(text) if hash((i, *text)) % 3 else 1)
        said.append(text[-1])
    return said


REQUEST = st.builds(
    Request,
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    new=st.integers(0, 20),
    stop_ids=st.sampled_from([frozenset[int](), frozenset({2})]),
    start=st.integers(0, 12),
    drafts=st.sampled_from([None, MODEL, sometimes]),
)


@settings(deadline=None)
@given(
    st.lists(REQUEST, min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from([0, 1, 4, 7]),
    st.integers(0, 40),
)
def test_plans_give_greedy_text(
    requests: list[Request], tokens: int, sequences: int, page: int, spare: int
) -> None:
    """Whatever is drafted, shared and put into however few pages, the text is that of one token a step."""
    rows = max(len(r.ids) + max(r.new, 1) - 1 for r in requests)
    pages = -(-rows // page) + spare if page else 0
    sizes = {"tokens": max(tokens, sequences), "sequences": sequences, "page": page, "pages": pages}
    machine = Machine(requests, **sizes)
    assert machine.run() == [greedy(r) for r in requests]
    for request, made, kept in zip(requests, machine.plan.made, machine.kept, strict=True):
        assert kept == list(range(len(request.ids) + max(len(made) - 1, 0)))
    assert sorted(machine.plan.free) == list(range(pages))


def test_a_request_waits_for_pages() -> None:
    """Two that do not fit together run one behind the other; what never fits is refused before the first step."""
    requests = [Request([1] * 9, 8), Request([2] * 9, 8)]
    sizes = {"tokens": 4, "sequences": 2, "page": 4}
    one, both = Machine(requests, pages=4, **sizes), Machine(requests, pages=8, **sizes)
    assert one.run() == both.run()
    assert one.steps > both.steps
    with pytest.raises(TileirError, match="request 0 needs 4 pages of KV, there are 3"):
        Machine(requests, pages=3, **sizes)


def test_a_chunk_of_the_prompt_leaves_no_draft() -> None:
    """What the draft layer says inside a prompt is no draft for behind it."""
    plan = Plan([Request([1, 2, 3, 4], 4, drafts=MODEL)], tokens=3, context=CONTEXT)
    after = plan.next(plan.record, np.array([9, 9, 9]), np.array([8, 8, 8]))
    assert after.tokens == (4,)
    assert plan.next(after, np.array([5]), np.array([6])).tokens == (5, 6)


# ---- the device


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """A target whose SMs have no task in most stages: they may be far behind the others."""
    with Patch.context() as patch:
        target = dataclasses.replace(TARGETS["virtual"], name="wide", sms=96)
        patch.setitem(TARGETS, "wide", target)
        yield


@cache
def compiled(
    kind: str = "llama", target: str = "virtual", **options: Any
) -> tuple[Package, dict[str, np.ndarray]]:
    """(package, weights) of a small model."""
    with new_context() as context, ir.Location.unknown():
        if kind == "draft":
            model, draft = tiny_mtp()
            program, weights = export_draft_decode(model, draft, CONTEXT), arrays(model, draft)
        else:
            model = tiny_llama()
            program, weights = export_decode(model, CONTEXT), arrays(model)
        module = import_program(program, context)
        return compile_module(module, target=target, **options), weights


@cache
def experts(target: str = "virtual") -> tuple[Package, dict[str, np.ndarray], np.ndarray]:
    """(package, weights, logits of tokens 0, 4, …) of a model of 32 experts, 4 a token, 8 tokens a step."""
    with new_context(), ir.Location.unknown():
        module, weights = routed(32, 4)
        exact = GraphExecutor(module, weights).step(np.arange(0, 32, 4), np.arange(8))[1]
        return compile_module(module, target=target, tokens=8), weights, exact


def session(kind: str = "llama", seed: int = 0, **options: Any) -> ReferenceSession:
    """A session of a small model."""
    package, weights = compiled(kind, **options)
    return ReferenceSession(package.engine_text, package.packing, weights, seed=seed)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def half_right(text: list[int]) -> list[int]:
    """Three drafts, the first of them what `TEXTS` goes on with, the others at times."""
    for right in texts():
        if right[: len(text)] == text:
            said = right[len(text) :][:3]
            return [
                t if i == 0 or len(text) % 3 == i else (t + 1) % 128 for i, t in enumerate(said)
            ]
    return []


PROMPTS = [([5, 9, 2, 40, 7], 20, 0), ([1] * 13, 9, 0), ([3, 8], 30, 4), ([90, 2, 2], 12, 6)]
SHARED = {"tokens": 4, "sequences": 2, "page": 8, "pages": 9}


@cache
def texts() -> list[list[int]]:
    """Prompts with what follows them, each by itself and one token a step."""
    alone = session()
    return [[*ids, *alone.generate(ids, new)] for ids, new, _ in PROMPTS]


def requests(drafts: Callable[[list[int]], list[int]] | None = half_right) -> list[Request]:
    """The prompts, some of them later."""
    return [Request(ids, new, start=start, drafts=drafts) for ids, new, start in PROMPTS]


@cache
def shared_logits(seed: int) -> list[np.ndarray]:
    """Logits of accepted rows, sequences, pages and drafts mixed."""
    return session(seed=seed, **SHARED).batch_logits(requests())


def test_accepted_rows_have_eager_logits() -> None:
    """Rejected drafts, other sequences and freed pages leave no trace in any logits."""
    model = tiny_llama()
    for text, found in zip(texts(), shared_logits(0), strict=True):
        with torch.no_grad():
            exact = model(torch.tensor([text[:-1]])).logits[0].numpy()
        assert error(found, exact) < TOLERANCE


@pytest.mark.parametrize("seed", range(1, SEEDS))
def test_schedules_give_the_same_bits(seed: int) -> None:
    """Several tokens, drafts, sequences and pages, with roles and copies in any order."""
    for found, first in zip(shared_logits(seed), shared_logits(0), strict=True):
        assert np.array_equal(found, first)


def test_links_in_any_order_give_the_same_bits() -> None:
    options = {**SHARED, "devices": 2, "placement": "tensor-parallel"}
    first, *others = (session(seed=s, **options).batch_logits(requests()) for s in range(8))
    for found in others:
        assert all(np.array_equal(a, b) for a, b in zip(found, first, strict=True))


def test_drafts_need_no_page_behind_the_text() -> None:
    """Pages for the texts suffice, whatever is drafted behind their ends."""
    ids, new = [5, 9, 2, 40, 7], 28
    wanted = [Request(ids, new, drafts=lambda text: [1] * 3), Request(ids, new)]
    running = session(tokens=8, sequences=2, page=8, pages=8)
    assert running.generate_batch(wanted) == [list(session().generate(ids, new))] * 2
    assert running.pages_used == 8


def test_more_pairs_than_partial_sums() -> None:
    """An SM with more (expert, tile) pairs than it has sums for takes them in turns."""
    package, weights, exact = experts()
    found: list[int] = []
    pairs = tasks.pairs
    with Patch.context() as patch:
        patch.setattr(tasks, "pairs", lambda *a: [found.append(len(p := pairs(*a))), p][1])
        running = ReferenceSession(package.engine_text, package.packing, weights)
        logits = running.logits(list(range(0, 32, 4)))
    assert max(found) > MAX_TILES_PER_SM
    assert error(logits, exact) < TOLERANCE


# ---- seeded mistakes, each of which is noticed


def fails(patched: tuple[Any, str, Any], match: str, run: Callable[[], Any]) -> None:
    """`run` hangs with such a report once something is patched."""
    with Patch.context() as patch:
        patch.setattr(*patched)
        with pytest.raises(DeviceHang, match=match):
            run()


def test_a_base_behind_rejected_rows() -> None:
    """A rejected row that is taken for accepted holds a token that is not the text's."""
    take = Plan._take

    def trusting(self: Plan, place: int, running: Any, rows: Any, record: Any, *made: Any) -> None:
        tokens = (record.tokens[0], *made[0][:-1]) if record.number > 3 else record.tokens
        take(self, place, running, rows, dataclasses.replace(record, tokens=tokens), *made)

    fails(
        (Plan, "_take", trusting),
        r"SM \d streams position \d+ of state \S+, which is not there: .* the text has token",
        lambda: session(tokens=4).generate_batch(requests()[:1]),
    )


def test_a_row_of_this_step() -> None:
    """A loader that goes one row too far meets the step's own."""
    old_rows = tasks.old_rows

    def further(record: StepRecord, sequence: int, split: int, op: Any) -> np.ndarray:
        found = old_rows(record, sequence, split, op)
        return np.append(found, record.bases[sequence]) if record.number == 3 else found

    fails(
        (tasks, "old_rows", further),
        r"SM \d streams position 3 of state \S+, which is not there: in epoch 4 with rows from position 3",
        lambda: session(tokens=4).generate_batch([Request([5], 6)]),
    )


def test_a_row_that_was_never_written() -> None:
    write = Rows.write

    def forgetful(self: Rows, own: OwnRow, *rest: Any) -> None:
        if own.holder[1] != 2:
            write(self, own, *rest)

    fails(
        (Rows, "write", forgetful),
        r"SM \d streams position 2 of state k_cache_\d, which is not there: .* written in epoch 0",
        lambda: session().logits([1, 2, 3, 4, 5]),
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_other_choices_on_one_sm(devices: int) -> None:
    def wrong(at: Consumers, row: Any) -> Any:
        yield from ARCHETYPES["select"](at, row)
        if at.sm.sm == 1 and at.record.number == 2 and at.device.place == devices - 1:
            at.choice = None if at.choice is None else at.choice + 1

    placed = {"devices": 2, "placement": "tensor-parallel"} if devices > 1 else {}
    fails(
        (consumers, "ARCHETYPES", {**ARCHETYPES, "select": wrong}),
        "step 2: SMs chose .* for the same rows",
        lambda: session(**placed).logits([1, 2, 3, 4, 5]),
    )


def test_a_packet_that_crosses_wrongly() -> None:
    """GPUs that see different candidates choose differently, and say so."""
    see = Sm.see

    def noisy(self: Sm, view: Any, carried: Any, epoch: int, *packets: Any) -> None:
        tokens, index, values = packets
        if (self.who, view.name, epoch) == ("GPU 1 SM 0", "candidates_0", 2):
            values = np.array([[2**32 - 1, 7]])
        see(self, view, carried, epoch, tokens, index, values)

    fails(
        (Sm, "see", noisy),
        "step 1: SMs chose",
        lambda: session(devices=2, placement="tensor-parallel").logits([1, 2, 3]),
    )


def test_a_packet_that_is_lost_between_gpus() -> None:
    send = Stores.send

    def lossy(self: Stores, store: Any) -> None:
        if store.epoch != 2:
            send(self, store)

    fails(
        (Stores, "send", lossy),
        r"(?s)deadlock.*GPU \d SM \d consumer waits for channel \S+ in epoch 2, oldest packet seen 1",
        lambda: session(devices=2, placement="tensor-parallel").logits([1, 2, 3]),
    )


def test_routing_that_nobody_has_taken() -> None:
    """Consumers that do not wait for their loader overwrite its routing, under some schedule."""

    def hasty(self: Any, scheduler: Any, use: int, values: Any) -> Any:
        self.loaded, loaded = False, self.loaded
        yield from write(self, scheduler, use, values)
        self.loaded = self.wanted = loaded

    write = protocol.LocalChannel.write
    package, weights, _ = experts("wide")

    def run() -> None:
        for seed in range(SEEDS):
            running = ReferenceSession(package.engine_text, package.packing, weights, seed=seed)
            running.generate_batch([Request([3], 10)])

    fails((protocol.LocalChannel, "write", hasty), "overwritten before its loader", run)


def test_candidates_need_two_copies() -> None:
    """With one, a fast SM overwrites what a slow one has not read, under some schedule."""
    package, weights, _ = experts("wide")
    two = r'("engine.channel"\(\) \{depth = )2( : i64, [^}]*sym_name = "candidate)'
    text = re.sub(two, r"\g<1>1\2", package.engine_text)
    assert text != package.engine_text

    def run() -> None:
        for seed in range(SEEDS):
            running = ReferenceSession(text, package.packing, weights, seed=seed)
            running.generate_batch([Request([3], 10)])

    with pytest.raises(DeviceHang, match=r"channel candidates_0: epoch \d+ was overwritten before"):
        run()


def test_a_copy_brings_what_is_there_when_it_lands() -> None:
    """So a row that is written again too early is seen."""
    scheduler = protocol.Scheduler(0)
    copies, ring = protocol.CopyEngine(scheduler), protocol.Ring("ring", 2, 2, 2, 1)
    source = np.zeros(4)
    copies.start(ring, 0, lambda: (source.copy(),))
    source[:] = 1
    copies.close()
    scheduler.add("copies", copies.role())
    list(scheduler.run())
    assert (ring.read(0)[0] == 1).all()


def test_a_fed_ring_has_fewer_copies_on_their_way() -> None:
    """Eight slots that nobody empties: up to the last two but one use copies go out four at a time, then one."""
    ring, waits = protocol.Ring("ring", 8, 4, 1, 1), []

    class Copies:
        def start(self, ring: Any, use: int, _copy: Any) -> None:
            waits.append([])

    for use in range(8):
        waited = [wait.key for wait in ring.fill(use, lambda: (), Copies())]  # type: ignore[arg-type]
        landed = [i for i, full in enumerate(ring.full) if full in waited]
        waits[use] = [use - i for i in landed]
    assert waits == [[], [], [], [], [4], [4], [1], [1]]


@pytest.mark.parametrize(
    ("count", "match"), [(0, "8 of 16 values"), (2, "written twice in a step")]
)
def test_halves_of_a_row(count: int, match: str) -> None:
    """Of every head all values are written, once; here half of a head's are not, or twice."""
    write = Rows.write

    def wrong(self: Rows, own: OwnRow, epoch: int, index: Any, values: Any) -> None:
        some = (index // 8 == 1) & (own.holder[1] == 1)
        write(self, own, epoch, index[~some], values[~some])
        for _ in range(count):
            write(self, own, epoch, index[some], values[some])

    fails((Rows, "write", wrong), match, lambda: session().logits([1, 2, 3, 4, 5]))
