"""Dictionaries in the files of each library, encoded as that library encodes them.

tests/fixtures/dictionaries/make.py made them, with the libraries themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.errors import IndexerError
from indexer.sites.sae import source
from indexer.sites.sae.dictionary import Dictionary, Gated, Jump, TopK
from indexer.sites.sae.source import named, read

FIXTURES = Path(__file__).parent / "fixtures" / "dictionaries"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.safetensors"))
# where they read
POINTS = {
    "saelens-standard-hook_z": ["blocks.1.attn.hook_z"],
    "sparsify-transcoder": ["layers.1.mlp.input"],
    "sparsify": ["layers.1.mlp.output"],
    "circuit_tracer-set": ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"],
    "circuit_tracer-clt": ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"],
    "gemma_scope-1": ["blocks.1.hook_mlp_out"],
    "gemma_scope-2": ["model.layers.1.pre_feedforward_layernorm.output"],
}  # fmt: skip


def encode(dictionary: Dictionary, x: Tensor, width: int) -> Tensor:
    """All values, from blocks of units."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())

    made = []
    for first, values in dictionary.blocks(dictionary.source(x), width, product):
        assert first == width * len(made)
        made.append(values.relu() if dictionary.activation.function == "relu" else values.clone())
    return torch.cat(made, dim=1)


