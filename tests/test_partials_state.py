"""Statistics that were stopped, written down and restored continue as if nothing had happened."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from indexer_kernels import Keep, Sequences, Statistics

from indexer.index.manifest import read_manifest
from indexer.index.records import LayerRecord
from indexer.index.restore import read_layer
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key
from indexer.partials.state import record_of, statistics_of
from tests.index_cases import SECTIONS
from tests.kernel_cases import assert_equal, some_activations, some_sequences
from tests.test_restore import assert_same

UNITS = 33
BATCHES = 4
KEY = Key(MLP, 2)
KEEP = Keep(top=5, bottom=4, window=(6, 3), samples=2, seed=6)
Batch = tuple[torch.Tensor, Sequences]


def batches(seed: int = 0, tokens: int = 300) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(BATCHES):
        activations = some_activations(tokens, UNITS, rng, torch.float32)
        activations[:, 0] = torch.nan
        activations[:, 1] = 0.25
        made.append((activations, some_sequences(tokens, rng, first_document=100 * number)))
    return made


def gathered(parts: list[Batch], keep: Keep, kernels: str) -> Statistics:
    statistics = Statistics.empty(UNITS, keep, layer=str(KEY), kernels=kernels, threads=1)
    for part in parts:
        statistics.update(*part)
    return statistics


def stored(record: LayerRecord, keep: Keep, folder: Path) -> LayerRecord:
    """The record after it has been written to an index and read back."""
    configuration = {**dataclasses.asdict(keep), "context": 1_000}
    with IndexWriter(folder / "i", Vocabulary([str(number) for number in range(30_000)])) as writer:
        writer.add_layer(record)
        ids = writer.documents
        table = pa.table({"document": ids, "source": ["a"] * len(ids), "row": ids, "characters": ids})
        index = writer.publish(
            {**SECTIONS, "configuration": configuration}, table, np.zeros(30_000, np.int64)
        )
    return read_layer(index, read_manifest(index), record.key)


KEEPS = {
    "both": KEEP,
    "top": dataclasses.replace(KEEP, bottom=0),
    "bottom": dataclasses.replace(KEEP, top=0),
    "samples": dataclasses.replace(KEEP, top=0, bottom=0),
    "none": dataclasses.replace(KEEP, samples=0),
    "never full": dataclasses.replace(KEEP, top=5_000, bottom=5_000),
    "no window": dataclasses.replace(KEEP, window=(0, 0)),
    "wide window": dataclasses.replace(KEEP, window=(40, 600)),
}


@pytest.mark.parametrize("by", ["sequence", "token", "document"])
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
@pytest.mark.parametrize("kept", KEEPS)
def test_continuing_is_never_having_stopped(by: str, kernels: str, kept: str, tmp_path: Path) -> None:
    keep = dataclasses.replace(KEEPS[kept], by=by)
    if kept == "never full" and kernels == "reference":
        keep = dataclasses.replace(keep, top=150, bottom=150)
    whole = batches(tokens=30 if kernels == "reference" else 300)
    expected = gathered(whole, keep, kernels)
    for stop in (0, 1, 3):
        record = record_of(gathered(whole[:stop], keep, kernels), KEY)
        if stop == 3:
            record = stored(record, keep, tmp_path)
        restored = statistics_of(record, kernels=kernels, threads=1)
        for part in whole[stop:]:
            restored.update(*part)
        assert_equal(restored, expected)


@pytest.mark.parametrize("before", ["cpp", "reference"])
def test_another_kernel_may_continue(before: str) -> None:
    after = {"cpp": "reference", "reference": "cpp"}[before]
    whole = batches(1, 100)
    record = record_of(gathered(whole[:2], KEEP, before), KEY)
    restored = statistics_of(record, kernels=after, threads=1)
    for part in whole[2:]:
        restored.update(*part)
    assert_equal(restored, gathered(whole, KEEP, before))


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_a_copy_leaves_the_statistics_as_they_were(kernels: str) -> None:
    whole = batches(2, 100)
    statistics = gathered(whole[:2], KEEP, kernels)
    record = copy.deepcopy(record_of(statistics, KEY))
    before = copy.deepcopy(record)
    for part in whole[2:]:
        statistics.update(*part)
    assert_equal(statistics, gathered(whole, KEEP, kernels))
    assert_same(record, before)
