"""Adapters as peft saves them, merged into the model's weights: what is indexed is one plain model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from torch import nn

from indexer.errors import IndexerError, check_installed
from indexer.models.source import ADAPTER, blamed, read_json
from indexer.models.weights import digest, read_headers, shortened

WEIGHTS = "adapter_model.safetensors"
# what peft puts before the names of the modules that it was given
_OUTER = "base_model.model."
# peft imports what these name
_IMPORTS = ("megatron_config",)


@dataclass(frozen=True)
class Adapter:
    """A folder of peft's. weights: the names in its file, as they are in the model that it was made for."""

    folder: Path
    weights: tuple[str, ...]

    @property
    def who(self) -> str:
        """What errors call it."""
        return f"adapter {self.folder}"

    @property
    def provenance(self) -> dict[str, str]:
        """For the manifest; the digest is of both files, for an adapter's strength stands in its settings."""
        files = [self.folder / WEIGHTS, self.folder / ADAPTER]
        return {"adapter": str(self.folder), "adapter_digest": digest(files)}


def open_adapter(name: str) -> Adapter:
    """An adapter's folder, looked at before any model is loaded.

    Raises IndexerError where it is none, where its weights are no safetensors, and without the packages.
    """
    check_installed("--adapter", "peft", "accelerate")
    folder = Path(name).expanduser()
    if not (folder / ADAPTER).is_file():
        raise IndexerError(f"adapter {name}: no {ADAPTER} there; give the folder that peft has saved")
    config = read_json(name, folder / ADAPTER, what="adapter")
    for key in _IMPORTS:
        if config.get(key):
            raise IndexerError(f"adapter {name}: {ADAPTER} sets {key}, which asks for code to be imported")
    if not (folder / WEIGHTS).is_file():
        raise IndexerError(
            f"adapter {name}: no {WEIGHTS} there, and weights in other forms could run code; save it again "
            "with save_pretrained of a recent peft"
        )
    keys = read_headers(name, [folder / WEIGHTS], what="adapter")
    return Adapter(folder, tuple(key.removeprefix(_OUTER) for key in keys))


def merged(model: Any, adapter: Adapter) -> tuple[nn.Module, list[str]]:
    """The model with the adapter in its weights, and what the adapter has for heads, which are not run.

    model: a base model of transformers; it is changed. An adapter made for it with its head is as good.
    Raises IndexerError for what peft cannot merge, and where an adapter's weights have no place in the model.
    """
    import peft

    with blamed(adapter.who, f"peft does not understand its {ADAPTER}"):
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
    tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if not hasattr(tuner, "merge_and_unload"):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise IndexerError(f"{adapter.who}: one of type {kind} cannot be merged into weights; LoRA can")
    wrapped = _as_adapted(model, adapter)
    children = dict(wrapped.named_children())
    foreign = [key for key in adapter.weights if key.partition(".")[0] not in children]
    if len(foreign) == len(adapter.weights):
        raise _no_place(model, adapter, foreign)
    # what peft warns of is checked below
    with blamed(adapter.who, "peft cannot load it for this model"), catch_warnings():
        simplefilter("ignore")
        tuned: Any = peft.PeftModel(wrapped, config)
        report = tuned.load_adapter(
            str(adapter.folder), "default", torch_device=str(next(model.parameters()).device)
        )
    unknown = {key.removeprefix(_OUTER).replace(".default", "") for key in report.unexpected_keys}
    if unknown - set(foreign):
        raise _no_place(model, adapter, unknown - set(foreign))
    if report.missing_keys:
        raise IndexerError(
            f"{adapter.who}: its file lacks {_listed(report.missing_keys)}, which {ADAPTER} speaks of"
        )
    with blamed(adapter.who, "peft cannot merge it"):
        whole = tuned.base_model.merge_and_unload(safe_merge=True)
    return (whole if wrapped is model else getattr(whole, model.base_model_prefix)), shortened(foreign, 10)


def _as_adapted(model: Any, adapter: Adapter) -> nn.Module:
    """The model under the names that the adapter has: its own, or those that it has behind a head."""
    prefix = model.base_model_prefix
    if not any(key.startswith(f"{prefix}.") for key in adapter.weights) or hasattr(model, prefix):
        return model
    outer = nn.Module()
    outer.add_module(prefix, model)
    outer.config = model.config
    return outer


def _no_place(model: nn.Module, adapter: Adapter, keys: Iterable[str]) -> IndexerError:
    return IndexerError(
        f"{adapter.who}: {type(model).__name__} has no place for its {_listed(keys)}; it was made for "
        "another model"
    )


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(shortened(keys, 3))
