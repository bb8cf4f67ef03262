"""Whether two states of a layer are the same, bit for bit; and their examples as rows."""

from __future__ import annotations

import dataclasses

import numpy as np
from indexer_kernels import Bands, Histogram, Moments, Statistics, TopK
from indexer_kernels.examples import PLACE_FIELDS, WINDOW_FIELDS, ExampleRows
from numpy.typing import NDArray

from benchmarks.report import WrongResultError


def first_difference(left: Statistics, right: Statistics) -> str | None:
    """The first number in which two statistics of the same units differ, in words; None where none does.

    The order of places is not compared: it is not defined before ranking. Both are settled.
    """
    left.settle()
    right.settle()
    if left.count != right.count:
        return f"count: {left.count} and {right.count}"
    for one, other in ((left.moments, right.moments), (left.histogram, right.histogram)):
        found = _of_sums(one, other)
        if found is not None:
            return found
    for name in ("top", "bottom", "samples"):
        best, theirs = getattr(left, name), getattr(right, name)
        found = None if best is theirs is None else _of_places(name, best, theirs)
        if found is not None:
            return found
    return None


def _of_sums(one: Moments | Histogram | None, other: Moments | Histogram | None) -> str | None:
    assert one is not None
    assert other is not None
    for field in dataclasses.fields(one):
        if field.compare:
            name = f"{type(one).__name__.lower()} {field.name}"
            found = differing(name, getattr(one, field.name), getattr(other, field.name))
            if found is not None:
                return found
    return None


def _of_places(name: str, one: TopK | Bands | None, other: TopK | Bands | None) -> str | None:
    assert one is not None
    assert other is not None
    one, other = one.ranked(), other.ranked()
    found = differing(f"{name} taken", one.taken, other.taken)
    if found is not None:
        return found
    taken = one.taken
    inside = taken[..., None] & (np.arange(one.before + 1 + one.after) < one.window_length[..., None])
    for field in (*PLACE_FIELDS, *WINDOW_FIELDS):
        where = inside if field in WINDOW_FIELDS else taken
        left, right = getattr(one, field), getattr(other, field)
        found = differing(f"{name} {field}", np.where(where, left, 0), np.where(where, right, 0))
        if found is not None:
            return found
    return None


def rows_of(state: TopK | Bands) -> ExampleRows:
    """The examples of a state, in the order of its places."""
    unit, place = np.nonzero(state.taken)
    return ExampleRows(
        unit=unit,
        **{name: getattr(state, name)[state.taken] for name in PLACE_FIELDS},
        offset=(unit * state.places + place) * (state.before + 1 + state.after),
        token_ids=state.token_ids.reshape(-1),
        activations=state.activations.reshape(-1),
    )


def differing(name: str, left: NDArray, right: NDArray) -> str | None:
    """The first place where two arrays differ, in words; None where they are equal, NaN equal to NaN."""
    if left.shape != right.shape:
        return f"{name}: shapes {left.shape} and {right.shape}"
    if np.array_equal(left, right, equal_nan=left.dtype.kind == "f"):
        return None
    same = left == right
    if left.dtype.kind == "f":
        same |= np.isnan(left) & np.isnan(right)
    place = tuple(int(index) for index in np.argwhere(~same)[0])
    return f"{name}{list(place)}: {left[place]} and {right[place]}"


def must_be_same(name: str, left: NDArray, right: NDArray) -> None:
    """Raise WrongResultError where two arrays differ."""
    found = differing(name, left, right)
    if found is not None:
        raise WrongResultError(found)
