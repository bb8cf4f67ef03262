"""What the commands show to people: examples with the peak marked, a unit's card, an index's facts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from indexer_kernels.heads import ON_WINDOWS, REPEATED
from indexer_kernels.histogram import QUANTILES
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from indexer.display.data import number
from indexer.display.histogram import UP, chart
from indexer.display.text import Window, concordance, marked
from indexer.index.harmless import CUT, one_line
from indexer.index.results import source_name
from indexer.index.spelled import spell

if TYPE_CHECKING:
    from indexer.index.read import Index

# the width of a page that goes to a file or a pipe
PAGE = 120
_SOURCE_WIDEST = 26
_FILES_SHOWN = 5


class _Page(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the program: rich itself would end it with an error."""
        raise BrokenPipeError


def console(width: int | None = None) -> Console:
    """A console on stdout that takes text literally: no markup, no emoji codes, no highlighting."""
    if width is None and not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        width = PAGE
    return _Page(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def window(example: Mapping[str, Any]) -> Window:
    """The window of one row of the table `examples`."""
    pieces = spell(example["tokens"], example["text"])
    activations = list(example["activations"])
    peak = example["position"] - example["window_start"]
    # a token within a split character has no text of its own: the character is shown as the peak
    shown = next((place for place in range(peak, -1, -1) if pieces[place]), peak)
    activations[shown] = activations[peak]
    return Window(pieces, tuple(activations), shown)


def print_examples(
    examples: list[dict[str, Any]], sources: Mapping[int, str], out: Console, full: bool = False
) -> None:
    """Print examples in the order given, one line each, or with `full` their whole windows.

    examples: rows of the table `examples`. sources: what to call each of their documents.
    """
    if full:
        _print_whole(examples, sources, out)
        return
    names = [_end_of(sources.get(example["document"], "?"), _SOURCE_WIDEST) for example in examples]
    values = [_value(example, out.width >= PAGE) for example in examples]
    labels = [_label(example) for example in examples]
    label_width = max(map(len, labels), default=1)
    value_width = max(map(len, values), default=1)
    name_width = max(map(len, names), default=0)
    text_width = max(out.width - label_width - value_width - name_width - 6, 20)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width, side in (
        (label_width, "right"),
        (value_width, "right"),
        (text_width, "left"),
        (name_width, "left"),
    ):
        grid.add_column(width=width, justify=side, no_wrap=True)  # type: ignore[arg-type]
    colour = out.color_system is not None
    texts = concordance([window(example) for example in examples], text_width, colour)
    for label, value, text, name in zip(labels, values, texts, names, strict=True):
        grid.add_row(label, Text(value, "bold"), text, Text(name, "dim"))
    out.print(grid)


def _value(example: Mapping[str, Any], with_up: bool) -> str:
    """The value, and where that is known the other factor, with its sign."""
    known = with_up and example["up"] is not None
    return number(example["value"]) + (f"  up {example['up']:+.2g}" if known else "")


def _print_whole(examples: list[dict[str, Any]], sources: Mapping[int, str], out: Console) -> None:
    for example in examples:
        place = f"sequence {example['sequence']}, position {example['position']}"
        source = one_line(sources.get(example["document"], f"document {example['document']}"))
        out.print(
            Text.assemble(
                f"{_label(example):>3}  ", (_value(example, True), "bold"), f"  {source}, {place}"
            )
        )
        out.print(Padding(marked(window(example), out.color_system is not None), (0, 0, 1, 5)))


def _label(example: Mapping[str, Any]) -> str:
    """What tells an example from others of its kind: its rank, or of a sample its band."""
    band = example["band"]
    if band is None:
        return str(example["rank"])
    return f"{number(band, 3)} to {number(2 * band, 3)}" if band else "rest"


def _end_of(source: str, width: int) -> str:
    """The end of a path says more than its beginning; it is cut between folders where that can be."""
    source = one_line(source)
    if cell_len(source) <= width:
        return source
    folders = source.split("/")
    shorter = ["…/" + "/".join(folders[first:]) for first in range(1, len(folders))]
    return next((name for name in shorter if cell_len(name) <= width), CUT + source[-(width // 2) :])


def print_card(
    name: str,
    unit: Mapping[str, Any],
    bins: list[dict[str, Any]],
    examples: Mapping[str, list[dict[str, Any]]],
    sources: Mapping[int, str],
    out: Console,
) -> None:
    """Print a unit's counts, moments, quantiles, histogram and examples, by their titles, on one screen."""
    print_title(name, out)
    out.print(_fields(_counts(unit)))
    out.print(_fields({key: number(unit[key]) for key in ("minimum", "mean", "maximum")} | _shape(unit)))
    out.print(_fields({_quantile_name(key): number(unit[key]) for key in QUANTILES}))
    if "head" in unit:
        scores = (*REPEATED, *ON_WINDOWS)
        out.print(_fields({key.replace("_", " "): number(unit[key]) for key in scores}))
    out.print()
    for line in chart(bins, out.width - 2):
        out.print(Padding(line, (0, 0, 0, 1)))
    for title, rows in examples.items():
        if rows:
            out.print()
            out.print(Text(title, "bold"))
            print_examples(rows, sources, out)


def print_title(title: str, out: Console) -> None:
    """Print a heading across the page."""
    out.print(Rule(Text(title, "bold"), align="left", style="dim"))


def _counts(unit: Mapping[str, Any]) -> dict[str, str]:
    count = unit["count"]

    def share(name: str) -> str:
        return number(unit[name]) + (f" ({100 * unit[name] / count:.3g} %)" if count else "")

    return {
        "tokens": number(count),
        "positive": share("positive"),
        "active": share("active"),
        "nan": number(unit["nan"]),
        "inf": number(unit["inf"]),
    }


def _shape(unit: Mapping[str, Any]) -> dict[str, str]:
    variance = unit["variance"]
    deviation = {"std deviation": number(None if variance is None else max(variance, 0.0) ** 0.5)}
    return deviation | {key: number(unit[key]) for key in ("skewness", "kurtosis")}


def _quantile_name(column: str) -> str:
    digits = column.removeprefix("p")
    return f"p{digits[:2]}.{digits[2:]}" if len(digits) > 2 else column


def _fields(fields: Mapping[str, str]) -> Table:
    """One line of names above one line of values."""
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name, value in fields.items():
        grid.add_column(name, justify="right", no_wrap=True, min_width=min(len(value), 24))
    grid.add_row(*fields.values())
    return grid


def print_facts(facts: Mapping[str, Any], out: Console, indent: int = 0) -> None:
    """Print nested facts, one to a line. Of the corpus' files the first are shown, of other lists all."""
    width = max((len(str(key)) for key, value in facts.items() if not _is_nested(value)), default=0)
    for key, value in facts.items():
        label = one_line(str(key)).replace("_", " ")
        if not _is_nested(value):
            _print_fact(Text.assemble(" " * indent, (f"{label:<{width}}", "dim"), "  ", _fact(value)), out)
            continue
        out.print(Text(" " * indent + label, "bold"))
        if isinstance(value, Mapping):
            print_facts(value, out, indent + 2)
            continue
        shown = value[:_FILES_SHOWN] if key == "files" else value
        for item in shown:
            _print_fact(Text(" " * (indent + 2) + _fact(item)), out)
        if len(shown) < len(value):
            out.print(
                Text(f"{' ' * (indent + 2)}{CUT} {len(value) - len(shown):,} more (--format json)", "dim")
            )


def loads(experts: Mapping[str, Any]) -> dict[str, str]:
    """A line for each layer of experts: which shares of the tokens they meet, and a bar for each in order."""
    lines = {}
    for layer, facts in experts.items():
        load = facts["load"]
        ranked = sorted(range(len(load)), key=lambda expert: load[expert])
        ends = ", ".join(
            f"{word} {load[expert]:.2%} ({expert})"
            for word, expert in (("least", ranked[0]), ("most", ranked[-1]))
        )
        bars = "".join(UP[math.ceil(8 * share / max(load)) if share else 0] for share in load)
        lines[layer] = (
            f"{facts['number']}, {facts['per_token']} a token; of the tokens {ends}, "
            f"none {load.count(0)}  {bars}"
        )
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(map(_is_nested, value)))


def _print_fact(line: Text, out: Console) -> None:
    out.print(line, no_wrap=True, overflow="ellipsis" if out.is_terminal else "ignore", crop=False)


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value)) or "none"
    if isinstance(value, Mapping):
        facts = {key: item for key, item in value.items() if item not in (None, "") and item is not False}
        return "  ".join(f"{key} {_fact(item)}" for key, item in facts.items())
    return "-" if value is None else one_line(str(value))


def sources(index: Index, examples: list[dict[str, Any]]) -> dict[int, str]:
    """What to call the documents of some examples: their file, and where in it they are."""
    found = index.documents(example["document"] for example in examples)
    return {row["document"]: source_name(row["source"], row["row"]) for row in found.to_pylist()}
