"""Merged indexes are the index of one build over everything, row for row."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from indexer_kernels import Keep

from benchmarks.child import measured
from benchmarks.synthetic import (
    Size,
    configuration,
    synthetic_documents,
    synthetic_records,
    synthetic_token_counts,
    synthetic_vocabulary,
)
from indexer.engines.shards import merge_parts
from indexer.errors import IndexerError
from indexer.index import output as output_module
from indexer.index import schema
from indexer.index.manifest import read_manifest, sha256
from indexer.index.read import open_index
from indexer.index.verify import verify_index
from indexer.index.write import IndexWriter
from indexer.partials import merge as merge_module
from indexer.partials.merge import merge_indexes
from tests import index_cases
from tests.partial_cases import (
    LAYERS,
    PARTS,
    in_a_tree,
    record,
    rows,
    some_index,
    some_parts,
    write_part,
)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups and blocks, small as the layers are."""
    index_cases.small_groups(monkeypatch)
    monkeypatch.setattr(schema, "DOCUMENT_ROWS", 4)
    monkeypatch.setattr(merge_module, "BLOCK_BYTES", 20_000)


def assert_same_rows(left: Path, right: Path) -> None:
    ours, theirs = rows(left), rows(right)
    assert list(ours) == list(theirs)
    for name, table in ours.items():
        assert table.equals(theirs[name]), name


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_any_tree_is_the_whole_row_for_row(seed: int, tmp_path: Path) -> None:
    whole = some_index(tmp_path / "whole", range(PARTS))
    parts = [some_index(tmp_path / f"part{number}", [number]) for number in range(PARTS)]
    merged = 0

    def merge(group: list[Path]) -> Path:
        nonlocal merged
        merged += 1
        return merge_indexes(group, tmp_path / f"merged{merged}")

    index = in_a_tree(parts, merge, seed)
    assert_same_rows(index, whole)
    assert_same_rows(merge(parts[::-1]), whole)
    verify_index(index, full=True)
    for file in index.rglob("*.parquet"):
        assert pq.ParquetFile(file).num_row_groups <= schema.MOST_ROW_GROUPS
    assert pq.ParquetFile(index / "examples/mlp.0.parquet").num_row_groups > 2
    with open_index(index) as opened, open_index(whole) as expected:
        assert opened.top("mlp.3.5").equals(expected.top("mlp.3.5"))
        assert opened.sql("SELECT * FROM units").equals(expected.sql("SELECT * FROM units"))


@pytest.mark.usefixtures("small_groups")
def test_files_have_no_more_row_groups_than_the_format_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_ROW_GROUPS", 4)
    parts = [some_index(tmp_path / f"part{number}", [number]) for number in range(PARTS)]
    merged = merge_indexes(parts, tmp_path / "merged")
    for file in merged.rglob("*.parquet"):
        assert pq.ParquetFile(file).num_row_groups <= 4, file
    assert pq.ParquetFile(merged / "histograms/mlp.0.parquet").num_row_groups > 1


def test_parts_that_saw_several_ranges_merge(tmp_path: Path) -> None:
    parts = [some_index(tmp_path / "left", [0, 2, 3, 6]), some_index(tmp_path / "right", [1, 4, 5])]
    whole = some_index(tmp_path / "whole", range(PARTS))
    assert_same_rows(merge_indexes(parts, tmp_path / "merged"), whole)


def test_a_part_without_a_token_adds_nothing(tmp_path: Path) -> None:
    index = some_index(tmp_path / "some", [1, 2])
    nothing = some_index(tmp_path / "nothing", [])
    assert_same_rows(merge_indexes([nothing, index], tmp_path / "merged"), index)
    assert_same_rows(merge_indexes([nothing], tmp_path / "nothing again"), nothing)


