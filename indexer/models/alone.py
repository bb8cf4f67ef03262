"""Whether a sequence comes out of a batch as it does alone, asked of the running model itself.

Masks promise it, and some models break the promise: they mix tokens by other means than attention, choose by
the longest sequence of a batch how positions are told, or lay tokens out in another order. So before a build
short sequences are run alone, beside longer ones, and alone again, by the very path that will run.

* The batch is run twice with other tokens in its padding. The same shapes go through the same kernels, so the
  sequences have to be equal but for a last bit.
* In the batch and alone shapes differ, and sums are rounded in another order; `tolerance` says how much of
  that there may be.
* Alone twice has to be the same. Else the model is random, or it remembers what it was given before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from indexer_kernels import Keep, Sequences, Statistics
from numpy.typing import NDArray
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models.forward import embedding_rows
from indexer.models.loading import LoadedModel
from indexer.models.probe import Probe, Values
from indexer.models.runner import Batch, Part, Runner
from indexer.names import Key

Together = Literal["padded", "equal", "single"]
# document and ordinal of a sequence
SequenceId = tuple[int, int]
# values of sequences, by probe and by the first unit of each of its parts
Kept = dict[SequenceId, dict[Key, dict[int, "SequenceRows"]]]
# lengths of two sequences, and layers that are asked more than the others
SHORT, LONG = 5, 12
FIRST_LAYERS = 2
# what configurations call lengths beyond which a model may do otherwise
LIMITS = frozenset(
    {
        *("original_max_position_embeddings", "max_position_embeddings", "index_topk", "sliding_window"),
        *("attention_window", "window_size", "block_size", "attention_chunk_size", "local_attention"),
        *("lsh_attn_chunk_length", "local_attn_chunk_length", "chunk_size", "mamba_chunk_size"),
    }
)
# tokens beyond a limit: of the longest sequence, and of one a little shorter
BEYOND, LESS_BEYOND = 19, 5
# Of equal shapes, in any dtype: a bit or two of float32, where products are grouped by what the tokens are.
SAME = 32 * float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Batching:
    """Which sequences may lie together in a batch, and why not others.

    together: "padded" for any; "equal" for those of one length, without padding; "single" for one at a time.
    reason: what was seen of the model, empty for "padded".
    """

    together: Together = "padded"
    reason: str = ""


def batching(
    runner: Callable[[Sequence[Probe]], Runner],
    loaded: LoadedModel,
    probes: Sequence[Probe],
    every: Sequence[Probe],
    *,
    context: int,
    kernels: str,
    padding: bool = True,
) -> Batching:
    """How a model's sequences may lie together, by running some.

    runner: makes one for some probes. probes: those that are indexed. every: all that the model has, of which
        the first are asked the most.
    context: tokens of the longest sequence; limits that the configuration states are crossed if it does.
    padding: False where there shall be none in any case.
    Raises IndexerError where a sequence comes out in two ways though it is alone: the model is random, or
    remembers what it was given before.
    Cost: two forward passes over 5 and 24 tokens, and four through the first layers; for each limit three
    over sequences a little longer than it, through the first layers.
    """
    found = Batching() if padding else Batching("equal", "asked for")
    rows = Rows(kernels)
    for asked in _rounds(loaded, probes, every, context):
        with runner(asked.probes) as running:
            met = _Trial(running, loaded, rows, asked).batching(padding)
        if _ORDER.index(met.together) > _ORDER.index(found.together):
            found = met
    return found


_ORDER = get_args(Together)


@dataclass(frozen=True)
class _Round:
    """What is asked: lengths of sequences, ascending, by which probes, to cross which limit.

    again: whether they are the same alone once more. content: whether what stands in the padding moves them.
    """

    probes: Sequence[Probe]
    lengths: Sequence[int]
    limit: int | None = None
    again: bool = True
    content: bool = False


def _rounds(
    loaded: LoadedModel, probes: Sequence[Probe], every: Sequence[Probe], context: int
) -> Iterator[_Round]:
    """All layers are asked one question, the first ones more, and they alone about long sequences."""
    first, longest = first_layers(every, loaded), min(LONG, context)
    lengths = min(SHORT, max(1, longest // 2)), longest
    yield _Round(probes, lengths, again=False)
    yield _Round(first, lengths, content=True)
    for limit in sorted(limit for limit in _limits(_config(loaded)) if SHORT <= limit < context):
        reach = min(limit + BEYOND, context)
        yield _Round(first, sorted({SHORT, max(SHORT, reach - BEYOND + LESS_BEYOND), reach}), limit)


def _config(loaded: LoadedModel) -> dict[str, Any]:
    """The configuration of the model, its text part's entries in the place of those of the whole."""
    config = getattr(loaded.model, "config", None)
    return {} if config is None else {**config.to_dict(), **config.get_text_config().to_dict()}


