"""Damage of any kind is found and told in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.encoding import parquet_options
from indexer.index.manifest import sealed, sha256
from indexer.index.read import open_index
from indexer.index.verify import expected_files, verify_index
from tests.index_cases import ragged_record, write_index


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path / "i", [ragged_record(0), ragged_record(1, seed=1)])


def _problem(index: Path, full: bool = False) -> str:
    with pytest.raises(IndexerError) as error:
        verify_index(index, full)
    assert "\n" not in str(error.value)
    assert index.name in str(error.value)
    return str(error.value)


def test_a_sound_index_passes(index: Path) -> None:
    facts = verify_index(index)
    assert facts["files"] == len(list(index.rglob("*.*"))) - 1
    assert "laws of the content" in verify_index(index, full=True)["checked"]


def test_synthetic_indexes_obey_all_laws(tmp_path: Path) -> None:
    verify_index(write_synthetic(tmp_path / "a", Size(layers=2, units=50, count=20_000)), full=True)
    verify_index(
        write_synthetic(tmp_path / "b", Size(layers=1, units=3, top=2, bottom=0, window=1)), full=True
    )


def test_every_flipped_byte_is_found(index: Path) -> None:
    random = np.random.default_rng(0)
    for file in sorted(index.rglob("*.*")):
        if file.name == schema.MANIFEST:
            continue
        sound = file.read_bytes()
        for place in random.integers(0, len(sound), 12):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << random.integers(0, 8)
            file.write_bytes(bytes(damaged))
            _problem(index)
        file.write_bytes(sound)
    verify_index(index)


def test_a_damaged_page_is_found_without_a_manifest_to_compare(index: Path) -> None:
    """A flipped byte within a page, in a manifest that was made to agree: only the page's checksum tells."""
    file = index / "examples" / "mlp.0.parquet"
    column = pq.ParquetFile(file).metadata.row_group(0).column(14)
    assert column.path_in_schema == "activations.list.element"
    damaged = bytearray(file.read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    file.write_bytes(bytes(damaged))
    _sign(index)
    assert "mlp.0.parquet" in _problem(index)
    with open_index(index) as opened, pytest.raises(IndexerError, match=r"mlp\.0\.parquet: cannot be read"):
        opened.top("mlp.0.3")


def _sign(index: Path) -> None:
    """Make the manifest agree with the files as they are now."""
    manifest = json.loads((index / schema.MANIFEST).read_text())
    for entry in manifest["files"]:
        file = index / entry["path"]
        entry |= {"bytes": file.stat().st_size, "sha256": sha256(file)}
        if file.suffix == ".parquet":
            entry["rows"] = pq.ParquetFile(file).metadata.num_rows
    (index / schema.MANIFEST).write_text(sealed(manifest), encoding="utf-8")


def _truncate(index: Path) -> None:
    os.truncate(index / "examples/mlp.0.parquet", 100)


def _zeros_at_the_end(index: Path) -> None:
    file = index / "histograms/mlp.0.parquet"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))


def _footer_longer_than_the_file(index: Path) -> None:
    file = index / "sums/mlp.0.parquet"
    file.write_bytes(file.read_bytes()[:-8] + (10**9).to_bytes(4, "little") + b"PAR1")


def _remove(index: Path) -> None:
    (index / "units.parquet").unlink()


def _swap(index: Path) -> None:
    first, second = index / "examples/mlp.0.parquet", index / "units.parquet"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _link(index: Path) -> None:
    file = index / "documents.parquet"
    file.rename(index.parent / "elsewhere")
    file.symlink_to(index.parent / "elsewhere")


def _folder(index: Path) -> None:
    (index / "documents.parquet").unlink()
    (index / "documents.parquet").mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "examples/mlp.0.parquet has 100 bytes where the manifest says"),
        (_zeros_at_the_end, "histograms/mlp.0.parquet does not end as a Parquet file does"),
        (_footer_longer_than_the_file, "sums/mlp.0.parquet does not end as a Parquet file does"),
        (_remove, "units.parquet is missing"),
        (_swap, "bytes where the manifest says"),
        (_link, "documents.parquet is not a plain file"),
        (_folder, "documents.parquet is not a plain file"),
        (
            lambda index: (index / "manifest.json").unlink(),
            "no manifest.json; give the folder that build wrote",
        ),
        (lambda index: (index / "manifest.json").write_text("{"), "manifest.json is damaged (not JSON)"),
        (lambda index: (index / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
        (lambda index: (index / "manifest.json").write_text("[" * 99_999), "manifest.json is damaged"),
        (lambda index: (index / "manifest.json").write_text('{"name": "x"}'), "is not that of a neuron"),
        (lambda index: shutil.rmtree(index), "no such folder"),
    ],
)
def test_damage_is_told_when_opening(damage: Callable[[Path], Any], said: str, index: Path) -> None:
    damage(index)
    with pytest.raises(IndexerError) as error:
        open_index(index)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert said in _problem(index)


