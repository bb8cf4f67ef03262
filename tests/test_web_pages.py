"""All pages in a browser, of an index made to harm: nothing runs or is asked elsewhere, all can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

import indexer
from benchmarks.browser import CHROMIUM, answering, chromium
from benchmarks.synthetic import Size, write_synthetic
from indexer.web.answers import Answers
from indexer.web.server import application, several
from indexer.web.site import write_site
from tests.browser_cases import HOSTILE, violations, write_hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
TOKEN = "a-token"
SQL = "SELECT unit_name(site, layer, unit) AS unit, token, text, tokens FROM examples LIMIT 9"
LIGHT = ("#/", "#/compare?a=mlp.0.1&b=mlp.1.2", f"#/sql?q={quote(SQL)}")
DARK = ("#/u/mlp.1.3", "#/about")
FURTHER = (
    "#/units", "#/u/mlp.0.0?wrap=1&width=6", "#/compare", f"#/search?token={quote(HOSTILE[0])}", "#/text",
    "#/nowhere", "#/search?pattern=a&least=0.5", "#/units?sort=mean&where=unit%3E%3D1&at=0badc0de",
    "#/u/mlp.1.1?counts=linear&side=top",
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield write_hostile(tmp_path_factory.mktemp("pages") / "hostile.index", monkeypatch)


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    with indexer.open_index(index) as opened, answering(application(Answers(opened), TOKEN)) as found:
        yield found


@pytest.fixture(scope="module")
def static(index: Path) -> Iterator[str]:
    app = Starlette()
    app.mount("/", StaticFiles(directory=write_site(index, index.with_name("site")), html=True))
    with answering(app) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Watched:
    """A page, and what is wrong about it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address, self.wrong = address, list[str]()
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        # refusals of the policy, too, are messages
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(f"{address}?token={TOKEN}")
        # what comes late would be taken for the page that is opened next
        self.page.wait_for_selector("main h1")

    def open(self, path: str) -> None:
        self.page.evaluate("document.getElementById('main').replaceChildren()")
        self.page.goto(self.address + path)
        self.page.wait_for_selector("main h1")
        # lists of units are completed once they are there
        if path.startswith("#/units"):
            self.page.wait_for_selector("svg.spark")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asked for {url}")


