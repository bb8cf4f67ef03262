"""An index that keeps no examples at one end, or no samples, has all else that it would have with them."""

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

KEPT = [
    {"top": 0, "bottom": 0, "samples": 2},
    {"top": 2, "bottom": 0, "samples": 2},
    {"top": 0, "bottom": 2, "samples": 0},
    {"top": 0, "bottom": 0, "samples": 0},
]
# each with its kind and its macro
COMMANDS = {"top": "top", "bottom": "bottom", "sample": "samples"}


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return standard_library("this.py", "keyword.py", "abc.py")


@pytest.fixture(scope="module")
def whole(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tables(build(options(tmp_path_factory.mktemp("index") / "a.index", corpus, top=2, bottom=2)))


@pytest.mark.parametrize("keep", KEPT, ids=str)
@pytest.mark.parametrize("kernels", ["cpp", pytest.param("reference", marks=pytest.mark.slow)])
def test_all_else_is_there(
    keep: dict[str, int], kernels: str, corpus: list[str], whole: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = options(tmp_path / "a.index", corpus, kernels=kernels, hooks=True, **keep)
    if kernels == "cpp":
        config = options(tmp_path / "a.index", corpus, **keep)
        stopped_after(config, 1, monkeypatch)
    found = tables(build(config))
    verify_index(config.output, full=True)
    kept = [row for row in whole["examples"] if keep[COMMANDS[row["kind"]]]]
    assert [row["rank"] for row in found["examples"]] == [row["rank"] for row in kept]
    assert [row["count"] for row in found["units"]] == [row["count"] for row in whole["units"]]
    if kernels == "cpp":
        pointed_to = {row["document"] for row in [*kept, *whole["panel"]]}
        expected = [row for row in whole["documents"] if row["document"] in pointed_to]
        assert found == {**whole, "examples": kept, "documents": expected}


@pytest.mark.parametrize("keep", KEPT, ids=str)
def test_shards_merge_to_it(keep: dict[str, int], corpus: list[str], tmp_path: Path) -> None:
    config = options(tmp_path / "a.index", corpus, checkpoint_minutes=5, piece_bytes=2000, **keep)
    alone = tables(build(config.model_copy(update={"output": tmp_path / "alone.index"})))
    parts = [build(config.model_copy(update={"shard": (shard, 2)})) for shard in range(2)]
    assert tables(merge(parts, config.output)) == alone
    verify_index(config.output, full=True)


@pytest.mark.parametrize("keep", KEPT, ids=str)
def test_every_page_shows_it(keep: dict[str, int], corpus: list[str], tmp_path: Path) -> None:
    index = str(build(options(tmp_path / "a.index", corpus, checkpoint_minutes=5, **keep)))

    def answer(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    for form in ("table", "json", "csv"):
        for command in (*COMMANDS, "unit", "histogram"):
            answer(command, index, "mlp.1.7", "--format", form)
    for command, name in COMMANDS.items():
        query = f"SELECT count(*) AS places FROM {command}(1, 7)"
        places = int(answer("sql", index, query, "--format", "csv").split()[1])
        assert places > 2 if keep[name] and command == "sample" else places == keep[name]
        assert f"{name} {places}" in answer(command, index, "mlp.1.7")
        said = CliRunner().invoke(app, [command, index, "mlp.1.7"]).stderr
        assert said == ("" if keep[name] else f"index {index} has none: it was built with --{name} 0\n")
    assert "kurtosis" in answer("unit", index, "mlp.1.7")
