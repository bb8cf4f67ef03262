"""manifest.json: what an index is made of and where it came from.

Written last; without it there is no index. It holds the digest of every file and, as its last key, that of
all its own bytes before that. So one changed bit anywhere in an index can be told.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import pyarrow as pa
from indexer_kernels import Keep
from indexer_kernels.topk import COMPETITORS

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.codecs import CODECS, codecs_of, folders
from indexer.index.files import DAMAGED
from indexer.index.unfinished import in_short, progress_of
from indexer.names import PANEL, TARGET_PANEL, Experts, Key, check_site

Struct = TypeVar("Struct", bound=msgspec.Struct)

# what the build says about itself, in the order of the file; the writer adds the rest
SECTIONS = ("model", "tokenizer", "corpus", "configuration", "totals", "software")
# a manifest lists files and layers; one larger than this was made to harm
_MOST_BYTES = 256 << 20
_PARQUET = b"PAR1"
_SEAL_BYTES = len(',\n  "sha256": ""\n}\n') + 64
# characters of a hostile path that a message repeats
_SHOWN = 99
# what the columns of an index can hold
_Int32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the index."""

    path: str
    rows: _Int64 | None = None
    bytes: _Int64
    sha256: Digest

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        inside = not parts.is_absolute() and ".." not in parts.parts and "\\" not in self.path
        if not inside or str(parts) != self.path or self.path == "." or not self.path.isprintable():
            raise ValueError("`path` must be one inside the index")


@dataclass(frozen=True)
class LayerEntry:
    """One indexed layer; statistics: the names of the codecs of its files. keep: what is kept of a unit.

    experts: where its units are those of routed experts.
    """

    key: Key
    units: int
    statistics: tuple[str, ...]
    keep: Keep
    experts: Experts | None = None


class LayerUnits(msgspec.Struct, frozen=True, omit_defaults=True):
    """A layer of a site, how many units it has, and of how many experts where they are of some."""

    layer: _Int32
    units: _Int32
    experts: Experts | None = None

    def __post_init__(self) -> None:
        experts = self.experts
        if experts and (min(experts.number, experts.per_token) < 1 or self.units % experts.number):
            raise ValueError("`experts` must be of numbers from 1 on, of which `units` is a multiple")


class SiteEntry(msgspec.Struct, frozen=True):
    """One indexed site: what is kept of its units, and its layers."""

    site: str
    statistics: tuple[str, ...]
    keep: Keep
    layers: list[LayerUnits]

    def __post_init__(self) -> None:
        try:
            check_site(self.site)
        except IndexerError:
            raise ValueError("`site` must be the name of a site, for example mlp") from None
        known = [codec.name for codec in codecs_of(self.statistics)]
        if sorted(known) != sorted(self.statistics):
            names = ", ".join(codec.name for codec in CODECS)
            raise ValueError(f"`statistics` must be of {names}, each once")
        keep = self.keep
        sizes = (keep.top, keep.bottom, keep.samples, keep.panel, *keep.window)
        if min(sizes) < 0 or keep.by not in COMPETITORS:
            raise ValueError(f"`keep` must be of sizes from 0 on, by one of {', '.join(COMPETITORS)}")
        if keep.distinct and keep.by == "document":
            raise ValueError("`keep` must not be both distinct and by document")
        if len({PANEL, TARGET_PANEL} & {*self.statistics}) != (keep.panel > 0):
            raise ValueError("`keep` and `statistics` disagree about the panel")


