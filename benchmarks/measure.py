"""Timing sides against each other in one process: interleaved rounds, medians, and ratios pair by pair.

Machines drift by more than what is to be told apart here, so sides take turns - A B A B - and a ratio is
formed within each round, where both sides met the same machine. A ratio comes with its lowest and highest.
"""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Runs once and returns the seconds that count.
Side = Callable[[], float]


def timed(function: Callable[[], object]) -> Side:
    """A side whose whole call counts."""

    def side() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return side


def interleaved(
    sides: Mapping[str, Side], rounds: int, *, announce: Callable[[str], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after a round that does not count.

    Within a round sides run in the order given. Garbage is collected between them, outside of what is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with _small_heap():
        for number in range(rounds + 1):
            for name, side in sides.items():
                gc.collect()
                taken = side()
                if announce is not None:
                    announce(
                        f"{f'round {number} of {rounds}' if number else 'warm-up'}: {name} {taken:.3g} s"
                    )
                if number:
                    seconds[name].append(taken)
    return seconds


def measured_parts(
    parts: Mapping[str, Callable[[], dict[str, Any]]],
    figures: dict[str, Any],
    save: Callable[[], None] = lambda: None,
) -> None:
    """Add each part's figures to `figures`, and call `save` after each.

    A part that fails has none but PART_failure, the traceback as text: a wrong result, or whatever else a
    machine comes up with that nobody has tried. The other parts run all the same.
    """
    for name, part in parts.items():
        try:
            figures |= part()
        except Exception:
            figures[f"{name}_failure"] = traceback.format_exc()
        save()


@contextmanager
def _small_heap() -> Iterator[None]:
    """Within the block the collector leaves alone what is there already; torch makes that a lot."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest, and all values in the order in which they were taken."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def ratios(side: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """side / base: of their medians, and pair by pair with median, lowest and highest."""
    pairs = [one / other for one, other in zip(side, base, strict=True)]
    return {"of_medians": statistics.median(side) / statistics.median(base), "pairs": spread(pairs)}


def shown_ratio(ratio: Mapping[str, Any]) -> str:
    """A ratio for people: median of the pairs, lowest to highest."""
    pairs = ratio["pairs"]
    return f"{pairs['median']:.3f} ({pairs['min']:.3f}-{pairs['max']:.3f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    place = max(0, min(len(ordered) - 1, int(-(-share * len(ordered) // 1)) - 1))
    return ordered[place]