def test_a_file_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(IndexerError, match="is a file"):
        open_index(tmp_path / "x")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 1, "format version 1; this program reads version 2"),
        ("version", None, "format version None"),
        ("sites", [{"site": "mlp"}], "damaged at sites[0]: Object missing required field `statistics`"),
        ("files", [{"path": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}], "files[0]: `path` must"),
        ("files", [{"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}], "files[0]: `path` must"),
        ("files", [{"path": "units.parquet", "bytes": -1, "sha256": "0" * 64}], "files[0].bytes: "),
        ("model", "x", "damaged at model: "),
    ],
)
def test_a_damaged_manifest_gets_one_line(key: str, value: Any, said: str, index: Path) -> None:
    manifest = json.loads((index / schema.MANIFEST).read_text())
    manifest[key] = value
    (index / schema.MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    assert said in _problem(index)


def test_a_manifest_that_leaves_out_a_file(index: Path) -> None:
    manifest = json.loads((index / schema.MANIFEST).read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "documents.parquet"]
    (index / schema.MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    assert "disagree about documents.parquet" in _problem(index)


def test_layers_swapped_under_each_others_names(index: Path) -> None:
    first, second = (index / f"examples/mlp.{layer}.parquet" for layer in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    _sign(index)
    assert "mlp.0" in _problem(index, full=True)


def test_foreign_views_are_refused(index: Path) -> None:
    (index / "views.sql").write_text("COPY (SELECT 1) TO 'x'")
    _sign(index)
    assert "views.sql is not that of" in _problem(index)


def _change(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row])
        place = table.schema.get_field_index(column)
        return table.set_column(
            place, table.schema.field(place), pa.array(values, table.schema.field(place).type)
        )

    return change


def _sample(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """As `_change`, of the samples alone."""

    def change(table: pa.Table) -> pa.Table:
        number = np.flatnonzero(pa.compute.equal(table["kind"], "sample").to_numpy())[row]
        return _change(column, int(number), value)(table)

    return change


def _without_the_highest_band(table: pa.Table) -> pa.Table:
    """All rows but the first sample of the last unit, which has more."""
    last = table["unit"][-1].as_py()
    of_it = pa.compute.and_(pa.compute.equal(table["kind"], "sample"), pa.compute.equal(table["unit"], last))
    first, *others = np.flatnonzero(of_it.to_numpy())
    assert others
    return pa.concat_tables([table.slice(0, first), table.slice(first + 1)])


def _without(kind: str, unit: int) -> Callable[[pa.Table], pa.Table]:
    """All rows but a unit's examples of a kind."""

    def change(table: pa.Table) -> pa.Table:
        compute = pa.compute
        of_it = compute.and_(compute.equal(table["kind"], kind), compute.equal(table["unit"], unit))
        return table.filter(compute.invert(of_it))

    return change


UNITS, BINS, EXAMPLES = "units.parquet", "histograms/mlp.0.parquet", "examples/mlp.0.parquet"
TOKENS = "vocabulary.parquet"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (UNITS, _change("count", 3, lambda v: v + 1), "mlp.0.3: the counts in the vocabulary do not"),
        (UNITS, _change("nan", 3, lambda v: v + 1), "mlp.0.3: bins, nan and inf do not add up to count"),
        (UNITS, _change("positive", 4, lambda v: v + 1), "mlp.0.4: positive is not the sum"),
        (UNITS, _change("active", 4, lambda v: v + 1), "mlp.0.4: active is not the sum"),
        (
            UNITS,
            _change("maximum", 4, lambda v: v * 4),
            "mlp.0.4: maximum is not in the outermost filled bin",
        ),
        (UNITS, _change("minimum", 4, lambda v: None), "mlp.0.4: minimum is known without a value"),
        (UNITS, _change("p50", 4, lambda v: v + 0.1), "mlp.0.4: p50 is not that of the bins"),
        (UNITS, _change("unit", 4, lambda v: 5), "does not have units 0-6 in order"),
        (UNITS, _change("layer", 4, lambda v: 5), "other layers in its place"),
        (BINS, _change("count", 4, lambda v: v + 1), "do not add up to count"),
        (BINS, _change("count", 4, lambda v: 0), "an empty bin"),
        (BINS, _change("lower", 4, lambda v: v * 1.01), "edges that are not the format's"),
        (BINS, lambda table: table.take([1, 0, *range(2, len(table))]), "bins are not in order"),
        (BINS, _change("unit", -1, lambda v: 99), "bins of a unit the layer has not"),
        (EXAMPLES, _change("unit", -1, lambda v: 99), "examples of a unit the layer has not"),
        (EXAMPLES, _change("rank", 4, lambda v: v + 1), "ranks do not count from 1"),
        (EXAMPLES, _change("kind", -1, lambda v: "bottom"), "not sorted by unit, kind, band"),
        (EXAMPLES, _change("value", -1, lambda v: 9.0), "examples are not in the total order"),
        (EXAMPLES, _change("value", -1, lambda v: -99.0), "another value at its peak"),
        (EXAMPLES, _change("up", -1, lambda v: float("nan")), "an example's up is not finite"),
        (EXAMPLES, _change("up", -1, lambda v: -0.0), "an example's up is 0 and its value is not"),
        (
            EXAMPLES,
            _change("document", -1, lambda v: 4),
            "points to a document that documents.parquet has not",
        ),
        (EXAMPLES, _change("token", -1, lambda v: v + "x"), "a token is not that of its id"),
        (EXAMPLES, _change("text", -1, lambda v: v + "x"), "a text is not that of its token ids"),
        (EXAMPLES, _change("token_id", -1, lambda v: (v + 1) % 7), "another token at its peak"),
        (EXAMPLES, _change("kind", -1, lambda v: "other"), "of a kind that is none of bottom, sample, top"),
        (EXAMPLES, _change("band", -1, lambda v: 0.5), "samples have a band and other examples none"),
        (EXAMPLES, _sample("band", -1, lambda v: None), "samples have a band and other examples none"),
        (EXAMPLES, _sample("band", -1, lambda v: v + 8), "not sorted by unit, kind, band"),
        (EXAMPLES, _sample("band", -1, lambda v: v / 2 or 1e-9), "a sample's value is not in its band"),
        (EXAMPLES, _sample("value", -1, lambda v: 4.0), "a sample's value is beyond its maximum"),
        (EXAMPLES, _sample("value", -1, lambda v: -9.0), "a sample's value is beyond its minimum"),
        (EXAMPLES, _sample("rank", -1, lambda v: 2), "ranks do not count from 1"),
        (EXAMPLES, _without_the_highest_band, "its samples do not begin in the band of its maximum"),
        (EXAMPLES, _without("bottom", 5), "mlp.0.5: it has values without an example of kind bottom"),
        (EXAMPLES, _without("sample", 5), "mlp.0.5: it has values without an example of kind sample"),
        (EXAMPLES, _change("position", -1, lambda v: v + 50), "a window does not hold its peak"),
        (EXAMPLES, _change("activations", -1, lambda v: v[1:]), "windows of unequal length"),
        (TOKENS, _change("counts", 0, lambda v: [v[0] + 1, *v[1:]]), "mlp.0.0: the counts in the vocabulary"),
        (TOKENS, _change("counts", 0, lambda v: [-1, sum(v) + 1, *v[2:]]), "the counts in the vocabulary"),
    ],
)
def test_every_law_is_checked(
    file: str, change: Callable[[pa.Table], pa.Table], said: str, tmp_path: Path
) -> None:
    index = write_index(tmp_path / "i", [ragged_record(0)])
    with open_index(index) as opened:
        wanted = expected_files(opened.manifest)[file]
    assert wanted is not None
    table = change(pq.read_table(index / file))
    pq.write_table(pa.table(table.columns, schema=wanted), index / file, **parquet_options(wanted))
    _sign(index)
    verify_index(index)
    assert said in _problem(index, full=True)


def test_hashes_are_computed_again(tmp_path: Path) -> None:
    """Samples that another seed would have chosen, and a third sample where two are kept."""
    for change, said in (
        ({"seed": 4}, "samples are not in the order of their hashes"),
        ({"samples": 1}, "more examples than are kept"),
    ):
        index = write_synthetic(tmp_path / said, Size(layers=1, units=20, window=4))
        manifest = json.loads((index / schema.MANIFEST).read_text())
        manifest["sites"][0]["keep"] |= change
        (index / schema.MANIFEST).write_text(sealed(manifest), encoding="utf-8")
        assert said in _problem(index, full=True)


def test_another_schema_is_found(index: Path) -> None:
    for change, said in (
        (lambda table: table.drop(["row"]), "has no column row"),
        (lambda table: table.append_column("more", pa.array([1] * len(table))), "columns"),
        (
            lambda table: table.set_column(2, "row", table["row"].cast(pa.int32())),
            "row is int32 instead of int64",
        ),
    ):
        file = index / "documents.parquet"
        sound = file.read_bytes()
        pq.write_table(change(pq.read_table(file)), file)
        _sign(index)
        assert said in _problem(index)
        file.write_bytes(sound)
