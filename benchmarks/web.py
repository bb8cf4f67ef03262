"""The pages: a unit's JSON, its page after a click, a text that is typed; what a static site reads.

The server is `neuron-indexer serve`, a process of its own. One index is synthetic, with the rows of a real
one; the other is built of the packaged MiniLM, whose texts are run. In chromium it is measured from the
click, or from the key, to the second frame after the page shows the answer. Warm: every layer was asked
before.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

import indexer
from benchmarks.browser import CHROMIUM, answering, chromium, serving
from benchmarks.measure import percentile
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.synthetic import Size, write_synthetic
from indexer.commands.demo import model_folder, write_corpus
from indexer.display.data import json_text
from indexer.errors import IndexerError
from indexer.web.answers import Answers
from indexer.web.site import write_site

# resolves once the condition holds and two frames were drawn, with the milliseconds since the action
_MEASURED = """
async ([action, wanted, text]) => {
  const begun = performance.now();
  const held = () => (document.querySelector(wanted)?.textContent ?? "").includes(text);
  if (action === "type") {
    const area = document.querySelector("textarea");
    area.value = text;
    area.dispatchEvent(new Event("input"));
  } else document.querySelector(action).click();
  const before = document.querySelector(wanted);
  while (action === "type" ? document.querySelector(wanted) === before : !held())
    await new Promise((resolve) => setTimeout(resolve));
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  return performance.now() - begun;
}
"""
TEXT_TOKENS = 64
# scripts that only static pages load, beside vendor/
_OF_FILES = ("files.js", "parquet.js", "spell.js")
# each a token of the model
_WORDS = [
    "time", "people", "way", "water", "day", "part", "work", "place", "number", "sound", "world", "house",
    "head", "land", "page", "answer", "food", "earth", "thought", "city", "tree", "farm", "story", "sea",
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    layers: int = option(32, "layers of the synthetic index", quick=2)
    units: int = option(14_336, "units of a layer", quick=64)
    records: int = option(500, "units asked for", quick=8)
    clicks: int = option(30, "pages opened, and texts run", quick=3)
    model: str | None = option(None, "model whose texts are run, instead of the packaged MiniLM")
    sites: str = option("mlp", "sites of its index, between commas")
    tokens: int = option(100_000, "tokens of its index", quick=2_000)
    folder: str | None = option(None, "keeps the indexes for the next run; without it, they are deleted")


def run(options: Options) -> Report:
    """Make or reuse both indexes, and measure; raises WrongResultError where an answer is not the API's."""
    if CHROMIUM is None or find_spec("playwright") is None:
        raise IndexerError(
            "web: it needs chromium and playwright: apt install chromium, pip install playwright"
        )
    with ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        large, small = _indexes(folder, options)
        browser = stack.enter_context(chromium())
        say("measuring units")
        with serving(large) as address:
            seconds = {
                "a unit's JSON": _records(large, address, options),
                "a unit's page, from click to frame": _clicks(browser, address, options),
            }
        say("measuring texts")
        with serving(small, "--model", _model(options)) as address:
            seconds |= _texts(browser, address, options)
        say("measuring the static site")
        sizes = _static(browser, small, folder)
    checks = ["units and texts over HTTP are those of the Python API"]
    milliseconds = {name: _summary(taken) for name, taken in seconds.items()}
    tables = [
        _times(milliseconds),
        Table("sizes", ("", ""), [(n, f"{s:,}") for n, s in sizes.items()]),
    ]
    return Report(
        settings_of(options, leave_out=("folder",)),
        checks,
        {"milliseconds": milliseconds, "sizes": sizes},
        tables,
    )


def _indexes(folder: Path, options: Options) -> tuple[Path, Path]:
    size = Size(options.layers, options.units, 20, 20, 64)
    large = folder / f"web-{size.layers}x{size.units}.index"
    name = f"{Path(_model(options)).name}-{options.sites.replace(',', '-')}"
    small = folder / f"web-{name}-{options.tokens}.index"
    if not large.exists():
        say(f"writing a synthetic index of {size.layers * size.units:,} units")
        folder.mkdir(parents=True, exist_ok=True)
        write_synthetic(large, size)
    if not small.exists():
        corpus = write_corpus(folder / "corpus", options.tokens * 5)
        built = {"model": _model(options), "sites": options.sites.split(",")}
        indexer.build(**built, corpus=corpus, output=small, max_tokens=options.tokens)
    return large, small


def _model(options: Options) -> Path | str:
    return options.model or model_folder()


