"""A layer's live statistics as the record that the index stores, and back.

The guarantee: statistics that were restored from a record, and the ones it was made of, give the same bits
for whatever comes after.
"""

from __future__ import annotations

import numpy as np
from indexer_kernels import Keep, Statistics

from indexer.index.records import LayerRecord
from indexer.names import Key


def record_of(statistics: Statistics, key: Key) -> LayerRecord:
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
    count = np.full(statistics.units, statistics.count, np.int64)
    return LayerRecord(key, count, states | statistics.others)


def statistics_of(record: LayerRecord, *, kernels: str = "auto", threads: int | None = None) -> Statistics:
    """Statistics that continue where the record stops; they take over its arrays.

    kernels, threads: as in Statistics.empty.
    """
    # the panel is chosen and filled beside them
    states = {name: state for name, state in record.states.items() if name != "panel"}
    statistics = Statistics.of(record.units, states, kernels=kernels, threads=threads)
    # of a layer's units all count the same tokens
    statistics.count = int(record.count.max(initial=0))
    return statistics
