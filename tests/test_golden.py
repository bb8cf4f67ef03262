"""The numbers of an index stay the same, bit for bit, whatever becomes of the code.

tests/golden.json holds a digest of every column of some indexes, made from fixed activations. It changes
where the definitions of the format change, and for nothing else:
`python -m tests.test_golden` writes it anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from indexer_kernels import Keep, Statistics

import indexer
from indexer.index.codecs import MOMENTS
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key
from indexer.partials.state import record_of
from tests.index_cases import SECTIONS
from tests.kernel_cases import some_activations, some_sequences

GOLDEN = Path(__file__).with_name("golden.json")
LAYERS = {0: torch.float32, 5: torch.bfloat16}
TOKENS = 30_000
PLAIN = Keep(top=6, bottom=3, window=(9, 4))
KEEPS = {
    **{by: replace(PLAIN, by=by) for by in ("sequence", "token", "document")},
    "samples": replace(PLAIN, samples=2, seed=7),
}
ORDERS = {
    "units": "layer, unit",
    "examples": "layer, unit, kind, band DESC, rank",
    "histograms": "layer, unit, lower, upper",
    "documents": "document",
    "vocabulary": "token_id",
}


def golden_index(output: Path, keep: Keep, kernels: str) -> Path:
    """An index of two layers over three batches of activations."""
    vocabulary = Vocabulary([f" {number:x}" for number in range(TOKENS)])
    counts = np.zeros(TOKENS, np.int64)
    documents: set[int] = set()
    with IndexWriter(output, vocabulary) as writer:
        for layer, dtype in LAYERS.items():
            key = Key(MLP, layer)
            statistics = Statistics.empty(37, keep, layer=str(key), kernels=kernels)
            rng = np.random.default_rng(7)
            for batch in range(3):
                sequences = some_sequences(1500, rng, first_document=100 * batch)
                statistics.update(some_activations(1500, 37, rng, dtype), sequences)
                documents |= set(sequences.document.tolist())
                if not layer:
                    inside = np.zeros(1500, bool)
                    for start, length in zip(sequences.start, sequences.length, strict=True):
                        inside[start : start + length] = True
                    counts += np.bincount(sequences.token_ids[inside & sequences.counted], minlength=TOKENS)
            writer.add_layer(record_of(statistics, key))
        ids = sorted(documents)
        table = pa.table(
            {
                "document": ids,
                "source": [f"{number >> 40}.txt" for number in ids],
                "row": [0] * len(ids),
                "characters": pa.array([None if number % 3 else 5 for number in ids], pa.int64()),
            }
        )
        return writer.publish(SECTIONS, table, counts)


def digests(index: Path) -> dict[str, str]:
    """SHA-256 of what every column holds, exactly, whatever the types that hold it."""
    with indexer.open_index(index) as opened:
        tables = {
            name: opened.sql(f"SELECT * FROM {name} ORDER BY {order}") for name, order in ORDERS.items()
        }
    for layer in LAYERS:
        tables[f"sums.{layer}"] = pq.read_table(index / MOMENTS.file(Key(MLP, layer)))
    return {
        f"{name}.{column}": hashlib.sha256(repr(table[column].to_pylist()).encode()).hexdigest()[:16]
        for name, table in tables.items()
        for column in table.column_names
    }


@pytest.mark.parametrize("kernels", ["reference", "cpp"])
@pytest.mark.parametrize("kept", KEEPS)
def test_every_column_is_as_it_was(kept: str, kernels: str, tmp_path: Path) -> None:
    found = digests(golden_index(tmp_path / "i", KEEPS[kept], kernels))
    assert found == json.loads(GOLDEN.read_text())[kept]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole = {
            kept: digests(golden_index(Path(folder) / kept, keep, "reference"))
            for kept, keep in KEEPS.items()
        }
    GOLDEN.write_text(json.dumps(whole, indent=1) + "\n")
