"""The statistics that an index may hold, each with its codec; to add one, write a codec and list it here.

Checks go in this order: those of moments and examples rely on the bins.
"""

from __future__ import annotations

from collections.abc import Iterable

from indexer.index.codecs.codec import Codec
from indexer.index.codecs.examples import Examples
from indexer.index.codecs.heads import Heads
from indexer.index.codecs.histograms import Histograms
from indexer.index.codecs.moments import MomentSums
from indexer.index.codecs.panel import PANELS

EXAMPLES, HISTOGRAMS, MOMENTS, HEAD_SCORES = Examples(), Histograms(), MomentSums(), Heads()
CODECS: list[Codec] = [HISTOGRAMS, MOMENTS, EXAMPLES, *PANELS, HEAD_SCORES]


def folders() -> list[str]:
    """The folders of all statistics."""
    return [codec.folder for codec in CODECS]


def codecs_of(statistics: Iterable[str]) -> list[Codec]:
    """Those of some statistics, by their names."""
    wanted = set(statistics)
    return [codec for codec in CODECS if codec.name in wanted]


def codecs_for(states: Iterable[str]) -> list[Codec]:
    """Those whose states are all there."""
    there = set(states)
    return [codec for codec in CODECS if there.issuperset(codec.states)]
