"""What questions to an index give: tables as SQL returns them, and what puts some of them together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from indexer.index import schema
from indexer.index.codecs import EXAMPLES, HISTOGRAMS
from indexer.index.codecs.panel import SHOWN
from indexer.index.notebook import Shown, unit_html
from indexer.names import Unit


def _plain(wanted: pa.Schema) -> pa.Schema:
    """The schema with nullable columns and list elements, as tables have that SQL returns."""
    kinds = [pa.list_(kind.value_type) if pa.types.is_list(kind) else kind for kind in wanted.types]
    return pa.schema(list(zip(wanted.names, kinds, strict=True)))


UNITS_ROWS, EXAMPLES_ROWS, HISTOGRAMS_ROWS, PANEL_ROWS = map(
    _plain, (schema.UNITS, EXAMPLES.shown, HISTOGRAMS.columns, SHOWN)
)
# files whose rows are lines, also compressed ones
_LINES = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$")


@dataclass(frozen=True)
class UnitRecord:
    """Everything an index says about one unit, as rows of its views.

    statistics: one row of `units`. histogram: rows of `histograms`, ascending by value.
    top, bottom: rows of `examples`, by rank. samples: too, by band, the highest first, and rank.
    head: the row of `heads`, where it is an attention head.
    """

    unit: Unit
    statistics: pa.Table
    histogram: pa.Table
    top: pa.Table
    bottom: pa.Table
    samples: pa.Table
    head: pa.Table | None

    def _repr_html_(self) -> str:
        return self.shown({}).html

    def shown(self, sources: Mapping[int, str]) -> Shown:
        """The record for a notebook; sources: names of documents by id, which stands for one without."""
        numbers, bins = self.statistics.to_pylist()[0], self.histogram.to_pylist()
        examples = (self.top, self.samples, self.bottom)
        return Shown(unit_html(str(self.unit), numbers, bins, examples, sources), f"unit {self.unit}")


class PanelOfLayer(NamedTuple):
    """What all units of a layer do on the same windows of text.

    windows: rows of the view `panel`, in its order.
    activations: float32 [tokens, units]; the tokens are those of the windows, one window after the other. The
    activations of one unit lie together in memory.
    """

    windows: pa.Table
    activations: np.ndarray


def with_names(unit: Unit, columns: dict[str, Any], wanted: pa.Schema) -> pa.Table:
    """A table in the order of `wanted`, with the columns that name the unit."""
    rows = len(next(iter(columns.values())))
    columns |= {
        "site": pa.repeat(unit.site, rows),
        "layer": pa.repeat(pa.scalar(unit.layer, pa.int32()), rows),
        "unit": pa.repeat(pa.scalar(unit.unit, pa.int32()), rows),
    }
    return pa.Table.from_arrays([columns[name] for name in wanted.names], schema=wanted)


def source_name(source: str, row: int) -> str:
    """A document's file and its place there: a line as people count, else the row as `documents` has it."""
    if _LINES.search(source.lower()):
        return f"{source} line {row + 1}"
    return f"{source} row {row}" if row else source
