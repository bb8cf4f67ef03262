"""A model's weight files: which they are, what their headers say, and what of it the model does not use.

transformers leaves out whatever a file holds beyond the weights of the class that it loads, and converts what
is stored in another dtype, integers included. So what is left out or stored as integers is looked at here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from indexer.errors import IndexerError
from indexer.models.source import INDEX, SINGLE, shards

# dtypes of weights that can be run, as safetensors calls them, and what the model is loaded in for them
STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
OTHER_PROGRAMS = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX"}
# what old checkpoints hold of positions and masks, which models compute today
_BUFFERS = r"""(?x: (^|\.)(position_ids | token_type_ids | inv_freq | cos_cached | sin_cached | masked_bias
    | causal_mask | relative_position_index | num_batches_tracked | version | _float_tensor)$)"""
# What stands beside a base model's parts and is not run for the activations of text: heads, the predictions
# of further tokens, and towers for pictures and sound.
_BESIDE = re.compile(r"pooler|head|cls|classifier|score|predict|logits|mtp")
_OTHER_SENSES = re.compile(r"vision|visual|image|video|audio|speech|sound")
# eight bits and less, as safetensors calls them
_QUANTISED = re.compile("[IU]8|F[468]")
_SHOWN = 10


@dataclass(frozen=True)
class Stored:
    """What a safetensors header says of one tensor. dtype: "F32", "BF16", "F8_E4M3", "I8" ..."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, in order of name.

    Raises IndexerError where there are none, saying what is there instead and what to do about it.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise IndexerError(f"model {name}: no {SINGLE} in {folder}, {_instead(folder)}")
    listed = shards(name, folder)
    missing = [file for file in listed if not (folder / file).is_file()]
    if missing:
        raise IndexerError(
            f"model {name}: {INDEX} lists {missing[0]}, which is not in {folder}; download it again"
        )
    return [folder / file for file in listed]


def read_headers(name: str, files: Sequence[Path], what: str = "model") -> dict[str, Stored]:
    """What the headers of safetensors files say, by the tensors' names. IndexerError where one is damaged.

    what: the name is of, for errors.
    """
    from safetensors import SafetensorError, safe_open

    stored = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a mapping
                    tensor = tensors.get_slice(key)
                    stored[key] = Stored(tensor.get_dtype(), tuple(tensor.get_shape()))
        except (SafetensorError, OSError) as error:
            raise IndexerError(
                f"{what} {name}: {file.name} is damaged ({error}); download it again"
            ) from error
    return stored


def checkpoint_dtype(name: str, stored: Mapping[str, Stored], quantised: bool = False) -> str:
    """The dtype of `STORED` that most weights have. Raises IndexerError where most have another one.

    quantised: a loader knows what to do with those that have another one.
    """
    elements: Counter[str] = Counter()
    for tensor in stored.values():
        if tensor.dtype in STORED or (tensor.dtype.startswith("F") and not quantised):
            elements[tensor.dtype] += prod(tensor.shape)
    if not elements:
        raise IndexerError(f"model {name}: its files hold no floating-point weights")
    most = max(elements, key=lambda dtype: elements[dtype])
    if most not in STORED:
        raise IndexerError(
            f"model {name}: weights stored as {most}; those that can be run are {', '.join(STORED)}"
        )
    return most


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


def check_dtypes(
    name: str, model: nn.Module, stored: Mapping[str, Stored], unexpected: Iterable[str]
) -> None:
    """Raise IndexerError where a weight of the model is stored as integers or in eight bits.

    transformers converts these like any other dtype, without the scales that belong to them.
    model, stored, unexpected: see `left_out`.
    """
    wanted = model.state_dict()
    unused = {*unexpected, *_silently_ignored(model, stored)}
    quantised = []
    for key, tensor in stored.items():
        if tensor.dtype in STORED or key in unused:
            continue
        places = _places(key, model) & wanted.keys()
        # one without a place of its own name was renamed or merged, if it is none of what is not used
        if any(wanted[place].is_floating_point() for place in places) or (
            not places and _QUANTISED.match(tensor.dtype)
        ):
            quantised.append(key)
    if quantised:
        raise IndexerError(
            f"model {name}: {_listed(quantised, 3)} stored as {stored[quantised[0]].dtype}; quantised "
            "weights are not supported, take the original model"
        )


def check_frequencies(name: str, model: nn.Module) -> None:
    """Raise IndexerError where the frequencies of rotary positions were never set.

    No file holds them: transformers computes them as it loads a model, and some versions forget it for some
    classes, which then run on whatever the memory held.
    """
    for path, values in model.named_buffers():
        if not path.endswith("inv_freq") or not values.numel():
            continue
        given = values.float().abs()
        # 0 is for what is not turned; none is near the ends of float32
        set_at_all = given.isfinite() & (values >= 0) & (given < 1e6) & ((given == 0) | (given > 1e-20))
        if not set_at_all.all() or not given.any():
            raise IndexerError(
                f"model {name}: the installed transformers leaves {path} of {type(model).__name__} unset, so "
                "its positions are random; take another version of transformers"
            )


