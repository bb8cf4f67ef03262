"""The answers of the pages, and who gets them over HTTP."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from indexer_kernels.histogram import ZERO_BIN, bin_edges
from starlette.testclient import TestClient

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.names import parse_unit
from indexer.web.answers import NUMBERS, Answers
from indexer.web.moved import Moved, distances
from indexer.web.questions import Questions
from indexer.web.rarity import histogram_counts
from indexer.web.serve import _listening, names, run
from indexer.web.server import POLICY, application, several

TOKEN = "a-token"
HOST = "127.0.0.1:8000"
UNIT = "mlp.1.5"
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' OR 1=1 --", "%", "_", "\\",
    "'; DROP VIEW units", "../../etc/passwd", "\x00", "\u202e", "${7*7}", "%27", "a" * 5_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("web") / "my.index"
    with indexer.open_index(write_synthetic(path, Size(units=16, top=6, bottom=4))) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(index: Index) -> TestClient:
    return TestClient(application(Answers(index), TOKEN), base_url=f"http://{HOST}")


def test_a_unit_is_what_the_api_says(index: Index) -> None:
    found, record = Answers(index).unit(UNIT), index.record(UNIT)
    assert found["name"] == UNIT
    assert found["numbers"] == pytest.approx(record.statistics.to_pylist()[0], nan_ok=True)
    assert sum(count for *_, count in found["bins"]) == sum(record.histogram["count"].to_pylist())
    for kind in ("top", "samples", "bottom"):
        wanted = getattr(record, kind).to_pylist()
        assert len(found[kind]) == len(wanted) > 0
        for ours, row in zip(found[kind], wanted, strict=True):
            assert "".join(ours["pieces"]) == row["text"]
            assert ours["ids"] == row["token_ids"]
            np.testing.assert_array_equal(np.array(ours["activations"], np.float32), row["activations"])
            assert str(row["document"]) in found["documents"]


def test_neighbours_end_with_the_index(index: Index) -> None:
    answers = Answers(index)
    first, last = index.manifest.layers[0], index.manifest.layers[-1]
    assert answers.unit(f"{first.key}.0")["neighbours"]["before"] is None
    assert answers.unit(f"{first.key}.0")["neighbours"]["below"] is None
    found = answers.unit(f"{last.key}.{last.units - 1}")["neighbours"]
    assert (found["after"], found["above"]) == (None, None)
    assert found["before"] == f"{last.key}.{last.units - 2}"


@pytest.mark.parametrize("column", NUMBERS)
def test_units_are_sorted_by_every_column(index: Index, column: str) -> None:
    found = Answers(index).units(sort=column, limit=200)
    values = [row[column] for row in found["rows"] if row[column] is not None]
    assert values == sorted(values, reverse=True)
    assert found["total"] == sum(entry.units for entry in index.manifest.layers)


def test_units_are_filtered_and_paged(index: Index) -> None:
    answers = Answers(index)
    found = answers.units("unit", False, [("layer", ">=", 1), ("layer", "<=", 1)], offset=3, limit=5)
    assert [(row["layer"], row["unit"]) for row in found["rows"]] == [(1, unit) for unit in range(3, 8)]
    assert found["total"] == 16
    for sort, where in (
        ("maximum; DROP", []),
        ("text", []),
        ("unit", [("layer", "=", 1)]),
        ("unit", [("x", ">=", 1)]),
    ):
        with pytest.raises(IndexerError):
            answers.units(sort, True, where)


def test_search_finds_what_the_examples_hold(index: Index) -> None:
    answers, best = Answers(index), index.top(UNIT, k=1).to_pylist()[0]
    word = best["tokens"][2].strip()
    sought = {"token": best["token"], "text": best["text"], "pattern": f"{re.escape(word)}(?:.|\\n)+$"}
    for way, words in sought.items():
        found = answers.search(way, words, limit=200)
        (row,) = [one for one in found if (one["layer"], one["unit"]) == (1, 5)]
        top = [
            example
            for example in index.top(UNIT).to_pylist()
            if {"token": example["token"] == words, "text": words in example["text"]}.get(way)
            or (way == "pattern" and re.search(words, example["text"]))
        ]
        assert (row["examples"], row["text"]) == (len(top), best["text"])
        assert np.float32(row["value"]) == np.float32(best["value"])
        assert way != "pattern" or re.search(words, best["text"])[0] == row["found"]  # type: ignore[index]
        # examples below it are none
        least = answers.search(way, words, least=best["value"], limit=200)
        assert [one["examples"] for one in least if (one["layer"], one["unit"]) == (1, 5)] == [1]
        assert all(np.float32(one["value"]) >= best["value"] for one in least)
    # signs that patterns have stand for themselves
    assert answers.search("text", "%no such text_") == []
    with pytest.raises(IndexerError, match=r"SQL: .*missing"):
        answers.search("pattern", "(")


def test_pages_and_answers_over_http(client: TestClient, index: Index) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "<main" in page.text
    assert page.headers["Content-Security-Policy"] == POLICY
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get(f"/api/unit/{UNIT}").json()["numbers"]["unit"] == 5
    about = client.get("/api/about").json()
    assert about["live"] is False
    assert about["digest"] == json.loads((index.path / "manifest.json").read_text())["sha256"]
    assert len(client.get("/api/layers").json()) == len(index.manifest.layers)
    rows = client.get("/api/units", params={"where": ["layer>=1", "unit<=2"], "sort": "mean"}).json()["rows"]
    assert {(row["layer"] >= 1, row["unit"] <= 2) for row in rows} == {(True, True)}
    assert client.get("/api/briefly", params={"unit": [UNIT]}).json()[0]["name"] == UNIT
    for path in (
        "/api/unit/mlp.99.0",
        "/api/unit/nonsense",
        "/api/search",
        "/api/search?token=a&text=b",
        "/api/units?where=x",
        "/api/document/7",
    ):
        answer = client.get(path)
        assert answer.status_code == 400, path
        assert "\n" not in answer.json()["error"]


def test_pages_make_no_markup_of_text() -> None:
    scripts = sorted(Path(files("indexer.web") / "static").glob("*.js"))
    assert len(scripts) > 5
    for script in scripts:
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", script.read_text()
        )
        assert not found, script.name
        assert not re.search(r"https?://(?!www\.w3\.org)", script.read_text()), script.name


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Host": "127.0.0.1:9"}, {"Host": ""},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9"},
    ],
)  # fmt: skip
def test_only_pages_of_this_machine_are_answered(client: TestClient, headers: dict[str, str]) -> None:
    for path in ("/", "/api/about"):
        assert client.get(path, headers=headers).status_code == 403
    assert (
        client.post("/api/text", json={"text": "a"}, headers=headers | {"X-Token": TOKEN}).status_code == 403
    )


def test_what_is_asked_is_of_a_known_length_that_is_not_too_long(client: TestClient) -> None:
    headers = {"X-Token": TOKEN, "Content-Type": "application/json"}
    for content in (iter([b'{"text": "a"}']), b'{"text": "' + b"a" * 200_000 + b'"}'):
        assert client.post("/api/text", content=content, headers=headers).status_code == 403


def test_no_file_but_those_of_the_pages(client: TestClient) -> None:
    for path in ("/../answers.py", "/%2e%2e/answers.py", "/..%2fanswers.py", "/static/app.js", "/server.py"):
        assert client.get(path).status_code == 404, path


def test_running_a_text_takes_the_token_and_a_model(client: TestClient) -> None:
    for headers in ({}, {"X-Token": "other"}):
        assert client.post("/api/text", json={"text": "a"}, headers=headers).status_code == 403
    foreign = {b"x-token": "\u00e9".encode("latin-1")}
    assert client.post("/api/text", json={"text": "a"}, headers=foreign).status_code == 403
    answer = client.post("/api/text", json={"text": "a"}, headers={"X-Token": TOKEN})
    assert (answer.status_code, "--model" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_only_words(client: TestClient, text: str) -> None:
    for parameters in ({"text": text}, {"token": text}):
        answer = client.get("/api/search", params=parameters)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(answer.json(), list)
    assert client.get("/api/units", params={"sort": text}).status_code == 400
    pattern = client.get("/api/search", params={"pattern": text})
    assert pattern.status_code == 200 or "\n" not in pattern.json()["error"]


def test_several_indexes_have_an_address_each(index: Index, tmp_path: Path) -> None:
    with indexer.open_index(write_synthetic(tmp_path / "b.index", Size(units=4, top=2, bottom=2))) as other:
        both = {"a": index, "b": other}
        apps = {name: application(Answers(one), TOKEN, None, both, name) for name, one in both.items()}
        client = TestClient(several(apps), base_url=f"http://{HOST}")
        page = client.get("/?token=x", follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (307, "/a/?token=x")
        assert page.headers["Content-Security-Policy"] == POLICY
        for name, one in both.items():
            assert "<main" in client.get(f"/{name}/").text
            about = client.get(f"/{name}/api/about").json()
            assert (about["indexes"], about["name"]) == (["a", "b"], name)
            assert about["units"] == sum(entry.units for entry in one.manifest.layers)
        assert client.get(f"/a/api/unit/{UNIT}").status_code == 200
        assert client.get(f"/b/api/unit/{UNIT}").status_code == 400
        assert client.get("/a/api/about", headers={"Host": "evil.example"}).status_code == 403
        assert client.post("/b/api/sql", json={"query": "SELECT 1"}).status_code == 403


def test_distances_are_those_of_the_values() -> None:
    """Two units of as many tokens: the area between cumulative shares is the mean distance by rank."""
    lower, upper = (edges.astype(float) for edges in bin_edges())
    middle = np.where(np.isinf(lower), upper, np.where(np.isinf(upper), lower, (lower + upper) / 2))
    random, tokens = np.random.default_rng(0), 50
    drawn = random.integers(389, size=(2, 7, tokens))
    drawn[1, 2] = drawn[0, 2]
    drawn[1, 3] = ZERO_BIN
    drawn[:, 4] = ZERO_BIN
    counts = np.zeros((2, 7, 389), np.int64)
    for side, unit in np.ndindex(2, 7):
        np.add.at(counts[side, unit], drawn[side, unit], 1)
    # as many tokens or more, the shares are the same
    counts[1] *= 3
    ours = distances(*counts)
    values = np.sort(middle[drawn], axis=2)
    size = np.abs(values).mean(axis=2).sum(axis=0)
    wanted = np.divide(np.abs(values[0] - values[1]).mean(axis=1), size, out=np.zeros(7), where=size > 0)
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)
    assert (ours[2], ours[3], ours[4]) == (0, pytest.approx(1), 0)
    assert (ours <= 1 + 1e-12).all()
    counts[0, 5] = 0
    assert np.isnan(distances(*counts)[5])


def test_units_that_moved_most(index: Index, tmp_path: Path) -> None:
    size = Size(units=16, layers=3, top=6, bottom=4)
    with indexer.open_index(write_synthetic(tmp_path / "b.index", size, seed=1)) as other:
        served = {"a": index, "b": other}
        app = application(Answers(index), TOKEN, None, served, "a")
        client = TestClient(app, base_url=f"http://{HOST}")
        found = client.get("/api/moved", params={"other": "b", "limit": 200}).json()
        assert (found["total"], found["left_out"]) == (32, ["mlp.2"])
        apart = [row["distance"] for row in found["rows"]]
        assert apart == sorted(apart, reverse=True)
        assert len({row["unit"] for row in found["rows"]}) == 32
        for row in found["rows"][:5]:
            key = parse_unit(row["unit"])
            counts = [histogram_counts(one, key.key)[key.unit : key.unit + 1] for one in (index, other)]
            assert row["distance"] == pytest.approx(distances(*counts)[0])
        part = client.get("/api/moved", params={"other": "b", "offset": 5, "limit": 3}).json()
        assert part["rows"] == found["rows"][5:8]
        for name in ("a", "c", HOSTILE[0]):
            assert client.get("/api/moved", params={"other": name}).status_code == 400
    # with itself all is the same
    same = Moved(index, index).answer(limit=3)["rows"]
    assert [(row["distance"], row["overlap"], row["most"]) for row in same] == [(0, same[0]["most"], 6)] * 3


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("units?offset=x", 'offset "x": '), ("units?limit=1e3", 'limit "1e3": '), ("moved", "other: "),
        ("units?descending=maybe", 'descending "maybe": '), ("search?token=a&least=", 'least "": '),
        ("document/x", 'number "x": '), ("document/99999999999999999999", "no example points to a document"),
        ("units?offset=%0A%00" + "9" * 5_000, 'offset "'),
    ],
)  # fmt: skip
def test_what_is_no_number_is_told_in_one_line(client: TestClient, path: str, told: str) -> None:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) < 300


@pytest.mark.parametrize(
    "body", ["[", "null", "[1]", '{"query": 5}', '{"query": "\\ud800"}', '{"x": ' + "[" * 9_000, "\xff"]
)
def test_what_is_no_question_is_told_in_one_line(client: TestClient, body: str) -> None:
    headers = {"X-Token": TOKEN, "Content-Type": "application/json"}
    answer = client.post("/api/sql", content=body.encode("latin-1"), headers=headers)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


def test_small_answers_are_sent_at_once() -> None:
    with _listening(0) as found:
        # what asyncio asks before it sets TCP_NODELAY; without that a small answer takes 40 ms more
        assert found.proto == socket.IPPROTO_TCP


def test_names_of_several_indexes() -> None:
    paths = [Path("x/one.index"), Path("y/one.index"), Path("z/ä b"), Path("one-2"), Path("/x/..")]
    assert list(names(paths)) == ["one", "one-2", "b", "one-2-2", "index"]


def test_sql_takes_the_token_and_answers(client: TestClient, index: Index) -> None:
    query = "SELECT unit, maximum FROM units ORDER BY layer, unit"
    for headers in ({}, {"X-Token": "other"}):
        assert client.post("/api/sql", json={"query": query}, headers=headers).status_code == 403
    found = client.post("/api/sql", json={"query": query}, headers={"X-Token": TOKEN}).json()
    wanted = index.sql(query)
    assert found["columns"] == ["unit", "maximum"]
    assert [row[0] for row in found["rows"]] == wanted["unit"].to_pylist()
    assert (found["total"], found["more"]) == (wanted.num_rows, False)
    assert found["csv"].splitlines()[0] == "unit,maximum"
    assert len(found["csv"].splitlines()) == wanted.num_rows + 1
    for wrong in (5, None, "DROP VIEW units", "SELECT * FROM read_csv('/etc/passwd')", "SELECT 1; SELECT 2"):
        answer = client.post("/api/sql", json={"query": wrong}, headers={"X-Token": TOKEN})
        assert answer.status_code == 400, wrong
        assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "seconds", "told"),
    [
        ("SELECT count(*) FROM range(1000000000000) AS a(x) WHERE x * x = 7", 3, "than 3 s"),
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t", 3, "than"),
        # one value of 4 GB, which DuckDB makes without looking up
        ("SELECT length(repeat(repeat('a', 100000), 40000)) AS n", 3, "than|emory"),
        ("SELECT list(range) FROM range(9000000)", 60, "emory"),
        ("SELECT repeat('abcdefgh', 500) AS t FROM range(9000)", 60, "too large"),
    ],
)
def test_sql_has_limits(index: Index, query: str, seconds: float, told: str) -> None:
    questions = Questions(index, seconds, memory="60MB")
    with pytest.raises(IndexerError, match=told):
        questions.ask(query)
    assert Questions(index).ask("SELECT 7 AS n, 'é' AS e")["rows"] == [[7, "é"]]


def test_a_long_result_is_cut_and_says_so(index: Index) -> None:
    found = Questions(index).ask("SELECT range AS n FROM range(20000) ORDER BY n DESC")
    assert (len(found["rows"]), found["total"], found["more"]) == (200, 10_000, True)
    assert found["rows"][0] == [19_999]


@pytest.mark.parametrize(("missing", "model"), [("uvicorn", None), ("torch", "./model")])
def test_a_package_that_is_not_there(
    missing: str, model: str | None, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.errors.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(IndexerError, match=f"serving an index needs {missing}: pip install {missing}"):
        run([index.path], model, 0, False)


def test_mistakes_of_the_command(index: Index, tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="no such folder"):
        run([tmp_path / "none"], None, 0, False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(IndexerError, match=f"--port {port}: "):
            run([index.path], None, port, False)
