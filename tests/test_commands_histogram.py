"""The histogram in characters: bars, chart, picture."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from indexer.display.histogram import Bar, bars, chart, print_bars
from indexer.display.plot import plot_histogram
from indexer.errors import IndexerError


def bins_of(values: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the table `histograms`, from the definition: sign, exponent, top three bits of the mantissa."""
    edges = [0.0, *(2.0 ** (-10 + i // 8) * (1 + i % 8 / 8) for i in range(193)), math.inf]
    rows = []
    for lower, upper in pairwise(edges):
        rows.append(
            {"lower": -upper, "upper": -lower, "count": int(((values > -upper) & (values <= -lower)).sum())}
        )
        rows.append(
            {"lower": lower, "upper": upper, "count": int(((values >= lower) & (values < upper)).sum())}
        )
    for row in rows:
        row["count"] -= int((values == 0).sum()) if 0.0 in (row["lower"], row["upper"]) else 0
    rows.append({"lower": 0.0, "upper": 0.0, "count": int((values == 0).sum())})
    return sorted((row for row in rows if row["count"]), key=lambda row: (row["lower"], row["upper"]))


VALUES = np.random.default_rng(0).normal(0.0, 1.0, 4000).astype(np.float32) ** 3
VALUES[:50] = 0
VALUES[50:55] = (20000.0, -70000.0, 1e-9, -1e-9, 16384.0)
BINS = bins_of(VALUES)


@pytest.mark.parametrize("per_octave", [1, 2, 4, 8])
def test_bars_hold_every_token_once(per_octave: int) -> None:
    shown = bars(BINS, per_octave)
    assert sum(bar.count for bar in shown) == len(VALUES)
    for left, right in pairwise(shown):
        assert left.upper == right.lower
    for bar in shown:
        inside = (bar.lower <= VALUES) & (bar.upper > VALUES) & (VALUES > 0)
        inside |= (bar.lower < VALUES) & (bar.upper >= VALUES) & (VALUES < 0)
        inside |= (VALUES == 0) & (bar.lower == bar.upper)
        assert bar.count == inside.sum(), bar


def test_the_finest_bars_are_the_bins() -> None:
    shown = [bar for bar in bars(BINS, 8) if bar.count]
    assert shown == [Bar(row["lower"], row["upper"], row["count"]) for row in BINS]


def test_an_edge_of_few_digits_is_the_same_bin() -> None:
    edges = ("lower", "upper")
    short = [row | {edge: float(f"{row[edge]:.8g}") for edge in edges} for row in BINS]
    assert short != BINS
    assert bars(short) == bars(BINS)


def test_no_bin_no_bar() -> None:
    assert bars([]) == []
    assert chart([], 80)[0].plain == "no finite value"
    print_bars([], Console(file=io.StringIO(), width=80))


@pytest.mark.parametrize("width", [12, 40, 80, 200, 500])
def test_chart_fits(width: int) -> None:
    lines = chart(BINS, width, lines=6)
    assert len(lines) == 7
    assert all(len(line.plain) <= max(width, 53) for line in lines)


def test_chart_shows_a_single_token() -> None:
    shown = chart(
        [{"lower": 1.0, "upper": 1.125, "count": 10**9}, {"lower": 2.0, "upper": 2.25, "count": 1}], 40
    )
    assert shown[-2].plain.rstrip()[-1] in "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize("linear", [False, True])
def test_printed_bars(linear: bool) -> None:
    out = io.StringIO()
    print_bars(BINS, Console(file=out, width=80, highlight=False), linear=linear)
    lines = out.getvalue().splitlines()
    assert lines[0].split()[:4] == ["lower", "upper", "count", "share"]
    assert len(lines) == 1 + len(bars(BINS, 1))
    assert all(len(line) <= 80 for line in lines)
    assert max(line.count("█") for line in lines) >= 20
    assert "inf" in lines[-1]


UNIT = {
    "count": len(VALUES), "active": int((VALUES > 0).sum()), "nan": 1, "inf": 2, "minimum": -70000.0,
    "maximum": 20000.0, "p50": 0.0, "p99": 9.0, "p999": None,
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_picture(tmp_path: Path, suffix: str, magic: bytes) -> None:
    output = tmp_path / f"unit{suffix}"
    plot_histogram("mlp.5.1733", UNIT, BINS, output)
    assert output.read_bytes().startswith(magic)


def test_picture_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        plot_histogram("mlp.5.1733", UNIT, BINS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "mlp.5.1733" in (tmp_path / "one.svg").read_text()


def test_picture_of_a_unit_without_a_finite_value(tmp_path: Path) -> None:
    unit = UNIT | {"minimum": None, "maximum": None, "p50": None, "p99": None, "count": 0, "active": 0}
    plot_histogram("mlp.0.0", unit, [], tmp_path / "none.png", linear=True)


def test_picture_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndexerError, match=r"end it in \.png, \.svg, \.pdf"):
        plot_histogram("mlp.0.0", UNIT, BINS, tmp_path / "unit.gif")
    with pytest.raises(IndexerError, match="No such file or directory"):
        plot_histogram("mlp.0.0", UNIT, BINS, tmp_path / "missing" / "unit.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(IndexerError, match=r"pip install matplotlib"):
        plot_histogram("mlp.0.0", UNIT, BINS, tmp_path / "unit.png")