@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_library(case: str, width: int) -> None:
    expected = load_file(FIXTURES / case / "expected.safetensors")
    x = expected.pop("x")
    dictionaries = [dictionary.chosen(None) for dictionary in read(str(FIXTURES / case))]
    assert len(dictionaries) == len(expected)
    for dictionary, values in zip(dictionaries, expected.values(), strict=True):
        found = encode(dictionary, x, width).float()
        # weights in quarters leave nothing to round, but for exp(r_mag)
        quarters = bool((dictionary.weight * 4 % 1 == 0).all() and (x * 4 % 1 == 0).all())
        exact = quarters and not isinstance(dictionary.activation, Gated)
        assert 0 < (values != 0).float().mean() < 0.9
        assert torch.equal(found != 0, values != 0)
        assert dictionary.activation.signed == bool((values < 0).any())
        if exact:
            assert torch.equal(found, values)
        else:
            torch.testing.assert_close(found, values, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_where_they_read(case: str) -> None:
    points = next((POINTS[name] for name in POINTS if case.startswith(name)), ["blocks.1.hook_resid_post"])
    assert [dictionary.point for dictionary in read(str(FIXTURES / case))] == points


def test_a_threshold_that_is_met_is_not_passed() -> None:
    """And a negative one makes no negative value of SAELens's, but does of circuit-tracer's."""
    met_at_all = 0
    for case in CASES:
        (dictionary, *_) = read(str(FIXTURES / case))
        if not isinstance(dictionary.activation, Jump):
            continue
        expected = load_file(FIXTURES / case / "expected.safetensors")
        assert dictionary.bias is not None
        pre = dictionary.source(expected["x"]) @ dictionary.weight.t() + dictionary.bias
        threshold = dictionary.activation.threshold
        met, values = (pre == threshold) & (pre != 0), expected["values_0"]
        met_at_all += int(met.sum())
        assert not values[met].any()
        between = (threshold < pre) & (pre < 0)
        assert between.any() == bool((threshold < 0).any())
        assert bool(values[between].any()) == case.startswith("circuit")
    assert met_at_all > 30


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("width", [1, 3, 10])
def test_of_equal_values_the_first_are_taken(width: int, absolute: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randint(-2, 3, (200, 10), generator=generator).float()
    k = 4
    size = pre.abs() if absolute else pre
    best = torch.sort(size, dim=1, descending=True, stable=True).indices[:, :k]
    wanted = torch.zeros_like(pre).scatter(1, best, pre.gather(1, best))
    blocks = ((first, pre[:, first : first + width]) for first in range(0, 10, width))
    values, units = TopK(k, rectified=False, absolute=absolute).chosen(blocks)
    assert torch.equal(torch.zeros_like(pre).scatter(1, units, values), wanted)


def test_more_places_than_features() -> None:
    (dictionary,) = read(str(FIXTURES / "sparsify-many"))
    values = load_file(FIXTURES / "sparsify-many" / "expected.safetensors")["values_0"]
    assert dictionary.activation.k == values.shape[1]  # type: ignore[attr-defined]


def changed(case: str, folder: Path, change: Callable[[Path], None]) -> Path:
    copy = shutil.copytree(FIXTURES / case, folder / case)
    change(copy)
    return copy


def keys(name: str, **settings: Any) -> Callable[[Path], None]:
    """Changes keys of the only file of a name; those within others as a__b."""

    def change(folder: Path) -> None:
        (file,) = folder.rglob(name)
        content = yaml.safe_load(file.read_text())
        for key, value in settings.items():
            *outer, last = key.split("__")
            inner = content
            for part in outer:
                inner = inner[part]
            inner[last] = value
        file.write_text(json.dumps(content) if name.endswith("json") else yaml.safe_dump(content))

    return change


def tensor(name: str, value: Tensor | None) -> Callable[[Path], None]:
    """Changes a tensor of the only file of weights, or takes it out."""

    def change(folder: Path) -> None:
        names = ("sae.safetensors", "params.safetensors", "ae.pt")
        (file,) = (file for file in folder.rglob("*") if file.name in names)
        tensors = torch.load(file) if file.suffix == ".pt" else load_file(file)
        tensors.pop(name, None)
        tensors |= {} if value is None else {name: value}
        torch.save(tensors, file) if file.suffix == ".pt" else save_file(tensors, file)

    return change


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


DL = "dictionary_learning-BatchTopKSAE"


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("sparsify-sae", keys("cfg.json", activation="groupmax"), 'the key activation is "groupmax", which'),
        ("sparsify-sae", keys("cfg.json", signed=True), "the key signed is true"),
        ("sparsify-sae", keys("cfg.json", k=0), "the key k is 0, of 24 units"),
        ("sparsify-sae", keys("cfg.json", d_in=None), "the key d_in is missing"),
        ("sparsify-sae", tensor("encoder.bias", None), r"there is no tensor encoder\.bias \(there is: W_dec"),
        ("sparsify-sae", tensor("more", torch.ones(1)), "what the tensor more does is not known"),
        ("circuit_tracer-set-relu", keys("config.yaml", model_kind="new"), 'the key model_kind is "new"'),
        ("circuit_tracer-set-relu", keys("config.yaml", transcoders=["hf://a/b/c"]), "key transcoders names"),
        ("circuit_tracer-set-relu", keys("config.yaml", activation="topk"), 'the key activation is "topk"'),
        ("circuit_tracer-clt-relu", keys("config.yaml", feature_input_hook=None), "feature_input_hook is"),
        (
            "circuit_tracer-clt-relu",
            lambda folder: (folder / "W_enc_0.safetensors").unlink(),
            r"W_enc_0\.safetensors: cannot be read",
        ),
        (
            "circuit_tracer-set-relu",
            lambda folder: (folder / "config.yaml").write_text(":\n- {"),
            r"config\.yaml: cannot be read",
        ),
        (
            "gemma_scope-1",
            lambda folder: (folder / "gemma-scope-2b-pt-mlp").rename(folder / "mine"),
            "where it reads, its path is to tell, as gemma-scope-2b-pt-res",
        ),
        ("gemma_scope-2", keys("config.json", architecture="relu"), 'the key architecture is "relu"'),
        ("gemma_scope-2", keys("config.json", hf_hook_point_in=None), "the key hf_hook_point_in is missing"),
        ("gemma_scope-2", tensor("threshold", -torch.ones(24)), "threshold has negative numbers"),
        (DL, keys("config.json", trainer__dict_class="IdentityDict"), r"the key trainer\.dict_class is"),
        (DL, keys("config.json", trainer__submodule_name="mlp_1"), r"trainer\.submodule_name is 'mlp_1'"),
        (DL, keys("config.json", buffer__io="in_and_out"), r"the key buffer\.io is"),
        (DL, tensor("threshold", torch.tensor(-1.0)), "training never set it"),
        (DL, lambda folder: torch.save({"a": Code()}, folder / "ae.pt"), "cannot be read as tensors alone"),
        (DL, lambda folder: torch.save([1], folder / "ae.pt"), "holds something else than tensors by name"),
        (DL, lambda folder: (folder / "ae.pt").write_bytes(b"x"), "cannot be read as tensors alone"),
        (DL, lambda folder: (folder / "config.json").write_text('{"a":' * 5000), "maximum recursion depth"),
        (
            "saelens-gated-random",
            lambda folder: save_file(
                load_file(folder / "sae_weights.safetensors") | {"b_gate": torch.full((24,), torch.nan)},
                folder / "sae_weights.safetensors",
            ),
            "b_gate has NaN among its numbers",
        ),
    ],
)  # fmt: skip
def test_what_would_have_to_be_guessed_is_refused(
    case: str, change: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = changed(case, tmp_path, change)
    with pytest.raises(IndexerError, match=said) as found:
        list(read(str(folder)))
    assert "\n" not in str(found.value)
    assert str(folder) in str(found.value)
    assert not Path("ran").exists()


def test_names() -> None:
    assert named("a/my-sae.v2") == ("a/my-sae.v2", "my_sae_v2")
    assert named("hf://a/b/c=d.e") == ("hf://a/b/c", "d.e")
    assert named(str(FIXTURES / "gemma_scope-1")) == (str(FIXTURES / "gemma_scope-1"), "gemma_scope_1")
    with pytest.raises(IndexerError, match=r'^--sae a=b/c: the name "b/c" may have letters'):
        named("a=b/c")


def test_a_dictionary_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str] | None) -> str:
        asked.append((name, revision, allow_patterns))
        if name == "a/none":
            raise OSError("404\nmore")
        return str(FIXTURES)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (found,) = read("hf://a/b@v1/sparsify-sae/")
    assert found.form == "sparsify SAE"
    assert asked == [("a/b", "v1", ["sparsify-sae", "sparsify-sae/*"])]
    with pytest.raises(IndexerError, match=r"^--sae hf://a/none: the hub does not give it \(404\)$"):
        list(read("hf://a/none"))
    with pytest.raises(IndexerError, match=r"^--sae hf://a: expected hf://OWNER/NAME"):
        list(read("hf://a"))
    assert source.FORMATS.keys() == {
        "SAELens", "sparsify", "circuit-tracer", "Gemma Scope", "dictionary_learning"
    }  # fmt: skip