def _records(path: Path, address: str, options: Options) -> list[float]:
    """Milliseconds of each of some units, one after the other in another layer, over one connection."""
    drawn = np.random.default_rng(1).integers(options.units, size=options.layers + options.records)
    names = [f"mlp.{number % options.layers}.{unit}" for number, unit in enumerate(drawn)]
    taken = []
    with closing(HTTPConnection(str(urlsplit(address).netloc))) as connection:
        for name in names:
            begun = time.perf_counter()
            connection.request("GET", f"/api/unit/{name}")
            content = connection.getresponse().read()
            taken.append(1e3 * (time.perf_counter() - begun))
    with indexer.open_index(path) as index:
        if json.loads(content) != json.loads(json_text(Answers(index).unit(names[-1]))):
            raise WrongResultError(f"the JSON of {names[-1]} is not what the Python API says")
    return taken[options.layers :]


def _clicks(browser: Any, address: str, options: Options) -> list[float]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"{address}#/u/mlp.1.0")
    page.wait_for_selector(".example")
    taken = []
    for unit in range(1, options.clicks + 2):
        taken.append(page.evaluate(_MEASURED, ["a[rel='next unit']", "h1", f"mlp.1.{unit}"]))
        if page.locator(".example").count() < 20:
            raise WrongResultError(f"the page of mlp.1.{unit} lacks examples")
    page.close()
    return taken[1:]


def _texts(browser: Any, address: str, options: Options) -> dict[str, list[float]]:
    """Texts of 64 tokens, all units ranked at each: at the server, and from the key to the frame."""
    random = np.random.default_rng(2)
    headers = {"X-Token": address.partition("token=")[2], "Content-Type": "application/json"}
    served, shown = [], []
    with closing(HTTPConnection(str(urlsplit(address).netloc))) as connection:

        def ask(text: str) -> Any:
            connection.request("POST", "/api/text", json.dumps({"text": text, "pinned": []}), headers)
            return json.loads(connection.getresponse().read())

        # an empty text has the special tokens alone
        words = TEXT_TOKENS - len(ask("")["tokens"])
        texts = [" ".join(random.choice(_WORDS, words)) for _ in range(options.clicks + 2)]
        for text in texts:
            begun = time.perf_counter()
            answer = ask(text)
            served.append(1e3 * (time.perf_counter() - begun))
    if len(answer["tokens"]) != TEXT_TOKENS or len(answer["tokens"][words // 2]["units"]) != 12:
        raise WrongResultError(
            f"a text of {len(answer['tokens'])} tokens instead of {TEXT_TOKENS}, or not ranked"
        )
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"{address}#/text?text={quote(texts[0])}")
    page.wait_for_selector(".word")
    for text in texts[1:]:
        shown.append(page.evaluate(_MEASURED, ["type", ".word", text]))
    page.close()
    return {
        "a text of 64 tokens at the server": served[2:],
        "a text of 64 tokens, from key to frame": shown[1:],
    }


def _static(browser: Any, index: Path, folder: Path) -> dict[str, int]:
    """Requests and bytes of a unit's page, cold, beyond the app; and the app's own compressed bytes."""
    from starlette.applications import Starlette
    from starlette.staticfiles import StaticFiles

    with tempfile.TemporaryDirectory(dir=folder) as beside:
        site = write_site(index, Path(beside, "site"))
        app = Starlette()
        app.mount("/", StaticFiles(directory=site, html=True))
        answers: list[tuple[str, int]] = []
        with answering(app) as address:
            page = browser.new_page()
            page.on("response", lambda one: answers.append((one.url, int(one.headers["content-length"]))))
            page.goto(f"{address}#/u/mlp.3.100")
            page.wait_for_selector(".example")
            page.close()
        paths = [(urlsplit(url).path.strip("/") or "index.html", size) for url, size in answers]
        read = [size for path, size in paths if path.startswith("index/") or path == "site.json"]
        loaded = {path for path, _ in paths if path.endswith((".html", ".css", ".js"))}
        packed = {path: len(gzip.compress((site / path).read_bytes(), 9)) for path in loaded}
    of_files = sum(size for path, size in packed.items() if path.startswith(("vendor/", *_OF_FILES)))
    return {
        "static, a unit, cold: requests": len(read),
        "static, a unit, cold: bytes": sum(read),
        "the app of a static site, compressed": sum(packed.values()),
        "the app of the server, compressed": sum(packed.values()) - of_files,
    }


def _summary(taken: Sequence[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {"p50": percentile(taken, 0.5), "p95": percentile(taken, 0.95), "asked": len(taken)}


def _times(milliseconds: dict[str, dict[str, float]]) -> Table:
    rows: list[tuple[str, ...]] = [
        (name, f"{row['p50']:.1f}", f"{row['p95']:.1f}", str(row["asked"]))
        for name, row in milliseconds.items()
    ]
    return Table("milliseconds", ("", "p50", "p95", "asked"), rows)
