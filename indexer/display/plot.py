"""A unit's histogram as a picture: PNG, SVG or PDF, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer_kernels.histogram import SMALLEST_EXPONENT

from indexer.display.data import number
from indexer.display.histogram import Bar, bars
from indexer.errors import IndexerError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
_INCHES, _DOTS_PER_INCH = (6.4, 3.4), 200
_NEGATIVE, _POSITIVE, _INK, _PALE = "#3b7ea1", "#d9792b", "#333333", "#8a8a8a"
# magnitudes below it, where all bins end, are drawn on a linear piece of the axis
_LINEAR_BELOW = 2.0**SMALLEST_EXPONENT
_FLOOR = 0.8
_QUANTILES = {"p50": "median", "p99": "99 %", "p999": "99.9 %"}
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    # the same data give the same file, byte for byte
    "svg.hashsalt": "neuron-activation-indexer",
}


def plot_histogram(
    name: str, unit: Mapping[str, Any], bins: Sequence[Mapping[str, Any]], output: Path, linear: bool = False
) -> None:
    """Draw a unit's histogram into `output`.

    unit: its row of the table `units`. bins: its rows of the table `histograms`.
    Raises IndexerError for an unknown suffix, without matplotlib, and where the file cannot be written.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise IndexerError(f"--output {output}: no such kind of picture; end it in {', '.join(SUFFIXES)}")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise IndexerError(
            f"--output {output}: needs matplotlib: pip install matplotlib"
        ) from error
    with rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        shown = bars(bins)
        _draw_bars(axes, shown, unit)
        _scale(axes, unit, linear)
        _draw_quantiles(axes, unit)
        _write_title(axes, name, unit, shown)
        undated = {"Date": None} if output.suffix.lower() == ".svg" else None
        try:
            figure.savefig(output, dpi=_DOTS_PER_INCH, metadata=undated)
        except OSError as error:
            raise IndexerError(f"--output {output}: {error.strerror or error}") from error


def _draw_bars(axes: Axes, shown: Sequence[Bar], unit: Mapping[str, Any]) -> None:
    for bar in shown:
        # the outermost bins are open; the largest magnitude seen closes them
        lower = unit["minimum"] if bar.lower == -math.inf else bar.lower
        upper = max(unit["maximum"], bar.lower * 1.125) if bar.upper == math.inf else bar.upper
        colour = _NEGATIVE if bar.upper <= 0 else _POSITIVE
        if bar.lower < bar.upper and bar.count:
            axes.bar(lower, bar.per_octave, upper - lower, align="edge", color=colour, linewidth=0)
        elif bar.count:
            axes.plot([0, 0], [_FLOOR, bar.count], color=_PALE, linewidth=1.5, solid_capstyle="butt")


def _scale(axes: Axes, unit: Mapping[str, Any], linear: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    axes.set_xscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator(_decades(unit["minimum"] or 0.0, unit["maximum"] or 0.0)))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\u2212")))
    if not linear:
        axes.set_yscale("log")
        axes.set_ylim(bottom=_FLOOR)
    axes.set_xlabel("activation")
    axes.set_ylabel("tokens per octave")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _decades(minimum: float, maximum: float) -> list[float]:
    """Zero and the powers of ten in range; every second one where all would not fit beside each other."""
    rising = [10.0**power for power in range(-3, 1 + math.floor(math.log10(max(maximum, 1e-3))))]
    falling = [-(10.0**power) for power in range(-3, 1 + math.floor(math.log10(max(-minimum, 1e-3))))]
    step = 1 if len(rising) * (maximum > 0) + len(falling) * (minimum < 0) <= 9 else 2
    return [*(falling[::step] if minimum < 0 else []), 0.0, *(rising[::step] if maximum > 0 else [])]


def _draw_quantiles(axes: Axes, unit: Mapping[str, Any]) -> None:
    labels: dict[float, list[str]] = {}
    for column, label in _QUANTILES.items():
        if unit[column] is not None:
            labels.setdefault(unit[column], []).append(label)
    for value, names in labels.items():
        axes.axvline(value, color=_INK, linewidth=0.7, linestyle=(0, (3, 2)))
        axes.annotate(
            ", ".join(names),
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="left",
            fontsize=7,
            color=_INK,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8},
        )


def _write_title(axes: Axes, name: str, unit: Mapping[str, Any], shown: Sequence[Bar]) -> None:
    count = unit["count"]
    share = 100 * unit["active"] / count if count else 0.0
    facts = [f"{number(count)} tokens", f"active {share:.3g} %", f"maximum {number(unit['maximum'])}"]
    zeros = sum(bar.count for bar in shown if bar.lower == bar.upper)
    facts += [f"exactly zero {number(zeros)}"] * bool(zeros)
    facts += [f"not finite {number(unit['nan'] + unit['inf'])}"] * bool(unit["nan"] + unit["inf"])
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=16)
    axes.annotate(
        " · ".join(facts),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        color=_PALE,
    )
