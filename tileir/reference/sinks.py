"""Where regions read and write while an SM's consumers run them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.reference.arithmetic import Array, best_of
from tileir.reference.memory import RowPlan
from tileir.reference.protocol import Channel
from tileir.stages import CANDIDATES, SCORES

if TYPE_CHECKING:
    from tileir.reference.consumers import Consumers


class RowSink:
    """One row's region at work on one SM."""

    def __init__(
        self,
        consumers: "Consumers",
        row: RowPlan,
        channel: Channel,
        tokens: Array | None = None,
        splits: int | None = None,
    ) -> None:
        self._at, self._row, self._channel, self.splits = consumers, row, channel, splits
        self._tokens = consumers.live if tokens is None else tokens
        self.positions = consumers.positions[self._tokens]
        self._offered: list[tuple[list[Array], list[Array]]] = [([], []) for _ in self._tokens]

    def constant(self, value: Any) -> Array:
        """The array of a buffer."""
        return np.asarray(self._row.operand(value))

    def read(self, value: Any, index: Array) -> Array:
        """A channel's values of this step, of the tokens at work."""
        return self._at.values(self._row.operand(value), index, self._tokens)

    def weights(self, routing: Any) -> Array:
        """Only an experts contract has them."""
        raise AssertionError(f"{routing} outside experts")

    def tokens(self, of: str) -> Array:
        """The step's tokens, or of "choice" those that it has chosen."""
        chosen = self._at.choice if of == "choice" else np.array(self._at.record.tokens)
        assert chosen is not None, "a lookup of a choice that is not made"
        return chosen

    def append(self, state: Any, index: Array, values: Array) -> None:
        """Each token's row of a state, rounded."""
        held, at = self._row.operand(state), self._at
        for i, t in enumerate(self._tokens):
            rounded = at.round(values[i]).reshape(-1)
            at.sm.append(self._row, held, held.own(at.record, int(t)), at.epoch, index, rounded)

    def publish(self, index: Array, values: Array) -> None:
        """What lies inside the row's channel."""
        inside = index < self._channel.values
        self._at.publish(self._channel, self._tokens, index[inside], values[:, inside])

    def logits(self, index: Array, values: Array) -> None:
        """Recorded until the token is chosen."""
        if self._at.choice is None:
            engine = self._at.sm.engine
            inside = index < engine.vocabulary
            self._at.sm.launch.step_logits[np.ix_(self._tokens, index[inside])] = values[:, inside]

    def candidate(self, index: Array, values: Array) -> None:
        """Kept for `publish_best`."""
        inside = index < self._at.sm.engine.vocabulary
        for t, (found, indices) in enumerate(self._offered):
            found.append(values[t][inside])
            indices.append(index[inside])

    def publish_best(self) -> None:
        """The SM's record of every token; it also releases every state row that the SM has written."""
        at, sm = self._at, self._at.sm
        records = []
        for found, indices in self._offered:
            record = (0, sm.engine.vocabulary)
            if any(len(v) for v in found):
                record = best_of(np.concatenate(found), np.concatenate(indices))
            records.append(record)
        place = sm.device.place * sm.device.sms + sm.sm
        index, words = np.arange(2 * place, 2 * place + 2), np.array(records, np.int64)
        releases = self._row.number == sm.device.record
        at.publish(self._channel, at.live, index, words, CANDIDATES, releases=releases)


class PieceSink(RowSink):
    """A piece of attention at work: only one of a kv head's tasks appends."""

    def __init__(
        self, consumers: "Consumers", row: RowPlan, channel: Channel, tokens: Array, stores: bool
    ) -> None:
        super().__init__(consumers, row, channel, tokens)
        self._stores = stores

    def append(self, state: Any, index: Array, values: Array) -> None:
        """Nothing, unless this task is the one that stores."""
        if self._stores:
            super().append(state, index, values)


class PairSink(RowSink):
    """An experts contract's epilogue for the (token, slot) pairs that chose one expert."""

    def __init__(
        self,
        consumers: "Consumers",
        row: RowPlan,
        channel: Channel,
        tokens: Array,
        places: Array,
        weights: Array,
    ) -> None:
        super().__init__(consumers, row, channel, tokens)
        self._places, self._weights = places, weights

    def weights(self, routing: Any) -> Array:
        """Those that the pairs were chosen with."""
        return self._weights

    def publish(self, index: Array, values: Array) -> None:
        """Each pair's values at its slot's place."""
        for token, place, row in zip(self._tokens, self._places, values, strict=True):
            self._at.publish(self._channel, np.array([token]), place + index, row[None])


class ScoreSink(RowSink):
    """Scores of positions [first, behind) of one sequence's tokens, each up to its own."""

    def __init__(
        self,
        consumers: "Consumers",
        row: RowPlan,
        channel: Channel,
        tokens: Array,
        first: int,
        behind: int,
    ) -> None:
        super().__init__(consumers, row, channel, tokens)
        self._first, self._behind = first, behind

    def publish(self, index: Array, values: Array) -> None:
        """Each token's scores of the positions that it sees."""
        for token, position, row in zip(self._tokens, self.positions, values, strict=True):
            inside = (index >= self._first) & (index < min(self._behind, position + 1))
            if inside.any():
                one = np.array([token])
                self._at.publish(self._channel, one, index[inside], row[inside][None], SCORES)
