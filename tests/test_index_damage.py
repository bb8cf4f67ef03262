"""`verify` finds every change of an index: a bit anywhere, a file cut, exchanged, added, or taken away."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.verify import verify_index

TRIALS = int(os.environ.get("DAMAGE_TRIALS", "80"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = Size(layers=2, units=24, top=4, bottom=3, window=8, vocabulary=300, panel=3)
    return write_synthetic(tmp_path_factory.mktemp("index") / "a.index", size)


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "a.index")


def test_a_flipped_bit_anywhere_is_found(index: Path) -> None:
    verify_index(index)
    files = sorted(path for path in index.rglob("*") if path.is_file())
    chosen = random.Random(0)
    for trial in range(TRIALS):
        # every file in turn, for most bytes are in few of them
        path = files[trial % len(files)]
        content = path.read_bytes()
        bit = chosen.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(IndexerError) as error:
            verify_index(index)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    verify_index(index)


def _cut(index: Path) -> None:
    path = index / "examples" / "mlp.1.parquet"
    path.write_bytes(path.read_bytes()[:-7])


def _empty(index: Path) -> None:
    (index / "histograms" / "mlp.0.parquet").write_bytes(b"")


def _exchange(index: Path) -> None:
    first, second = (index / "sums" / f"mlp.{layer}.parquet" for layer in (0, 1))
    aside = index.parent / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _foreign(index: Path) -> None:
    (index / "examples" / "mlp.7.parquet").write_bytes(b"PAR1")


def _hidden(index: Path) -> None:
    (index / ".notes").write_text("mine")


def _folder(index: Path) -> None:
    (index / "more").mkdir()


def _link(index: Path) -> None:
    path = index / "units.parquet"
    path.rename(index.parent / "units.parquet")
    path.symlink_to(index.parent / "units.parquet")


def _linked_folder(index: Path) -> None:
    (index / "sums").rename(index.parent / "sums")
    (index / "sums").symlink_to(index.parent / "sums")


def _pipe(index: Path) -> None:
    (index / "documents.parquet").unlink()
    os.mkfifo(index / "documents.parquet")


def _gone(index: Path) -> None:
    (index / "views.sql").unlink()


def _other(index: Path) -> None:
    size = Size(layers=2, units=24, top=4, bottom=3, window=8, vocabulary=300)
    other = write_synthetic(index.parent / "other.index", size, seed=1)
    shutil.copy(other / "histograms" / "mlp.0.parquet", index / "histograms")


def _edited(index: Path) -> None:
    path = index / "manifest.json"
    path.write_text(path.read_text().replace('"synthetic"', '"synthetiC"', 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "examples/mlp.1.parquet has"),
        (_empty, "histograms/mlp.0.parquet has 0 bytes"),
        (_exchange, "sums/mlp."),
        (_foreign, "examples/mlp.7.parquet is not of this index"),
        (_hidden, ".notes is not of this index"),
        (_folder, "more is not of this index"),
        (_link, "units.parquet is not a plain file"),
        (_linked_folder, "sums is not of this index"),
        (_pipe, "documents.parquet is not a plain file"),
        (_gone, "views.sql is missing"),
        (_other, "histograms/mlp.0.parquet"),
        (_edited, "manifest.json is not the one that was written"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_done_to_a_file_is_found(damage: Callable[[Path], None], said: str, index: Path) -> None:
    damage(index)
    with pytest.raises(IndexerError, match=said.replace(".", r"\.")):
        verify_index(index)


def test_an_edited_manifest_is_refused_at_opening(index: Path) -> None:
    _edited(index)
    with pytest.raises(IndexerError, match="its SHA-256 differs"):
        indexer.open_index(index)
