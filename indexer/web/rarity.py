"""How rare an activation is for its own unit: the share of all tokens on which the unit was higher."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from indexer_kernels.histogram import BINS, ZERO_BIN, bins_between, bins_of
from numpy.typing import NDArray

from indexer.index.codecs import HISTOGRAMS
from indexer.index.files import GroupedFile
from indexer.index.read import Index
from indexer.names import Key


class Rarity:
    """The tails of all histograms of an index, read layer by layer when they are first asked for.

    Memory: 1.6 kB for each unit that was asked for.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tails: dict[Key, NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    def above(self, key: Key, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each value the share of the corpus' tokens whose bin is higher; float32 of the same shape.

        values: [tokens, units of the layer]. A value that is not finite has the share NaN.
        """
        tails = self.tails(key)
        wrong = ~np.isfinite(values)
        # a take from one row of numbers takes half as long as one from a table
        place = quick_bins(values) + np.arange(0, tails.size, BINS)
        found = tails.ravel().take(place)
        found[wrong] = np.nan
        return found

    def tails(self, key: Key) -> NDArray[np.float32]:
        """float32 [units, bins]: the share of tokens in the bins above each."""
        with self._lock:
            if key not in self._tails:
                self._tails[key] = self._read(key)
            return self._tails[key]

    def _read(self, key: Key) -> NDArray[np.float32]:
        counts = histogram_counts(self._index, key)
        above = counts[:, ::-1].cumsum(axis=1)[:, ::-1] - counts
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return (above / total).astype(np.float32)


_READ = ("unit", "lower", "upper", "count")
# the bin of each sign, exponent and top 3 mantissa bits, of a value that is not zero
_BIN_OF = bins_of((np.arange(1 << 12, dtype=np.uint32) << 20 | 1).view(np.float32))


def quick_bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """What `bins_of` says of finite values, in a fifth of the time; of others some bin."""
    bins = _BIN_OF.take(np.ascontiguousarray(values, np.float32).view(np.uint32) >> 20)
    bins[values == 0] = ZERO_BIN
    return bins


def histogram_counts(index: Index, key: Key) -> NDArray[np.int64]:
    """The histograms of a layer that the index has, int64 [units, 389]."""
    entry = index.manifest.layer(key)
    assert entry is not None
    counts = np.zeros((entry.units, BINS), np.int64)
    file = GroupedFile(index.path / HISTOGRAMS.file(key), HISTOGRAMS.columns)
    try:
        for group in range(file.metadata.num_row_groups):
            table = file.group(group, columns=_READ, threads=False)
            columns = {name: table[name].to_numpy() for name in _READ}
            counts[columns["unit"], bins_between(columns["lower"], columns["upper"])] = columns["count"]
    finally:
        file.close()
    return counts


def rarest(
    shares: Mapping[Key, NDArray[np.float32]],
    values: Mapping[Key, NDArray[np.float32]],
    token: int,
    most: int,
) -> list[tuple[Key, int]]:
    """The units for which what they do at a token is rarest, the rarest first; of equals the higher value.

    Only positive values take part: what is low is usual for most units.
    """
    keys = list(shares)
    share = np.concatenate([shares[key][token] for key in keys])
    value = np.concatenate([values[key][token] for key in keys])
    share = np.where((value > 0) & np.isfinite(share), share, np.float32(np.inf))
    return _first(shares, share, value, most)


def most_changed(
    shares: Sequence[Mapping[Key, NDArray[np.float32]]],
    values: Sequence[Mapping[Key, NDArray[np.float32]]],
    tokens: tuple[int, int],
    least: float,
    most: int,
) -> list[tuple[Key, int]]:
    """The units whose rarity differs most between tokens of two texts, by the ratio of their shares.

    shares, values: of both texts. least: what a smaller share counts as.
    Of equal ratios the larger difference of values comes first; units that do the same at both take no part.
    """
    one, other = (
        np.concatenate([found[token] for found in of_text.values()])
        for of_text, token in zip(shares, tokens, strict=True)
    )
    before, after = (
        np.concatenate([found[token] for found in of_text.values()])
        for of_text, token in zip(values, tokens, strict=True)
    )
    ratio = np.abs(np.log(np.maximum(one, least)) - np.log(np.maximum(other, least)))
    with np.errstate(invalid="ignore"):
        apart = np.abs(before - after)
    differs = np.isfinite(ratio) & np.isfinite(apart) & (apart > 0)
    return _first(shares[0], np.where(differs, -ratio, np.inf), apart, most)


def _first(
    rows: Mapping[Key, NDArray[np.float32]], score: NDArray[np.float32], tie: NDArray[np.float32], most: int
) -> list[tuple[Key, int]]:
    """The units with the lowest scores that are finite, of equal ones those with the higher tie first.

    rows: of all layers [tokens, units]. score, tie: of all their units, one layer after the other.
    """
    most = min(most, len(score))
    bar = np.partition(score, most - 1)[most - 1]
    candidates = np.flatnonzero(score <= bar)
    order = candidates[np.lexsort((-tie[candidates], score[candidates]))][:most]
    keys = list(rows)
    first = np.cumsum([0, *(rows[key].shape[1] for key in keys)])
    place = np.searchsorted(first, order, "right") - 1
    return [
        (keys[where], int(number - first[where]))
        for where, number in zip(place.tolist(), order.tolist(), strict=True)
        if np.isfinite(score[number])
    ]
