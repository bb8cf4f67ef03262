"""Questions to an index from Python."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.codecs import EXAMPLES
from indexer.index.read import Index
from indexer.names import Unit
from tests.index_cases import ragged_record, write_index


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a name that SQL, globs and lists of paths would each like to read in their own way
    return write_synthetic(
        tmp_path_factory.mktemp("it's, [a] * name") / "i x.index", Size(layers=2, units=700)
    )


@pytest.fixture
def index(path: Path) -> Index:
    return indexer.open_index(path)


@pytest.mark.parametrize("name", ["mlp.0.0", "mlp.1.0", "mlp.1.333", "mlp.0.699"])
def test_python_and_sql_agree(name: str, index: Index) -> None:
    _, layer, unit = name.split(".")
    where = f"site = 'mlp' AND layer = {layer} AND unit = {unit}"
    assert index.unit(name).equals(index.sql(f"SELECT * FROM units WHERE {where}"))
    histogram = index.sql(f"SELECT * FROM histograms WHERE {where} ORDER BY lower, upper")
    assert index.histogram(name).equals(histogram)
    assert index.histogram(name).equals(index.sql(f"FROM histogram({layer}, {unit})"))
    kinds = (("top", index.top, 20), ("bottom", index.bottom, 20), ("sample", index.samples, 14))
    for kind, ask, rows in kinds:
        chosen = f"{where} AND kind = '{kind}' ORDER BY band DESC, rank"
        by_view = index.sql(f"SELECT * FROM examples WHERE {chosen}")
        assert by_view.num_rows == rows
        assert ask(name).to_pylist() == by_view.to_pylist()
        assert index.sql(f"FROM {kind}({layer}, {unit})").to_pylist() == by_view.to_pylist()


def test_the_record_is_all_of_it(index: Index) -> None:
    record = index.record("mlp.1.5", k=7)
    assert record.unit == Unit("mlp", 1, 5)
    assert record.statistics.equals(index.unit("mlp.1.5"))
    assert record.histogram.equals(index.histogram("mlp.1.5"))
    assert record.top.equals(index.top("mlp.1.5", k=7))
    assert record.bottom.equals(index.bottom(Unit("mlp", 1, 5), k=7))
    assert record.samples.equals(index.samples("mlp.1.5", k=7))


def test_columns_are_the_documented_ones(index: Index) -> None:
    name = "mlp.0.3"
    units = """site layer unit count positive active nan inf minimum maximum mean variance skewness kurtosis
        p01 p10 p50 p90 p99 p999 p9999"""
    examples = """site layer unit kind rank band value up document sequence position token_id token
        window_start token_ids tokens activations text"""
    assert index.unit(name).column_names == units.split()
    assert index.top(name).column_names == examples.split()
    assert index.histogram(name).column_names == ["site", "layer", "unit", "lower", "upper", "count"]
    assert index.sql("FROM documents").column_names == ["document", "source", "row", "characters"]
    assert index.sql("FROM vocabulary").column_names == ["token_id", "token", "count"]
    for view, table in (
        ("units", index.unit(name)),
        ("examples", index.top(name)),
        ("histograms", index.histogram(name)),
    ):
        assert index.sql(f"FROM {view} LIMIT 1").schema.equals(table.schema)


def test_k_takes_the_best(index: Index) -> None:
    assert index.top("mlp.0.3", k=4).equals(index.top("mlp.0.3").slice(0, 4))
    assert index.top("mlp.0.3", k=99).num_rows == 20
    assert index.bottom("mlp.0.3", k=1)["rank"].to_pylist() == [1]
    every = index.samples("mlp.0.3")
    assert every["rank"].to_pylist() == [1, 2] * 7
    assert index.samples("mlp.0.3", k=1).to_pylist() == every.to_pylist()[::2]
    with pytest.raises(IndexerError, match="k = 0"):
        index.top("mlp.0.3", k=0)


def test_windows_hold_their_peaks(index: Index) -> None:
    for row in index.top("mlp.1.77").to_pylist():
        peak = row["position"] - row["window_start"]
        assert row["activations"][peak] == row["value"]
        assert row["tokens"][peak] == row["token"]
        assert row["token_ids"][peak] == row["token_id"]
        assert row["text"] == "".join(row["tokens"])


def test_units_without_examples_or_values(tmp_path: Path) -> None:
    with indexer.open_index(write_index(tmp_path / "i", [ragged_record()])) as index:
        for unit in range(7):
            record = index.record(f"mlp.0.{unit}")
            where = f"layer = 0 AND unit = {unit}"
            assert record.top.to_pylist() == index.sql(f"FROM top(0, {unit})").to_pylist()
            assert record.bottom.to_pylist() == index.sql(f"FROM bottom(0, {unit})").to_pylist()
            assert record.histogram.equals(index.sql(f"FROM histogram(0, {unit})"))
            assert record.statistics.equals(index.sql(f"FROM units WHERE {where}"))
        assert index.top("mlp.0.0").num_rows == 0
        assert index.top("mlp.0.0").schema == index.top("mlp.0.1").schema
        assert index.histogram("mlp.0.0").num_rows == 0
        assert index.unit("mlp.0.0")["mean"].to_pylist() == [None]
        assert index.top("mlp.0.2")["value"].to_pylist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlp.2.0", "which has layers 0-1 of site mlp"),
        ("mlp.0.700", "layer 0 has units 0-699"),
        ("heads.0.0", "which has site mlp"),
        ("mlp.0", "expected SITE.LAYER.UNIT"),
    ],
)
def test_an_unknown_unit_gets_one_line(name: str, said: str, index: Index) -> None:
    for question in (index.unit, index.top, index.bottom, index.histogram, index.record):
        with pytest.raises(IndexerError) as error:
            question(name)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_info_tells_what_it_holds(index: Index) -> None:
    info = index.info()
    assert info["layers"] == {"mlp": "0-1"}
    assert info["units"] == 1_400
    assert info["examples"] == 1_400 * 54
    assert info["bytes"] == sum(
        f.stat().st_size for f in index.path.rglob("*.*") if f.name != "manifest.json"
    )


def test_many_threads_may_ask(index: Index) -> None:
    names = [f"mlp.{number % 2}.{number * 7 % 700}" for number in range(60)]
    alone = [index.record(name) for name in names]

    def ask(name: str) -> tuple[indexer.index.read.UnitRecord, pa.Table]:
        _, layer, unit = name.split(".")
        return index.record(name), index.sql(f"FROM histogram({layer}, {unit})")

    with ThreadPoolExecutor(8) as pool:
        for expected, (record, histogram) in zip(alone, pool.map(ask, names), strict=True):
            assert record == expected
            assert histogram.equals(expected.histogram)


def test_a_closed_index_opens_again_when_asked(index: Index) -> None:
    before = index.top("mlp.0.1")
    with index:
        index.sql("SELECT 1")
    assert index.top("mlp.0.1").equals(before)
    assert index.sql("SELECT 1 AS one")["one"].to_pylist() == [1]


BARE = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"torch", "transformers", "triton", "datasets", "tokenizers"}:
            raise ImportError("blocked: " + name)
        if name == "indexer_kernels._cpp":
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
import indexer
with indexer.open_index(sys.argv[1]) as index:
    index.record("mlp.0.1"), index.sql("FROM top(0, 1)"), index.info(), index.verify(full=True)
print(*[name for name in ("torch", "indexer_kernels._cpp", "transformers") if name in sys.modules])
"""


def test_reading_needs_neither_torch_nor_compiled_kernels(path: Path) -> None:
    command = [sys.executable, "-c", BARE, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_schema_lists_are_plain_when_read(index: Index) -> None:
    top = index.top("mlp.0.1")
    assert top.schema.field("activations").type == pa.list_(pa.float32())
    assert all(field.nullable for field in top.schema)
    assert top.column_names == EXAMPLES.shown.names


def test_an_index_that_was_replaced_is_not_mixed_with_the_new_one(tmp_path: Path) -> None:
    path = write_index(tmp_path / "my.index", [ragged_record(0), ragged_record(1)])
    with indexer.open_index(path) as index:
        before = index.top("mlp.0.0")
        write_index(path, [ragged_record(0, seed=5), ragged_record(1, seed=5)], overwrite=True)
        assert index.top("mlp.0.0").equals(before)
        for question in (lambda: index.top("mlp.1.0"), lambda: index.sql("SELECT count(*) FROM units")):
            with pytest.raises(IndexerError, match="it was replaced after it had been opened; open it again"):
                question()