@pytest.mark.parametrize(
    "of_each_scheme",
    [
        {"light": LIGHT, "dark": DARK},
        pytest.param({"light": DARK + FURTHER, "dark": LIGHT + FURTHER}, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_pages_can_be_read_by_everyone_and_ask_nothing_elsewhere(
    browser: Any, address: str, of_each_scheme: dict[str, tuple[str, ...]]
) -> None:
    found = []
    for scheme, paths in of_each_scheme.items():
        watched = Watched(browser, address, color_scheme=scheme, reduced_motion="reduce")
        for path in paths:
            watched.open(path)
            found += [(scheme, path, *one) for one in violations(watched.page)]
        assert watched.wrong == []
        assert watched.page.evaluate("window.ran") is None
    assert found == []


def test_hostile_words_in_an_address_run_nothing(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    for text in HOSTILE:
        name = quote(text, safe="")
        for path in (
            f"#/search?text={name}", f"#/{name}", f"#/u/{name}", f"#/units?where={name}",
            f"#/about?at={name}", f"#/u/mlp.1.3?band={name}&width={name}&side={name}",
            f"#/compare?a=mlp.0.1&ain={name}&b=mlp.1.1",
        ):  # fmt: skip
            watched.page.evaluate("path => { location.hash = path }", path)
    watched.open(f"#/compare?a={quote(HOSTILE[0])}&b={quote(HOSTILE[1])}")
    watched.open("#/u/mlp.0.1")
    watched.page.hover(".example .token.peak")
    assert any(text[:20] in watched.page.locator("#tip").inner_text() for text in HOSTILE)
    assert watched.page.evaluate("window.ran") is None
    # the server refuses names that are none, and the browser says so
    assert {line for line in watched.wrong if "400" not in line and "404" not in line} == set()


def test_what_is_set_on_a_unit_stays_in_its_address(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    watched.open("#/u/mlp.1.3")
    page, tokens = watched.page, watched.page.locator(".example").first.locator(".token")
    whole = tokens.count()
    # the slider goes token by token, and nothing is asked for again
    page.locator("input[type=range]").fill("3")
    assert "width=3" in page.url
    assert tokens.count() == 3 + 1 + 1 < whole
    logarithmic = page.locator("rect").nth(3).get_attribute("height")
    page.get_by_label("linear counts").check()
    page.wait_for_url("**counts=linear**")
    assert "width=3" in page.url
    page.wait_for_function(
        "height => document.querySelectorAll('rect')[3].getAttribute('height') !== height", arg=logarithmic
    )
    for key, wanted in (("s", "side=top"), ("s", "side=samples"), ("c", "?counts=linear&side=samples")):
        page.keyboard.press(key)
        page.wait_for_function("wanted => location.hash.endsWith(wanted)", arg=wanted)
    page.wait_for_function("() => document.querySelectorAll('.examples').length === 1")
    page.get_by_role("button", name="keep it in the address").click()
    page.wait_for_function("() => location.hash.includes('at=')")
    assert not page.locator("#version").is_visible()
    watched.open("#/u/mlp.1.3?at=0badc0de")
    assert "version 0badc0de of the index" in page.locator("#version").inner_text()
    # the page's answer, as it stands at the address of the link
    href = page.get_by_role("link", name="unit/mlp.1.3 as JSON").get_attribute("href")
    assert page.request.get(address + href).json()["name"] == "mlp.1.3"
    assert watched.wrong == []


def test_two_indexes_are_compared(browser: Any, index: Path, tmp_path: Path) -> None:
    # hostile, too, while the fixture lasts
    size = Size(units=5, top=3, bottom=2, samples=1, window=16, vocabulary=60, documents=200)
    with (
        indexer.open_index(index) as one,
        indexer.open_index(write_synthetic(tmp_path / "b.index", size, seed=1)) as other,
    ):
        served = {"a": one, "b": other}
        apps = {name: application(Answers(of), TOKEN, None, served, name) for name, of in served.items()}
        with answering(several(apps)) as address:
            watched = Watched(browser, f"{address}a/")
            watched.open("#/compare?with=b")
            watched.page.wait_for_selector("svg.spark path")
            assert violations(watched.page) == []
            rows = watched.page.locator("tbody tr")
            assert rows.count() == 10
            name, far, *_ = rows.first.locator("td").all_inner_texts()
            rows.first.locator("a").click()
            watched.page.wait_for_selector("svg.histogram path")
            assert f"Distance {far}." in watched.page.locator("main").inner_text()
            assert watched.page.locator(".side > h2").all_inner_texts() == [f"{name} in a", f"{name} in b"]
            assert violations(watched.page) == []
            assert [line for line in watched.wrong if not line.startswith(f"asked for {address}b/api/")] == []


def test_addresses_of_the_documentation(browser: Any, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/pages.md").read_text()
    addresses = [found.replace("&amp;", "&") for found in re.findall(r"`(#/[^`]*)`", page)]
    answers = re.findall(r"`(api/[^`]*)`", page)
    assert len(addresses) > 15
    assert len(answers) > 5
    size = Size(layers=5, units=128, top=5, bottom=3, samples=1, window=16, vocabulary=60, documents=200)
    mine, another = (write_synthetic(tmp_path / name, size, seed=len(name)) for name in ("my", "other"))
    with indexer.open_index(mine) as one, indexer.open_index(another) as other:
        served = {"my": one, "other": other}
        apps = {name: application(Answers(of), TOKEN, None, served, name) for name, of in served.items()}
        with answering(several(apps)) as address:
            watched = Watched(browser, f"{address}my/")
            for path in addresses:
                watched.page.goto("about:blank")
                watched.page.goto(f"{address}my/{path}")
                watched.page.wait_for_selector("main h1")
                alerts = watched.page.locator("[role=alert]").all_inner_texts()
                assert alerts == [], path
                assert watched.page.locator("#version").is_visible() == ("at=" in path), path
            for path in answers:
                assert watched.page.request.get(f"{address}my/{path}").status == 200, path
    assert [line for line in watched.wrong if "/api/" not in line] == []


def test_a_narrow_window_shows_whole_pages(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    watched.page.set_viewport_size({"width": 390, "height": 800})
    for path in (*LIGHT, *DARK, "#/units", "#/search?text=e", "#/text"):
        watched.open(path)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        tops = watched.page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.offsetTop)")
        assert len(set(tops[:7])) <= 2, path


def test_the_jump_goes_anywhere(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    for words, title in (("mlp.1.2", "mlp.1.2"), ("mlp.1", "Units 5"), ("1/4", "mlp.1.4"), ("a b", "Search")):
        watched.page.keyboard.press("/")
        watched.page.keyboard.type(words)
        watched.page.keyboard.press("Enter")
        watched.page.wait_for_function(
            "title => document.querySelector('h1')?.innerText === title", arg=title
        )
    assert watched.wrong == []


def test_a_histogram_is_saved_as_a_figure(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    watched.open("#/u/mlp.1.3")
    bars = watched.page.locator("svg.histogram rect").count()
    found = {}
    for kind in ("SVG", "PNG"):
        with watched.page.expect_download() as download:
            watched.page.get_by_role("button", name=f"Save as {kind}").click()
        assert download.value.suggested_filename == f"mlp.1.3.{kind.lower()}"
        found[kind] = Path(download.value.path()).read_bytes()
    coloured = found["SVG"].count(b'fill="rgb(') - found["SVG"].count(b"<text")
    assert found["SVG"].count(b"<rect") == bars == coloured > 0
    assert found["PNG"].startswith(b"\x89PNG")
    assert watched.wrong == []


def test_a_cut_network_is_told(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    watched.page.wait_for_selector("table")
    watched.context.set_offline(True)
    watched.page.evaluate("location.hash = '#/u/mlp.0.1'")
    watched.page.wait_for_selector("[role=alert]")
    assert "does not answer" in watched.page.locator("[role=alert]").inner_text()
    watched.context.set_offline(False)
    watched.page.evaluate("location.hash = '#/u/mlp.0.2'")
    watched.page.wait_for_selector(".example")


def test_the_static_pages_show_the_same(browser: Any, address: str, static: str) -> None:
    seen, ranges = [], list[str]()
    for place in (address, static):
        watched = Watched(browser, place)
        watched.page.on(
            "response", lambda response: ranges.append(response.url) if response.status == 206 else None
        )
        watched.open("#/u/mlp.1.3")
        shown = watched.page.locator(".examples").all_inner_texts()
        seen.append(
            (watched.page.locator(".facts").inner_text(), shown, watched.page.locator("rect").count())
        )
        assert watched.wrong == []
        assert watched.page.evaluate("window.ran") is None
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 3
    assert 1 <= len(ranges) <= 12
    watched.open("#/u/mlp.1.3?embed=hist,top2")
    assert watched.page.locator(".example").count() == 2
    assert watched.page.locator("svg.histogram").is_visible()
    assert not watched.page.locator("header").is_visible()
    watched.open("#/units")
    assert watched.page.locator("tbody .chip").count() > 0
    watched.open("#/search")
    assert "neuron-indexer serve" in watched.page.locator("main").inner_text()
    watched.page.goto(static + "#/u/mlp.1.3")
    watched.page.wait_for_selector(".source")
    watched.page.locator(".source").first.click()
    watched.page.wait_for_selector(".document")
    assert re.search(
        "neuron-indexer serve to read whole documents", watched.page.locator(".document").inner_text()
    )
