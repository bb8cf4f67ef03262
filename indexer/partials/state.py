"""A layer's live statistics as the record that the index stores, and back.

The guarantee: statistics that were restored from a record, and the ones it was made of, give the same bits
for whatever comes after.
"""

from __future__ import annotations

from typing import Any

from indexer_kernels import Keep, PartedStatistics, Statistics

from indexer.index.records import LayerRecord
from indexer.names import PANEL, TARGET_PANEL, Experts, Key


def record_of(statistics: Statistics, key: Key, experts: Experts | None = None) -> LayerRecord:
    """The states of one layer as they are now; they stay those of the statistics."""
    statistics.settle()
    assert statistics.moments is not None
    assert statistics.histogram is not None
    none = Keep(top=0, bottom=0)
    top, bottom = none.ends(statistics.units)
    states = {
        "moments": statistics.moments,
        "histogram": statistics.histogram,
        "top": top if statistics.top is None else statistics.top,
        "bottom": bottom if statistics.bottom is None else statistics.bottom,
        "samples": none.bands(statistics.units) if statistics.samples is None else statistics.samples,
    }
    return LayerRecord(key, statistics.counts, states | statistics.others, experts)


def statistics_of(
    record: LayerRecord, *, kernels: str = "auto", threads: int | None = None, width: int | None = None
) -> Statistics:
    """Statistics that continue where the record stops; they take over its arrays.

    kernels, threads: as in Statistics.of. width: units that come together, where not all of the layer do.
    """
    # panels and the scores of heads are made beside them
    beside = (PANEL, TARGET_PANEL, "scores")
    states = {name: state for name, state in record.states.items() if name not in beside}
    options: dict[str, Any] = {"kernels": kernels, "threads": threads}
    kind: type[Statistics] = Statistics
    if width is not None:
        kind, options["width"] = PartedStatistics, width
    statistics = kind.of(record.units, states, **options)
    statistics.counts = record.count
    return statistics
