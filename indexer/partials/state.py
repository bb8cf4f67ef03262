"""A layer's live statistics as the record that the index stores, and back.

The guarantee: statistics that were restored from a record, and the ones it was made of, give the same bits
for whatever comes after.
"""

from __future__ import annotations

import numpy as np
from indexer_kernels import Statistics, TopK

from indexer.index.records import LayerRecord
from indexer.names import Key


def record_of(statistics: Statistics, key: Key) -> LayerRecord:
    """The states of one layer as they are now; they stay those of the statistics."""
    statistics.settle()
    moments, histogram = statistics.moments, statistics.histogram
    assert moments is not None
    assert histogram is not None
    top, bottom = (
        TopK.empty(statistics.units, 0, largest=largest) if end is None else end
        for end, largest in ((statistics.top, True), (statistics.bottom, False))
    )
    count = np.full(statistics.units, statistics.count, np.int64)
    states = {"moments": moments, "histogram": histogram, "top": top, "bottom": bottom}
    if statistics.samples is not None:
        states["samples"] = statistics.samples
    return LayerRecord(key, count, states | statistics.others)


def statistics_of(record: LayerRecord, *, kernels: str = "auto", threads: int | None = None) -> Statistics:
    """Statistics that continue where the record stops; they take over its arrays.

    kernels, threads: as in Statistics.empty.
    """
    others = dict(record.states)
    moments, histogram = others.pop("moments"), others.pop("histogram")
    ends = (end if end.k else None for end in (others.pop("top"), others.pop("bottom")))
    samples = others.pop("samples", None)
    # it is chosen and filled beside them
    others.pop("panel", None)
    statistics = Statistics(
        record.units, moments, histogram, *ends,
        samples=samples, others=others, kernels=kernels, threads=threads,
    )  # fmt: skip
    # of a layer's units all count the same tokens
    statistics.count = int(record.count.max(initial=0))
    return statistics
