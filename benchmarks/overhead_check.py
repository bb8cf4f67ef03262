"""What must hold before the overhead case reports: the index of the last timed build is right.

It is compared with the reference implementation on sampled units, from the very activations, number by number
and without tolerance; and so are the peers' algorithms, on the same activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from indexer_kernels import Sequences, Statistics
from indexer_kernels.examples import PLACE_FIELDS, WINDOW_FIELDS
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers import TopSequences, UnitHistograms, lower_edges
from benchmarks.report import WrongResultError
from benchmarks.states import must_be_same
from benchmarks.subject import Subject
from indexer import open_index
from indexer.building.plan import CHUNK_TOKENS
from indexer.building.states import States
from indexer.index.read import Index
from indexer.models import Runner, Values
from indexer.names import Key

SAMPLED = 3


class Recorder(States):
    """The build's states, which also keep what a few units were shown.

    units: int64 by probe. shown: by probe, (activations [tokens, units], sequences, their other factor or
    None) in order.
    """

    def __init__(self, subject: Subject, units: dict[Key, NDArray[np.int64]], threads: int) -> None:
        super().__init__(subject.probes, kernels="cpp", threads=threads)
        self.keep = subject.probes[0].keep
        self.units = units
        self.shown: dict[Key, list[tuple[Tensor, Sequences, Tensor | None]]] = {key: [] for key in units}

    def take(self, key: Key, values: Values) -> None:
        columns = torch.from_numpy(self.units[key]) if key in self.units else None
        up = None if columns is None or values.up is None else values.up[:, columns].clone()
        super().take(key, values)
        if columns is not None:
            self.shown[key].append((values.made()[:, columns].clone(), values.sequences, up))


def check_index(subject: Subject, totals: Mapping[str, Any], threads: int) -> list[str]:
    """The index of the last build, against its batches and the reference; raises WrongResultError.

    totals: of its manifest.
    """
    ran = {name: totals[name] for name in asdict(subject.totals)}
    if ran != asdict(subject.totals):
        raise WrongResultError(f"the build ran {ran}, but the batches hold {subject.totals}")
    recorder = _recorded(subject, threads)
    with open_index(subject.config.output) as index:
        for key, shown in recorder.shown.items():
            # a unit's samples depend on its number, which is another one among the sampled
            reference = Statistics.empty(SAMPLED, replace(recorder.keep, samples=0), kernels="reference")
            for activations, sequences, up in shown:
                reference.update(activations, sequences, up)
            reference.settle()
            for place, unit in enumerate(recorder.units[key]):
                _check_unit(index, f"{key}.{unit}", reference, place)
            _check_peers(f"layer {key.layer}", subject.config.sequence_tokens, shown, reference)
    sampled = ", ".join(f"{key}.{unit}" for key, found in recorder.units.items() for unit in found)
    return [
        f"the build took the same {subject.totals.sequences:,} sequences as the bare forward",
        f"the index equals the reference, number by number, for {sampled}",
        "the peers' algorithms give the same numbers from the same activations",
    ]


def _recorded(subject: Subject, threads: int) -> Recorder:
    """The batches once more, some units of every site's first, middle and last layer written down."""
    probes, random = subject.probes, np.random.default_rng(0)
    chosen: dict[Key, int] = {}
    for site in subject.config.sites:
        of_site = [probe for probe in probes if probe.key.site == site]
        chosen |= {of_site[place].key: of_site[place].units for place in (0, len(of_site) // 2, -1)}
    units = {key: np.sort(random.choice(count, SAMPLED, replace=False)) for key, count in chosen.items()}
    recorder = Recorder(subject, units, threads)
    with Runner(subject.loaded, probes, recorder.take, chunk_tokens=CHUNK_TOKENS) as runner:
        for batch in subject.batches:
            runner.run(batch)
    return recorder


def _check_peers(
    where: str, context: int, shown: list[tuple[Tensor, Sequences, Tensor | None]], reference: Statistics
) -> None:
    """The peers' algorithms on what the reference was shown; raises WrongResultError."""
    assert reference.top is not None
    assert reference.bottom is not None
    assert reference.histogram is not None
    histograms = UnitHistograms.empty(SAMPLED)
    ends = (reference.top, reference.bottom)
    peers = [TopSequences(state.k, context, 1 if state.largest else -1) for state in ends]
    for activations, sequences, _ in shown:
        counted = torch.from_numpy(sequences.counted)
        histograms.update(activations, counted)
        # padded batches: every sequence has as many rows
        shape = (len(sequences), sequences.tokens // len(sequences))
        token_ids = torch.from_numpy(sequences.token_ids).view(shape)
        for peer in peers:
            peer.update(activations.view(*shape, -1), token_ids, counted.view(shape))
    counts = histograms.counts.T.long().numpy()
    must_be_same(f"peer against reference, {where}, histogram", counts, reference.histogram.counts)
    for state, peer in zip(ends, peers, strict=True):
        taken = state.ranked().value[:, : int(state.filled[0])]
        must_be_same(f"peer against reference, {where}, best values", peer.values().numpy(), taken)


def _check_unit(index: Index, name: str, reference: Statistics, place: int) -> None:
    """One unit's record against one column of the reference; raises WrongResultError."""
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
        must_be_same(f"index against reference, {name} {field}", found, np.asarray(value))
    lower = lower_edges()
    counts = histogram.counts[place]
    for field, values in (("lower", lower[counts > 0]), ("count", counts[counts > 0])):
        found = record.histogram[field].to_numpy()
        must_be_same(f"index against reference, {name} histogram {field}", found, values)
    for kind, state in (("top", reference.top), ("bottom", reference.bottom)):
        assert state is not None
        ranked = state.ranked()
        taken = int(ranked.filled[place])
        rows = getattr(record, kind)
        length = ranked.window_length[place, :taken]
        for field in (*PLACE_FIELDS, *WINDOW_FIELDS):
            if field in WINDOW_FIELDS:
                wanted = getattr(ranked, field)[place, :taken]
                inside = np.arange(wanted.shape[1]) < length[:, None]
                wanted, found = wanted[inside], rows[field].combine_chunks().flatten().to_numpy()
            elif field == "window_length":
                wanted, found = length, np.array([len(ids) for ids in rows["token_ids"]], np.int32)
            else:
                wanted, found = getattr(ranked, field)[place, :taken], rows[field].to_numpy()
            must_be_same(f"index against reference, {name} {kind} {field}", found, wanted)
