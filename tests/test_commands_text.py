"""Corpus text on a terminal: harmless, cut to size, the peak marked."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from indexer.display.text import Window, concordance, marked
from indexer.index.harmless import literal, one_line, visible
from indexer.index.spelled import spell

DANGEROUS = ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_visible_names_what_it_hides() -> None:
    assert visible("plain text, äöü 日本 🙂") == "plain text, äöü 日本 🙂"
    assert visible("a\nb\tc") == "a↵b⇥c"
    assert visible("\x1b[31m\x07\x00\x7f\x9b") == r"\x1b[31m\x07\x00\x7f\x9b"
    assert visible("\u202egnp.exe\u2066\u200b\ufeff\u2028") == r"\u202egnp.exe\u2066\u200b\ufeff\u2028"
    assert visible("\U000e0041") == r"\U000e0041"


@given(st.text(st.characters(categories=None), max_size=60))
def test_nothing_dangerous_is_left(text: str) -> None:
    for shown in (visible(text), one_line(text)):
        assert not [c for c in shown if unicodedata.category(c) in DANGEROUS]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([" the", " im", "port", "\n"], " the import\n"),
        (["the", "im", "##port", "ing"], "the import ing"),
        (["a", "##", "b"], "a ## b"),
        ([" the", " end"], "the end"),
        (["[CLS]", "if", "x", "=", "=", "1"], "[CLS] if x = = 1"),
        ([], ""),
    ],
)
def test_spell_shares_the_text_out(tokens: list[str], text: str) -> None:
    shares = spell(tokens, text)
    assert "".join(shares) == text
    assert len(shares) == len(tokens)


@pytest.mark.parametrize(
    ("tokens", "text", "shares"),
    [
        (["a", " \ufffd", "\ufffd", "\ufffd", " b", " c"], "a 🙂 b c", ("a", " 🙂", "", "", " b", " c")),
        (["\ufffd", "x", "y"], "\ufffdxy", ("\ufffd", "x", "y")),
        (["x", "\ufffd", "\ufffd"], "xé", ("x", "", "é")),
        (["x", "\ufffd"], "xé", ("x", "é")),
    ],
)
def test_spell_keeps_a_split_character_whole(tokens: list[str], text: str, shares: tuple[str, ...]) -> None:
    assert spell(tokens, text) == shares


@given(st.lists(st.text("ab# \ufffd", max_size=3), max_size=8), st.text("ab# é", max_size=12))
def test_spell_always_gives_the_text_back(tokens: list[str], text: str) -> None:
    shares = spell(tokens, text)
    assert len(shares) == len(tokens)
    assert "".join(shares) == (text if tokens else "")


PIECES = ("The", " first", " word", " and", " the", " last", " one")


def test_marked_whole() -> None:
    window = Window(PIECES, (0.0, 0.1, 0.2, 3.0, 0.0, 0.0, 0.0), 3)
    assert marked(window).plain == "The first word «and» the last one"
    assert marked(window, colour=False).plain == "The first word «and» the last one"


def test_concordance_puts_the_peaks_below_each_other() -> None:
    windows = [Window(PIECES, (0.0,) * 7, peak) for peak in (3, 6, 0)]
    assert [line.plain for line in concordance(windows, 20, colour=False)] == [
        "…rst word «and» the…",
        "…the last «one»",
        "          «The» fir…",
    ]
    assert [line.plain for line in concordance(windows[2:], 20, colour=False)] == ["«The» first word an…"]
    assert concordance([], 20) == []


TEXTS = st.text(st.characters(categories=None), max_size=8)


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=12), max_size=4), st.integers(0, 11), st.integers(1, 60))
def test_concordance_fits_whatever_the_text(texts: list[list[str]], peak: int, width: int) -> None:
    windows = [Window(tuple(pieces), (1.0,) * len(pieces), peak % len(pieces)) for pieces in texts]
    for line in concordance(windows, width):
        assert cell_len(line.plain) <= width
        assert not [c for c in line.plain if unicodedata.category(c) in DANGEROUS]


def test_shades_follow_the_activation() -> None:
    styled = marked(Window(("a", " b", " c", " d"), (1.0, 4.0, 10.0, -3.0), 2))
    colours = {styled.plain[span.start : span.end]: span.style for span in styled.spans}
    assert "a" not in colours or not colours["a"].color  # type: ignore[union-attr]
    assert colours[" b"].color is not None  # type: ignore[union-attr]
    assert colours["«c»"].reverse  # type: ignore[union-attr]
    assert " d" not in colours or not colours[" d"].color  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" def", '" def"'), ("\n", r'"\n"'), ("", '""'), (" ", '" "'), ("a  b", '"a  b"'), ("x\t", r'"x\t"'),
        (chr(34), r'"\""'),
        ("def", "def"), ("a b", "a b"), ('say "x"', 'say "x"'), (' "', r'" \""'),
        ("\\n", "\\n"), ("\\\n", r'"\\\n"'),
        ("\x1b[2J", r'"\x1b[2J"'), ("\u202ex", r'"\u202ex"'), ("日本 ", '"日本 "'), ("NULL", "NULL"),
    ],
)  # fmt: skip
def test_a_cell_shows_blanks_and_line_breaks(text: str, shown: str) -> None:
    assert literal(text) == shown


@given(st.text(st.characters(categories=None), max_size=12))
def test_a_cell_is_one_harmless_line(text: str) -> None:
    shown = literal(text)
    assert visible(shown) == shown
    assert shown.splitlines() == [shown]
