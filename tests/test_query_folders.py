"""An index answers alike in whatever folder it lies: a folder's name is no column, no pattern, no SQL."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError

SIZE = Size(layers=2, units=20, top=3, bottom=2, window=4, vocabulary=200, documents=50)
QUESTIONS = [
    *(f"FROM {view} ORDER BY ALL" for view in ("units", "examples", "histograms", "documents", "vocabulary")),
    *("FROM top(1, 3)", "FROM bottom(0, 3)", "FROM histogram(1, 3)"),
    "SELECT site, layer, count(*) FROM examples GROUP BY ALL ORDER BY ALL",
    "SELECT DISTINCT source FROM documents",
    "SELECT unit FROM units WHERE layer = 5 OR site = 'resid'",
]
FOLDERS = [
    *(
        "layer=5",
        "site=resid",
        "source=wiki",
        "unit=3",
        "document=x",
        "token_id=1",
        "spaced=true",
        "year=2020",
    ),
    *("a*b", "a?b", "a[b]c", "[ab]", "[!a]", "**", "x[", "a]", "[]"),
    *("a, b", "o'k", 'q"q', "a;--b", "$x", "#a", "~", " b ", "{a,b}", "100%25", "a%2Fb", "a\\b", "new\nline"),
    *("ünï 日本", "\u202e", "layer=*", "a*b/layer=5/i'[0-9]"),
]
# what the patterns among the names would find instead
OTHERS = ["axb", "abc", "ab", "a", "b", "x", "layer=7", "c"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("plain") / "i", SIZE)


@pytest.fixture(scope="module")
def root(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    other = write_synthetic(root / "other", SIZE, seed=1)
    for name in OTHERS:
        shutil.copytree(other, root / name / "i")
    return root


@pytest.fixture(params=FOLDERS)
def placed(request: pytest.FixtureRequest, root: Path, plain: Path) -> Path:
    path = root / str(request.param) / "i"
    if not path.exists():
        shutil.copytree(plain, path)
    return path


@pytest.fixture(scope="module")
def expected(plain: Path) -> list[pa.Table]:
    with indexer.open_index(plain) as index:
        return [index.sql(question) for question in QUESTIONS]


def test_our_connection(placed: Path, expected: list[pa.Table]) -> None:
    with indexer.open_index(placed) as index:
        for question, answer in zip(QUESTIONS, expected, strict=True):
            assert index.sql(question).equals(answer), question
        assert index.sql("FROM top(1, 3)").equals(index.top("mlp.1.3"))
        assert index.sql("SELECT * FROM units WHERE layer = 1 AND unit = 3").equals(index.unit("mlp.1.3"))
        index.verify(full=True)
        for beyond in ("../../*/i/units.parquet", "../../other/units.parquet", "*.parquet"):
            with pytest.raises(IndexerError):
                index.sql("FROM read_parquet(?)", [f"{placed}/{beyond}"])


def test_views_for_the_duckdb_program(
    placed: Path, expected: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    for inside in (False, True):
        monkeypatch.chdir(placed if inside else "/")
        with duckdb.connect() as connection:
            if not inside:
                connection.execute(f"SET VARIABLE index = '{str(placed).replace(chr(39), chr(39) * 2)}'")
            connection.execute((placed / "views.sql").read_text(encoding="utf-8"))
            for question, answer in zip(QUESTIONS, expected, strict=True):
                assert connection.sql(question).to_arrow_table().equals(answer), question


def test_views_follow_an_index_that_is_moved(
    plain: Path, expected: list[pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE index = 'after'")
        connection.execute(Path("after/views.sql").read_text(encoding="utf-8"))
        assert connection.sql(QUESTIONS[0]).to_arrow_table().equals(expected[0])


def test_a_name_that_duckdb_cannot_read_is_one_line(root: Path, plain: Path) -> None:
    path = root / "a\\*b" / "i"
    shutil.copytree(plain, path)
    with indexer.open_index(path) as index, pytest.raises(IndexerError, match="has both a backslash and"):
        index.sql("FROM units")
