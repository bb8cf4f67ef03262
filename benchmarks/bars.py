"""Horizontal bars in groups, with lines for what is aimed at, as an SVG file.

The picture stands on a card of its own, which follows the reader's light or dark scheme, so that it can be
read wherever it is shown. The same chart gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

WIDTH, MARGIN, LABEL, ROW, BAR = 760, 24, 270, 24, 14
# what is left of the longest bar for the text behind it
BEHIND = 150
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 16px; font-weight: 600; }
.group { font-weight: 600; }
.quiet { font-size: 12px; fill: #59636e; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.ours { fill: #1f77b4; }
.base { fill: #8c959f; }
.peer { fill: #d9822b; }
.line { stroke: #24292f; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9198a1; }
  .card { fill: #0d1117; stroke: #3d444d; }
  .ours { fill: #58a6e6; }
  .base { fill: #7d8590; }
  .peer { fill: #e8a158; }
  .line { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Bar:
    """kind: "ours", "base" for what it is measured against, or "peer". figure: the value, for people."""

    label: str
    value: float
    figure: str
    kind: str


@dataclass(frozen=True)
class Group:
    """Bars that belong together. lines: (label, value) of what is aimed at, told from left to right."""

    name: str
    bars: list[Bar]
    lines: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """One picture; all bars on one scale, from zero. notes: lines below it."""

    title: str
    groups: list[Group]
    notes: list[str]


def to_svg(chart: Chart) -> str:
    """The chart as a whole file."""
    values = [value for group in chart.groups for value in _values(group)]
    scale = (WIDTH - 2 * MARGIN - LABEL - BEHIND) / max(values)
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": chart.title})
    ElementTree.SubElement(root, "style").text = STYLE
    card = _add(root, "rect", "card", x=0.5, y=0.5, width=WIDTH - 1, rx=8)
    y = MARGIN + 12
    _text(root, "title", MARGIN, y, chart.title)
    for group in chart.groups:
        y = _draw(root, group, y + 18, scale)
    y += 12
    for note in chart.notes:
        y += 18
        _text(root, "quiet", MARGIN, y, note)
    height = y + MARGIN
    card.set("height", str(height - 1))
    root.set("viewBox", f"0 0 {WIDTH} {height}")
    root.set("width", str(WIDTH))
    root.set("height", str(height))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _values(group: Group) -> list[float]:
    return [bar.value for bar in group.bars] + [value for _, value in group.lines]


def _draw(root: Element, group: Group, y: int, scale: float) -> int:
    """A group from y downwards; returns where it ends."""
    left = MARGIN + LABEL
    y += 18
    _text(root, "group", MARGIN, y, group.name)
    top = y + 8
    end = top + ROW * len(group.bars)
    lines = sorted(group.lines, key=lambda line: line[1])
    for _, value in lines:
        x = round(left + value * scale, 1)
        _add(root, "line", "line", x1=x, x2=x, y1=top - 12, y2=end)
    if lines:
        _text(root, "quiet", round(x + 8, 1), y, ", ".join(label for label, _ in lines))
    for number, bar in enumerate(group.bars):
        middle = top + ROW * number + ROW // 2
        _text(root, "", MARGIN, middle + 4, bar.label)
        length = round(max(1.0, bar.value * scale), 1)
        _add(root, "rect", bar.kind, x=left, y=middle - BAR // 2, width=length, height=BAR, rx=2)
        # behind a line that would run through it
        behind = max([length, *(value * scale for _, value in group.lines)])
        _text(root, "", round(left + behind + 8, 1), middle + 4, bar.figure)
    return end


def _text(root: Element, kind: str, x: float, y: float, text: str) -> None:
    _add(root, "text", kind, x=x, y=y).text = text


def _add(root: Element, tag: str, kind: str, **numbers: float) -> Element:
    attributes = {"class": kind} if kind else {}
    return ElementTree.SubElement(
        root, tag, attributes | {name: f"{value:g}" for name, value in numbers.items()}
    )
