"""Partial indexes on object storage, through fsspec: put there whole, fetched whole, the manifest last."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest, sha256

MANIFEST = "manifest.json"


class Storage:
    """A folder at an fsspec URL, or none where the shards lie beside the output."""

    def __init__(self, url: str | None) -> None:
        """Raises IndexerError where fsspec does not know the URL's scheme or lacks its package."""
        self.url = url
        self.remote = url is not None
        if url is None:
            return
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise IndexerError(f"--storage {url}: {' '.join(str(error).split())}") from error
        self._root = str(root).rstrip("/")

    def place(self, name: str) -> str:
        """The URL of an index."""
        return f"{str(self.url).rstrip('/')}/{name}"

    @contextmanager
    def kept(self, index: Path) -> Iterator[None]:
        """Put what the block builds at `index` there, under its name.

        Within the block the manifest of the index that is there already is at `index`, so that a build can
        tell whether it is the one that is asked for; where it is left as it is, nothing is put.
        """
        name = index.name
        with self._in_one_line():
            there = bool(self._files.exists(f"{self._root}/{name}/{MANIFEST}"))
            if there:
                self._fetch(name, MANIFEST, index)
        before = sha256(index / MANIFEST) if there else None
        try:
            yield
        except IndexerError as error:
            raise IndexerError(str(error).replace(str(index), self.place(name))) from error
        if sha256(index / MANIFEST) != before:
            self.put(index)

    def put(self, index: Path) -> None:
        """Copy an index there; the manifest goes first and comes last, so that an index in part is none."""
        place = f"{self._root}/{index.name}"
        files = [*(file.path for file in read_manifest(index).files), MANIFEST]
        with self._in_one_line():
            if self._files.exists(f"{place}/{MANIFEST}"):
                self._files.rm_file(f"{place}/{MANIFEST}")
            for file in files:
                self._files.makedirs(f"{place}/{file}".rsplit("/", 1)[0], exist_ok=True)
                self._files.put_file(str(index / file), f"{place}/{file}")

    @contextmanager
    def fetched(self, indexes: Sequence[Path]) -> Iterator[list[Path]]:
        """The indexes on this machine: as they are where they lie here, else copies, checked, for a while."""
        if not self.remote:
            yield list(indexes)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield [self._get(index.name, Path(folder)) for index in indexes]

    def _get(self, name: str, folder: Path) -> Path:
        target = folder / name
        with self._in_one_line():
            self._fetch(name, MANIFEST, target)
            for file in read_manifest(target).files:
                self._fetch(name, file.path, target)
                if sha256(target / file.path) != file.sha256:
                    raise IndexerError(f"{self.place(name)}: {file.path} is not the file that was put there")
        return target

    def _fetch(self, name: str, file: str, target: Path) -> None:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(f"{self._root}/{name}/{file}", str(target / file))

    @contextmanager
    def _in_one_line(self) -> Iterator[Any]:
        try:
            yield
        except IndexerError:
            raise
        except Exception as error:
            # every kind of storage has its own errors
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IndexerError(f"--storage {self.url}: {reason}") from error
