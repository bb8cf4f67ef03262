"""Fair examples of every unit: of each of its bands the sequences with the smallest hashes.

A sequence belongs to the band of its maximum over its counted tokens: the octave [2^j, 2^(j+1)) that it lies
in, of the six highest octaves that occurred in the unit, each a band of its own; all others share the band
`rest`, with maxima that are not positive or below 2^-126. As in top-k by sequence, values that are not
finite do not compete, and a sequence without a finite one is in no band. Kept are of each band the `samples`
smallest by hash, then document, then sequence (see hashes), at the first position that reaches the maximum.

The result does not depend on the order of sequences, nor on how they are grouped. The sixth highest octave
only rises, so an octave of `rest` never comes back, and one of the six was among them whenever it was met:
its band has seen all of its sequences. One that falls out takes its examples to `rest`, and the smallest of
a union are among the smallest of its parts. A state is what its places hold and no more, and is merged by
offering these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import view_of
from indexer_kernels.errors import KernelInputError
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows
from indexer_kernels.hashes import scrambled, sequence_keys
from indexer_kernels.places import Places, no_places
from indexer_kernels.sequences import Sequences

OCTAVES = 6
# with `rest`, whose octave is 0
BANDS = OCTAVES + 1
# of octaves, by which `bars` are looked up
RESIDUES = 16
# the octave of no finite value, and the hash of a band's worst place where some are free
NO_OCTAVE = np.uint32(255)
NO_HASH = np.uint64(2**64 - 1)


@dataclass(kw_only=True)
class Bands(Places):
    """Up to `samples` examples per band and unit; `ranked` sorts them. The places of a unit serve all bands.

    An octave is the exponent in the bits of a float32: j + 127, and 0 for what is not positive, or below
    2^-126.

    samples: of each band. seed: that of the keys.
    key: uint64 [units], see hashes.unit_keys.
    hash: uint64 [units, places], of the unit and a place's sequence.
    bars: uint32 [2 + RESIDUES, units], by which fast kernels leave out most sequences: the least octave that
        has a band; then, at 1 + octave % RESIDUES, the upper 24 bits of the hash that is to be beaten in a
        band, all ones while it has free places, above its octave in 8 bits; and last, the same of `rest`. Of
        bands that meet there the higher octave has it, and NO_OCTAVE where there is none.
    A place is taken where its window has a length; see Places.
    """

    samples: int
    seed: int
    key: NDArray[np.uint64]
    hash: NDArray[np.uint64]
    bars: NDArray[np.uint32]

    @classmethod
    def empty(
        cls, key: NDArray[np.uint64], samples: int, *, window: tuple[int, int] = (48, 15), seed: int = 0
    ) -> Bands:
        """No examples yet; key: of each unit, by the seed. Raises KernelInputError for negative sizes."""
        if samples < 0:
            raise KernelInputError(f"there are {samples} samples of each band; they start at 0")
        units = len(key)
        state = cls(
            samples=samples,
            seed=seed,
            key=np.ascontiguousarray(key, np.uint64),
            hash=np.zeros((units, BANDS * samples), np.uint64),
            bars=np.zeros((2 + RESIDUES, units), np.uint32),
            **no_places(units, BANDS * samples, window),
        )
        state._set_bars(np.arange(units))
        return state

    @property
    def taken(self) -> NDArray[np.bool_]:
        """bool [units, places]: True where a place holds an example."""
        return self.window_length > 0

    @property
    def octave(self) -> NDArray[np.uint32]:
        """uint32 [units, places]: the octave of each place's band, 0 for `rest` and where not taken."""
        octave, least = self._octaves(slice(None))
        return np.where(octave < least[:, None], np.uint32(0), octave)

    def update(
        self, activations: NDArray[np.float32], sequences: Sequences, up: NDArray[np.float32] | None = None
    ) -> None:
        """Let every sequence of a batch compete. The reference.

        activations, up: float32 [tokens, units]; up: what they were multiplied by, where that is known.
        """
        window = self.before, self.after
        for index in range(len(sequences)):
            self.offer(ExampleRows.of_sequence(activations, sequences, index, window, largest=True, up=up))

    def offer(self, rows: ExampleRows) -> None:
        """Let examples compete, of other sequences or of the same ones: an example is never held twice.

        rows: the maxima of sequences; their windows are no longer than those here.
        Cost: one sort of the rows and of what their units hold.
        """
        if not (self.samples and len(rows)):
            return
        unit, place = np.nonzero(self.taken & np.isin(np.arange(self.units), rows.unit)[:, None])
        held = len(unit)
        together = {
            name: np.concatenate([getattr(self, name)[unit, place], getattr(rows, name)])
            for name in PLACE_FIELDS
        }
        units = np.concatenate([unit, rows.unit])
        hashes = scrambled(self.key[units] ^ sequence_keys(together["document"], together["sequence"]))
        band = bands_of(units, together["value"])
        order = np.lexsort((together["sequence"], together["document"], hashes, band, units))
        keys = np.stack([units, band, hashes.view(np.int64), together["document"], together["sequence"]])
        keys = keys[:, order]
        new = np.ones(len(order), bool)
        new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        # of one sequence twice the first is the one that is held, for the sort is stable
        order, keys = order[new], keys[:, new]
        begins = np.ones(len(order), bool)
        begins[1:] = (keys[:2, 1:] != keys[:2, :-1]).any(axis=0)
        number = np.arange(len(order))
        rank = number - np.maximum.accumulate(np.where(begins, number, 0))
        kept = np.sort(order[rank < self.samples])
        leaves = np.ones(held, bool)
        leaves[kept[kept < held]] = False
        self.window_length[unit[leaves], place[leaves]] = 0
        self._enter(rows, kept[kept >= held] - held, hashes[held:])
        self._set_bars(np.unique(rows.unit))

    def ranked(self, units: slice = slice(None)) -> Bands:
        """A copy of some units, places by band, the highest first, then by hash; undefined ones come last."""
        some = view_of(self, units)
        # ~: descending
        order = np.lexsort((some.sequence, some.document, some.hash, ~some.octave, ~some.taken))
        return replace(
            some,
            key=some.key.copy(),
            hash=np.take_along_axis(some.hash, order, axis=1),
            bars=some.bars.copy(),
            **some.reordered(order),
            _native=None,
        )

    def _native_of(self, places: Any) -> Any:
        from indexer_kernels import _cpp

        return _cpp.Bands(places, self.samples, self.key, self.bars, self.hash)

    def _enter(self, rows: ExampleRows, chosen: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
        """Give rows the first free places of their units; chosen: int64, numbers of rows, ascending."""
        unit = rows.unit[chosen]
        # which free place of its unit
        number = np.arange(len(unit)) - np.searchsorted(unit, unit)
        free = ~self.taken[unit]
        place = (free & (np.cumsum(free, axis=1) == number[:, None] + 1)).argmax(axis=1)
        self.write(rows, chosen, place)
        self.hash[unit, place] = hashes[chosen]

    def _octaves(self, units: Any) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Of some units the octave of each place's value, 0 where not taken, and the least that has a band.

        uint32 [units, places] and [units].
        """
        octave = np.where(self.taken[units], octaves_of(self.value[units]), np.uint32(0))
        return octave, np.maximum(_highest(octave)[-1], np.uint32(1))

    def _set_bars(self, units: NDArray[np.int64]) -> None:
        """Set `bars` of some units; int64 [chosen]."""
        octave, least = self._octaves(units)
        taken, hashes = self.taken[units], self.hash[units]
        octave[octave < least[:, None]] = 0
        self.bars[0, units] = least
        for row in range(1, 2 + RESIDUES):
            rest = row == 1 + RESIDUES
            meets = (octave % RESIDUES == row - 1) & (not rest)
            band = np.where(meets, octave, np.uint32(0)).max(axis=1, initial=0)
            member = taken & (octave == band[:, None])
            worst = np.where(member, hashes, np.uint64(0)).max(axis=1, initial=0)
            worst[member.sum(axis=1) < self.samples] = NO_HASH
            bar = (worst >> np.uint64(40)).astype(np.uint32) << np.uint32(8) | band
            self.bars[row, units] = np.where(band | np.uint32(rest), bar, NO_OCTAVE)


def octaves_of(value: NDArray[np.float32]) -> NDArray[np.uint32]:
    """uint32, the octave of finite float32 values."""
    bits = value.view(np.uint32)
    return np.where(bits >> np.uint32(31), np.uint32(0), bits >> np.uint32(23))


def lower_ends(octave: NDArray[np.uint32]) -> NDArray[np.float32]:
    """float32, where octaves begin; 0 for `rest`."""
    return (octave << np.uint32(23)).view(np.float32)


def bands_of(unit: NDArray[np.int64], value: NDArray[np.float32]) -> NDArray[np.uint32]:
    """uint32, the octave of each value's band, where these are all values of their units; 0 for `rest`."""
    octave = octaves_of(value)
    occurred = np.unique(np.stack([unit, octave])[:, octave > 0], axis=1)
    # how many octaves of its unit are as high
    rank = np.searchsorted(occurred[0], occurred[0], side="right") - np.arange(occurred.shape[1])
    sixth = rank == OCTAVES
    least = np.zeros(unit.max(initial=-1) + 1, np.uint32)
    least[occurred[0, sixth]] = occurred[1, sixth]
    return np.where(octave >= least[unit], octave, 0).astype(np.uint32)


def _highest(octave: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
    """The OCTAVES highest octaves of each unit of [units, places], descending, 0 where there are fewer."""
    highest = []
    for _ in range(OCTAVES):
        highest.append(octave.max(axis=1, initial=0).astype(np.uint32))
        octave = np.where(octave == highest[-1][:, None], np.uint32(0), octave)
    return highest
