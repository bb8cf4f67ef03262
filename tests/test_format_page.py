"""docs/format.md is true: its tables are those that are written, and an index can be read by it alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.synthetic import Size, write_synthetic
from indexer.index import schema
from indexer.index.codecs import EXAMPLES, HEAD_SCORES, HISTOGRAMS, MOMENTS
from indexer.index.codecs.panel import PANELS, WINDOWS
from indexer.index.manifest import Manifest

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
TABLES = {
    "units.parquet": schema.UNITS,
    "examples": EXAMPLES.columns,
    "histograms": HISTOGRAMS.columns,
    "sums": MOMENTS.columns,
    "panel": PANELS[0].columns,
    PANELS[0].windows_file: WINDOWS,
    "heads": HEAD_SCORES.columns,
    "documents.parquet": schema.DOCUMENTS,
    "vocabulary.parquet": schema.VOCABULARY,
}


def rows_of(title: str) -> list[list[str]]:
    """The rows of the table below a title, without its head."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = Size(layers=2, units=30, count=5000, vocabulary=500, documents=40, panel=5)
    return write_synthetic(tmp_path_factory.mktemp("index") / "a.index", size)


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_are_those_that_are_written(title: str, index: Path) -> None:
    told = [(name, kind, null == "yes") for name, kind, null, _ in rows_of(title)]
    kinds = {"float": "float32", "double": "float64"}

    def shown(kind: pa.DataType) -> str:
        if pa.types.is_list(kind):
            return f"list<{shown(kind.value_type)}>"
        return kinds.get(str(kind), str(kind))

    wanted = [(field.name, shown(field.type), field.nullable) for field in TABLES[title]]
    assert told == wanted
    file = index / (title if title.endswith(".parquet") else f"{title}/mlp.1.parquet")
    # tests/test_heads.py has an index of heads
    assert title == "heads" or pq.read_schema(file).names == [name for name, _, _ in told]


def test_the_manifest_is_as_it_says(index: Path) -> None:
    content = (index / "manifest.json").read_bytes()
    assert [row[0] for row in rows_of("manifest.json")] == list(json.loads(content))
    assert [*Manifest.__struct_fields__] == list(json.loads(content))
    sealed = content[: content.rindex(b',\n  "sha256"')]
    assert json.loads(content)["sha256"] == hashlib.sha256(sealed).hexdigest()
    for file in json.loads(content)["files"]:
        assert hashlib.sha256((index / file["path"]).read_bytes()).hexdigest() == file["sha256"]


def test_files_are_those_it_lists(index: Path) -> None:
    told = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    there = {str(path.relative_to(index)) for path in index.rglob("*.parquet")}
    assert {re.sub(r"/mlp\.\d+\.", "/SITE.LAYER.", path) for path in there} == {*told} - {
        "heads/SITE.LAYER.parquet"
    }


def test_a_record_is_read_by_the_page_alone(index: Path) -> None:
    def rows(name: str) -> list[dict[str, object]]:
        return [row for row in pq.read_table(index / name).to_pylist() if row["unit"] == 7]

    unit = next(row for row in rows("units.parquet") if row["layer"] == 1)
    [sums] = rows("sums/mlp.1.parquet")
    n = unit["count"] - unit["nan"] - unit["inf"]
    first, second = (
        int.from_bytes(sums[name], "little", signed=True) / 2**150 / n for name in ("sum1", "sum2")
    )
    assert unit["mean"] == pytest.approx(first, rel=1e-12)
    assert unit["variance"] == pytest.approx(second - first**2, rel=1e-9)

    inner = [(1 + e / 8) * 2.0**j for j in range(-10, 14) for e in range(8)] + [2.0**14]
    edges = [0.0, *inner, math.inf]
    positive = list(itertools.pairwise(edges))
    bins = {*positive, (0.0, 0.0), *((0.0 - upper, 0.0 - lower) for lower, upper in positive)}
    assert len(bins) == 389
    histogram = rows("histograms/mlp.1.parquet")
    assert {(row["lower"], row["upper"]) for row in histogram} <= bins
    assert sum(row["count"] for row in histogram) == n
    assert sum(row["count"] for row in histogram if row["upper"] > 0) == unit["positive"]
    assert sum(row["count"] for row in histogram if row["lower"] >= 2.0**-10) == unit["active"]

    vocabulary = pq.read_table(index / "vocabulary.parquet").to_pylist()[0]
    assert sum(vocabulary["counts"]) == unit["count"]
    known = {row["document"]: row for row in pq.read_table(index / "documents.parquet").to_pylist()}
    examples = rows("examples/mlp.1.parquet")
    assert {row["kind"] for row in examples} == {"top", "bottom", "sample"}
    for row in examples:
        peak = row["position"] - row["window_start"]
        assert len(row["token_ids"]) == len(row["activations"]) > peak >= 0
        assert row["activations"][peak] == row["value"]
        assert row["token_ids"][peak] == row["token_id"]
        assert vocabulary["tokens"][row["token_id"]] == row["token"]
        assert known[row["document"]]["row"] == row["document"] & (1 << 40) - 1
    for kind, sign in (("top", -1), ("bottom", 1)):
        order = [
            (sign * row["value"], row["document"], row["sequence"], row["position"])
            for row in examples
            if row["kind"] == kind
        ]
        assert order == sorted(order)
