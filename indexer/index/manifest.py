"""manifest.json: what an index is made of and where it came from.

Written last; without it there is no index.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.files import DAMAGED

# what the build says about itself, in the order of the file; the writer adds the rest
SECTIONS = ("model", "tokenizer", "corpus", "configuration", "totals", "software")
# a manifest lists files and layers; one larger than this was made to harm
_MOST_BYTES = 256 << 20


class FileEntry(BaseModel):
    """One file of the index."""

    model_config = ConfigDict(frozen=True)

    path: str
    rows: int | None = Field(default=None, ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or str(parts) != path or path == ".":
            raise ValueError("must be a path inside the index")
        return path


class LayerEntry(BaseModel):
    """One indexed layer."""

    model_config = ConfigDict(frozen=True)

    site: str
    layer: int = Field(ge=0)
    units: int = Field(ge=0)
    count: int = Field(ge=0)


class Manifest(BaseModel):
    """The manifest as Python reads it. Sections that the build describes itself with are free JSON."""

    model_config = ConfigDict(frozen=True)

    format: Literal["neuron activation index"]
    version: int
    created: str
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any] | list[Any]
    configuration: dict[str, Any]
    totals: dict[str, Any]
    software: dict[str, Any]
    layers: list[LayerEntry]
    files: list[FileEntry]

    @property
    def bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The entry of one file, None where the index has no such file."""
        return next((file for file in self.files if file.path == path), None)

    def layer(self, site: str, layer: int) -> LayerEntry | None:
        """The entry of one layer, None where it was not indexed."""
        return next((entry for entry in self.layers if (entry.site, entry.layer) == (site, layer)), None)

    def to_json(self) -> str:
        """The text of manifest.json."""
        text = json.dumps(self.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # file names on disk may hold any bytes, which Python passes on as lone surrogates
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_manifest(index: Path) -> Manifest:
    """Read the manifest of an index.

    Raises IndexerError, one line, where `index` is not one that can be read.
    """
    try:
        size = (index / schema.MANIFEST).stat().st_size
        if size > _MOST_BYTES:
            raise IndexerError(f"index {index}: {schema.MANIFEST} is damaged ({size} bytes)")
        content = json.loads((index / schema.MANIFEST).read_bytes())
    except FileNotFoundError:
        raise IndexerError(_no_manifest(index)) from None
    except NotADirectoryError:
        raise IndexerError(f"index {index}: is a file; give the folder that build wrote") from None
    except OSError as error:
        raise IndexerError(f"index {index}: cannot read {schema.MANIFEST}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise IndexerError(
            f"index {index}: {schema.MANIFEST} is damaged (not JSON); build the index again"
        ) from None
    return _validate(index, content)


def check_sizes(index: Path, manifest: Manifest) -> None:
    """Raise IndexerError naming the first file that is missing, no plain file, or of another size."""
    for file in manifest.files:
        problem = size_problem(index, file)
        if problem:
            raise IndexerError(
                f"index {index}: {problem}; {DAMAGED}"
            )


def size_problem(index: Path, file: FileEntry) -> str | None:
    """What is wrong with a file as far as its folder entry tells, None where nothing is."""
    try:
        entry = os.lstat(index / file.path)
    except FileNotFoundError:
        return f"{file.path} is missing"
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"
    if not stat.S_ISREG(entry.st_mode):
        return f"{file.path} is not a plain file"
    if entry.st_size != file.bytes:
        return f"{file.path} has {entry.st_size} bytes where the manifest says {file.bytes}"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_manifest(index: Path) -> str:
    if not index.exists():
        return f"index {index}: no such folder"
    return f"index {index}: not an index: it has no {schema.MANIFEST}; give the folder that build wrote"


def _validate(index: Path, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != schema.FORMAT:
        raise IndexerError(f"index {index}: {schema.MANIFEST} is not that of a {schema.FORMAT}")
    version = content.get("version")
    if version != schema.VERSION:
        raise IndexerError(
            f"index {index}: format version {version}; this program reads version {schema.VERSION}. "
            "Use the version of it that wrote the index, or build the index again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IndexerError(
            f"index {index}: {schema.MANIFEST} is damaged at {where}: {first['msg']}"
        ) from None
