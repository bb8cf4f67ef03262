"""An index that would harm its reader."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

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


def violations(page: Any) -> list[tuple[str, str]]:
    """What axe-core finds on a page that some people could not read, each with an element."""
    axe = (files(pytest.importorskip("axe_playwright_python")) / "axe.min.js").read_text()
    page.evaluate(f"window.axe || (() => {{ {axe} }})()")
    found = page.evaluate("axe.run()")["violations"]
    return [(one["id"], one["nodes"][0]["html"][:120]) for one in found]


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
