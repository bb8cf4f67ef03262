"""Loading a model and its tokenizer, and knowing afterwards exactly what was loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from logging import ERROR, getLogger
from typing import Any

import torch
from torch import nn

from indexer.errors import IndexerError
from indexer.models.adapter import merged, open_adapter
from indexer.models.forward import embedding_rows, embeddings
from indexer.models.placement import Placement, device_type, placement, weight_bytes
from indexer.models.quantised import Form, form_of, read_gguf
from indexer.models.sample import Sample, sampled
from indexer.models.source import Source, blamed_on, resolve
from indexer.models.stacks import stacks_of, start_token
from indexer.models.tokenizer import load_tokenizer, settle_as_asked
from indexer.models.weights import (
    STORED,
    Stored,
    check_dtypes,
    check_frequencies,
    checkpoint_dtype,
    digest,
    left_out,
    read_headers,
    weight_files,
)
from indexer.names import DECODER

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be run, without its head.

    model: in evaluation mode, without gradients; of a model that does not run on token ids alone its language
        model. tokenizer: a fast one of transformers, or None.
    device: that of the embeddings, where token ids go.
    context: the longest sequence the model allows, special tokens included; None where it sets no bound.
    part: path of `model` in the model of the files, empty where it is all of that. sample: what it makes of a
        small batch, and whether it is causal.
    provenance: name, revision, digest, architecture, dtype and versions, for the manifest.
    stacks: of a model with two, the paths of both in `model`, by name. stack: the name of the one that is
        looked at; empty where there is one alone, and for all of the model.
    """

    model: nn.Module
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    context: int | None
    part: str
    sample: Sample
    provenance: dict[str, Any]
    stacks: dict[str, str] = field(default_factory=dict)
    stack: str = ""

    @property
    def causal(self) -> bool:
        """Whether a token's activations depend on no later token."""
        return self.sample.causal

    @property
    def rows(self) -> tuple[int, int]:
        """Of the sample: sequences, and rows of each in what is looked at."""
        sequences, tokens = self.sample.token_ids.shape
        return sequences, tokens + (self.stack == DECODER)

    def parts(self) -> list[LoadedModel]:
        """The model to be looked at stack by stack, in the order in which they run."""
        return [replace(self, stack=stack) for stack in self.stacks] or [self]

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules that are looked at, by their paths in the model of the files."""
        path = self.stacks.get(self.stack, "")
        prefix = ".".join(filter(None, (self.part, path)))
        return self.model.get_submodule(path).named_modules(prefix=prefix)

    def module(self, path: str) -> nn.Module:
        """The one of a path in the model of the files."""
        return self.model.get_submodule(path.removeprefix(f"{self.part}." if self.part else ""))


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    attention: str = "auto",
    adapter: str | None = None,
) -> LoadedModel:
    """Load a model from a local folder or the hub: no head, safetensors only, no code of the model's own.

    dtype: "auto" takes the checkpoint's, with two exceptions: float64 becomes float32, and so does float16 on
        the CPU, which has no fast arithmetic for it.
    device: "cpu"; "cuda" or "cuda:N" for one GPU; "spread" for all GPUs, each with a share of the layers;
        "auto" for the CPU where there is no GPU, the first GPU with room for the weights and a tenth more, or
        all of them where none has it alone.
    attention: how attention is computed, "sdpa", "eager" ...; "auto" for what config.json names, or else what
        transformers takes by itself.
    adapter: a folder that peft has saved, which is merged into the weights.
    Raises IndexerError for a model that is not there, is damaged, would run code, lacks weights, has no fast
    tokenizer, does not run on tokens, or does not fit the GPUs.
    Cost: reading the weights twice (once for their SHA-256), and two forward passes over 16 tokens.
    """
    kind = torch.device(device_type(device))
    if dtype != "auto" and dtype not in DTYPES:
        raise IndexerError(
            f"dtype {dtype}: not one that activations are indexed in; choose among auto, {', '.join(DTYPES)}"
        )
    tuned = None if adapter is None else open_adapter(adapter)
    source = resolve(name, revision)
    ends: dict[str, int | None] = {}
    if source.gguf:
        files = [source.folder / source.gguf]
        stored, ends = read_gguf(source, files[0])
    else:
        files = weight_files(name, source.folder)
        stored = read_headers(name, files)
    with quiet_transformers():
        config = _load_config(source)
        form = form_of(source, config)
        chosen = _dtype(dtype, checkpoint_dtype(name, stored, form.name is not None), kind)
        place = placement(name, device, weight_bytes(stored, chosen), chosen)
        _check_attention(source, config, attention)
        tokenizer = load_tokenizer(source, config)
        settle_as_asked(source, tokenizer, ends)
        model, not_used = _load_weights(source, config, stored, chosen, place, attention, form)
        if tuned is not None:
            model, of_heads = merged(model, tuned)
            not_used = [*not_used, *of_heads]
        loaded = adapt(model, tokenizer, name=name)
    if (tokenizer.pad_token_id or 0) >= embedding_rows(loaded.model):
        # one that was added to the tokenizer alone: any other id fills up a row as well
        tokenizer.pad_token = None
    loaded.provenance.update(
        revision=source.revision,
        digest=digest(files),
        weights_not_used=not_used,
        code_not_run=source.code_not_run,
        **(tuned.provenance if tuned else {}),
        **({"quantisation": form.name} if form.name else {}),
    )
    return loaded


def adapt(model: nn.Module, tokenizer: Any = None, *, name: str = "model") -> LoadedModel:
    """A model that is already in memory, as `load` would return it; it is put into evaluation mode.

    model: a base model of transformers, without a head. Raises IndexerError as `load` does.
    """
    model.eval().requires_grad_(False)
    parameter = next(model.parameters())
    away = [path for path, weight in model.named_parameters() if weight.is_meta]
    if away:
        raise IndexerError(
            f"model {name}: {len(away)} of its weights are not in memory, {away[0]} among them; load it whole"
        )
    if parameter.dtype not in DTYPES.values():
        raise IndexerError(
            f"model {name}: weights in {parameter.dtype}; activations are indexed in {', '.join(DTYPES)}"
        )
    part, sample = sampled(model)
    whole, model = model, model.get_submodule(part)
    stacks, provenance = stacks_of(model), _provenance(whole, name, part)
    if stacks:
        provenance["decoder_start_token_id"] = start_token(model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=embeddings(model).device,
        dtype=parameter.dtype,
        context=context_length(model),
        part=part,
        sample=sample,
        provenance=provenance,
        stacks=stacks,
    )


def context_length(model: nn.Module) -> int | None:
    """The longest sequence that the model's positions allow, or None where they set no bound (ALiBi).

    Of a model with two stacks that is one token less, for the decoder reads a start token too.
    """
    positions = _positions(model)
    return None if positions is None else positions - bool(stacks_of(model))


def _positions(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = config.get_text_config()
    if getattr(config, "alibi", False):
        return None
    found = (getattr(config, name, None) for name in CONTEXT_NAMES)
    positions = next((value for value in found if isinstance(value, int) and value > 0), None)
    if positions is None:
        return None
    # RoBERTa counts positions from one past the padding token's id, which has a row of its own in the table
    for path, table in model.named_modules():
        if (
            isinstance(table, nn.Embedding)
            and path.endswith("position_embeddings")
            and table.padding_idx is not None
        ):
            return table.num_embeddings - table.padding_idx - 1
    return positions


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block transformers shows no progress bars or advice, which would run into our output."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    spreading = getLogger("accelerate")
    level = spreading.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    spreading.setLevel(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        spreading.setLevel(level)
        if bars:
            logging.enable_progress_bar()


def _dtype(asked: str, stored: str, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    if stored == "F16" and device.type == "cpu":
        return torch.float32
    return DTYPES[STORED[stored]]


def _load_config(source: Source) -> Any:
    from transformers import AutoConfig

    with blamed_on(source, "config.json is none that transformers understands"):
        config = AutoConfig.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True, **source.gguf_file
        )
    # padding is never read, so it needs no embedding of its own; without one transformers makes no table
    text = config.get_text_config()
    padding, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(rows, int) and not -rows <= padding < rows:
        text.pad_token_id = None
    return config


def _check_attention(source: Source, config: Any, asked: str) -> None:
    """Raise IndexerError where flash attention is wanted and not there; transformers may look on the hub."""
    from transformers import utils

    parts = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    named = [getattr(part, "_attn_implementation", None) for part in parts] if asked == "auto" else [asked]
    for choice in named:
        if not str(choice).startswith("flash_attention_"):
            continue
        is_available = getattr(utils, f"is_flash_attn_{str(choice)[-1]}_available", lambda: False)
        if not is_available():
            who = "config.json asks for" if asked == "auto" else "--attention asks for"
            raise IndexerError(
                f"model {source.name}: {who} {choice}, whose package or GPU is not there; take "
                "--attention sdpa"
            )


def _load_weights(
    source: Source,
    config: Any,
    stored: Mapping[str, Stored],
    dtype: torch.dtype,
    place: Placement,
    attention: str,
    form: Form,
) -> tuple[nn.Module, list[str]]:
    """The model, and what its files hold that it does not use."""
    chosen: dict[str, Any] = {"device_map": "auto", "max_memory": place.most} if place.most else {}
    if not place.most and not form.dense:
        chosen["device_map"] = {"": place.device}
    if attention != "auto":
        chosen["attn_implementation"] = attention
    for kind in _classes(config):
        # one that lacks weights makes room for the next
        model: Any = None
        # the bar that it shows while it reads GGUF, and what it warns of when it is told how to read a form,
        # come by other ways than its own
        hidden = redirect_stderr(StringIO()) if form.name else nullcontext()
        with blamed_on(source, "transformers cannot load it"), hidden:
            model, report = kind.from_pretrained(
                source.folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                # reported below by name, where transformers would refer to a report on the screen
                ignore_mismatched_sizes=True,
                **chosen,
                **form.told,
            )
        # the pooler sits behind the last MLP and is never run; anything else missing would be random numbers
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if not missing:
            break
    check_frequencies(source.name, model)
    if form.name is None:
        check_dtypes(source.name, model, stored, report["unexpected_keys"])
    if report["mismatched_keys"]:
        weight, held, wanted = min(report["mismatched_keys"])
        raise IndexerError(
            f"model {source.name}: {weight} is stored as {list(held)}, but config.json makes it "
            f"{list(wanted)}; weights and configuration do not belong together"
        )
    if missing:
        raise IndexerError(
            f"model {source.name}: its weight files lack {len(missing)} of the weights of "
            f"{type(model).__name__}, {missing[0]} among them; they do not belong to this configuration"
        )
    not_used = left_out(source.name, model, config, stored, report["unexpected_keys"])
    if not place.most:
        whole = _without_head(model)
        return whole.to(place.device) if form.dense else whole, not_used
    places = getattr(model, "hf_device_map", {})
    away = [path for path, device in places.items() if device not in place.most]
    if away:
        raise IndexerError(
            f"model {source.name}: cut into whole layers its weights do not fit the {len(place.most)} GPUs, "
            f"{away[0] or 'all of it'} being the first without room; take --device cpu"
        )
    return _without_head(model), not_used


def _classes(config: Any) -> list[Any]:
    """Which of transformers' classes may load a model, the first that finds all of its weights being the one.

    Some types have no base model, or one whose weights have other names than in the files: those are written
    by a class with a head, which config.json names.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base = MODEL_MAPPING_NAMES.get(config.model_type)
    names = [name for name in getattr(config, "architectures", None) or () if name != base]
    kinds = [getattr(transformers, name, None) for name in names]
    found = [
        kind for kind in kinds if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    ]
    return [transformers.AutoModel, *found] if base or not found else found


def _without_head(model: Any) -> nn.Module:
    while model.base_model is not model:
        model = model.base_model
    return model


def _provenance(model: nn.Module, name: str, part: str) -> dict[str, Any]:
    import transformers

    config = getattr(model, "config", None)
    return {
        "name": name,
        "revision": None,
        "digest": None,
        "architecture": type(model).__name__,
        "part": part or None,
        "model_type": getattr(config, "model_type", None),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),
    }
