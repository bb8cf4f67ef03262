"""What must hold before the overhead case reports.

The index of the last timed build is compared with the reference implementation on sampled units, from the
very activations, number by number and without tolerance. The peers read a plain model, whose rounding is
another, so they are compared within it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from indexer_kernels import Keep, Sequences, Statistics
from indexer_kernels.histogram import magnitude_edges
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers import TopSequences, UnitHistograms
from benchmarks.report import WrongResult
from benchmarks.states import PLACES, WINDOWS, differing
from benchmarks.subject import Subject
from indexer import open_index
from indexer.index.read import Index
from indexer.models import Runner
from indexer.observer import StatisticsObserver
from indexer.pipeline import CHUNK_TOKENS, Build

SAMPLED = 3
# How far a rounding of the model's own may move a value: of the largest in its layer.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}
# And which share of values it may move to another bin of the histogram.
MOVED = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class Recorder(StatisticsObserver):
    """The build's observer, which also keeps what it shows the states of a few units.

    units: int64 by layer. shown: by layer, (activations [tokens, units], sequences) in order.
    """

    def __init__(self, subject: Subject, units: dict[int, NDArray[np.int64]], keep: Keep, threads: int) -> None:
        every = {layer.layer: layer.units for layer in subject.loaded.layers}
        super().__init__(every, keep, kernels="cpp", threads=threads)
        self.units = units
        self.shown: dict[int, list[tuple[Tensor, Sequences]]] = {layer: [] for layer in units}

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        super().update(layer, activations, sequences)
        self._keep(layer, activations, sequences)

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        result = super().activate(layer, function, gate, up, sequences, out)
        self._keep(layer, result, sequences)
        return result

    def _keep(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        if layer in self.units:
            columns = torch.from_numpy(self.units[layer])
            self.shown[layer].append((activations[:, columns].clone(), sequences))


def check_index(subject: Subject, build: Build | None) -> list[str]:
    """The index of the last build, against its batches and the reference; raises WrongResult."""
    assert build is not None
    if build.totals != subject.totals:
        raise WrongResult(f"the build ran {build.totals}, but the batches hold {subject.totals}")
    config = subject.config
    keep = Keep(config.top, config.bottom, config.window, config.by)
    random = np.random.default_rng(0)
    layers = subject.loaded.layers
    chosen = {layers[place].layer: layers[place].units for place in (0, len(layers) // 2, -1)}
    units = {layer: np.sort(random.choice(count, SAMPLED, replace=False)) for layer, count in chosen.items()}
    recorder = Recorder(subject, units, keep, build.threads)
    with Runner(subject.loaded, None, recorder, chunk_tokens=CHUNK_TOKENS) as runner:
        for batch in subject.batches:
            runner.run(batch)
    with open_index(config.output) as index:
        for layer, shown in recorder.shown.items():
            reference = Statistics.empty(SAMPLED, keep, kernels="reference")
            for activations, sequences in shown:
                reference.update(activations, sequences)
            reference.settle()
            for place, unit in enumerate(units[layer]):
                _check_unit(index, f"mlp.{layer}.{unit}", reference, place)
    sampled = ", ".join(f"mlp.{layer}.{unit}" for layer, found in units.items() for unit in found)
    return [
        f"the build took the same {subject.totals.sequences:,} sequences as the bare forward",
        f"the index equals the reference, number by number, for {sampled}",
    ]


def _check_unit(index: Index, name: str, reference: Statistics, place: int) -> None:
    """One unit's record against one column of the reference; raises WrongResult."""
    record = index.record(name)
    moments, histogram = reference.moments, reference.histogram
    assert moments is not None
    assert histogram is not None
    row = record.statistics.to_pylist()[0]
    expected: dict[str, Any] = {"count": reference.count}
    expected |= {field: getattr(moments, field)[place] for field in ("nan", "inf", "minimum", "maximum")}
    expected |= {field: values[place] for field, values in moments.summary(reference.count).items()}
    for field, value in expected.items():
        # what is undefined is NaN there and NULL here
        found = np.asarray(np.nan if row[field] is None else row[field], np.asarray(value).dtype)
        _raise(differing(f"index against reference, {name} {field}", found, np.asarray(value)))
    edges = magnitude_edges().astype(np.float32)
    lower = np.concatenate([-edges[:0:-1], [np.float32(0)], edges[:-1]])
    counts = histogram.counts[place]
    for field, values in (("lower", lower[counts > 0]), ("count", counts[counts > 0])):
        found = record.histogram[field].to_numpy()
        _raise(differing(f"index against reference, {name} histogram {field}", found, values))
    for extreme, state in (("top", reference.top), ("bottom", reference.bottom)):
        assert state is not None
        ranked = state.ranked()
        taken = int(ranked.filled[place])
        rows = getattr(record, extreme)
        length = ranked.window_length[place, :taken]
        for field in (*PLACES, *WINDOWS):
            if field in WINDOWS:
                wanted = getattr(ranked, field)[place, :taken]
                inside = np.arange(wanted.shape[1]) < length[:, None]
                wanted, found = wanted[inside], rows[field].combine_chunks().flatten().to_numpy()
            elif field == "window_length":
                wanted, found = length, np.array([len(ids) for ids in rows["token_ids"]], np.int32)
            else:
                wanted, found = getattr(ranked, field)[place, :taken], rows[field].to_numpy()
            _raise(differing(f"index against reference, {name} {extreme} {field}", found, wanted))