class Manifest(msgspec.Struct, frozen=True, dict=True):
    """The manifest as Python reads it. Sections that the build describes itself with are free JSON."""

    format: Literal["neuron activation index"]
    version: int
    created: str
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any]
    configuration: dict[str, Any]
    totals: dict[str, Any]
    software: dict[str, Any]
    sites: list[SiteEntry]
    files: list[FileEntry]
    # of the text before it; empty until it is written
    sha256: str = ""

    @cached_property
    def layers(self) -> list[LayerEntry]:
        """All indexed layers, in the order of units.parquet."""
        return [
            LayerEntry(
                Key(site.site, layer.layer), layer.units, site.statistics, site.keep, layer.experts
            )
            for site in self.sites
            for layer in site.layers
        ]

    @property
    def bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The entry of one file, None where the index has no such file."""
        return next((file for file in self.files if file.path == path), None)

    def layer(self, key: Key) -> LayerEntry | None:
        """The entry of one layer, None where it was not indexed."""
        return next((entry for entry in self.layers if entry.key == key), None)

    def to_json(self) -> str:
        """The text of manifest.json; its last entry is the SHA-256 of all that stands before that."""
        listed = {"sites": msgspec.to_builtins(self.sites), "files": msgspec.to_builtins(self.files)}
        return sealed(msgspec.structs.asdict(self) | listed)


def sites_of(layers: Sequence[LayerEntry]) -> list[SiteEntry]:
    """The sites of some layers, both in the order of their names and numbers."""
    sites = []
    for name in sorted({entry.key.site for entry in layers}):
        here = sorted((entry for entry in layers if entry.key.site == name), key=lambda entry: entry.key)
        assert len({(entry.statistics, entry.keep) for entry in here}) == 1, f"{name}: its layers differ"
        numbers = [LayerUnits(entry.key.layer, entry.units, entry.experts) for entry in here]
        sites.append(SiteEntry(name, here[0].statistics, here[0].keep, numbers))
    return sites


def sealed(content: dict[str, Any]) -> str:
    """A manifest's text with its digest, so that no bit of it can change unnoticed."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # file names on disk may hold any bytes, which Python passes on as lone surrogates
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removesuffix("\n}")
    return text + _seal(text.encode())


def _seal(content: bytes) -> str:
    """What follows the content of a manifest up to its end."""
    return f',\n  "sha256": "{hashlib.sha256(content).hexdigest()}"\n}}\n'


def read_manifest(index: Path) -> Manifest:
    """Read the manifest of an index.

    Raises IndexerError, one line, where `index` is not one that can be read: no folder, no index, one of
    another format version, or a manifest that is not as it was written.
    """
    try:
        content = read_sealed(index / schema.MANIFEST, f"index {index}", _check_format)
    except FileNotFoundError:
        raise IndexerError(_no_manifest(index)) from None
    except NotADirectoryError:
        raise IndexerError(f"index {index}: is a file; give the folder that build wrote") from None
    return _validate(index, content)


