"""What a finished layer hands to the index writer: plain NumPy arrays, no torch, no kernels.

The promise: `LayerRecord.check()` accepts a record if and only if its arrays have the shapes and dtypes
written here, and its sums are settled, so a writer that got past it can only fail on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from indexer_kernels.histogram import BINS

from indexer.errors import IndexerError
from indexer.index.moments import LIMBS, POWERS, is_settled, summary


@dataclass(frozen=True)
class Examples:
    """The k best places of every unit, best first; places from `filled` on are undefined.

    window is the longest window, before + 1 + after tokens; only the first `window_length` entries count.
    """

    filled: np.ndarray  # int32 [units]
    value: np.ndarray  # float32 [units, k]
    document: np.ndarray  # int64 [units, k]
    sequence: np.ndarray  # int64 [units, k] ordinal within the document
    position: np.ndarray  # int32 [units, k] token offset of the peak within the sequence
    window_start: np.ndarray  # int32 [units, k] token offset of the window's first token within the sequence
    window_length: np.ndarray  # int32 [units, k]
    token_ids: np.ndarray  # int32 [units, k, window]
    activations: np.ndarray  # float32 [units, k, window]

    @property
    def places(self) -> int:
        """k, the places each unit has."""
        return self.value.shape[1]

    @property
    def valid(self) -> np.ndarray:
        """bool [units, k]: True where a place holds an example."""
        return np.arange(self.places) < self.filled[:, None]

    @classmethod
    def empty(cls, units: int, places: int = 0, window: int = 1) -> Examples:
        """No example at all for `units` units."""
        return cls(
            filled=np.zeros(units, np.int32),
            value=np.zeros((units, places), np.float32),
            document=np.zeros((units, places), np.int64),
            sequence=np.zeros((units, places), np.int64),
            position=np.zeros((units, places), np.int32),
            window_start=np.zeros((units, places), np.int32),
            window_length=np.zeros((units, places), np.int32),
            token_ids=np.zeros((units, places, window), np.int32),
            activations=np.zeros((units, places, window), np.float32),
        )


@dataclass(frozen=True)
class LayerRecord:
    """Everything the index says about the units of one layer of one site."""

    site: str
    layer: int
    count: int  # counted tokens, the same for every unit of the layer
    nan: np.ndarray  # int64 [units]
    inf: np.ndarray  # int64 [units], both signs
    minimum: np.ndarray  # float32 [units], NaN where no finite value was seen
    maximum: np.ndarray  # float32 [units], NaN where no finite value was seen
    sums: np.ndarray  # int64 [units, POWERS, LIMBS], exact sums of powers, settled; see moments.py
    histogram: np.ndarray  # int64 [units, BINS], bins ascending by value
    top: Examples
    bottom: Examples

    @property
    def units(self) -> int:
        """How many units the layer has."""
        return self.nan.shape[0]

    @cached_property
    def summary(self) -> dict[str, np.ndarray]:
        """mean, variance (of the population), skewness, kurtosis: float64 [units], NaN where undefined."""
        return summary(self.sums, self.count - self.nan - self.inf, self.minimum, self.maximum)

    def check(self) -> None:
        """Raise IndexerError naming the first array that is not as documented."""
        where = f"layer record {self.site}.{self.layer}"
        for name, (dtype, shape) in _layer_layout(self.units).items():
            _check_array(f"{where}, {name}", getattr(self, name), dtype, shape)
        if not is_settled(self.sums):
            raise IndexerError(f"{where}, sums: limbs outside of 0 to 65535; settle them first")
        for extreme in ("top", "bottom"):
            examples = getattr(self, extreme)
            window = examples.token_ids.shape[-1]
            for name, (dtype, shape) in _examples_layout(self.units, examples.places, window).items():
                _check_array(f"{where}, {extreme}.{name}", getattr(examples, name), dtype, shape)


Layout = dict[str, tuple[type, tuple[int, ...]]]


def _layer_layout(units: int) -> Layout:
    layout: Layout = dict.fromkeys(("nan", "inf"), (np.int64, (units,)))
    layout |= dict.fromkeys(("minimum", "maximum"), (np.float32, (units,)))
    layout |= {"sums": (np.int64, (units, POWERS, LIMBS))}
    return layout | {"histogram": (np.int64, (units, BINS))}


def _examples_layout(units: int, places: int, window: int) -> Layout:
    layout: Layout = {"filled": (np.int32, (units,)), "value": (np.float32, (units, places))}
    layout |= dict.fromkeys(("document", "sequence"), (np.int64, (units, places)))
    layout |= dict.fromkeys(("position", "window_start", "window_length"), (np.int32, (units, places)))
    return layout | {
        "token_ids": (np.int32, (units, places, window)),
        "activations": (np.float32, (units, places, window)),
    }


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise IndexerError(
            f"{name}: {array.dtype} {list(array.shape)} instead of {np.dtype(dtype)} {list(shape)}"
        )
