"""The commands that ask an index, on a synthetic one: right data, readable pages, one line for a mistake."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.synthetic import Size, write_synthetic
from indexer import open_index
from indexer.commands import app
from indexer.commands.demo import FIRES_ON, SELECTIVE, _show
from indexer.display.histogram import bars
from indexer.display.pages import console, window
from indexer.index.read import Index
from indexer.index.results import source_name

UNIT = "mlp.1.5"
# what takes longer to import than most questions take to answer
SLOW = ("pandas", "pyarrow.compute", "numpy.ma", "torch", "pydantic", "matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("commands") / "my.index", Size(units=16, top=6, bottom=4))


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[Index]:
    with open_index(folder) as opened:
        yield opened


def run(*arguments: str | Path, status: int = 0, stdin: str = "", width: int = 100) -> tuple[str, str]:
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], prog_name="neuron-indexer", input=stdin,
        env={"COLUMNS": str(width)},
    )  # fmt: skip
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def from_json(*arguments: str | Path) -> Any:
    out, error = run(*arguments, "--format", "json")
    assert error == ""
    return json.loads(out)


def from_csv(*arguments: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv")[0])))


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """What an index has as float32, whatever its number of digits."""
    return {
        name: float(np.float32(value)) if isinstance(value, float) else value for name, value in row.items()
    }


@pytest.mark.parametrize("extreme", ["top", "bottom"])
def test_examples_as_data(folder: Path, index: Index, extreme: str) -> None:
    table = getattr(index, extreme)(UNIT, k=3)
    read = from_json(extreme, folder, UNIT, "-k", "3")
    assert list(read[0]) == table.column_names
    for name in ("rank", "document", "position", "token", "token_ids", "tokens", "text"):
        assert [row[name] for row in read] == table[name].to_pylist()
    assert [row["value"] for row in read] == pytest.approx(table["value"].to_pylist(), rel=1e-7)
    lines = from_csv(extreme, folder, UNIT, "-k", "3")
    assert [row["text"] for row in lines] == table["text"].to_pylist()
    assert [json.loads(row["tokens"]) for row in lines] == table["tokens"].to_pylist()


@pytest.mark.parametrize("extreme", ["top", "bottom"])
@pytest.mark.parametrize("width", [60, 100, 240])
def test_examples_for_people(folder: Path, index: Index, extreme: str, width: int) -> None:
    out, error = run(extreme, folder, UNIT, "-k", "4", width=width)
    title, *lines = out.splitlines()
    assert error == ""
    assert title.startswith(f"{UNIT}  {extreme} 4")
    assert len(lines) == 4
    assert all(len(line) <= width for line in lines)
    tokens = getattr(index, extreme)(UNIT, k=4)["token"].to_pylist()
    for rank, (line, token) in enumerate(zip(lines, tokens, strict=True), 1):
        assert line.split()[0] == str(rank)
        assert ("  up " in line) == (width > 100)
        assert f"«{token.strip()}»" in line
    assert len({line.index("«") for line in lines}) == 1


def test_samples(folder: Path, index: Index) -> None:
    table = index.samples(UNIT)
    assert [row["band"] for row in from_json("sample", folder, UNIT)] == table["band"].to_pylist()
    assert from_json("sample", folder, UNIT, "-k", "1") == from_json("sample", folder, UNIT)[::2]
    title, *lines = run("sample", folder, UNIT)[0].splitlines()
    assert title.startswith(f"{UNIT}  samples 14")
    for line, row in zip(lines, table.to_pylist(), strict=True):
        band = row["band"]
        label = f"{band:g} to {2 * band:g}" if band else "rest"
        assert line.split()[: len(label.split())] == label.split()
        assert f"«{row['token'].strip()}»" in line
    assert "«" in run("sample", folder, UNIT, "--full")[0]


def test_whole_windows(folder: Path, index: Index) -> None:
    out, _ = run("top", folder, UNIT, "-k", "2", "--full")
    words = out.replace("«", " ").replace("»", " ").split()
    for text in index.top(UNIT, k=2)["text"].to_pylist():
        assert "".join(text.split()) in "".join(words)
    assert "sequence" in out


def test_every_window_is_spelled_as_its_text(index: Index) -> None:
    for row in index.top(UNIT).to_pylist():
        shown = window(row)
        assert "".join(shown.pieces) == row["text"]
        assert len(shown.pieces) == len(row["tokens"])
        assert shown.pieces[shown.peak].strip() == row["token"].strip()
        assert shown.activations[shown.peak] == row["value"]


def test_histogram(folder: Path, index: Index, tmp_path: Path) -> None:
    rows = index.histogram(UNIT).to_pylist()
    assert list(map(rounded, from_json("histogram", folder, UNIT))) == list(map(rounded, rows))
    lines = from_csv("histogram", folder, UNIT)
    assert [np.float32(row["lower"]) for row in lines] == [row["lower"] for row in rows]
    assert bars(from_json("histogram", folder, UNIT)) == bars(rows)
    for options, per_octave in (((), 1), (("--fine",), 8), (("--linear",), 1)):
        out, _ = run("histogram", folder, UNIT, *options)
        assert len(out.splitlines()) == 2 + len(bars(rows, per_octave))
    picture = tmp_path / "unit.svg"
    assert run("histogram", folder, UNIT, "--output", picture) == ("", f"wrote {picture}\n")
    assert "<svg" in picture.read_text()


def test_unit_card_fits_one_screen(folder: Path, index: Index) -> None:
    out, _ = run("unit", folder, UNIT, width=80)
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    words = ["tokens", "positive", "active", "minimum", "maximum", "mean", "kurtosis", "p99.9"]
    words += ["top", "samples", "bottom", "rest"]
    assert [word for word in words if word not in out] == []
    assert f"{index.unit(UNIT)['count'][0].as_py():,}" in out
    # a sample of each band
    assert out.count("«") == 5 + 4 + 7


def test_unit_as_data(folder: Path, index: Index) -> None:
    read = from_json("unit", folder, UNIT, "-k", "2")
    record = index.record(UNIT, k=2)
    assert list(read) == [*record.statistics.column_names, "histogram", "top", "samples", "bottom"]
    assert list(map(rounded, read["histogram"])) == list(map(rounded, record.histogram.to_pylist()))
    assert [len(read["top"]), len(read["samples"]), len(read["bottom"])] == [2, 14, 2]
    assert from_csv("unit", folder, UNIT)[0]["count"] == str(read["count"])


def test_sql(folder: Path, index: Index) -> None:
    query = "SELECT layer, count(*) AS units, max(maximum) AS highest FROM units GROUP BY ALL ORDER BY layer"
    read = from_json("sql", folder, query)
    assert [(row["layer"], row["units"]) for row in read] == [(0, 16), (1, 16)]
    assert json.loads(run("sql", folder, "-", "-f", "json", stdin=query)[0]) == read
    out, error = run("sql", folder, query)
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["layer", "units"],
        ["─" * 21],
        ["0", "16"],
        ["1", "16"],
    ]
    assert error == ""


def test_sql_tells_what_it_leaves_out(folder: Path) -> None:
    query = "SELECT layer, unit FROM units ORDER BY ALL"
    out, error = run("sql", folder, query, "--rows", "5")
    assert len(out.splitlines()) == 2 + 5
    assert error == "5 of 32 rows shown (--rows N for more, --format csv for all)\n"
    assert len(from_csv("sql", folder, query)) == 32
    out, error = run("sql", folder, query, "--rows", "9" * 30)
    assert (len(out.splitlines()), error) == (2 + 32, "")


def test_sql_text_cannot_drive_the_terminal(folder: Path) -> None:
    out, _ = run("sql", folder, "SELECT chr(27) || '[2J' || chr(8238) || chr(10) || 'x' AS \"a\n\x1bb\"")
    assert out.isprintable() or all(unicodedata.category(c) not in ("Cc", "Cf") or c == "\n" for c in out)
    assert r"\x1b[2J\u202e\nx" in out


def test_info_and_verify(folder: Path, index: Index) -> None:
    assert from_json("info", folder) == index.info()
    facts = {row["key"]: row["value"] for row in from_csv("info", folder)}
    assert facts["units"] == "32"
    assert facts["model.name"] == "synthetic"
    out, _ = run("info", folder)
    assert "units" in out
    assert "synthetic" in out
    for options in ((), ("--full",)):
        assert run("verify", folder, *options)[1] == ""
        assert isinstance(from_json("verify", folder, *options), dict)


def test_info_shows_the_first_files_and_says_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    from indexer.display.pages import print_facts

    files = [{"source": f"{number}.txt", "bytes": number} for number in range(20)]
    layers = [{"layer": number, "path": "fused", "reason": ""} for number in range(20)]
    print_facts({"corpus": {"files": files}, "layers": layers, "hooks": False, "none": None}, console())
    out = capsys.readouterr().out
    assert "source 4.txt  bytes 4" in out
    assert "5.txt" not in out
    assert "… 15 more (--format json)" in out
    assert "layer 0  path fused\n" in out
    assert "layer 19  path fused\n" in out


def damaged(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "damaged.index"
    copy.mkdir()
    (copy / "manifest.json").write_text((folder / "manifest.json").read_text()[:100])
    return copy


def foreign(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    return tmp_path


MISTAKES: list[tuple[Callable[[Path, Path], list[Any]], str]] = [
    (lambda folder, _: ["top", folder, "mlp.9.0"], "mlp.9.0"),
    (lambda folder, _: ["unit", folder, "mlp.1.99"], "units 0-15"),
    (lambda folder, _: ["histogram", folder, "5.1733"], "mlp.5.1733"),
    (lambda folder, _: ["bottom", folder, UNIT, "-k", "0"], "-k 0: give a whole number, 1 or more"),
    (lambda folder, _: ["histogram", folder, UNIT, "-o", "unit.gif"], "end it in .png, .svg, .pdf"),
    (lambda folder, _: ["sql", folder, "SELCT 1"], "syntax error"),
    (lambda folder, _: ["sql", folder, "SELECT nope FROM units"], "nope"),
    (lambda folder, _: ["sql", folder, "DROP VIEW units"], "SELECT"),
    (lambda folder, _: ["sql", folder, "SELECT 1", "--rows", "x"], "--rows x: give a whole number"),
    (lambda folder, _: ["sql", folder, ""], "SELECT"),
    (lambda _, empty: ["info", empty / "missing"], "no such folder"),
    (lambda _, empty: ["verify", empty], "not an index"),
    (lambda folder, empty: ["unit", damaged(folder, empty), UNIT], "damaged"),
    (lambda folder, empty: ["unit", foreign(folder, empty), UNIT], "manifest.json"),
]


@pytest.mark.parametrize(("make", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_a_mistake_is_one_line(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], list[Any]], told: str
) -> None:
    out, error = run(*make(folder, tmp_path), status=2)
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error


def test_the_demo_asks_what_an_index_can_answer(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = index.sql(SELECTIVE).to_pylist()
    assert [row["neuron"].rpartition(".")[0] for row in chosen] == ["mlp.0", "mlp.1"]
    assert all(row["fires_on"] for row in chosen)
    asked = index.sql(FIRES_ON.format(token=" the")).to_pylist()
    assert all(row["places"] >= 1 for row in asked)
    _show(index, index.path, console())
    captured = capsys.readouterr()
    assert chosen[-1]["neuron"] in captured.out
    assert "Which neurons fire on the token" in captured.out
    assert f"neuron-indexer unit {index.path} {chosen[-1]['neuron']}" in captured.err


def test_places_are_lines_as_people_count_them_or_rows() -> None:
    assert source_name("c.jsonl", 398) == "c.jsonl line 399"
    assert source_name("c.ndjson.gz", 0) == "c.ndjson.gz line 1"
    assert source_name("a.parquet", 398) == "a.parquet row 398"
    assert source_name("book.txt", 0) == "book.txt"


@pytest.mark.parametrize(
    ("question", "needless"),
    [
        (("unit", UNIT), (*SLOW, "duckdb")),
        (("top", UNIT), (*SLOW, "duckdb")),
        (
            ("sql", "SELECT unit, maximum, activations FROM units JOIN examples USING (unit) LIMIT 2"),
            (*SLOW, "rich.console"),
        ),
    ],
)
def test_questions_import_little(folder: Path, question: tuple[str, str], needless: tuple[str, ...]) -> None:
    command, argument = question
    code = (
        "import sys, indexer.commands\n"
        f"try: indexer.commands.app([{command!r}, {str(folder)!r}, {argument!r}])\n"
        f"finally: print([name for name in {needless} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
