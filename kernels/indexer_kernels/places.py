"""What every state of examples is: places for them, each with its window of tokens and activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import committed_zeros
from indexer_kernels.errors import KernelInputError
from indexer_kernels.examples import PLACE_FIELDS, WINDOW_FIELDS, ExampleRows


@dataclass(kw_only=True)
class Places:
    """Places of every unit, in no order.

    before, after: tokens of the window on either side of the peak.
    value, up: float32, document, sequence: int64, position, window_start, window_length: int32, all
        [units, places], undefined where a place is not taken; see ExampleRows.
    token_ids: int32, activations: float32, both [units, places, before + 1 + after], defined up to
        window_length.
    """

    before: int
    after: int
    value: NDArray[np.float32]
    up: NDArray[np.float32]
    document: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int32]
    window_start: NDArray[np.int32]
    window_length: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    activations: NDArray[np.float32]
    _native: Any = field(default=None, repr=False, compare=False)

    @property
    def units(self) -> int:
        return self.value.shape[0]

    @property
    def places(self) -> int:
        """How many every unit has."""
        return self.value.shape[1]

    @property
    def taken(self) -> NDArray[np.bool_]:
        """bool [units, places]: True where a place holds an example."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def native(self) -> Any:
        """The compiled kernel's view of this state, made once."""
        if self._native is None:
            from indexer_kernels import _cpp

            arrays = (getattr(self, name) for name in (*PLACE_FIELDS, *WINDOW_FIELDS))
            self._native = self._native_of(_cpp.Places(self.before, self.after, *arrays))
        return self._native

    def _native_of(self, places: Any) -> Any:
        """The compiled kernel's view of this state; places: that of the arrays here."""
        raise NotImplementedError

    def write(self, rows: ExampleRows, chosen: NDArray[np.int64], place: NDArray[np.int64]) -> None:
        """Write rows into places of their units, each place once; chosen: int64, numbers of rows."""
        unit = rows.unit[chosen]
        for name in PLACE_FIELDS:
            getattr(self, name)[unit, place] = getattr(rows, name)[chosen]
        flat = (getattr(self, name).reshape(self.units * self.places, -1) for name in WINDOW_FIELDS)
        rows.put_windows(chosen, unit * self.places + place, *flat)

    def reordered(self, order: NDArray[np.int64]) -> dict[str, Any]:
        """Copies of the arrays, by name, in another order of places; int64 [units, places]."""
        unit = np.arange(len(order))[:, None]
        return {name: getattr(self, name)[unit, order] for name in (*PLACE_FIELDS, *WINDOW_FIELDS)}


def no_places(units: int, places: int, window: tuple[int, int]) -> dict[str, Any]:
    """The fields of `Places` of which none is taken. Raises KernelInputError for negative sizes."""
    before, after = window
    if min(places, before, after) < 0:
        raise KernelInputError(
            f"there are {places} places, and the window is {before},{after}; they start at 0 and 0,0"
        )
    number = {"value": np.float32, "up": np.float32, "document": np.int64, "sequence": np.int64}
    arrays = {name: np.zeros((units, places), number.get(name, np.int32)) for name in PLACE_FIELDS}
    shape = (units, places, before + 1 + after)
    windows = {"token_ids": np.int32, "activations": np.float32}
    arrays |= {name: committed_zeros(shape, windows[name]) for name in WINDOW_FIELDS}
    return {"before": before, "after": after, **arrays}
