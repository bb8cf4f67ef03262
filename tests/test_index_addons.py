"""Add-ons: tables of a finished index that were added to it, each sealed by a manifest of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from indexer.errors import IndexerError
from indexer.index.addons import write_addon
from indexer.index.manifest import sealed
from indexer.index.read import open_index
from indexer.index.verify import verify_index
from tests.index_cases import ragged_record, write_index

LABELS = pa.table({"site": ["mlp", "mlp"], "layer": [0, 0], "unit": [3, 5], "label": ["dates", "it's"]})


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path / "i", [ragged_record()])


def test_a_table_is_added_and_joined(index: Path) -> None:
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    write_addon(index, "names", {"labels": LABELS, "notes": LABELS.select(["unit"])}, {"by": "hand"})
    with open_index(index) as opened:
        rows = opened.sql(
            "SELECT label, maximum FROM units JOIN labels USING (site, layer, unit) ORDER BY unit"
        )
        assert rows["label"].to_pylist() == ["dates", "it's"]
        assert rows["maximum"][0] == opened.unit(0, 3)["maximum"][0]
        assert opened.sql("SELECT count(*) AS n FROM notes")["n"].to_pylist() == [2]
        assert opened.info()["addons"] == {"names": ["labels", "notes"]}
        with pytest.raises(IndexerError, match='cannot register a table as "labels"'):
            opened.register("labels", LABELS)
    assert verify_index(index, full=True)["addons"] == ["names"]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_index_without_them_is_whole(index: Path) -> None:
    write_addon(index, "names", {"labels": LABELS}, {})
    shutil.rmtree(index / "addons")
    verify_index(index, full=True)
    with open_index(index) as opened:
        assert opened.info()["addons"] == {}
        with pytest.raises(IndexerError, match="labels does not exist"):
            opened.sql("FROM labels")


def test_an_addon_is_replaced(index: Path) -> None:
    write_addon(index, "names", {"labels": LABELS}, {})
    write_addon(index, "names", {"labels": LABELS.slice(1)}, {})
    with open_index(index) as opened:
        assert opened.sql("FROM labels")["label"].to_pylist() == ["it's"]
    assert [path.name for path in (index / "addons").iterdir()] == ["names"]
    verify_index(index)


def test_a_plain_duckdb_reads_its_views(index: Path) -> None:
    folder = write_addon(index, "names", {"labels": LABELS}, {})
    with duckdb.connect() as connection:
        connection.execute(f"SET VARIABLE index = '{index}'")
        for file in (index / "views.sql", folder / "views.sql"):
            connection.execute(file.read_text())
        found = connection.sql("SELECT label FROM labels JOIN units USING (layer, unit) ORDER BY unit")
        assert found.fetchall() == [("dates",), ("it's",)]


@pytest.mark.parametrize(
    ("name", "tables", "said"),
    [
        ("Names", ["labels"], 'cannot be called "Names"'),
        ("../x", ["labels"], 'cannot be called "../x"'),
        ("names", ["units"], 'cannot be called "units"'),
        ("names", ["other"], 'cannot be called "other"'),
        ("names", ['a"; DROP VIEW units; --'], "cannot be called"),
        ("names", [], "it has no table"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, tables: list[str], said: str, index: Path) -> None:
    write_addon(index, "first", {"other": LABELS}, {})
    with pytest.raises(IndexerError, match=said):
        write_addon(index, name, dict.fromkeys(tables, LABELS), {})
    assert [path.name for path in (index / "addons").iterdir()] == ["first"]


def _flip(name: str, place: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return change


def _edited(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(sealed(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip("manifest.json", 40), "manifest.json"),
        (_flip("labels.parquet", 30), "labels.parquet"),
        *((_flip("labels.parquet", -place), "labels.parquet") for place in range(9, 400, 13)),
        (_flip("views.sql", 30), "views.sql is not that of its tables"),
        (lambda folder: (folder / "labels.parquet").unlink(), "labels.parquet is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "more.txt").touch(), "addons/names/more.txt is not of this index"),
        (lambda folder: (folder.parent / "more.txt").touch(), "addons/more.txt is not of this index"),
        (lambda folder: folder.rename(folder.parent / ".names.partial"), "is not of this index"),
        (lambda folder: folder.rename(folder.parent / "others"), "it says that it is names"),
        (lambda folder: (folder.parent / "empty").mkdir(), "add-on empty: it has no manifest.json"),
        (lambda folder: (folder.parent / "linked").symlink_to(folder), "add-on linked: it is no folder"),
        (_edited(lambda manifest: manifest.update(index="0" * 64)), "it was made for another index"),
        (_edited(lambda manifest: manifest.update(files=[])), "add-on names: manifest.json is damaged"),
        (_edited(lambda manifest: manifest.update(version=2)), "add-on names: manifest.json is damaged"),
    ],
)
def test_damage_is_found(damage: Callable[[Path], None], said: str, index: Path) -> None:
    damage(write_addon(index, "names", {"labels": LABELS}, {}))
    with pytest.raises(IndexerError) as error:
        verify_index(index)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_line_shows_them(index: Path) -> None:
    write_addon(index, "names", {"labels": LABELS}, {})
    query = "SELECT label FROM labels ORDER BY unit"
    command = [sys.executable, "-m", "indexer", "sql", str(index), query, "--format", "csv"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["label", "dates", "it's"]


def test_a_disk_that_fails_leaves_what_was_there(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_addon(index, "names", {"labels": LABELS}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("indexer.index.addons.put_in_place", full)
    with pytest.raises(IndexerError, match=r"cannot write add-on names .* No space left on device"):
        write_addon(index, "names", {"labels": LABELS.slice(1)}, {})
    with open_index(index) as opened:
        assert opened.sql("FROM labels").num_rows == 2
    verify_index(index)
