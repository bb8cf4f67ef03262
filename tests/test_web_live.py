"""Texts that are run live, and how rare what a unit does in them is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels.histogram import bin_edges, bins_of
from starlette.testclient import TestClient
from transformers import AutoModel

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.display.data import json_text
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.models import load
from indexer.names import Key
from indexer.web.answers import Answers
from indexer.web.live import Live, Model, aligned
from indexer.web.rarity import Rarity, most_changed, quick_bins, rarest
from indexer.web.serve import _lives
from indexer.web.server import application
from tests.tiny_models import saved

TOKEN = "a-token"
HOST = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("web") / "my.index"
    with indexer.open_index(write_synthetic(path, Size(units=16, top=6, bottom=4))) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, 90, length)) for length in (50, 9, 17)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    indexer.build(
        model=model,
        corpus=[folder / "corpus.jsonl"],
        output=folder / "my.index",
        context=24,
        threads=1,
        panel=2,
    )
    return folder / "my.index"


def test_shares_are_those_of_the_histogram(index: Index) -> None:
    key = Key("mlp", 1)
    rarity, values = Rarity(index), np.array([[-0.3, 0.0, 1e-5, 0.7], [5.0, np.nan, np.inf, 2.0]], np.float32)
    values = np.tile(values, (1, 4))
    found = rarity.above(key, values)
    for unit in range(16):
        rows = index.histogram(f"mlp.1.{unit}").to_pylist()
        counts = np.zeros(389)
        for row in rows:
            middle = np.float32((max(row["lower"], -1e6) + min(row["upper"], 1e6)) / 2)
            counts[bins_of(np.array([middle]))[0]] = row["count"]
        for token in range(2):
            value = values[token, unit]
            if np.isfinite(value):
                above = counts[bins_of(np.array([value]))[0] + 1 :].sum() / counts.sum()
                assert found[token, unit] == pytest.approx(above, rel=1e-6)
            else:
                assert np.isnan(found[token, unit])


def test_quick_bins_are_those_of_the_definition() -> None:
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    edges = np.concatenate([*bin_edges(), 2.0 ** np.arange(-149, 128, dtype=np.float64)]).astype(np.float32)
    near = [np.nextafter(edges, np.float32(end)) for end in (-np.inf, np.inf)]
    values = np.concatenate([edges, -edges, *near, [0.0, -0.0]]).astype(np.float32)
    values = np.concatenate([random, values])
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(quick_bins(values), bins_of(values))


def test_the_rarest_come_first_and_only_what_is_positive() -> None:
    one, two = Key("mlp", 0), Key("mlp", 1)
    shares = {one: np.array([[0.5, 0.1, np.nan]], np.float32), two: np.array([[0.1, 0.0]], np.float32)}
    values = {one: np.array([[1, 2, np.inf]], np.float32), two: np.array([[3, -1]], np.float32)}
    assert rarest(shares, values, 0, 2) == [(two, 0), (one, 1)]
    assert rarest(shares, values, 0, 9) == [(two, 0), (one, 1), (one, 0)]


def test_what_differs_most_comes_first() -> None:
    one, two = Key("mlp", 0), Key("mlp", 1)
    shares = [
        {
            one: np.array([[9, 9, 9], [0.5, 0.1, 0.5]], np.float32),
            two: np.array([[9, 9], [0.2, 0]], np.float32),
        },
        {one: np.array([[0.5, 0.2, 0.5]], np.float32), two: np.array([[np.nan, 0.1]], np.float32)},
    ]
    values = [
        {one: np.array([[0, 0, 0], [1, 2, 3]], np.float32), two: np.array([[0, 0], [3, 4]], np.float32)},
        {one: np.array([[1, 1, 2]], np.float32), two: np.array([[np.inf, 3]], np.float32)},
    ]
    # a share of 0 counts as 0.01: ten times as rare as 0.1; unit 0 does the same at both
    wanted = [(two, 1), (one, 1), (one, 2)]
    assert most_changed(shares, values, (1, 0), 0.01, 9) == wanted
    assert most_changed(shares, values, (1, 0), 0.01, 1) == wanted[:1]


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([], [], []),
        ([1, 2, 3], [1, 2, 3], [(0, 0), (1, 1), (2, 2)]),
        # replaced one by one, and what is left over
        ([1, 5, 6, 3], [1, 7, 3], [(0, 0), (1, 1), (2, None), (3, 2)]),
        ([1, 2], [1, 9, 2, 8], [(0, 0), (None, 1), (1, 2), (None, 3)]),
    ],
)
def test_tokens_that_belong_together(first: list[int], second: list[int], wanted: list[Any]) -> None:
    assert aligned(first, second) == wanted


@pytest.mark.usefixtures("one_thread")
def test_a_text_is_run_as_the_build_ran_it(built: Path, model: Path) -> None:
    with indexer.open_index(built) as index:
        live = Live(index, Model.of(index, str(model)))
        for name in ("mlp.0.3", "mlp.1.17"):
            best = index.top(name, k=1).to_pylist()[0]
            # the whole sequence of the example, which its document begins with
            text = index.document(best["document"]).split()
            words = text[best["sequence"] * 22 : (best["sequence"] + 1) * 22]
            ran = live.run(" ".join(words))
            layer, unit = best["layer"], best["unit"]
            assert ran.values[Key("mlp", layer)][best["position"], unit] == pytest.approx(
                best["value"], rel=1e-5
            )
            assert int(ran.token_ids[best["position"]]) == best["token_id"]
            plain, seen = AutoModel.from_pretrained(model).eval(), []
            plain.layers[layer].mlp.down_proj.register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0])
            )
            with torch.inference_mode():
                plain(input_ids=torch.from_numpy(ran.token_ids.astype(np.int64))[None])
            np.testing.assert_allclose(
                ran.values[Key("mlp", layer)], seen[0][0].numpy(), rtol=1e-5, atol=1e-6
            )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "sites"), [("mixtral", ("experts", "heads")), ("t5", ("mlp", "resid"))])
def test_every_site_is_run_live(name: str, sites: tuple[str, ...], built: Path, tmp_path: Path) -> None:
    """Experts, which come one by one, and a decoder, which reads a start token before the text."""
    folder = saved(tmp_path / "model", name)
    indexer.build(
        model=folder, corpus=[built.parent / "corpus.jsonl"], output=tmp_path / "a.index", sites=sites,
        context=24, threads=1, panel=0,
    )  # fmt: skip
    with indexer.open_index(tmp_path / "a.index") as index:
        live, seen = Live(index, Model.of(index, str(folder))), set()
        for entry in index.manifest.layers:
            maxima = index.sql(
                "SELECT unit FROM units WHERE site = ? AND layer = ? ORDER BY maximum DESC LIMIT 3",
                [*entry.key],
            )
            for unit in maxima["unit"].to_pylist():
                best = index.top(f"{entry.key}.{unit}", k=1).to_pylist()[0]
                words = index.document(best["document"]).split()
                ran = live.run(" ".join(words[best["sequence"] * 22 : (best["sequence"] + 1) * 22]))
                found = ran.values[entry.key][best["position"], unit]
                assert found == pytest.approx(best["value"], rel=1e-4), (entry.key, unit)
                seen.add(entry.key.site)
        assert len(seen) >= len(sites)
        head = Answers(index).unit(f"{index.manifest.layers[-1].key}.0")["head"]
        assert (head is None) == ("heads" not in sites)


@pytest.mark.usefixtures("one_thread")
def test_two_texts_side_by_side(built: Path, model: Path) -> None:
    texts = ["w1 w2 w3", "w1 w7 w3 w4"]
    with indexer.open_index(built) as index:
        live = Live(index, Model.of(index, str(model)))
        client = TestClient(application(Answers(index), TOKEN, live), base_url=f"http://{HOST}")
        asked = {"texts": texts, "pinned": ["mlp.0.3"]}
        told = client.post("/api/texts", json=asked, headers={"X-Token": TOKEN}).json()
        assert told["texts"] == [json.loads(json_text(live.answer(text, ["mlp.0.3"]))) for text in texts]
        pairs = [(0, 0), (1, 1), (2, 2), (3, 3), (None, 4), (4, 5)]
        assert [tuple(pair["places"]) for pair in told["pairs"]] == pairs
        # the model is causal: before the texts part nothing differs
        assert [bool(pair["units"]) for pair in told["pairs"]] == [False, False, True, True, False, False]
        ran, ratios = [live.run(text) for text in texts], []
        tokens = index.manifest.totals["counted_tokens"]
        for unit in told["pairs"][2]["units"]:
            layer, number = map(int, unit["name"].split(".")[1:])
            wanted = [one.values[Key("mlp", layer)][2, number] for one in ran]
            np.testing.assert_array_equal(np.array(unit["values"], np.float32), wanted)
            ratios.append(abs(np.log(np.maximum(unit["shares"], 0.5 / tokens)) @ [1, -1]))
        assert ratios == pytest.approx(sorted(ratios, reverse=True))
        for wrong in (["a"], "ab", ["a", 5], None):
            answer = client.post("/api/texts", json={"texts": wrong}, headers={"X-Token": TOKEN})
            assert answer.status_code == 400, wrong
        assert client.post("/api/texts", json=asked).status_code == 403


@pytest.mark.usefixtures("one_thread")
def test_live_answers(built: Path, model: Path) -> None:
    with indexer.open_index(built) as index:
        live = Live(index, Model.of(index, str(model)))
        client = TestClient(application(Answers(index), TOKEN, live), base_url=f"http://{HOST}")

        def post(**asked: Any) -> Any:
            return client.post("/api/text", json=asked, headers={"X-Token": TOKEN})

        answer = post(text="w1 w2 w3", pinned=["mlp.0.3"]).json()
        assert [token["counted"] for token in answer["tokens"]] == [False, True, True, True, False]
        assert "".join(token["piece"] for token in answer["tokens"][1:4]).split() == ["w1", "w2", "w3"]
        ran, (pin,) = live.run("w1 w2 w3"), answer["pinned"]
        np.testing.assert_array_equal(np.array(pin["values"], np.float32), ran.values[Key("mlp", 0)][:, 3])
        shares = live.rarity.above(Key("mlp", 0), ran.values[Key("mlp", 0)])
        np.testing.assert_allclose(pin["shares"], shares[:, 3], rtol=1e-6)
        first = [token["units"][0]["share"] for token in answer["tokens"] if token["counted"]]
        every = [live.rarity.above(key, values) for key, values in ran.values.items()]
        positive = [values > 0 for values in ran.values.values()]
        for place, share in enumerate(first, start=1):
            least = min(np.min(found[place][own[place]]) for found, own in zip(every, positive, strict=True))
            assert share == pytest.approx(least, rel=1e-6)
        assert post(text="").json()["tokens"] is not None
        long = post(text=" ".join(["w5"] * 100)).json()
        assert (long["cut"], len(long["tokens"])) == (True, 24)
        for asked in (
            {"text": 5},
            {"text": "a", "pinned": ["mlp.9.9"]},
            {"text": "a", "pinned": "x"},
            {"text": "w1 " * 9_000},
        ):
            assert post(**asked).status_code == 400, asked
        assert post(text="a", pinned=["mlp.0.1"] * 80).status_code == 200


@pytest.mark.usefixtures("one_thread")
def test_indexes_of_a_model_share_it(
    built: Path, model: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(
        "indexer.web.live.load", lambda *given, **options: loads.append(given) or load(*given, **options)
    )
    with indexer.open_index(built) as one, indexer.open_index(built) as two:
        lives: Any = _lives({"one": one, "foreign": index, "two": two}, str(model))
        assert (list(lives), len(loads)) == (["one", "two"], 2)
        alone = Live(one, Model.of(one, str(model))).answer("w1 w2", ["mlp.0.3"])
        with ThreadPoolExecutor(4) as pool:
            told = pool.map(lambda name: lives[name].answer("w1 w2", ["mlp.0.3"]), ["one", "two"] * 6)
            assert list(told) == [alone] * 12


def test_another_model_is_refused(index: Index, model: Path) -> None:
    with pytest.raises(IndexerError, match="not those that the index was made of"):
        Live(index, Model.of(index, str(model)))
