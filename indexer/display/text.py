"""The window of an example as a terminal may show it: harmless, cut to size, the peak marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from indexer.index.harmless import CUT, visible

OPEN, CLOSE = "«", "»"

# middle tones, readable on a dark and on a light background alike; weakest first
_RISING = tuple(Style(color=color) for color in ("#af8700", "#d75f00", "#d70000"))
_FALLING = tuple(Style(color=color) for color in ("#0087af", "#0087ff", "#875fff"))
_SHADES_FROM = (0.15, 0.4, 0.7)
_PEAK = Style(bold=True, reverse=True)


@dataclass(frozen=True)
class Window:
    """The tokens around a peak, spelled as they stand in the text.

    pieces: one string per token; joined they are the text of the window.
    activations: the unit's activation at each of them.
    peak: which of them is the peak.
    """

    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int


Spans = list[tuple[str, Style]]


def marked(window: Window, colour: bool = True) -> Text:
    """The whole window on one line, the peak between « and ».

    With colour, each token is shaded by its activation's share of the peak's; the marks stay in any case.
    """
    before, peak, after = _parts(window, colour)
    return Text.assemble(*before, peak, *after)


def concordance(windows: Sequence[Window], width: int, colour: bool = True) -> list[Text]:
    """The windows as lines of at most `width` cells: their peaks below each other, their ends cut."""
    parts = [_parts(window, colour) for window in windows]
    column = min(max((_cells(before) for before, _, _ in parts), default=0), width // 2)
    lines = []
    for before, peak, after in parts:
        before = _last_cells(before, column)
        peak.truncate(width - column, overflow="ellipsis")
        after = _first_cells(after, width - column - peak.cell_len)
        lines.append(Text.assemble(" " * (column - _cells(before)), *before, peak, *after))
    return lines


def _parts(window: Window, colour: bool) -> tuple[Spans, Text, Spans]:
    """What comes before the peak, the marked peak, what comes after it; all harmless."""
    styles = _shades(window) if colour else [Style()] * len(window.pieces)
    spans = [(visible(piece), style) for piece, style in zip(window.pieces, styles, strict=True)]
    word = window.pieces[window.peak]
    bare = word.lstrip(" ") or word
    before = [*spans[: window.peak], (word.removesuffix(bare), Style())]
    return before, Text(OPEN + visible(bare) + CLOSE, _PEAK if colour else Style()), spans[window.peak + 1 :]


def _cells(spans: Spans) -> int:
    return sum(cell_len(piece) for piece, _ in spans)


def _first_cells(spans: Spans, room: int) -> Spans:
    """The beginning of the line of spans, ending in an ellipsis where it is cut."""
    if _cells(spans) <= room:
        return spans
    kept: Spans = []
    for piece, style in spans:
        if cell_len(piece) > room - 1:
            return [*kept, (set_cell_size(piece, max(room - 1, 0)).rstrip() + CUT * (room > 0), style)]
        kept.append((piece, style))
        room -= cell_len(piece)
    return kept


def _last_cells(spans: Spans, room: int) -> Spans:
    """The end of the line of spans, beginning with an ellipsis where it is cut."""
    turned = _first_cells([(piece[::-1], style) for piece, style in reversed(spans)], room)
    return [(piece[::-1], style) for piece, style in reversed(turned)]


def _shades(window: Window) -> list[Style]:
    """One style per token by activation / peak activation; none where that share is below the first step."""
    peak = window.activations[window.peak]
    palette = _RISING if peak > 0 else _FALLING
    return [_shade(activation / peak if peak else 0.0, palette) for activation in window.activations]


def _shade(share: float, palette: tuple[Style, ...]) -> Style:
    level = sum(share >= start for start in _SHADES_FROM)
    return palette[level - 1] if level else Style()
