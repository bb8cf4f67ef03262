"""`up`: what an index says of the other factor at the peaks of gated MLPs, against the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import indexer
from indexer.building.states import States
from indexer.index.verify import verify_index
from indexer.partials.merge import merge_indexes
from tests.tiny_models import LAYERS, UNITS, saved, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

Place = tuple[int, int, int]


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    generator, files = np.random.default_rng(0), []
    for number in range(4):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(" ".join(f"w{word}" for word in generator.integers(0, 90, 100)))
    return [str(file) for file in files]


def build(model: Path, texts: list[str], output: Path, **options: Any) -> Path:
    settings = {"context": 32, "threads": 1, "top": 3, "bottom": 2, "piece_bytes": 300, **options}
    return Path(indexer.build(model=str(model), corpus=texts, output=str(output), **settings))


def examples(index: Path) -> list[dict[str, Any]]:
    verify_index(index, full=True)
    with indexer.open_index(index) as opened:
        return opened.sql("SELECT * FROM examples ORDER BY layer, unit, kind, rank").to_pylist()


def recording(seen: dict[tuple[int, Place], np.ndarray]) -> type[States]:
    """The states of a build, which also write down every factor that they are handed."""

    class Recording(States):
        def take(self, key: Any, values: Any) -> None:
            up = values.up.float().numpy().copy()
            super().take(key, values)
            rows = values.sequences
            for start, length, *ids in zip(rows.start, rows.length, rows.document, rows.ordinal, strict=True):
                for position in range(length):
                    place = int(ids[0]), int(ids[1]), position
                    seen[key.layer, place] = up[start + position]

    return Recording


def of_the_model(folder: Path, texts: list[str], dtype: str) -> dict[tuple[int, Place], np.ndarray]:
    """What transformers computes, each sequence by itself."""
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    caught: list[torch.Tensor] = []
    for layer in model.layers:
        linear = getattr(layer.mlp, "up_proj", None) or layer.mlp.gate_up_proj
        linear.register_forward_hook(lambda module, given, made: caught.append(made[0, :, -UNITS:]))
    found = {}
    for number, text in enumerate(texts):
        ids = tokenizer()(Path(text).read_text(), add_special_tokens=False)["input_ids"]
        for ordinal, first in enumerate(range(0, len(ids), 30)):
            piece = [1, *ids[first : first + 30], 2]
            caught.clear()
            with torch.inference_mode():
                model(input_ids=torch.tensor([piece]))
            for layer in range(LAYERS):
                for position in range(len(piece)):
                    place = number << 40, ordinal, position
                    found[layer, place] = caught[layer][position].float().numpy()
    return found


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "float32"), ("qwen3", "bfloat16"), ("phi3", "float32")]
)
def test_every_example_of_a_gated_mlp_holds_the_other_factor(
    name: str, dtype: str, kernels: str, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "model", name)
    seen: dict[tuple[int, Place], np.ndarray] = {}
    monkeypatch.setattr("indexer.building.gathered.States", recording(seen))
    rows = examples(build(model, texts, tmp_path / "i", dtype=dtype, kernels=kernels))
    plain = of_the_model(model, texts, dtype)
    assert len([row for row in rows if row["kind"] != "sample"]) == LAYERS * UNITS * 5
    assert {row["kind"] for row in rows} == {"top", "bottom", "sample"}
    for row in rows:
        key = row["layer"], (row["document"], row["sequence"], row["position"])
        assert row["up"] == seen[key][row["unit"]]
        near = 1e-4 if dtype == "float32" else 0.1
        assert row["up"] == pytest.approx(plain[key][row["unit"]], rel=near, abs=near)
    signs = {(row["value"] > 0, row["up"] > 0) for row in rows}
    assert len(signs) == 4


def test_shards_hold_what_the_whole_does(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    whole = examples(build(model, texts, tmp_path / "whole"))
    parts = [build(model, texts, tmp_path / f"{part}", shard=(part, 2)) for part in range(2)]
    merge_indexes(parts, tmp_path / "merged")
    assert examples(tmp_path / "merged") == whole


@pytest.mark.parametrize(
    ("name", "hooks", "told"),
    [("llama", True, "not seen"), ("llama_mish", False, "not seen"), ("gpt2", False, None)],
)
def test_it_is_null_where_no_factor_was_seen_and_info_says_so(
    name: str, hooks: bool, told: str | None, texts: list[str], tmp_path: Path
) -> None:
    index = build(saved(tmp_path / "model", name), texts, tmp_path / "i", hooks=hooks)
    assert {row["up"] for row in examples(index)} == {None}
    with indexer.open_index(index) as opened:
        assert [layer.get("up") for layer in opened.info()["model"]["layers"]] == [told] * LAYERS
