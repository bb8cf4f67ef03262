"""Reading the files of dictionaries: what is missing, or would be guessed, is one line that names it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from indexer_kernels.statistics import DTYPES
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indexer.errors import IndexerError

_MISSING = object()


@dataclass(frozen=True)
class Settings:
    """A configuration's keys, of which every one that matters is asked for by name.

    file: it stands in. values: its keys; those of an object within are Settings again, by `within`.
    """

    file: Path
    values: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def of_json(cls, file: Path) -> Settings:
        """Raises IndexerError where the file is none, or no object."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise IndexerError(f"{file}: cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise IndexerError(f"{file}: holds {type(content).__name__}, not an object of settings")
        return cls(file, content)

    def get(self, key: str, kind: type | tuple[type, ...], absent: Any = _MISSING) -> Any:
        """The value of a key; absent: what stands for one that is not there, or null."""
        value = self.values.get(key)
        if value is None:
            if absent is _MISSING:
                raise self.fault(key, "is missing")
            return absent
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.fault(key, f"is {value!r}, which is not of the kind that is read")
        return value

    def one_of(self, key: str, choices: Collection[Any], absent: Any = _MISSING) -> Any:
        """The value of a key that has to be one of some."""
        value = self.get(key, object, absent)
        if value not in choices:
            known = ", ".join(json.dumps(choice) for choice in choices)
            raise self.fault(key, f"is {json.dumps(value)}, which is not supported; there is: {known}")
        return value

    def count(self, key: str, most: int) -> int:
        """A number from 1 to `most`."""
        value: int = self.get(key, int)
        if not 0 < value <= most:
            raise self.fault(key, f"is {value}, of {most} units")
        return value

    def within(self, key: str) -> Settings:
        """An object among the values, empty where it is not there."""
        return Settings(self.file, self.get(key, dict, {}), f"{self.prefix}{key}.")

    def fault(self, key: str, what: str) -> IndexerError:
        """An error that names the key."""
        return IndexerError(f"{self.file}: the key {self.prefix}{key} {what}")


@dataclass
class Tensors:
    """The tensors of a file, of which every one has to be asked for.

    file: they are in, and are read in place where that can be. dtype: that vectors are brought to; matrices
    are given as they are there, for whoever takes the part that is needed to bring that to it.
    """

    file: Path
    values: dict[str, Tensor]
    dtype: torch.dtype | None = None
    asked: set[str] = field(default_factory=set)

    @classmethod
    def of_safetensors(cls, file: Path) -> Tensors:
        """Those of a file, read in place. Raises IndexerError where it is none."""
        try:
            return cls(file, load_file(file))
        except (OSError, SafetensorError) as error:
            raise IndexerError(f"{file}: cannot be read ({error})") from error

    @classmethod
    def of_npz(cls, file: Path) -> Tensors:
        """Those of a file, in place where they are not compressed. Raises IndexerError where it is none."""
        try:
            with zipfile.ZipFile(file) as archive:
                values = {Path(part.filename).stem: _array(archive, part) for part in archive.filelist}
            return cls(file, values)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise IndexerError(f"{file}: cannot be read ({error})") from error

    def get(self, name: str, *shape: int | None, optional: bool = False) -> Any:
        """The tensor of a name; None where it is not there and `optional`. shape: None for any length."""
        self.asked.add(name)
        found = self.values.get(name)
        if found is None:
            if optional:
                return None
            raise IndexerError(f"{self.file}: there is no tensor {name} (there is: {self._names()})")
        fits = found.ndim == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise IndexerError(
                f"{self.file}: the tensor {name} has shape {tuple(found.shape)}, expected ({expected})"
            )
        if found.dtype not in DTYPES and self.dtype is None:
            raise IndexerError(
                f"{self.file}: the tensor {name} is {found.dtype}; float32, bfloat16 and float16 are encoded"
            )
        return found if found.ndim > 1 or self.dtype is None else found.to(self.dtype)

    def check_all_asked(self, *others: str) -> None:
        """Raises IndexerError for a tensor that nothing is known of. others: those that do not matter."""
        unknown = self.values.keys() - self.asked - {*others}
        if unknown:
            raise IndexerError(
                f"{self.file}: what the tensor {min(unknown)} does is not known; it is not encoded as if it "
                "were not there"
            )

    def _names(self) -> str:
        return ", ".join(sorted(self.values)) or "nothing"


def _array(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> Tensor:
    """An array of an archive of them. Raises ValueError where it holds objects."""
    with archive.open(part) as stored:
        if part.compress_type != zipfile.ZIP_STORED:
            return torch.from_numpy(np.lib.format.read_array(stored, allow_pickle=False))
        version, _ = np.lib.format.read_magic(stored)
        shape, by_columns, dtype = getattr(np.lib.format, f"read_array_header_{version}_0")(stored)
        header = stored.tell()
    if dtype.hasobject:
        raise ValueError(f"{part.filename} holds objects")
    with open(str(archive.filename), "rb") as whole:
        # behind the lengths of its name and of what else is told of it
        whole.seek(part.header_offset + 26)
        told = int(np.frombuffer(whole.read(4), "<u2").sum())
        begin = part.header_offset + 30 + told + header
        # nothing writes to it; what did would have a copy
        return torch.from_numpy(np.memmap(whole, dtype, "c", begin, shape, "F" if by_columns else "C"))
