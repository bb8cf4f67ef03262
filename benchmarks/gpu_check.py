"""What must hold before the GPU pipeline reports: statistics gathered on the way equal the reference's."""

from __future__ import annotations

import numpy as np
import torch
from indexer_kernels import Sequences, Statistics
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_kernels import some_units
from benchmarks.report import WrongResultError
from benchmarks.states import first_difference
from indexer.building.states import States
from indexer.models import LoadedModel, Probe, Runner, Values
from indexer.names import Key
from indexer.tokens import Batch

SAMPLED = 4


class Columns:
    """Hands values on to states, and keeps what they were shown of a few units.

    units: int64 [SAMPLED] of every probe. seen: by probe, activations [tokens, SAMPLED] on the CPU, and
    sequences.
    """

    def __init__(self, states: States, units: dict[Key, NDArray[np.int64]]) -> None:
        self.states, self.units = states, units
        self.seen: dict[Key, tuple[Tensor, Sequences]] = {}

    def take(self, key: Key, values: Values) -> None:
        """Hand on, and keep what came of it."""
        self.states.take(key, values)
        # those of the part of the layer that this is
        column = self.units[key] - values.first
        here = (column >= 0) & (column < values.matrix.shape[1])
        found = values.made()[:, torch.from_numpy(column[here]).to(values.matrix.device)].cpu()
        whole, _ = self.seen.get(key, (found.new_zeros(len(found), len(column)), None))
        whole[:, torch.from_numpy(here)] = found
        self.seen[key] = (whole, values.sequences)


def checked_columns(loaded: LoadedModel, probes: list[Probe], batch: Batch) -> str:
    """Run a batch for some probes alone, and compare a few units with the reference, bit for bit.

    Returns what was checked, in words. Raises WrongResultError.
    """
    random = np.random.default_rng(0)
    units = {probe.key: np.sort(random.choice(probe.units, SAMPLED, replace=False)) for probe in probes}
    states = States(probes, kernels="triton", threads=1)
    columns = Columns(states, units)
    with Runner(loaded, probes, columns.take) as runner:
        runner.run(batch)
    for probe in probes:
        key, (activations, sequences) = probe.key, columns.seen[probe.key]
        reference = Statistics.empty(SAMPLED, probe.keep, kernels="reference")
        reference.update(activations, sequences)
        found = first_difference(some_units(states.statistics[key], units[key]), reference)
        if found is not None:
            raise WrongResultError(f"{key}, units {units[key].tolist()}: {found}")
    named = ", ".join(f"{key}.{unit}" for key, chosen in units.items() for unit in chosen)
    return f"statistics on the way equal the reference on the same activations, bit for bit, for {named}"


def check_sums(states: States) -> str:
    """Every value of the first, middle and last probe is in a bin, or not finite; else WrongResultError."""
    keys = sorted(states.statistics)
    chosen = sorted({keys[0], keys[len(keys) // 2], keys[-1]})
    for key in chosen:
        state = states.statistics[key]
        state.settle()
        assert state.histogram is not None
        assert state.moments is not None
        held = state.histogram.counts.sum(axis=1) + state.moments.nan + state.moments.inf
        if not (held == state.counts).all():
            raise WrongResultError(
                f"{key}: bins hold {held.min()} to {held.max()} of {state.counts.max()} values"
            )
    named = ", ".join(map(str, chosen))
    return f"after all rounds, bins + nan + inf = counted tokens for every unit of {named}"