def test_the_manifest_is_that_of_the_whole(tmp_path: Path) -> None:
    parts = [some_index(tmp_path / f"part{number}", [number]) for number in (4, 0, 1)]
    whole = read_manifest(some_index(tmp_path / "whole", [0, 1, 4]))
    progress: list[float] = []
    merged = read_manifest(merge_indexes(parts, tmp_path / "merged", progress=progress.append))
    assert progress == sorted(progress)
    assert progress[-1] == 1
    for name in ("listing", "sources", "coverage", "documents", "characters"):
        assert merged.corpus[name] == whole.corpus[name], name
    assert merged.corpus["merged_from"] == [
        {"index": part.name, "manifest": sha256(part / "manifest.json")} for part in sorted(parts)
    ]
    assert merged.corpus["files"] == [
        {"source": "0.txt", "bytes": 10, "sha256": "0" * 64},
        # parts 1 and 4 are of the same file: neither read it whole
        {"source": "1.txt", "bytes": None, "sha256": None},
    ]
    assert merged.totals == {
        **whole.totals, "documents": merged.corpus["documents"], "seconds": 0.375, "peak_memory_bytes": 1_004,
    }  # fmt: skip
    assert merged.totals["first_non_finite"] == read_manifest(tmp_path / "part0").totals["first_non_finite"]
    assert merged.configuration == {
        **whole.configuration, "output": str(tmp_path / "merged"), "shard": None
    }  # fmt: skip
    assert merged.layers == whole.layers
    assert merged.software["kernels"] == "reference"
    assert merged.software["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (merged.model, merged.tokenizer) == (whole.model, whole.tokenizer)


def test_only_documents_that_winners_point_to_are_kept(tmp_path: Path) -> None:
    few = Keep(top=2, bottom=0, window=(6, 3))
    parts = []
    for number, part in enumerate(some_parts(PARTS)):
        records = [record([part], few, layer) for layer in LAYERS]
        parts.append(write_part(tmp_path / f"part{number}", [number], records, [part], keep=few))
    merged = merge_indexes(parts, tmp_path / "merged")
    table = pq.read_table(merged / "documents.parquet")
    pointed: set[int] = set()
    for layer in LAYERS:
        examples = pq.read_table(merged / f"examples/mlp.{layer}.parquet", columns=["document"])
        pointed.update(examples["document"].to_pylist())
    assert table["document"].to_pylist() == sorted(pointed)
    assert len(pointed) < sum(pq.read_metadata(part / "documents.parquet").num_rows for part in parts)
    for row in table.to_pylist():
        assert row["source"] == f"{row['document'] >> 40}.txt"
        assert row["row"] == row["document"] & ((1 << 40) - 1)
        assert row["characters"] == row["document"] % 1_000


def test_the_output_may_be_an_input(tmp_path: Path) -> None:
    one, other = some_index(tmp_path / "one", [0]), some_index(tmp_path / "other", [1])
    expected = merge_indexes([one, other], tmp_path / "expected")
    assert merge_indexes([one, other], one, overwrite=True) == one
    assert_same_rows(one, expected)


def test_a_merge_that_is_repeated_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [some_index(tmp_path / f"part{number}", [number]) for number in range(4)]
    output = merge_parts(parts[:3], tmp_path / "merged")

    def changed(inputs: list[Path], overwrite: bool = False) -> bool:
        before = sha256(output / schema.MANIFEST), (output / schema.MANIFEST).stat().st_ino
        assert merge_parts(inputs, output, overwrite=overwrite) == output
        return before != (sha256(output / schema.MANIFEST), (output / schema.MANIFEST).stat().st_ino)

    assert not changed(parts[2::-1])
    assert "is merged already, of the same indexes" in capsys.readouterr().err
    for others in (parts[:2], parts[1:], parts):
        with pytest.raises(IndexerError, match="already exists"):
            merge_parts(others, output)
    assert changed(parts[:3], overwrite=True)
    # the output is an input, and holds the other one when the call is repeated
    assert changed([output, parts[3]], overwrite=True)
    assert not changed([output, parts[3]], overwrite=True)
    assert_same_rows(output, merge_indexes(parts, tmp_path / "whole"))


@pytest.mark.parametrize(
    "path", ["sums/mlp.0.parquet", "examples/mlp.3.parquet", "histograms/mlp.0.parquet", "documents.parquet"]
)
def test_a_damaged_input_leaves_the_output_as_it_was(path: str, tmp_path: Path) -> None:
    one, other = some_index(tmp_path / "one", [0]), some_index(tmp_path / "other", [1])
    content = bytearray((other / path).read_bytes())
    metadata = pq.read_metadata(other / path).row_group(0)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    # tokens and texts are put together anew
    column = [column for column in columns if column.path_in_schema not in ("token", "text")][-1]
    # within a page, whose checksum tells
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin + column.total_compressed_size - 2] ^= 8
    (other / path).write_bytes(bytes(content))
    before = rows(one)
    with pytest.raises(IndexerError, match=re.escape(str(other / path))):
        merge_indexes([one, other], one, overwrite=True)
    assert all(table.equals(before[name]) for name, table in rows(one).items())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other"]


PEAK = """
import json, resource, sys
from pathlib import Path
from indexer.partials import merge
merge.BLOCK_BYTES = 4 << 20
merge.merge_indexes([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
assert "torch" not in sys.modules
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    """A peer holding all inputs would take 40 MB more for each four."""
    size = Size(layers=1, units=1_000, top=10, bottom=10, documents=500)
    parts = []
    for number in range(12):
        part = tmp_path / f"part{number}"
        with IndexWriter(part, synthetic_vocabulary(size.vocabulary)) as writer:
            for one in synthetic_records(size, seed=number % 2):
                writer.add_layer(one)
            sections = {name: {} for name in ("model", "tokenizer", "totals", "software")}
            sections |= {"configuration": configuration(size)}
            ranges = [{"file": 0, "first": number, "end": number + 1}]
            sections |= {"corpus": {"listing": "0", "coverage": ranges}}
            writer.publish(sections, synthetic_documents(size), synthetic_token_counts(size))
        parts.append(str(part))
    peaks = []
    for count in (2, 12):
        output = tmp_path / f"merged{count}"
        peaks.append(measured([sys.executable, "-c", PEAK, str(output), *parts[:count]]).peak_bytes)
        with open_index(output) as opened:
            assert opened.unit(0, 0)["count"].to_pylist() == [count * size.count]
        verify_index(output, full=True)
    # ten more inputs of 10 MB of examples each
    assert peaks[1] < peaks[0] + 20e6


@pytest.mark.parametrize("failing", range(0, 15, 2))
def test_a_disk_that_fails_leaves_nothing(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [some_index(tmp_path / f"part{number}", [number]) for number in range(2)]
    calls = iter(range(1_000))

    def fsync(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output_module.os, "fsync", fsync)
    with pytest.raises(IndexerError, match=r"^[^\n]*No space left on device[^\n]*$"):
        merge_indexes(parts, tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["part0", "part1"]
