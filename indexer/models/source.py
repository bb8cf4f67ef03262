"""Where a model's files come from, and what is refused before a library that trusts them opens any.

Weights are read from safetensors only: other formats are pickles, which run code. A configuration may name
code to import or kernels to download; both are refused, whatever the versions installed would do with them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# all that a fast tokenizer and a configuration can consist of
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
IMPLEMENTATIONS = {
    "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "batched_mm", "grouped_mm",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model's folder on this machine. name: as asked for; revision: its commit on the hub, or None."""

    name: str
    folder: Path
    revision: str | None


def resolve(name: str, revision: str | None = None) -> Source:
    """The folder of a model: `name` itself if it is one, else that of the hub's model, downloaded or cached.

    Raises IndexerError where there is neither, or where its configuration is refused.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise IndexerError(
                f"model {name}: --revision {revision} is for models of the hub; this is a local folder"
            )
        check_configuration(name, folder)
        return Source(name, folder, None)
    if folder.exists():
        raise IndexerError(
            f"model {name}: this is a file; give the folder that holds config.json and model.safetensors"
        )
    if HUB_NAME.fullmatch(name) is None:
        raise IndexerError(
            f"model {name}: no such folder (and no name of the hub, which look like owner/model)"
        )
    return _downloaded(name, revision)


def check_configuration(name: str, folder: Path) -> None:
    """Raise IndexerError where the configuration could run code or needs what is not supported."""
    for file, absent in (("config.json", None), ("tokenizer_config.json", {})):
        for key, value in _entries(_read_json(name, folder / file, absent)):
            _refuse(name, file, key, value)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, in order of name."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickles = sorted(
            path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"}
        )
        if not pickles:
            raise IndexerError(
                f"model {name}: no {SINGLE} in {folder}, nor weights in any other form; download it again"
            )
        raise IndexerError(
            f"model {name}: no {SINGLE} in {folder}, only {', '.join(pickles[:3])}, which could run code. "
            "Convert it once with model.save_pretrained(folder), or take a model that has safetensors"
        )
    names = _shards(name, folder)
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        raise IndexerError(
            f"model {name}: {INDEX} lists {missing[0]}, which is not in {folder}; download it again"
        )
    return [folder / file for file in names]


def checkpoint_dtype(name: str, files: Sequence[Path]) -> str:
    """The dtype that most weights are stored in, as safetensors calls it: "F32", "BF16", "F8_E4M3" ..."""
    from safetensors import SafetensorError, safe_open

    elements: Counter[str] = Counter()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a mapping
                    tensor = tensors.get_slice(key)
                    elements[tensor.get_dtype()] += prod(tensor.get_shape())
        except (SafetensorError, OSError) as error:
            raise IndexerError(
                f"model {name}: {file.name} is damaged ({error}); download it again"
            ) from error
    floating = {dtype: count for dtype, count in elements.items() if dtype.startswith(("F", "BF"))}
    if not floating:
        raise IndexerError(f"model {name}: {files[0].name} holds no floating-point weights")
    return max(floating, key=lambda dtype: floating[dtype])


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the weights: of the file itself if it is one, else of the lines "sha256  name" of all."""

    def of_file(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(of_file, files))
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{value}  {path.name}\n" for value, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _downloaded(name: str, revision: str | None) -> Source:
    """Configuration first, weights only after it has passed."""
    folder = _snapshot(name, revision, SMALL_FILES)
    commit = folder.name
    check_configuration(name, folder)
    wanted = _shards(name, folder) if (folder / INDEX).is_file() else [SINGLE]
    folder = _snapshot(name, commit, wanted)
    if not any((folder / file).is_file() for file in wanted):
        raise IndexerError(
            f"model {name}: the hub gave no {SINGLE} at revision {commit}, and weights in other forms could "
            "run code. Take a --revision that has it, or convert it once with model.save_pretrained(folder)"
        )
    return Source(name, folder, commit)


def _snapshot(name: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=["*/*"]))
    except errors.GatedRepoError as error:
        raise IndexerError(
            f"model {name}: the hub gives it only to those who were let in; log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise IndexerError(f"model {name}: the hub has no revision {revision} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise IndexerError(
            f"model {name}: no such folder, and no such model on the hub (or it is private)"
        ) from error
    # the client passes on errors of whichever HTTP library it is built on
    except Exception as error:
        raise IndexerError(
            f"model {name}: no such folder, and the hub could not be asked for it{at} "
            f"({_first_line(error)}). Check the name and the connection, or give a local folder"
        ) from error


def _shards(name: str, folder: Path) -> list[str]:
    """File names from the index, each a plain name: it must not lead out of the folder."""
    weight_map = _read_json(name, folder / INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(map(_is_plain, names)):
        raise IndexerError(f"model {name}: {INDEX} has no weight_map that names safetensors files beside it")
    return sorted(set(names))


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def _read_json(name: str, path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object in a file; `absent` where there is no file, None making that an error."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if absent is not None:
            return absent
        raise IndexerError(
            f"model {name}: no {path.name} in {path.parent}; give the folder of a transformers model"
        ) from None
    except (OSError, ValueError) as error:
        raise IndexerError(f"model {name}: {path.name} cannot be read ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise IndexerError(
            f"model {name}: {path.name} holds {type(content).__name__}, not an object of settings"
        )
    return content


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested objects."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)


def _refuse(name: str, file: str, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise IndexerError(
            f"model {name}: {file} asks to run code that comes with the model (auto_map), which is never "
            "done. Take a model that transformers knows by itself"
        )
    if key.startswith("_") and key.endswith("_internal"):
        raise IndexerError(
            f"model {name}: {file} sets {key}, which is internal to transformers; remove it from the file"
        )
    if key.endswith(("attn_implementation", "experts_implementation")) and isinstance(value, str | dict):
        for choice in value.values() if isinstance(value, dict) else [value]:
            if choice is not None and choice not in IMPLEMENTATIONS:
                known = ", ".join(sorted(IMPLEMENTATIONS))
                raise IndexerError(
                    f"model {name}: {file} sets {key} to {choice!r}; only these are let in: {known}"
                )
    if key == "quantization_config" and value:
        method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
        raise IndexerError(
            f"model {name}: {file}: quantised weights ({method}) are not supported; take the original model"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
