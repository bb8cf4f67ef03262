"""Partial states and indexes of parts of one corpus, with the whole that they are parts of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from indexer_kernels import Keep, Sequences, Statistics
from numpy.typing import NDArray

from indexer.index.records import LayerRecord
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key
from indexer.partials.state import record_of
from tests.kernel_cases import some_activations

Part = TypeVar("Part")
KEEP = Keep(top=5, bottom=3, window=(6, 3), samples=2, seed=4)
VOCABULARY = Vocabulary([f" {number}" for number in range(300)])
ROWS = 100
FILES = 3
# what some_index is made of, and what it may do to an index's manifest
PARTS = 7
LAYERS = (0, 3)
Change = Callable[[dict[str, Any]], None]


def some_parts(count: int, units: int = 12, tokens: int = 60, seed: int = 0) -> list[tuple[Any, Sequences]]:
    """Batches of which each holds other documents, several of a file; with ties, NaN and infinities."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(count):
        # one corpus, whatever the activations are
        text = np.random.default_rng((3, number))
        activations = some_activations(tokens, units, rng, torch.float32)
        activations[:, 0] = torch.nan
        activations[:, 1] = 0.5
        ends = np.cumsum(text.choice([1, 2, 5, 9, 14], tokens))
        ends = np.append(ends[ends < tokens], tokens)
        ordinal = np.arange(len(ends))
        # part 0 has rows 0-99 of file 0, part 1 those of file 1, ..., part 3 rows 100-199 of file 0
        first = (number % FILES) << 40 | (number // FILES * ROWS)
        sequences = Sequences.from_offsets(
            np.concatenate([[0], ends]),
            first + ordinal // 3,
            ordinal % 3,
            text.integers(0, len(VOCABULARY), tokens).astype(np.int32),
            text.random(tokens) < 0.9,
        )
        parts.append((activations, sequences))
    return parts


def record(parts: Sequence[tuple[Any, Sequences]], keep: Keep = KEEP, layer: int = 0) -> LayerRecord:
    """The record of one pass of the reference over all parts."""
    units = parts[0][0].shape[1] if parts else 12
    key = Key(MLP, layer)
    statistics = Statistics.empty(units, keep, layer=str(key), kernels="reference", threads=1)
    for part in parts:
        statistics.update(*part)
    return record_of(statistics, key)


def token_counts(parts: Sequence[tuple[Any, Sequences]]) -> NDArray[np.int64]:
    """How often each token of VOCABULARY was counted in some parts."""
    ids = [sequences.token_ids[sequences.counted.astype(bool)] for _, sequences in parts]
    return np.bincount(np.concatenate([np.zeros(0, np.int32), *ids]), minlength=len(VOCABULARY))


def in_a_tree(parts: Sequence[Part], merge: Callable[[list[Part]], Part], seed: int) -> Part:
    """All parts merged in a random order and grouping, two to four at a time."""
    rng = random.Random(seed)
    left = list(parts)
    while len(left) > 1:
        rng.shuffle(left)
        size = rng.randint(2, min(4, len(left)))
        left = [merge(left[:size]), *left[size:]]
    return left[0]


def write_part(
    output: Path,
    numbers: Sequence[int],
    records: Sequence[LayerRecord],
    parts: Sequence[tuple[Any, Sequences]],
    change: Callable[[dict[str, Any]], None] = lambda sections: None,
    keep: Keep = KEEP,
) -> Path:
    """An index of the parts `numbers`, with the manifest that a build of them would have written.

    parts: what the records are of. change: what to do to the manifest's sections.
    """
    documents = documents_of(parts)
    sections: dict[str, Any] = {
        "model": {"name": "tiny", "digest": "0" * 64, "dtype": "float32", "matmul": "torch", "torch": "2"},
        "tokenizer": {"digest": "1" * 64},
        "corpus": {
            "listing": "2" * 64,
            "sources": [[f"{number}.txt", 10] for number in range(FILES)],
            "coverage": sorted((_range(number) for number in numbers), key=lambda r: (r["file"], r["first"])),
            "files": [
                {"source": f"{file}.txt", "bytes": 10, "sha256": f"{file}" * 64}
                for file in sorted({number % FILES for number in numbers})
            ],
            "documents": len(documents),
            "characters": 7 * len(documents),
        },
        "configuration": {
            "model": "tiny", "corpus": ["data"], "output": str(output), "top": keep.top,
            "bottom": keep.bottom, "samples": keep.samples, "seed": keep.seed,
            "by": keep.by, "window": list(keep.window), "context": 2_000,
            "dtype": "auto", "shard": [0, 2], "threads": 1, "numerics": "fast", "append": False,
        },
        "totals": {
            "documents": len(documents), "counted_tokens": int(records[0].count[0]) if records else 0,
            "seconds": 0.125 * len(numbers), "peak_memory_bytes": 1_000 + numbers[0] if numbers else 0,
            "non_finite": int(sum(one.moments.nan.sum() + one.moments.inf.sum() for one in records)),
            "first_non_finite": _first_non_finite(numbers),
        },
        "software": {"python": "3", "torch": "2", "kernels": "reference"},
    }  # fmt: skip
    change(sections)
    with IndexWriter(output, VOCABULARY) as writer:
        for one in records:
            writer.add_layer(one)
        ids = np.array(sorted(documents), np.int64)
        table = {
            "document": ids,
            "source": [f"{number >> 40}.txt" for number in ids.tolist()],
            "row": ids & ((1 << 40) - 1),
            "characters": ids % 1_000,
        }
        return writer.publish(sections, pa.table(table), token_counts(parts))


def _range(number: int) -> dict[str, Any]:
    first = number // FILES * ROWS
    facts = {"documents": 5, "characters": 35, "digest": f"{number}" * 64}
    return {"file": number % FILES, "first": first, "end": first + ROWS, **facts}


def _first_non_finite(numbers: Sequence[int]) -> dict[str, Any] | None:
    if not numbers:
        return None
    ranges = [_range(number) for number in numbers]
    document = min(one["file"] << 40 | one["first"] for one in ranges)
    place = {"document": document, "sequence": 0, "position": 0}
    return {**place, "layer": 0, "site": MLP, "unit": 0, "value": "nan"}


def documents_of(parts: Sequence[tuple[Any, Sequences]]) -> list[int]:
    """Ids of the documents of some parts."""
    return sorted({int(number) for _, sequences in parts for number in sequences.document})


def rows(index: Path) -> dict[str, pa.Table]:
    """Every row of every file of an index, activations as their bits: NaN is equal to itself then."""
    return {
        str(file.relative_to(index)): _with_bits(pq.read_table(file))
        for file in sorted(index.rglob("*.parquet"))
    }


def _with_bits(table: pa.Table) -> pa.Table:
    if "activations" not in table.column_names:
        return table
    windows = table["activations"].combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(windows.value_lengths().to_numpy())]).astype(np.int32)
    bits = pa.ListArray.from_arrays(pa.array(offsets), windows.flatten().view(pa.int32()))
    return table.set_column(table.column_names.index("activations"), "activations", bits)


def some_index(output: Path, numbers: Sequence[int], change: Change = lambda sections: None) -> Path:
    """An index of some of PARTS parts, of two layers with values of their own."""
    records = []
    for layer in LAYERS:
        parts = some_parts(PARTS, seed=layer)
        records.append(record([parts[number] for number in numbers], layer=layer))
    corpus = some_parts(PARTS)
    return write_part(output, numbers, records, [corpus[number] for number in numbers], change)
