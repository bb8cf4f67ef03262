"""A unit, or some of its examples, as HTML for a notebook: without scripts and anything of other hosts.

Colours lie over the notebook's own background, and text has its colour, so light and dark themes both do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import Any

import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index.harmless import visible
from indexer.index.spelled import spell

_HIGH, _LOW = "240,140,0", "47,143,224"
_FACTS = ("count", "positive", "active", "minimum", "mean", "maximum", "kurtosis", "p50", "p99", "p9999")
_NEEDED = {
    "kind", "rank", "band", "value", "position", "window_start", "tokens", "activations", "text", "document",
}  # fmt: skip
_CELL = "border:none;padding:1px 8px;white-space:nowrap;text-align"
# the tokens before the peak and those from it on, of which what does not fit is cut at the far end
_WINDOW = "border:none;font-family:ui-monospace,monospace;white-space:pre;overflow:hidden"
_BEFORE = f"{_WINDOW};padding:1px 0 1px 8px;max-width:28em;text-align:right;direction:rtl"
_AFTER = f"{_WINDOW};padding:1px 8px 1px 0;max-width:20em;text-align:left"
_TABLE = "border:none;border-collapse:collapse;color:inherit;font-size:13px"
_SHOWN_OF = {"top": "Strongest", "sample": "Samples", "bottom": "Lowest"}
_HEIGHT = 60


@dataclass(frozen=True)
class Shown:
    """What a notebook shows as `html`."""

    html: str
    title: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{self.title}; a notebook shows it as HTML>"


def unit_html(
    name: str, numbers: Mapping[str, Any], bins: Iterable[Mapping[str, Any]], examples: Iterable[pa.Table],
    sources: Mapping[int, str],
) -> str:  # fmt: skip
    """A unit: its numbers, its histogram, and tables of examples.

    numbers: its row of `units`; bins: its rows of `histograms`; sources: names of documents by their id.
    """
    most = max(abs(numbers["minimum"] or 0), abs(numbers["maximum"] or 0))
    facts = "".join(
        f'<span style="margin-right:1.4em"><small style="opacity:.75">{fact}</small> '
        f"{_number(numbers[fact])}</span>"
        for fact in _FACTS
    )
    tables = "".join(examples_html(table, sources, most) for table in examples)
    return (
        f'<div><h4 style="margin:4px 0">{_text(name)}</h4><div>{facts}</div>{_histogram(bins)}{tables}</div>'
    )


def examples_html(table: pa.Table, sources: Mapping[int, str], most: float | None = None) -> str:
    """Rows of `examples`, their peaks below each other, their tokens coloured by their activations.

    most: the magnitude that has the full colour; without it the largest of the table.
    Raises IndexerError for a table without the columns of `examples`.
    """
    missing = sorted(_NEEDED - set(table.column_names))
    if missing:
        raise IndexerError(f"show: the table has no column {missing[0]}; give a unit, or a table of examples")
    rows = table.to_pylist()
    if most is None:
        most = max((abs(value) for row in rows for value in row["activations"] if _finite(value)), default=0)
    shown, titled = [], None
    for row in rows:
        if row["kind"] != titled:
            titled = row["kind"]
            title = _text(_SHOWN_OF.get(titled, str(titled)))
            shown.append(f'<tr><th colspan="5" style="{_CELL}:left">{title}</th></tr>')
        shown.append(_row(row, sources, most))
    return f'<table style="{_TABLE}">{"".join(shown)}</table>'


def _row(row: Mapping[str, Any], sources: Mapping[int, str], most: float) -> str:
    pieces, peak = spell(row["tokens"], row["text"]), row["position"] - row["window_start"]
    tokens = [
        _token(piece, value, most, place == peak)
        for place, piece, value in zip(count(), pieces, row["activations"], strict=False)
    ]
    label = row["rank"] if row["band"] is None else f"≥ {row['band']:g}" if row["band"] else "rest"
    before, after = "".join(tokens[:peak]), "".join(tokens[peak:])
    source = _text(sources.get(row["document"], str(row["document"])))
    return (
        f'<tr style="background:none"><td style="{_CELL}:right;opacity:.75">{label}</td>'
        f'<td style="{_CELL}:right"><b>{_number(row["value"])}</b></td>'
        f'<td style="{_BEFORE}"><bdi dir="ltr">{before}</bdi></td>'
        f'<td style="{_AFTER}">{after}</td>'
        f'<td style="{_CELL}:left;opacity:.75"><small>{source}</small></td></tr>'
    )


def _token(piece: str, value: float, most: float, peak: bool) -> str:
    heat = math.sqrt(min(abs(value) / most, 1)) if most and _finite(value) else 0.0
    styles = [f"background:rgba({_HIGH if value > 0 else _LOW},{0.6 * heat:.2f})"] if heat >= 0.05 else []
    styles += ["text-decoration:underline dotted"] if heat >= 0.05 and value < 0 else []
    styles += ["outline:1px solid;font-weight:bold"] if peak else []
    return f'<span title="{_number(value)}" style="{";".join(styles)}">{_text(piece)}</span>'


def _histogram(bins: Iterable[Mapping[str, Any]]) -> str:
    """Bars of the bins, their counts on a logarithmic scale."""
    found = list(bins)
    most = math.log1p(max((one["count"] for one in found), default=1))
    tallness = [max(_HEIGHT * math.log1p(one["count"]) / most, 1) for one in found]
    bars = "".join(
        f'<rect x="{4 * place}" y="{_HEIGHT - tall:.1f}" width="3.7" height="{tall:.1f}" '
        f'fill="rgb({_HIGH if one["upper"] > 0 else _LOW})">'
        f"<title>{_number(one['lower'])} to {_number(one['upper'])}: {one['count']:,} tokens</title></rect>"
        for place, (one, tall) in enumerate(zip(found, tallness, strict=True))
    )
    width = 4 * max(len(found), 1)
    return (
        f'<svg role="img" aria-label="Histogram" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" style="max-width:100%;margin:6px 0">{bars}</svg>'
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _text(text: str) -> str:
    return escape(visible(text))
