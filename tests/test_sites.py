"""A site that is not there yet, added as docs/add-a-site.md says, is built, asked and merged; and what
every probe is held to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Sequences
from torch import Tensor, nn
from transformers import AutoModel

import indexer
from indexer.errors import IndexerError
from indexer.models import LoadedModel, Probe, Runner, Values, adapt
from indexer.names import MLP, Key
from indexer.partials.merge import merge_indexes
from indexer.sites import SITES, Asked, find
from indexer.sites.hook import Hook
from tests.test_models_structure import Packed, Reused, body
from tests.tiny_batches import tiny_batch
from tests.tiny_models import HIDDEN, LAYERS, UNITS, fresh, saved, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[1] / "docs" / "add-a-site.md"


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own site, registered as it says."""
    (module,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(module, names)
    monkeypatch.setitem(SITES, "embed", names["find"])


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    generator, files = np.random.default_rng(0), []
    for number in range(4):
        words = generator.integers(0, 90, 150)
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(" ".join(f"w{word}" for word in words))
    return [str(file) for file in files]


def build(model: Path, texts: list[str], output: Path, **options: Any) -> Path:
    settings = {"context": 32, "threads": 1, "top": 3, "bottom": 3, "piece_bytes": 500, **options}
    return Path(indexer.build(model=str(model), corpus=texts, output=str(output), **settings))


def rows(index: Path) -> list[Any]:
    with indexer.open_index(index) as opened:
        return [
            opened.sql(f"SELECT * FROM {view} ORDER BY ALL").to_pylist() for view in ("units", "examples")
        ]


@pytest.mark.parametrize("sites", [("mlp", "embed"), ("embed",)])
@pytest.mark.usefixtures("embed")
def test_a_further_site_is_indexed_beside_the_others(
    sites: tuple[str, ...], texts: list[str], tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", "llama")
    whole = build(model, texts, tmp_path / "whole", sites=sites)
    parts = [build(model, texts, tmp_path / f"{n}", sites=",".join(sites), shard=(n, 2)) for n in range(2)]
    merge_indexes(parts, tmp_path / "merged")
    assert rows(tmp_path / "merged") == rows(whole)

    table = AutoModel.from_pretrained(model).get_input_embeddings().weight.detach().numpy()
    with indexer.open_index(whole) as index:
        index.verify(full=True)
        assert index.info()["layers"] == {"embed": "0", **({"mlp": "0-2"} if "mlp" in sites else {})}
        facts = {(layer["site"], layer["layer"]): layer for layer in index.info()["model"]["layers"]}
        assert facts["embed", 0]["place"] == "embed_tokens"
        best = index.top("embed.0.3", k=1).to_pylist()[0]
        assert best["value"] == table[best["token_id"], 3]
        seen = index.sql("SELECT token_id FROM vocabulary WHERE count > 0")["token_id"].to_numpy()
        assert best["value"] == table[seen, 3].max()


@pytest.mark.usefixtures("embed")
def test_neurons_are_the_same_beside_another_site(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    alone = rows(build(model, texts, tmp_path / "alone"))
    beside = rows(build(model, texts, tmp_path / "beside", sites=("embed", "mlp")))
    assert alone == [[row for row in table if row["site"] == MLP] for table in beside]


@pytest.mark.usefixtures("embed")
def test_a_site_may_keep_something_else(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = SITES["embed"]

    def few(loaded: LoadedModel, asked: Asked) -> Sequence[Probe]:
        return everything(loaded, replace(asked, keep=replace(asked.keep, top=1, bottom=0, window=(2, 1))))

    monkeypatch.setitem(SITES, "embed", few)
    model = saved(tmp_path / "model", "llama")
    whole = build(model, texts, tmp_path / "whole", sites="mlp,embed")
    parts = [build(model, texts, tmp_path / f"{n}", sites="mlp,embed", shard=(n, 2)) for n in range(2)]
    merge_indexes(parts, tmp_path / "merged")
    assert rows(tmp_path / "merged") == rows(whole)
    with indexer.open_index(whole) as index:
        index.verify(full=True)
        assert {site.site: site.keep.top for site in index.manifest.sites} == {"embed": 1, "mlp": 3}
        assert (index.top("embed.0.3").num_rows, index.bottom("embed.0.3").num_rows) == (1, 0)
        assert len(index.top("embed.0.3")["token_ids"][0]) <= 4
        assert index.top("mlp.0.3").num_rows == 3


@pytest.mark.usefixtures("embed")
def test_layers_are_chosen_of_every_site(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    for layers, found in (("1-2", {"mlp": "1-2"}), ("0", {"embed": "0", "mlp": "0"})):
        output = build(model, texts, tmp_path / layers, sites="mlp,embed", layers=layers)
        with indexer.open_index(output) as index:
            assert index.info()["layers"] == found


def test_a_site_that_does_not_exist(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match=r'^--sites: no site "heights"; there is: mlp, experts, attn'):
        build(tmp_path / "no model", texts, tmp_path / "index", sites="mlp,heights")


def hook(key: Key, module: nn.Module, units: int = HIDDEN, **options: Any) -> Hook:
    return Hook(key=key, units=units, keep=Asked().keep, place=str(key), module=module, **options)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Probe]:
    """What the site `places` finds."""
    found: list[Probe] = []
    monkeypatch.setitem(SITES, "places", lambda loaded, asked: found)
    return found


def test_probes_come_in_the_order_of_the_forward_pass(places: list[Probe]) -> None:
    loaded = adapt(tiny("llama"))
    blocks: Sequence[nn.Module] = loaded.model.layers  # type: ignore[assignment]
    # what a block returns comes after its MLP, and the model's own norm after all blocks
    places += [hook(Key("places", number), block, returned=True) for number, block in enumerate(blocks)]
    places += [hook(Key("places", 7), loaded.model.norm, returned=True)]  # type: ignore[arg-type]
    found = [probe.key for probe in find(loaded, ("places", MLP))]
    inside = [(site, number) for number in range(LAYERS) for site in (MLP, "places")]
    assert found == [*inside, ("places", 7)]


def test_the_forward_ends_with_the_last_probe_of_all_sites(places: list[Probe]) -> None:
    loaded, ran = adapt(tiny("llama")), []
    places.append(hook(Key("places", 1), loaded.model.layers[1], returned=True))  # type: ignore[index,arg-type]
    handle = loaded.model.layers[2].register_forward_pre_hook(lambda *_: ran.append(2))  # type: ignore[index]
    probes = [probe for probe in find(loaded, (MLP, "places")) if probe.key.layer < 2]
    ran.clear()
    taken: list[Key] = []
    Runner(loaded, probes, lambda key, values: taken.append(key)).run(tiny_batch(7, 3))
    handle.remove()
    assert taken == [(MLP, 0), (MLP, 1), ("places", 1)]
    assert ran == []


class Twice(nn.Module):
    """Calls another module two times."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) + self.inner(x)) / 2


@pytest.mark.parametrize(("times", "told"), [(0, "runs 0 rows"), (2, "runs 32 rows")])
def test_a_place_that_not_every_token_passes_once_is_refused(
    times: int, told: str, places: list[Probe]
) -> None:
    model, inner = fresh("llama"), nn.SiLU()
    if times:
        model.layers[0].mlp.act_fn = Twice(inner)
    places.append(hook(Key("places", 0), inner, units=UNITS))
    with pytest.raises(IndexerError, match=rf"^places\.0: the model {told} through it for"):
        find(adapt(model), ("places",))


class Doubling(Hook):
    """Computes a part of the model, and computes it wrong."""

    @property
    def fused(self) -> bool:
        return True

    def attach(self, take: Any, workspace: Any, last: bool) -> Any:
        def double(values: Values) -> None:
            take(values)
            values.matrix.mul_(2)

        return super().attach(double, workspace, last)

    def read(self, reason: str) -> Hook:
        return hook(self.key, self.module, units=self.units, reason=reason)


def test_a_probe_that_changes_the_model_is_replaced_by_one_that_does_not(places: list[Probe]) -> None:
    loaded = adapt(tiny("llama"))
    down = loaded.model.layers[0].mlp.down_proj  # type: ignore[index,union-attr]
    places.append(Doubling(key=Key("places", 0), units=UNITS, keep=Asked().keep, place="down", module=down))
    (found,) = find(loaded, ("places",))
    assert type(found) is Hook
    assert found.provenance["reason"].startswith("computed in one pass, the model's output differs by")


def test_values_are_made_once_however_they_are_taken() -> None:
    gate = torch.randn(5, 3)
    values = Values(gate.clone(), Sequences.none(5), "relu")
    assert torch.equal(values.made(), gate.relu())
    assert torch.equal(values.made(), gate.relu())
    left = Values(gate.clone(), Sequences.none(5), "relu")
    left.leave()
    assert torch.equal(left.made(), gate)


def test_hooks_are_asked_for_of_all_sites() -> None:
    for model in (body(Packed(), Packed()), body(Reused())):
        found = find(adapt(model), asked=Asked(hooks=True))
        assert {probe.fused for probe in found} == {False}
    assert {probe.provenance["reason"] for probe in found} == {"asked for"}
