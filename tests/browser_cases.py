"""An index that would harm its reader."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import synthetic
from indexer.index.vocabulary import Vocabulary

RUNS = "window.ran = true"
# what a page that made markup, addresses or scripts of text would run; every one of them in many wrappings
_SCRIPTS = [
    f"<script>{RUNS}</script>", f"<img src=x onerror='{RUNS}'>", f"<svg onload='{RUNS}'>",
    "<iframe srcdoc=\"<script>parent.ran = true</script>\">", f"<a href='javascript:{RUNS}'>a</a>",
    f"<style>@import 'javascript:{RUNS}'</style>", f"javascript:{RUNS}", f"${{{RUNS}}}", f"{{{{{RUNS}}}}}",
    f"<details open ontoggle='{RUNS}'>",
]  # fmt: skip
HOSTILE = [
    opening + script
    for opening in ("", '">', "'>", "</textarea>", "</title></script>")
    for script in _SCRIPTS
]


def write_hostile(output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index whose tokens and sources are hostile texts."""
    size = synthetic.Size(
        units=5, top=3, bottom=2, samples=1, window=16, vocabulary=len(HOSTILE) + 10, documents=200
    )
    plain = synthetic.synthetic_vocabulary(10).tokens.to_pylist()
    documents = synthetic.synthetic_documents(size)
    sources = pa.array([HOSTILE[place % len(HOSTILE)] for place in range(documents.num_rows)])
    place = documents.schema.get_field_index("source")
    hostile = documents.set_column(place, documents.schema.field(place), sources)
    monkeypatch.setattr(synthetic, "synthetic_vocabulary", lambda size: Vocabulary([*HOSTILE, *plain]))
    monkeypatch.setattr(synthetic, "synthetic_documents", lambda size: hostile)
    return synthetic.write_synthetic(output, size)
