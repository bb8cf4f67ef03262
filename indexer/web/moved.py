"""How far the units of two indexes are apart, by their histograms: of two models, or of two corpora.

The distance of two histograms is the area between their cumulative shares of tokens, divided by the sum of
the mean magnitudes of their values:

    sum over bins i of |F_i - G_i| (m_(i+1) - m_i)  /  sum over bins i of (f_i + g_i) |m_i|

with f_i and g_i the shares of tokens in bin i, F_i and G_i those of all bins up to it, and m_i its middle, of
the two endless bins the finite edge. It is 0 for equal shares and at most 1: all activation would have to be
moved, as where one unit is always 0. It does not change where both are scaled by a power of two, nor with how
seldom both are active, and it adds up exactly as histograms do.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from indexer_kernels.histogram import bin_edges
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.results import source_name
from indexer.names import Key
from indexer.web.rarity import histogram_counts

_READERS = min(4, os.cpu_count() or 1)
# units whose numbers stay in the processor's cache
_AT_ONCE = 256


class Moved:
    """The units that two indexes both have, those that are furthest apart first. Safe for several threads.

    Memory: 8 bytes for each such unit, and the histograms of a layer for each thread, of which there are four
    at most.
    """

    def __init__(self, one: Index, other: Index) -> None:
        self._indexes = one, other
        self._distances: dict[Key, NDArray[np.float64]] | None = None
        self._lock = threading.Lock()

    def answer(self, site: str | None = None, offset: int = 0, limit: int = 50) -> dict[str, Any]:
        """Units with their distance, and `left_out`: layers that one index has not, or of another size.

        Of each unit also `overlap`: how many of the sequences of its strongest examples are the same in both,
        by the names of their sources, and `most`: how many could be.
        Raises IndexerError where the indexes have no layer in common.
        Cost: the first time all histograms of both are read.
        """
        found = self._read()
        keys = [key for key in found if site in (None, key.site)]
        both = self._indexes
        if not found:
            raise IndexerError(
                f"index {both[0].path} and {both[1].path}: they have no layer of the same size"
            )
        distance = np.concatenate([found[key] for key in keys] or [np.zeros(0)])
        first = np.cumsum([0, *(len(found[key]) for key in keys)])
        # what is nowhere counted is no distance apart, and comes last
        order = np.argsort(-np.nan_to_num(distance, nan=-1), kind="stable")[offset : offset + limit]
        places = np.searchsorted(first, order, "right") - 1
        units = [f"{keys[place]}.{n - first[place]}" for place, n in zip(places, order, strict=True)]
        strongest = [_strongest(index, units) for index in both]
        rows = [
            {"unit": unit, "distance": distance[number], "overlap": len(here & there)}
            | {"most": min(len(here), len(there))}
            for unit, number, here, there in zip(units, order, *strongest, strict=True)
        ]
        layers = {entry.key for index in both for entry in index.manifest.layers}
        left_out = [str(key) for key in sorted(layers - set(found))]
        return {"total": len(distance), "offset": offset, "rows": rows, "left_out": left_out}

    def _read(self) -> dict[Key, NDArray[np.float64]]:
        with self._lock:
            if self._distances is None:
                one, other = self._indexes
                keys = [
                    entry.key
                    for entry in one.manifest.layers
                    if (there := other.manifest.layer(entry.key)) and there.units == entry.units
                ]
                # reading and adding up are done outside Python's lock
                with ThreadPoolExecutor(_READERS) as threads:
                    found = threads.map(
                        lambda key: distances(*(histogram_counts(index, key) for index in (one, other))), keys
                    )
                    self._distances = dict(zip(keys, found, strict=True))
            return self._distances


def _strongest(index: Index, units: list[str]) -> list[set[tuple[str, int]]]:
    """Of each unit the sequences of its strongest examples, by the name of their source."""
    tops = [index.top(unit).select(["document", "sequence"]).to_pylist() for unit in units]
    documents = index.documents(row["document"] for top in tops for row in top).to_pylist()
    names = {row["document"]: source_name(row["source"], row["row"]) for row in documents}
    return [{(names[row["document"]], row["sequence"]) for row in top} for top in tops]


def distances(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distance of each unit's two histograms, see above, float64 [units]; NaN where one holds no value.

    one, other: counts, int64 [units, 389].
    """
    lower, upper = (edges.astype(np.float64) for edges in bin_edges())
    middle = (lower + upper) / 2
    middle[0], middle[-1] = upper[0], lower[-1]
    found = [
        _distances(one[first : first + _AT_ONCE], other[first : first + _AT_ONCE], middle)
        for first in range(0, len(one), _AT_ONCE)
    ]
    return np.concatenate([np.zeros(0), *found])


def _distances(
    one: NDArray[np.int64], other: NDArray[np.int64], middle: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        shares = [counts / counts.sum(axis=1, keepdims=True) for counts in (one, other)]
    size = sum(share @ np.abs(middle) for share in shares)
    apart = np.abs(np.cumsum(shares[0] - shares[1], axis=1))
    area = apart[:, :-1] @ np.diff(middle)
    # both are always zero
    return np.divide(area, size, out=np.where(size == 0, 0.0, np.nan), where=size > 0)
