"""Adapters of peft: what is indexed is the model that merging by hand gives."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import indexer
from indexer.errors import IndexerError
from indexer.models import load
from indexer.partials.merge import merge_indexes
from tests.test_pipeline import tables
from tests.tiny_models import fresh, saved, tokenizer

peft = pytest.importorskip("peft", reason="the extra adapters is not installed")


def with_head(name: str = "llama") -> Any:
    import transformers

    base = fresh(name)
    whole = transformers.AutoModelForCausalLM.from_config(base.config)
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict())
    return whole.eval()


def adapted(model: Any, folder: Path, config: Any = None, seed: int = 5) -> Path:
    """An adapter with random weights, saved; LoRA if nothing else is asked for."""
    config = config or peft.LoraConfig(
        r=4, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "down_proj", "lm_head"]
    )
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight) * 0.3)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters of it, the model with the first merged by hand, and a corpus."""
    folder = tmp_path_factory.mktemp("adapters")
    with_head().save_pretrained(folder / "model")
    adapted(with_head(), folder / "other", seed=6)
    adapted(with_head(), folder / "adapter")
    by_hand = peft.PeftModel.from_pretrained(with_head(), folder / "adapter").merge_and_unload()
    by_hand.save_pretrained(folder / "by hand")
    for name in ("model", "by hand"):
        tokenizer().save_pretrained(folder / name)
    for name in ("a", "b"):
        lines = [{"text": f"w{n} w{n % 7} w{n * 5 % 90} w3 w{90 - n}"} for n in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def built(folders: Path, model: str, output: Path, corpus: str = "a", **options: Any) -> Path:
    plain = {"sites": "mlp,attn", "top": 3, "bottom": 2, "context": 16, "panel": 4, "threads": 1}
    given: dict[str, Any] = {**plain, **options}
    if "adapter" in given:
        given["adapter"] = str(folders / given["adapter"])
    where = [str(folders / f"{corpus}.jsonl")]
    return Path(indexer.build(model=str(folders / model), corpus=where, output=output, **given))


def refused(model: Path, adapter: Path) -> str:
    with pytest.raises(IndexerError) as caught:
        load(str(model), adapter=str(adapter))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_index_is_that_of_the_model_merged_by_hand(folders: Path, tmp_path: Path) -> None:
    ours = built(folders, "model", tmp_path / "ours", adapter="adapter")
    theirs, without = (built(folders, name, tmp_path / name) for name in ("by hand", "model"))
    assert tables(ours) == tables(theirs) != tables(without)
    described = indexer.open_index(ours).manifest.model
    assert described["adapter"] == str(folders / "adapter")
    assert len(described["adapter_digest"]) == 64
    assert {"lm_head.lora_A.weight", "lm_head.lora_B.weight"} <= set(described["weights_not_used"])


def test_an_adapter_belongs_to_what_an_index_was_made_of(folders: Path, tmp_path: Path) -> None:
    index = built(folders, "model", tmp_path / "index", adapter="adapter")
    same = shutil.copytree(folders / "adapter", tmp_path / "same")
    with pytest.raises(IndexerError, match=r"the adapter's digest was [0-9a-f]{64} and is null"):
        built(folders, "model", index, "b", append=True)
    with pytest.raises(IndexerError, match="the adapter's digest was"):
        built(folders, "model", index, "b", append=True, adapter="other")
    parts = [
        built(folders, "model", tmp_path / f"part{number}", shard=(number, 2), adapter=name)
        for number, name in enumerate(["adapter", "other"])
    ]
    with pytest.raises(IndexerError, match="the model's adapter_digest is"):
        merge_indexes(parts, tmp_path / "merged")
    built(folders, "model", index, "b", append=True, adapter=str(same))
    assert indexer.open_index(index).manifest.totals["documents"] == 80


@pytest.mark.slow
def test_workers_and_shards_merge_the_same_adapter(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    options = {"numerics": "reproducible", "piece_bytes": 300, "device": "cpu"}
    whole = built(folders, "model", tmp_path / "whole", adapter="adapter", **options)
    # the path as it is given, from the folder that one is in
    several = indexer.build(
        model="model", corpus=["a.jsonl"], output=tmp_path / "workers", adapter="adapter", workers=2,
        sites="mlp,attn", top=3, bottom=2, context=16, panel=4, **options,
    )  # fmt: skip
    shards = [
        built(folders, "model", tmp_path / f"{number}", shard=(number, 2), adapter="adapter", **options)
        for number in range(2)
    ]
    merged = merge_indexes(shards, tmp_path / "merged")
    found, expected = tables(Path(several)), tables(whole)
    # of which the names of sources are as they were given
    assert found.pop("documents") != expected["documents"]
    assert found == {name: rows for name, rows in expected.items() if name != "documents"}
    assert tables(merged) == expected
    for index in (Path(several), merged):
        described = indexer.open_index(index).manifest
        assert described.model["adapter_digest"] == indexer.open_index(whole).manifest.model["adapter_digest"]
        assert described.configuration["adapter"].endswith("adapter")


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True),
        peft.LoKrConfig(r=2, target_modules=r".*layers\.[12]\.mlp\..*_proj"),
        peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["dora", "lokr", "ia3"],
)
def test_an_adapter_made_for_the_model_without_a_head(tmp_path: Path, config: Any) -> None:
    model, adapter = saved(tmp_path / "model"), adapted(fresh("llama"), tmp_path / "adapter", config)
    expected = peft.PeftModel.from_pretrained(fresh("llama"), adapter).merge_and_unload().state_dict()
    found = load(str(model), adapter=str(adapter)).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert any(not torch.equal(found[name], weight) for name, weight in fresh("llama").state_dict().items())


def test_what_cannot_be_merged_is_refused(folders: Path, tmp_path: Path) -> None:
    model = folders / "model"
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "one of type PROMPT_TUNING cannot be merged into weights" in refused(
        model, adapted(with_head(), tmp_path / "prompts", prompts)
    )
    gpt2 = peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True)
    other = adapted(with_head("gpt2"), tmp_path / "gpt2", gpt2)
    message = refused(model, other)
    assert "LlamaModel has no place for its transformer.h.*.mlp.c_fc.lora_A.weight (3)" in message
    narrow = adapted(_narrow(), tmp_path / "narrow")
    assert "peft cannot load it for this model (RuntimeError: " in refused(model, narrow)


def _narrow() -> Any:
    import transformers

    config = fresh("llama").config
    config.intermediate_size = 64
    return transformers.AutoModelForCausalLM.from_config(config)


def test_files_that_are_refused(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folders / "model"
    assert "no adapter_config.json there" in refused(model, tmp_path)
    copy = shutil.copytree(folders / "adapter", tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "megatron_config": {"a": 1}}))
    assert "sets megatron_config, which asks for code to be imported" in refused(model, copy)
    (copy / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NEWER"}))
    assert "peft does not understand its adapter_config.json" in refused(model, copy)
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert "no adapter_model.safetensors there, and weights in other forms could run code" in refused(
        model, copy
    )
    message = refused(folders / "adapter", folders / "adapter")
    assert "this is an adapter of its base model, not a model" in message
    assert f"with --adapter {folders / 'adapter'}" in message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(indexer.errors, "find_spec", lambda name: None)
    message = refused(model, folders / "adapter")
    assert message == "--adapter needs peft, accelerate: pip install peft accelerate"
