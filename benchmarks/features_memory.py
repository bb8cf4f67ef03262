"""Peak memory of a build that indexes the features of a dictionary, over that of their states and weights.

The command itself, `neuron-indexer build` with what it keeps of features by default, in processes of its own:
once for a dictionary of 64 features, which tells what the model and all else take, and once for a large one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from indexer_kernels import Keep
from safetensors.torch import save_file

from benchmarks.child import ChildError, Measured, measured
from benchmarks.features import random_encoder
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.subject import prepare
from indexer import open_index
from indexer.commands.demo import model_folder
from indexer.names import SAE

FEW = 64


@dataclass(frozen=True)
class Options:
    features: int = option(65_536, "of the dictionary", quick=300)
    tokens: int = option(20_000, "of the corpus", quick=300)
    context: int = option(256, "tokens of a sequence")
    layer: int = option(5, "whose output is encoded", quick=1)
    active: int = option(50, "features of a token that are active, about", quick=10)
    threads: int | None = option(None, "of a build; without it the machine's cores", quick=1)


def run(options: Options) -> Report:
    """Build both, check what they hold, subtract."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        weights = _write(options, folder)
        few, _ = _built(options, folder, FEW)
        whole, keep = _built(options, folder, options.features)
    states = options.features * keep.bytes_per_unit()
    over = whole.peak_bytes - few.peak_bytes - states - weights
    results: dict[str, Any] = {
        "peak_bytes": whole.peak_bytes,
        "peak_bytes_of_few": few.peak_bytes,
        "bytes_per_feature": keep.bytes_per_unit(),
        "states_bytes": states,
        "weights_bytes": weights,
        "over_bytes": over,
        "seconds": whole.seconds,
    }
    figures = (whole.peak_bytes, few.peak_bytes, states, weights, over)
    columns = ("features", "peak MB", f"of {FEW}", "states", "weights", "over", "seconds")
    row = (f"{options.features:,}", *(f"{size / 1e6:,.0f}" for size in figures), f"{whole.seconds:.0f}")
    table = Table(f"Peak memory of a build of features, MiniLM, {options.tokens:,} tokens", columns, [row])
    return Report(settings_of(options), ["both indexes were verified"], results, [table])


def _write(options: Options, folder: Path) -> int:
    """A corpus, and two dictionaries as SAELens saves them; returns the bytes of the large one's weights."""
    with torch.inference_mode():
        subject = prepare("minilm", "float32", options.tokens, folder)
        block = subject.loaded.model.encoder.layer[options.layer]  # type: ignore[index,union-attr]
        weight, bias = random_encoder(subject, block, options.features, options.active)  # type: ignore[arg-type]
    for features in (FEW, options.features):
        dictionary = _dictionary(folder, features)
        dictionary.mkdir(parents=True)
        tensors = {"W_enc": weight[:features].t().contiguous(), "b_enc": bias[:features].clone()}
        save_file(tensors, dictionary / "sae_weights.safetensors")
        settings = {
            "architecture": "standard", "d_in": weight.shape[1], "d_sae": features, "dtype": "float32",
            "apply_b_dec_to_input": False, "normalize_activations": "none", "sae_lens_version": "6.54.12",
            "metadata": {"hook_name": f"encoder.layer.{options.layer}", "hook_layer": options.layer},
        }  # fmt: skip
        (dictionary / "cfg.json").write_text(json.dumps(settings))
    return weight.nbytes + bias.nbytes


def _dictionary(folder: Path, features: int) -> Path:
    return folder / str(features) / "random"


def _built(options: Options, folder: Path, features: int) -> tuple[Measured, Keep]:
    """One build in a process of its own; what is kept of a feature. Raises WrongResultError."""
    output = folder / "features.index"
    command = [sys.executable, "-m", "indexer", "build", str(model_folder()), str(folder / "corpus")]
    command += ["--output", str(output), "--overwrite", "--max-tokens", str(options.tokens), "--sites", SAE]
    command += ["--context", str(options.context)]
    command += ["--sae", str(_dictionary(folder, features))]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    say(f"building {features:,} features")
    try:
        taken = measured(command)
    except ChildError as error:
        raise WrongResultError(f"the build of {features:,} features failed: {error}") from error
    with open_index(output) as index:
        index.verify()
        (entry,) = index.manifest.layers
        if entry.units != features:
            raise WrongResultError(f"the index has {entry.units:,} features, asked for were {features:,}")
        return taken, entry.keep
