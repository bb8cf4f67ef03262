"""The command `site`: the pages of an index as a folder that any web server or bucket serves by itself.

The browser reads the index's own Parquet, by ranges; nothing of it is converted. Beside it lies `site.json`:
what pages ask of the index as a whole, and where in its files the footers are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from indexer.display.data import json_text
from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.output import check_output, in_one_line
from indexer.index.read import Index, open_index
from indexer.web.answers import Answers
from indexer.web.policy import policy

# what the pages never read: what merging adds up, and the panel
_LEFT_OUT = ("sums/", "panel/")


def write_site(path: Path, output: Path) -> Path:
    """Write the pages of an index into the folder `output`, and return that.

    The index's files are hard links, which take no room, where the file system has them, else copies;
    `sums` and `panel`, which no page reads, are left out.
    Raises IndexerError where the index cannot be opened, `output` exists, or the Parquet reader is not there.
    """
    app = Path(str(files("indexer.web") / "static"))
    if not (app / "vendor" / "hyparquet").is_dir():
        raise IndexerError(
            "site: the Parquet reader of its pages is not there; fetch it with python -m indexer.web.fetch"
        )
    check_output(output, overwrite=False)
    with (
        open_index(path) as index,
        in_one_line(f"site {output}", "Free some space or choose another --output"),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder,
    ):
        made = Path(folder, "site")
        shutil.copytree(app, made)
        page = (app / "index.html").read_text()
        # a host sends no policy of ours, so the page has it itself
        metas = (
            '<meta name="neuron-index" content="static" />',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(framed=None))}" />',
        )
        (made / "index.html").write_text(page.replace("<head>", "\n    ".join(["<head>", *metas]), 1))
        kept = [file.path for file in index.manifest.files if not file.path.startswith(_LEFT_OUT)]
        for name in [schema.MANIFEST, *kept]:
            _put(path / name, made / "index" / name)
        (made / "site.json").write_text(json_text(_described(index, kept)), encoding="utf-8")
        os.rename(made, output)
    return output


def _described(index: Index, kept: list[str]) -> dict[str, Any]:
    """What site.json holds."""
    answers, manifest = Answers(index), index.manifest
    parquet = [file for file in manifest.files if file.path in kept and file.path.endswith(".parquet")]
    return {
        "about": answers.about() | {"live": False},
        "overview": answers.layers(),
        "digest": manifest.sha256[:16],
        "layers": [
            {
                "name": str(entry.key),
                "site": entry.key.site,
                "layer": entry.key.layer,
                "units": entry.units,
                "window": list(entry.keep.window),
                "experts": entry.experts.number if entry.experts else None,
            }
            for entry in manifest.layers
        ],
        "units": schema.UNITS.names,
        "files": {file.path: [file.bytes, _footer(index.path / file.path)] for file in parquet},
    }


def _footer(path: Path) -> int:
    """Bytes of a Parquet file's footer, with its length and the four letters behind it."""
    with open(path, "rb") as opened:
        opened.seek(-8, os.SEEK_END)
        return int.from_bytes(opened.read(4), "little") + 8


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # another file system, or one without links
        shutil.copy2(source, target)
