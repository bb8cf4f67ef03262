"""Mistakes at the command line: one clear line on stderr, exit status 2, nothing half-written."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from indexer_kernels import Statistics
from typer.testing import CliRunner

from benchmarks.synthetic import Size, write_synthetic
from indexer.commands import app
from tests.real_model import minilm

MODEL = str(minilm())


def failing(*arguments: str | Path) -> str:
    """The one line that the command says before it ends with status 2; progress lines come before it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="neuron-indexer")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with one good text in it."""
    (tmp_path / "good.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    return tmp_path


def builds(
    folder: Path, *options: str | Path, model: str | Path = MODEL, corpus: str | Path | None = None
) -> list[str]:
    text = folder / "good.txt" if corpus is None else corpus
    return [str(word) for word in ("build", model, text, "--output", folder / "out.index", *options)]


def write(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


BAD_CORPUS = {
    "missing": (lambda folder: folder / "nowhere.txt", ["nowhere.txt"]),
    "empty": (write("empty.txt", b""), ["no text"]),
    "broken gzip": (write("a.jsonl.gz", gzip.compress(b'{"text": "hello"}\n' * 50)[:-20]), ["a.jsonl.gz"]),
    "broken parquet": (write("a.parquet", b"PAR1 this is no parquet PAR1"), ["a.parquet"]),
    "no such column": (
        write("a.jsonl", b'{"title": "x", "body": "y"}\n'),
        ["a.jsonl", '"text"', "body", "--text-column"],
    ),
    "invalid UTF-8": (write("bad.txt", b"hello \xff world"), ["bad.txt", "6", "--on-bad-text"]),
    "not JSON": (write("a.jsonl", b'{"text": "x"}\n{"text": \n'), ["a.jsonl", "2"]),
}


@pytest.mark.parametrize("case", BAD_CORPUS)
def test_bad_corpus(folder: Path, case: str) -> None:
    make, words = BAD_CORPUS[case]
    line = failing(*builds(folder, corpus=make(folder)))
    assert all(word in line for word in words), line
    assert not list(folder.glob("*.index*")) + list(folder.glob(".out*"))


BAD_OPTIONS = {
    "layer out of range": (["--layers", "4-6"], ["6", "0-5"]),
    "layers not a range": (["--layers", "two"], ["two"]),
    "negative k": (["--top", "-1"], ["-1"]),
    "context too long": (["--context", "4096"], ["4096", "512"]),
    "unknown dtype": (["--dtype", "int8"], ["int8"]),
    "unknown kernels": (["--kernels", "fast"], ["fast", "cpp"]),
    "triton without a GPU": (["--kernels", "triton"], ["triton"]),
    "unknown device": (["--device", "tpu"], ["tpu"]),
    "wrong projection": (["--output-projection", "nothing.*.here"], ["nothing.*.here"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(folder: Path, case: str) -> None:
    options, words = BAD_OPTIONS[case]
    line = failing(*builds(folder, *options))
    assert all(word in line for word in words), line
    assert not list(folder.glob("*.index*")) + list(folder.glob(".out*"))


def test_missing_model(folder: Path) -> None:
    assert "no-model" in failing(*builds(folder, model=folder / "no-model"))


def test_model_without_safetensors(folder: Path) -> None:
    model = folder / "model"
    shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.safetensors"))
    (model / "pytorch_model.bin").write_bytes(b"pickled")
    assert "safetensors" in failing(*builds(folder, model=model))


def test_existing_output_is_kept(folder: Path) -> None:
    (folder / "out.index").mkdir()
    (folder / "out.index" / "mine.txt").write_text("mine")
    assert "--overwrite" in failing(*builds(folder))
    assert "not an index" in failing(*builds(folder, "--overwrite"))
    assert (folder / "out.index" / "mine.txt").read_text() == "mine"


def test_output_in_a_missing_folder(folder: Path) -> None:
    line = failing("build", MODEL, folder / "good.txt", "--output", folder / "no" / "out.index")
    assert "does not exist" in line


def test_output_that_cannot_be_written(folder: Path) -> None:
    # a file where a folder should be stops every user, root too
    (folder / "file").write_text("")
    line = failing("build", MODEL, folder / "good.txt", "--output", folder / "file" / "out.index")
    assert "file" in line


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("index") / "a.index", Size(units=16, top=3, bottom=3))


@pytest.mark.parametrize("name", ["mlp.0.99999", "mlp.7.0", "heads.0.0", "mlp.0", "mlp.x.0"])
def test_unknown_unit(index: Path, name: str) -> None:
    for command in ("top", "bottom", "histogram", "unit"):
        assert name.split(".")[0] in failing(command, index, name)


@pytest.mark.parametrize(
    "query", ["SELECT nothing FROM units", "SELEC", "DROP VIEW units", "COPY units TO '/tmp/x.csv'"]
)
def test_bad_sql(index: Path, query: str) -> None:
    failing("sql", index, query)


@pytest.mark.parametrize("command", [["top", "mlp.0.0"], ["sql", "SELECT 1"], ["info"], ["verify"]])
def test_foreign_or_damaged_index(index: Path, tmp_path: Path, command: list[str]) -> None:
    name, *rest = command
    assert "nowhere.index" in failing(name, tmp_path / "nowhere.index", *rest)
    (tmp_path / "foreign").mkdir()
    assert "foreign" in failing(name, tmp_path / "foreign", *rest)
    damaged = tmp_path / "damaged.index"
    shutil.copytree(index, damaged)
    (damaged / "units.parquet").write_bytes((damaged / "units.parquet").read_bytes()[:-50])
    assert "units.parquet" in failing(name, damaged, *rest)
    newer = tmp_path / "newer.index"
    shutil.copytree(index, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    assert "99" in failing(name, newer, *rest)


def test_a_gpu_that_has_no_room_for_the_states_any_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Statistics, device: torch.device, windows: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Statistics, "to_device", full)
    said = failing(*builds(folder))
    assert "statistics: another program took what was free; try again, or choose fewer --layers" in said


def test_what_a_build_needs_is_named_where_it_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ("torch", "psutil")
    monkeypatch.setattr("indexer.errors.find_spec", lambda name: None if name in missing else name)
    assert failing(*builds(folder)) == (
        "error: building an index needs torch, psutil: pip install torch psutil"
    )
