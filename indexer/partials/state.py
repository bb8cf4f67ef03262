"""A layer's live statistics as the record that the index stores, and back.

The guarantee: statistics that were restored from a record, and the ones it was made of, give the same bits
for whatever comes after.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from indexer_kernels import Keep, Statistics
from indexer_kernels.topk import TopK

from indexer.errors import IndexerError
from indexer.index.records import Examples, LayerRecord

# what both TopK and Examples have of every place, and of every token of a window
_PLACES = ("value", "document", "sequence", "position", "window_start", "window_length")
_WINDOWS = ("token_ids", "activations")


def record_of(statistics: Statistics, site: str, layer: int, *, copy: bool) -> LayerRecord:
    """The numbers of one layer as they are now.

    copy: whether the statistics will be used on; without it the record takes over their arrays.
    Cost: the state is copied once, without `copy` its places alone.
    """
    statistics.settle()
    moments, histogram = statistics.moments, statistics.histogram
    assert moments is not None
    assert histogram is not None
    seen = moments.minimum <= moments.maximum
    arrays = (moments.nan, moments.inf, moments.sums, histogram.counts)
    nan, inf, sums, counts = (array.copy() if copy else array for array in arrays)
    return LayerRecord(
        site=site,
        layer=layer,
        count=statistics.count,
        nan=nan,
        inf=inf,
        minimum=np.where(seen, moments.minimum, np.float32(np.nan)),
        maximum=np.where(seen, moments.maximum, np.float32(np.nan)),
        sums=sums,
        histogram=counts,
        top=_examples(statistics.top, statistics.units),
        bottom=_examples(statistics.bottom, statistics.units),
    )


def statistics_of(
    record: LayerRecord, keep: Keep, *, kernels: str = "auto", threads: int | None = None
) -> Statistics:
    """Statistics that continue where the record stops; they share no memory with it.

    keep: as in the build that the record is of. kernels, threads: as in Statistics.empty.
    Raises IndexerError where the record holds more places, or longer windows, than `keep` has room for.
    """
    record.check()
    statistics = Statistics.empty(record.units, keep, kernels=kernels, threads=threads)
    moments, histogram = statistics.moments, statistics.histogram
    assert moments is not None
    assert histogram is not None
    statistics.count = record.count
    moments.nan[:], moments.inf[:], moments.sums[:] = record.nan, record.inf, record.sums
    moments.minimum[:] = np.where(np.isnan(record.minimum), np.float32(np.inf), record.minimum)
    moments.maximum[:] = np.where(np.isnan(record.maximum), np.float32(-np.inf), record.maximum)
    histogram.counts[:] = record.histogram
    where = f"layer record {record.site}.{record.layer}"
    for name, state, examples in (
        ("top", statistics.top, record.top),
        ("bottom", statistics.bottom, record.bottom),
    ):
        _check_room(f"{where}, {name}", examples, state, keep)
        if state is not None:
            _restore(state, examples)
    return statistics


def _examples(state: TopK | None, units: int) -> Examples:
    if state is None:
        return Examples.empty(units)
    ranked = state.ranked()
    return Examples(**{field.name: getattr(ranked, field.name) for field in fields(Examples)})


def _check_room(where: str, examples: Examples, state: TopK | None, keep: Keep) -> None:
    places = 0 if state is None else state.k
    width = sum(keep.window) + 1
    most = int(examples.filled.max(initial=0))
    longest = int(examples.window_length[examples.valid].max(initial=0))
    if most > places or longest > width:
        raise IndexerError(
            f"{where}: {most} examples of up to {longest} tokens do not fit {places} places of {width}; "
            "continue with the options that the record was made with"
        )


def _restore(state: TopK, examples: Examples) -> None:
    places, width = min(state.k, examples.places), min(state.token_ids.shape[2], examples.token_ids.shape[2])
    state.filled[:] = examples.filled
    for name in _PLACES:
        getattr(state, name)[:, :places] = getattr(examples, name)[:, :places]
    for name in _WINDOWS:
        getattr(state, name)[:, :places, :width] = getattr(examples, name)[:, :places, :width]
    # places are in rank order, so the last one is the worst
    full = state.filled == state.k
    state.worst[full] = state.k - 1
    state.threshold[full] = state.value[full, state.k - 1]
