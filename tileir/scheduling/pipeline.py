"""Order in time: rotations, phases and ring depths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from tileir.scheduling.assign import next_rotation

MIN_STATE_SLOTS, STATE_SLOTS = 2, 3
MIN_TAPE_SLOTS, MAX_TAPE_SLOTS = 3, 12


def rotations(tiles: Sequence[int], sms: int) -> list[int]:
    """Where each stage's assignment starts, so that remainders go round; 0 tiles move nothing."""
    starts, at = [], 0
    for count in tiles:
        starts.append(at)
        at = next_rotation(at, count, sms)
    return starts


def phases(stages: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """The latest phase of each stage that delays nobody, so that what has time stands beside what takes it.

    The last phase is the longest path. edges: (producer, reader) among 0 … stages - 1, without cycles.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(range(stages))
    graph.add_edges_from(edges)
    level = [0] * stages
    for number, members in enumerate(nx.topological_generations(graph)):
        for stage in members:
            level[stage] = number
    for stage in reversed(list(nx.topological_sort(graph))):
        level[stage] = min((level[r] - 1 for r in graph.successors(stage)), default=level[stage])
    return level


@dataclass(frozen=True)
class Rings:
    """Depths and windows of both rings, in slots."""

    tape_slots: int
    tape_window: int
    state_slots: int
    state_window: int


def choose_rings(free_bytes: int, slot_bytes: int, window: int, *, state: bool) -> Rings | None:
    """As deep a tape ring as fits, beside a state ring if there is one; None if even the shallowest does not fit.

    window: slots that the target wants outstanding at most. The state ring's is one less than its depth, so
    that consumers hold a slot while the others fill; it gives one up where the tape's would be too shallow.
    """
    slots = free_bytes // slot_bytes
    kept = max(MIN_STATE_SLOTS, min(STATE_SLOTS, slots - MIN_TAPE_SLOTS)) if state else 0
    tape = min(MAX_TAPE_SLOTS, slots - kept)
    if tape < MIN_TAPE_SLOTS:
        return None
    return Rings(tape, min(window, tape), kept, min(window, max(0, kept - 1)))


def least_ring_bytes(slot_bytes: int, *, state: bool) -> int:
    """Shared memory of the shallowest rings that `choose_rings` accepts."""
    return (MIN_TAPE_SLOTS + (MIN_STATE_SLOTS if state else 0)) * slot_bytes
