"""One architecture: made small, indexed, and judged against plain hooks, each sequence run alone."""

from __future__ import annotations

import inspect
import json
import random
import re
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import count
from logging import CRITICAL
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import indexer
from benchmarks.architectures_small import WORDS, head_class, small_config, small_model, tokenizer
from benchmarks.plain_experts import is_stack, neurons
from indexer.errors import IndexerError

CONTEXT = 64
# words in each document; the longest makes two sequences
LENGTHS = (3, 5, 9, 12, 20, 33, 50, 2, 1, 60, 90)
# of a value, or of a hundredth of the largest in its layer where that is more
TOLERANCE = 1e-3
# Experts meet few tokens: one that rounding moves by more, as by oneDNN's products, is soon the largest.
TOLERANCE_EXPERTS = 5e-3
SECONDS = 120
BOS = 1


@dataclass(frozen=True)
class Verdict:
    """RIGHT, WRONG, PARTIAL (MLPs left out), REFUSED (one line), CRASH (any other exception) or NOT MADE.

    paths: "fused", "hook" or both; functions: the activations; note: what differs, or what was said.
    """

    name: str
    verdict: str
    note: str = ""
    paths: str = ""
    functions: str = ""

    def plain(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def judged(name: str, folder: Path) -> Verdict:
    """The verdict on one model type; `folder` is made for it and removed."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(CRITICAL)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with redirect_stderr(StringIO()), _limited(SECONDS):
            return _judged(name, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judged(name: str, folder: Path) -> Verdict:
    try:
        model = small_model(small_config(name))
        model.save_pretrained(folder / "model")  # type: ignore[operator]
    # whatever a class makes of sizes that do not fit each other
    except Exception as error:
        return Verdict(name, "NOT MADE", _reason(error))
    tokenizer().save_pretrained(folder / "model")
    documents = _documents()
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    try:
        index_folder, without = _built(folder, corpus, any(map(is_stack, model.modules())))
    except IndexerError as error:
        return Verdict(name, "REFUSED", str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "/indexer/" in frame.filename]
        at = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return Verdict(name, "CRASH", _reason(error) + at)
    with indexer.open_index(index_folder) as index:
        described = index.manifest.model
        part = described.get("part") or ""
        try:
            places = {_key(layer): _place(layer["place"], layer.get("call")) for layer in described["layers"]}
            truth = Truth(folder / "model", described, list(places.values()), documents)
        except Exception as error:
            return Verdict(name, "WRONG", f"a sequence alone does not run: {_reason(error)}")
        wrong = _wrong(index, places, truth)
    left_out = truth.missed or without
    verdict = "WRONG" if wrong else "PARTIAL" if left_out else "RIGHT"
    note = wrong or f"left out: {left_out}" if left_out else wrong or (part and f"its part {part}")
    paths = "+".join(sorted({layer["path"] for layer in described["layers"]}))
    kinds = {(layer["function"] or "another") + " * up" * layer["gated"] for layer in described["layers"]}
    return Verdict(name, verdict, note, paths, ", ".join(sorted(kinds)))


def _built(folder: Path, corpus: Path, experts: bool) -> tuple[Path, str]:
    """An index of all neurons, and why some are left out of it where they are; nothing if not."""
    # a model may have no MLP that every token passes, and its experts may be refused
    choices = ["mlp,experts", "experts", "mlp"] if experts else ["mlp"]
    said: list[str] = []
    for sites in choices:
        try:
            index = indexer.build(
                model=str(folder / "model"), corpus=[str(corpus)], output=str(folder / "index"), sites=sites,
                context=CONTEXT, threads=1, window=(4, 1), top=3, bottom=3, panel=0,
            )  # fmt: skip
        except IndexerError as error:
            said.append(_line(error, folder))
        else:
            only_experts = sites == "experts" and "is a mixture of experts" in said[0]
            return Path(index), "" if only_experts or not said else said[-1]
    # of one that has both, why its experts are refused
    raise IndexerError(said[len(said) // 2])


def _line(error: IndexerError, folder: Path) -> str:
    return str(error).replace(str(folder), "").replace("\n", " | ")


class Truth:
    """What the model's linear layers were given, by plain pre-hooks, each sequence run alone.

    Of a stack of experts it is what they make of that, NaN where a token does not pass an expert.

    rows: by place, [counted tokens, units], float32. at: by (document, sequence) and place, [tokens, units].
    missed: linear layers that read and write what the indexed ones do, ran, and are not among them.
    """

    def __init__(
        self, folder: Path, described: dict[str, Any], indexed: list[str], documents: list[str]
    ) -> None:
        model = _plain(folder, described["architecture"])
        paths = {place.partition(",")[0] for place in indexed}
        projections = [model.get_submodule(path) for path in paths]
        shapes = {_shape(module) for module in projections if not is_stack(module)}
        watched = {
            path: module
            for path, module in model.named_modules()
            if path in paths or (isinstance(module, nn.Linear | Conv1D) and _shape(module) in shapes)
        }
        self.at = dict(_alone(model.get_submodule(described.get("part") or ""), watched, documents))
        ran = set.union(*(set(values) for values in self.at.values()))
        # the first and the last token are special
        self.rows = {
            place: np.concatenate([values[place][1:-1] for values in self.at.values()]) for place in indexed
        }
        kinds = {re.sub(r"\b\d+\b", "*", path) for path in sorted(ran - set(indexed))}
        self.missed = ", ".join(sorted(kinds))


def _place(path: str, call: int | None) -> str:
    """A module's path, and which of its calls in a forward pass if it is not the first."""
    return f"{path}, call {call}" if call else path


def _key(row: dict[str, Any]) -> str:
    return f"{row['site']}.{row['layer']}"


def _wrong(index: indexer.Index, projections: dict[str, str], truth: Truth) -> str:
    """What differs first, or nothing."""
    units = index.sql(
        "SELECT site || '.' || layer AS key, count, maximum, minimum, mean FROM units "
        "ORDER BY site, layer, unit"
    )
    columns = {name: units[name].to_numpy(zero_copy_only=False) for name in units.column_names}
    for layer, path in projections.items():
        mine, rows = columns["key"] == layer, truth.rows[path]
        least, count = 0.01 * np.nanmax(np.abs(rows)), (~np.isnan(rows)).sum(0)
        tolerance = TOLERANCE_EXPERTS if (count < len(rows)).any() else TOLERANCE
        if (columns["count"][mine] != count).any():
            unit = int(np.argmax(columns["count"][mine] != count))
            return f"{layer} ({path}): {columns['count'][mine][unit]} tokens counted of {count[unit]}"
        mean = np.nansum(rows, 0) / np.maximum(count, 1)
        extremes = {"maximum": np.fmax.reduce(rows), "minimum": np.fmin.reduce(rows)}
        for name, true in (*extremes.items(), ("mean", mean)):
            apart = np.abs(columns[name][mine] - true) / np.maximum(np.abs(true), least)
            # so that a NaN is wrong too
            bad = np.count_nonzero(~(apart <= tolerance) & (count > 0))
            if bad:
                return (
                    f"{layer} ({path}): {name} off by {apart.max():.2g} in {bad} of {len(apart)} units"
                )
    peaks = index.sql(
        "SELECT site, layer, unit, value, document, sequence, position FROM examples "
        "WHERE kind = 'top' AND rank = 1 ORDER BY site, layer, unit"
    )
    for peak in peaks.to_pylist():
        path = projections[_key(peak)]
        rows = truth.rows[path]
        least = 0.01 * np.nanmax(np.abs(rows))
        tolerance = TOLERANCE_EXPERTS if np.isnan(rows).any() else TOLERANCE
        values = truth.at[peak["document"] & ((1 << 40) - 1), peak["sequence"]][path]
        true, value = float(values[peak["position"], peak["unit"]]), peak["value"]
        if not abs(true - value) <= tolerance * max(abs(true), least):
            return f"{path}, unit {peak['unit']}: {true:.4g} where the index has {value:.4g}"
    return ""


def _plain(folder: Path, architecture: str) -> Any:
    """The model of a checkpoint that is of this class, without heads."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = head_class(config).from_pretrained(folder, dtype=torch.float32).eval()
    while type(model).__name__ != architecture and model.base_model is not model:
        model = model.base_model
    if type(model).__name__ != architecture:
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def _alone(
    model: nn.Module, watched: dict[str, nn.Module], documents: list[str]
) -> Iterator[tuple[tuple[int, int], dict[str, NDArray[np.float32]]]]:
    """(document, sequence), and what each watched module was given there: [tokens, units].

    A decoder that has an encoder reads them behind a start token, whose row is left out.
    """
    given: dict[str, NDArray[np.float32]] = {}
    two_stacks = getattr(model.config, "is_encoder_decoder", False)
    decoder = set(model.get_decoder().modules()) if two_stacks else set()  # type: ignore[operator]
    if two_stacks:
        decoder -= set(model.get_encoder().modules())  # type: ignore[operator]

    def keeps(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *kwargs.values())
            if is_stack(module):
                made = neurons(module, values)
                rows = made.reshape(len(made), -1)
            else:
                x: Tensor = values[0]
                rows = x.detach().float().reshape(-1, x.shape[-1]).numpy()
            place = next(place for call in count() if (place := _place(path, call)) not in given)
            given[place] = rows[int(module in decoder) :]

        return hook

    for path, module in watched.items():
        module.register_forward_pre_hook(keeps(path), with_kwargs=True)
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    for document, text in enumerate(documents):
        ids = [int(word[1:]) + 4 for word in text.split()]
        for sequence, first in enumerate(range(0, len(ids), CONTEXT - 2)):
            given.clear()
            tokens = [BOS, *ids[first : first + CONTEXT - 2], 2]
            with torch.inference_mode():
                read = {"decoder_input_ids": torch.tensor([[BOS, *tokens]])} if decoder else {}
                model(input_ids=torch.tensor([tokens]), **read, **no_cache)
            # some fill a sequence up at its end
            yield (document, sequence), {place: x[: len(tokens)] for place, x in given.items()}


def _documents() -> list[str]:
    chosen = random.Random(0)
    return [" ".join(f"w{chosen.randrange(WORDS - 4)}" for _ in range(length)) for length in LENGTHS]


def _shape(module: nn.Module) -> tuple[int, int]:
    """Width of what a linear layer is given, and of what it returns."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape  # type: ignore[misc]
    return int(inputs), int(outputs)


def _reason(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    # where this machine keeps its packages is nobody's business
    text = re.sub(r"/\S*/site-packages/", "", text)
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError within the block once this process has computed for so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
