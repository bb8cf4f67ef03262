"""Indexes made to harm: every file agrees with the manifest, and none is what it should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index import files
from indexer.index.codecs import EXAMPLES as EXAMPLES_CODEC
from indexer.index.codecs import folders
from indexer.index.verify import verify_index
from tests.hostile_cases import craft, edit_manifest, sign
from tests.hostile_fuzz import answers

SIZE = Size(layers=1, units=20, top=3, bottom=2, window=4, vocabulary=200, panel=3)
# for each file; each asks everything
TRIALS = os.environ.get("DAMAGE_TRIALS", "10")
EXAMPLES, BINS = "examples/mlp.0.parquet", "histograms/mlp.0.parquet"
PANEL, WINDOWS = "panel/mlp.0.parquet", "panel/windows.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("index") / "a.index", SIZE)


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "a.index")


def _refused(index: Path) -> str:
    """The one line in which opening ends."""
    with pytest.raises(IndexerError) as error:
        indexer.open_index(index)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1_000
    return str(error.value)


PATHS = [
    "../secret", "examples/../../secret", "/etc/passwd", "..\\secret", "a\\..\\b", ".", "", "..",
    "./units.parquet", "examples//mlp.0.parquet", "units.parquet/", "a\0b", "x" * 5_000, "a\nb", "\x1b[2J",
    "\u202ex", "examples/mlp.7.parquet", "manifest.json", "~/x", "file:///etc/passwd", "http://localhost:9/x",
    None, 7, [],
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a_manifest_names_only_files_of_the_index(path: Any, index: Path) -> None:
    edit_manifest(index, lambda manifest: manifest["files"].append({**manifest["files"][0], "path": path}))
    assert "manifest.json is damaged" in _refused(index)
    edit_manifest(index, lambda manifest: manifest["files"].pop(0))
    assert "manifest.json is damaged" in _refused(index)


SITES = ["../../other", "/etc", "", "mlp/..", "a'; DROP VIEW units; --", "mlp\0", "x" * 5_000, "MLP", 3, None]


@pytest.mark.parametrize("site", SITES, ids=lambda site: ascii(site)[:20])
def test_a_site_makes_no_path_and_no_sql(site: Any, index: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["sites"][0]["site"] = site
        for entry, folder in zip(manifest["files"], folders(), strict=False):
            entry["path"] = f"{folder}/{site}.0.parquet"

    edit_manifest(index, change)
    _refused(index)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["sites"][0]["layers"][0].update(layer=1 << 40),
        lambda manifest: manifest["sites"][0]["layers"][0].update(layer=-1),
        lambda manifest: manifest["sites"][0]["layers"][0].update(units=1 << 70),
        lambda manifest: manifest["sites"][0].update(statistics=["bins"]),
        lambda manifest: manifest["sites"].append(manifest["sites"][0]),
        lambda manifest: manifest["files"].append(manifest["files"][0]),
        lambda manifest: manifest["files"].extend([manifest["files"][0]] * 100_000),
        lambda manifest: manifest["files"][0].update(bytes=1 << 80),
        lambda manifest: manifest["files"][0].update(bytes="many"),
        lambda manifest: manifest["files"][0].update(sha256="g" * 64),
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest.update(sites=None),
        lambda manifest: manifest.update(corpus=3),
        lambda manifest: manifest.update(version="\x1b[2J\n" * 99),
        lambda manifest: manifest.update(version=[1]),
        lambda manifest: manifest.update(format="neuron activation index\n"),
        lambda manifest: manifest.pop("sites"),
        lambda manifest: manifest["sites"][0]["keep"].update(panel=0),
        lambda manifest: manifest["sites"][0]["keep"].update(panel=-1),
        lambda manifest: manifest["sites"][0]["statistics"].remove("panel"),
    ],
    ids=range(20),
)
def test_a_manifest_of_absurd_content_is_refused(change: Callable[[Any], Any], index: Path) -> None:
    edit_manifest(index, change)
    _refused(index)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "1e999", '{"format":' * 50_000, "[" * 200_000, "1" * 10_000, '"\\ud800"', "\ufeff{}"],
    ids=range(9),
)
def test_a_manifest_that_is_none_is_refused(text: str, index: Path) -> None:
    (index / "manifest.json").write_text(text, encoding="utf-8")
    _refused(index)


def test_a_number_that_is_none_is_refused(index: Path) -> None:
    text = (index / "manifest.json").read_text()
    (index / "manifest.json").write_text(text.replace('"layer": 0', '"layer": NaN', 1))
    assert "not JSON" in _refused(index)


def test_a_manifest_without_its_digest_is_refused(index: Path) -> None:
    content = json.loads((index / "manifest.json").read_text())
    digest = content["sha256"]
    text = (index / "manifest.json").read_text()
    (index / "manifest.json").write_text(text.replace(digest, digest.upper()))
    assert "its SHA-256 differs" in _refused(index)
    del content["sha256"]
    (index / "manifest.json").write_text(json.dumps(content, indent=2))
    assert "its SHA-256 differs" in _refused(index)


@pytest.mark.parametrize("name", ["manifest.json", "units.parquet", "views.sql", EXAMPLES])
def test_what_is_no_plain_file_is_not_opened(name: str, index: Path) -> None:
    file = index / name
    content = file.read_bytes()
    for make in (
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file),
        lambda: file.mkdir(),
    ):
        file.unlink()
        make()
        assert f"{name} is not a plain file" in _refused(index)
        with pytest.raises(IndexerError):
            verify_index(index)
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink()
        file.write_bytes(content)
    indexer.open_index(index).close()


def test_a_linked_folder_is_refused_and_a_link_to_the_index_is_not(index: Path) -> None:
    (index.parent / "link").symlink_to(index)
    assert indexer.open_index(index.parent / "link").top("mlp.0.3").num_rows == 3
    (index / "examples").rename(index.parent / "examples")
    (index / "examples").symlink_to(index.parent / "examples")
    assert "examples is a symbolic link" in _refused(index)


def _lists(*lists: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([*lists] * 100, pa.list_(pa.field("element", kind, nullable=False)))


def _text(values: list[bytes], rows: int) -> pa.Array:
    return pa.array([values[number % len(values)] for number in range(rows)], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("file", "column", "values"),
    [
        ("units.parquet", "unit", lambda old: [-1] * len(old)),
        ("units.parquet", "site", lambda old: _text([b"\xff\xfe", b"\x1b[2J"], len(old))),
        ("units.parquet", "mean", lambda old: [float("nan")] * len(old)),
        ("units.parquet", "count", lambda old: [-(1 << 63)] * len(old)),
        (EXAMPLES, "unit", lambda old: [(1 << 31) - 1] * len(old)),
        (EXAMPLES, "unit", lambda old: [-(1 << 31)] * len(old)),
        (EXAMPLES, "unit", lambda old: old[::-1]),
        (EXAMPLES, "token_id", lambda old: [200] * len(old)),
        (EXAMPLES, "token_id", lambda old: [-1] * len(old)),
        (EXAMPLES, "token_id", lambda old: [-(1 << 31)] * len(old)),
        (EXAMPLES, "position", lambda old: [(1 << 31) - 1] * len(old)),
        (EXAMPLES, "window_start", lambda old: [-(1 << 31)] * len(old)),
        (EXAMPLES, "document", lambda old: [-(1 << 63)] * len(old)),
        (EXAMPLES, "rank", lambda old: [0] * len(old)),
        (EXAMPLES, "band", lambda old: [None] * len(old)),
        (EXAMPLES, "band", lambda old: [float("nan")] * len(old)),
        (EXAMPLES, "band", lambda old: [-1e38] * len(old)),
        (EXAMPLES, "value", lambda old: [float("nan")] * len(old)),
        (EXAMPLES, "up", lambda old: [float("inf")] * len(old)),
        (EXAMPLES, "up", lambda old: [0.0] * len(old)),
        (EXAMPLES, "kind", lambda old: ["neither"] * len(old)),
        (EXAMPLES, "kind", lambda old: _text([b"\xff"], len(old))),
        (EXAMPLES, "token", lambda old: _text([b"\xc3\x28"], len(old))),
        (EXAMPLES, "token_ids", lambda old: [[] for _ in old]),
        (EXAMPLES, "token_ids", lambda old: [[1 << 30] * 4 for _ in old]),
        (EXAMPLES, "token_ids", lambda old: [[-5] * 4 for _ in old]),
        (EXAMPLES, "token_ids", lambda old: [[3] * 50_000 for _ in old]),
        (EXAMPLES, "activations", lambda old: [[] for _ in old]),
        (EXAMPLES, "activations", lambda old: [[0.0] for _ in old]),
        (BINS, "unit", lambda old: [5] * len(old)),
        (BINS, "count", lambda old: [-1] * len(old)),
        (BINS, "lower", lambda old: [float("inf")] * len(old)),
        ("documents.parquet", "document", lambda old: [0] * len(old)),
        ("documents.parquet", "source", lambda old: _text([b"\xed\xa0\x80", b"\x00"], len(old))),
        ("vocabulary.parquet", "tokens", lambda old: [[]]),
        ("vocabulary.parquet", "tokens", lambda old: [old[0][:-1]]),
        ("vocabulary.parquet", "tokens", lambda old: [["\x1b]0;owned\a\u202e\n"] * len(old[0])]),
        ("vocabulary.parquet", "pieces", lambda old: [["%ff"] * len(old[0])]),
        ("vocabulary.parquet", "pieces", lambda old: [["%E2%zz%"] * len(old[0])]),
        ("vocabulary.parquet", "pieces", lambda old: [["%ED%A0%80%C3"] * len(old[0])]),
        ("vocabulary.parquet", "spaced", lambda old: [not old[0]]),
        ("sums/mlp.0.parquet", "sum1", lambda old: [b"\xff" * len(old[0])] * len(old)),
        ("sums/mlp.0.parquet", "overflowed4", lambda old: [-(1 << 63)] * len(old)),
        (PANEL, "unit", lambda old: old[::-1]),
        (PANEL, "activations", lambda old: [[] for _ in old]),
        (PANEL, "activations", lambda old: [values[:-1] for values in old]),
        (WINDOWS, "window", lambda old: [7] * len(old)),
        (WINDOWS, "hash", lambda old: [(1 << 64) - 1] * len(old)),
        (WINDOWS, "start", lambda old: [-(1 << 31)] * len(old)),
        (WINDOWS, "start", lambda old: [start + 1 for start in old]),
        (WINDOWS, "document", lambda old: [-(1 << 63)] * len(old)),
        (WINDOWS, "token_ids", lambda old: [[1 << 30] * len(ids) for ids in old]),
        (WINDOWS, "token_ids", lambda old: [[-5] * len(ids) for ids in old]),
        (WINDOWS, "token_ids", lambda old: [[3] * 50_000 for _ in old]),
        (WINDOWS, "token_ids", lambda old: [[] for _ in old]),
    ],
    ids=range(55),
)
def test_values_made_to_harm_end_in_rows_or_one_line(
    file: str, column: str, values: Callable[[list[Any]], Any], index: Path
) -> None:
    craft(index, file, column, values)
    found = answers(index)
    # how pieces are spelled is no law
    assert isinstance(found.get("verify"), IndexerError) or column == "pieces"


def _no_answer(index: Path) -> str:
    """The one line in which a question about examples ends."""
    with indexer.open_index(index) as opened, pytest.raises(IndexerError) as error:
        opened.top("mlp.0.3")
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_window_with_fewer_activations_than_tokens_is_refused(index: Path) -> None:
    craft(index, EXAMPLES, "activations", lambda old: [values[:-1] for values in old])
    assert "a window has not one activation for every token" in _no_answer(index)


def test_a_column_that_may_be_null_is_refused(index: Path) -> None:
    table = pq.read_table(index / EXAMPLES)
    for name in EXAMPLES_CODEC.columns.names:
        place = table.schema.get_field_index(name)
        if EXAMPLES_CODEC.columns.field(place).nullable:
            continue
        loose = pa.schema([field.with_nullable(field.name == name) for field in table.schema])
        nothing = pa.nulls(len(table), table.schema.field(place).type)
        pq.write_table(table.set_column(place, loose.field(place), nothing), index / EXAMPLES)
        sign(index)
        assert name == pq.read_schema(index / EXAMPLES).names[place]
        assert f"column {name} may be null" in _no_answer(index)


def test_a_footer_that_claims_absurdly_many_rows_is_refused(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_MOST_ROWS", "_MOST_GROUPS"):
        with monkeypatch.context() as patch:
            patch.setattr(files, limit, 0)
            assert "mlp.0.parquet: its footer claims 380 rows in 1 row groups" in _no_answer(index)


def _answers_of(index: Path, *limits: str) -> str:
    """What a process of its own prints that asks everything."""
    program = "import sys; from tests.hostile_fuzz import answers; from pathlib import Path; " + "; ".join(
        [*limits, "[print(name, '|', answer) for name, answer in answers(Path(sys.argv[1])).items()]"]
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(index)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_a_small_file_of_gigabytes_ends_in_one_line_where_memory_is_limited(index: Path) -> None:
    rows = pq.read_table(index / EXAMPLES)
    rows = pa.concat_tables([rows] * 4)
    # one entry of a dictionary, repeated: the repetitions cost next to nothing
    token = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), ["x" * (20 << 20)])
    place = rows.schema.get_field_index("token")
    field = pa.field("token", token.type, nullable=False)
    table = rows.set_column(place, field, token).cast(
        pa.schema([field if one.name == "token" else one for one in EXAMPLES_CODEC.columns])
    )
    pq.write_table(table, index / EXAMPLES, compression="zstd", store_schema=False)
    assert (index / EXAMPLES).stat().st_size < 1 << 20
    assert len(rows) * (20 << 20) > 7 << 30
    sign(index)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))"
    assert f"verify | {index}" in _answers_of(index, limit)


def test_changed_bytes_end_in_the_same_rows_or_one_line(index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_fuzz", str(index), TRIALS, "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "told" in done.stdout
