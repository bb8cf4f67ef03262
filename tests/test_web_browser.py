"""The pages in a real browser, against a real index and its model: what is shown, pressed and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import indexer
from benchmarks.browser import CHROMIUM, answering, chromium, serving
from indexer.web.answers import Answers
from indexer.web.server import application
from tests.browser_cases import violations
from tests.real_model import minilm, standard_library
from tests.tiny_models import saved

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
UNIT = "mlp.3.100"
TEXT = "def main(argv): return the quick brown fox"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("browser") / "my.index"
    corpus = standard_library("argparse.py", "ast.py", "textwrap.py")
    return indexer.build(model=minilm(), corpus=corpus, output=output, max_tokens=8000, panel=2)


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    with serving(index, "--model", minilm()) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of the index; at its end nothing was refused, wrong, or asked of another host."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    found, wrong = context.new_page(), []
    found.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith(_root(address)) else None,
    )
    found.goto(address)
    found.wait_for_selector("table")
    assert "token" not in found.url
    yield found
    context.close()
    assert wrong == []


def _root(address: str) -> str:
    return address.split("?")[0]


def _open(page: Any, address: str, path: str, wanted: str) -> None:
    page.goto(_root(address) + path)
    page.wait_for_selector(wanted)


def test_a_unit_shows_what_the_api_says(page: Any, address: str, index: Path) -> None:
    _open(page, address, f"#/u/{UNIT}", ".example")
    with indexer.open_index(index) as opened:
        top, counts = opened.top(UNIT).to_pylist(), opened.unit(UNIT).to_pylist()[0]
    assert page.locator("h1").inner_text() == UNIT
    assert f"{counts['count']:,}" in page.locator(".facts").inner_text()
    shown = page.locator(".examples").first.locator(".example .line").all_inner_texts()
    assert len(shown) == len(top)
    words = re.sub(r"\s", "", shown[0].replace("↵", ""))
    assert re.sub(r"\s", "", top[0]["token"].removeprefix("##")) in words
    # what is pointed at is told, and marked in the histogram
    page.hover(".example .token.peak")
    told = page.locator("#tip").inner_text()
    assert f"{top[0]['value']:.4g}" in told
    assert page.locator("svg.histogram .mark").get_attribute("visibility") == "visible"


def test_keys_walk_over_units_layers_and_tokens(page: Any, address: str) -> None:
    _open(page, address, f"#/u/{UNIT}?wrap=1", ".example")
    for key, name in (("ArrowRight", "mlp.3.101"), ("ArrowUp", "mlp.4.101"), ("ArrowLeft", "mlp.4.100")):
        page.keyboard.press(key)
        page.wait_for_selector(f"h1:text-is('{name}')")
    assert "wrap=1" in page.url
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("5/7")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text-is('mlp.5.7')")
    page.go_back()
    page.wait_for_selector("h1:text-is('mlp.4.100')")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")


def test_a_text_is_edited_and_its_units_change(page: Any, address: str, index: Path) -> None:
    from indexer.names import Key
    from indexer.web.live import Live, Model

    _open(page, address, f"#/text?pin={UNIT}", "textarea")
    page.fill("textarea", TEXT)
    page.wait_for_selector(".rare li")
    page.wait_for_selector(".pin .token")
    with indexer.open_index(index) as opened:
        ran = Live(opened, Model.of(opened, str(minilm()))).run(TEXT)
    place = int(np.argmax(ran.values[Key("mlp", 3)][1:-1, 100])) + 1
    page.hover(f".pin .token[data-place='{place}']")
    told = float(re.search(r"activation\s+(\S+)", page.locator("#tip").inner_text())[1])  # type: ignore[index]
    assert told == pytest.approx(float(ran.values[Key("mlp", 3)][place, 100]), rel=1e-3)
    first = page.locator(".rare").inner_text()
    page.fill("textarea", "completely different words about the sea")
    page.wait_for_function("before => document.querySelector('.rare')?.innerText !== before", arg=first)
    assert "sea" in page.url


def test_two_texts_are_compared(page: Any, address: str, index: Path) -> None:
    from indexer.names import Key
    from indexer.web.live import Live, Model

    other = TEXT.replace("brown", "old brown").replace("fox", "dog")
    _open(page, address, f"#/text?text={TEXT}&pin={UNIT}", ".rare li")
    page.get_by_role("button", name="Beside a second text").click()
    page.wait_for_selector(".pairs .word")
    assert page.locator(".word.different").count() == 0
    page.get_by_label("Second text").fill(other)
    page.wait_for_function("() => document.querySelectorAll('.word.different').length === 2")
    page.locator(".word.different").last.click()
    page.wait_for_selector(".units tbody tr")
    assert page.locator(".units q").all_inner_texts() == [" fox", " dog"]
    with indexer.open_index(index) as opened:
        live = Live(opened, Model.of(opened, str(minilm())))
        ran = [live.run(text) for text in (TEXT, other)]
    name, *cells = page.locator(".units tbody tr").first.locator("td").all_inner_texts()
    layer, unit = map(int, name.split(".")[1:])
    # both texts end with the token, and [SEP] behind it
    wanted = [float(one.values[Key("mlp", layer)][-2, unit]) for one in ran]
    shown = [float(cell.replace("+", "")) for cell in cells[:3]]
    assert shown == pytest.approx([*wanted, wanted[1] - wanted[0]], rel=2e-3)
    # the pinned unit, over both texts
    assert page.locator(".pin .line").count() == 2
    page.hover(".pin .line >> nth=1 >> .token >> nth=3")
    assert "in the first text" in page.locator("#tip").inner_text()
    told = page.url
    page.reload()
    page.wait_for_selector(".units tbody tr")
    assert (page.url, page.locator(".units tbody td").first.inner_text()) == (told, name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_by_everyone(page: Any, address: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for path, wanted in (
        (f"#/text?text={TEXT}&pin={UNIT}", ".pin .token"),
        (f"#/text?text={TEXT}&other={TEXT} jumps&pin={UNIT}", ".pin .token"),
        (f"#/u/{UNIT}", ".example"),
    ):
        _open(page, address, path, wanted)
        if path.startswith("#/u/"):
            page.get_by_label("Text", exact=True).fill(TEXT)
            page.wait_for_selector(".tried .token")
        assert violations(page) == [], path


def test_lists_searches_and_layers(page: Any, address: str) -> None:
    _open(page, address, "#/units?sort=kurtosis&where=layer%3E%3D2", "svg.spark rect")
    numbers = [
        float(text.replace(",", "")) for text in page.locator("tbody tr td:nth-child(4)").all_inner_texts()
    ]
    assert numbers == sorted(numbers, reverse=True)
    assert all(
        int(name.split(".")[1]) >= 2 for name in page.locator("tbody tr td:first-child").all_inner_texts()
    )
    _open(page, address, "#/search?token=self", "table")
    assert page.locator("tbody tr").count() > 0
    _open(page, address, "#/about", "dl")
    assert "minilm" in page.locator("main").inner_text().lower()


def test_a_mistake_is_one_line(page: Any, address: str) -> None:
    page.goto(_root(address) + "#/nowhere")
    page.wait_for_selector("[role=alert]")
    assert "no page" in page.locator("[role=alert]").inner_text()


def test_a_neuron_of_an_expert_has_both_its_names(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(" ".join(f"w{word % 90}" for word in range(300)))
    output = tmp_path / "my.index"
    indexer.build(
        model=saved(tmp_path / "model", "mixtral"), corpus=[tmp_path / "corpus.txt"], output=output,
        sites=("experts",), context=24, threads=1, panel=0,
    )  # fmt: skip
    with indexer.open_index(output) as opened, answering(application(Answers(opened), "token")) as address:
        entry = opened.manifest.layers[0]
        assert entry.experts is not None
        name = f"{entry.key}.{entry.units // entry.experts.number + 2}"
        page = browser.new_page()
        for asked in (name, f"{entry.key}.1:2"):
            page.goto(f"{address}#/u/{asked}")
            page.wait_for_selector(".title small")
            assert page.locator("h1").inner_text() == name
            assert page.locator(".title small").inner_text() == f"{entry.key}.1:2"
        page.close()


def test_a_unit_of_a_decoder_shows_what_that_read(browser: Any, tmp_path: Path) -> None:
    pairs = [{"de": f"w{one} w7 w8", "en": f"w{one} w5 w6 w{one + 1}"} for one in range(20, 40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    output = tmp_path / "my.index"
    indexer.build(
        model=saved(tmp_path / "model", "t5"), corpus=[tmp_path / "pairs.jsonl"], output=output,
        text_column="de", target_column="en", context=24, threads=1, panel=0,
    )  # fmt: skip
    with indexer.open_index(output) as opened, answering(application(Answers(opened), "token")) as address:
        page = browser.new_page()
        for stack, column in (("encoder", "de"), ("decoder", "en")):
            page.goto(f"{address}#/u/{stack}.mlp.1.3")
            page.wait_for_selector(f"h1:text-is('{stack}.mlp.1.3')")
            page.locator(".source").first.click()
            page.wait_for_function("() => (document.querySelector('pre.document')?.innerText ?? '…') !== '…'")
            best = opened.top(f"{stack}.mlp.1.3", k=1).to_pylist()[0]
            row = opened.documents([best["document"]]).to_pylist()[0]["row"]
            assert page.locator("pre.document").inner_text() == pairs[row][column]
        page.close()