def check_bare(bare: Tensor, onednn: Tensor) -> str:
    """That the bare forward gives the same either way, but for rounding; raises WrongResult."""
    furthest = float((bare - onednn).abs().max())
    if not furthest <= ROUNDING[bare.dtype] * float(bare.abs().max()):
        raise WrongResult(f"bare forward with oneDNN against the plain one: hidden states {furthest:.3g} apart")
    return f"the bare forward with oneDNN equals the plain one but for rounding ({furthest:.1g} at most)"


def check_top(subject: Subject, layer: int, states: list[TopSequences]) -> str:
    """The peer's best values of a layer against the index, within the model's rounding; raises WrongResult."""
    furthest = 0.0
    with open_index(subject.config.output) as index:
        for extreme, state in zip(("top", "bottom"), states, strict=True):
            rows = index.sql(
                "SELECT value FROM examples WHERE layer = $layer AND extreme = $extreme ORDER BY unit, rank",
                {"layer": layer, "extreme": extreme},
            )
            theirs = state.values().numpy()
            ours = rows["value"].to_numpy().reshape(theirs.shape)
            apart = np.abs(ours - theirs)
            worst = np.unravel_index(int(apart.argmax()), apart.shape)
            allowed = ROUNDING[subject.loaded.dtype] * float(np.abs(theirs).max())
            if not apart[worst] <= allowed:
                raise WrongResult(
                    f"mlp.{layer}.{worst[0]}, {extreme} rank {worst[1] + 1}: the index has {ours[worst]:.6g}, the "
                    f"peer's algorithm {theirs[worst]:.6g}"
                )
            furthest = max(furthest, float(apart[worst]))
    return f"the peer's top and bottom values of layer {layer} are ours but for rounding ({furthest:.1g} at most)"


def check_histograms(subject: Subject, states: list[UnitHistograms]) -> str:
    """The peer's histograms against the index: counts equal, bins within rounding; raises WrongResult."""
    edges = magnitude_edges().astype(np.float32)
    lower = np.concatenate([-edges[:0:-1], [np.float32(0)], edges[:-1]])
    moved = 0.0
    with open_index(subject.config.output) as index:
        for found, state in zip(subject.loaded.layers, states, strict=True):
            query = "SELECT unit, lower, upper, count FROM histograms WHERE layer = $layer"
            rows = index.sql(query, {"layer": found.layer})
            ours = np.zeros((389, found.units), np.int64)
            bins = np.searchsorted(lower, rows["lower"].to_numpy())
            # lower edges are distinct but for zero's own bin and the one above it
            bins += (rows["lower"].to_numpy() == 0) & (rows["upper"].to_numpy() > 0)
            ours[bins, rows["unit"].to_numpy()] = rows["count"].to_numpy()
            theirs = state.counts.long().numpy()
            _raise(differing(f"counts of layer {found.layer}, ours and the peer's", ours.sum(0), theirs.sum(0)))
            share = np.abs(ours - theirs).sum() / 2 / theirs.sum()
            if share > MOVED[subject.loaded.dtype]:
                raise WrongResult(f"histograms of layer {found.layer}: {share:.2%} of values are in other bins")
            moved = max(moved, float(share))
    return f"the peer's histograms are ours but for rounding ({moved:.2%} of values in another bin)"


def _raise(found: str | None) -> None:
    if found is not None:
        raise WrongResult(found)
