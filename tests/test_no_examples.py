"""An index that keeps no top or no bottom examples has all else that it would have with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from indexer.commands import app
from indexer.engines import build, merge
from indexer.index.verify import verify_index
from tests.real_model import standard_library
from tests.test_pipeline import tables
from tests.test_resume import options, stopped_after

ENDS = [{"top": 0, "bottom": 0}, {"top": 2, "bottom": 0}, {"top": 0, "bottom": 2}]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return standard_library("this.py", "keyword.py", "abc.py")


@pytest.fixture(scope="module")
def whole(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tables(build(options(tmp_path_factory.mktemp("index") / "a.index", corpus, top=2, bottom=2)))


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_all_else_is_there(
    ends: dict[str, int], kernels: str, corpus: list[str], whole: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = options(tmp_path / "a.index", corpus, kernels=kernels, hooks=True, **ends)
    if kernels == "cpp":
        config = options(tmp_path / "a.index", corpus, **ends)
        stopped_after(config, 1, monkeypatch)
    found = tables(build(config))
    verify_index(config.output, full=True)
    kept = [row for row in whole["examples"] if ends[row["kind"]]]
    assert [row["rank"] for row in found["examples"]] == [row["rank"] for row in kept]
    assert [row["count"] for row in found["units"]] == [row["count"] for row in whole["units"]]
    if kernels == "cpp":
        pointed_to = {row["document"] for row in [*kept, *whole["panel"]]}
        expected = [row for row in whole["documents"] if row["document"] in pointed_to]
        assert found == {**whole, "examples": kept, "documents": expected}


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_shards_merge_to_it(ends: dict[str, int], corpus: list[str], tmp_path: Path) -> None:
    config = options(tmp_path / "a.index", corpus, checkpoint_minutes=5, piece_bytes=2000, **ends)
    alone = tables(build(config.model_copy(update={"output": tmp_path / "alone.index"})))
    parts = [build(config.model_copy(update={"shard": (shard, 2)})) for shard in range(2)]
    assert tables(merge(parts, config.output)) == alone
    verify_index(config.output, full=True)


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_every_page_shows_it(ends: dict[str, int], corpus: list[str], tmp_path: Path) -> None:
    index = str(build(options(tmp_path / "a.index", corpus, checkpoint_minutes=5, **ends)))

    def answer(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    for form in ("table", "json", "csv"):
        for command in ("top", "bottom", "unit", "histogram"):
            answer(command, index, "mlp.1.7", "--format", form)
    for extreme, kept in ends.items():
        assert f"{extreme} {kept}" in answer(extreme, index, "mlp.1.7")
        query = f"SELECT count(*) AS places FROM {extreme}(1, 7)"
        assert answer("sql", index, query, "--format", "csv") == f"places\n{kept}\n"
    assert "kurtosis" in answer("unit", index, "mlp.1.7")
