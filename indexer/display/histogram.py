"""A unit's histogram in characters: a list of bars, and a chart of a few lines.

Both axes are logarithmic: the bins are (8 to an octave, merged to fewer where there is no room), and counts
span so many powers of ten that on a linear scale the interesting tail would vanish.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from indexer_kernels.histogram import BINS_PER_OCTAVE, ZERO_BIN, bins_of, magnitude_edges
from rich.console import Console
from rich.table import Table
from rich.text import Text

from indexer.display.data import number

# Of the bins of one sign, by magnitude: 0, 2^-10, 1.125 * 2^-10 ... 2^14, infinity.
_EDGES: list[float] = magnitude_edges().tolist()
_ACROSS = " ▏▎▍▌▋▊▉█"
UP = " ▁▂▃▄▅▆▇█"
_NEGATIVE, _ZERO, _POSITIVE = "#0087af", "#808080", "#d75f00"


@dataclass(frozen=True)
class Bar:
    """One bin, or several neighbours merged: lower and upper as in the table `histograms`, and the tokens."""

    lower: float
    upper: float
    count: int

    @property
    def colour(self) -> str:
        """Blue below zero, orange above, grey for exact zero."""
        return _ZERO if self.lower == self.upper else _NEGATIVE if self.upper <= 0 else _POSITIVE

    @property
    def per_octave(self) -> float:
        """The count for the width of one octave, so that bins of unlike widths make one smooth outline.

        Zero, the bins next to it and the open ones have no such width: their count stays as it is.
        """
        smaller, larger = sorted((abs(self.lower), abs(self.upper)))
        return self.count / math.log2(larger / smaller) if 0 < smaller < larger < math.inf else self.count


def bars(bins: Iterable[Mapping[str, Any]], per_octave: int = BINS_PER_OCTAVE) -> list[Bar]:
    """The bins as `per_octave` (1, 2, 4, 8) bars an octave, without gaps from the first hit to the last.

    bins: rows of the table `histograms`, which has only those with a count.
    """
    rows = list(bins)
    merged = BINS_PER_OCTAVE // per_octave
    # its middle names a bin even where its edges were printed with few digits
    middles = np.array([(row["lower"] + row["upper"]) / 2 for row in rows], np.float32)
    counts: Counter[int] = Counter()
    for row, number_from_zero in zip(rows, (bins_of(middles) - ZERO_BIN).tolist(), strict=True):
        counts[_place(number_from_zero, merged)] += row["count"]
    if not rows:
        return []
    return [_bar(place, counts[place], merged) for place in range(min(counts), max(counts) + 1)]


def _place(number_from_zero: int, merged: int) -> int:
    """Where a bin stands: 0 is exact zero, 1 the magnitudes below 2^-10, from 2 on the octaves; mirrored."""
    magnitude = abs(number_from_zero)
    place = 2 + (magnitude - 2) // merged if magnitude > 1 else magnitude
    return place if number_from_zero > 0 else -place


def _bar(place: int, count: int, merged: int) -> Bar:
    if place == 0:
        return Bar(0.0, 0.0, count)
    smaller, larger = _edge(abs(place) - 1, merged), _edge(abs(place), merged)
    # 0 - 0.0 and not -0.0, which would print as -0.
    return Bar(smaller, larger, count) if place > 0 else Bar(-larger, 0 - smaller, count)


def _edge(ordinal: int, merged: int) -> float:
    """The lower magnitude of place `ordinal` + 1."""
    return _EDGES[min(1 + (ordinal - 1) * merged, len(_EDGES) - 1)] if ordinal else _EDGES[0]


def print_bars(
    bins: list[dict[str, Any]], console: Console, fine: bool = False, linear: bool = False
) -> None:
    """Print one line per bar: its bounds, count, share of all, and the bar."""
    shown = bars(bins, BINS_PER_OCTAVE if fine else 1)
    total = sum(bar.count for bar in shown)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for name in ("lower", "upper", "count", "share"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("count, linear" if linear else "count, log scale", ratio=1)
    taken = sum(max(map(len, column), default=0) + 2 for column in _bar_columns(shown, total))
    width = max(console.width - taken, 8)
    heights = _heights([bar.count for bar in shown], linear)
    for cells, bar, height in zip(zip(*_bar_columns(shown, total), strict=True), shown, heights, strict=True):
        grid.add_row(*cells, Text(_across(height, width), bar.colour))
    console.print(grid)


def _bar_columns(shown: list[Bar], total: int) -> list[list[str]]:
    return [
        [number(bar.lower, 5) for bar in shown],
        [number(bar.upper, 5) for bar in shown],
        [number(bar.count) for bar in shown],
        [_share(bar.count, total) for bar in shown],
    ]


def _share(count: int, total: int) -> str:
    share = 100 * count / total if total else 0.0
    return "" if not count else f"{share:.1f} %" if share >= 0.1 else f"{share:.1g} %"


def _heights(counts: Sequence[float], linear: bool) -> list[float]:
    """Each count's share of the largest; on the log scale of log(1 + count), so that a single token shows."""
    scale = [float(count) if linear else math.log1p(count) for count in counts]
    return [value / max(scale) if value else 0.0 for value in scale]


def _across(height: float, width: int) -> str:
    eighths = round(height * width * 8) or (1 if height else 0)
    return "█" * (eighths // 8) + _ACROSS[eighths % 8].strip()


def chart(bins: list[dict[str, Any]], width: int, lines: int = 7) -> list[Text]:
    """A chart of at most `width` cells by `lines` lines, counts on a log scale, and the axis of values."""
    per_octave = next((p for p in (8, 4, 2, 1) if len(bars(bins, p)) <= width), 1)
    shown = bars(bins, per_octave)
    if not shown:
        return [Text("no finite value", "dim")]
    cells = max(1, min(4, width // len(shown)))
    drawn = []
    levels = _heights([bar.per_octave for bar in shown], linear=False)
    heights = [max(round(height * lines * 8), 1) if height else 0 for height in levels]
    for line in range(lines - 1, -1, -1):
        text = Text(no_wrap=True)
        for bar, height in zip(shown, heights, strict=True):
            text.append(UP[min(max(height - 8 * line, 0), 8)] * cells, bar.colour)
        drawn.append(text)
    return [*drawn, Text(_axis(shown, cells), "dim", no_wrap=True)]


def _axis(shown: list[Bar], cells: int) -> str:
    """The values under the chart: zero first, then the roundest powers of two for which there is room."""
    width = cells * len(shown)
    line = [" "] * width
    marks = sorted(
        ((ordinal * cells, bar) for ordinal, bar in enumerate(shown)),
        key=lambda mark: (mark[1].lower != mark[1].upper, _fineness(mark[1])),
    )
    for start, bar in marks:
        label = f"{bar.lower:.3g}"
        start = start + (cells - 1) // 2 if bar.lower == bar.upper else start
        near = line[max(start - 1, 0) : start + len(label) + 1]
        if start + len(label) <= width and not "".join(near).strip() and _fineness(bar) < 3:
            line[start : start + len(label)] = label
    return "".join(line)


def _fineness(bar: Bar) -> int:
    """How odd a label the bar's lower bound makes: 0 for powers of 16, 1 of 4, 2 of 2, 3 for the rest."""
    if bar.lower == 0:
        return 0 if bar.upper == 0 else 3
    mantissa, exponent = math.frexp(abs(bar.lower))
    if mantissa != 0.5:
        return 3
    return 0 if (exponent - 1) % 4 == 0 else 1 if (exponent - 1) % 2 == 0 else 2
