"""Add-ons: tables that are added to a finished index, such as labels; the index is whole without them.

    my.index/addons/NAME/manifest.json     sealed like that of the index, whose digest it holds
    my.index/addons/NAME/TABLE.parquet     one or more; the view TABLE shows it
    my.index/addons/NAME/views.sql         the same views for the duckdb program, to be read after the index's

Tables that speak of units have the columns site, layer and unit, for joins. An add-on is written beside its
place and renamed: it is there whole or not at all. An index that is built anew, or added to, has none.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index import schema, sql
from indexer.index.codecs import CODECS
from indexer.index.groups import RowGroups
from indexer.index.manifest import (
    Digest,
    FileEntry,
    converted,
    file_entry,
    file_problem,
    read_sealed,
    sealed,
    sha256,
)
from indexer.index.output import flush, in_one_line, put_in_place

FOLDER = "addons"
_OF_CODECS = (name for codec in CODECS for name in (codec.view, *codec.other_views))
VIEWS = frozenset({"units", "documents", "vocabulary", *_OF_CODECS})
_FORMAT: Final = "neuron activation index add-on"
_NAME = re.compile("[a-z][a-z0-9_]*")
_ROWS = 16_384


class Addon(msgspec.Struct, frozen=True):
    """The manifest of an add-on.

    index: SHA-256 of the manifest.json that it was made for. about: where it came from, as JSON values.
    files: their paths are those within its folder.
    """

    format: Literal["neuron activation index add-on"]
    version: Literal[1]
    name: str
    created: str
    index: Digest
    about: dict[str, Any]
    files: list[FileEntry]

    def __post_init__(self) -> None:
        right = all(_NAME.fullmatch(name) for name in (self.name, *self.tables))
        names = [file.path for file in self.files]
        if not right or len({*names}) != len(names) or {*names} != {schema.VIEWS, *map(_file, self.tables)}:
            raise ValueError("an add-on has tables by plain names, each once, and views.sql")

    @property
    def tables(self) -> list[str]:
        """Names of its tables, which are those of their views."""
        return [PurePosixPath(file.path).stem for file in self.files if file.path != schema.VIEWS]

    def paths(self) -> list[str]:
        """Its files within the index."""
        return [f"{FOLDER}/{self.name}/{name}" for name in (schema.MANIFEST, *(f.path for f in self.files))]


def addon_views(name: str, tables: Sequence[str], index: Path | None = None) -> list[str]:
    """The statements that make the views of an add-on; index: as in `views.views`."""
    place = sql.place_in(index)
    return [
        f'CREATE OR REPLACE VIEW "{table}" AS '
        f"SELECT * FROM {sql.read(place(f'{FOLDER}/{name}/{_file(table)}'))}"
        for table in tables
    ]


def write_addon(index: Path, name: str, tables: Mapping[str, pa.Table], about: Mapping[str, Any]) -> Path:
    """Add tables to a finished index, in place of an add-on of the same name; returns its folder.

    tables: by the names that their views get. about: what it was made of, as JSON values.
    Raises IndexerError for names that cannot be, or are those of other views, and where the disk fails.
    """
    taken = {*VIEWS, *(table for one in read_addons(index) if one.name != name for table in one.tables)}
    for word in (name, *tables):
        if not _NAME.fullmatch(word) or (word in taken and word in tables):
            raise IndexerError(
                f'index {index}: an add-on or a table of it cannot be called "{word}"; give a plain word in '
                "small letters, and not that of a view"
            )
    if not tables:
        raise IndexerError(f"index {index}: add-on {name}: it has no table")
    target = index / FOLDER / name
    folder = target.with_name(f".{name}.partial")
    kept = "What was there is as it was; make room there, or write access, and run it again"
    with in_one_line(f"index {index}: cannot write add-on {name} into {index / FOLDER}", kept):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            files = [_written(folder, table, content) for table, content in tables.items()]
            (folder / schema.VIEWS).write_text(_views_file(name, list(tables)), newline="\n")
            made = Addon(
                format=_FORMAT,
                version=1,
                name=name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                index=sha256(index / schema.MANIFEST),
                about=dict(about),
                files=[*files, file_entry(folder, schema.VIEWS)],
            )
            manifest = sealed(msgspec.to_builtins(made))
            (folder / schema.MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")
            for path in (*folder.iterdir(), folder):
                flush(path)
            aside = put_in_place(folder, target)
            if aside is not None:
                shutil.rmtree(aside)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def read_addons(index: Path) -> list[Addon]:
    """The add-ons of an index, in the order of their names.

    Raises IndexerError where one is damaged or was made for another index, and where two have a table in
    common.
    """
    place = index / FOLDER
    if not place.is_dir() or place.is_symlink():
        return []
    addons = [_read(index, path.name) for path in sorted(place.iterdir()) if _NAME.fullmatch(path.name)]
    seen: dict[str, str] = {}
    for one in addons:
        for table in one.tables:
            other = "the index itself" if table in VIEWS else seen.get(table)
            if other is not None:
                raise _refused(index, one.name, f"its table {table} has the name of one of {other}")
            seen[table] = f"add-on {one.name}"
    return addons


def check_addon(index: Path, addon: Addon) -> None:
    """Raise IndexerError naming the first file of an add-on that is missing, of another size, or cut off."""
    folder = index / FOLDER / addon.name
    for file in addon.files:
        problem = file_problem(folder, file)
        if problem:
            raise _refused(index, addon.name, problem)
    if (folder / schema.VIEWS).read_bytes() != _views_file(addon.name, addon.tables).encode():
        raise _refused(index, addon.name, f"{schema.VIEWS} is not that of its tables")


def _read(index: Path, name: str) -> Addon:
    folder, what = index / FOLDER / name, f"index {index}: add-on {name}"
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise _refused(index, name, "it is no folder")
        addon = converted(read_sealed(folder / schema.MANIFEST, what), Addon, what)
    except (FileNotFoundError, NotADirectoryError):
        raise _refused(index, name, f"it has no {schema.MANIFEST}") from None
    if addon.name != name:
        raise _refused(index, name, f"it says that it is {addon.name}")
    if addon.index != sha256(index / schema.MANIFEST):
        raise _refused(index, name, "it was made for another index")
    check_addon(index, addon)
    return addon


def _refused(index: Path, name: str, reason: str) -> IndexerError:
    return IndexerError(f"index {index}: add-on {name}: {reason}; make it again, or remove {FOLDER}/{name}")


def _views_file(name: str, tables: Sequence[str]) -> str:
    return "".join(f"{statement};\n" for statement in addon_views(name, tables))


def _file(table: str) -> str:
    return f"{table}.parquet"


def _written(folder: Path, table: str, content: pa.Table) -> FileEntry:
    with RowGroups(folder / _file(table), content.schema) as file:
        for first in range(0, content.num_rows, _ROWS):
            file.add(content.slice(first, _ROWS))
    return file_entry(folder, _file(table), content.num_rows)