def read_sealed(
    path: Path, what: str, check: Callable[[str, Any], None] = lambda what, content: None
) -> dict[str, Any]:
    """The JSON values of a manifest that `sealed` wrote.

    what: whose it is, for messages. check: given that and the values before the seal is looked at.
    Raises IndexerError, one line; FileNotFoundError and NotADirectoryError where there is no such file.
    """
    try:
        entry = os.lstat(path)
        # before it is opened: reading a FIFO would wait forever
        if not stat.S_ISREG(entry.st_mode):
            raise IndexerError(f"{what}: {path.name} is not a plain file; {DAMAGED}")
        if entry.st_size > _MOST_BYTES:
            raise IndexerError(f"{what}: {path.name} is damaged ({entry.st_size} bytes)")
        data = path.read_bytes()
        content = json.loads(data, parse_constant=_refuse)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise IndexerError(f"{what}: cannot read {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise IndexerError(f"{what}: {path.name} is damaged (not JSON); build the index again") from None
    check(what, content)
    if data[-_SEAL_BYTES:] != _seal(data[:-_SEAL_BYTES]).encode():
        raise IndexerError(
            f"{what}: {path.name} is not the one that was written: its SHA-256 differs; "
            "restore the file or build the index again"
        )
    return content


def converted(content: Any, kind: type[Struct], what: str) -> Struct:
    """JSON values of a manifest as a struct of some kind; raises IndexerError where they are not."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        # of what is wrong in the manifest itself it does not say where
        message, _, where = str(error).partition(" - at `$.")
        at = f" at {where.rstrip('`')}" if where else ""
        raise IndexerError(f"{what}: {schema.MANIFEST} is damaged{at}: {message}") from None


def expected_files(manifest: Manifest) -> dict[str, pa.Schema | None]:
    """The files that an index of these layers has, with their schemas; None for what is not Parquet."""
    files: dict[str, pa.Schema | None] = {
        schema.UNITS_FILE: schema.UNITS,
        schema.DOCUMENTS_FILE: schema.DOCUMENTS,
        schema.VOCABULARY_FILE: schema.VOCABULARY,
        schema.VIEWS: None,
    }
    # of a merge there is none
    if manifest.file(schema.LOG) is not None:
        files[schema.LOG] = None
    for entry in manifest.layers:
        for codec in codecs_of(entry.statistics):
            files |= codec.common
            files[codec.file(entry.key)] = codec.columns
    return files


def check_files(index: Path, manifest: Manifest) -> None:
    """Raise IndexerError naming the first file that is missing, no plain file, of another size, or cut off.

    Of a Parquet file the end is read, which tells where its footer is; the footer is when the file is used.
    """
    for folder in folders():
        # through a link, its files would be those of another place
        if (index / folder).is_symlink():
            raise IndexerError(f"index {index}: {folder} is a symbolic link and no folder; {DAMAGED}")
    for file in manifest.files:
        problem = file_problem(index, file)
        if problem:
            raise IndexerError(f"index {index}: {problem}; {DAMAGED}")


def file_problem(index: Path, file: FileEntry) -> str | None:
    """What is wrong with a file's size or end, None where nothing is."""
    return size_problem(index, file) or _end_problem(index, file)


def _end_problem(index: Path, file: FileEntry) -> str | None:
    """What is wrong with the end of a Parquet file: four bytes of the footer's length, and four letters."""
    if not file.path.endswith(".parquet"):
        return None
    try:
        with open(index / file.path, "rb", buffering=0) as opened:
            opened.seek(max(0, file.bytes - 8))
            end = opened.read(8)
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"
    # the file also begins with the letters
    if end[4:] != _PARQUET or int.from_bytes(end[:4], "little") > file.bytes - 12:
        return f"{file.path} does not end as a Parquet file does"
    return None


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


def file_entry(folder: Path, path: str, rows: int | None = None) -> FileEntry:
    """The entry of a file that is there."""
    file = folder / path
    return FileEntry(path=path, rows=rows, bytes=file.stat().st_size, sha256=sha256(file))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_manifest(index: Path) -> str:
    progress = progress_of(index)
    if progress is not None:
        return f"index {index}: not finished: {in_short(progress)}; neuron-indexer info {index} says more"
    if not index.exists():
        return f"index {index}: no such folder"
    return f"index {index}: not an index: it has no {schema.MANIFEST}; give the folder that build wrote"


def _check_format(what: str, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != schema.FORMAT:
        raise IndexerError(f"{what}: {schema.MANIFEST} is not that of a {schema.FORMAT}")
    version = content.get("version")
    if version != schema.VERSION:
        # of a damaged or hostile file, it may be anything
        shown = version if version is None or isinstance(version, int) else f"({type(version).__name__})"
        raise IndexerError(
            f"{what}: format version {shown}; this program reads version {schema.VERSION}. "
            "Use the version of it that wrote the index, or build the index again"
        )


def _validate(index: Path, content: Any) -> Manifest:
    manifest = converted(content, Manifest, f"index {index}")
    layers = Counter(entry.key for entry in manifest.layers)
    twice = [layer for layer, times in layers.items() if times > 1]
    if twice:
        raise IndexerError(f"index {index}: {schema.MANIFEST} is damaged: layer {twice[0]} is listed twice")
    expected = expected_files(manifest)
    listed = Counter(file.path for file in manifest.files)
    wrong = sorted(path for path in {*listed, *expected} if listed[path] != 1 or path not in expected)
    if wrong:
        raise IndexerError(
            f"index {index}: {schema.MANIFEST} is damaged: its files and layers disagree about "
            f"{wrong[0][:_SHOWN]}"
        )
    return manifest


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
