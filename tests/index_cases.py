"""Small records and indexes for tests of the index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from indexer_kernels import Bands, Histogram, Keep, Moments, Sequences, TopK
from indexer_kernels.histogram import bins_of
from indexer_kernels.moments import POWERS
from numpy.typing import NDArray

from benchmarks.synthetic import exact_sums
from indexer.index import schema
from indexer.index.codecs import CODECS, EXAMPLES
from indexer.index.records import LayerRecord
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key

SECTIONS: dict[str, Any] = {
    "model": {"name": "tiny", "digest": "0" * 64},
    "tokenizer": {"name": "tiny"},
    "corpus": {"files": [{"source": "a.txt", "bytes": 10}]},
    "configuration": {"top": 3, "bottom": 2, "by": "sequence", "window": [2, 1], "context": 9},
    "totals": {"documents": 5},
    "software": {"python": "3"},
}
KEEP = Keep(top=3, bottom=2, window=(2, 1), samples=1, seed=3)
TOKENS = Vocabulary([" the", "##ing", "%", "Größe", "", "\n", " a'b", "100%25"])


def ragged_record(layer: int = 0, units: int = 7, seed: int = 0) -> LayerRecord:
    """A record made from sequences of activations, some units with fewer examples than places, one with none.

    Unit 0 saw NaN only; unit 1 saw infinities too; unit 2 saw zeros only, minus zero among them.
    """
    random = np.random.default_rng(seed)
    sequences = [random.normal(size=(length, units)).astype(np.float32) for length in (5, 1, 9, 2)]
    for values in sequences:
        values[:, 0] = np.nan
        values[:, 2] = np.where(random.random(len(values)) < 0.5, -0.0, 0.0)
    sequences[0][1, 1], sequences[2][3, 1] = np.inf, -np.inf
    every = np.concatenate(sequences)
    finite = np.isfinite(every)
    columns = [every[finite[:, unit], unit].astype(np.float64) for unit in range(units)]
    histogram = Histogram.empty(units)
    for unit, values in enumerate(columns):
        np.add.at(histogram.low[unit], bins_of(values.astype(np.float32)), 1)
    powers = [[(values**power).sum() for power in range(1, POWERS + 1)] for values in columns]
    moments = Moments(
        nan=np.isnan(every).sum(axis=0),
        inf=np.isinf(every).sum(axis=0),
        minimum=np.array([min(values, default=np.inf) for values in columns], np.float32),
        maximum=np.array([max(values, default=-np.inf) for values in columns], np.float32),
        sums=exact_sums(np.array(powers)),
        pending=np.zeros(units, np.int32),
    )
    return LayerRecord(
        key=Key(MLP, layer),
        count=np.full(units, len(every)),
        states={
            "moments": moments,
            "histogram": histogram,
            "top": _best(sequences, units, 3, 1, random),
            "bottom": _best(sequences, units, 2, -1, random),
            "samples": _sampled(sequences, units, layer, random),
        },
    )


def without_examples(record: LayerRecord, *ends: str) -> LayerRecord:
    """The same but for the ends named and the samples, of which no place is kept."""
    none: dict[str, Any] = {end: TopK.empty(record.units, 0, largest=end == "top") for end in ends}
    return with_states(record, samples=Keep().bands(record.units), **none)


def with_states(record: LayerRecord, **states: Any) -> LayerRecord:
    """The same but for some states."""
    return replace(record, states={**record.states, **states})


def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of a few rows, as far as their number allows."""
    monkeypatch.setattr(schema, "UNIT_ROWS", 10)
    monkeypatch.setattr(EXAMPLES, "rows_of_a_group", 10)
    for codec in CODECS:
        monkeypatch.setattr(codec, "units_of_a_group", 3)


def _best(sequences: list[np.ndarray], units: int, places: int, sign: int, random: Any) -> TopK:
    """By sequence, with windows of up to two tokens before the peak and one after."""
    found = TopK.empty(units, places, largest=sign > 0, window=(2, 1))
    # what lies beyond the filled places and lengths must not matter
    for array in (found.value, found.activations):
        array[:] = np.nan
    found.up[:] = np.inf
    for array in (found.document, found.sequence, found.position, found.token_ids, found.window_start):
        array[:] = -99
    for unit in range(units):
        candidates = []
        for number, values in enumerate(sequences):
            score = np.where(np.isfinite(values[:, unit]), sign * (values[:, unit] + 0.0), -np.inf)
            if np.isfinite(score).any():
                candidates.append((-score.max(), number, int(score.argmax())))
        for place, (_, number, position) in enumerate(sorted(candidates)[:places]):
            values = sequences[number][:, unit]
            start, end = max(position - 2, 0), min(position + 2, len(values))
            found.filled[unit] += 1
            found.value[unit, place] = values[position]
            # of some the other factor is not known
            found.up[unit, place] = (np.nan, -0.5, 2.0)[(unit + place) % 3]
            found.document[unit, place] = number + (number > 1) * (1 << 40)
            found.sequence[unit, place] = number
            found.position[unit, place] = position
            found.window_start[unit, place] = start
            found.window_length[unit, place] = end - start
            found.token_ids[unit, place, : end - start] = random.integers(0, len(TOKENS), end - start)
            found.activations[unit, place, : end - start] = values[start:end]
    return found


def _sampled(sequences: list[np.ndarray], units: int, layer: int, random: Any) -> Bands:
    """Of every band the sequence with the smallest hash, the windows as those of `_best`."""
    found = KEEP.bands(units, str(Key(MLP, layer)))
    for number, values in enumerate(sequences):
        document = number + (number > 1) * (1 << 40)
        token_ids = random.integers(0, len(TOKENS), len(values)).astype(np.int32)
        found.update(values, Sequences.from_offsets([0, len(values)], [document], [number], token_ids))
    return found


def documents() -> pa.Table:
    """More documents than the examples of `ragged_record` point to, out of order, one of unknown length."""
    ids = [3 + (1 << 40), 1, 0, 2 + (1 << 40), 77]
    return pa.table(
        {
            "document": ids,
            "source": ["b.txt", "a.txt", "a.txt", "b.txt", "a.txt"],
            "row": [3, 1, 0, 2, 77],
            "characters": pa.array([5, None, 7, 8, 9], pa.int64()),
        }
    )


def token_counts() -> NDArray[np.int64]:
    """As many as a `ragged_record` has counted tokens."""
    return np.array([9, 1, 0, 3, 0, 4, 0, 0])


def write_index(
    output: Path,
    records: list[LayerRecord],
    *,
    overwrite: bool = False,
    counts: NDArray[np.int64] | None = None,
) -> Path:
    """Write an index of records that point to `documents`; counts: of each token, else of `token_counts`."""
    with IndexWriter(output, TOKENS, overwrite=overwrite) as writer:
        for record in records:
            writer.add_layer(record)
        return writer.publish(SECTIONS, documents(), token_counts() if counts is None else counts)
