"""What must hold before the overhead case reports: the sides that ran a plain model agree with ours.

A plain model rounds otherwise than our runner, and its GELU is 0 where the true value is below some 1e-8, so
values agree within that, and some fall into another bin.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import TopSequences, UnitHistograms, lower_edges
from benchmarks.report import WrongResultError
from benchmarks.states import must_be_same
from benchmarks.subject import Subject
from indexer import open_index

# How far rounding in the model may move a value: a share of the largest in its layer.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.1}
# And what share of values it may move to another bin.
MOVED = {torch.float32: 0.01, torch.bfloat16: 0.5}


def check_bare(bare: Tensor, onednn: Tensor) -> str:
    """That the bare forward gives the same either way, but for rounding; raises WrongResultError."""
    furthest = float((bare - onednn).abs().max())
    if not furthest <= ROUNDING[bare.dtype] * float(bare.abs().max()):
        raise WrongResultError(f"bare forward, oneDNN against plain: hidden states {furthest:.3g} apart")
    return f"the bare forward with oneDNN equals the plain one but for rounding ({furthest:.1g} at most)"


def check_top(subject: Subject, layer: int, states: list[TopSequences]) -> str:
    """The peer's best values of a layer against the index, within rounding; raises WrongResultError."""
    furthest = 0.0
    with open_index(subject.config.output) as index:
        for kind, state in zip(("top", "bottom"), states, strict=True):
            rows = index.sql(
                "SELECT value FROM examples WHERE layer = $layer AND kind = $kind ORDER BY unit, rank",
                {"layer": layer, "kind": kind},
            )
            theirs = state.values().numpy()
            ours = rows["value"].to_numpy().reshape(theirs.shape)
            apart = np.abs(ours - theirs)
            worst = np.unravel_index(int(apart.argmax()), apart.shape)
            allowed = ROUNDING[subject.loaded.dtype] * float(np.abs(theirs).max())
            if not apart[worst] <= allowed:
                raise WrongResultError(
                    f"mlp.{layer}.{worst[0]}, {kind} rank {worst[1] + 1}: {ours[worst]:.6g} in the index, "
                    f"{theirs[worst]:.6g} by the peer's algorithm"
                )
            furthest = max(furthest, float(apart[worst]))
    return f"the peer's best values of layer {layer} are ours but for rounding ({furthest:.1g} at most)"


def check_histograms(subject: Subject, states: list[UnitHistograms]) -> str:
    """The peer's histograms against the index: counts, and bins within rounding. Raises WrongResultError."""
    lower = lower_edges()
    moved = 0.0
    with open_index(subject.config.output) as index:
        for probe, state in zip(subject.probes, states, strict=True):
            query = "SELECT unit, lower, upper, count FROM histograms WHERE layer = $layer"
            rows = index.sql(query, {"layer": probe.key.layer})
            ours = np.zeros((389, probe.units), np.int64)
            bins = np.searchsorted(lower, rows["lower"].to_numpy())
            # lower edges are distinct but for zero's own bin and the one above it
            bins += (rows["lower"].to_numpy() == 0) & (rows["upper"].to_numpy() > 0)
            ours[bins, rows["unit"].to_numpy()] = rows["count"].to_numpy()
            theirs = state.counts.long().numpy()
            must_be_same(f"counts of {probe.key}, ours and the peer's", ours.sum(0), theirs.sum(0))
            share = np.abs(ours - theirs).sum() / 2 / theirs.sum()
            if share > MOVED[subject.loaded.dtype]:
                raise WrongResultError(f"histograms of {probe.key}: {share:.2%} in other bins")
            moved = max(moved, float(share))
    return f"the peer's histograms are ours but for rounding ({moved:.2%} of values in another bin)"