def _limits(config: Mapping[str, Any]) -> set[int]:
    """The lengths that a configuration states, at any depth."""
    found: set[int] = set()

    def look(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                look(str(key), inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(name, inner)
        elif name in LIMITS and isinstance(value, int) and value > 0:
            found.add(value)

    look("", config)
    return found


def first_layers(probes: Sequence[Probe], loaded: LoadedModel) -> list[Probe]:
    """Those of the first layers, as many as it takes to have one of each kind."""
    kinds = list(_config(loaded).get("layer_types") or ())
    last = max([FIRST_LAYERS - 1, *(kinds.index(kind) for kind in set(kinds))])
    return [probe for probe in probes if probe.key.layer <= last] or list(probes[:1])


class _Trial:
    """Runs the sequences of one round, and compares all but the longest."""

    def __init__(self, runner: Runner, loaded: LoadedModel, rows: Rows, asked: _Round) -> None:
        self.runner, self.loaded, self.rows, self.asked = runner, loaded, rows, asked
        self.lengths = asked.lengths
        self.most = tolerance(loaded.dtype)
        self.rounding = self.most / 4
        self.tokens = _ordinary_tokens(loaded)
        self.ids = self._random(0, len(self.lengths), self.lengths[-1])
        # torch.compile makes a graph of its own for batches of one
        self.copies = 2 if runner.compiled else 1

    def batching(self, padding: bool) -> Batching:
        """What this round says."""
        alone = self._alone()
        # the longest one runs in either case, for the model may remember it
        beside = self._beside(1)
        if self.asked.again:
            self._check_same(alone)
        if not padding:
            return self._without_padding(alone, "asked for")
        if self.asked.content:
            moved = self._apart(self._beside(2), beside)
            if moved.off > SAME:
                return self._without_padding(alone, f"{moved} with what stands in the padding behind it")
        off = self._apart(beside, alone)
        if off.off <= self.rounding:
            return Batching()
        # where sums are long, or rounding grows from layer to layer, other shapes do as much without padding
        level = self._apart(self._equal(), alone).off
        if off.off <= min(4 * level, self.most):
            return Batching()
        return self._without_padding(alone, f"{off} beside a longer one from what it is alone")

    def _without_padding(self, alone: Kept, reason: str) -> Batching:
        off = self._apart(self._equal(), alone)
        if off.off <= self.most:
            return Batching("equal", reason)
        return Batching("single", f"{off} beside another of its length from what it is alone")

    def _check_same(self, before: Kept) -> None:
        """Raises IndexerError where the sequences, alone once more, are others than before."""
        again = self._alone()
        off = self._apart(again, before)
        if off.off <= self.rounding:
            return
        model = f"model {self.loaded.provenance['name']}"
        sequence = alone(self._mixed(self.ids), self.lengths.index(off.length), self.copies)
        if self._apart(self._run(sequence), self._run(sequence)).off > self.rounding:
            raise IndexerError(
                f"{model}: it is random: {off} from one run to the next; an index would hold for no other run"
            )
        limit = self.asked.limit
        way_out = "" if limit is None else f"; use --context {limit} or less"
        raise IndexerError(
            f"{model}: it remembers earlier sequences: {off} after a longer one from what it was before"
            f"{way_out}"
        )

    def _alone(self) -> Kept:
        mixed = self._mixed(self.ids)
        kept: Kept = {}
        # from long to short: some models forget with a short one what they remember
        for number in reversed(range(len(self.lengths) - 1)):
            kept |= self._run(alone(mixed, number, self.copies))
        return kept

    def _beside(self, seed: int) -> Kept:
        """All of them in one batch, with random tokens in the padding."""
        ids = self._random(seed, *self.ids.shape)
        for row, length in enumerate(self.lengths):
            ids[row, :length] = self.ids[row, :length]
        return self._run(self._mixed(ids))

    def _equal(self) -> Kept:
        """Each beside another of its length."""
        kept: Kept = {}
        for number, length in enumerate(self.lengths[:-1]):
            ids = np.stack([self.ids[number, :length], self.ids[-1, :length]])
            kept |= self._run(_batch(ids, [length, length], [number, len(self.lengths)]))
        return kept

    def _mixed(self, ids: NDArray[np.int64]) -> Part:
        return _batch(ids, self.lengths, range(len(self.lengths)))

    def _run(self, batch: Part) -> Kept:
        wanted = [(number, 0) for number in range(len(self.lengths) - 1) if number in batch.rows.document]
        return self.rows.of(self.runner, batch, wanted)

    def _apart(self, one: Kept, other: Kept) -> _Apart:
        """The largest difference of the sequences that two runs kept."""
        return max(
            _Apart(float(apart(rows, other[sequence].get(key, {}))), self.lengths[sequence[0]], key)
            for sequence, places in one.items()
            for key, rows in places.items()
        )

    def _random(self, seed: int, rows: int, width: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed).choice(self.tokens, (rows, width))


def _batch(ids: NDArray[np.int64], lengths: Sequence[int], documents: Sequence[int]) -> Part:
    """Rows of token ids as sequences of some documents, one each."""
    count, width = ids.shape
    length = np.array(lengths)
    inside = (np.arange(width) < length[:, None]).reshape(-1)
    start, flat = np.arange(count) * width, ids.reshape(-1).astype(np.int32)
    return Part(ids, length, Sequences(start, length, documents, np.zeros(count, np.int64), flat, inside))  # type: ignore[arg-type]


def _ordinary_tokens(loaded: LoadedModel) -> NDArray[np.int64]:
    """Token ids that have no part in a configuration, as those of padding and of places of images have."""
    special = [value for name, value in _config(loaded).items() if name.endswith(("token_id", "token_index"))]
    ids = np.arange(embedding_rows(loaded.model))
    ordinary = ids[~np.isin(ids, [value for value in special if isinstance(value, int)])]
    return ordinary if len(ordinary) else ids


@dataclass(frozen=True, order=True)
class _Apart:
    """A difference, and where it was seen."""

    off: float
    length: int
    key: Key

    def __str__(self) -> str:
        return f"a sequence of {self.length} tokens differs by {self.off:.1%}, at {self.key},"


def tolerance(dtype: torch.dtype) -> float:
    """How far apart a sequence may be in two batches of different shapes: `difference` by rounding alone."""
    return 4 * float(torch.finfo(dtype).eps) ** 0.5


def difference(one: Tensor, other: Tensor) -> Tensor:
    """How far apart two sets of activations of a sequence are: float32 [], on their device.

    one, other: [tokens, units]. The largest over tokens of |one - other| / |other|, their lengths as vectors
    over units. A token below a hundredth of the mean length counts as that long; values that are not finite
    count as zero on both sides.
    """
    finite = one.isfinite() & other.isfinite()
    other = torch.where(finite, other, 0).float()
    apart = (torch.where(finite, one, 0).float() - other).norm(dim=1)
    size = other.norm(dim=1)
    least = torch.finfo(torch.float32).tiny
    return (apart / size.clamp_min(least + size.mean() / 100)).max()


@dataclass(frozen=True)
class SequenceRows:
    """What a part of a probe makes of one sequence.

    position: int64 [rows], of each token that has a row; values: [rows, units].
    """

    position: NDArray[np.int64]
    values: Tensor

    @classmethod
    def of(cls, sequence: SequenceId, values: Values) -> SequenceRows | None:
        """A view of the rows of a sequence in the values of several; None where it is not among them."""
        document, ordinal = sequence
        sequences = values.sequences
        found = np.flatnonzero((sequences.document == document) & (sequences.ordinal == ordinal))
        if not len(found):
            return None
        start, length, _ = sequences.held
        rows = slice(start[found[0]], start[found[0]] + length[found[0]])
        at = np.arange(rows.start, rows.stop) if sequences.at is None else sequences.at[rows]
        return cls(at - sequences.start[found[0]], values.made()[rows])

    def copy(self) -> SequenceRows:
        """Of their own memory."""
        return SequenceRows(self.position, self.values.clone())

    def difference(self, other: SequenceRows) -> Tensor | None:
        """See `difference`, over the tokens that both have; None where these are none."""
        if np.array_equal(self.position, other.position):
            return difference(self.values, other.values) if len(self.position) else None
        _, mine, theirs = np.intersect1d(self.position, other.position, return_indices=True)
        return difference(self.values[mine], other.values[theirs]) if len(mine) else None


def apart(one: Mapping[int, SequenceRows], other: Mapping[int, SequenceRows]) -> Tensor:
    """How far apart the parts of a probe are, float32 []: 1 where no part meets a token in both.

    By another rounding a token may be routed to another expert, which says nothing.
    """
    both = (one[first].difference(other[first]) for first in one if first in other)
    found = [off for off in both if off is not None]
    return torch.stack(found).max() if found else torch.ones(())


def alone(batch: Batch, number: int, copies: int = 1) -> Part:
    """One sequence of a batch as a batch without padding; copies: how often it is in there."""
    length = int(batch.length[number])
    rows = batch.sequences().rows(number, number + 1)
    target = None if batch.target is None else alone(batch.target, number, copies)
    start = np.arange(copies) * length
    repeated = Sequences(
        start,
        np.full(copies, length),
        np.repeat(rows.document, copies),
        np.repeat(rows.ordinal, copies),
        np.tile(rows.token_ids[:length], copies),
        np.tile(rows.counted[:length], copies),
    )
    ids = np.tile(batch.token_ids[number, :length], (copies, 1))
    return Part(ids, repeated.length, repeated, target=target)


class Plain:
    """Computes values as a build does, keeps no statistics, and looks at them; `take` is for a Runner."""

    def __init__(self, kernels: str) -> None:
        self.kernels = kernels
        # nothing is counted, so they stay as they are, and serve all probes of one width
        self._statistics: dict[int, Statistics] = {}

    def take(self, key: Key, values: Values) -> None:
        """See models.runner.TakeAll."""
        units = values.matrix.shape[1]
        if units not in self._statistics:
            self._statistics[units] = Statistics.empty(units, Keep(top=0, bottom=0), kernels=self.kernels)
        values.into(self._statistics[units], counted=False)
        for part in values.parts():
            self.look(key, part)

    def look(self, key: Key, values: Values) -> None:
        """Look at a probe's values, which are made; here nothing does."""


class Rows(Plain):
    """Keeps the values of some sequences; keys: of which probes, all without it."""

    def __init__(self, kernels: str, keys: Collection[Key] | None = None) -> None:
        super().__init__(kernels)
        self.keys = keys
        self.kept: Kept = {}

    def of(self, runner: Runner, batch: Batch, wanted: Collection[SequenceId]) -> Kept:
        """Those of some sequences of a batch, which is run for them."""
        self.kept = {sequence: {} for sequence in wanted}
        runner.run_for(batch, self.take)
        return self.kept

    def look(self, key: Key, values: Values) -> None:
        if self.keys is not None and key not in self.keys:
            return
        if values.source is not None:
            # all parts have the same one
            if values.first:
                return
            values = replace(values, matrix=values.source, function=None)
        for sequence, places in self.kept.items():
            rows = SequenceRows.of(sequence, values)
            if rows is not None:
                places.setdefault(key, {}).setdefault(values.first, rows.copy())
