"""The panel of a build: its windows chosen while batches go by, and filled with activations at the end.

Choosing looks at tokens alone and keeps the whole sequences of the windows that lead; that is all that a
checkpoint has of it. When the corpus is read these few sequences are run once more, each alone: so what is
filled in depends on the sequence and on nothing else, and no kernel and no state of a pass knows of a panel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from indexer_kernels import Sequences
from indexer_kernels.panel import WINDOW, Panel, Windows, window_hashes, windows_in
from numpy.typing import NDArray

from indexer.models import Runner, Values
from indexer.models.alone import Plain, SequenceId, SequenceRows, alone
from indexer.models.runner import Part
from indexer.names import PANEL, TARGET_PANEL, Key, panel_of
from indexer.tokens import Batch

# who is told of a probe and of the sequence whose values it has just handed over
Watch = Callable[[Key, Part], None]

# of the file, whose rows are those of tokens, that are read before they become columns
_TOKENS_AT_ONCE = 256
_LARGEST = np.uint64(2**64 - 1)


class Chosen:
    """The windows with the smallest hashes so far, and each sequence that one of them is of.

    most, seed: see indexer_kernels.panel. windows: in their order.
    name, targets: which panel it is, see indexer.names.panel_of.
    """

    def __init__(self, most: int, seed: int, name: str = PANEL, targets: bool = False) -> None:
        self.most, self.seed = most, seed
        self.name, self.targets = name, targets
        self.windows = Windows.none()
        self.sequences: dict[SequenceId, Part] = {}

    def look(self, batch: Batch) -> None:
        """Let the windows of a batch compete. Cost: a hash for each; more for the few that win."""
        if not self.most:
            return
        whole, batch = batch, self.text_of(batch)
        row, start = windows_in(batch.counted[: len(batch.length)].sum(axis=1))
        document, sequence = batch.document[row], batch.ordinal[row]
        found = window_hashes(self.seed, document, sequence, start)
        # one of the same hash as the last may belong before it
        last = self.windows.hash[-1] if len(self.windows) == self.most else _LARGEST
        better = np.flatnonzero(found <= last)
        order = np.lexsort((start[better], sequence[better], document[better], found[better]))
        better = better[order[: self.most]]
        if not len(better):
            return
        parts = {number: alone(whole, number) for number in np.unique(row[better]).tolist()}
        self.sequences |= {_id(part): part for part in parts.values()}
        rows = {number: self.text_of(part).rows for number, part in parts.items()}
        tokens = [
            rows[number].token_ids[rows[number].counted][begin : begin + WINDOW]
            for number, begin in zip(row[better].tolist(), start[better].tolist(), strict=True)
        ]
        length = np.array([len(ids) for ids in tokens])
        won = Windows(
            found[better], document[better], sequence[better], start[better], length, np.concatenate(tokens)
        )
        self.windows = self.windows.joined(won)
        self.windows = self.windows.taken(self.windows.order()[: self.most])
        wanted = zip(self.windows.document.tolist(), self.windows.sequence.tolist(), strict=True)
        self.sequences = {place: self.sequences[place] for place in wanted}

    def text_of(self, batch: Any) -> Any:
        """Of a batch or a part of one what the panel is of: the text, or the targets beside it."""
        return batch.target if self.name == TARGET_PANEL else batch

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain values and arrays."""
        sequences = [
            [*_id(part), [[text.rows.token_ids, text.rows.counted] for text in (part, part.target) if text]]
            for part in self.sequences.values()
        ]
        return {"windows": dict(vars(self.windows)), "sequences": sequences}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave in place of what is here."""
        self.windows = Windows(**state["windows"])
        parts = [one_sequence(document, ordinal, *texts) for document, ordinal, texts in state["sequences"]]
        self.sequences = {_id(part): part for part in parts}

    def filled(
        self,
        runner: Runner,
        kernels: str,
        file: IO[bytes],
        between: Callable[[float], None],
        watch: Watch = lambda key, sequence: None,
    ) -> dict[Key, Panel]:
        """The panel of every probe of a runner that it is for, float32, read from `file` as it is needed.

        file: empty, to be written to; it may be closed afterwards. between: called after each sequence with
        the share that is done. watch: told of every probe, while the model runs.
        Cost: a forward pass for each sequence; 4 bytes of the file for each unit and token.
        """
        units = {
            probe.key: probe.units
            for probe in runner.probes
            if panel_of(probe.key.site, self.targets) == self.name
        }
        filling = _Filling(kernels, self.windows, units, file, watch)
        for number, part in enumerate(self.sequences.values(), 1):
            filling.part = self.text_of(part)
            # torch.compile makes a graph of its own for batches of one
            runner.run_for(alone(part, 0, copies=2) if runner.compiled else part, filling.take)
            between(number / len(self.sequences))
        return {
            key: Panel(self.most, self.seed, self.windows, values) for key, values in filling.read().items()
        }


class _Filling(Plain):
    """Is handed the values of one sequence after the other, and writes those of its windows into a file.

    There each probe has a matrix float32 [tokens, units], one after the other.
    """

    part: Part

    def __init__(
        self, kernels: str, windows: Windows, units: dict[Key, int], file: IO[bytes], watch: Watch
    ) -> None:
        super().__init__(kernels)
        self.windows, self.units, self.file, self.watch = windows, units, file, watch
        tokens = len(windows.token_ids)
        before = np.cumsum([0, *units.values()])[:-1] * tokens
        self.begin = dict(zip(units, before.tolist(), strict=True))

    def look(self, key: Key, values: Values) -> None:
        if key not in self.units:
            return
        rows = SequenceRows.of(_id(self.part), values)
        if rows is None:
            return
        self.watch(key, self.part)
        every = self.part.rows.counted
        # counted tokens, by which windows begin, and which rows they are
        place = (np.cumsum(every) - 1)[rows.position]
        counted = every[rows.position]
        activations = rows.values.float().cpu().numpy()
        document, ordinal = _id(self.part)
        of_sequence = (self.windows.document == document) & (self.windows.sequence == ordinal)
        for number in np.flatnonzero(of_sequence).tolist():
            start, first = int(self.windows.start[number]), int(self.windows.first[number])
            inside = counted & (start <= place) & (place < start + int(self.windows.length[number]))
            found = np.flatnonzero(inside)
            token = first + place[found] - start
            # rows of tokens that follow each other do so in the file, too, where they are of a whole layer
            apart = (np.diff(token) > 1) | (activations.shape[1] < self.units[key])
            for run in filter(len, np.split(np.arange(len(token)), np.flatnonzero(apart) + 1)):
                adjacent = activations[found[run]]
                # a hole in the file is zeros, and takes no room
                if not adjacent.any():
                    continue
                self.file.seek(4 * (self.begin[key] + int(token[run[0]]) * self.units[key] + values.first))
                self.file.write(adjacent.tobytes())

    def read(self) -> dict[Key, Filled]:
        """All matrices; 0 where nothing was written."""
        tokens = len(self.windows.token_ids)
        self.file.truncate(4 * tokens * sum(self.units.values()))
        self.file.flush()
        file = os.fdopen(os.dup(self.file.fileno()), "rb")
        return {key: Filled(file, 4 * begin, self.units[key], tokens) for key, begin in self.begin.items()}


@dataclass(frozen=True)
class Filled:
    """What a probe does on the windows: a matrix float32 [tokens, units] that stays in its file.

    begin: bytes before it there.
    """

    file: IO[bytes]
    begin: int
    units: int
    tokens: int

    def __getitem__(self, units: slice) -> NDArray[np.float32]:
        """That of some units, read now: float32 [units, tokens]."""
        first, last, _ = units.indices(self.units)
        found = np.empty((last - first, self.tokens), np.float32)
        rows = np.empty((min(_TOKENS_AT_ONCE, self.tokens), last - first), np.float32)
        for begin in range(0, self.tokens, _TOKENS_AT_ONCE):
            read = rows[: self.tokens - begin]
            for token, row in enumerate(read, begin):
                os.preadv(self.file.fileno(), [row], self.begin + 4 * (token * self.units + first))
            found[:, begin : begin + len(read)] = read.T
        return found


def _id(part: Part) -> SequenceId:
    return int(part.rows.document[0]), int(part.rows.ordinal[0])


def one_sequence(document: int, ordinal: int, *texts: Sequence[np.ndarray]) -> Part:
    """One sequence as a batch without padding.

    texts: token ids, int32, and which are counted, bool; and the same of its target where there is one.
    """
    (token_ids, counted), *others = texts
    ends = np.array([0, len(token_ids)])
    rows = Sequences.from_offsets(ends, np.array([document]), np.array([ordinal]), token_ids, counted)
    target = one_sequence(document, ordinal, *others) if others else None
    return Part(token_ids[None].astype(np.int64), rows.length, rows, target=target)
