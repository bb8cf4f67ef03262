"""docs/add-a-statistic.md is true: its state and its codec, added as it says, work wherever statistics do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from indexer_kernels import Keep, Statistics

from indexer.errors import IndexerError
from indexer.index import codecs
from indexer.index.manifest import read_manifest
from indexer.index.read import open_index
from indexer.index.restore import read_layer
from indexer.index.verify import verify_index
from indexer.names import MLP, Key
from indexer.partials.merge import merge_indexes
from indexer.partials.state import record_of, statistics_of
from tests.partial_cases import KEEP, some_index, some_parts

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-statistic.md").read_text()


def module(name: str) -> ModuleType:
    """A module of the code that stands below a mark of the page."""
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    # a dataclass looks its module up
    made = sys.modules[f"page_{name}"] = ModuleType(f"page_{name}")
    exec(compile(found[1], f"add-a-statistic.md, {name}", "exec"), made.__dict__)
    return made


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps 2 and 4 of the page."""
    above, codec = module("state").Above, module("codec").AboveCounts
    states = Keep.states
    monkeypatch.setattr(
        Keep,
        "states",
        lambda keep, units, *which: states(keep, units, *which) | {"above": above.empty(units)},
    )
    monkeypatch.setattr(codecs, "CODECS", codecs.CODECS)
    codecs.CODECS.append(codec())
    yield
    codecs.CODECS.pop()


def counted(numbers: range, seed: int) -> list[int]:
    """What some parts of the corpus have above 1, counted another way."""
    total = 0
    parts = some_parts(7, seed=seed)
    for activations, sequences in (parts[number] for number in numbers):
        values = np.where(sequences.counted.astype(bool)[:, None], activations.numpy(), 0)
        total = total + ((values > 1) & np.isfinite(values)).sum(axis=0)
    return list(total)


@pytest.mark.parametrize("kernels", ["reference", "cpp"])
def test_it_is_gathered_beside_every_kernel(kernels: str) -> None:
    statistics = Statistics.empty(12, KEEP, layer="mlp.0", kernels=kernels, threads=1)
    for part in some_parts(7)[:3]:
        statistics.update(*part)
    found: Any = record_of(statistics, Key(MLP, 0)).states["above"]
    assert sum(found.counts) > 0
    assert found.counts.tolist() == counted(range(3), 0)


def test_it_is_written_verified_merged_and_asked(tmp_path: Path) -> None:
    parts = [some_index(tmp_path / f"{number}", [number]) for number in range(3)]
    index = merge_indexes(parts, tmp_path / "whole")
    assert "above" in read_manifest(index).sites[0].statistics
    verify_index(index, full=True)
    with open_index(index) as opened:
        rows = opened.sql("SELECT site, layer, unit, count FROM above ORDER BY layer, unit")
    assert rows["count"].to_pylist() == [*counted(range(3), 0), *counted(range(3), 3)]


def test_an_index_from_before_has_none(tmp_path: Path) -> None:
    added = codecs.CODECS.pop()
    old = [some_index(tmp_path / f"old{number}", [number]) for number in range(2)]
    codecs.CODECS.append(added)
    new = some_index(tmp_path / "new", [2])
    assert "above" not in read_manifest(merge_indexes(old, tmp_path / "merged")).sites[0].statistics
    verify_index(tmp_path / "merged", full=True)
    with pytest.raises(IndexerError, match="statistics"):
        merge_indexes([*old, new], tmp_path / "all")


def test_a_build_continues_from_what_was_written(tmp_path: Path) -> None:
    index = some_index(tmp_path / "i", range(3))
    statistics = statistics_of(read_layer(index, read_manifest(index), Key(MLP, 0)), threads=1)
    for part in some_parts(7)[3:5]:
        statistics.update(*part)
    found: Any = record_of(statistics, Key(MLP, 0)).states["above"]
    assert found.counts.tolist() == counted(range(5), 0)
