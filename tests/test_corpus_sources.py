"""Which files a source stands for, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from indexer.corpus import Corpus
from indexer.corpus.hub import HubSource, Part, parse
from indexer.errors import IndexerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.md",
        "Z.rst",
        "sub/c.py",
        "sub/.hidden",
        ".git/config",
        "sub/d.jsonl",
        "e.csv.gz",
    ):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return tmp_path / "corpus"


def names(corpus: Corpus, folder: Path) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in corpus.files]


def test_a_folder_is_walked_in_order_of_names_without_hidden_files(folder: Path) -> None:
    corpus = Corpus([str(folder)])
    assert names(corpus, folder) == ["Z.rst", "a.md", "b.txt", "e.csv.gz", "sub/c.py", "sub/d.jsonl"]
    assert [file.ordinal for file in corpus.files] == list(range(6))
    assert [file.kind for file in corpus.files] == ["text", "text", "text", "csv", "text", "jsonl"]
    assert [file.compression for file in corpus.files][3] == "gzip"
    assert corpus.bytes == 6 * 4


def test_sources_keep_the_order_given_and_a_file_its_first_place(folder: Path) -> None:
    corpus = Corpus([str(folder / "sub" / "c.py"), str(folder / "*.md"), str(folder)])
    assert names(corpus, folder) == ["sub/c.py", "a.md", "Z.rst", "b.txt", "e.csv.gz", "sub/d.jsonl"]
    assert [file.named for file in corpus.files] == [True, False, False, False, False, False]


@pytest.mark.parametrize(("pattern", "expected"), [
    ("**/*.py", ["sub/c.py"]),
    ("*.[mt]*", ["a.md", "b.txt"]),
    ("*", ["Z.rst", "a.md", "b.txt", "e.csv.gz", "sub/c.py", "sub/d.jsonl"]),
    ("**", ["Z.rst", "a.md", "b.txt", "e.csv.gz", "sub/c.py", "sub/d.jsonl"]),
])  # fmt: skip
def test_globs_are_sorted_by_path(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(Corpus([str(folder / pattern)]), folder) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder: Path) -> None:
    (folder / "[b].txt").write_text("brackets")
    assert names(Corpus([str(folder / "[b].txt")]), folder) == ["[b].txt"]


def test_links_to_files_are_followed_and_loops_are_not(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "sub" / "dangling").symlink_to(folder / "nowhere")
    (folder / "sub" / "elsewhere.txt").symlink_to(folder / "b.txt")
    found = names(Corpus([str(folder / "sub")]), folder)
    assert found == ["sub/c.py", "sub/d.jsonl", "sub/elsewhere.txt"]
    # with two links of this kind, glob's own `**` goes on for ever
    (folder / "sub" / "self").symlink_to(".")
    assert names(Corpus([str(folder / "sub" / "**")]), folder) == found
    assert names(Corpus([str(folder / "**" / "*.py")]), folder) == ["sub/c.py"]


def test_a_glob_of_any_folders_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [file.path for file in Corpus(["**/*.[pm]*"]).files] == ["a.md", "sub/c.py"]
    assert [file.path for file in Corpus(["s*/**/c.py"]).files] == ["sub/c.py"]


def test_what_is_no_regular_file_is_left_out_or_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "pipe" not in names(Corpus([str(folder)]), folder)
    with pytest.raises(IndexerError, match="pipe: neither a regular file nor a folder"):
        Corpus([str(folder / "pipe")])


def test_a_name_that_is_not_unicode_is_shown_as_unicode(folder: Path) -> None:
    path = os.fsencode(folder) + b"/\xff.txt"
    try:
        Path(os.fsdecode(path)).write_text("text")
    except OSError:
        pytest.skip("this file system takes no such name")
    corpus = Corpus([os.fsdecode(path)])
    assert corpus.files[0].source.endswith("\ufffd.txt")
    assert [document.row for document in corpus.documents()] == [0]


@pytest.mark.parametrize(("sources", "message"), [
    (["missing.txt"], "corpus source missing.txt: no such file or directory; name a file"),
    (["missing/*.txt"], r"corpus source missing/\*.txt: no file matches this glob"),
    (["empty"], "corpus folder empty: no file in it"),
    (["nul\0byte"], "embedded null byte; name a file"),
    (["s3://bucket/key"], "s3://bucket/key: no scheme that is known"),
    (["hf://datasets/one/two/three/four"], "write hf://datasets/OWNER/NAME"),
    (["hf://datasets/owner/name/sub/readme.txt"], "sub/readme.txt is no file of records"),
    (["hf://datasets/owner/name:train[:10%]"], r"train\[:10%\] is no split; write train, train\+test"),
    (["packed.parquet.gz"], "packed.parquet.gz: Parquet in gzip is not read"),
])  # fmt: skip
def test_sources_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed.parquet.gz").write_bytes(b"x")
    with pytest.raises(IndexerError, match=message) as caught:
        Corpus(sources)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "expected"), [
    ("owner/name", HubSource("owner/name", None, None, None, (Part("train"),))),
    ("owner/name:test", HubSource("owner/name", None, None, None, (Part("test"),))),
    ("owner/name/en", HubSource("owner/name", None, "en", None, (Part("train"),))),
    ("owner/name@v1.0/en.2:dev", HubSource("owner/name", "v1.0", "en.2", None, (Part("dev"),))),
    ("owner/name@refs/convert/x", HubSource("owner/name", "refs/convert/x", None, None, (Part("train"),))),
    ("owner/name@refs/pr/7/en", HubSource("owner/name", "refs/pr/7", "en", None, (Part("train"),))),
    ("owner/name/en/a-0.parquet", HubSource("owner/name", None, None, "en/a-0.parquet", (Part("train"),))),
    ("owner/name/a.jsonl.gz", HubSource("owner/name", None, None, "a.jsonl.gz", (Part("train"),))),
    ("owner/name:train[:3]+test[2:]",
     HubSource("owner/name", None, None, None, (Part("train", 0, 3), Part("test", 2)))),
])  # fmt: skip
def test_hub_sources(source: str, expected: HubSource) -> None:
    assert parse("hf://datasets/" + source) == expected