def left_out(
    name: str, model: nn.Module, config: Any, stored: Mapping[str, Stored], unexpected: Iterable[str]
) -> list[str]:
    """What the files hold beyond the weights that the model uses, shortened: "h.*.attn.bias (12)".

    model: as transformers loaded it from `config` and the files whose headers are `stored`.
    unexpected: the names, after its renaming, that transformers reports as not used.
    Raises IndexerError where one of them belongs to what is run: the model would not be that of the files.
    """
    prefix = f"{model.base_model_prefix}."
    modules = {path for path, _ in model.named_modules()}
    # where the base model's names have its prefix, one without it is a head's; where none has it, one that is
    # none of the model's parts may be a head's too, unless the files are those of the base model alone
    prefixed = any(key.startswith(prefix) for key in stored)
    alone = type(model).__name__ in (getattr(config, "architectures", None) or ())
    run = [
        key
        for key in unexpected
        if not re.search(_BUFFERS, key)
        and not any(_is_mask(place, stored) for place in _places(key, model))
        and (key.startswith(prefix) or not prefixed)
        and _is_run(key.removeprefix(prefix), key.startswith(prefix) or alone, modules, config)
    ]
    if run:
        raise IndexerError(
            f"model {name}: its files hold {_listed(run, 3)}, for which {type(model).__name__} as "
            f"config.json makes it has no place; left out, activations would be others. {_way_out(run)}"
        )
    return shortened({*unexpected, *_silently_ignored(model, stored)}, _SHOWN)


def _silently_ignored(model: nn.Module, stored: Mapping[str, Stored]) -> set[str]:
    """What transformers knows that old or larger checkpoints hold besides, and does not report."""
    known: Any = model._keys_to_ignore_on_load_unexpected
    ignored = re.compile("|".join([_BUFFERS, *(known or ())]))
    wanted = model.state_dict().keys()
    return {key for key in stored if ignored.search(key) and not _places(key, model) & wanted}


def _is_mask(key: str, stored: Mapping[str, Stored]) -> bool:
    """Whether a tensor is the causal mask of an attention, which old checkpoints call its bias."""
    shape = stored[key].shape if key in stored else ()
    return key.endswith(".bias") and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _places(key: str, model: nn.Module) -> set[str]:
    """Where a tensor may belong in the model: checkpoints with a head put the base model's name in front."""
    prefix = f"{model.base_model_prefix}."
    return {key, key.removeprefix(prefix), prefix + key}


def shortened(names: Iterable[str], most: int) -> list[str]:
    """Names with * for each number, and how many each stands for where it is not one; at most so many."""
    patterns = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", key) for key in sorted(names))
    listed = [pattern if count == 1 else f"{pattern} ({count})" for pattern, count in patterns.items()]
    more = len(listed) - most
    return listed if more <= 0 else [*listed[:most], f"and {more} more"]


def _is_run(key: str, inside: bool, modules: set[str], config: Any) -> bool:
    """Whether a name that the base model has no place for belongs to what is run all the same.

    inside: whether the name is the base model's own if it is none of its parts'. modules: their paths.
    """
    parts = key.split(".")
    known = len(parts)
    while known and ".".join(parts[:known]) not in modules:
        known -= 1
    if "lm_head" in parts or any(map(_OTHER_SENSES.search, parts)):
        return False
    if not known:
        return inside and not _BESIDE.search(parts[0])
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    further = getattr(text, "num_nextn_predict_layers", None) or 0
    predicts = parts[known].isdecimal() and layers <= int(parts[known]) < layers + further
    return not predicts


def _way_out(names: Sequence[str]) -> str:
    if any("lora_" in key for key in names):
        return "Save the model without its adapter, and the adapter in a folder of its own, for --adapter"
    return (
        "Mend config.json (biases and numbers of layers are what it mostly lacks), or take files and "
        "configuration that belong together"
    )


def _listed(names: Iterable[str], most: int) -> str:
    return ", ".join(shortened(names, most))


def _instead(folder: Path) -> str:
    """What a folder without the usual weight files holds, and the way out."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    by_ending: dict[str, list[str]] = {}
    for file in files:
        by_ending.setdefault(Path(file).suffix, []).append(file)
    tensors = by_ending.get(".safetensors", [])
    of_shards = [file for file in tensors if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file)]
    if of_shards:
        count = int(of_shards[0].rpartition("-of-")[2].split(".")[0])
        if count == 1:
            return f"but {of_shards[0]}, which is all of it: rename it to {SINGLE}"
        return (
            f"nor {INDEX}, which tells what the {count} shards hold ({len(of_shards)} of them are there); "
            "download that file too"
        )
    if tensors:
        kind = "in Mistral's own naming" if tensors[0].startswith("consolidated") else "under another name"
        way_out = (
            "transformers needs the files that stand beside them, or their conversion"
            if tensors[0].startswith("consolidated")
            else f"rename the file to {SINGLE} if these are the model's weights"
        )
        return f"only weights {kind} ({', '.join(tensors[:3])}); {way_out}"
    if ".gguf" in by_ending:
        return f"but several GGUF files ({', '.join(by_ending['.gguf'][:3])}); give one of them as MODEL"
    pickles = [file for file in files if Path(file).suffix in PICKLES]
    if pickles:
        return (
            f"only {', '.join(pickles[:3])}, which could run code. Convert it once with "
            "model.save_pretrained(folder), or take a model that has safetensors"
        )
    for ending, program in OTHER_PROGRAMS.items():
        if ending in by_ending:
            of_it = ", ".join(by_ending[ending][:3])
            return f"only {of_it}, which is for {program}; take a model that has safetensors"
    return "nor weights in any other form; download it again"
