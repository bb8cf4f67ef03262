"""Where a model's files come from, and what is refused before a library that trusts them opens any.

Weights are read from safetensors only: other formats are pickles, which run code. A configuration may name
code to import or kernels to download; neither is ever used, whatever the versions installed would do with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError, check_installed

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# all that a fast tokenizer and a configuration can consist of
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
QUANTISED = "quantization_config"
# the packages that transformers takes to read each form of quantised weights
QUANTISED_BY = {
    "fp8": ("accelerate",),
    "mxfp4": ("accelerate",),
    "compressed-tensors": ("accelerate", "compressed_tensors"),
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "gptq": ("accelerate", "optimum", "gptqmodel"),
    "awq": ("accelerate", "gptqmodel"),
}
IMPLEMENTATIONS = {
    "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "batched_mm", "grouped_mm",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model's folder on this machine.

    name: as asked for. revision: its commit on the hub, or None.
    code_not_run: the code that config.json names for classes which transformers has by itself.
    gguf: the name of the file that holds all of the model, where it is one for llama.cpp; else empty.
    """

    name: str
    folder: Path
    revision: str | None
    code_not_run: list[str] = field(default_factory=list)
    gguf: str = ""

    @property
    def gguf_file(self) -> dict[str, str]:
        """What transformers' from_pretrained is told beside the folder."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def resolve(name: str, revision: str | None = None) -> Source:
    """The folder of a model: `name` itself if it is one, else that of the hub's model, downloaded or cached.

    Raises IndexerError where there is neither, or where its configuration is refused.
    """
    folder = Path(name).expanduser()
    gguf = _gguf(folder)
    if gguf is not None and revision is None:
        return Source(name, gguf.parent, None, gguf=gguf.name)
    if folder.is_dir():
        if revision is not None:
            raise IndexerError(
                f"model {name}: --revision {revision} is for models of the hub; this is a local folder"
            )
        return Source(name, folder, None, check_configuration(name, folder))
    if folder.exists():
        raise IndexerError(
            f"model {name}: this is a file; give the folder that holds config.json and "
            "model.safetensors, or a .gguf file"
        )
    if HUB_NAME.fullmatch(name) is None:
        raise IndexerError(
            f"model {name}: no such folder (and no name of the hub, which look like owner/model)"
        )
    return _downloaded(name, revision)


def _gguf(path: Path) -> Path | None:
    """The GGUF file that this is, or that is all of this folder's weights."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if any((path / file).is_file() for file in (SINGLE, INDEX)):
        return None
    files = sorted(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def check_configuration(name: str, folder: Path) -> list[str]:
    """The code that config.json names and that is not run, transformers having the model's class itself.

    Raises IndexerError where the configuration could run code, needs what is not supported, or stands beside
    an adapter, which would be applied or not by what else is installed.
    """
    _check_adapter(name, folder)
    config = read_json(name, folder / "config.json")
    for file, content in (
        ("config.json", config),
        ("tokenizer_config.json", read_json(name, folder / "tokenizer_config.json", {})),
    ):
        for key, value in nested(content):
            _refuse(name, file, key, value)
    return _code_not_run(name, config)


def shards(name: str, folder: Path) -> list[str]:
    """File names from the index of the weights, each a plain name: it must not lead out of the folder."""
    weight_map = read_json(name, folder / INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(map(_is_plain, names)):
        raise IndexerError(f"model {name}: {INDEX} has no weight_map that names safetensors files beside it")
    return sorted(set(names))


def read_json(
    name: str, path: Path, absent: dict[str, Any] | None = None, what: str = "model"
) -> dict[str, Any]:
    """The object in a file; `absent` where there is no file, None making that an error.

    what: the name is of, for errors.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if absent is not None:
            return absent
        raise IndexerError(
            f"{what} {name}: no {path.name} in {path.parent}; give the folder of a transformers model"
        ) from None
    except (OSError, ValueError) as error:
        raise IndexerError(f"{what} {name}: {path.name} cannot be read ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise IndexerError(
            f"{what} {name}: {path.name} holds {type(content).__name__}, not an object of settings"
        )
    return content


def blamed_on(source: Source, what: str) -> AbstractContextManager[None]:
    """Whatever a library raises while it reads the model's files is told as their fault, in one line."""
    return blamed(f"model {source.name}", what)


@contextmanager
def blamed(who: str, what: str) -> Iterator[None]:
    """Whatever a library raises within the block is told as the fault of `who`, in one line."""
    try:
        yield
    # these libraries read many formats, each with errors of its own, and share no base class for them
    except Exception as error:
        raise IndexerError(f"{who}: {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """An exception's kind and text in one line of bounded length."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 300 else text[:297] + "..."


def _downloaded(name: str, revision: str | None) -> Source:
    """Configuration first, weights only after it has passed."""
    folder = _snapshot(name, revision, SMALL_FILES)
    commit = folder.name
    code_not_run = check_configuration(name, folder)
    wanted = shards(name, folder) if (folder / INDEX).is_file() else [SINGLE]
    folder = _snapshot(name, commit, wanted)
    if not any((folder / file).is_file() for file in wanted):
        raise IndexerError(
            f"model {name}: the hub gave no {SINGLE} at revision {commit}, and weights in other forms could "
            "run code. Take a --revision that has it, or convert it once with model.save_pretrained(folder)"
        )
    return Source(name, folder, commit, code_not_run)


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


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def nested(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested objects."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from nested(value)
    elif isinstance(content, list):
        for value in content:
            yield from nested(value)


def _check_adapter(name: str, folder: Path) -> None:
    if not (folder / ADAPTER).is_file():
        return
    base = read_json(name, folder / ADAPTER).get("base_model_name_or_path") or "its base model"
    if not (folder / "config.json").is_file():
        raise IndexerError(
            f"model {name}: this is an adapter of {base}, not a model ({ADAPTER} and no config.json); give "
            f"that model as MODEL, and this folder with --adapter {name}"
        )
    raise IndexerError(
        f"model {name}: an adapter of {base} stands beside the model's weights ({ADAPTER}), and "
        "transformers applies it only where peft is installed. Move the adapter's files to a folder of their "
        "own, and give that with --adapter to index the model with it"
    )


def _code_not_run(name: str, config: dict[str, Any]) -> list[str]:
    """All that auto_map names in config.json. IndexerError where transformers has no class for the model."""
    named = [value for key, value in nested(config) if key == "auto_map" and value]
    if not named:
        return []
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    classes = [
        value for entry in named if isinstance(entry, dict) for value in _texts(entry.get("AutoModel"))
    ]
    wanted = [*_texts(config.get("architectures")), *classes]
    foreign = [path for path in wanted if not hasattr(transformers, path.rpartition(".")[2])]
    if config.get("model_type") not in MODEL_MAPPING_NAMES or foreign:
        lacking = foreign[0] if foreign else f"model_type {config.get('model_type')!r}"
        raise IndexerError(
            f"model {name}: config.json asks to run code that comes with the model (auto_map), which is "
            f"never done, and transformers has nothing of its own for {lacking}. Take a model that it knows "
            "by itself"
        )
    return sorted({path for entry in named for path in _texts(entry)})


def _texts(content: Any) -> list[str]:
    """All strings in nested objects and lists."""
    if isinstance(content, str):
        return [content]
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [text for item in items for text in _texts(item)]


def _refuse(name: str, file: str, key: str, value: Any) -> None:
    if key == "auto_map" and value and file != "config.json":
        raise IndexerError(
            f"model {name}: {file} asks to run code that comes with the tokenizer (auto_map), which is never "
            "done. Take a model whose tokenizer transformers knows by itself"
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
    if key == QUANTISED and value:
        method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
        if method not in QUANTISED_BY:
            raise IndexerError(
                f"model {name}: {file}: weights quantised as {method} are not read; those that are: "
                f"{', '.join(QUANTISED_BY)}. Take the original model"
            )
        check_installed(f"model {name}: weights quantised as {method}: reading them", *QUANTISED_BY[method])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
