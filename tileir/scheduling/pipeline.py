"""Order in time: rotations, phases and ring depths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from tileir.scheduling.assign import next_rotation

STATE_SLOTS = 3
MIN_TAPE_SLOTS, MAX_TAPE_SLOTS = 3, 12


def rotations(tiles: Sequence[int], sms: int) -> list[int]:
    """Where each stage's assignment starts, so that remainders go round; stages of 0 tiles move nothing."""
    out, at = [], 0
    for count in tiles:
        out.append(at)
        at = next_rotation(at, count, sms)
    return out


def phases(stages: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """The longest path to each stage: stages that do not depend on each other may share a phase."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(stages))
    graph.add_edges_from(edges)
    level = [0] * stages
    for generation, members in enumerate(nx.topological_generations(graph)):
        for stage in members:
            level[stage] = generation
    return level


@dataclass(frozen=True)
class Rings:
    """Slots of both rings; windows in slots."""

    tape_slots: int
    tape_window: int
    state_slots: int
    state_window: int


def choose_rings(free_bytes: int, slot_bytes: int, window: int) -> Rings | None:
    """As deep a tape ring as fits beside the state ring; None if even the least does not fit."""
    tape = min(MAX_TAPE_SLOTS, free_bytes // slot_bytes - STATE_SLOTS)
    if tape < MIN_TAPE_SLOTS:
        return None
    return Rings(tape, min(window, tape), STATE_SLOTS, min(window, STATE_SLOTS - 1))
